"""The aggregate's words as a file, from the process that computed them to the one that serves them."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np

from triskele.encoding import Words
from triskele_server.at_rest import StoreDamaged


def write_previous(path: Path, output: Path, divisor: float) -> None:
    """Keep the aggregate of a released round in units of C / 2^20, for the task's next round; all or nothing.

    Elementwise and rounded to nearest, so that all parties get the same words.
    """
    write_output(path, np.rint(np.fromfile(output, "<i8") / divisor).astype(np.int64))


def read_previous(path: Path, dimension: int) -> Words:
    """What `write_previous` kept; raises StoreDamaged if it has not `dimension` words."""
    try:
        data = path.read_bytes()
    except OSError:
        raise StoreDamaged("this party's previous aggregate of the task cannot be read") from None
    if len(data) != dimension * 8:
        raise StoreDamaged(f"this party's previous aggregate of the task does not hold {dimension} words")
    return np.frombuffer(data, "<i8")


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
