"""Every metric of the servers. Labels are bounded: method, code, reason, state; never a participant, task or round."""

from __future__ import annotations

from typing import Final

from prometheus_client import Counter, Gauge, Histogram

_SECONDS: Final = (0.001, 0.005, 0.02, 0.1, 0.5, 2.0, 10.0, 60.0, 300.0)

RPC_STARTED: Final = Counter("triskele_grpc_server_started_total", "RPCs begun", ["method"])
RPC_HANDLED: Final = Counter("triskele_grpc_server_handled_total", "RPCs ended, by gRPC status", ["method", "code"])
RPC_SECONDS: Final = Histogram(
    "triskele_grpc_server_handling_seconds", "Duration of RPCs in seconds", ["method"], buckets=_SECONDS
)
REFUSALS: Final = Counter("triskele_refusals_total", "Calls refused, by reason (triskele.errors.REASONS)", ["reason"])
UPLOADS: Final = Counter("triskele_party_uploads_total", "Uploads that became complete at this party")
UPLOAD_BYTES: Final = Counter("triskele_party_upload_bytes_total", "Bytes of heavy shares written to disk")
ROUND_STATES: Final = Counter("triskele_round_states_total", "Rounds that entered a state", ["state"])
ROUNDS_RUNNING: Final = Gauge("triskele_party_rounds_running", "Rounds whose computation runs now")
