"""`triskele demo`: a face recogniser trained by a federation under attack, with and without Triskele."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from threadpoolctl import threadpool_limits

from triskele import Participant
from triskele.errors import InvalidTask
from triskele.ids import TaskName
from triskele.task import RuleOption, TaskSpec
from triskele_server.config import Schedule, ScheduledTask
from triskele_server.demo.attacks import ATTACKS
from triskele_server.demo.experiment import CLIP_NORM, RoundReport, plain_average, train
from triskele_server.demo.faces import load_photos
from triskele_server.demo.model import DIMENSION
from triskele_server.demo.screen import Screen, final_table
from triskele_server.demo.secure import SecureAggregation
from triskele_server.local_federation import LocalFederation
from triskele_server.rules import check_task

DEFAULT_ATTACKS = ("none", "sign-flip-10x", "alie", "backdoor-boosted", "backdoor-projected")
_DEADLINE_SECONDS = 3600.0  # rounds of later attacks are open while earlier ones train
_KEPT = 0.7  # fraction of the updates that multi-Krum selects


def run_demo(
    console: Console,
    *,
    rounds: int,
    participants: int,
    malicious: int,
    rule: str,
    attacks: Sequence[str] = DEFAULT_ATTACKS,
    report: Path | None = None,
) -> dict[str, Any]:
    """Run it, print the table, and return (and write to `report`) everything measured.

    Raises InvalidTask for options that cannot be run, FacesError without the photographs.
    """
    unknown = [attack for attack in attacks if attack not in ATTACKS]
    if unknown or not 0 <= malicious < participants / 2:
        raise InvalidTask(
            f"unknown attack {unknown[0]!r}; known: {', '.join(ATTACKS)}"
            if unknown
            else f"malicious = {malicious} must be below half of participants = {participants}"
        )
    tasks = {attack: _task(attack, rule, rounds, participants, malicious) for attack in attacks}
    photos = load_photos()
    started = time.monotonic()
    results: list[dict[str, Any]] = []
    with ExitStack() as stack:
        stack.enter_context(threadpool_limits(1))  # training shares two cores with eight processes
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="triskele-demo-")))
        screen = stack.enter_context(Screen(console, participants, rounds))
        screen.say(f"Starting a coordinator and three parties with mutual TLS, {participants} participants ...")
        federation = stack.enter_context(
            LocalFederation.create(directory / "federation", participants=participants, tasks=list(tasks.values()))
        )
        members = [stack.enter_context(Participant.from_config(p)) for p in federation.made.participants.values()]
        for attack, task in tasks.items():

            def run(name: str, aggregate: Any, attack: str = attack) -> list[dict[str, Any]]:
                screen.begin(f"{attack}, {name}")
                reports = train(
                    aggregate,
                    attack=attack,
                    participants=participants,
                    malicious=malicious,
                    rounds=rounds,
                    photos=photos,
                )
                return [_plain(screen, r) for r in reports]

            plain = run("plain averaging", plain_average)
            secure = SecureAggregation(members, task.spec.name, screen.show)
            triskele = run(f"Triskele with {rule}", secure)
            results.append(
                {
                    "attack": attack,
                    "malicious": malicious,
                    "plain": plain,
                    "triskele": triskele,
                    "openings": list(secure.openings),
                }
            )
    seconds = time.monotonic() - started
    console.print(final_table(results, rule))
    console.print(
        f"Opened in each round, at every party: {', '.join(results[-1]['openings'])}. Nothing else.\n"
        f"{participants} participants, {malicious} malicious, {rounds} rounds, {DIMENSION} parameters, "
        f"{seconds:.0f} s.",
        highlight=False,
    )
    measured = {
        "rule": rule,
        "participants": participants,
        "malicious": malicious,
        "rounds": rounds,
        "dimension": DIMENSION,
        "seconds": seconds,
        "results": results,
    }
    if report is not None:
        report.write_text(json.dumps(measured, indent=2), "utf-8")
    return measured


def _task(attack: str, rule: str, rounds: int, participants: int, malicious: int) -> ScheduledTask:
    options: dict[str, RuleOption] = {}
    if rule == "multi-krum":
        options = {"num_malicious_nodes": malicious, "num_nodes_to_select": max(2, round(_KEPT * participants))}
    spec = TaskSpec(
        TaskName(f"faces-{attack}"),
        DIMENSION,
        CLIP_NORM,
        rule=rule,
        rule_options=options,
        max_participants=participants,
    )
    check_task(spec)
    schedule = Schedule(rounds=rounds, quorum=participants, deadline_seconds=_DEADLINE_SECONDS, grace_seconds=0.0)
    return ScheduledTask(spec, schedule)


def _plain(screen: Screen, report: RoundReport) -> dict[str, Any]:
    screen.report(report)
    content = asdict(report)
    content["accepted"] = None if report.accepted is None else report.accepted.tolist()
    return content
