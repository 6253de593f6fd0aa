"""Which entries of a large model travel in a round: a public random part of them, the same at every participant.

A task whose `model_dimension` is above its `dimension` sends `dimension` entries of the model in each round. The model
is cut into `dimension` runs of nearly equal length, and of each run one entry is taken, at

    start + floor(r * length / 2^32),   r the next little-endian u32 of AES-128-CTR under
    HKDF-SHA256(task digest, info = "triskele/v1/coordinates" | round u64 big endian)

so that positions cost no bytes, every party works on a shorter vector and knows nothing of it, and in expectation an
entry's turn comes every model_dimension / dimension rounds. Nothing here is secret: what is hidden is what the entries
are, and what the parties check, filter and add up is exactly what travels. Random masks shared by a seed: Konečný et
al. 2016 (arXiv 1610.05492), section 2.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

from triskele.errors import InvalidUpdate
from triskele.ids import RoundNumber
from triskele.keystream import KeyStream, derive
from triskele.task import TaskSpec

Positions = NDArray[np.int64]

_INFO = b"triskele/v1/coordinates"


def positions(spec: TaskSpec, number: RoundNumber) -> Positions:
    """Which entries of the flat model travel in a round: int64 [dimension], ascending; all but in a partial task."""
    if not spec.partial:
        return np.arange(spec.dimension, dtype=np.int64)
    bounds = np.arange(spec.dimension + 1, dtype=np.int64) * spec.entries // spec.dimension
    stream = KeyStream(derive(spec.digest, _INFO + struct.pack(">Q", number)))
    drawn = stream.read(4 * spec.dimension).view("<u4").astype(np.int64)
    drawn *= np.diff(bounds)  # below 2^32 * 2^31
    drawn >>= 32
    drawn += bounds[:-1]
    return drawn


def taken(vector: NDArray[np.floating[Any]], spec: TaskSpec, number: RoundNumber) -> NDArray[np.floating[Any]]:
    """The part of a flat update [entries] that travels, [dimension]; raises InvalidUpdate for another length."""
    if vector.shape != (spec.entries,):
        raise InvalidUpdate(f"a vector of shape {vector.shape} does not fit task {spec.name!r} of {spec.entries}")
    return vector[positions(spec, number)] if spec.partial else vector


def spread(part: NDArray[np.float64], spec: TaskSpec, number: RoundNumber) -> NDArray[np.float64]:
    """An estimate of the whole mean, float64 [entries], from what came back for its part, float64 [dimension].

    Zero but where something travelled, and there entries / dimension times as large, so that over the rounds the model
    moves as far as if all of it travelled.
    """
    if not spec.partial:
        return part
    whole = np.zeros(spec.entries, np.float64)
    whole[positions(spec, number)] = part * (spec.entries / spec.dimension)
    return whole
