"""Random bucketing (Karimireddy et al. 2022, "Byzantine-robust learning on heterogeneous datasets via bucketing")."""

from __future__ import annotations

import math

import numpy as np

from triskele.errors import InvalidTask
from triskele.keystream import KeyStream, derive
from triskele_server.rules.pipeline import BUCKETING, MAX_BUCKET_SIZE
from triskele_server.rules.registry import Mixing, Options, pre_aggregation


def _buckets(rows: int, options: Options) -> int:
    size = int(options.get("size", 2))
    if size > MAX_BUCKET_SIZE:
        raise InvalidTask(f"bucketing: size = {size} is above {MAX_BUCKET_SIZE}")
    return -(-rows // size)


@pre_aggregation(BUCKETING, giving="public", needs_gram=False, rows_after=_buckets, minimum={"size": 1})
def bucketing(rows: int, *, coin: bytes, size: int = 2) -> Mixing:
    """The rows in an order drawn from the coin, in groups of `size` (the last may be smaller), each group averaged."""
    drawn = KeyStream(derive(coin, b"triskele/v1/bucketing")).words(2 * rows).view(np.uint64)
    order = np.lexsort((drawn[:rows], drawn[rows:]))
    groups = [order[start : start + size] for start in range(0, rows, size)]
    divisor = math.lcm(*{len(group) for group in groups})
    matrix = np.zeros((len(groups), rows), np.int64)
    for row, group in zip(matrix, groups, strict=True):
        row[group] = divisor // len(group)
    return Mixing(matrix, divisor)
