"""What each operation of the engine costs: `triskele bench`, `python -m bench.operations`.

The longest chain of messages that wait for each other, and for parties 0, 1 and 2 the steps that waited for a peer (a
party that needs messages from both peers waits twice) and the bytes sent per element of 100.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from triskele.ids import PARTIES, PartyIndex
from triskele_server.mpc import arithmetic, truncation
from triskele_server.mpc.opening_ledger import OpeningLedger
from triskele_server.mpc.replicated import ReplicatedTensor
from triskele_server.mpc.session import Session
from triskele_server.mpc.transport import Frame, ThreadTransport, thread_transports
from triskele_server.rules import geometry

ELEMENTS = 100
OPERATIONS: dict[str, Callable[[ReplicatedTensor], object]] = {
    "multiply": lambda x: arithmetic.multiply(x.session, x.shares, x.shares),
    "comparison, as a word": lambda x: x.lt(0),
    "truncation": lambda x: arithmetic.truncate(x.session, x.shares, 20),
    "truncated product": lambda x: truncation.multiply_truncated(x.session, x.shares, x.shares, 20),
    "exact floor": lambda x: x.rescale(20),
    "ranking": lambda x: x.rank(),
    "1/sqrt": lambda x: x.inv_sqrt(),
    "sqrt": lambda x: x.sqrt(),
    "1/x": lambda x: x.reciprocal(),
    "x / y": lambda x: x / x,
    "x / sum x": lambda x: x.normalised(),
    "min(sqrt(x / y), 2^15)": lambda x: x.root_ratio(x),
    "ln x": lambda x: x.log(),
    "cosines, 10 x 10": lambda x: geometry.cosines(x.reshape(10, 10)),
    "median norms": lambda x: geometry.median_squared_norms(x.reshape(10, 10)),
}


@dataclass(frozen=True, repr=False)
class Stamped(Frame):
    """A frame that says how many messages, one after the other, it took to know what it carries."""

    depth: int


class DepthTransport(ThreadTransport):
    """Keeps the longest chain of messages that this party has waited for."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.depth = 0

    def _put(self, peer: PartyIndex, frame: Frame) -> None:
        super()._put(peer, Stamped(frame.sequence, frame.label, frame.payload, self.depth + 1))

    def _get(self, peer: PartyIndex, label: str) -> Frame:
        frame = super()._get(peer, label)
        if isinstance(frame, Stamped):
            self.depth = max(self.depth, frame.depth)
        return frame


@dataclass(frozen=True)
class Cost:
    """One party's cost of an operation: its longest chain of messages, steps that waited, bytes sent per element."""

    depth: int
    rounds: int
    sent: float


def measured(operation: Callable[[ReplicatedTensor], object]) -> list[Cost]:
    """The costs by party."""
    queues = thread_transports()[0]._queues  # noqa: SLF001 - the same three channels under another class
    transports = [DepthTransport(party, queues, 120.0) for party in PARTIES]
    costs: dict[int, Cost] = {}

    def run(party: int) -> None:
        session = Session(transports[party], OpeningLedger([]), b"bench")
        values = arithmetic.constant(session, torch.arange(1, ELEMENTS + 1))
        traffic = session.transport.traffic
        depth, rounds, sent = transports[party].depth, traffic.rounds, traffic.bytes_sent
        operation(ReplicatedTensor(values, session, 40))
        costs[party] = Cost(
            transports[party].depth - depth, traffic.rounds - rounds, (traffic.bytes_sent - sent) / ELEMENTS
        )

    threads = [threading.Thread(target=run, args=(party,)) for party in PARTIES]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [costs[party] for party in PARTIES]
