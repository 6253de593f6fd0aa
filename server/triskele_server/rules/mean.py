"""The (example-weighted) mean: no filtering beyond the validity check of each update's norm."""

from __future__ import annotations

import numpy as np

from triskele.ring import Words
from triskele_server.rules.registry import rule


@rule("mean", giving="public", needs_gram=False, moves_alone=lambda _: True)
def mean(rows: int) -> Words:
    """Every valid row with weight 1: sum w_i x_i / sum w_i."""
    return np.ones(rows, np.int64)
