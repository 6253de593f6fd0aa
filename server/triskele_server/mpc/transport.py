"""Frames between parties. A frame is numbered and labelled with the operation, dtype and shape that it carries;
a receiver that expects another label or size ends the round: desynchronised parties never add up garbage."""

from __future__ import annotations

import queue
from abc import ABC, abstractmethod
from dataclasses import dataclass

from triskele.errors import PartyFault, PeerLost
from triskele.ids import PARTIES, PartyIndex


@dataclass(frozen=True)
class Frame:
    """One message between two parties; `sequence` counts from 0 per direction. The payload may be secret."""

    sequence: int
    label: str
    payload: bytes

    def __repr__(self) -> str:
        return f"Frame({self.sequence}, {self.label!r}, {len(self.payload)} bytes)"


@dataclass
class Traffic:
    """What one party has sent, and `rounds` of communication: steps that waited for a peer that waits, too."""

    rounds: int = 0
    bytes_sent: int = 0


class Transport(ABC):
    """One party's ordered, authenticated channels to its two peers."""

    def __init__(self, party: PartyIndex) -> None:
        self.party = party
        self.traffic = Traffic()
        self._sent = dict.fromkeys(PARTIES, 0)
        self._received = dict.fromkeys(PARTIES, 0)

    def send(self, peer: PartyIndex, label: str, payload: bytes) -> None:
        """Queue one frame to `peer`; does not wait for it to arrive."""
        frame = Frame(self._sent[peer], label, payload)
        self._sent[peer] += 1
        self.traffic.bytes_sent += len(payload)
        self._put(peer, frame)

    def receive(self, peer: PartyIndex, label: str, size: int | None) -> bytes:
        """The next frame from `peer`, which must carry this label and `size` bytes (None: any size).

        Raises PartyFault if it does not, PeerLost if the peer is gone or nothing comes for the time-out.
        """
        frame = self._get(peer, label)
        expected = self._received[peer]
        self._received[peer] += 1
        if (frame.sequence, frame.label) != (expected, label):
            raise PartyFault(
                f"party {peer} sent frame {frame.sequence} {frame.label!r} where {expected} {label!r} was due; "
                "the parties do not run the same program on the same input",
                peer,
            )
        if size is not None and len(frame.payload) != size:
            raise PartyFault(f"party {peer} sent {len(frame.payload)} bytes for {label!r}, {size} were due", peer)
        return frame.payload

    @abstractmethod
    def _put(self, peer: PartyIndex, frame: Frame) -> None:
        """Hand a frame over for delivery."""

    @abstractmethod
    def _get(self, peer: PartyIndex, label: str) -> Frame:
        """Wait for the next frame of `peer`; `label` is for the error text. Raises PeerLost."""

    @abstractmethod
    def close(self) -> None:
        """Stop; peers that still wait for a frame get a PeerLost."""


_Queues = dict[tuple[int, int], queue.SimpleQueue[Frame | None]]


class ThreadTransport(Transport):
    """Queues between three threads of one process."""

    def __init__(
        self, party: PartyIndex, queues: dict[tuple[int, int], queue.SimpleQueue[Frame | None]], seconds: float
    ) -> None:
        super().__init__(party)
        self._queues = queues
        self._seconds = seconds

    def _put(self, peer: PartyIndex, frame: Frame) -> None:
        self._queues[self.party, peer].put(frame)

    def _get(self, peer: PartyIndex, label: str) -> Frame:
        try:
            frame = self._queues[peer, self.party].get(timeout=self._seconds)
        except queue.Empty:
            raise PeerLost(f"party {peer} sent nothing for {self._seconds:g} s; {label!r} was due", peer) from None
        if frame is None:
            raise PeerLost(f"party {peer} has stopped; {label!r} was due", peer)
        return frame

    def close(self) -> None:
        for peer in PARTIES:
            if peer != self.party:
                self._queues[self.party, peer].put(None)


def thread_transports(seconds: float = 120.0) -> tuple[ThreadTransport, ThreadTransport, ThreadTransport]:
    """Connected transports of parties 0, 1, 2 in one process; `seconds` is the time-out of a receive."""
    queues: _Queues = {(a, b): queue.SimpleQueue() for a in PARTIES for b in PARTIES if a != b}
    first, second, third = (ThreadTransport(i, queues, seconds) for i in PARTIES)
    return first, second, third
