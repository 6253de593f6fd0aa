"""A whole round in one process: the same round code as the servers', three parties in threads, no network."""

from __future__ import annotations

import math
import secrets
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from triskele.encoding import decode, encode, l2_norm
from triskele.errors import InvalidUpdate, PartyFault, TriskeleError
from triskele.ids import PARTIES, ParticipantId, PartyIndex, RoundNumber, ShareIndex, Slot, TaskName, held_shares
from triskele.keystream import KeyStream
from triskele.manifest import ManifestDigest
from triskele.privacy import Privacy
from triskele.release_mask import remove_masks
from triskele.ring import Words
from triskele.sharing import ShareContext, Sharing, heavy_index, split
from triskele.task import FRACTION_BITS, Decisions, Gram, Release, RingChoice, RuleOption, TaskSpec
from triskele_server.linear.shares import HeldShare, SeedShare, SharePair, WordShare
from triskele_server.mpc.transport import Traffic, Transport, thread_transports
from triskele_server.party.release_files import PreviousAggregate
from triskele_server.party.round import RoundInput, RoundOutput, SealedSubmission, run_round
from triskele_server.party.validity import NORM_SLACK_PERCENT
from triskele_server.rules import check_task, with_ring
from triskele_server.rules.adaptive_bound import BOUND_BITS

_ROUND = RoundNumber(1)
_LONGEST = math.sqrt(NORM_SLACK_PERCENT) / 10  # in clip norms: a valid update, and so a mean of them


@dataclass(frozen=True)
class SimulatedRound:
    """The outcome of `simulate`.

    aggregate: float64 [d], the weighted mean over what was accepted. accepted: bool [n], or None if hidden.
    invalid: row -> reason. openings: (name, shape) in the order opened. traffic: what each party sent.
    seconds: wall time of each step, as party 0 saw it, and of "encode". clip_bound: of the next round, in units of the
    updates, where it adapts.
    """

    aggregate: NDArray[np.float64]
    accepted: NDArray[np.bool_] | None
    invalid: dict[int, str]
    openings: list[tuple[str, tuple[int, ...]]]
    traffic: list[Traffic]
    seconds: dict[str, float]
    clip_bound: float | None = None


def simulate(
    updates: ArrayLike,
    *,
    rule: str | Sequence[str] = "mean",
    rule_options: Mapping[str, RuleOption | Mapping[str, RuleOption]] = {},
    clip_norm: float | None = None,
    weights: Sequence[int] | NDArray[np.integer] | None = None,
    decisions: Decisions = "public",
    release: Release = "public",
    gram: Gram = "auto",
    min_accepted: int = 2,
    raw_rows: Mapping[int, Words] = {},
    root: int | None = None,
    previous: ArrayLike | None = None,
    max_rows: int = 128,
    transports: Sequence[Transport] | None = None,
    privacy: Privacy | None = None,
    clip_bound: float | None = None,
    ring: RingChoice = "auto",
) -> SimulatedRound:
    """Run one round over float [n, d] `updates`; raises what a real round raises (RoundFailed, InvalidTask, ...).

    `clip_norm=None` takes the largest finite row norm. `weights` are the secret example weights, integers >= 0.
    `raw_rows[i]` submits row i as these ring words, integers [d] (or [d + 1], the last one the weight) unencoded, the
    way a malicious participant would. A row with NaN or Inf is refused by its own client and named in `invalid`.
    `root` is the row that is FLTrust's root, `previous` float [d] the previous round's aggregate, for a rule that
    starts from it. `clip_bound`, for a bound that adapts, is what the last round gave as such, None in the first; give
    `clip_norm` then. With `release="participants"` the three parties open a masked aggregate, as for a task, and it is
    unmasked here as a participant does. `transports` connect the parties if not the usual queues. `ring` is 32, 64, or
    "auto": 32 where everything fits. Other arguments are as in the task.
    """
    rows = np.asarray(updates)
    if rows.ndim != 2 or rows.shape[0] < 2 or rows.shape[1] < 1 or rows.dtype.kind not in "fiu":
        raise InvalidUpdate(f"updates must be real numbers [n >= 2, d >= 1], not {rows.dtype} {rows.shape}")
    started = time.perf_counter()
    examples = _checked_weights(weights, len(rows))
    unsent: dict[int, str] = {}
    norms = np.array([_norm(row, i, raw_rows, unsent) for i, row in enumerate(rows)])
    start = None if previous is None else np.asarray(previous, np.float64)
    if start is not None:
        if start.shape != (rows.shape[1],):
            raise InvalidUpdate(f"previous must be the last aggregate, float [{rows.shape[1]}], not {start.shape}")
        norms = np.append(norms, l2_norm(start))
    spec = TaskSpec(
        name=TaskName("simulated"),
        dimension=rows.shape[1],
        clip_norm=clip_norm if clip_norm is not None else (float(norms.max()) or 1.0),
        rule=rule if isinstance(rule, str) else tuple(rule),
        rule_options=rule_options,
        root=None if root is None else _name(root),
        decisions=decisions,
        release=release,
        gram=gram,
        max_weight=0 if examples is None else max(int(examples.max()), 1),
        max_participants=max(len(rows), 2),
        max_rows=max_rows,
        min_accepted=min_accepted,
        privacy=privacy,
    )
    if start is not None and l2_norm(start) > _LONGEST * spec.clip_norm:
        raise InvalidUpdate(f"previous is longer than {_LONGEST} clip norms: no round gives such an aggregate")
    spec = with_ring(spec, ring)
    check_task(spec)
    sent = [i for i in range(len(rows)) if i not in unsent]
    with ThreadPoolExecutor(2) as pool:
        sharings = list(pool.map(lambda i: _shared(spec, rows[i], i, examples, raw_rows), sent))
    seconds = {"encode": time.perf_counter() - started}
    last = None
    if start is not None:
        last = PreviousAggregate(_ROUND, np.rint(start * (2.0**FRACTION_BITS / spec.clip_norm)).astype(np.int64))
    bound = None if clip_bound is None else round(clip_bound / spec.clip_norm * (1 << BOUND_BITS))
    inputs = [
        RoundInput(
            spec, _ROUND, 0, [_held(spec, party, i, s) for i, s in zip(sent, sharings, strict=True)], last, bound
        )
        for party in PARTIES
    ]
    transports = thread_transports() if transports is None else transports
    outputs = run_parties(inputs, transports, seconds)
    output = outputs[0]
    words = unmasked(outputs, spec, _ROUND)
    invalid = unsent | {int(slot): reason for slot, reason in output.refused.items()}
    accepted = None
    if output.accepted is not None:
        accepted = np.zeros(len(rows), np.bool_)
        accepted[list(output.accepted)] = True
    return SimulatedRound(
        decode(
            words,
            clip_norm=spec.clip_norm,
            weight_total=output.weight_total * 2.0**output.coefficient_bits,
            fraction_bits=spec.fraction_bits,
        ),
        accepted,
        invalid,
        [(o.name, o.shape) for o in output.ledger.openings],
        [t.traffic for t in transports],
        seconds,
        None if output.clip_bound is None else output.clip_bound / (1 << BOUND_BITS) * spec.clip_norm,
    )


