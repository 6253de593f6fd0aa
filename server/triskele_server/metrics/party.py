"""What one party counts besides its calls: rounds, uploads, storage."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import wraps
from typing import Any, Final

from prometheus_client import Counter, Gauge

from triskele.errors import REASONS, Conflict, TriskeleError
from triskele_server.metrics.round_clock import RoundClock

ROUNDS: Final = RoundClock("triskele_party")
ROUNDS_COMPUTING: Final = Gauge("triskele_party_rounds_running", "Rounds whose computation runs now")
ATTEMPTS: Final = Counter("triskele_party_attempts_total", "Attempts at a round's computation that began here")
ATTEMPTS_LOST: Final = Counter("triskele_party_attempts_lost_total", "Attempts that ended because a party fell silent")
WORKER_RESTARTS: Final = Counter(
    "triskele_party_worker_restarts_total", "Times that the computing process ended by itself"
)

UPLOADS: Final = Counter("triskele_party_uploads_total", "Uploads, by what became of them", ["outcome", "reason"])
UPLOAD_BYTES: Final = Counter("triskele_party_upload_bytes_total", "Bytes of heavy shares written to disk")
REPLAYS: Final = Counter("triskele_party_replays_total", "Uploads that look like replays, by kind", ["kind"])

RELAYS: Final = Counter("triskele_party_relays_total", "Heavy shares that one holder brings the other", ["outcome"])
RELAYS_WAITING: Final = Gauge("triskele_party_relays_waiting", "Heavy shares that are still to be brought to the other")

RELAY_OUTCOMES: Final = ("sent", "refused", "received", "mismatch")
"""Sent and refused are of the party that brings, received and mismatch of the other one."""
OUTCOMES: Final = ("complete", "taken_over", "broken_off", "expired")
"""Of uploads that were not refused: those carry the reason of the refusal."""
REPLAY_KINDS: Final = ("another_participant", "another_manifest", "another_round", "repeated")

for _outcome in OUTCOMES:
    UPLOADS.labels(_outcome, "")
for _reason in REASONS.values():
    UPLOADS.labels("refused", _reason.label)
for _outcome in RELAY_OUTCOMES:
    RELAYS.labels(_outcome)
for _kind in REPLAY_KINDS:
    REPLAYS.labels(_kind)


class TakenOver(Conflict):
    """A later call of the same participant goes on with this upload."""


def counted(handle: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """Around the handler of an upload: counts those that are refused, and those whose stream broke off."""

    @wraps(handle)
    async def counting(*args: Any) -> Any:
        try:
            return await handle(*args)
        except TakenOver:
            raise  # counted where it happens: a stream that stands still never hears of it
        except TriskeleError as error:
            UPLOADS.labels("refused", reason_label(error)).inc()
            raise
        except asyncio.CancelledError:
            UPLOADS.labels("broken_off", "").inc()
            raise

    return counting


def reason_label(error: TriskeleError) -> str:
    """The label of an error's class, or of the nearest base that has one."""
    return next((REASONS[kind].label for kind in type(error).__mro__ if kind in REASONS), "internal")
