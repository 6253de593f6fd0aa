"""Step 7: the rows that the rule sees, and this party's part of their Gram matrix.

A row is an update, or a public average of several (bucketing). The reference row, if the rule has one, comes last: the
root participant's update, or the previous aggregate.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from triskele.errors import RoundFailed
from triskele.ring import Words
from triskele.task import TaskSpec
from triskele_server.linear.gram import exact_gram_part, gram_part
from triskele_server.linear.shares import SharePair
from triskele_server.linear.sketch import Sketch
from triskele_server.party.filter import call_stage, checked_mixing
from triskele_server.rules.pipeline import Pipeline
from triskele_server.rules.registry import Mixing


@dataclass(frozen=True)
class Rows:
    """The participants' rows, by index into the round's submissions, and what they are averaged into."""

    participants: Sequence[int]
    shares: Sequence[SharePair]
    reference: SharePair | None
    reference_index: int | None  # of the root participant's submission
    mixing: Mixing

    def gram_part(
        self, sketch: Sketch, first: Words, second: Words, *, exact: bool, norms_only: bool
    ) -> tuple[Words, int]:
        """This party's additive part of the Gram matrix, or of its diagonal, int64, and the bits that it is scaled by.

        `first`, `second` hold the sketches of all submissions, lifted if they are of the 32-bit ring. Exact products
        over the words themselves, and a reference that is the previous aggregate, are of the 64-bit ring.
        """
        matrix = self._matrix()
        if exact:
            used = [*self.shares] + ([] if self.reference is None else [self.reference])
            return exact_gram_part(used, sketch.dimension, matrix, norms_only=norms_only), 0
        taken, last = [*self.participants], None
        if self.reference_index is not None:
            taken.append(self.reference_index)
        elif self.reference is not None:
            taken.append(len(first))
            last = sketch.apply([self.reference.first]), sketch.apply([self.reference.second])
        # Dividing by the number of blocks, a power of two, moves the point.
        part = gram_part(first, second, taken, matrix, last, norms_only=norms_only)
        return part, sketch.blocks.bit_length() - 1

    def _matrix(self) -> Words | None:
        """The mixing of all rows, the reference row carried through; None if nothing is mixed."""
        matrix = np.asarray(self.mixing.matrix)
        if self.mixing.divisor == 1 and np.array_equal(matrix, np.eye(len(matrix))):
            return None
        if self.reference is None:
            return matrix
        extended = np.zeros((matrix.shape[0] + 1, matrix.shape[1] + 1), np.int64)
        extended[:-1, :-1], extended[-1, -1] = matrix, self.mixing.divisor
        return extended


def lay_out(
    spec: TaskSpec,
    pipeline: Pipeline,
    valid: Sequence[int],
    submissions: Sequence[tuple[str, SharePair]],
    *,
    coin: bytes,
    previous: Callable[[], SharePair],
) -> tuple[Rows, Pipeline]:
    """The rows of the `valid` submissions (participant, shares), and the stages left to run on their Gram matrix.

    Raises RoundFailed if the root participant's valid update is not among them.
    """
    root = next((i for i in valid if submissions[i][0] == spec.root), None)
    wanted = pipeline.last.rule.reference
    if wanted == "root" and root is None:
        raise RoundFailed(
            "root_missing", f"participant:{spec.root}", f"no valid update of the root participant {spec.root!r}"
        )
    participants = [i for i in valid if i != root]
    reference = submissions[root][1] if root is not None else None
    if wanted == "previous":
        reference = previous()
    pipeline = pipeline.with_buckets(len(participants), spec.max_rows)
    mixing = Mixing(np.eye(len(participants), dtype=np.int64), 1)
    if pipeline.stages and not pipeline.stages[0].rule.needs_gram:
        stage = pipeline.stages[0]
        mixing = checked_mixing(stage, call_stage(stage, len(participants), coin=coin), len(participants))
        pipeline = Pipeline(pipeline.stages[1:], pipeline.last)
    return Rows(participants, [submissions[i][1] for i in participants], reference, root, mixing), pipeline
