"""Step 8: run the stages and the rule on the secret Gram matrix, check the cohort, open the decisions if public."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from triskele.errors import PartyFault, RoundFailed, TriskeleError
from triskele.task import TaskSpec
from triskele_server.mpc import arithmetic
from triskele_server.mpc.arithmetic import LIMIT_BITS
from triskele_server.mpc.opening_ledger import UndeclaredOpening
from triskele_server.mpc.replicated import PUBLIC_BITS, ReplicatedTensor
from triskele_server.mpc.session import Session
from triskele_server.rules.pipeline import Pipeline, Stage
from triskele_server.rules.precision import MAX_ROOT_LENGTH, coefficient_places, largest_sum, scales_to_length
from triskele_server.rules.registry import (
    MAX_DIVISOR_BITS,
    MAX_SCALE_BITS,
    SCALE_BITS,
    WEIGHT_BITS,
    Mixing,
    Scaled,
    ceil_log2,
)

Weights = torch.Tensor | ReplicatedTensor  # public or secret

CLIP_COUNT = "clip_count"  # of an adaptive bound: the noised number of rows that are no longer
GRAM_BITS = 44  # fraction bits of the Gram matrix that a stage sees, at most
_COHORT_BITS = 26  # bits of a weight in the effective cohort: 1024 (sum w)^2 stays below 2^62


@dataclass(frozen=True)
class Coefficients:
    """What step 9 combines: the rows that may take part, an integer coefficient for each, and the weights' sum.

    `rows` are the accepted ones under a public selection, else all. `reference` is the coefficient of the rule's
    reference row, if that is part of the aggregate.
    """

    rows: tuple[int, ...]
    weights: Weights
    weight_total: int
    fraction_bits: int  # of the coefficients: y / weight_total / 2^fraction_bits is the mean
    accepted: tuple[int, ...] | None
    reference: ReplicatedTensor | None = None
    counted: ReplicatedTensor | None = None  # how many rows the rule counted, still secret


@dataclass(frozen=True)
class _Verdict:
    """Weights t and scales c, of the rule's rows at first and in the end of the participants'.

    `bits` are the rule's own weights. A secret stage ties scales and weights together: then `combined`, the scaled
    weights, stands in place of `scale`. `unit` is what a weight of 1 has become, `out_of_range` negative where the
    rule gave something outside the range it may use.
    """

    bits: Weights
    weights: Weights
    scale: ReplicatedTensor | None
    combined: Weights | None
    reference: ReplicatedTensor | None
    unit: int
    out_of_range: tuple[ReplicatedTensor, ...]

    def scaled(self) -> Weights:
        """t_i c_i."""
        if self.combined is not None:
            return self.combined
        return self.weights if self.scale is None else _scaled(self.scale, self.weights)


def declared_openings(spec: TaskSpec) -> list[str]:
    """Names of everything that a round of this task opens, in order."""
    pipeline = Pipeline.of(spec)
    last = pipeline.last.rule
    if last.kind == "coordinate_wise":
        return ["valid", aggregate_name(spec)]
    secret = spec.weighted or last.giving != "public" or last.scale_bits is not None or pipeline.mixes_in_secret
    opened = [
        ("valid", True),
        ("enough_accepted", secret),
        ("accepted", last.rejects and spec.decisions == "public"),
        ("weight_total", spec.weighted and not pipeline.normalises(spec)),
        (CLIP_COUNT, last.counting(pipeline.last.options)),
        (aggregate_name(spec), True),
    ]
    return [name for name, wanted in opened if wanted]


def aggregate_name(spec: TaskSpec) -> str:
    """What the ledger calls the words that a round opens last."""
    return "masked_aggregate" if spec.masked else "aggregate"


def run_stages(
    pipeline: Pipeline, gram: ReplicatedTensor | None, divisor: int, clip_norm: float
) -> tuple[list[Mixing], ReplicatedTensor | None, float]:
    """Run the pre-aggregations: what they mixed, the Gram matrix of the rows after them, and the clip norm in its unit.

    `gram` is that of rows whose unit is 1 / divisor. Raises RoundFailed if a stage misbehaves.
    """
    mixings: list[Mixing] = []
    if gram is None:
        return mixings, None, clip_norm
    references = 1 if pipeline.last.rule.reference else 0
    gram, shrunk = _in_unit(gram, divisor)
    for stage in pipeline.stages:
        rows = gram.size(0) - references
        mixing = checked_mixing(stage, call_stage(stage, gram[:rows, :rows], clip_norm=clip_norm / shrunk), rows)
        mixings.append(mixing)
        extended = _with_reference(mixing, references)
        mixed = gram.matmul(extended.t()).t().matmul(extended.t())
        gram, further = _in_unit(mixed, mixing.divisor)
        shrunk *= further
    return mixings, gram, clip_norm / shrunk


def checked_mixing(stage: Stage, result: object, rows: int) -> Mixing:
    """A stage's result, if it is a mixing of `rows` rows of the declared kind; raises RoundFailed otherwise.

    Whether a secret matrix is in range is part of the one bit that is opened later.
    """
    matrix, divisor = (result.matrix, result.divisor) if isinstance(result, Mixing) else (None, 0)
    public = not stage.rule.needs_gram
    most = 1 << (MAX_DIVISOR_BITS if public else ceil_log2(rows))  # what the headroom check counts on
    right = isinstance(divisor, int) and not isinstance(divisor, bool) and 1 <= divisor <= most
    if isinstance(matrix, np.ndarray):
        right = right and public and matrix.dtype == np.int64 and matrix.ndim == 2 and len(matrix) > 0
        right = right and matrix.shape[1] == rows and int(matrix.min()) >= 0 and int(matrix.max()) <= divisor
        right = right and np.array_equal(matrix.sum(1), np.full(len(matrix), divisor))
    elif isinstance(matrix, ReplicatedTensor):
        right = right and not public and matrix.fraction_bits == 0 and len(matrix.shape) == 2
        right = right and matrix.shape[0] > 0 and matrix.shape[1] == rows
    else:
        right = False
    if not right or not isinstance(result, Mixing):
        raise RoundFailed(
            "rule_failed",
            f"rule:{stage.rule.name}",
            f"a stage gives a Mixing: a {'public' if public else 'secret'} integer matrix [m, {rows}] >= 0, "
            f"whose rows sum to its divisor, an integer from 1 to {most}",
        )
    return result


def _out_of_line(mixing: Mixing) -> list[ReplicatedTensor]:
    """Words that are negative where a secret mixing has an entry not in [0, divisor], or a row of another sum."""
    if not isinstance(mixing.matrix, ReplicatedTensor):
        return []
    sums = mixing.matrix.sum(-1)
    entries = mixing.matrix.reshape(-1)
    return [entries, -entries + mixing.divisor, sums - mixing.divisor, -sums + mixing.divisor]


def _beyond_root_length(gram: ReplicatedTensor, unit: float) -> ReplicatedTensor:
    """A word that is negative where the last row is longer than what `_rounded` leaves room for."""
    room = (-gram[-1, -1] + (MAX_ROOT_LENGTH * unit) ** 2).reshape(1)
    return room.times_power_of_two(room.fraction_bits)


def _in_unit(gram: ReplicatedTensor, divisor: int) -> tuple[ReplicatedTensor, float]:
    """The Gram matrix of rows that were multiplied by `divisor`, in units of 1 again up to a factor in (1/2, 1]."""
    bits = ceil_log2(divisor)
    gram = gram.times_power_of_two(-2 * bits)
    return gram.rescale(min(gram.fraction_bits, GRAM_BITS)), divisor / 2.0**bits


def _with_reference(mixing: Mixing, references: int) -> ReplicatedTensor:
    """The matrix with a last row and column that carry the reference row through."""
    matrix = mixing.matrix
    if not isinstance(matrix, ReplicatedTensor) or not references:
        return matrix  # type: ignore[return-value]  # checked by the caller
    rows, columns = matrix.shape
    corner = torch.zeros(rows + 1, columns + 1, dtype=torch.int64)
    corner[-1, -1] = mixing.divisor

    def secret(shape: tuple[int, ...]) -> ReplicatedTensor:
        zero = torch.zeros(shape, dtype=torch.int64)
        return ReplicatedTensor(arithmetic.constant(matrix.session, zero), matrix.session, 0)

    padded = matrix.cat([matrix, secret((rows, 1))], 1)
    padded = padded.cat([padded, secret((1, columns + 1))], 0)
    return padded.add(corner)


def run_filter(
    session: Session,
    spec: TaskSpec,
    pipeline: Pipeline,
    *,
    public: Mixing,
    gram: Callable[[], ReplicatedTensor],
    examples: ReplicatedTensor | None,
    adapted_bound: int = 0,
) -> Coefficients:
    """The coefficients of the valid submissions, which `public` mixes into rows; `examples` are their example weights.

    `adapted_bound` is what a rule with an adaptive bound clips to, in ring units. `gram` is the Gram matrix of the
    mixed rows, the reference row last. Raises RoundFailed if a stage misbehaves or fewer than the minimum cohort would
    carry the aggregate: nothing but the validity bits, and the bit that says so, is open then.
    """
    last = pipeline.last
    try:
        with session.ledger.withheld():
            seen_rows = gram() if pipeline.needs_gram else None
            mixings, rows, clip_norm = run_stages(pipeline, seen_rows, public.divisor, spec.clip_norm)
            count = len(public.matrix) if rows is None else rows.size(0) - bool(last.rule.reference)
            seen = rows if last.rule.needs_gram else count
            result = call_stage(last, seen, clip_norm=clip_norm, adapted_bound=adapted_bound)
            divisors = math.prod(m.divisor for m in (*mixings, public)) if mixings else 1
            verdict = _checked(last, result, count, pipeline.normalises_rows(spec), divisors)
            # Whether the built-in stages are in line their tests tell.
            foreign = [m for m, s in zip(mixings, pipeline.stages, strict=True) if not s.rule.built_in]
            extra = [words for mixing in foreign for words in _out_of_line(mixing)]
            if spec.narrow and rows is not None and scales_to_length(last.rule):
                extra.append(_beyond_root_length(rows, spec.clip_norm / clip_norm))
            verdict = replace(verdict, out_of_range=(*verdict.out_of_range, *extra))
        decided = _decided(_Setting(spec, pipeline, (*reversed(mixings), public), examples), verdict)
        counted = result.counted if isinstance(result, Scaled) else None
        return decided if counted is None else replace(decided, counted=counted.sum())
    except UndeclaredOpening as error:  # secret weights from a rule that declared none, above all
        raise RoundFailed("rule_failed", f"rule:{last.rule.name}", str(error)) from error


def call_stage(stage: Stage, *arguments: object, **given: object) -> object:
    """Run a stage's code; whatever it raises becomes a RoundFailed that names it."""
    blame = f"rule:{stage.rule.name}"
    try:
        return stage.rule.call(*arguments, options=stage.options, **given)
    except (RoundFailed, PartyFault):
        raise
    except TriskeleError as error:  # an undeclared opening, above all
        raise RoundFailed("rule_failed", blame, str(error)) from error
    except Exception as error:  # a rule may be anybody's code; whatever it raises ends the round, opening nothing
        raise RoundFailed("rule_failed", blame, type(error).__name__) from error


