"""Fixtures of the client's tests."""

import contextlib
from collections.abc import Iterator

import pytest

from triskele import Participant
from triskele.connection import RetryPolicy
from triskele.limits import Limits
from triskele.task import TaskSpec

from .certificates import Authority, write_participant
from .toy_federation import ToyFederation

QUICK = RetryPolicy(attempts=4, total=20.0, first_wait=0.02, longest_wait=0.2, jitter=0.02, outage_attempts=200)
SMALL = Limits(chunk_bytes=1024)


@pytest.fixture(scope="session")
def authority() -> Authority:
    return Authority()


@pytest.fixture
def spec() -> TaskSpec:
    return TaskSpec("faces", 1500, 4.0)


@pytest.fixture
def federation(spec, authority) -> Iterator[ToyFederation]:
    federation = ToyFederation(spec, authority)
    yield federation
    federation.close()


@pytest.fixture
def join(federation, authority, tmp_path) -> Iterator:
    """Make a participant of the federation by name; the same name again gives the same keys."""
    with contextlib.ExitStack() as stack:

        def make(name: str = "alice", limits: Limits = SMALL, *, relay: bool = True) -> Participant:
            config = tmp_path / name / "participant.toml"
            if not config.exists():
                write_participant(tmp_path / name, authority, name, federation.address)
            if not relay:
                config.write_text("relay = false\n" + config.read_text())
            return stack.enter_context(Participant.from_config(config, limits=limits, retries=QUICK))

        yield make
