"""One round at one party: the whole protocol on a page, steps 3 to 10 of docs/protocol.md in their words and order.

Steps 1 and 2, opening and upload, are the intake's. All three parties run this function together; what differs
between them is the shares they hold.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

import numpy as np
import torch

from triskele.encoding import Words
from triskele.errors import RoundFailed
from triskele.ids import ParticipantId, RoundNumber, Slot
from triskele.manifest import ManifestDigest
from triskele.task import TaskSpec
from triskele_server.linear.combine import combine_public, combine_secret
from triskele_server.linear.gram import EXACT_LIMIT
from triskele_server.linear.shares import SharePair
from triskele_server.linear.sketch import CHECK_BUCKETS, GRAM_BUCKETS, Sketch
from triskele_server.mpc import arithmetic
from triskele_server.mpc.opening_ledger import OpeningLedger
from triskele_server.mpc.replicated import ReplicatedTensor
from triskele_server.mpc.session import Session, Shares
from triskele_server.mpc.transport import Transport
from triskele_server.party.agreement import agree, compare_shares, toss_coin
from triskele_server.party.coordinates import run_coordinate_wise
from triskele_server.party.filter import Coefficients, declared_openings, run_filter
from triskele_server.party.rows import Rows, lay_out
from triskele_server.party.validity import check
from triskele_server.rules.pipeline import Pipeline

INVALID = "failed_validity_check"


@dataclass(frozen=True)
class SealedSubmission:
    """One submission of the sealed input set, and this party's two shares of it."""

    slot: Slot
    participant: ParticipantId
    manifest: ManifestDigest
    shares: SharePair


@dataclass(frozen=True)
class RoundInput:
    """What a party brings into a round: submissions by slot, the task's previous aggregate in units of C / 2^20."""

    spec: TaskSpec
    round: RoundNumber
    attempt: int
    submissions: Sequence[SealedSubmission]
    previous: Words | None = None

    @property
    def context(self) -> bytes:
        """Task, round and attempt: bound into the pairwise keys and the coin."""
        return self.spec.digest + self.round.to_bytes(8, "big") + self.attempt.to_bytes(4, "big")

    def set_digest(self) -> bytes:
        """SHA-256 of the input set."""
        digest = hashlib.sha256(b"triskele/v1/input-set" + self.context)
        for s in self.submissions:
            name = s.participant.encode()
            digest.update(s.slot.to_bytes(4, "big") + len(name).to_bytes(2, "big") + name + s.manifest)
        return digest.digest()

    def previous_digest(self) -> bytes:
        """SHA-256 of the previous aggregate's words."""
        return hashlib.sha256(b"" if self.previous is None else self.previous.astype("<i8").tobytes()).digest()


@dataclass(frozen=True)
class RoundOutput:
    """The mean is words / weight_total / 2^coefficient_bits * C / 2^20. `accepted` is None under hidden decisions."""

    words: Words
    weight_total: int
    coefficient_bits: int
    refused: Mapping[Slot, str]
    accepted: tuple[Slot, ...] | None
    ledger: OpeningLedger


