"""Reasons come from many places in the code; each one stands in the metrics' lists, or it would count as `other`."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import triskele_server
from triskele_server.coordinator.schedule import (
    INCOMPLETE_UPLOAD,
    MANIFESTS_DIFFER,
    NOT_ENROLLED,
    WRONG_SLOT,
)
from triskele_server.metrics import coordinator
from triskele_server.party.round import INVALID

SOURCES = [ast.parse(path.read_text("utf-8")) for path in Path(triskele_server.__file__).parent.rglob("*.py")]


def _constants() -> dict[str, str]:
    """Names of capitals that stand for a text, in any module."""
    return {
        target.id: node.value.value
        for tree in SOURCES
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        for target in node.targets
        if isinstance(target, ast.Name) and target.id.isupper()
    }


def _reasons() -> Iterator[str]:
    """The first argument of every RoundFailed and Blame that is a text or the name of one."""
    constants = _constants()
    for node in (n for tree in SOURCES for n in ast.walk(tree)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("RoundFailed", "Blame"):
            first = node.args[0] if node.args else None
            if isinstance(first, ast.Constant):
                yield str(first.value)
            elif isinstance(first, ast.Name) and first.id in constants:
                yield constants[first.id]


def test_every_reason_for_a_rounds_end_is_counted_by_its_name():
    found = set(_reasons())
    assert len(found) > 10
    assert found <= coordinator.FAILURES


def test_every_reason_for_a_refused_submission_is_counted_by_its_name():
    assert frozenset((INCOMPLETE_UPLOAD, MANIFESTS_DIFFER, NOT_ENROLLED, WRONG_SLOT, INVALID)) == coordinator.REFUSALS
