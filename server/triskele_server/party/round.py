"""One round at one party: the whole protocol on a page, steps 3 to 10 of docs/protocol.md in their words and order.

Steps 1 and 2, opening and upload, are the intake's. All three parties run this function together; what differs
between them is the shares they hold.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from importlib.metadata import version

import numpy as np
import torch

from triskele.errors import RoundFailed
from triskele.ids import ParticipantId, RoundNumber, Slot, held_shares
from triskele.keystream import derive
from triskele.manifest import ManifestDigest
from triskele.release_mask import MaskKey
from triskele.ring import Words
from triskele.task import TaskSpec
from triskele.transparency.certificate import mask_key_digest
from triskele_server.linear.combine import combine_public, combine_secret
from triskele_server.linear.shares import SharePair
from triskele_server.linear.sketch import CHECK_BUCKETS, GRAM_BUCKETS, Sketch
from triskele_server.mpc import arithmetic
from triskele_server.mpc.lifting import lift
from triskele_server.mpc.opening_ledger import OpeningLedger
from triskele_server.mpc.replicated import ReplicatedTensor
from triskele_server.mpc.session import Session, Shares
from triskele_server.mpc.transport import Transport
from triskele_server.party.agreement import Terms, agree, common_terms, compare_shares, toss_coin
from triskele_server.party.attested import Attested
from triskele_server.party.checkpoint import (
    Checkpoints,
    Decision,
    MemoryCheckpoints,
    resumed,
    same_coin,
    same_commitments,
    settle,
)
from triskele_server.party.clip_count import open_count, own_count_noise
from triskele_server.party.coordinates import run_coordinate_wise
from triskele_server.party.filter import Coefficients, declared_openings, run_filter
from triskele_server.party.noise import own_noise, with_dealt
from triskele_server.party.release import open_part, open_shares, previous_row
from triskele_server.party.release_files import PreviousAggregate
from triskele_server.party.rows import Rows, lay_out
from triskele_server.party.validity import check
from triskele_server.rules.adaptive_bound import AdaptiveBound, in_ring_units
from triskele_server.rules.pipeline import Pipeline
from triskele_server.rules.precision import EXACT_LIMIT
from triskele_server.rules.registry import Mixing

INVALID = "failed_validity_check"
_DIGEST_BYTES = 32


@dataclass(frozen=True)
class SealedSubmission:
    """One submission of the sealed input set, and this party's two shares of it."""

    slot: Slot
    participant: ParticipantId
    manifest: ManifestDigest
    shares: SharePair


@dataclass(frozen=True)
class RoundInput:
    """What a party brings into a round: submissions by slot, the task's previous aggregate.

    `rounds_spent` counts the task's other rounds that were opened, or may have been.
    """

    spec: TaskSpec
    round: RoundNumber
    attempt: int
    submissions: Sequence[SealedSubmission]
    previous: PreviousAggregate | None = None
    clip_bound: int | None = None  # the last round's, of a task whose bound adapts; None in the first
    coin_key: bytes = field(default_factory=lambda: secrets.token_bytes(32), repr=False)
    checkpoints: Checkpoints = field(default_factory=MemoryCheckpoints, repr=False)
    rounds_spent: int = 0

    @property
    def round_context(self) -> bytes:
        """Task and round: bound into the coin."""
        return self.spec.digest + self.round.to_bytes(8, "big")

    @property
    def context(self) -> bytes:
        """Task, round and attempt: bound into the pairwise keys."""
        return self.round_context + self.attempt.to_bytes(4, "big")

    def coin_part(self) -> bytes:
        """This party's part of the coin: secret until it is revealed, and the same in every attempt at this set."""
        return derive(self.coin_key, b"triskele/v1/coin-part" + self.set_digest(), 32)

    def set_digest(self) -> bytes:
        """SHA-256 of everything that the round computes on: submissions, previous aggregate, adaptive bound.

        The coin, the noise and thereby a decision are those of this input: an attempt at another one is refused.
        """
        digest = hashlib.sha256(b"triskele/v1/input-set" + self.round_context + self.previous_digest())
        digest.update(self.bound_digest())
        for s in self.submissions:
            name = s.participant.encode()
            digest.update(s.slot.to_bytes(4, "big") + len(name).to_bytes(2, "big") + name + s.manifest)
        return digest.digest()

    def previous_digest(self) -> bytes:
        """SHA-256 of the previous aggregate, zeros if there is none."""
        return bytes(_DIGEST_BYTES) if self.previous is None else self.previous.digest()

    @cached_property
    def adaptive(self) -> AdaptiveBound | None:
        """How the bound adapts, if it does."""
        return AdaptiveBound.of(self.spec)

    @property
    def bound(self) -> int | None:
        """The adaptive bound of this round, in units of 2^-40 of the clip norm."""
        if self.adaptive is None:
            return None
        return self.adaptive.initial if self.clip_bound is None else self.clip_bound

    def bound_digest(self) -> bytes:
        """SHA-256 of the bound, empty if it does not adapt."""
        return (
            b"" if self.bound is None else hashlib.sha256(b"triskele/v1/clip-bound" + self.bound.to_bytes(8)).digest()
        )