def run_round(
    given: RoundInput,
    transport: Transport,
    on_step: Callable[[str], None] = lambda _: None,
    executor: Executor | None = None,
) -> RoundOutput:
    """Run steps 3 to 10. Raises PartyFault or RoundFailed; then nothing was opened beyond what the ledger shows.

    `on_step` hears the name of each step as it ends.
    """
    spec, slots = given.spec, [s.slot for s in given.submissions]
    session = Session(transport, OpeningLedger(declared_openings(spec)), given.context)

    # 3. Seal: the same input set everywhere, large enough, before anything is computed.
    pipeline = Pipeline.of(spec)
    agree(session, "input set", given.set_digest())
    agree(session, "rules", pipeline.source_digest())
    agree(session, "previous aggregate", given.previous_digest())
    _check_minimum(spec, len(slots), "sealed")
    on_step("seal")

    # 4. Coin: tossed after sealing, so that no participant can adapt to it.
    coin = toss_coin(session, given.context)
    on_step("coin")

    # 5. Sketch: local and linear. Both holders of a share must get the same.
    sketch = Sketch(coin, spec.dimension, CHECK_BUCKETS if _exact(spec, len(slots)) else GRAM_BUCKETS)
    first = sketch.apply([s.shares.first for s in given.submissions], executor)
    second = sketch.apply([s.shares.second for s in given.submissions], executor)
    weights = _weight_shares(given) if spec.weighted else None
    mine = (first, second) if weights is None else _beside(first, second, weights)
    compare_shares(session, "sketch", slots, *mine)
    on_step("sketch")

    # 6. Check: one validity bit per submission is opened; invalid ones leave the round.
    folded = Shares(torch.from_numpy(sketch.folded(first)), torch.from_numpy(sketch.folded(second)))
    valid = np.flatnonzero(check(session, sketch, folded, weights, spec.max_weight)).tolist()
    _check_minimum(spec, len(valid), "valid")
    on_step("check")

    # 7. Gram: local products, exact or of the sketches; only n^2 words travel. More rows than the rule may see are
    # averaged in buckets before, which is linear too.
    named = [(s.participant, s.shares) for s in given.submissions]
    rows, pipeline = lay_out(spec, pipeline, valid, named, coin=coin, previous=given.previous, party=session.party)
    examples = None
    if weights is not None:
        examples = ReplicatedTensor(_taken(weights, list(rows.participants)), session)

    def gram() -> ReplicatedTensor:
        part, places = rows.gram_part(sketch, first, second, _exact(spec, len(slots)), executor)
        shared = ReplicatedTensor(arithmetic.reshare(session, "gram", torch.from_numpy(part)), session, places)
        on_step("gram")
        return shared

    # 8. Filter: the rule, the cohort check, the decisions. A coordinate-wise rule gives the aggregate's shares at once.
    # 9. Combine. Weights are public here iff nothing secret went into them; then every share is compared.
    taken = [int(slots[i]) for i in rows.participants]
    if pipeline.last.rule.kind == "coordinate_wise":
        shares, total = run_coordinate_wise(session, spec, pipeline, rows=rows, gram=gram)
        on_step("filter")
        words, bits = session.open(shares, "aggregate").numpy(), 0
        carried = tuple(range(len(taken))) if spec.decisions == "public" else None
    else:
        coefficients = run_filter(session, spec, pipeline, public=rows.mixing, gram=gram, examples=examples)
        on_step("filter")
        words = _combined(session, rows, coefficients, spec.dimension, executor)
        total, bits, carried = coefficients.weight_total, coefficients.fraction_bits, coefficients.accepted
    on_step("combine")

    # 10. Release: the words are the same at all three parties; the coordinator compares their digests.
    refused = {slot: INVALID for i, slot in enumerate(slots) if i not in set(valid)}
    accepted = None if carried is None else tuple(Slot(taken[i]) for i in carried)
    return RoundOutput(words, total, bits, refused, accepted, session.ledger)


def _exact(spec: TaskSpec, rows: int) -> bool:
    return spec.gram == "exact" or (spec.gram == "auto" and rows * rows * spec.dimension <= EXACT_LIMIT)


def _check_minimum(spec: TaskSpec, count: int, what: str) -> None:
    if count < spec.min_accepted:
        raise RoundFailed("too_few_submissions", "cohort", f"{count} {what}, min_accepted is {spec.min_accepted}")


def _weight_shares(given: RoundInput) -> Shares:
    pairs = [s.shares.word(given.spec.dimension) for s in given.submissions]
    return Shares(torch.tensor([a for a, _ in pairs]), torch.tensor([b for _, b in pairs]))


def _beside(first: Words, second: Words, weights: Shares) -> tuple[Words, Words]:
    """The sketches with the weight's share as one more column: both holders must agree on that too."""
    return np.column_stack([first, weights.first.numpy()]), np.column_stack([second, weights.second.numpy()])


def _taken(x: Shares, rows: list[int]) -> Shares:
    return Shares(x.first[rows], x.second[rows])


def _combined(session: Session, rows: Rows, given: Coefficients, dimension: int, executor: Executor | None) -> Words:
    """Open y = sum w_i x_i: by shares that two parties each computed, or, with secret weights, by additive parts."""
    shares = [rows.shares[i] for i in given.rows]
    if isinstance(given.weights, torch.Tensor):
        weights = [int(w) for w in given.weights]
        first = combine_public([s.first for s in shares], weights, dimension, executor)
        second = combine_public([s.second for s in shares], weights, dimension, executor)
        return session.open(Shares(torch.from_numpy(first), torch.from_numpy(second)), "aggregate").numpy()
    factors = (
        given.weights if given.reference is None else given.weights.cat([given.weights, given.reference.reshape(1)])
    )
    if given.reference is not None and rows.reference is not None:
        shares.append(rows.reference)
    pairs = list(zip(factors.shares.first.tolist(), factors.shares.second.tolist(), strict=True))
    part = combine_secret(shares, pairs, dimension, executor)
    return session.open_sum(torch.from_numpy(part), "aggregate").numpy()
