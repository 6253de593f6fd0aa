"""The secure half of the demo: every participant submits its update through its own client, over mutual TLS."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from triskele import Participant, Round, RoundView
from triskele_server.demo.experiment import AggregationOutcome, FloatArray


class SecureAggregation:
    """`Aggregate` for one task: row i is submitted by participant i; what comes back is the released aggregate.

    `root` submits the root's update, if the task has a root. `on_view` hears every change of the task's rounds, from a
    thread of its own. `openings` are the opening ledger of each round so far, `seconds` its time, uploads included.
    """

    def __init__(
        self,
        participants: Sequence[Participant],
        root: Participant | None,
        task: str,
        on_view: Callable[[RoundView], None],
    ) -> None:
        self._count = len(participants)
        submitting = [*participants] if root is None else [*participants, root]
        self._rounds: list[Iterator[Round]] = [p.rounds(task) for p in submitting]
        self._watch = participants[0].watch(task)
        threading.Thread(target=self._follow, args=(on_view,), daemon=True).start()
        self.openings: list[tuple[str, ...]] = []
        self.seconds: list[float] = []

    def _follow(self, on_view: Callable[[RoundView], None]) -> None:
        for view in self._watch:
            on_view(view)

    def __call__(self, updates: FloatArray, root_update: FloatArray) -> AggregationOutcome:
        """One round; raises RoundFailed if it ends without a result."""
        rows = [*updates, root_update][: len(self._rounds)]

        def submitted(i: int) -> tuple[np.ndarray, bool | None, tuple[str, ...]]:
            handle = next(self._rounds[i]).submit(rows[i])
            return handle.result(), handle.accepted, handle.view.openings

        started = time.monotonic()
        with ThreadPoolExecutor(len(rows)) as pool:
            results = list(pool.map(submitted, range(len(rows))))
        self.seconds.append(time.monotonic() - started)
        aggregate, _, opened = results[0]
        self.openings.append(opened)
        decisions = [accepted for _, accepted, _ in results[: self._count]]
        known = None if None in decisions else np.array(decisions, np.bool_)
        return AggregationOutcome(np.asarray(aggregate, np.float64), known)
