"""Which state each round in progress is in, and since when: from it follow three metrics of a process."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Final

from prometheus_client import Counter, Gauge, Histogram

from triskele_server.round_state import RoundState, has_ended, progress

PHASE_SECONDS: Final = (0.01, 0.05, 0.2, 1.0, 5.0, 20.0, 60.0, 300.0, 1200.0, 3600.0)


@dataclass(frozen=True)
class _Phase:
    state: RoundState
    since: float | None  # None: since before this process began


class RoundClock:
    """Counts states entered, shows states held, times states left. Thread-safe; keys never leave it.

    A round goes forward only: another attempt that comes through CHECKED again is no second entry.
    """

    def __init__(self, prefix: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._entered = Counter(f"{prefix}_round_states_total", "Rounds that entered a state", ["state"])
        self._held = Gauge(f"{prefix}_rounds", "Rounds in progress, by state", ["state"])
        self._seconds = Histogram(
            f"{prefix}_round_phase_seconds",
            "Seconds that rounds spent in a state before the next",
            ["state"],
            buckets=PHASE_SECONDS,
        )
        self._clock = clock
        self._lock = threading.Lock()
        self._rounds: dict[Hashable, _Phase] = {}
        for state in RoundState:
            self._entered.labels(state)
            if not has_ended(state):
                self._held.labels(state)
                self._seconds.labels(state)

    def resume(self, key: Hashable, state: RoundState) -> None:
        """A round that this process finds in progress when it starts."""
        with self._lock:
            if key not in self._rounds and not has_ended(state):
                self._rounds[key] = _Phase(state, None)
                self._held.labels(state).inc()

    def enter(self, key: Hashable, state: RoundState) -> None:
        """A round has come to `state`; once more is no news."""
        with self._lock:
            before, now = self._rounds.get(key), self._clock()
            if before is not None and not _forward(before.state, state):
                return
            self._entered.labels(state).inc()
            if before is not None:
                self._held.labels(before.state).dec()
                if before.since is not None:
                    self._seconds.labels(before.state).observe(now - before.since)
            if has_ended(state):
                self._rounds.pop(key, None)
            else:
                self._rounds[key] = _Phase(state, now)
                self._held.labels(state).inc()


def _forward(before: RoundState, after: RoundState) -> bool:
    return has_ended(after) or progress(after) > progress(before)
