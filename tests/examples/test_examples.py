"""Each example, its commands as its README states them, with the wheel and outside the checkout."""

from __future__ import annotations

import contextlib
import difflib
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ecosystem.flower_run import CLIENTS, HONEST, found, run_flower

from .conftest import CHECKOUT, EXAMPLES, Installation, commands

pytestmark = pytest.mark.timeout(300)


# First, because it compiles the kernels once for the processes of the others.
def test_faces_backdoor_works_on_the_average_and_not_on_triskele(installation, copy_of):
    folder = copy_of("faces")
    (script,) = commands(folder / "README.md")
    output = installation.run(script, folder, timeout=250)
    lines = re.findall(
        r"^(backdoor-\w+) +(plain|Triskele).* accuracy +([\d.]+)% +backdoor +([\d.]+)%", output, re.MULTILINE
    )
    measured = {(attack, name): (float(accuracy), float(backdoor)) for attack, name, accuracy, backdoor in lines}
    assert len(measured) == 4
    for attack in ("backdoor-boosted", "backdoor-projected"):
        assert measured[attack, "plain"][1] > 60
        accuracy, backdoor = measured[attack, "Triskele"]
        assert backdoor < 5
        assert accuracy > 75
    assert output.count("0.0 of 4 malicious") == 2


@contextlib.contextmanager
def serving(installation: Installation, folder: Path, command: str) -> Iterator[None]:
    """The example's federation in its folder, until it has ended as Ctrl-C ends it."""
    log = folder / "federation.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command.split(), cwd=folder, env=installation.environment, stdout=output, stderr=output
        )  # fmt: skip
    try:
        until = time.monotonic() + 120
        while b"ready" not in log.read_bytes():
            assert process.poll() is None, log.read_text(encoding="utf-8")
            assert time.monotonic() < until
            time.sleep(0.1)
        yield
    finally:
        process.send_signal(signal.SIGINT)
        ended = process.wait(60)
    assert ended == 0
    assert not (folder / "federation").exists()


@pytest.fixture
def quickstart(installation, copy_of):
    """The folder of the quickstart with `python federation.py` running in it."""
    folder = copy_of("quickstart")
    install, serve, *_ = commands(folder / "README.md")
    installation.run(install, folder)
    with serving(installation, folder, serve):
        yield folder


def last_line(output: str, participant: str) -> tuple[str, float]:
    """Verdict and accuracy in the last round."""
    found = re.findall(
        rf"^{participant} round 5: own update (\w+), accuracy of the model ([\d.]+)%$", output, re.MULTILINE
    )
    ((verdict, accuracy),) = found
    return verdict, float(accuracy)


def test_quickstart_trains_with_both_frameworks_and_refuses_the_poisoned(installation, quickstart):
    _, _, train, train_torch = commands(quickstart / "README.md")
    output = installation.run(train, quickstart)
    assert "p04 round 1: own update refused" in output
    assert last_line(output, "p04")[0] == "refused"
    assert last_line(output, "p00")[1] > 85
    assert output.count("accepted") >= 15
    output = installation.run(train_torch, quickstart)
    assert last_line(output, "p04")[0] == "refused"
    assert min(last_line(output, f"p0{i}")[1] for i in range(4)) > 78


def test_flower_app_secured_keeps_the_attackers_out_and_tells_the_server_no_model(installation, flower, copy_of):
    """One round each of the app as it is and secured, in Flower's simulation; `make flower` has the SuperLink."""
    folder = copy_of("flower")
    serve, install, _, _ = commands(folder / "README.md")
    flower.run(install, folder)
    one = {"num-server-rounds": 1}
    plain = run_flower(folder / "plain-out", folder / "plain", one, python=flower.python)
    with serving(installation, folder, serve):
        secured = run_flower(folder / "secured-out", folder / "secured", one, python=flower.python)
    assert plain.result["evaluate"]["1"]["accuracy"] < 0.3
    assert secured.result["evaluate"]["1"]["accuracy"] > 0.8
    assert secured.result["failures"] == {}
    _, new = plain.learnt(1)  # the first model is zero: what a client learns is its update too
    assert found(plain, "wire-up.bin", new) > 500  # the control
    assert len(secured.replies) == 2 * CLIENTS
    received, new = secured.learnt(1)
    assert len(new) == len(HONEST)
    for file in ("wire-up.bin", "server.bin"):
        assert found(secured, file, new - received) == 0
        assert found(secured, file, new) == 0


def test_flower_app_differs_from_the_plain_app_by_the_lines_that_its_readme_shows():
    def lines(app: str, name: str) -> list[str]:
        return (EXAMPLES / "flower" / app / name).read_text().splitlines()

    changed = []
    for name in ("digits/client_app.py", "digits/server_app.py", "digits/task.py", "pyproject.toml"):
        diff = difflib.unified_diff(lines("plain", name), lines("secured", name), lineterm="", n=0)
        changed += [line for line in diff if line[0] in "+-" and line[:3] not in ("+++", "---")]
    shown = (EXAMPLES / "flower" / "README.md").read_text().split("```diff\n")[1].split("```")[0].splitlines()
    assert [line for line in shown if line[:1] in ("+", "-")] == changed


def test_nvflare_job_secured_keeps_the_attacker_out_and_tells_the_server_no_update(installation, nvflare, copy_of):
    """The README's short run: three jobs of four sites and one round; `make nvflare` has eight, and the POC mode."""
    folder = copy_of("nvflare")
    install, run = commands(folder / "README.md")
    nvflare.run(install, folder)
    output = installation.run(run.replace("NVFLARE_PYTHON", str(nvflare.python)), folder, timeout=280)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in output.splitlines() if line[:2] == "| "]
    heading, *jobs = rows
    assert [job[0] for job in jobs] == ["FedAvg, nobody attacks", "FedAvg, 1 of 4 attack", "Triskele, 1 of 4 attack"]
    honest, ruined, secured = (dict(zip(heading, job, strict=True)) for job in jobs)
    assert float(honest["accuracy"]) > 0.75
    assert float(ruined["accuracy"]) < 0.3
    assert float(secured["accuracy"]) > 0.75
    assert [int(job["files with a first-round update"]) for job in (honest, ruined, secured)] == [4, 4, 0]
    assert "round 1 RELEASED: not in the aggregate: site-4" in output.splitlines()


def test_custom_rule_is_found_by_its_entry_point_and_runs(installation, copy_of):
    folder = copy_of("custom_rule")
    (script,) = commands(folder / "README.md")
    output = installation.run(script, folder)
    shown = re.search(r"```text\n(.*?)```", (folder / "README.md").read_text(encoding="utf-8"), re.DOTALL).group(1)
    assert output.endswith(shown)  # the rule's digest too


def test_custom_rule_is_the_one_of_the_documentation():
    source = (EXAMPLES / "custom_rule" / "my_rules.py").read_text(encoding="utf-8")
    assert f"```python\n{source}```" in (CHECKOUT / "docs" / "rules.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("example", ["quickstart", "faces", "custom_rule"])
def test_code_in_a_readme_is_code_of_the_example(example):
    text = (EXAMPLES / example / "README.md").read_text(encoding="utf-8")
    lines = {
        line.strip() for path in (EXAMPLES / example).glob("*.py") for line in path.read_text("utf-8").splitlines()
    }
    quoted = [
        line.strip() for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) for line in block.splitlines()
    ]
    missing = [line for line in quoted if line != "..." and not any(own.startswith(line) for own in lines)]
    assert missing == []
