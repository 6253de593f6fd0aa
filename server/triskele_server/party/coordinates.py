"""Steps 8 and 9 for a coordinate-wise rule: it sees the updates' shares, a block of coordinates at a time."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from triskele.errors import RoundFailed
from triskele.task import TaskSpec
from triskele_server.linear.gram import mixed
from triskele_server.linear.shares import FIRST_WORDS, chunks, read_rows
from triskele_server.mpc.replicated import ReplicatedTensor
from triskele_server.mpc.session import Session, Shares
from triskele_server.party.filter import call_stage, run_stages
from triskele_server.party.rows import Rows
from triskele_server.rules.pipeline import Pipeline, Stage
from triskele_server.rules.registry import CoordinateSum

_COMPARISONS = 1 << 18  # at a time: some 20 MB per party


def run_coordinate_wise(
    session: Session, spec: TaskSpec, pipeline: Pipeline, *, rows: Rows, gram: Callable[[], ReplicatedTensor]
) -> tuple[Shares, int]:
    """Shares of the aggregate's words [dimension] and what they are to be divided by. Raises RoundFailed."""
    last, public = pipeline.last, rows.mixing
    with session.ledger.withheld():
        secret = run_stages(pipeline, gram(), public.divisor, spec.clip_norm)[0] if pipeline.needs_gram else []
        count = len(public.matrix)
        each = last.rule.comparisons(count, last.options) if last.rule.comparisons else 1
        totals: list[ReplicatedTensor] = []
        divisor = 0
        size = max(1, _COMPARISONS // max(each, 1) // FIRST_WORDS) * FIRST_WORDS
        for start, stop in chunks(spec.dimension, size):
            block = _block(session, rows, start, stop)
            for mixing in secret:
                block = mixing.matrix.matmul(block)  # type: ignore[union-attr]  # run_stages gives secret ones
            result = call_stage(last, block.t(), clip_norm=spec.clip_norm)
            totals.append(_checked(last, result, stop - start, divisor))
            divisor = result.divisor  # type: ignore[attr-defined]  # checked
    divisor *= public.divisor * int(np.prod([m.divisor for m in secret], dtype=np.int64))
    parts = [t.shares for t in totals]
    return Shares(torch.cat([p.first for p in parts]), torch.cat([p.second for p in parts])), divisor


def _checked(last: Stage, result: object, coordinates: int, divisor: int) -> ReplicatedTensor:
    """The sums of one block, if the rule gave what it should, and the same divisor as before (0: this is the first)."""
    given = result if isinstance(result, CoordinateSum) else CoordinateSum(None, 0)  # type: ignore[arg-type]
    total, by = given.total, given.divisor
    right = isinstance(total, ReplicatedTensor) and total.fraction_bits == 0 and tuple(total.shape) == (coordinates,)
    if not right or not isinstance(by, int) or isinstance(by, bool) or not 1 <= by < 1 << 31 or divisor not in (0, by):
        detail = "it must give a CoordinateSum: a secret integer for each coordinate, and the same divisor for all"
        raise RoundFailed("rule_failed", f"rule:{last.rule.name}", detail)
    return total


def _block(session: Session, rows: Rows, start: int, stop: int) -> ReplicatedTensor:
    """Words start to stop of the rows, int64 [rows, stop - start]."""
    matrix = np.asarray(rows.mixing.matrix)
    first = mixed(read_rows([s.first for s in rows.shares], start, stop), matrix)
    second = mixed(read_rows([s.second for s in rows.shares], start, stop), matrix)
    return ReplicatedTensor(Shares(torch.from_numpy(first), torch.from_numpy(second)), session, 0)
