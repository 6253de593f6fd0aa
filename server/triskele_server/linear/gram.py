"""A party's additive part of the Gram matrix X X^T, from the two shares of every row that it holds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from triskele.encoding import Words

from triskele_server.linear.shares import SharePair, chunks

EXACT_LIMIT = 10**9  # n^2 d up to which `gram = auto` takes all words instead of sketches
_CHUNK_WORDS = 1 << 13  # words per row in memory at a time


def gram_part(first: Words, second: Words) -> torch.Tensor:
    """int64 [n, n] part of Z Z^T for shares [n, K] of Z; the three parties' parts add up to it mod 2^64.

    A A^T + A B^T + B A^T = (A + B)(A + B)^T - B B^T.
    """
    b = torch.from_numpy(second)
    both = torch.from_numpy(first) + b
    return both @ both.T - b @ b.T


def exact_gram_part(rows: Sequence[SharePair], dimension: int) -> torch.Tensor:
    """The same over all words of the shares, a chunk at a time."""
    total = torch.zeros((len(rows), len(rows)), dtype=torch.int64)
    for start, stop in chunks(dimension, _CHUNK_WORDS):
        first = np.stack([row.first.read(start, stop) for row in rows])
        second = np.stack([row.second.read(start, stop) for row in rows])
        total += gram_part(first, second)
    return total
