"""The 32-bit ring: how many fraction bits updates and coefficients get so that no aggregate wraps, or why none fit.

The entries of a row that passed the check are below V in absolute value: floor(1.1 * 2^f) + 1 where its norm was
measured, floor(4.4 * 2^f) + 1 where it was estimated from a sketch (docs/protocol.md, "Check", claim 2). Coefficients
that add up to at most S = (2^31 - 1) / V therefore keep every entry of the aggregate below 2^31, and a task's budget S
is shared between the places of the updates (f) and those of the coefficients.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from triskele.errors import InvalidTask
from triskele.ring import NARROW
from triskele.task import FRACTION_BITS, LIFTED_BITS, SKETCHED_BITS, TaskSpec
from triskele_server.rules.registry import MAX_DIVISOR_BITS, ceil_log2

if TYPE_CHECKING:
    from triskele_server.rules.pipeline import Pipeline
    from triskele_server.rules.registry import Rule

EXACT_LIMIT = 10**9  # n^2 d up to which `gram = auto` multiplies all words instead of sketches
IDENTITY_WORDS = 8192  # up to so many a vector is its own sketch, and the Gram matrix of the sketches is exact
MIN_ROUNDING_BITS = 4  # sqrt(d) <= 2^(f - 4): rounding adds at most 2^-5 C or so to an update
MIN_COEFFICIENT_BITS = 5  # a fair share of the coefficients' sum is at least 2^5 units
MAX_ROOT_LENGTH = 2.0  # of the root's update, in clip norms: what rows that are scaled to its length have room for
_TOO_NARROW = "the 32-bit ring is too narrow"
_TYPICAL_NORM = 0.25  # of an update, in clip norms: what the split between places is made for


def largest_entry(dimension: int, fraction_bits: int) -> int:
    """V: every entry of a row that passed the check is below it in absolute value."""
    tenths = 11 if dimension <= IDENTITY_WORDS else 44
    return (tenths << fraction_bits) // 10 + 1


def largest_sum(dimension: int, fraction_bits: int) -> int:
    """S: what the coefficients of rows that passed the check may add up to, in their last place."""
    return ((1 << NARROW.bits - 1) - 1) // largest_entry(dimension, fraction_bits)


def coefficient_places(spec: TaskSpec, units: int, rows: int) -> int:
    """Fraction bits of the coefficients of `rows` rows in the 32-bit ring, if they add up to at most `units`.

    Each of them is rounded to an integer next to it. Negative if not even integers fit.
    """
    room = largest_sum(spec.dimension, spec.fraction_bits) - rows
    return (room // units).bit_length() - 1


def scales_to_length(rule: Rule) -> bool:
    """Whether a rule may scale rows up, to the root's length |r|: then that bounds the aggregate, not coefficients.

    A scaled row's entries are below V where norms are measured. Where they are estimated, an entry is at most 4 times
    its row's estimated norm (claim 2 again, of these sketches), and so a scaled one at most 4 |r|, which is below 2 V
    while |r| <= MAX_ROOT_LENGTH.
    """
    return rule.built_in and bool(rule.scale_bits) and rule.reference == "root"


def best_fraction_bits(spec: TaskSpec, pipeline: Pipeline) -> int:
    """The places of an update in the 32-bit ring that add the least noise; raises InvalidTask if none fit."""
    pipeline = pipeline.with_buckets(spec.max_participants, spec.max_rows)
    _check_kind(spec, pipeline)
    least = _least_fraction_bits(spec.dimension)
    most = min(FRACTION_BITS, (SKETCHED_BITS - ceil_log2(spec.dimension)) // 2)
    fitting = [bits for bits in range(least, most + 1) if _problem(spec, pipeline, bits) is None]
    if not fitting:
        raise InvalidTask(f"{_TOO_NARROW}: {_problem(spec, pipeline, least)}")
    return min(fitting, key=lambda bits: _noise(spec, bits)) if _rounded(spec, pipeline) else max(fitting)


def check_narrow(spec: TaskSpec, pipeline: Pipeline) -> None:
    """Raise InvalidTask unless no aggregate of this task of the 32-bit ring can wrap."""
    pipeline = pipeline.with_buckets(spec.max_participants, spec.max_rows)
    _check_kind(spec, pipeline)
    least = _least_fraction_bits(spec.dimension)
    problem = _problem(spec, pipeline, spec.fraction_bits)
    if spec.fraction_bits < least:
        problem = f"{spec.dimension} words need {least} fraction bits, not {spec.fraction_bits}"
    if problem:
        raise InvalidTask(f"{_TOO_NARROW}: {problem}")


def room_for_noise(spec: TaskSpec, pipeline: Pipeline) -> int:
    """What is left of 2^31 above the largest aggregate of a task whose coefficients are not rounded."""
    most = _units(spec, pipeline) * largest_entry(spec.dimension, spec.fraction_bits)
    return (1 << NARROW.bits - 1) - 1 - most


def _least_fraction_bits(dimension: int) -> int:
    return math.ceil(math.log2(dimension) / 2) + MIN_ROUNDING_BITS


def _check_kind(spec: TaskSpec, pipeline: Pipeline) -> None:
    rule = pipeline.last.rule
    problem = ""
    if rule.kind == "coordinate_wise":
        problem = f"rule {rule.name!r} computes on the updates themselves"
    elif rule.reference == "previous":
        problem = f"rule {rule.name!r} starts from the previous aggregate, which the parties divide in 64-bit words"
    elif rule.scale_bits and not scales_to_length(rule):
        problem = f"rule {rule.name!r} may scale updates up, to lengths that nothing bounds"
    elif scales_to_length(rule) and pipeline.mixes_in_secret and spec.dimension > IDENTITY_WORDS:
        problem = (
            f"rule {rule.name!r} scales up mixtures that are chosen by the sketch which measures them: beyond "
            f"{IDENTITY_WORDS} words nothing bounds them"
        )
    elif spec.privacy is not None and (pipeline.stages or _rounded(spec, pipeline)):
        problem = f"the noise of `privacy` goes beside whole coefficients only, and {list(spec.stages)} has others"
    elif spec.gram == "exact" and spec.dimension > IDENTITY_WORDS:
        problem = (
            f"gram = 'exact' multiplies {spec.dimension} words, and beyond {IDENTITY_WORDS} they are only sketched"
        )
    elif spec.max_weight >= 1 << LIFTED_BITS:
        problem = f"max_weight {spec.max_weight} is not below 2^{LIFTED_BITS}"
    if problem:
        raise InvalidTask(f"{_TOO_NARROW}: {problem}")


def _problem(spec: TaskSpec, pipeline: Pipeline, fraction_bits: int) -> str | None:
    """Why the coefficients do not fit beside so many fraction bits."""
    count, room = spec.max_participants, largest_sum(spec.dimension, fraction_bits)
    if not _rounded(spec, pipeline):
        units = _units(spec, pipeline)
        if units > room:
            return f"coefficients of up to {units} in all, beside {fraction_bits} fraction bits only {room} fit"
        return None
    units = _units(spec, pipeline) + count
    fair = count << MIN_COEFFICIENT_BITS
    if max(units, fair) > room:
        return (
            f"{count} rows need coefficients of up to {max(units, fair)} in all; beside {fraction_bits} fraction bits, "
            f"which {spec.dimension} words need, only {room} fit"
        )
    return None


def _rounded(spec: TaskSpec, pipeline: Pipeline) -> bool:
    """Whether coefficients have fraction bits, so that places are shared between them and the updates."""
    return pipeline.last.rule.scale_bits is not None or spec.weighted or pipeline.normalises(spec)


def _units(spec: TaskSpec, pipeline: Pipeline) -> int:
    """What integer coefficients can add up to."""
    rows = pipeline.rows_after(spec.max_participants)
    secret = sum(stage.rule.giving != "public" for stage in pipeline.stages)
    divisors = 1 << secret * ceil_log2(rows) + MAX_DIVISOR_BITS * (len(pipeline.stages) - secret)
    if spec.weighted or pipeline.normalises(spec):
        units = divisors if secret and pipeline.last.rule.scale_bits is not None else 1
        return 2 * units if scales_to_length(pipeline.last.rule) else units
    return rows * divisors


def _noise(spec: TaskSpec, fraction_bits: int) -> float:
    """Variance that rounding adds to an accepted update of typical norm, in units of its square and of 1/6."""
    fair = largest_sum(spec.dimension, fraction_bits) / spec.max_participants
    return float(spec.dimension * 4.0**-fraction_bits / _TYPICAL_NORM**2 + fair**-2.0)
