"""The secure half of the demo: every participant submits its update through its own client, over mutual TLS."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from triskele import Participant, Round, RoundView
from triskele_server.demo.experiment import AggregationOutcome, FloatArray


class SecureAggregation:
    """`Aggregate` for one task: row i is submitted by participant i; what comes back is the released aggregate.

    `on_view` hears every change of the task's rounds, from a thread of its own.
    """

    def __init__(self, participants: Sequence[Participant], task: str, on_view: Callable[[RoundView], None]) -> None:
        self._participants = participants
        self._rounds: list[Iterator[Round]] = [p.rounds(task) for p in participants]
        self._watch = participants[0].watch(task)
        threading.Thread(target=self._follow, args=(on_view,), daemon=True).start()
        self.openings: tuple[str, ...] = ()

    def _follow(self, on_view: Callable[[RoundView], None]) -> None:
        for view in self._watch:
            on_view(view)

    def __call__(self, updates: FloatArray) -> AggregationOutcome:
        """One round; raises RoundFailed if it ends without a result."""

        def submitted(i: int) -> tuple[np.ndarray, bool | None, tuple[str, ...]]:
            handle = next(self._rounds[i]).submit(updates[i])
            return handle.result(), handle.accepted, handle.view.openings

        with ThreadPoolExecutor(len(updates)) as pool:
            results = list(pool.map(submitted, range(len(updates))))
        aggregate, _, self.openings = results[0]
        decisions = [accepted for _, accepted, _ in results]
        known = None if None in decisions else np.array(decisions, np.bool_)
        return AggregationOutcome(np.asarray(aggregate, np.float64), known)