@dataclass(frozen=True)
class RoundOutput:
    """The mean is words / weight_total / 2^coefficient_bits * C / 2^f, once the mask is off.

    `accepted` is None under hidden decisions. `mask_keys` are this party's two of the mask, None if public. `attested`
    is for the round's certificate.
    """

    words: Words
    weight_total: int
    coefficient_bits: int
    refused: Mapping[Slot, str]
    accepted: tuple[Slot, ...] | None
    ledger: OpeningLedger
    attested: Attested
    mask_keys: tuple[MaskKey, MaskKey] | None = field(default=None, repr=False)
    clip_bound: int | None = None  # of the next round, if it adapts


def run_round(
    given: RoundInput,
    transport: Transport,
    on_step: Callable[[str], None] = lambda _: None,
) -> RoundOutput:
    """Run steps 3 to 10. Raises PartyFault or RoundFailed; then nothing was opened beyond what the ledger shows.

    `on_step` hears the name of each step as it ends.
    """
    spec, slots = given.spec, [s.slot for s in given.submissions]
    session = Session(transport, OpeningLedger(declared_openings(spec)), given.context)

    # 3. Seal: the same input set everywhere, large enough, before anything is computed.
    pipeline = Pipeline.of(spec)
    terms = _agree_on_input(session, given, pipeline)
    _check_minimum(spec, len(slots), "sealed")
    on_step("seal")

    # 4. Coin: tossed after sealing, so that no participant can adapt to it; the same in every attempt at this set.
    coin = toss_coin(
        session, given.round_context, given.coin_part(), lambda parts: same_commitments(given.checkpoints, parts)
    )
    same_coin(given.checkpoints, coin, session.party)
    on_step("coin")

    # What an earlier attempt decided is not decided anew: the aggregate is opened for one decision only.
    decision = resumed(session, given.checkpoints)
    if decision is None:
        # 5. Sketch: local and linear. Both holders of a share must get the same.
        sketch = Sketch(coin, spec.dimension, _buckets(spec, pipeline, len(slots)))
        first, second = _sketches(sketch, [s.shares for s in given.submissions])
        weights = _weight_shares(given) if spec.weighted else None
        compare_shares(session, "sketch", slots, first, second, beside=weights)
        first, second, weights = _lifted(session, spec, first, second, weights)
        on_step("sketch")

        # 6. Check: one validity bit per submission is opened; invalid ones leave the round.
        valid = _valid(session, spec, sketch, Shares(torch.from_numpy(first), torch.from_numpy(second)), weights)
        _check_minimum(spec, len(valid), "valid")
    else:
        valid = decision.valid
        session.ledger.resume(decision.opened)
    on_step("check")

    # 7. Gram: local products, exact or of the sketches; only n^2 words travel. More rows than the rule may see are
    # averaged in buckets before, which is linear too.
    rows, pipeline = lay_out(
        spec,
        pipeline,
        valid,
        [(s.participant, s.shares) for s in given.submissions],
        coin=coin,
        previous=partial(previous_row, session, spec, given.previous),
    )
    part, places = np.empty((0, 0), np.int64), 0
    if decision is None:
        if pipeline.needs_gram:
            part, places = rows.gram_part(
                sketch, first, second, exact=_exact(spec, len(slots)), norms_only=pipeline.norms_only
            )
        del first, second  # of no more use, and 131 MB of 1,000 participants

    def gram() -> ReplicatedTensor:
        shared = arithmetic.reshare_at_once(session, "gram", torch.from_numpy(part))
        on_step("gram")
        return ReplicatedTensor(shared, session, places + 2 * spec.fraction_bits)

    if pipeline.last.rule.kind == "coordinate_wise":
        # 8 and 9 for a rule that gives the aggregate's shares at once. Nothing in it is rounded: every attempt gets
        # the same aggregate, and no decision is kept.
        shares, total = run_coordinate_wise(session, spec, pipeline, rows=rows, gram=gram)
        on_step("filter")
        noised = with_dealt(session, shares, _noise(given, repr(valid).encode(), total, 0))
        words, bits = open_shares(session, spec, given.round, noised), 0
        accepted = tuple(range(len(rows.participants))) if spec.decisions == "public" else None
    else:
        # 8. Filter: the rule, the cohort check, the decisions; then all three parties write the decision down.
        if decision is None:
            examples = None if weights is None else ReplicatedTensor(_taken(weights, rows.participants), session)
            decision = _decided(session, given, pipeline, valid, mixing=rows.mixing, gram=gram, examples=examples)
            settle(session, given.checkpoints, decision)
        on_step("filter")

        # 9. Combine. Weights are public here iff nothing secret went into them; then every share is compared. The
        # task's noise, if any, goes in before the opening: the same for the same decision.
        words = _combined(session, given, rows, decision)
        total, bits, accepted = decision.weight_total, decision.fraction_bits, decision.accepted
    on_step("combine")

    # 10. Release: the words, masked unless the task is public, are the same at all three parties; the coordinator
    # compares their digests.
    refused = {slot: INVALID for i, slot in enumerate(slots) if i not in set(valid)}
    kept = None if accepted is None else tuple(slots[rows.participants[i]] for i in accepted)
    return RoundOutput(
        words,
        total,
        bits,
        refused,
        kept,
        session.ledger,
        replace(terms, coin=coin, weights=None if kept is None else _known_weights(decision)),
        session.mask_keys if spec.masked else None,
        _next_bound(given, decision),
    )


