"""The store tells the truth after a kill -9, and one folder belongs to one process."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading

import pytest

from triskele.errors import ConfigurationError, Conflict, InvalidTask, NotFound, Unavailable, WrongState
from triskele.ids import ParticipantId, ShareIndex, Slot
from triskele.manifest import ManifestDigest
from triskele_server.party.job import RoundOutcome
from triskele_server.party.records import Blame, Submission
from triskele_server.party.share_files import RoundKey, ShareFiles
from triskele_server.party.store import PartyStore
from triskele_server.round_state import RoundEvent, RoundState

KEY = RoundKey(b"\7" * 32, 1)


def _submission(name="alice", slot=0, digest=b"\1" * 32) -> Submission:
    return Submission(Slot(slot), ParticipantId(name), ManifestDigest(digest))


@pytest.fixture
def store(tmp_path):
    opened = PartyStore(tmp_path)
    yield opened
    opened.close()


@pytest.fixture
def open_round(store):
    store.open_round(KEY, b"task")
    return store


def _complete(store, *submissions):
    for submission in submissions:
        store.reserve(KEY, submission, ShareIndex(submission.slot % 3))
        store.complete(KEY, submission.participant, 8)


def test_second_process_on_the_same_folder_is_refused(tmp_path, store):
    code = (
        "import pathlib, sys; from triskele_server.party.store import PartyStore; PartyStore(pathlib.Path(sys.argv[1]))"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode != 0
    assert "another party process" in done.stderr
    with pytest.raises(ConfigurationError, match="another party process"):
        PartyStore(tmp_path)
    store.close()
    store.close()
    with pytest.raises(Unavailable, match="stopping"):
        store.rounds()
    PartyStore(tmp_path).close()


@pytest.fixture
def store_of_other_version(tmp_path):
    PartyStore(tmp_path).close()
    with sqlite3.connect(tmp_path / "party.db") as connection:
        connection.execute("PRAGMA user_version=99")
    connection.close()
    return tmp_path


def test_data_of_another_version_is_refused_and_the_folder_is_let_go(store_of_other_version):
    for _ in range(2):
        with pytest.raises(ConfigurationError, match="schema 99"):
            PartyStore(store_of_other_version)


def test_commits_are_synchronous(store):
    with store._transaction() as transaction:
        assert transaction.exec_driver_sql("PRAGMA synchronous").scalar_one() == 2  # FULL
        assert transaction.exec_driver_sql("PRAGMA journal_mode").scalar_one() == "wal"
        assert transaction.exec_driver_sql("PRAGMA foreign_keys").scalar_one() == 1


@pytest.mark.parametrize(("digest", "number"), [(b"", 1), (b"\1" * 31, 1), (b"\1" * 32, 0), (b"\1" * 32, 1 << 63)])
def test_key_that_names_no_round_cannot_be_made(digest, number):
    with pytest.raises(InvalidTask):
        RoundKey(digest, number)


def test_everything_is_there_after_closing_and_opening_again(tmp_path, attested):
    first = PartyStore(tmp_path)
    first.open_round(KEY, b"task")
    _complete(first, _submission("alice"), _submission("bob", 1))
    first.reserve(KEY, _submission("carol", 2), ShareIndex(2))
    first.commit_offset(KEY, ParticipantId("carol"), 4096)
    first.seal(KEY, [_submission("alice"), _submission("bob", 1)])
    assert first.start_attempt(KEY, 1)
    outcome = RoundOutcome(b"\5" * 32, (1 << 64) - 1, 20, ((Slot(1), "norm"),), (Slot(0),), ("y[3]",), attested())
    first.combined(KEY, outcome)
    other = RoundKey(b"\7" * 32, 2)
    first.open_round(other, b"task")
    first.end(other, RoundEvent.FAIL, Blame("reason", "party:1", "detail"))
    rounds, uploads = first.rounds(), first.uploads(KEY)
    first.close()
    second = PartyStore(tmp_path)
    try:
        assert second.rounds() == rounds
        assert second.uploads(KEY) == uploads
        assert second.round(KEY).outcome == outcome
        assert second.round(other).blame == Blame("reason", "party:1", "detail")
    finally:
        second.close()
    assert [(u.participant, u.committed, u.complete, u.sealed) for u in uploads] == [
        ("alice", 8, True, True),
        ("bob", 8, True, True),
        ("carol", 4096, False, False),
    ]


def test_hidden_decisions_stay_hidden(open_round, attested):
    _complete(open_round, _submission())
    open_round.seal(KEY, [_submission()])
    outcome = RoundOutcome(b"\5" * 32, 3, 0, (), None, (), attested())
    assert open_round.combined(KEY, outcome).outcome == outcome


def test_unknown_round_is_not_found(store):
    for call in (
        lambda: store.round(KEY),
        lambda: store.reserve(KEY, _submission(), ShareIndex(0)),
        lambda: store.seal(KEY, []),
        lambda: store.start_attempt(KEY, 1),
        lambda: store.end(KEY, RoundEvent.FAIL, None),
    ):
        with pytest.raises(NotFound):
            call()


def test_same_reservation_is_found_again_and_others_are_conflicts(open_round):
    first = open_round.reserve(KEY, _submission(), ShareIndex(0))
    open_round.commit_offset(KEY, ParticipantId("alice"), 16)
    again = open_round.reserve(KEY, _submission(), ShareIndex(0))
    assert (first.committed, again.committed) == (0, 16)
    with pytest.raises(Conflict, match="another manifest"):
        open_round.reserve(KEY, _submission(digest=b"\2" * 32), ShareIndex(0))
    assert open_round.reserve(KEY, _submission("bob", 0), ShareIndex(0)).committed == 0


def test_complete_upload_cannot_be_discarded_or_set_back_by_a_late_stream(open_round):
    _complete(open_round, _submission())
    open_round.discard(KEY, ParticipantId("alice"))
    open_round.commit_offset(KEY, ParticipantId("alice"), 1)
    upload = open_round.upload(KEY, ParticipantId("alice"))
    assert (upload.complete, upload.committed) == (True, 8)


def test_one_attempt_is_given_out_once_even_to_two_callers_at_once(open_round):
    _complete(open_round, _submission())
    open_round.seal(KEY, [_submission()])
    given = []
    threads = [threading.Thread(target=lambda: given.append(open_round.start_attempt(KEY, 1))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(given) == [*[False] * 7, True]
    assert not open_round.start_attempt(KEY, 1)
    assert open_round.start_attempt(KEY, 2)


def test_upload_that_becomes_complete_after_sealing_does_not_count(open_round):
    _complete(open_round, _submission())
    late = _submission("bob", 1)
    open_round.reserve(KEY, late, ShareIndex(1))
    open_round.seal(KEY, [_submission()])
    with pytest.raises(WrongState):
        open_round.complete(KEY, late.participant, 8)
    assert not open_round.upload(KEY, late.participant).complete


def test_ended_round_stays_as_it_ended(open_round):
    first = open_round.end(KEY, RoundEvent.FAIL, Blame("a", "b"))
    assert first.state is RoundState.FAILED
    assert open_round.end(KEY, RoundEvent.EXPIRE, Blame("c", "d")) == first
    assert open_round.open_round(KEY, b"task") == first


def test_folders_of_one_round_are_deleted_and_those_of_another_stay(tmp_path):
    files = ShareFiles(tmp_path)
    other = RoundKey(KEY.task, 2)
    for key in (KEY, other):
        files.make_folder(key)
        files.write_seeds(key, ParticipantId("alice"), {ShareIndex(1): b"\1" * 16})
    files.delete(KEY)
    files.delete(KEY)
    assert not files.folder(KEY).exists()
    assert files.share(other, ParticipantId("alice"), ShareIndex(1), seed=True).read_bytes() == b"\1" * 16


KILLED = """
    import os, signal, sys
    from pathlib import Path
    from triskele.manifest import ManifestDigest
    from triskele_server.party import upload
    from triskele_server.party.records import Submission
    from triskele_server.party.share_files import RoundKey, ShareFiles
    from triskele_server.party.store import PartyStore

    upload.COMMIT_EVERY_BYTES = 4096
    data = Path(sys.argv[1])
    store, files = PartyStore(data), ShareFiles(data)
    key = RoundKey(b"\\7" * 32, 1)
    store.open_round(key, b"task")
    begun = store.reserve(key, Submission(0, "alice", ManifestDigest(b"\\1" * 32)), 0)
    session = upload.UploadSession(
        store, files, key=key, upload=begun, length=4096, commitments=(b"", b"", b""), salts={0: b"s" * 16}, seeds={}
    )
    for offset in range(0, 11 * 1024, 1024):
        session.write(offset, b"\\3" * 1024)
        if session.commit_due:
            session.commit()
    print(files.share(key, "alice", 0, seed=False).stat().st_size, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_after_kill_minus_9_only_what_was_committed_counts_and_the_rest_is_cut_off(tmp_path):
    script = textwrap.dedent(KILLED)
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert int(done.stdout) == 11 * 1024  # the file was longer than what the store had been told
    store, files = PartyStore(tmp_path), ShareFiles(tmp_path)
    try:
        upload = store.upload(KEY, ParticipantId("alice"))
        assert (upload.committed, upload.complete) == (8192, False)
        path = files.share(KEY, ParticipantId("alice"), ShareIndex(0), seed=False)
        assert path.stat().st_size >= upload.committed
        words = files.open_words(KEY, ParticipantId("alice"), ShareIndex(0), upload.committed)
        assert path.stat().st_size == 8192
        words.close()
    finally:
        store.close()
