"""`triskele demo`: a face recogniser trained by a federation under attack, with and without Triskele."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from threadpoolctl import threadpool_limits

from triskele import Participant
from triskele.errors import InvalidTask
from triskele.ids import ParticipantId, TaskName
from triskele.task import RuleOption, TaskSpec
from triskele_server.config import Schedule, ScheduledTask
from triskele_server.demo.attacks import ATTACKS
from triskele_server.demo.experiment import CLIP_NORM, ROOT_SHARE, Aggregate, RoundReport, plain_average, train
from triskele_server.demo.faces import ByteArray, load_photos
from triskele_server.demo.inversion import inversions
from triskele_server.demo.model import DIMENSION
from triskele_server.demo.screen import PLAIN, Screen, final_tables, inversion_table
from triskele_server.demo.secure import SecureAggregation
from triskele_server.local_federation import LocalFederation
from triskele_server.provision import PortPlan, provision, write_task
from triskele_server.rules import check_task, find, with_ring

DEFAULT_ATTACKS = ("none", "sign-flip-10x", "alie", "backdoor-boosted", "backdoor-projected")
DEFAULT_RULES = ("flame", "fltrust")
ROOT = ParticipantId("root")
_DEADLINE_SECONDS = 3600.0  # rounds of later attacks are open while earlier ones train
_KEPT = 0.7  # fraction of the updates that multi-Krum selects
_INVERSION: Final[Mapping[str, Any]] = {"trials": 5, "cohorts": (2, 20), "multipliers": (1.0,)}
"""The short form of the gradient inversion: some seconds. `make privacy-evidence` runs all of it."""


@dataclass(frozen=True)
class _Plan:
    """What is to be run; valid by construction, raises InvalidTask."""

    rounds: int
    participants: int
    malicious: int
    rules: tuple[str, ...]
    attacks: tuple[str, ...]

    def __post_init__(self) -> None:
        for kind, names in (("rule", self.rules), ("attack", self.attacks)):
            if not names or len(set(names)) != len(names):
                raise InvalidTask(f"name at least one {kind}, and each once; got {', '.join(names) or 'none'}")
        unknown = [attack for attack in self.attacks if attack not in ATTACKS]
        if unknown:
            raise InvalidTask(f"unknown attack {unknown[0]!r}; known: {', '.join(ATTACKS)}")
        if not 0 <= self.malicious < self.participants / 2:
            raise InvalidTask(f"malicious = {self.malicious} must be below half of participants = {self.participants}")
        for attack in self.attacks:
            for rule in self.rules:
                check_task(self.task(attack, rule).spec)

    @property
    def names(self) -> list[ParticipantId]:
        """The participants', the malicious ones last."""
        return [ParticipantId(f"p{i:02d}") for i in range(self.participants)]

    @property
    def with_root(self) -> bool:
        """Whether a rule needs the root."""
        return any(_needs_root(rule) for rule in self.rules)

    def task(self, attack: str, rule: str) -> ScheduledTask:
        """The task of one training run. A root submits like everybody else, and is one more to wait for."""
        root = _needs_root(rule)
        submitting = self.participants + root
        spec = with_ring(
            TaskSpec(
                TaskName(f"faces-{attack}-{rule}"),
                DIMENSION,
                CLIP_NORM,
                rule=rule,
                rule_options=self._options(rule),
                root=ROOT if root else None,
                max_participants=submitting,
            ),
            "auto",
        )
        schedule = Schedule(
            rounds=self.rounds, quorum=submitting, deadline_seconds=_DEADLINE_SECONDS, grace_seconds=0.0
        )
        return ScheduledTask(spec, schedule)

    def _options(self, rule: str) -> dict[str, RuleOption]:
        known = find(rule).options
        wanted: dict[str, RuleOption] = {
            "num_malicious_nodes": self.malicious,
            "num_nodes_to_select": max(2, round(_KEPT * self.participants)),
        }
        return {name: value for name, value in wanted.items() if name in known}


