"""The steps of a round's computation (docs/protocol.md), counted in the worker process of a party."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from prometheus_client import Counter, Histogram

STEPS: Final = ("seal", "coin", "sketch", "check", "gram", "filter", "combine")
_SECONDS: Final = (0.005, 0.02, 0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0)

STEP_SECONDS: Final = Histogram(
    "triskele_mpc_step_seconds", "Duration of a step in seconds, waiting for peers included", ["step"], buckets=_SECONDS
)
STEP_ROUNDS: Final = Counter("triskele_mpc_communication_rounds_total", "Times that a step waited for a peer", ["step"])
STEP_BYTES: Final = Counter("triskele_mpc_sent_bytes_total", "Payload bytes sent to the two peers", ["step"])

for _step in STEPS:
    STEP_SECONDS.labels(_step)
    STEP_ROUNDS.labels(_step)
    STEP_BYTES.labels(_step)


class StepMeter:
    """What each step of one computation cost: the difference to the end of the step before."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since, self._rounds, self._bytes = clock(), 0, 0

    def ended(self, step: str, rounds: int, bytes_sent: int) -> None:
        """A step has ended; `rounds` and `bytes_sent` are those of the whole computation so far."""
        now = self._clock()
        STEP_SECONDS.labels(step).observe(now - self._since)
        STEP_ROUNDS.labels(step).inc(rounds - self._rounds)
        STEP_BYTES.labels(step).inc(bytes_sent - self._bytes)
        self._since, self._rounds, self._bytes = now, rounds, bytes_sent
