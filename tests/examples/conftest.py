"""The wheel, built once from a copy of the sources, where it sees the dependencies but not the checkout.

Flower and NVFLARE have dependencies of their own: those of .venv-flower and .venv-nvflare, which `make test` makes.
"""

from __future__ import annotations

import fcntl
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]
EXAMPLES = CHECKOUT / "examples"
SOURCES = ("client", "server", "proto", "LICENSE", "README.md", "pyproject.toml")


@dataclass(frozen=True)
class Installation:
    """A virtual environment with the wheel in it."""

    root: Path

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.root / "bin" / "python"

    @property
    def environment(self) -> dict[str, str]:
        """Variables for a process that must see this installation only, and no network."""
        kept = {
            name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV", "PIP_"))
        }
        path = os.pathsep.join([str(self.root / "bin"), os.environ["PATH"]])
        offline = {"PIP_NO_INDEX": "1", "PIP_NO_BUILD_ISOLATION": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
        return {**kept, **offline, "PATH": path, "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "2"}

    def run(self, script: str, cwd: Path, *, timeout: float = 120) -> str:
        """What a shell script prints; it must succeed. What it started ends with it if it takes too long."""
        process = subprocess.Popen(
            ["bash", "-euc", script], cwd=cwd, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, start_new_session=True,
        )  # fmt: skip
        try:
            output, errors = process.communicate(timeout=timeout)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        assert process.returncode == 0, output + errors
        return output


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """A folder for all workers of this run together: the first that comes makes it, the others wait for it."""
    alone = "PYTEST_XDIST_WORKER" not in os.environ
    folder = (factory.getbasetemp() if alone else factory.getbasetemp().parent) / name
    with folder.with_suffix(".lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            folder.mkdir()
            try:
                make(folder)
            except BaseException:
                shutil.rmtree(folder)
                raise
    return folder


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel as `python -m build` makes it."""
    (made,) = (made_once(tmp_path_factory, "wheel", build_wheel) / "dist").glob("*.whl")
    return made


def build_wheel(root: Path) -> None:
    for name in SOURCES:
        source = CHECKOUT / name
        if source.is_dir():
            shutil.copytree(source, root / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        else:
            shutil.copy(source, root / name)
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", "dist", "."]
    subprocess.run(build, cwd=root, check=True, capture_output=True, timeout=120)


@pytest.fixture(scope="session")
def installation(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installation:
    """The wheel and nothing else in a new environment; the dependencies are looked up where the tests have theirs."""
    return installed(wheel, tmp_path_factory, "installation", Path(sysconfig.get_path("purelib")))


@pytest.fixture(scope="session")
def flower(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installation:
    """The wheel with Flower."""
    return installed(wheel, tmp_path_factory, "flower", dependencies_of(".venv-flower"))


@pytest.fixture(scope="session")
def nvflare(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installation:
    """The wheel with NVFLARE."""
    return installed(wheel, tmp_path_factory, "nvflare", dependencies_of(".venv-nvflare"))


def dependencies_of(environment: str) -> Path:
    made = list((CHECKOUT / environment).glob("lib/python*/site-packages"))
    assert made, f"make {environment}/installed"
    return made[0]


def installed(wheel: Path, factory: pytest.TempPathFactory, name: str, dependencies: Path) -> Installation:
    return Installation(made_once(factory, name, lambda root: install(wheel, root, dependencies)))


def install(wheel: Path, root: Path, dependencies: Path) -> None:
    """Put the wheel into a new environment that also sees the packages in a folder.

    A line in a .pth file shows that folder's packages, but does not follow the folder's own .pth files: an editable
    installation of the checkout stays invisible.
    """
    venv.create(root, with_pip=False)
    made = Installation(root)
    (packages,) = root.glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text(f"{dependencies}\n", encoding="utf-8")
    pip = [sys.executable, "-m", "pip", "--python", str(made.python)]
    command = [*pip, "install", "--quiet", "--no-deps", "--ignore-installed", str(wheel)]
    subprocess.run(command, check=True, capture_output=True, timeout=120, cwd=root, env=made.environment)
    script = root / "bin" / "pip"
    script.write_text(f'#!/bin/sh\nexec {shlex.join(pip)} "$@"\n', encoding="utf-8", newline="\n")
    script.chmod(0o755)


@pytest.fixture
def copy_of(tmp_path: Path):
    """Copy one example out of the checkout and give its folder."""

    def copied(name: str) -> Path:
        return Path(shutil.copytree(EXAMPLES / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__")))

    return copied


def commands(readme: Path) -> list[str]:
    """The shell blocks of a README, in order."""
    return re.findall(r"```sh\n(.*?)```", readme.read_text(encoding="utf-8"), re.DOTALL)


def files_in(wheel: Path) -> set[str]:
    """Names of the files in a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())