def _checked(last: Stage, result: object, rows: int, normalise: bool, divisors: int) -> _Verdict:
    """The rule's result, if its types, shapes and scales are what the rule declared.

    Whether secret values are in range is part of the one bit that is opened later.
    """
    rule = last.rule
    given = result if isinstance(result, Scaled) else Scaled(result, None)  # type: ignore[arg-type]
    problem = _problem(last, given, rows)
    if problem:
        raise RoundFailed("rule_failed", f"rule:{rule.name}", problem)
    bits = torch.from_numpy(given.weights) if isinstance(given.weights, np.ndarray) else given.weights
    weights = _secret(bits).normalised().rescale(WEIGHT_BITS) if normalise else bits
    # Beside normalised weights the scaled ones have WEIGHT_BITS places, and so has what is added to them.
    reference = given.reference.rescale(WEIGHT_BITS) if normalise and given.reference is not None else given.reference
    verdict = _Verdict(bits, weights, given.scale, None, reference, 1, ())
    largest = _with_slack(1 << SCALE_BITS + (rule.scale_bits or 0))
    one = 1 if rule.giving == "selection" else _with_slack(1 << WEIGHT_BITS)
    out_of_range = _outside(bits, one) + _outside(given.scale, largest) + _outside(given.reference, largest)
    if given.scale is not None:
        # The mean of the scales may be 1, of normalised weights 2^15: that is what the headroom check counts on.
        total = verdict.scaled().sum()
        total = total if reference is None else total + reference
        room = 1 << (WEIGHT_BITS + MAX_SCALE_BITS - ceil_log2(divisors))
        most = room if normalise else _with_slack(rows << SCALE_BITS)
        out_of_range += _outside(total.unsqueeze(0), most)
    if rule.selected is not None and isinstance(bits, ReplicatedTensor):
        missing = bits.sum() - rule.selected(rows, last.options)
        out_of_range += [missing.reshape(1), -missing.reshape(1)]
    return replace(verdict, out_of_range=tuple(out_of_range))


