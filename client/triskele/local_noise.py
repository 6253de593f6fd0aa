"""Noise that a participant adds to its own update before anybody holds a share of it.

Gaussian, independent in every entry, from an AES-128-CTR stream by the Box-Muller transform in float64.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from triskele.encoding import l2_norm
from triskele.errors import InvalidUpdate
from triskele.keystream import KeyStream
from triskele.structure import Vector

MAX_LOCAL_NOISE = 1000.0
_CHUNK = 1 << 14  # pairs of entries


def checked_local_noise(local_noise: float | None) -> float:
    """The noise's scale, 0 for none; raises InvalidUpdate unless it is None or a number above 0."""
    if local_noise is None:
        return 0.0
    if isinstance(local_noise, bool | np.bool_) or not isinstance(local_noise, int | float | np.integer | np.floating):
        raise InvalidUpdate(f"local_noise must be a number, not {type(local_noise).__name__}")
    if not 0 < local_noise <= MAX_LOCAL_NOISE:  # NaN fails too
        raise InvalidUpdate(f"local_noise {local_noise} is not above 0 and at most {MAX_LOCAL_NOISE:g} clip norms")
    return float(local_noise)


def with_local_noise(update: Vector, *, clip_norm: float, local_noise: float, random: KeyStream) -> NDArray[np.float64]:
    """The update clipped to L2 norm C plus N(0, (local_noise C)^2) in every entry, float64 [d].

    Its norm is about C sqrt(1 + d local_noise^2): encoding clips it to C once more, which only uses what is public by
    then. Raises InvalidUpdate on NaN or Inf.
    """
    norm = l2_norm(update)
    noised = update * np.float64(1.0 if norm <= clip_norm else clip_norm / norm)
    scale = local_noise * clip_norm
    for start in range(0, len(noised), 2 * _CHUNK):
        part = noised[start : start + 2 * _CHUNK]
        part += scale * _gaussian(random, len(part))
    return noised


def _gaussian(random: KeyStream, count: int) -> NDArray[np.float64]:
    half = (count + 1) // 2
    uniform = (random.words(2 * half).view(np.uint64) >> np.uint64(11)).astype(np.float64) * 2.0**-53
    radius = np.sqrt(-2.0 * np.log1p(-uniform[:half]))  # of 1 - u in (0, 1]: never log 0
    angle = 2.0 * math.pi * uniform[half:]
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count]
