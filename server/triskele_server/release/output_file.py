"""The aggregate's words as a file, from the process that computed them to the one that serves them."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from triskele.encoding import Words


def write_output(path: Path, words: Words) -> bytes:
    """Write little-endian words durably, all or nothing; returns their SHA-256, which the three parties compare."""
    data = words.astype("<i8", copy=False).data
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    partial.rename(path)
    return hashlib.sha256(data).digest()
