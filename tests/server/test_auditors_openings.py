"""What an auditor expects a round to open is what the parties declare, for every rule that comes with Triskele."""

from __future__ import annotations

import itertools
from typing import Any

from triskele.errors import InvalidTask
from triskele.ids import ParticipantId, TaskName
from triskele.task import TaskSpec
from triskele.transparency.openings import declared
from triskele_server.config import BUILT_IN_RULES
from triskele_server.party.filter import declared_openings
from triskele_server.rules import check_task

STAGES = ("bucketing", "nnm")
OPTIONS = {
    "multi-krum": {"num_malicious_nodes": 1},
    "krum": {"num_malicious_nodes": 1},
    "nnm": {"num_malicious_nodes": 1},
    "dnc": {"num_malicious_nodes": 1},
    "trimmed-mean": {"num_malicious_nodes": 1},
}


ADAPTS = {"bound": 0.5, "quantile": 0.5, "count_noise": 2.0}


def tasks() -> list[TaskSpec]:
    found = []
    rules = [rule for rule in BUILT_IN_RULES if rule not in STAGES]
    choices = itertools.product(
        ([], ["bucketing"], ["nnm"], ["bucketing", "nnm"]),
        rules,
        (0, 5),
        ("public", "hidden"),
        ("public", "participants"),
        (False, True),
    )
    for stages, rule, weight, decisions, release, adapts in choices:
        if adapts and rule != "norm-clip":
            continue
        names = (*stages, rule)
        options: dict[str, Any] = {name: OPTIONS[name] for name in names if name in OPTIONS}
        if adapts:
            options["norm-clip"] = ADAPTS
        root = ParticipantId("root") if rule == "fltrust" else None
        try:
            task = TaskSpec(
                TaskName("t"), 9, 1.0, rule=names, rule_options=options, max_weight=weight,
                decisions=decisions, release=release, root=root, min_accepted=2, max_participants=20,
            )  # fmt: skip
            check_task(task)
        except InvalidTask:
            continue
        found.append(task)
    return found


def test_the_auditors_table_is_the_parties_declaration() -> None:
    checked = tasks()
    assert {task.stages[-1] for task in checked} == set(BUILT_IN_RULES) - set(STAGES)
    assert {stage for task in checked for stage in task.stages[:-1]} == set(STAGES)
    assert len(checked) > 100
    assert any("clip_count" in (declared(task) or ()) for task in checked)
    for task in checked:
        assert declared(task) == tuple(declared_openings(task)), task
