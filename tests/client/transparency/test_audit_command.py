"""`triskele audit` as an auditor meets it: a file, three public keys, nobody else."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from triskele.cli import main
from triskele.ids import PARTIES
from triskele.transparency.party_keys import key_file
from triskele.transparency.saved_log import SavedLog

from .logs import cosigned, history
from .rounds import SIGNERS


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A sound log and the keys, side by side."""
    (tmp_path / "keys").mkdir()
    for party in PARTIES:
        pem = SIGNERS[party].public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        (tmp_path / "keys" / key_file(party)).write_bytes(pem)
    history().write(tmp_path / "log.jsonl")
    return tmp_path


def audited(folder: Path, *more: str, log: str = "log.jsonl") -> int:
    return main(["audit", str(folder / log), "--keys", str(folder / "keys"), *more])


def test_a_sound_log_is_sound_and_the_report_is_written(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert audited(folder, "--html", str(folder / "report.html")) == 0
    printed = capsys.readouterr()
    assert "sound 4 entries, cosigned by parties 0, 1, 2" in printed.out
    assert "task faces: 4 rounds, 3 released, 1 failed; 6 submissions refused" in printed.out
    assert printed.err == ""
    assert (folder / "report.html").read_text("utf-8").startswith("<!DOCTYPE html>")


def test_json_for_a_pipeline(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert audited(folder, "--json", "--task", "faces") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["clean"], found["entries"], found["federation"]) == (True, 4, "demo")
    assert [each["state"] for each in found["tasks"][0]["rounds"]] == ["RELEASED", "RELEASED", "FAILED", "RELEASED"]


def test_a_log_with_findings_ends_with_status_1_and_names_them(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = history()
    replace(log, envelopes=(log.envelopes[0], *log.envelopes[2:])).write(folder / "dropped.jsonl")
    report = folder / "report.html"
    assert audited(folder, "--html", str(report), log="dropped.jsonl") == 1
    printed = capsys.readouterr()
    assert "wrong the log: 3 entries are here, but the parties cosigned 4" in printed.out
    assert (
        "wrong entry 1: task 'faces' goes on with round 3, and round 2 is missing before it (coordinator)"
        in printed.out
    )
    assert "sound" not in printed.out
    assert "2 findings" in printed.err
    assert "2 findings." in report.read_text("utf-8")
    assert audited(folder, "--json", log="dropped.jsonl") == 1
    assert json.loads(capsys.readouterr().out)["clean"] is False


def test_two_signatures_are_enough_only_where_one_says_so(folder: Path) -> None:
    cosigned(history().envelopes, signers=(0, 2)).write(folder / "log.jsonl")
    assert audited(folder) == 1
    assert audited(folder, "--signatures", "2") == 0
    assert audited(folder, "--signatures", "1") == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["audit"], "give --keys"),
        (["audit", "--keys", "keys"], "give a saved log"),
        (["audit", "log.jsonl", "--keys", "keys", "--save", "x"], "--save is for the coordinator's log"),
        (["audit", "nothing.jsonl", "--keys", "keys"], "cannot be read"),
        (["audit", "log.jsonl", "--keys", "."], "party-0.pub"),
        (["audit", "log.jsonl", "--keys", "keys", "--task", "voices"], "no task 'voices'"),
        (["audit", "log.jsonl", "--keys", "keys", "--html", "none/report.html"], "cannot be written"),
    ],
)
def test_what_is_missing_is_said(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(folder)
    assert main(arguments) == 2
    assert said in " ".join(capsys.readouterr().err.split())


def test_a_terminal_shows_hostile_words_as_text(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = history()
    note = log.checkpoint.replace(b"demo/rounds", b"demo[red]\x1b/rounds")
    SavedLog(log.envelopes, note).write(folder / "log.jsonl")
    assert audited(folder) == 1
    assert "\x1b" not in capsys.readouterr().out