def _agree_on_input(session: Session, given: RoundInput, pipeline: Pipeline) -> Attested:
    """What the certificate will say of the input.

    Raises PartyFault unless all three parties hold the same one, and would run the same code on it.
    """
    rules = pipeline.source_digest()
    digests = {
        "previous aggregate": given.previous_digest(),  # before the input set, which it is a part of: named by itself
        "input set": hashlib.sha256(given.set_digest() + given.context).digest(),
        "rules": rules,
    }
    if given.bound is not None:
        digests = {"adaptive bound": given.bound_digest(), **digests}
    keys = None
    if given.spec.masked:
        places = zip(session.mask_keys, held_shares(session.party), strict=True)
        first, second = (mask_key_digest(key, given.spec.digest, given.round, index) for key, index in places)
        keys = (bytes.fromhex(first), bytes.fromhex(second))
    terms = Terms(version("triskele"), given.rounds_spent, keys)
    versions, spent, key_digests = common_terms(agree(session, digests, terms.to_tell()), given.round)
    previous = None if given.previous is None else given.previous.output_digest()
    return Attested(rules, previous, versions, spent + 1, key_digests)


def _exact(spec: TaskSpec, rows: int) -> bool:
    if spec.narrow:  # products need 64 bits: of the sketches, which are lifted (up to 8192 words that is exact, too)
        return False
    return spec.gram == "exact" or (spec.gram == "auto" and rows * rows * spec.dimension <= EXACT_LIMIT)


def _valid(
    session: Session, spec: TaskSpec, sketch: Sketch, sketches: Shares, weights: Shares | None
) -> tuple[int, ...]:
    """The submissions that pass the check, by index."""
    folded = Shares(*(torch.from_numpy(sketch.folded(z.numpy())) for z in (sketches.first, sketches.second)))
    bits = check(session, sketch, folded, weights, spec.max_weight, fraction_bits=spec.fraction_bits)
    return tuple(np.flatnonzero(bits).tolist())


def _buckets(spec: TaskSpec, pipeline: Pipeline, rows: int) -> int:
    """The check's, or more for sketched distances. Buckets of many rows average the sketches' error out."""
    asking = [stage.rule for stage in (*pipeline.stages, pipeline.last)]
    distances = any(rule.needs_gram and not rule.norms_only for rule in asking) and not _exact(spec, rows)
    return GRAM_BUCKETS if distances and rows <= spec.max_rows else CHECK_BUCKETS


def _sketches(sketch: Sketch, held: Sequence[SharePair]) -> tuple[Words, Words]:
    """Of the first shares and of the second ones, [n, K] each."""
    first, second = np.split(sketch.apply([s.first for s in held] + [s.second for s in held]), 2)
    return first, second


def _lifted(
    session: Session, spec: TaskSpec, first: Words, second: Words, weights: Shares | None
) -> tuple[Words, Words, Shares | None]:
    """The sketches and the weights in the 64-bit ring, from the task's."""
    if not spec.narrow:
        return first, second, weights
    sketches = lift(session, Shares(torch.from_numpy(first), torch.from_numpy(second)))
    return sketches.first.numpy(), sketches.second.numpy(), None if weights is None else lift(session, weights)


