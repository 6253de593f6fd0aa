"""The scale of one party's noise: a whole number of ring units that linear/discrete_gaussian.py takes."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Final

STEPS: Final = 4  # the sampler's steps are a quarter of sigma
MAX_SIGMA: Final = 1 << 56


def party_share(variance: Fraction) -> int:
    """The smallest sigma of one party so that two parties' noise has at least this variance, above 0."""
    least = math.isqrt(math.ceil(variance / 2) - 1) + 1
    return least + -least % STEPS
