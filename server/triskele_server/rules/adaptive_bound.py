"""Adaptive clipping: `norm-clip`'s bound follows a quantile of the norms (Andrew, Thakkar, McMahan, Ramaswamy,
"Differentially Private Learning with Adaptive Clipping", NeurIPS 2021, algorithm 1).

In each round it is counted in MPC how many valid updates are no longer than the bound b_t. The count is opened with
noise, and everybody computes b_{t+1} = b_t exp(-learning_rate (count / n - quantile)) from it. Bounds are whole numbers
of 2^-40 of the clip norm and the exponential is decimal arithmetic, correctly rounded: all machines get the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, Decimal, localcontext
from fractions import Fraction
from typing import Final

from triskele.errors import InvalidTask
from triskele.task import FRACTION_BITS, TaskSpec
from triskele_server.rules.pipeline import Pipeline
from triskele_server.rules.sigma import party_share

BOUND_BITS: Final = 40  # a bound is kept in units of 2^-40 of the clip norm
COUNT_BITS: Final = 16  # the opened count has as many fraction bits, so that discrete noise is fine enough
_LARGEST: Final = 1 << BOUND_BITS  # the clip norm: longer no honest update is
_LEAST: Final = 1 << BOUND_BITS - 10
_DIGITS: Final = 40
_MAX_RATE: Final = 4.0
_FARTHEST: Final = Decimal(16)  # of an exponent: more than from one limit to the other


@dataclass(frozen=True)
class AdaptiveBound:
    """The options of a task whose bound adapts. initial: the first round's bound, in units of 2^-40 of the clip norm.

    count_noise: standard deviation of the noise in the count, in updates, the noise of any two parties counted.
    """

    quantile: float
    learning_rate: float
    count_noise: float
    initial: int

    @classmethod
    def of(cls, spec: TaskSpec) -> AdaptiveBound | None:
        """None if the task's bound does not adapt; raises InvalidTask if it cannot."""
        pipeline = Pipeline.of(spec)
        rule, options = pipeline.last.rule, {**pipeline.last.rule.options, **pipeline.last.options}
        if not rule.counting(pipeline.last.options):
            return None
        quantile, rate, noise = (float(options[name]) for name in ("quantile", "learning_rate", "count_noise"))
        initial = float(options["bound"]) / spec.clip_norm
        most = f"{spec.clip_norm:g} (clip_norm)"
        problems = {
            f"quantile {quantile:g} is not between 0 and 1": 0 < quantile < 1,
            f"learning_rate {rate:g} is not above 0 and up to {_MAX_RATE:g}": 0 < rate <= _MAX_RATE,
            f"count_noise {noise:g} is not in 0 to max_participants": 0 <= noise <= spec.max_participants,
            f"bound {options['bound']:g}, where the adaptation starts, is not in {spec.clip_norm / 1024:g} to {most}": (
                _LEAST <= round(initial * _LARGEST) <= _LARGEST
            ),
            "stages in front of it make rows of several updates": not pipeline.stages,
            "more participants than max_rows are clipped in buckets": spec.max_participants <= spec.max_rows,
            "covers would count as short updates": not spec.covers,
        }
        if spec.privacy is not None:
            least = spec.privacy.noise_multiplier / 2
            problems[
                f"count_noise {noise:g} must be above {least:g}, half of noise_multiplier: the count is noised too"
            ] = noise > least
        for problem, fine in problems.items():
            if not fine:
                raise InvalidTask(f"rule {rule.name!r} with a quantile: {problem}")
        return cls(quantile, rate, noise, round(initial * _LARGEST))

    def next(self, bound: int, opened: int, rows: int) -> int:
        """The bound after a round of `rows` valid updates; `opened` is the noised count, COUNT_BITS fraction bits."""
        with localcontext() as context:
            context.prec = _DIGITS
            below = Decimal(opened) / (rows << COUNT_BITS)
            exponent = Decimal(self.learning_rate) * (Decimal(self.quantile) - below)
            step = min(max(exponent, -_FARTHEST), _FARTHEST).exp()
            return min(max(int((bound * step).to_integral_value(ROUND_HALF_EVEN)), _LEAST), _LARGEST)

    def count_sigma(self) -> int:
        """The scale sigma of each party's discrete Gaussian noise in the opened count; 0: none."""
        if not self.count_noise:
            return 0
        return party_share((Fraction(self.count_noise) * (1 << COUNT_BITS)) ** 2)

    def share_of_the_sum(self, noise_multiplier: float) -> Fraction:
        """z_delta^2 = 1 / (z^-2 - (2 sigma_b)^-2): the square of the noise multiplier left for the sum (theorem 1).

        Then sum and count together are one Gaussian mechanism of noise multiplier z: an update moves the count, taken
        as deviations from 1/2, by 1/2.
        """
        return 1 / (1 / Fraction(noise_multiplier) ** 2 - 1 / (2 * Fraction(self.count_noise)) ** 2)


def in_ring_units(bound: int) -> int:
    """A bound in units of 2^-20 of the clip norm, as updates are encoded; rounded down."""
    return bound >> BOUND_BITS - FRACTION_BITS
