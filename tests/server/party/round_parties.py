"""Rounds of three parties in threads on chosen ring words, with transports that record or change frames."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from triskele.errors import RoundFailed
from triskele.ids import PARTIES, ParticipantId, PartyIndex, RoundNumber, Slot, TaskName, held_shares
from triskele.manifest import ManifestDigest
from triskele.sharing import ShareContext, heavy_index, split
from triskele.task import TaskSpec
from triskele_server.linear.shares import SeedShare, SharePair, WordShare
from triskele_server.mpc import arithmetic
from triskele_server.mpc.opening_ledger import OpeningLedger
from triskele_server.mpc.replicated import ReplicatedTensor
from triskele_server.mpc.session import Session
from triskele_server.mpc.transport import Frame, ThreadTransport, thread_transports
from triskele_server.party.release_files import PreviousAggregate
from triskele_server.party.round import RoundInput, RoundOutput, SealedSubmission, run_round
from triskele_server.rules import registry

torch.set_num_threads(1)

ONE = 1 << 20  # the clip norm in ring units
NUMBER = RoundNumber(1)
SECONDS = 20.0


def task(dimension: int, rule: str | Sequence[str] = "mean", **options: Any) -> TaskSpec:
    """A task of clip norm 1 whose aggregate is public; test_masked_release.py has the others."""
    options.setdefault("release", "public")
    return TaskSpec(name=TaskName("test"), dimension=dimension, clip_norm=1.0, rule=rule, **options)


def rows_around(n: int, d: int, seed: int, outliers: Sequence[int] = (), norm: float = 0.6) -> np.ndarray:
    """int64 [n, d] rows near one vector of `norm` clip norms; the outliers point the other way."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=d) + 0.1 * rng.normal(size=(n, d))
    rows *= norm * ONE / np.sqrt((rows**2).sum(1, keepdims=True))
    rows[list(outliers)] *= -1
    return np.round(rows).astype(np.int64)


def participant(slot: int) -> ParticipantId:
    """The name of the participant of a slot."""
    return ParticipantId(f"p{slot:02d}")


def round_inputs(spec: TaskSpec, words: np.ndarray) -> list[RoundInput]:
    """What each party brings: shares of [n, spec.length] words of the task's ring."""
    sharings = []
    for slot, row in enumerate(words):
        context = ShareContext(spec.digest, NUMBER, participant(slot))
        heavy = heavy_index(Slot(slot))
        sharings.append((context, split(row, heavy=heavy, context=context, entropy=secrets.token_bytes(32))))
    inputs = []
    for party in PARTIES:
        held = []
        for slot, (context, sharing) in enumerate(sharings):
            pair = [
                WordShare(sharing.heavy_words)
                if k == sharing.heavy
                else SeedShare(sharing.seeds[k], context, k, spec.ring)
                for k in held_shares(party)
            ]
            manifest = ManifestDigest(slot.to_bytes(32, "big"))
            held.append(SealedSubmission(Slot(slot), context.participant, manifest, SharePair(*pair)))
        inputs.append(RoundInput(spec, NUMBER, 0, held))
    return inputs


def earlier(words: np.ndarray | None, **how: Any) -> PreviousAggregate | None:
    """The task's previous aggregate as a party holds it; None for the first round."""
    return None if words is None else PreviousAggregate(RoundNumber(1), words, **how)


def with_changed_heavy_word(inputs: Sequence[RoundInput], party: int, slot: int, word: int = 0) -> list[RoundInput]:
    """The same inputs, but one holder of a heavy share has another word in it."""

    def changed(submission: SealedSubmission) -> SealedSubmission:
        shares = [submission.shares.first, submission.shares.second]
        for k, held in enumerate(shares):
            if isinstance(held, WordShare):
                words = held.words.copy()
                words[word] ^= 1
                shares[k] = WordShare(words)
        return replace(submission, shares=SharePair(*shares))

    given = inputs[party]
    submissions = [changed(s) if s.slot == slot else s for s in given.submissions]
    return [replace(given, submissions=submissions) if p == party else inputs[p] for p in PARTIES]


