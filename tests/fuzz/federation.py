"""One real federation for the attacks on its ports: four processes, shares encrypted at rest, logs at debug level."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from unittest import mock

from triskele.task import TaskSpec
from triskele_server.at_rest import STORE_KEY
from triskele_server.config import Schedule, ScheduledTask
from triskele_server.local_federation import COORDINATOR, PARTY_NAMES, LocalFederation

MEMBERS = 3
DIMENSION = 20_000  # a heavy share is three blocks at rest


def _scheduled(name: str) -> ScheduledTask:
    spec = TaskSpec(
        name, DIMENSION, 4.0, rule="norm-clip", decisions="hidden", max_weight=1000, max_participants=4, min_accepted=2
    )
    return ScheduledTask(spec, Schedule(rounds=1, quorum=MEMBERS, deadline_seconds=150.0, grace_seconds=0.2))


STORE_KEY_HEX = secrets.token_hex(32)  # the parties', as their operators wrote it down


@contextmanager
def running_federation(folder: Path, *tasks: str) -> Iterator[LocalFederation]:
    """The federation, with these tasks."""
    made = LocalFederation.create(
        folder, participants=MEMBERS, tasks=[_scheduled(name) for name in tasks], forwarder=True
    )
    with ExitStack() as running:
        with of_the_servers():
            running.enter_context(made)
        yield made


def of_the_servers() -> AbstractContextManager[object]:
    """The environment in which a process of the federation is to be started; other tests must not see it."""
    environment = {STORE_KEY: STORE_KEY_HEX, "TRISKELE_LOG_LEVEL": "debug", "GRPC_VERBOSITY": "DEBUG"}
    return mock.patch.dict(os.environ, environment)


def ports(federation: LocalFederation) -> dict[str, tuple[str, int]]:
    """Every open port: what it speaks ("grpc", "health" or "metrics") and its number, by "process/port"."""
    plans = {COORDINATOR: federation.ports.coordinator, **dict(zip(PARTY_NAMES, federation.ports.parties, strict=True))}
    found: dict[str, tuple[str, int]] = {}
    for name, plan in plans.items():
        found[f"{name}/listen"] = ("grpc", plan.listen)
        found[f"{name}/health"] = ("health", plan.health)
        found[f"{name}/metrics"] = ("metrics", plan.metrics)
        if plan.peer is not None:
            found[f"{name}/peer"] = ("grpc", plan.peer)
    return found


def logs(federation: LocalFederation) -> str:
    """All that the processes have said."""
    names = (COORDINATOR, *PARTY_NAMES)
    return "".join(federation.log(name).read_text("utf-8", "replace") for name in names)
