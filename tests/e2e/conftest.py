"""One real federation for all end-to-end tests: four processes, mutual TLS on loopback, a task per test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from triskele import Participant
from triskele.privacy import Privacy
from triskele.task import TaskSpec
from triskele_server.config import Schedule, ScheduledTask
from triskele_server.local_federation import COORDINATOR, PARTY_NAMES, LocalFederation

PARTICIPANTS = 5
DIMENSION = 3000
RELAYED = 300_000
INTERRUPTED = 1_500_000  # large enough to be killed in the upload


def scheduled(name: str, *, rounds: int = 1, quorum: int = PARTICIPANTS, **fields: object) -> ScheduledTask:
    spec = TaskSpec(
        **{"name": name, "dimension": DIMENSION, "clip_norm": 4.0, "max_participants": PARTICIPANTS, "rule": "mean"}
        | fields
    )
    return ScheduledTask(spec, Schedule(rounds=rounds, quorum=quorum, deadline_seconds=600.0, grace_seconds=0.2))


KRUM = {"rule": "multi-krum", "rule_options": {"num_malicious_nodes": 1, "num_nodes_to_select": 3}}
TASKS = [
    scheduled("krum", rounds=2, **KRUM),
    scheduled("weighted", rule="norm-clip", max_weight=1000, decisions="hidden"),
    scheduled("hostile"),
    scheduled("covered", max_weight=1, covers=True),
    scheduled("private", rounds=2, ring_bits=32, privacy=Privacy(noise_multiplier=4.0, delta=1e-5, budget_epsilon=1.2)),
    scheduled(
        "adaptive", rounds=2, rule="norm-clip", rule_options={"bound": 1.0, "quantile": 0.5, "learning_rate": 2.0}
    ),
    scheduled("model"),
    scheduled("vanished", quorum=3),
    scheduled("interrupted", dimension=INTERRUPTED),
    scheduled("relayed", dimension=RELAYED),
    *(scheduled(f"kill-{name}", **KRUM) for name in (COORDINATOR, *PARTY_NAMES)),
    *(scheduled(f"computing-{name}", rule="flame", decisions="hidden") for name in (COORDINATOR, *PARTY_NAMES)),
]


@pytest.fixture(scope="session")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalFederation]:
    directory = tmp_path_factory.mktemp("e2e") / "federation"
    with LocalFederation.create(directory, participants=PARTICIPANTS, tasks=TASKS, operator=True) as running:
        yield running


@pytest.fixture(scope="session")
def members(federation: LocalFederation) -> Iterator[list[Participant]]:
    opened = [Participant.from_config(path) for path in federation.made.participants.values()]
    yield opened
    for member in opened:
        member.close()
