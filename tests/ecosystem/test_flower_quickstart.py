"""Flower's own quickstart app, as `flwr new` wrote it, with the lines of our README and no others.

Flower 1.24 is the last release whose package holds the templates of `flwr new`; since then they come from Flower's hub.
They are taken from that package when the test runs (make flower), and the apps run on the Flower that we support.
"""

from __future__ import annotations

import re
import string
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from triskele.task import TaskSpec
from triskele_server.config import Schedule, ScheduledTask
from triskele_server.local_federation import LocalFederation

from .flower_run import APPS, FlowerRun, run_flower

pytestmark = [pytest.mark.own_environment, pytest.mark.timeout(300)]

WHEEL = "flwr==1.24.0 --hash=sha256:6331df132d5d9b488dd5276cfff92f61e7217eea566815b3f0b16bf132dc0909"
FRAMEWORKS = ("huggingface", "jax", "mlx", "numpy", "pytorch", "sklearn", "tensorflow")  # all that average arrays
CLIENTS, ROUNDS, CLIP_NORM = 8, 2, 2.0
TASK = TaskSpec("quickstart", 1, CLIP_NORM, rule="mean", max_participants=CLIENTS)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Change:
    """What the README says of one file: the lines that go and come."""

    file: str
    removed: tuple[str, ...]
    added: tuple[str, ...]


def changes() -> list[Change]:
    """The second diff of the README."""
    shown = (APPS / "README.md").read_text("utf-8").split("```diff\n")[2].split("```")[0]
    found = []
    for part in re.findall(r"^([a-z_/]+\.\w+)\n((?:[+-].*\n)+)", shown, re.MULTILINE):
        lines = {sign: tuple(x[1:] for x in part[1].splitlines() if x[0] == sign) for sign in "+-"}
        found.append(Change(part[0], lines["-"], lines["+"]))
    return found


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    (folder / "requirements.txt").write_text(WHEEL + "\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder)]
    subprocess.run([*command, "--requirement", str(folder / "requirements.txt")], check=True, timeout=120)
    return zipfile.ZipFile(next(folder.glob("*.whl")))


def new(package: zipfile.ZipFile, framework: str, folder: Path) -> Path:
    """What `flwr new quickstart --framework … --username you` wrote."""
    words = {
        "project_name": "quickstart", "package_name": "quickstart", "import_name": "quickstart", "username": "you",
        "framework_str": framework,
    }  # fmt: skip
    (folder / "quickstart").mkdir(parents=True)
    sources = {f"quickstart/{name}_app.py": f"code/{name}.{framework}.py" for name in ("client", "server")}
    sources |= {"quickstart/task.py": f"code/task.{framework}.py", "quickstart/__init__.py": "code/__init__.py"}
    for target, source in (sources | {"pyproject.toml": f"pyproject.{framework}.toml"}).items():
        text = package.read(f"flwr/cli/new/templates/app/{source}.tpl").decode()
        (folder / target).write_text(string.Template(text).safe_substitute(words))
    return folder


def change(app: Path) -> None:
    """Do what the README says. Every line that goes stands there once; options that it gives FedAvg stay."""
    for each in changes():
        text = (app / each.file).read_text()
        more = len(each.added) - len(each.removed)  # lines that only come, before those that take another's place
        for old, added in zip(each.removed, each.added[more:], strict=True):
            call = old.removesuffix(")")
            assert text.count(call) == 1, old
            text = text.replace(old, added) if old in text else text.replace(call, f"{added.removesuffix(')')}, ")
        place = "[tool.flwr.app.config]\n" if each.file == "pyproject.toml" else "from flwr.app import"
        for line in each.added[:more]:
            text = text.replace(place, f"{place}{line}\n" if place.endswith("\n") else f"{line}\n{place}", 1)
        (app / each.file).write_text(text)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_the_lines_fit_the_quickstart_of_every_framework(package, framework, tmp_path) -> None:
    app = new(package, framework, tmp_path / "app")
    before = {path.name: path.read_text() for path in app.rglob("*.py")}
    change(app)
    after = {path.name: path.read_text() for path in app.rglob("*.py")}
    assert {name for name in after if after[name] != before[name]} == {"client_app.py", "server_app.py"}
    for name, text in after.items():
        compile(text, name, "exec")
    assert "FedAvg" not in after["server_app.py"].replace("# Initialize FedAvg", "").replace("run FedAvg", "")


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalFederation]:
    schedule = Schedule(rounds=ROUNDS, quorum=CLIENTS, deadline_seconds=120.0, grace_seconds=0.1)
    directory = tmp_path_factory.mktemp("quickstart") / "federation"
    tasks = [ScheduledTask(TASK, schedule)]
    with LocalFederation.create(directory, participants=CLIENTS, tasks=tasks, reader=True) as running:
        yield running


def numbers_sent(run: FlowerRun, file: str, models: np.ndarray) -> int:
    """How many of the clients' models (one float64 each) stand in what was recorded."""
    return sum(value.tobytes() in run.bytes_of(file) for value in models)


def models(run: FlowerRun, number: int) -> np.ndarray:
    arrays = np.load(run.out / "learnt.npz")
    return np.stack([arrays[f"{number}-{client}-new"][0] for client in range(CLIENTS)])


def test_flowers_quickstart_runs_with_the_lines_and_sends_no_model(package, federation, tmp_path) -> None:
    app = new(package, "numpy", tmp_path / "plain")
    plain = run_flower(tmp_path / "plain-out", str(app), {"num-server-rounds": ROUNDS})
    assert numbers_sent(plain, "wire-up.bin", models(plain, 1)) == CLIENTS  # the control
    app = new(package, "numpy", tmp_path / "secured")
    change(app)
    for file in (app / "quickstart" / "server_app.py", app / "pyproject.toml"):
        file.write_text(file.read_text().replace("federation/", f"{federation.made.directory}/"))
    run = run_flower(tmp_path / "secured-out", str(app), {"num-server-rounds": ROUNDS})
    assert run.result["failures"] == {}
    for number in range(1, ROUNDS + 1):
        assert numbers_sent(run, "wire-up.bin", models(run, number)) == 0
        assert numbers_sent(run, "server.bin", models(run, number)) == 0
    assert run.model[0] == pytest.approx(models(run, ROUNDS).mean(), abs=1e-4)  # as FedAvg, of all eight