def _with_slack(bound: int) -> int:
    return bound * 17 // 16  # a sixteenth for rounding


def _problem(last: Stage, given: Scaled, rows: int) -> str:
    rule, weights = last.rule, given.weights
    if rule.giving == "public":
        right = isinstance(weights, np.ndarray) and weights.dtype == np.int64 and bool(np.isin(weights, (0, 1)).all())
    else:
        places = 0 if rule.giving == "selection" else WEIGHT_BITS
        right = isinstance(weights, ReplicatedTensor) and weights.fraction_bits == places
    if not right or tuple(weights.shape) != (rows,):
        return f"it must give {rows} weights of the declared kind ({rule.giving}): 0 or 1, or {WEIGHT_BITS} places"
    if isinstance(weights, np.ndarray) and rule.selected is not None:
        declared = rule.selected(rows, last.options)
        if int(weights.sum()) != declared:
            return f"it selects {int(weights.sum())} rows where it declares {declared}"
    if (given.counted is not None) != rule.counting(last.options):
        return "it gives bits to be counted that it does not declare, or the other way round"
    if (given.scale is None) != (rule.scale_bits is None) or (
        given.reference is not None and rule.reference != "previous"  # a root is a participant: never by itself
    ):
        return "it gives scales or a reference's coefficient that it does not declare, or the other way round"
    for part, shape in ((given.scale, (rows,)), (given.reference, ())):
        if part is not None and not (
            isinstance(part, ReplicatedTensor) and part.fraction_bits == SCALE_BITS and tuple(part.shape) == shape
        ):
            return f"scales must be {rows} secret numbers with {SCALE_BITS} places, a reference's coefficient one"
    return ""


