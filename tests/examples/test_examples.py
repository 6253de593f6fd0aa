"""Each example, its commands as its README states them, with the wheel and outside the checkout."""

from __future__ import annotations

import re
import signal
import subprocess
import time

import pytest

from .conftest import CHECKOUT, EXAMPLES, commands

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


@pytest.fixture
def quickstart(installation, copy_of):
    """The folder of the quickstart with `python federation.py` running in it; ends as Ctrl-C ends it."""
    folder = copy_of("quickstart")
    install, serve, *_ = commands(folder / "README.md")
    installation.run(install, folder)
    log = folder / "federation.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            serve.split(), cwd=folder, env=installation.environment, stdout=output, stderr=output
        )  # fmt: skip
    until = time.monotonic() + 120
    while b"ready" not in log.read_bytes():
        assert process.poll() is None, log.read_text(encoding="utf-8")
        assert time.monotonic() < until
        time.sleep(0.1)
    yield folder
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0
    assert not (folder / "federation").exists()


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
