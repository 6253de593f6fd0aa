"""Watches everything that any attempt at any round opens, from outside the ledger."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from unittest import mock

import torch

from triskele.ids import RoundNumber, held_shares
from triskele.release_mask import remove_masks
from triskele.task import TaskSpec
from triskele_server.mpc.opening_ledger import UndeclaredOpening
from triskele_server.mpc.session import Session, Shares
from triskele_server.mpc.transport import Transport
from triskele_server.party import round as round_page
from triskele_server.party.job import RoundJob

AGREED = ("masked_aggregate", "valid")  # what every attempt must open alike, if it opens it, once its mask is off


class Attempt(NamedTuple):
    """One attempt at one round."""

    round: int
    attempt: int


class Openings:
    """What was opened, computed anew from what each party put in."""

    def __init__(self, spec: TaskSpec) -> None:
        self._spec = spec
        self._attempts: dict[bytes, Attempt] = {}
        self._of: dict[int, Attempt] = {}  # by id of the transport, which is kept alive below
        self._transports: list[Any] = []
        self._given: defaultdict[tuple[Attempt, str], dict[int, Any]] = defaultdict(dict)
        self._keys: defaultdict[Attempt, dict[int, Any]] = defaultdict(dict)  # of the mask, by index
        self.inputs: defaultdict[Attempt, dict[int, frozenset[bytes]]] = defaultdict(dict)  # manifests, by party
        self.names: defaultdict[int, set[str]] = defaultdict(set)  # of frames that opened something, by round
        self.values: defaultdict[tuple[int, str], set[bytes]] = defaultdict(set)  # by round and name
        self.decisions: defaultdict[int, set[Any]] = defaultdict(set)  # that an aggregate was opened for, by round

    def began(self, party: int, job: RoundJob) -> None:
        """A worker was given a job."""
        attempt = Attempt(job.round, job.attempt)
        context = self._spec.digest + job.round.to_bytes(8, "big") + job.attempt.to_bytes(4, "big")
        self._attempts[hashlib.sha256(b"triskele/v1/session" + context).digest()] = attempt
        self.inputs[attempt][party] = frozenset(bytes(s.manifest_digest) for s in job.submissions)

    def joined(self, session: bytes, transport: Any) -> None:
        """A worker has its end of a session."""
        self._transports.append(transport)
        self._of[id(transport)] = self._attempts[session]

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Everything that is opened inside the block is seen."""
        opened, opened_sum, sent, combined = Session.open, Session.open_sum, Transport.send, round_page._combined

        def open_(session: Session, shares: Shares, name: str) -> torch.Tensor:
            self._contributes(session, name, (shares.first.clone(), shares.second.clone()))
            with self._unless_refused(session, name):
                return opened(session, shares, name)

        def open_sum(session: Session, part: torch.Tensor, name: str) -> torch.Tensor:
            self._contributes(session, name, part.clone())
            with self._unless_refused(session, name):
                return opened_sum(session, part, name)

        def send(transport: Transport, peer: Any, label: str, payload: bytes) -> None:
            if label.startswith("open/") and id(transport) in self._of:
                self.names[self._of[id(transport)].round].add(label.removeprefix("open/").split(":")[0])
            sent(transport, peer, label, payload)

        def combine(session: Session, given: Any, rows: Any, decision: Any, *rest: Any) -> Any:
            public = (decision.attempt, decision.valid, decision.rows, decision.weight_total, decision.accepted)
            self.decisions[self._of[id(session.transport)].round].add(public)
            return combined(session, given, rows, decision, *rest)

        with (
            mock.patch.multiple(Session, open=open_, open_sum=open_sum),
            mock.patch.object(Transport, "send", send),
            mock.patch.object(round_page, "_combined", combine),
        ):
            yield

    def _contributes(self, session: Session, name: str, what: Any) -> None:
        attempt = self._of[id(session.transport)]
        given = self._given[attempt, name]
        given[session.party] = what
        for index, key in zip(held_shares(session.party), session.mask_keys, strict=True):
            self._keys[attempt][index] = key
        value = _value(given)
        if value is not None:
            if name == "masked_aggregate":
                value = value.clone()
                remove_masks(value.numpy(), self._keys[attempt], self._spec.digest, RoundNumber(attempt.round))
            self.values[attempt.round, name].add(value.numpy().tobytes())

    @contextmanager
    def _unless_refused(self, session: Session, name: str) -> Iterator[None]:
        try:
            yield
        except UndeclaredOpening:
            self._given[self._of[id(session.transport)], name].pop(session.party)
            raise


def _value(given: dict[int, Any]) -> torch.Tensor | None:
    """What comes out, once the parties that have put something in know it together."""
    if all(isinstance(part, torch.Tensor) for part in given.values()):
        return sum(given.values()) if len(given) == 3 else None  # type: ignore[return-value]  # sum of tensors
    for party, (first, second) in given.items():
        if (party + 2) % 3 in given:
            return first + second + given[(party + 2) % 3][0]
    return None