def run_demo(
    console: Console,
    *,
    rounds: int,
    participants: int,
    malicious: int,
    rules: Sequence[str] = DEFAULT_RULES,
    attacks: Sequence[str] = DEFAULT_ATTACKS,
    report: Path | None = None,
) -> dict[str, Any]:
    """Run it, print the tables, and return (and write to `report`) everything measured.

    Raises InvalidTask for options that cannot be run, FacesError without the photographs.
    """
    plan = _Plan(rounds, participants, malicious, tuple(rules), tuple(attacks))
    photos = load_photos()
    started = time.monotonic()
    with ExitStack() as stack:
        stack.enter_context(threadpool_limits(1))  # training shares two cores with eight processes
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="triskele-demo-")))
        screen = stack.enter_context(Screen(console, rounds))
        who = f"{participants} participants" + (" and a root" if plan.with_root else "")
        screen.say(f"Starting a coordinator and three parties with mutual TLS, {who} ...")
        federation = stack.enter_context(_federation(directory / "federation", plan))
        members = {
            name: stack.enter_context(Participant.from_config(path))
            for name, path in federation.made.participants.items()
        }
        results = [_under_attack(attack, plan, members, screen, photos) for attack in plan.attacks]
        screen.say("Rebuilding faces from updates, shares and aggregates ...")
        _, rebuilt = inversions(photos, **_INVERSION)
    measured = {
        "rules": list(plan.rules),
        "participants": participants,
        "malicious": malicious,
        "rounds": rounds,
        "root_share": ROOT_SHARE if plan.with_root else None,
        "dimension": DIMENSION,
        "seconds": time.monotonic() - started,
        "results": results,
        "inversion": [{"attacker": one.attacker, "similarities": one.similarities} for one in rebuilt],
    }
    _show(console, plan, measured)
    if report is not None:
        report.write_text(json.dumps(measured, indent=2), "utf-8")
    return measured


def _federation(directory: Path, plan: _Plan) -> LocalFederation:
    """Identities and tasks of the whole demo, on free ports; nothing runs yet."""
    ports = PortPlan.free()
    made = provision(directory, participants=[*plan.names, *([ROOT] if plan.with_root else [])], ports=ports)
    for attack in plan.attacks:
        for rule in plan.rules:
            task = plan.task(attack, rule)
            write_task(directory, task.spec, task.schedule)
    (directory / "logs").mkdir()
    return LocalFederation(made, ports)


def _under_attack(
    attack: str, plan: _Plan, members: Mapping[ParticipantId, Participant], screen: Screen, photos: ByteArray
) -> dict[str, Any]:
    """The same training with plain averaging, then with each rule."""

    def trained(name: str, aggregate: Aggregate) -> list[dict[str, Any]]:
        screen.begin(attack, name)
        reports = train(
            aggregate,
            attack=attack,
            participants=plan.participants,
            malicious=plan.malicious,
            rounds=plan.rounds,
            photos=photos,
        )
        return [_plain(screen, report) for report in reports]

    runs = {PLAIN: trained(PLAIN, plain_average)}
    openings: dict[str, list[tuple[str, ...]]] = {}
    seconds: dict[str, list[float]] = {}
    for rule in plan.rules:
        task = plan.task(attack, rule).spec
        root = members[ROOT] if task.root else None
        secure = SecureAggregation([members[name] for name in plan.names], root, task.name, screen.show)
        runs[rule] = trained(rule, secure)
        openings[rule], seconds[rule] = secure.openings, secure.seconds
    return {
        "attack": attack,
        "participants": plan.participants,
        "malicious": plan.malicious,
        "runs": runs,
        "openings": openings,
        "secure_round_seconds": seconds,
    }


def _show(console: Console, plan: _Plan, measured: Mapping[str, Any]) -> None:
    results = measured["results"]
    console.print(*final_tables(results, plan.rules))
    lines = ["Opened in each round, at every party, and nothing else:"]
    for rule in plan.rules:
        ledgers = {", ".join(opened): None for result in results for opened in result["openings"][rule]}
        lines.append(f"  {rule}: {'; or '.join(ledgers)}")
    for rule in plan.rules:
        rounds = [seconds for result in results for seconds in result["secure_round_seconds"][rule]]
        lines.append(f"A secure round with {rule}: {sum(rounds) / len(rounds):.1f} s.")
    lines.append(
        f"{plan.participants} participants, {plan.malicious} malicious, {plan.rounds} rounds, {DIMENSION} parameters, "
        f"{measured['seconds']:.0f} s."
    )
    if plan.with_root:
        lines.append(f"The root holds {ROOT_SHARE:.0%} of the training images and is not averaged.")
    console.print("\n".join(lines), inversion_table(measured["inversion"]), highlight=False)


def _needs_root(rule: str) -> bool:
    return find(rule).reference == "root"


def _plain(screen: Screen, report: RoundReport) -> dict[str, Any]:
    screen.report(report)
    content = asdict(report)
    content["accepted"] = None if report.accepted is None else report.accepted.tolist()
    return content
