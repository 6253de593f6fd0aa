"""The aggregate's words as a file, from the process that computed them to the one that serves them."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np

from triskele.ring import Words, ring_of


def write_output(path: Path, words: Words) -> bytes:
    """Write little-endian words durably, all or nothing; returns their SHA-256, which the three parties compare."""
    data = np.ascontiguousarray(words, ring_of(words).dtype).data
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    partial.rename(path)
    return hashlib.sha256(data).digest()
