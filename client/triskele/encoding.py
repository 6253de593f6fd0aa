"""Fixed-point encoding of an update into ring words: clip to norm C, scale by 2^f / C, round stochastically.

Rounding up with probability equal to the fraction keeps the aggregate unbiased whatever the update's scale.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from triskele.errors import InvalidUpdate
from triskele.keystream import KeyStream
from triskele.ring import Words
from triskele.task import FRACTION_BITS

_CHUNK = 1 << 15  # entries; the temporaries stay in cache
# The order in which the norm is summed, and with it the words of a clipped update, depend on it. Whoever changes what
# `encode` gives for an update changes `_INFO` of submission.py, too: other words must never have the same secrets.


def _chunks(length: int) -> Iterator[slice]:
    for start in range(0, length, _CHUNK):
        yield slice(start, min(start + _CHUNK, length))


def l2_norm(update: NDArray[np.floating]) -> float:
    """L2 norm of a vector, summed in float64; raises InvalidUpdate on NaN or Inf."""
    total, room = 0.0, np.empty(_CHUNK, np.float64)
    for part in _chunks(len(update)):
        block = room[: part.stop - part.start]
        block[:] = update[part]
        total += float(np.einsum("i,i->", block, block))  # not BLAS: its threads fight with the training job's
    if not math.isfinite(total):
        raise InvalidUpdate("the update has NaN, Inf or entries too large to square")
    return math.sqrt(total)


def check_norm(update: NDArray[np.floating], clip_norm: float) -> float:
    """The update's L2 norm; raises InvalidUpdate if it is above `clip_norm`, and on NaN or Inf."""
    norm = l2_norm(update)
    if norm > clip_norm:
        raise InvalidUpdate(f"the update's norm {norm:.6g} is above clip_norm {clip_norm:.6g}")
    return norm


def encode(
    update: NDArray[np.floating],
    *,
    clip_norm: float,
    rounding: KeyStream,
    fraction_bits: int = FRACTION_BITS,
    clip: bool = True,
    out: Words | None = None,
) -> Words:
    """Ring words q = stochastic_round(x / C * 2^f) of the update clipped to L2 norm C, f = `fraction_bits`.

    update: float32 or float64 [d]. rounding: a key stream of secret randomness, 4 bytes are taken per entry.
    Returns int64 [d], or `out` itself, int64 or int32, with norm at most 2^f + sqrt(d). Raises InvalidUpdate on NaN or
    Inf, and on a norm above C if `clip` is false.
    """
    norm = l2_norm(update) if clip else check_norm(update, clip_norm)
    scale = 2.0**fraction_bits / clip_norm
    if norm > clip_norm:
        scale *= clip_norm / norm
    words: Words = np.empty(len(update), np.int64) if out is None else out
    # The temporaries are made once: in a thread, freeing and making them again costs as much as the arithmetic.
    scaled, uniform = np.empty(_CHUNK, np.float64), np.empty(_CHUNK, np.float64)
    random = np.empty(_CHUNK, "<u4")
    for part in _chunks(len(update)):
        size = part.stop - part.start
        block, below_one = scaled[:size], uniform[:size]
        rounding.read_into(random[:size])
        below_one[:] = random[:size]
        below_one *= 2.0**-32
        block[:] = update[part]
        block *= scale
        block += below_one
        words[part] = np.floor(block, out=block)
    return words


def decode(
    words: Words, *, clip_norm: float, weight_total: float, fraction_bits: int = FRACTION_BITS
) -> NDArray[np.float64]:
    """The weighted mean in model units: words / weight_total * C / 2^f, float64 [d]."""
    return words.astype(np.float64) * (clip_norm / 2.0**fraction_bits / weight_total)
