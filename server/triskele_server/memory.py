"""How a server process treats memory that it has used: freed pages are kept for the next chunk of a stream.

As shipped, glibc gives the pages of freed chunks of half a megabyte back to the kernel at once and takes fresh ones,
which the kernel clears, for the next chunk: half of what receiving an upload cost (docs/performance.md). Between the
steps of a round, none of which uses what the last one did, they are given back.
"""

from __future__ import annotations

import ctypes
import gc
from typing import Final

_TRIM_THRESHOLD: Final = -1  # of glibc's mallopt(3): what may lie free at the end of a heap
_MMAP_THRESHOLD: Final = -3  # from which size on an allocation is a mapping of its own, gone when it is freed
_OBJECTS: Final = 20_000  # new ones, before garbage is looked for
_KEPT_BYTES: Final = 16 << 20
_OWN_MAPPING_BYTES: Final = 4 << 20  # no message is larger


def keep_freed_pages() -> None:
    """Call it once at the start of each server process; does nothing where the C library is not glibc."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, _OWN_MAPPING_BYTES)
        mallopt(_TRIM_THRESHOLD, _KEPT_BYTES)


def give_freed_pages_back() -> None:
    """Call it between steps that hold much at different times; some milliseconds. Does nothing without glibc."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def started() -> None:
    """Call it when the process is ready: what it has loaded by then stays, so no collection need look at it again.

    Calls leave few cycles behind, and looking for them after every 700 new objects took 3 % of the time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_OBJECTS)