def unmasked(outputs: Sequence[RoundOutput], spec: TaskSpec, number: RoundNumber) -> Words:
    """The aggregate's words as a participant gets them: with the mask keys of all three parties."""
    words = outputs[0].words.copy()
    keys = {ShareIndex(party): outputs[party].mask_keys for party in PARTIES}
    remove_masks(words, {index: held[0] for index, held in keys.items() if held is not None}, spec.digest, number)
    return words


def run_parties(
    inputs: Sequence[RoundInput], transports: Sequence[Transport], seconds: dict[str, float] | None = None
) -> list[RoundOutput]:
    """Run the three parties of one round in threads; raises the error of the party that failed first."""
    outputs: dict[PartyIndex, RoundOutput] = {}
    errors: list[BaseException] = []
    last = time.perf_counter()

    def timed(step: str) -> None:
        nonlocal last
        now = time.perf_counter()
        if seconds is not None:
            seconds[step], last = now - last, now

    def run(party: PartyIndex) -> None:
        try:
            outputs[party] = run_round(inputs[party], transports[party], timed if party == 0 else lambda _: None)
        except BaseException as error:  # noqa: BLE001 - carried to the caller's thread and raised there
            errors.append(error)
        finally:
            transports[party].close()

    threads = [threading.Thread(target=run, args=(party,), name=f"party-{party}") for party in PARTIES]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        # A party that only saw another one stop is not the one to hear.
        errors.sort(key=lambda e: (isinstance(e, TriskeleError), isinstance(e, PartyFault)))
        raise errors[0]
    first = outputs[PARTIES[0]]
    for party in PARTIES[1:]:
        if not np.array_equal(outputs[party].words, first.words):
            raise PartyFault(f"party {party} opened another aggregate than party 0", party)
    return [outputs[party] for party in PARTIES]


def _checked_weights(weights: Sequence[int] | NDArray[np.integer] | None, rows: int) -> Words | None:
    if weights is None:
        return None
    given = np.asarray(weights)
    if given.shape != (rows,) or given.dtype.kind not in "iu" or bool((given < 0).any()):
        raise InvalidUpdate(f"weights must be {rows} integers >= 0")
    return given.astype(np.int64)


def _norm(row: NDArray[np.floating], i: int, raw_rows: Mapping[int, Words], unsent: dict[int, str]) -> float:
    if i in raw_rows:
        return 0.0
    try:
        return l2_norm(row)
    except InvalidUpdate as error:
        unsent[i] = str(error)
        return 0.0


def _shared(
    spec: TaskSpec, row: NDArray[np.floating], i: int, examples: Words | None, raw_rows: Mapping[int, Words]
) -> Sharing:
    words = np.empty(spec.length, spec.ring.dtype)
    if examples is not None:
        words[-1] = examples[i]
    if i in raw_rows:
        given = np.asarray(raw_rows[i], np.int64)
        if given.shape not in ((spec.dimension,), (spec.length,)):
            raise InvalidUpdate(f"raw row {i} must have {spec.dimension} words, or {spec.length} with a weight")
        words[: len(given)] = spec.ring.reduced(given)
    else:
        rounding = KeyStream(secrets.token_bytes(16))
        encode(
            row,
            clip_norm=spec.clip_norm,
            rounding=rounding,
            fraction_bits=spec.fraction_bits,
            out=words[: spec.dimension],
        )
    entropy = secrets.token_bytes(32)
    return split(words, heavy=heavy_index(Slot(i)), context=_context(spec, i), entropy=entropy, in_place=True)


def _context(spec: TaskSpec, i: int) -> ShareContext:
    return ShareContext(spec.digest, _ROUND, _name(i))


def _name(row: int) -> ParticipantId:
    return ParticipantId(f"p{row:04d}")


def _held(spec: TaskSpec, party: PartyIndex, i: int, sharing: Sharing) -> SealedSubmission:
    context = _context(spec, i)
    held: list[HeldShare] = [
        WordShare(sharing.heavy_words) if k == sharing.heavy else SeedShare(sharing.seeds[k], context, k, spec.ring)
        for k in held_shares(party)
    ]
    # No manifest is signed here; the digest only has to be the same at all parties.
    return SealedSubmission(Slot(i), context.participant, ManifestDigest(bytes(32)), SharePair(held[0], held[1]))