def _scaled(scale: ReplicatedTensor, weights: Weights) -> ReplicatedTensor:
    """t_i c_i: with SCALE_BITS places if the weights are integers, else with WEIGHT_BITS."""
    product: ReplicatedTensor = scale * weights
    return product


def _mapped_back(verdict: _Verdict, mixing: Mixing) -> _Verdict:
    """The verdict on the rows before a stage: weights t = M^T t', scaled weights likewise."""
    unit = verdict.unit * mixing.divisor
    reference = None if verdict.reference is None else verdict.reference * mixing.divisor
    if isinstance(mixing.matrix, np.ndarray):
        public = torch.from_numpy(mixing.matrix)
        scale = None if verdict.scale is None else _secret(_row_times(verdict.scale, (public > 0).long()))
        combined = None if verdict.combined is None else _row_times(verdict.combined, public)
        weights = _row_times(verdict.weights, public)
    else:
        scale = None
        weights = _row_times(verdict.weights, mixing.matrix)
        scaled = verdict.scale is not None or verdict.combined is not None
        combined = _row_times(verdict.scaled(), mixing.matrix) if scaled else None
    return replace(verdict, weights=weights, scale=scale, combined=combined, reference=reference, unit=unit)


def _shrunk(weights: Weights, divisor: int) -> Weights:
    """Normalised weights divided by a stage's divisor again, rounded down: they add up to 1, and their scales fit."""
    if divisor == 1:
        return weights
    parts = _secret(weights) * round(2.0**PUBLIC_BITS / divisor)
    return parts.times_power_of_two(-PUBLIC_BITS).rescale(WEIGHT_BITS)


def _row_times(row: Weights, matrix: Weights) -> Weights:
    if isinstance(row, torch.Tensor) and isinstance(matrix, ReplicatedTensor):
        return matrix.t().matmul(row.unsqueeze(1))[:, 0]
    if isinstance(row, torch.Tensor):
        return (row.unsqueeze(1) * matrix).sum(0)
    return row.unsqueeze(0).matmul(matrix)[0]