def _check_minimum(spec: TaskSpec, count: int, what: str) -> None:
    if count < spec.min_accepted:
        raise RoundFailed("too_few_submissions", "cohort", f"{count} {what}, min_accepted is {spec.min_accepted}")


def _weight_shares(given: RoundInput) -> Shares:
    pairs = np.array([s.shares.word(given.spec.dimension) for s in given.submissions], given.spec.ring.dtype)
    return Shares(torch.from_numpy(pairs[:, 0].copy()), torch.from_numpy(pairs[:, 1].copy()))


def _taken(x: Shares, rows: Sequence[int]) -> Shares:
    return Shares(x.first[list(rows)], x.second[list(rows)])


def _decided(
    session: Session,
    given: RoundInput,
    pipeline: Pipeline,
    valid: tuple[int, ...],
    *,
    mixing: Mixing,
    gram: Callable[[], ReplicatedTensor],
    examples: ReplicatedTensor | None,
) -> Decision:
    """The filter's coefficients and, under an adaptive bound, the noised count: the last opening before they are kept.

    What ends the round earlier has opened no count. The noise is the same in every attempt, and so is the count.
    """
    bound = 0 if given.bound is None else in_ring_units(given.bound)
    coefficients = run_filter(
        session, given.spec, pipeline, public=mixing, gram=gram, examples=examples, adapted_bound=bound
    )
    count = None
    if given.adaptive is not None and coefficients.counted is not None:
        noise = own_count_noise(given.adaptive, given.coin_key, given.set_digest() + repr(valid).encode())
        count = open_count(session, coefficients.counted, noise)
    return _decision(given.attempt, valid, coefficients, session.ledger, count)


def _decision(
    attempt: int, valid: tuple[int, ...], given: Coefficients, ledger: OpeningLedger, clip_count: int | None
) -> Decision:
    def pairs(secret: ReplicatedTensor) -> tuple[tuple[int, int], ...]:
        return tuple(zip(secret.shares.first.tolist(), secret.shares.second.tolist(), strict=True))

    weights = given.weights
    return Decision(
        attempt,
        valid,
        given.rows,
        isinstance(weights, torch.Tensor),
        tuple((int(w), 0) for w in weights) if isinstance(weights, torch.Tensor) else pairs(weights),
        None if given.reference is None else pairs(given.reference.reshape(1))[0],
        given.weight_total,
        given.fraction_bits,
        given.accepted,
        tuple((o.name, o.shape) for o in ledger.openings),
        clip_count,
    )


def _next_bound(given: RoundInput, decision: Decision | None) -> int | None:
    """What every party computes from public values."""
    if given.adaptive is None or given.bound is None or decision is None or decision.clip_count is None:
        return None
    return given.adaptive.next(given.bound, decision.clip_count, len(decision.valid))


def _known_weights(decision: Decision | None) -> tuple[int, ...] | None:
    """The weights of the rows that take part, where they are public."""
    return None if decision is None or not decision.public else tuple(weight for weight, _ in decision.weights)


def _noise(given: RoundInput, decided: bytes, total: int, bits: int) -> Words | None:
    """This party's noise: a function of its secret, the input set and what was decided on it."""
    bound = given.set_digest() + decided
    return own_noise(
        given.spec,
        given.coin_key,
        bound,
        weight_total=total,
        fraction_bits=bits,
        bound=given.bound,
    )


def _combined(session: Session, given: RoundInput, rows: Rows, decision: Decision) -> Words:
    """Open y = sum w_i x_i plus the parties' noise: by shares that two parties each computed, or by additive parts.

    Additive where a weight is secret: nobody else can compute a party's part then.
    """
    dimension = given.spec.dimension
    shares, weights = [rows.shares[i] for i in decision.rows], list(decision.weights)
    noise = _noise(given, decision.to_json(), decision.weight_total, decision.fraction_bits)
    if decision.public:
        factors = [w for w, _ in weights]
        first = combine_public([s.first for s in shares], factors, dimension)
        second = combine_public([s.second for s in shares], factors, dimension)
        summed = Shares(torch.from_numpy(first), torch.from_numpy(second))
        return open_shares(session, given.spec, given.round, with_dealt(session, summed, noise))
    if decision.reference is not None and rows.reference is not None:
        shares.append(rows.reference)
        weights.append(decision.reference)
    part = combine_secret(shares, weights, dimension)
    if noise is not None:
        part += noise
    return open_part(session, given.spec, given.round, part)
