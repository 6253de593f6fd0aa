"""What a server process asks of the kernel before it holds anything secret.

No core dumps, and no other process of the account may read its memory (a debugger, /proc/<pid>/mem): a crash leaves
no share, seed or key behind. Root can still do both. Outside Linux the second is not to be had and is left out.
"""

from __future__ import annotations

import ctypes
import os
import resource
import sys
import threading
from types import TracebackType
from typing import Any, Final

import structlog

from triskele_server.logs import describe

_PR_SET_DUMPABLE: Final = 4
_MOST_DESCRIPTORS: Final = 1 << 16

_log = structlog.get_logger(__name__)


def harden() -> None:
    """Call it once at the start of each server process, after its logs are set up."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0):
            _log.warning("still_dumpable", problem=os.strerror(ctypes.get_errno()))
    _raise_descriptors()
    sys.excepthook = _uncaught
    threading.excepthook = _uncaught_in_thread
    sys.unraisablehook = _unraisable


def _raise_descriptors() -> None:
    """A connection is a descriptor, and so is a mapped share: the usual 1,024 are too few for a large round."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _MOST_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _uncaught(_kind: type[BaseException], error: BaseException, _traceback: TracebackType | None) -> None:
    """Where and what kind, never the text of an exception, which may quote what it could not handle."""
    _log.critical("uncaught_exception", **describe(error))


def _uncaught_in_thread(arguments: threading.ExceptHookArgs) -> None:
    if arguments.exc_value is not None and not isinstance(arguments.exc_value, SystemExit):
        _log.critical(
            "uncaught_exception", thread=arguments.thread and arguments.thread.name, **describe(arguments.exc_value)
        )


def _unraisable(arguments: Any) -> None:
    if arguments.exc_value is not None:
        _log.error("unraisable_exception", **describe(arguments.exc_value))