@dataclass(frozen=True)
class _Setting:
    """What the decision needs beside the rule's verdict."""

    spec: TaskSpec
    pipeline: Pipeline
    mixings: tuple[Mixing, ...]  # from the rule's rows back to the participants'
    examples: ReplicatedTensor | None

    def of_participants(self, verdict: _Verdict) -> _Verdict:
        """The verdict on participants' rows, their secret example weights multiplied in."""
        for mixing in self.mixings:
            before, verdict = verdict, _mapped_back(verdict, mixing)
            if self.pipeline.normalises_rows(self.spec) and verdict.combined is None and verdict.unit == mixing.divisor:
                weights = _shrunk(verdict.weights, mixing.divisor)
                verdict = replace(verdict, weights=weights, reference=before.reference, unit=1)
        if self.examples is None:
            return verdict
        if not self.pipeline.normalises(self.spec):
            combined = None if verdict.combined is None else self.examples * verdict.combined
            return replace(verdict, weights=self.examples * verdict.weights, combined=combined)
        parts = _small_parts(self.examples)  # integers: the product of two small fractions keeps its places
        return replace(verdict, weights=(parts * verdict.weights).normalised().rescale(WEIGHT_BITS), unit=1)


def _rounded(setting: _Setting, final: _Verdict, rows: int) -> tuple[ReplicatedTensor | None, list[ReplicatedTensor]]:
    """Secret coefficients with as many places as fit the 32-bit ring beside the updates', or None if they are public.

    The words are negative where the coefficients could make the aggregate wrap. `rows` is how many rows the rule saw.
    Rounded is to nearest: what is 0 stays 0.
    """
    combined = final.scaled()
    if not isinstance(combined, ReplicatedTensor):
        return None, []
    spec = setting.spec
    units = final.unit if setting.pipeline.normalises(spec) else rows * final.unit
    # Rows that are scaled up to the root's length are bounded by it, not by what their coefficients add up to.
    to_length = scales_to_length(setting.pipeline.last.rule)
    if combined.fraction_bits:
        places = coefficient_places(spec, 2 * units if to_length else units, combined.size(0))
        if places < combined.fraction_bits:
            combined = (combined + 2.0 ** -(places + 1)).rescale(places)
    if to_length:
        return combined, []
    integers = combined.times_power_of_two(combined.fraction_bits)
    return combined, [(-integers.sum() + largest_sum(spec.dimension, spec.fraction_bits)).reshape(1)]


def _decided(setting: _Setting, verdict: _Verdict) -> Coefficients:
    spec, pipeline = setting.spec, setting.pipeline
    final = setting.of_participants(verdict)
    count = final.weights.shape[0]
    rounded, too_large = _rounded(setting, final, verdict.bits.shape[0]) if spec.narrow else (None, [])
    final = replace(final, out_of_range=(*final.out_of_range, *too_large))
    carrying = _check_cohort(spec, pipeline, final, final.scaled() if rounded is None else rounded)
    rows, accepted = tuple(range(count)), tuple(range(count)) if spec.decisions == "public" else None
    if pipeline.opens_selection(spec):
        bits = _secret(verdict.bits).open("accepted")
        verdict = replace(verdict, bits=bits, weights=bits)
        final = setting.of_participants(verdict)
    if isinstance(verdict.bits, torch.Tensor) and not pipeline.mixes_in_secret:
        public = replace(setting, examples=None).of_participants(replace(verdict, scale=None)).weights
        rows = _nonzero(public)
        accepted = rows if spec.decisions == "public" else None
    elif pipeline.last.rule.rejects and spec.decisions == "public":
        accepted = _nonzero(_secret(carrying).open("accepted"))
    combined = final.scaled()
    if rounded is not None and isinstance(combined, ReplicatedTensor):
        combined = rounded
    combined = combined[list(rows)]
    total = _weight_total(setting, verdict, final)
    if total < 1:
        raise RoundFailed("too_few_accepted", "cohort", "the accepted submissions' weights add up to nothing")
    return Coefficients(
        rows,
        combined,
        total,
        combined.fraction_bits if isinstance(combined, ReplicatedTensor) else 0,
        accepted,
        final.reference,
    )


def _nonzero(public: Weights) -> tuple[int, ...]:
    if not isinstance(public, torch.Tensor):  # not reached: no secret stage, no example weights
        raise TriskeleError("these weights are secret")
    return tuple(int(i) for i in torch.nonzero(public).flatten())


