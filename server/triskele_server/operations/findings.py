"""What a check found, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Outcome = Literal["ok", "warning", "fault"]


@dataclass(frozen=True)
class Finding:
    """One line of a report. `remedy` says what to do; empty where all is well."""

    check: str
    outcome: Outcome
    found: str
    remedy: str = ""


def ok(check: str, found: str) -> Finding:
    """All is well."""
    return Finding(check, "ok", found)


def warning(check: str, found: str, remedy: str) -> Finding:
    """Works today, and needs somebody."""
    return Finding(check, "warning", found, remedy)


def fault(check: str, found: str, remedy: str) -> Finding:
    """Does not work."""
    return Finding(check, "fault", found, remedy)
