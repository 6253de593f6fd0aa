"""The noise of a task with a [privacy] table: its scale in the ring, whether it carries a guarantee, whether it fits.

docs/privacy.md states the guarantee and its proof.
"""

from __future__ import annotations

import math
from fractions import Fraction

from triskele.errors import InvalidTask
from triskele.privacy import Privacy
from triskele.task import HEADROOM_BITS, TaskSpec
from triskele_server.rules.adaptive_bound import BOUND_BITS, AdaptiveBound, in_ring_units
from triskele_server.rules.pipeline import Pipeline, coefficient_bits, shared_fate
from triskele_server.rules.pipeline import check_task as check_pipeline
from triskele_server.rules.precision import EXACT_LIMIT, IDENTITY_WORDS, room_for_noise
from triskele_server.rules.sigma import MAX_SIGMA, party_share

_TAIL = 16  # standard deviations (two parties') that the noise never leaves: for three parties' noise 13 of its own
_ROUNDING = 2  # last places by which a secret scale of at most 1 may come out larger


def check_task(spec: TaskSpec) -> None:
    """Raise InvalidTask unless the task's pipeline can run, and its aggregate and its noise cannot wrap."""
    check_pipeline(spec)
    AdaptiveBound.of(spec)
    check_noise(spec)


def no_claim(spec: TaskSpec) -> str:
    """Why the task's noise carries no differential-privacy guarantee; empty if it does."""
    if spec.privacy is None:
        return "the task adds no noise"
    reason = shared_fate(spec, Pipeline.of(spec))
    if not reason and spec.weighted:
        return "the sum of the example weights is opened as it is"
    if not reason and AdaptiveBound.of(spec) is not None and not _norms_are_exact(spec):
        return (
            "its noise follows a bound on norms that are measured on sketches, because the model is large: "
            "gram = 'exact' measures them exactly"
        )
    return reason


def _norms_are_exact(spec: TaskSpec) -> bool:
    """Whether every round of the task computes them of all entries."""
    most = spec.max_participants**2 * spec.dimension
    return spec.gram == "exact" or spec.dimension <= IDENTITY_WORDS or (spec.gram == "auto" and most <= EXACT_LIMIT)


def sensitivity(spec: TaskSpec) -> int:
    """The largest L2 norm of what an honest client encodes, in ring units.

    It clips to the clip norm, 2^f units, itself; stochastic rounding moves each of d entries by less than 1, so the
    vector by at most sqrt(d); one unit more covers the floating-point arithmetic before the rounding.
    """
    return (1 << spec.fraction_bits) + math.isqrt(spec.dimension) + 2


def party_sigma(privacy: Privacy, spec: TaskSpec, weight_total: int, bits: int, bound: int | None = None) -> int:
    """The scale sigma_p of each party's discrete Gaussian noise in the words of an aggregate.

    The mean is the words divided by `weight_total` and 2^bits. Two parties' noise has at least the variance
    (noise_multiplier * sensitivity)^2 of the claim. Without a claim each entry of the mean gets the noise that a mean
    of `min_accepted` updates would get. Under an adaptive bound, in units of 2^-40 of the clip norm, the term of an
    update is no longer than the bound but for the rounding of its factor, and the noise multiplier is what the noise in
    the count leaves of the task's.
    """
    adaptive = AdaptiveBound.of(spec)
    squared = Fraction(privacy.noise_multiplier) ** 2
    if adaptive is None or bound is None:
        scale = Fraction(sensitivity(spec) * ((1 << bits) + (_ROUNDING if bits else 0)))
    else:
        scale = Fraction((in_ring_units(bound) << bits) + _ROUNDING * sensitivity(spec))
        squared = adaptive.share_of_the_sum(privacy.noise_multiplier)
    if no_claim(spec):
        scale = scale * weight_total / spec.min_accepted
    return party_share(squared * scale**2)


def check_noise(spec: TaskSpec) -> None:
    """Raise InvalidTask unless the noise, up to 16 standard deviations, fits beside the largest aggregate.

    In the 64-bit ring an aggregate stays below 2^62, noise must stay below 2^61: the sum of both cannot wrap. In the
    32-bit ring what the largest aggregate leaves of 2^31 is the noise's.
    """
    if spec.privacy is None:
        return
    pipeline = Pipeline.of(spec).with_buckets(spec.max_participants, spec.max_rows)
    bits = coefficient_bits(spec, pipeline)
    total = 1 if pipeline.normalises(spec) else spec.max_participants * max(spec.max_weight, 1)
    sigma = party_sigma(spec.privacy, spec, total, bits, 1 << BOUND_BITS)
    room = room_for_noise(spec, pipeline) if spec.narrow else 1 << HEADROOM_BITS - 1
    most = min(MAX_SIGMA, room // _TAIL * 7 // 10)  # sqrt(2) sigma_p is two parties'
    if sigma > most:
        raise InvalidTask(
            f"privacy: noise of noise_multiplier {spec.privacy.noise_multiplier:g} would not fit the "
            f"{spec.ring_bits}-bit ring: a party's standard deviation of {sigma} is above {most}; lower "
            "noise_multiplier or max_weight"
        )
