"""How much memory Python and numpy hold at most while something runs."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable


def most_held(run: Callable[[], object]) -> int:
    """Bytes beyond what was held before; compiled code should be loaded by then."""
    tracemalloc.start()
    try:
        run()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
