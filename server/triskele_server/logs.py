"""JSON logs on standard error, one line per event, ids bound by contextvars. Bytes never reach a log line.

A line is one write, its end included: the two processes of a party share the file.
"""

from __future__ import annotations

import logging
import os
import sys
import traceback
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

import structlog

from triskele.tracing import TRACES

_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


def configure(process: str) -> None:
    """Send this process's structlog events, and other libraries' warnings, to standard error as JSON lines.

    The environment's TRISKELE_LOG_LEVEL (debug, info, warning, error) says from which level on; without it, info.
    """
    level = _LEVELS.get(os.environ.get("TRISKELE_LOG_LEVEL", "").lower(), logging.INFO)

    def named(_logger: Any, _name: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        event["process"] = process  # not a contextvar: gRPC starts every RPC in an empty context
        return event

    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        named,
        _with_trace,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _without_bytes,
    ]
    structlog.configure(
        processors=[*shared, structlog.processors.JSONRenderer()],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                _without_exceptions,
                structlog.processors.JSONRenderer(),
            ],
        )
    )
    logging.basicConfig(level=level if level < logging.INFO else logging.WARNING, handlers=[handler], force=True)


def describe(error: BaseException) -> dict[str, Any]:
    """Fields that name an exception without its text, which may quote data: type, the system's reason, where."""
    frames = traceback.extract_tb(error.__traceback__)
    fields: dict[str, Any] = {
        "error": type(error).__name__,
        "where": [f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in frames],
    }
    if isinstance(error, OSError) and error.errno:
        fields["system"] = os.strerror(error.errno)
    if error.__cause__ is not None:
        fields["cause"] = describe(error.__cause__)
    return fields


def forget_locals(error: BaseException) -> None:
    """Empty the frames that the exception came through: gRPC keeps it for a while, and with it seeds and shares."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        each = waiting.pop()
        if each is not None and id(each) not in seen:
            seen.add(id(each))
            traceback.clear_frames(each.__traceback__)
            waiting += [each.__cause__, each.__context__]


def _with_trace(_logger: Any, _name: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Where a round is traced, the trace that the line belongs to."""
    if parent := TRACES.parent():
        event["trace"] = parent.split("-")[1]
    return event


def _without_bytes(_logger: Any, _name: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """A last guard: whatever is binary is shown as its size only."""
    for key, value in event.items():
        if isinstance(value, bytes | bytearray | memoryview):
            event[key] = f"<{len(value)} bytes>"
    return event


def _without_exceptions(_logger: Any, _name: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Other libraries log exceptions with their text; keep where they happened."""
    info = event.pop("exc_info", None)
    if isinstance(info, tuple) and info[1] is not None:
        event.update(describe(info[1]))
    return event
