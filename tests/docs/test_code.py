"""The code that the documentation shows, run as it stands against a federation on this machine."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from triskele.task import TaskSpec
from triskele_server.config import Schedule, ScheduledTask
from triskele_server.local_federation import LocalFederation

DOCS = Path(__file__).parents[2] / "docs"
TUTORIAL = DOCS.parent / "examples" / "quickstart" / "federation.py"
WEIGHTED = {"network": (178, 1000)}  # dimension, max_weight
PLAIN = {"head": 34, "linear": 650, "faces": 40, "voices": 60}
IN_A_LOOP = ("pytorch.py", "head.py", "arrays.py", "two_tasks.py")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def _task(name: str, dimension: int, max_weight: int = 0) -> ScheduledTask:
    spec = TaskSpec(name, dimension, clip_norm=10.0, rule="mean", max_weight=max_weight)  # type: ignore[arg-type]
    return ScheduledTask(spec, Schedule(rounds=1, quorum=2, deadline_seconds=120, grace_seconds=0))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where the tutorial's federation runs, with tasks for the other pages beside its own."""
    root = tmp_path_factory.mktemp("tutorial")
    tasks = [
        *runpy.run_path(str(TUTORIAL))["TASKS"],
        *(_task(name, *numbers) for name, numbers in WEIGHTED.items()),
        *(_task(name, dimension) for name, dimension in PLAIN.items()),
    ]
    with LocalFederation.create(root / "federation", participants=5, tasks=tasks):
        yield root


def test_the_tutorials_update_is_submitted_and_the_poisoned_one_refused(folder):
    script = [sys.executable, str(DOCS / "tutorial" / "first_update.py")]
    done = subprocess.run(
        script, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=120, check=False
    )  # fmt: skip
    lines = re.findall(r"^p0(\d) round 1: (\w+), mean of the aggregate \+0\.1\d\d$", done.stdout, re.MULTILINE)
    assert [number for number, _ in lines] == list("01234"), done.stdout + done.stderr
    assert lines[4][1] == "refused"
    assert sum(verdict == "accepted" for _, verdict in lines) == 3


def test_the_loops_of_the_how_to_pages_run_for_two_participants_at_once(folder):
    run_all = f"import runpy\nfor name in {IN_A_LOOP}: runpy.run_path({str(DOCS / 'how-to')!r} + '/' + name)"
    running = [
        subprocess.Popen(
            [sys.executable, "-c", run_all],
            cwd=folder / "federation" / "participants" / name,
            env=ENVIRONMENT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for name in ("p00", "p01")
    ]
    for process in running:
        output, _ = process.communicate(timeout=150)
        assert process.returncode == 0, output
        assert "dimension of the task: 178" in output
        assert {"faces 1 (40,)", "voices 1 (60,)"} <= set(output.splitlines())


def test_hidden_decisions_open_what_the_page_says():
    runpy.run_path(str(DOCS / "how-to" / "hidden_decisions.py"))


def test_every_file_of_code_in_the_documentation_is_run_here():
    found = {path.name for part in ("how-to", "tutorial") for path in (DOCS / part).glob("*.py")}
    assert found == {*IN_A_LOOP, "hidden_decisions.py", "first_update.py"}
