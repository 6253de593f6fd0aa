"""One party's end of one multi-party computation, and the only function that opens a secret: `Session.open`."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from triskele.errors import PartyFault
from triskele.ids import PARTIES, PartyIndex
from triskele.keystream import derive
from triskele.release_mask import MASK_KEY_BYTES, MaskKey
from triskele_server.mpc.opening_ledger import OpeningLedger
from triskele_server.mpc.randomness import CorrelatedRandomness
from triskele_server.mpc.transport import Transport

_KEY_BYTES = 32
_DIGEST_BYTES = 32


@dataclass(frozen=True, repr=False)
class Shares:
    """Party i's two shares (x_i, x_{i+1}) of a tensor, additive mod 2^64 (int64) or 2^32 (int32), or XOR."""

    first: torch.Tensor
    second: torch.Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the shared tensor."""
        return tuple(self.first.shape)


class Session:
    """Party `party`'s end of a computation. All three parties run the same operations in the same order."""

    def __init__(self, transport: Transport, ledger: OpeningLedger, context: bytes) -> None:
        """Agree pairwise keys over the authenticated transport; `context` (task, round, attempt) is bound into them."""
        self.party = transport.party
        self.previous = PartyIndex((self.party + 2) % 3)
        self.next = PartyIndex((self.party + 1) % 3)
        self.ledger = ledger
        self.transport = transport
        self.randomness, self.mask_keys = self._agree_keys(context)

    def _agree_keys(self, context: bytes) -> tuple[CorrelatedRandomness, tuple[MaskKey, MaskKey]]:
        """Streams with the previous and the next party; and the keys m_i, m_{i+1} of the mask over what is released."""
        own = {peer: secrets.token_bytes(_KEY_BYTES) for peer in (self.previous, self.next)}
        theirs = self.swap({peer: ("key", key) for peer, key in own.items()}, _KEY_BYTES)

        def key(peer: PartyIndex, purpose: bytes, length: int) -> bytes:
            low, high = sorted((self.party, peer))
            parts = {self.party: own[peer], peer: theirs[peer]}
            return derive(parts[low] + parts[high], purpose + context + bytes([low, high]), length)

        streams = [key(peer, b"triskele/v1/pairwise", 16) for peer in (self.previous, self.next)]
        masks = [key(peer, b"triskele/v1/release-key", MASK_KEY_BYTES) for peer in (self.previous, self.next)]
        return CorrelatedRandomness(*streams), (MaskKey(masks[0]), MaskKey(masks[1]))

    # ---- exchanges, each one round of communication -------------------------------------------------------------

    def swap(self, outgoing: dict[PartyIndex, tuple[str, bytes]], size: int | None) -> dict[PartyIndex, bytes]:
        """Send one labelled payload to each named peer and receive one under the same label from each of them."""
        self.transport.traffic.rounds += 1
        for peer, (label, payload) in outgoing.items():
            self.transport.send(peer, label, payload)
        return {peer: self.transport.receive(peer, label, size) for peer, (label, _) in outgoing.items()}

    def broadcast(self, label: str, payload: bytes, size: int | None = None) -> list[bytes]:
        """Everybody's payload, by party index."""
        received = self.swap(dict.fromkeys((self.previous, self.next), (label, payload)), size)
        return [payload if party == self.party else received[party] for party in PARTIES]

    def broadcast_all(self, payloads: Mapping[str, bytes], size: int) -> Iterator[tuple[str, list[bytes]]]:
        """The same for several labels, all of them sent before the first is received: one round."""
        self.transport.traffic.rounds += 1
        for label, payload in payloads.items():
            for peer in (self.previous, self.next):
                self.transport.send(peer, label, payload)
        for label, payload in payloads.items():
            peers = (self.previous, self.next)
            received = {peer: self.transport.receive(peer, label, size) for peer in peers}
            yield label, [payload if party == self.party else received[party] for party in PARTIES]

    def pass_back(self, label: str, tensor: torch.Tensor) -> torch.Tensor:
        """Send a tensor to the previous party, receive the next party's one of the same shape and dtype."""
        full = _label(label, tensor)
        self.transport.traffic.rounds += 1
        self.transport.send(self.previous, full, _payload(tensor))
        return _tensor(self.transport.receive(self.next, full, tensor.nbytes), tensor)

    def send(self, peer: PartyIndex, label: str, tensor: torch.Tensor) -> None:
        """Send a tensor to one party."""
        self.transport.send(peer, _label(label, tensor), _payload(tensor))

    def receive(self, peer: PartyIndex, label: str, like: torch.Tensor, *, ahead: bool = False) -> torch.Tensor:
        """Receive a tensor of the shape and dtype of `like` from one party.

        A party that is `ahead` waits for nobody before it sends this: no round of communication is counted.
        """
        self.transport.traffic.rounds += not ahead
        return _tensor(self.transport.receive(peer, _label(label, like), like.nbytes), like)

    def receive_all(self, labels: dict[PartyIndex, str], like: torch.Tensor) -> list[torch.Tensor]:
        """A tensor of the shape and dtype of `like` from each of the named parties, all of them sent by now."""
        self.transport.traffic.rounds += 1
        return [
            _tensor(self.transport.receive(peer, _label(label, like), like.nbytes), like)
            for peer, label in labels.items()
        ]

    # ---- opening -----------------------------------------------------------------------------------------------

    def open(self, shares: Shares, name: str) -> torch.Tensor:
        """Open a replicated value to all parties, if the ledger declares `name`.

        The missing share comes from the previous party, its digest from the next one; both hold it, so a single
        party that sends a wrong share is caught here (PartyFault).
        """
        self.ledger.admit(name, shares.shape)
        mine = shares.first.contiguous()
        label = _label(f"open/{name}", mine)
        self.transport.traffic.rounds += 1
        self.transport.send(self.next, label, _payload(mine))
        self.transport.send(self.previous, label + "/digest", _digest(shares.second))
        missing = self.transport.receive(self.previous, label, mine.nbytes)
        digest = self.transport.receive(self.next, label + "/digest", _DIGEST_BYTES)
        if not hmac.compare_digest(hashlib.sha256(missing).digest(), digest):
            raise PartyFault(
                f"opening {name!r}: parties {self.previous} and {self.next} hold the same share but sent different "
                "words; one of them is at fault, nothing is released"
            )
        return _plus(mine + shares.second, missing)

    def open_sum(self, part: torch.Tensor, name: str) -> torch.Tensor:
        """Open an additive three-way sharing (one part per party) to all parties, re-randomised first."""
        self.ledger.admit(name, tuple(part.shape))
        masked = self.randomness.zero_sum(tuple(part.shape), part.dtype)
        masked += part
        label = _label(f"open/{name}", masked)
        payload = _payload(masked)
        parts = self.swap(dict.fromkeys((self.previous, self.next), (label, payload)), masked.nbytes)
        for received in parts.values():
            _plus(masked, received)
        return masked


def _label(operation: str, tensor: torch.Tensor) -> str:
    return f"{operation}:{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"


def _payload(tensor: torch.Tensor) -> bytes:
    data: Any = tensor.contiguous().numpy()
    return bytes(data.data)


def _digest(tensor: torch.Tensor) -> bytes:
    data: Any = tensor.contiguous().numpy()
    return hashlib.sha256(data.data).digest()


def _tensor(payload: bytes, like: torch.Tensor) -> torch.Tensor:
    return torch.frombuffer(bytearray(payload), dtype=like.dtype).reshape(like.shape) if payload else like.clone()


def _plus(words: torch.Tensor, payload: bytes) -> torch.Tensor:
    """Add a received tensor of the same shape to `words`, in place and from where it lies."""
    own: Any = words.numpy()
    own += np.frombuffer(payload, own.dtype).reshape(own.shape)
    return words