def _weight_total(setting: _Setting, verdict: _Verdict, final: _Verdict) -> int:
    """The sum of the weights: public by construction, or opened where example weights are secret."""
    if setting.pipeline.normalises(setting.spec):
        return final.unit
    if setting.examples is not None:
        return int(_secret(final.weights).sum().open("weight_total"))
    if isinstance(verdict.bits, torch.Tensor):
        return int(verdict.bits.sum()) * final.unit
    selected = setting.pipeline.last.rule.selected
    if selected is None:  # not reached: the weights are normalised then
        raise TriskeleError("the number of selected rows is not known")
    return selected(verdict.bits.shape[0], setting.pipeline.last.options) * final.unit


def _check_cohort(spec: TaskSpec, pipeline: Pipeline, final: _Verdict, combined: Weights) -> ReplicatedTensor | None:
    """At least min_accepted rows carry weight, and the effective cohort (sum w)^2 / sum w^2 is at least that large.

    `combined` are the coefficients that the rows will have. One row with nearly all the weight would be an opened
    update. The scales are part of w where they are at most 1; larger ones bring short updates to the length of others
    and say nothing about a row's part in the aggregate. What the rule gave must be in range, too. All of it is one
    opened bit. Gives the secret bits of the rows that carry weight, None if that is public.
    """
    carrying = None
    if isinstance(combined, torch.Tensor):
        enough = int(torch.count_nonzero(combined)) >= spec.min_accepted
    else:
        words = combined.times_power_of_two(combined.fraction_bits)
        tested = [-words, *final.out_of_range]
        measured = final.weights if pipeline.last.rule.scale_bits else combined
        if isinstance(measured, ReplicatedTensor):
            parts = _parts_of_the_total(spec, pipeline, measured, final.unit)
            squares = parts.cat([parts.sum().reshape(1), parts]).square()
            tested.append((squares[0] - squares[1:].sum() * spec.min_accepted).reshape(1))
        signs = words.cat(tested).lt(0)
        carrying, violations = signs[: words.size(0)], signs[words.size(0) :].sum()
        # More than are carrying: one violation makes it negative.
        margin = carrying.sum() - spec.min_accepted - violations * (words.size(0) + 1)
        enough = bool((-margin.lt(0) + 1).open("enough_accepted"))
    if not enough:
        raise RoundFailed(
            "too_few_accepted",
            "cohort",
            f"fewer than min_accepted = {spec.min_accepted} of {combined.shape[0]} valid submissions would carry it, "
            f"or rule {pipeline.last.rule.name!r} gave weights out of range",
        )
    return carrying


def _parts_of_the_total(spec: TaskSpec, pipeline: Pipeline, weights: ReplicatedTensor, unit: int) -> ReplicatedTensor:
    """Non-negative weights as integers of whose squares no sum wraps, times the minimum cohort, if they are in range.

    As they are if that is known to fit, else in units of 2^-24 of their sum or finer.
    """
    words = weights.times_power_of_two(weights.fraction_bits)
    normalised = pipeline.normalises(spec)
    if weights.fraction_bits == 0 and not spec.weighted:
        total = (words.size(0) * unit).bit_length()  # selected rows, each mixed of `unit` parts
        return words if 2 * total + ceil_log2(spec.min_accepted) <= LIMIT_BITS else _small_parts(weights)
    # Weights that add up to 1, or of at most 1 each.
    total = (_with_slack(1 << weights.fraction_bits) * (1 if normalised else words.size(0))).bit_length()
    known = unit == 1 and not pipeline.stages and (normalised or not spec.weighted)
    return words if known and 2 * total + ceil_log2(spec.min_accepted) <= LIMIT_BITS else _small_parts(weights)


def _small_parts(weights: ReplicatedTensor) -> ReplicatedTensor:
    """Non-negative weights in units of 2^-24 of their sum or finer, each below 2^26."""
    words = weights.times_power_of_two(weights.fraction_bits)
    scaled: ReplicatedTensor = words * words.sum().leading_power()  # the sum is in [2^60, 2^62) now
    return scaled.times_power_of_two(_COHORT_BITS - LIMIT_BITS).rescale(0)


def _outside(given: Weights | None, bound: int) -> list[ReplicatedTensor]:
    """Words that are negative where a secret value is outside [0, bound] in units of its last place."""
    if given is None or isinstance(given, torch.Tensor):
        return []
    words = given.times_power_of_two(given.fraction_bits).reshape(-1)
    return [words, -words + bound]


def _secret(weights: Weights | None) -> ReplicatedTensor:
    if not isinstance(weights, ReplicatedTensor):  # not reached: _problem checked the kind of weights
        raise TriskeleError("these weights are public")
    return weights
