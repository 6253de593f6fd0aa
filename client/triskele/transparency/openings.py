"""What a round of a task may open, as the rules that come with Triskele declare it (docs/protocol.md)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from triskele.task import TaskSpec


class _Rule(NamedTuple):
    """What of a rule decides what its rounds open."""

    gives: str  # "public" weights, a secret "selection", or secret "fractions"
    rejects: bool = True
    secret: bool = True  # whether anything of its result is


_RULES: Final = {
    "mean": _Rule("public", rejects=False, secret=False),
    "norm-clip": _Rule("public", rejects=False),
    "centered-clip": _Rule("public", rejects=False),
    "flame": _Rule("selection"),
    "multi-krum": _Rule("selection"),
    "krum": _Rule("selection"),
    "dnc": _Rule("selection"),
    "fltrust": _Rule("fractions"),
    "foolsgold": _Rule("fractions"),
    "geometric-median": _Rule("fractions", rejects=False),
}
_BY_COORDINATE: Final = ("median", "trimmed-mean")
_STAGES: Final = ("bucketing", "nnm")
_KNOWN: Final = ("valid", "enough_accepted", "accepted", "weight_total", "clip_count")


def declared(task: TaskSpec) -> tuple[str, ...] | None:
    """Names of everything that a released round of this task opens, in order; None if its rule is somebody else's."""
    *stages, last = task.stages
    if any(stage not in _STAGES for stage in stages):
        return None
    if last in _BY_COORDINATE:
        return ("valid", _aggregate(task))
    rule = _RULES.get(last)
    if rule is None:
        return None
    opened = (
        ("valid", True),
        ("enough_accepted", rule.secret or task.weighted or "nnm" in stages),
        ("accepted", rule.rejects and task.decisions == "public"),
        ("weight_total", task.weighted and rule.gives != "fractions"),
        ("clip_count", last == "norm-clip" and bool(_option(task, last, "quantile"))),
        (_aggregate(task), True),
    )
    return tuple(name for name, wanted in opened if wanted)


def not_as_declared(task: TaskSpec, submissions: int, openings: tuple[str, ...]) -> str:
    """What is wrong with the opening ledger of a round with so many submissions; empty if nothing is."""
    names = tuple(opening.partition("[")[0] for opening in openings)
    expected = declared(task)
    if expected is not None and names != expected:
        return f"it opened {', '.join(names)}; its task declares {', '.join(expected)}"
    if unknown := sorted(set(names) - {*_KNOWN, _aggregate(task)}):
        return f"it opened {', '.join(unknown)}, which no rule may"
    if len(set(names)) != len(names):
        return "it opened something twice"
    if not openings or openings[0] != f"valid[{submissions}]":
        return f"its first opening is not the {submissions} validity bits of its submissions"
    if openings[-1] != f"{_aggregate(task)}[{task.dimension}]":
        return f"its last opening is not the aggregate of {task.dimension} words"
    return ""


def _option(task: TaskSpec, stage: str, name: str) -> object:
    """An option of a stage, given for it alone or for all."""
    own = task.rule_options.get(stage)
    given = own.get(name) if isinstance(own, Mapping) else None
    return task.rule_options.get(name) if given is None else given


def _aggregate(task: TaskSpec) -> str:
    return "masked_aggregate" if task.masked else "aggregate"
