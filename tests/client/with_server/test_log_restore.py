"""A coordinator's database that was put back gets the entries that it lost from a saved log, and from no other one."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from client.transparency.logs import a_round, cosigned, history, log_of
from client.transparency.rounds import SIGNERS, TASK, digest, enveloped, failed, party_keys
from triskele.errors import Conflict, PartyFault
from triskele.ids import PARTIES, RoundNumber
from triskele.transparency.party_keys import key_file
from triskele.transparency.saved_log import SavedLog
from triskele_server.coordinator.claim import claimed
from triskele_server.coordinator.log import Log
from triskele_server.coordinator.log_restore import restore
from triskele_server.coordinator.rounds import RoundId
from triskele_server.coordinator.store import Store
from triskele_server.provision import provision

KEYS = party_keys()
Database = Callable[[SavedLog], Store]


def fill(store: Store, log: SavedLog) -> None:
    held = Log(store, "demo")
    for number, envelope in enumerate(log.envelopes, 1):
        held.append(RoundId(TASK.digest, RoundNumber(number)), envelope)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    """A store with these entries."""
    stores = []

    def make(log: SavedLog) -> Store:
        stores.append(Store(f"sqlite:///{tmp_path / f'{len(stores)}.db'}"))
        fill(stores[-1], log)
        return stores[-1]

    yield make
    for store in stores:
        store.close()


def test_what_was_lost_comes_back_and_the_log_is_the_old_one(database: Database) -> None:
    whole = history(6)
    store = database(SavedLog(whole.envelopes[:4], b""))
    assert restore(store, "demo", whole, KEYS) == 2
    log = Log(store, "demo")
    assert tuple(entry.envelope for entry in log.entries(0, 6)) == whole.envelopes
    assert log.checkpoint() == whole.checkpoint
    assert restore(store, "demo", whole, KEYS) == 0
    assert log.proof(5).checkpoint == whole.checkpoint


def test_a_log_that_is_not_sound_is_not_taken(database: Database) -> None:
    whole = history(6)
    store = database(SavedLog(whole.envelopes[:4], b""))
    unsound = (
        replace(whole, envelopes=whole.envelopes[:5]),
        replace(whole, checkpoint=history(5).checkpoint),
        cosigned(whole.envelopes, signers=(0, 1)),
        cosigned([*whole.envelopes, enveloped(failed(number=7).statement, SIGNERS[:1])]),
        cosigned([*whole.envelopes, whole.envelopes[0]]),
        cosigned(whole.envelopes, federation="other"),
    )
    for saved in unsound:
        with pytest.raises(PartyFault, match="not sound"):
            restore(store, "demo", saved, KEYS)
    assert Log(store, "demo").size == 4


def test_another_log_or_a_shorter_one_is_not_taken(database: Database) -> None:
    whole = history(4)
    store = database(whole)
    other = log_of(a_round(1), a_round(2, coin=digest("another")), failed(number=3), a_round(4), a_round(5))
    with pytest.raises(Conflict, match=r"entry 1 of the saved log is another.*two logs"):
        restore(store, "demo", other, KEYS)
    with pytest.raises(Conflict, match="has 3 entries, the database 4"):
        restore(store, "demo", history(3), KEYS)
    assert tuple(entry.envelope for entry in Log(store, "demo").entries(0, 9)) == whole.envelopes


def test_an_operator_runs_it_while_no_coordinator_does(tmp_path: Path) -> None:
    made = provision(tmp_path / "demo", participants=2)
    data = tmp_path / "demo" / "coordinator" / "data"
    data.mkdir(parents=True, exist_ok=True)
    url = f"sqlite:///{data / 'coordinator.db'}"
    whole, keys = history(3), tmp_path / "keys"
    keys.mkdir()
    for party in PARTIES:
        pem = SIGNERS[party].public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        (keys / key_file(party)).write_bytes(pem)
    whole.write(tmp_path / "log.jsonl")
    with closing(Store(url)) as store:
        fill(store, SavedLog(whole.envelopes[:1], b""))
    command = [sys.executable, "-m", "triskele_server.coordinator.log_restore", str(tmp_path / "log.jsonl")]
    command += ["--config", str(made.coordinator), "--keys", str(keys)]
    with claimed(url):
        refused = subprocess.run(command, capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert "another coordinator uses this database" in refused.stderr
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {"added": 2}