class WatchedTransport(ThreadTransport):
    """Keeps what this party receives; `change(peer, frame)` may replace what it sends."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.received: list[tuple[int, str, bytes]] = []
        self.change: Callable[[int, Frame], Frame] = lambda _, frame: frame

    def _put(self, peer: PartyIndex, frame: Frame) -> None:
        super()._put(peer, self.change(peer, frame))

    def _get(self, peer: PartyIndex, label: str) -> Frame:
        frame = super()._get(peer, label)
        self.received.append((int(peer), frame.label, frame.payload))
        return frame


@dataclass
class Ran:
    """What came of a run at each party: a result, or the error that ended it."""

    transports: list[WatchedTransport]
    results: dict[int, Any] = field(default_factory=dict)
    errors: dict[int, BaseException] = field(default_factory=dict)

    @property
    def outputs(self) -> list[RoundOutput]:
        """The results of all three; raises the first error if there is one."""
        for error in self.errors.values():
            raise error
        return [self.results[p] for p in PARTIES]

    @property
    def opened(self) -> set[str]:
        """Names of what was sent to be opened by anybody, whether it arrived whole or not."""
        labels = [label for t in self.transports for _, label, _ in t.received if label.startswith("open/")]
        return {label.removeprefix("open/").split(":")[0] for label in labels}


def watched_transports() -> list[WatchedTransport]:
    """Three connected transports."""
    queues = thread_transports(SECONDS)[0]._queues
    return [WatchedTransport(party, queues, SECONDS) for party in PARTIES]


def at_three_parties(
    program: Callable[[PartyIndex, WatchedTransport], Any], transports: list[WatchedTransport] | None = None
) -> Ran:
    """Run a program at three parties in threads."""
    ran = Ran(transports or watched_transports())

    def run(party: PartyIndex) -> None:
        try:
            ran.results[party] = program(party, ran.transports[party])
        except BaseException as error:  # noqa: BLE001 - a test looks at it
            ran.errors[party] = error
        finally:
            ran.transports[party].close()

    threads = [threading.Thread(target=run, args=(party,)) for party in PARTIES]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return ran


def in_sessions(program: Callable[[Session], Any], declared: Sequence[str] = (), transports: Any = None) -> Ran:
    """Run a program on three sessions."""
    return at_three_parties(
        lambda _, transport: program(Session(transport, OpeningLedger(declared), b"test")), transports
    )


def run_rounds(inputs: Sequence[RoundInput], transports: list[WatchedTransport] | None = None) -> Ran:
    """Run a round."""
    return at_three_parties(lambda party, transport: run_round(inputs[party], transport), transports)


VALID = frozenset({"valid"})
COHORT = frozenset({"valid", "enough_accepted"})


def ended_the_round(
    ran: Ran, reason: str = "rule_failed", opened: frozenset[str] = VALID, who: str = "rule:rogue"
) -> None:
    """Check that every party's round failed for this reason, and that nothing else was opened."""
    assert set(ran.errors) == {0, 1, 2}, "the round went on"
    for error in ran.errors.values():
        assert isinstance(error, RoundFailed), repr(error)
        assert (error.reason, error.who) == (reason, who if reason == "rule_failed" else "cohort")
    assert ran.opened <= opened, ran.opened


def openings(output: RoundOutput) -> list[tuple[str, tuple[int, ...]]]:
    """The ledger as (name, shape)."""
    return [(o.name, o.shape) for o in output.ledger.openings]


def fix_coin(monkeypatch: Any, coin: bytes) -> None:
    """Every round until the test ends tosses this coin."""
    monkeypatch.setattr("triskele_server.party.round.toss_coin", lambda *_: coin)


@contextmanager
def own_rules() -> Iterator[None]:
    """Rules and stages that are registered inside the block are gone after it."""
    before = dict(registry._RULES)
    try:
        yield
    finally:
        registry._RULES.clear()
        registry._RULES.update(before)


def secret_words(gram: ReplicatedTensor, words: Any, places: int = 0) -> ReplicatedTensor:
    """What a rule gets by computing: a secret tensor of these ring words, with `places` fraction bits."""
    value = torch.as_tensor(words, dtype=torch.int64)
    zero = arithmetic.reshare(gram.session, "zero", torch.zeros_like(value))
    return ReplicatedTensor(arithmetic.add(zero, arithmetic.constant(gram.session, value)), gram.session, places)
