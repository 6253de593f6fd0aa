"""The log in the coordinator's database: what was appended once stays where it is, and every proof of it holds."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import event

from triskele.errors import Conflict, NotFound, PartyFault
from triskele.ids import PARTIES, RoundNumber, TaskDigest
from triskele.transparency import checkpoint
from triskele.transparency.checkpoint import Checkpoint
from triskele.transparency.merkle import check_consistency, check_inclusion, leaf_hash, tree_head
from triskele_server.coordinator.log import Log
from triskele_server.coordinator.rounds import RoundId
from triskele_server.coordinator.store import Store

TASK = TaskDigest(b"t" * 32)
KEYS = [Ed25519PrivateKey.from_private_bytes(bytes([i]) * 32) for i in PARTIES]


def envelope(statement: str, signatures: int = 3) -> bytes:
    content = {
        "payload": base64.b64encode(statement.encode()).decode(),
        "payloadType": "application/vnd.in-toto+json",
        "signatures": [{"keyid": str(i), "sig": ""} for i in range(signatures)],
    }
    return json.dumps(content).encode()


def round_(number: int, task: TaskDigest = TASK) -> RoundId:
    return RoundId(task, RoundNumber(number))


def filled(log: Log, count: int) -> list[bytes]:
    statements = [f"statement {i}" for i in range(1, count + 1)]
    assert [log.append(round_(i), envelope(s)) for i, s in enumerate(statements, 1)] == list(range(count))
    return [s.encode() for s in statements]


def cosigned(log: Log, parties: int = 3) -> Checkpoint:
    head = log.head()
    lines = [
        checkpoint.signature_line(
            checkpoint.cosign(head, KEYS[p], 1_700_000_000), checkpoint.cosigner("demo", p), KEYS[p].public_key()
        )
        for p in PARTIES[:parties]
    ]
    log.cosigned(head, lines)
    return head


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    made = Store(url)
    yield made
    made.close()


@pytest.fixture
def log(store: Store) -> Log:
    return Log(store, "demo")


def test_every_entry_is_proved_under_the_cosigned_checkpoint(log: Log) -> None:
    statements = filled(log, 11)
    head = cosigned(log)
    assert head == Checkpoint("demo/rounds", 11, tree_head(statements))
    for index, statement in enumerate(statements):
        proof = log.proof(index)
        assert (proof.index, checkpoint.unverified(proof.checkpoint)) == (index, head)
        check_inclusion(leaf_hash(statement), index, 11, proof.hashes, head.root)


def test_the_log_is_the_same_in_a_new_process(log: Log, url: str) -> None:
    statements = filled(log, 6)
    head = cosigned(log)
    other = Store(url)
    try:
        again = Log(other, "demo")
        assert again.head() == log.head() == head
        assert again.checkpoint() == log.checkpoint()
        assert again.proof(2) == log.proof(2)
        assert [e.id.number for e in again.entries(0, 6)] == [1, 2, 3, 4, 5, 6]
        assert [json.loads(e.envelope)["payload"] for e in again.entries(2, 4)] == [
            base64.b64encode(s).decode() for s in statements[2:4]
        ]
    finally:
        other.close()


def test_the_log_only_grows(log: Log) -> None:
    filled(log, 5)
    old = log.head()
    for number in range(6, 12):
        log.append(round_(number), envelope(f"statement {number}"))
        new = log.head()
        check_consistency(old.size, new.size, log.growth(old.size, new.size), old.root, new.root)


def test_a_round_that_is_closed_again_keeps_its_index(log: Log) -> None:
    filled(log, 4)
    head = log.head()
    assert log.append(round_(2), envelope("statement 2")) == 1
    assert log.head() == head


def test_a_second_statement_about_a_round_is_refused_and_changes_nothing(log: Log) -> None:
    filled(log, 4)
    head = log.head()
    with pytest.raises(Conflict, match="entry 1 of the log is another statement about round 2"):
        log.append(round_(2), envelope("another statement"))
    assert log.head() == head
    assert log.entry(round_(2)).envelope == envelope("statement 2")


def test_an_envelope_with_more_signatures_takes_the_place_of_one_with_fewer(log: Log) -> None:
    log.append(round_(1), envelope("statement 1", signatures=2))
    head = log.head()
    assert log.append(round_(1), envelope("statement 1", signatures=3)) == 0
    assert log.append(round_(1), envelope("statement 1", signatures=2)) == 0
    assert log.entry(round_(1)).envelope == envelope("statement 1", signatures=3)
    assert log.head() == head  # the leaf is the statement alone


def test_rounds_of_all_tasks_are_in_one_log(log: Log) -> None:
    other = TaskDigest(b"u" * 32)
    assert [log.append(round_(1), envelope("a")), log.append(round_(1, other), envelope("b"))] == [0, 1]
    assert (log.entry(round_(1)).index, log.entry(round_(1, other)).index) == (0, 1)


def test_an_append_whose_answer_was_lost_is_found_again(log: Log, store: Store) -> None:
    filled(log, 3)
    store.put_log_entry(round_(4), leaf_hash(b"statement 4"), 3, envelope("statement 4"))  # the tree does not know
    assert log.append(round_(4), envelope("statement 4")) == 3
    assert log.append(round_(5), envelope("statement 5")) == 4
    assert log.head().root == tree_head(f"statement {i}".encode() for i in range(1, 6))


def test_what_is_not_cosigned_has_no_proof_yet(log: Log) -> None:
    with pytest.raises(NotFound):
        log.head()
    filled(log, 3)
    assert log.checkpoint() is None
    with pytest.raises(NotFound, match="have not cosigned"):
        log.proof(0)
    cosigned(log)
    log.append(round_(4), envelope("statement 4"))
    with pytest.raises(NotFound, match="have not cosigned"):
        log.proof(3)
    assert checkpoint.unverified(log.proof(0).checkpoint).size == 3
    with pytest.raises(NotFound, match="no entry of round 9"):
        log.entry(round_(9))


def test_a_checkpoint_of_all_three_goes_before_a_newer_one_of_two(log: Log) -> None:
    filled(log, 3)
    cosigned(log)
    log.append(round_(4), envelope("statement 4"))
    cosigned(log, parties=2)
    assert [checkpoint.unverified(log.checkpoint(n) or b"").size for n in (3, 2)] == [3, 4]
    assert [checkpoint.unverified(log.proof(index).checkpoint).size for index in (0, 2, 3)] == [3, 3, 4]
    cosigned(log)
    assert checkpoint.unverified(log.proof(0).checkpoint).size == 4
    three = log.checkpoint()
    cosigned(log, parties=2)  # a late answer takes nothing away
    assert log.checkpoint(2) == three


@pytest.mark.parametrize(
    "data", [b"", b"{}", b"[]", b"null", b'{"payload": 1, "signatures": []}', b"\xff", b"[" * 10**5]
)
def test_what_is_no_envelope_is_not_appended(log: Log, data: bytes) -> None:
    with pytest.raises(PartyFault, match="no DSSE envelope"):
        log.append(round_(1), data)
    assert log.size == 0


def test_appending_and_proving_read_few_rows(log: Log, store: Store) -> None:
    filled(log, 40)
    cosigned(log)
    read = rows_read(store)
    log.append(round_(41), envelope("statement 41"))
    log.head()
    log.growth(40, 41)
    cosigned(log)
    log.proof(17)
    assert read() <= 12


def rows_read(store: Store) -> Callable[[], int]:
    """Counts the statements from now on; none of them reads more than a few rows."""
    statements: list[str] = []

    @event.listens_for(store._engine, "after_cursor_execute")
    def after(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        statements.append(statement)

    return lambda: len([s for s in statements if "SELECT" in s or "INSERT" in s])
