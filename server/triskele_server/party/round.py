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
from triskele.task import FRACTION_BITS, TaskSpec
from triskele_server.linear.combine import combine_public, combine_secret
from triskele_server.linear.gram import EXACT_LIMIT, exact_gram_part, gram_part
from triskele_server.linear.shares import SharePair
from triskele_server.linear.sketch import CHECK_BUCKETS, GRAM_BUCKETS, Sketch
from triskele_server.mpc import arithmetic
from triskele_server.mpc.opening_ledger import OpeningLedger
from triskele_server.mpc.replicated import ReplicatedTensor
from triskele_server.mpc.session import Session, Shares
from triskele_server.mpc.transport import Transport
from triskele_server.party.agreement import agree, compare_shares, toss_coin
from triskele_server.party.filter import Coefficients, declared_openings, run_filter
from triskele_server.party.validity import check

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
    """What a party brings into a round; `submissions` by slot."""

    spec: TaskSpec
    round: RoundNumber
    attempt: int
    submissions: Sequence[SealedSubmission]

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
    agree(session, "input set", given.set_digest())
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

    # 7. Gram: local products, exact or of the sketches; only n^2 words travel.
    rows = [given.submissions[i] for i in valid]
    examples = ReplicatedTensor(_taken(weights, valid), session) if weights is not None else None

    def gram() -> ReplicatedTensor:
        if _exact(spec, len(slots)) or sketch.identity:
            part, blocks = exact_gram_part([r.shares for r in rows], spec.dimension), 1
        else:
            part, blocks = gram_part(first[valid], second[valid]), sketch.blocks
        places = 2 * FRACTION_BITS + blocks.bit_length() - 1  # dividing by s, a power of two, moves the point
        shared = ReplicatedTensor(arithmetic.reshare(session, "gram", torch.from_numpy(part)), session, places)
        on_step("gram")
        return shared

    # 8. Filter: the rule, the cohort check, the decisions.
    coefficients = run_filter(session, spec, len(rows), gram, examples)
    taking_part = [rows[i] for i in coefficients.rows]
    on_step("filter")

    # 9. Combine. Weights are public here iff nothing secret went into them; then every share is compared.
    words = _combined(session, taking_part, coefficients, spec.dimension, executor)
    on_step("combine")

    # 10. Release: the words are the same at all three parties; the coordinator compares their digests.
    refused = {slot: INVALID for i, slot in enumerate(slots) if i not in set(valid)}
    accepted = tuple(r.slot for r in taking_part) if spec.decisions == "public" else None
    return RoundOutput(words, coefficients.weight_total, coefficients.fraction_bits, refused, accepted, session.ledger)


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


def _combined(
    session: Session, rows: Sequence[SealedSubmission], given: Coefficients, dimension: int, executor: Executor | None
) -> Words:
    """Open y = sum w_i x_i: by shares that two parties each computed, or, with secret weights, by additive parts."""
    if isinstance(given.weights, torch.Tensor):
        weights = [int(w) for w in given.weights]
        first = combine_public([r.shares.first for r in rows], weights, dimension, executor)
        second = combine_public([r.shares.second for r in rows], weights, dimension, executor)
        return session.open(Shares(torch.from_numpy(first), torch.from_numpy(second)), "aggregate").numpy()
    shares = given.weights.shares
    pairs = list(zip(shares.first.tolist(), shares.second.tolist(), strict=True))
    part = combine_secret([r.shares for r in rows], pairs, dimension, executor)
    return session.open_sum(torch.from_numpy(part), "aggregate").numpy()
