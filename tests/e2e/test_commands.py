"""What operators ask from the command line, against the running federation. Before test_federation, which ends it."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout

import pytest

from e2e.conftest import TASKS
from triskele import cli
from triskele_server.local_federation import LocalFederation

pytestmark = pytest.mark.timeout(240)


def triskele(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The command as its process would run it, but in this one: torch need not be imported for each."""
    out, error = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(error):
        patch.setenv("COLUMNS", "200")
        code = cli.main(arguments)
    return subprocess.CompletedProcess(arguments, code, out.getvalue(), error.getvalue())


@pytest.fixture(scope="module")
def operator(federation: LocalFederation) -> str:
    assert federation.made.operator is not None
    return str(federation.made.operator)


def test_status_shows_every_server_and_task(operator: str) -> None:
    done = triskele("status", "--config", operator, "--json")
    assert done.returncode == 0, done.stderr
    status = json.loads(done.stdout)
    assert [(s["name"], s["up"]) for s in status["servers"]] == [
        ("coordinator", True), ("party 0", True), ("party 1", True), ("party 2", True),
    ]  # fmt: skip
    assert all(abs(s["clock_ahead"]) < 5 and s["version"] for s in status["servers"])
    assert {t["name"] for t in status["tasks"]} == {task.spec.name for task in TASKS}
    krum = next(t for t in status["tasks"] if t["name"] == "krum")
    assert (krum["rule"], krum["rounds"]) == ("multi-krum", 2)


def test_status_on_a_terminal_names_tasks_and_top_ends_after_its_looks(operator: str) -> None:
    command = [sys.executable, "-m", "triskele", "status", "--config", operator]
    wide = os.environ | {"COLUMNS": "200"}
    shown = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, env=wide)
    assert (shown.returncode, "weighted" in shown.stdout, "party 2" in shown.stdout) == (0, True, True)
    live = triskele("top", "--config", operator, "--count", "1")
    assert (live.returncode, "weighted" in live.stdout, "Ctrl-C" in live.stdout) == (0, True, True)
    looks = triskele("top", "--config", operator, "--count", "2", "--seconds", "0.2", "--json").stdout.splitlines()
    assert [json.loads(look)["well"] for look in looks] == [True, True]


def test_a_running_federation_passes_preflight(federation: LocalFederation) -> None:
    made = federation.made
    for config in (made.coordinator, made.parties[1], next(iter(made.participants.values()))):
        done = triskele("preflight", "--config", str(config), "--json")
        report = json.loads(done.stdout)
        assert (done.returncode, report["worst"]) == (0, "ok"), report


def test_task_files_are_checked_shown_and_written(federation: LocalFederation, tmp_path) -> None:
    folder = federation.made.coordinator.parent / "tasks"
    shown = json.loads(triskele("task", "show", str(folder / "krum.toml"), "--json").stdout)["tasks"][0]
    assert shown["digest"] == next(t.spec.digest.hex() for t in TASKS if t.spec.name == "krum")
    assert shown["opens"] == ["valid", "enough_accepted", "accepted", "masked_aggregate"]
    options = ["--coordinator", str(federation.made.coordinator), "--clip-norm", "1", "--rounds", "2", "--quorum", "3"]
    made = triskele("task", "create", "new", *options, "--dimension", "10", "--json")
    try:
        assert made.returncode == 0, made.stderr
        assert json.loads(made.stdout)["rule"] == ["flame"]
        assert triskele("task", "validate", str(folder / "new.toml")).returncode == 0
        again = triskele("task", "create", "new", *options, "--dimension", "10")
        assert (again.returncode, "cannot be written" in again.stderr) == (2, True)
    finally:
        (folder / "new.toml").unlink(missing_ok=True)
    wrong = tmp_path / "wrong.toml"
    wrong.write_text((folder / "krum.toml").read_text().replace("num_nodes_to_select = 3", "num_nodes_to_select = 0"))
    refused = triskele("task", "validate", str(wrong))
    assert (refused.returncode, "num_nodes_to_select" in refused.stderr) == (2, True)
