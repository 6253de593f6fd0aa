"""Certificates that are no longer accepted although the authority issued them: revocation without an authority online.

The file has one entry per line; empty lines and what follows a `#` do not count:

    spiffe://bank.example/participant/p03     every certificate of this member
    serial:5F1D...                            one certificate, as `openssl x509 -serial` prints it
"""

from __future__ import annotations

import re
import threading
from functools import lru_cache
from pathlib import Path
from typing import Final

import structlog
from cryptography import x509

from triskele.errors import ConfigurationError, Forbidden
from triskele.identity import Identity
from triskele.renewal import stamps
from triskele_server.metrics import rpc as metrics

_SERIAL: Final = re.compile(r"serial:([0-9A-Fa-f]{1,64})")

_log = structlog.get_logger(__name__)


class DenyList:
    """The entries of a file, read again when the file changes; without a file nobody is denied. Thread-safe.

    A file that cannot be used when the process starts is a ConfigurationError. One that becomes so later is logged and
    takes nothing back: what was denied stays denied, and the lines that can be read are added.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._stamp = stamps(path) if path else None
        self._denied: frozenset[str] = frozenset()
        if path is not None:
            self._denied, problems = _entries(path)
            if problems:
                raise ConfigurationError(f"{path}: {problems[0]}")
            metrics.DENY_LIST_ENTRIES.set(len(self._denied))

    def check(self, identity: Identity, serial: int) -> None:
        """Raise Forbidden if the member, or its certificate with this serial number, is on the list."""
        denied = self._current()
        if identity.uri in denied:
            raise Forbidden(f"{identity.uri} is on this server's deny list: ask its operator")
        if serial_entry(serial) in denied:
            raise Forbidden(
                f"the certificate {serial:X} of {identity.uri} is on this server's deny list: use its successor"
            )

    def check_pem(self, identity: Identity, certificate: bytes) -> None:
        """`check` of the certificate (PEM) that a connection was made with."""
        if self._path is None:
            return
        self.check(identity, _serial(certificate))

    def _current(self) -> frozenset[str]:
        if self._path is None:
            return self._denied
        with self._lock:
            stamp = stamps(self._path)
            if stamp != self._stamp:
                self._stamp = stamp
                denied, problems = _entries(self._path)
                for problem in problems:
                    _log.error("deny_list_unusable", path=str(self._path), problem=problem)
                self._denied = self._denied | denied if problems else denied
                metrics.DENY_LIST_ENTRIES.set(len(self._denied))
                metrics.DENY_LIST_PROBLEMS.set(len(problems))
                _log.info("deny_list_read", entries=len(self._denied))
            return self._denied


@lru_cache(maxsize=4096)  # of what cannot change; a member's certificate comes with every call
def _serial(certificate: bytes) -> int:
    return x509.load_pem_x509_certificate(certificate).serial_number


def _entries(path: Path) -> tuple[frozenset[str], list[str]]:
    """The entries in their one spelling, and what is wrong with lines that are none."""
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        return frozenset(), [f"cannot be read as text ({error})"]
    found, problems = set(), []
    for number, line in enumerate(lines, 1):
        entry = line.partition("#")[0].strip()
        if not entry:
            continue
        try:
            found.add(checked_entry(entry))
        except ConfigurationError as error:
            problems.append(f"line {number}: {error}")
    return frozenset(found), problems


def checked_entry(text: str) -> str:
    """An entry in its one spelling; raises ConfigurationError."""
    if match := _SERIAL.fullmatch(text):
        return serial_entry(int(match[1], 16))
    return Identity.parse(text).uri


def serial_entry(serial: int) -> str:
    """The line that denies the certificate with this serial number."""
    return f"serial:{serial:x}"
