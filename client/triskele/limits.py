"""Named limits with unit and default; each is checked before memory or disk is taken."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Limits that every process of a federation shares."""

    max_dimension: int = 1 << 27  # words of one update (512 MiB, or 1 GiB in the 64-bit ring)
    max_model_dimension: int = 1 << 31  # entries of a model of which a part travels (16 GiB as float64)
    max_participants: int = 1024  # submissions in one round
    max_rows: int = 256  # rows that a rule sees; more participants are averaged in buckets
    chunk_bytes: int = 1 << 19  # bytes of one streamed chunk that we send
    max_chunk_bytes: int = 1 << 20  # bytes of one streamed chunk that we accept
    max_task_bytes: int = 1 << 16  # bytes of a canonical task
    max_message_bytes: int = 4 << 20  # bytes of one gRPC message
    rpc_seconds: float = 30.0  # deadline of a short call
    upload_seconds: float = 600.0  # deadline of one upload attempt
    relay_seconds: float = 30.0  # that a relayed share may stand still before its participant uploads it directly


DEFAULT_LIMITS = Limits()
