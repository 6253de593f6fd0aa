"""docs/operations.md: every block of commands, in order, in a fresh clone, with stand-ins for what its title asks for.

`make operations` does the same with a `make setup` of the clone's own.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from stand_ins import REAL, STATE

from triskele import Participant
from triskele.ids import PARTIES
from triskele.task import TaskSpec
from triskele_server.config import Schedule
from triskele_server.local_federation import COORDINATOR, LocalFederation
from triskele_server.provision import PortPlan, Provisioned, write_task

pytestmark = pytest.mark.timeout(180)

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "operations.md"
TOOLS = Path(sys.executable).parent
STANDING_IN = Path(__file__).parent / "stand_ins.py"

CLUSTER = "needs a cluster"
ENGINE = "needs a container engine"
FEDERATION = "needs the running federation"
STOPPED = "needs the coordinator stopped"
STOOD_IN = {CLUSTER: ("kubectl", "helm"), ENGINE: ("docker",)}  # the other commands of such a block are the real ones
HEADING_OR_BLOCK = r'^(?:#{2,} (?P<heading>.+)|```sh(?: title="(?P<title>.+)")?\n(?P<text>(?:.*\n)*?)```)$'


@dataclass(frozen=True)
class Block:
    """Commands of the page: the line they stand at, the section, and the title, which says what more they need."""

    line: int
    section: str
    title: str
    text: str


def blocks(page: str) -> list[Block]:
    """All of them, in order."""
    found, section = [], ""
    for match in re.finditer(HEADING_OR_BLOCK, page, re.MULTILINE):
        if match["heading"]:
            section = match["heading"]
        else:
            found.append(Block(page[: match.start()].count("\n") + 1, section, match["title"] or "", match["text"]))
    return found


@dataclass
class Machine:
    """A clone, and what has been made in it by the blocks so far."""

    clone: Path
    path: list[Path]  # where commands are looked up first
    federation: LocalFederation | None = None
    ran: list[Block] = field(default_factory=list)
    before: list[dict[Path, str]] = field(default_factory=list)  # the clusters' content before each block

    def run(self, block: Block) -> subprocess.CompletedProcess[str]:
        """One block, by a shell that stops at the first command that fails."""
        if block.title == FEDERATION and self.federation is None:
            self.federation = self._started()
        if block.title == STOPPED and self.federation is not None and COORDINATOR in self.federation.process_ids():
            self.federation.kill(COORDINATOR)
        return subprocess.run(
            ["bash", "-euo", "pipefail", "-c", block.text],
            cwd=self.clone,
            env=self._environment(block),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )

    def run_in_order(self, block: Block) -> subprocess.CompletedProcess[str]:
        """One block of the page as it is."""
        self.before.append({file: file.read_text() for file in (self.clone / "build").glob("*.json")})
        self.ran.append(block)
        return self.run(block)

    def back_to(self, place: int) -> None:
        """The clusters as they were before a block; folders stay as they are."""
        for file in (self.clone / "build").glob("*.json"):
            file.unlink()
        for file, text in self.before[place].items():
            file.write_text(text)

    def stop(self) -> None:
        if self.federation is not None:
            self.federation.stop()

    def _environment(self, block: Block) -> Mapping[str, str]:
        cluster = "trial" if "trial" in block.section else "production"
        folder = self.clone / "build" / "stand-ins" / re.sub(r"\W", "-", block.title)
        for name in STOOD_IN.get(block.title, ()):
            folder.mkdir(parents=True, exist_ok=True)
            wrapper = folder / name
            wrapper.write_text(f'#!/bin/sh\nexec {shlex.join([sys.executable, str(STANDING_IN), name])} "$@"\n')
            wrapper.chmod(0o755)
        looked_up = [str(folder), *map(str, self.path), *os.environ["PATH"].split(os.pathsep)]
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
        return kept | {
            "PATH": os.pathsep.join(looked_up),
            "KUBECONFIG": os.devnull,
            STATE: str(self.clone / "build" / f"{cluster}.json"),
            REAL: str(TOOLS),
        }

    def _started(self) -> LocalFederation:
        """The members of `fed`, on free ports of this machine, with the page's task."""
        folder, ports = self.clone / "fed", PortPlan.free()
        theirs = PortPlan.from_base(7000)
        moved = {str(old): str(new) for old, new in zip(numbers(theirs), numbers(ports), strict=True)}
        for file in folder.rglob("*.toml"):
            text = file.read_text().replace("triskele.consortium.example:443", f"127.0.0.1:{theirs.coordinator.listen}")
            file.write_text(re.sub(r"\b70\d\d\b", lambda found: moved[found[0]], text))
        write_task(folder, TaskSpec("face-model", 100, clip_norm=8.0), Schedule(rounds=2, quorum=3))  # type: ignore[arg-type]
        (folder / "logs").mkdir()
        made = Provisioned(
            folder,
            "consortium.example",
            folder / "coordinator" / "coordinator.toml",
            tuple(folder / f"party-{i}" / "party.toml" for i in PARTIES),  # type: ignore[arg-type]
            {},
            folder / "operator" / "operator.toml",
        )
        running = LocalFederation(made, ports).__enter__()
        with ThreadPoolExecutor() as pool:  # a round, so that there is something to look at
            list(pool.map(take_part, sorted((folder / "participants").glob("*/participant.toml"))))
        return running


def take_part(config: Path) -> None:
    with Participant.from_config(config) as me:
        next(me.rounds("face-model")).submit(np.full(100, 0.01)).result(timeout=100)


def numbers(plan: PortPlan) -> list[int]:
    """All ports of a plan, in one order."""
    each = [
        p for process in (plan.coordinator, *plan.parties) for p in (process.listen, process.health, process.metrics)
    ]
    return [*each, *(party.peer for party in plan.parties)]


def cloned(folder: Path) -> Path:
    """What is committed and what is changed in the working tree, and nothing that git ignores."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    return folder


def run_through(machine: Machine) -> None:
    for block in blocks(PAGE.read_text("utf-8")):
        done = machine.run_in_order(block)
        assert done.returncode == 0, f"docs/operations.md, line {block.line}:\n{block.text}\n{done.stdout}{done.stderr}"


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A clone in which `make setup` finds everything installed already: this environment's."""
    clone = cloned(tmp_path_factory.mktemp("operations"))
    environment = clone / ".venv"
    environment.mkdir()
    for name in ("bin", "lib", "pyvenv.cfg"):
        (environment / name).symlink_to(Path(sys.prefix) / name)
    (environment / "installed").touch()
    made = Machine(clone, [environment / "bin"])
    yield made
    made.stop()


def test_every_block_runs_in_order_in_a_fresh_clone(machine: Machine) -> None:
    run_through(machine)
    assert len(machine.ran) >= 15
    assert {block.title for block in machine.ran} == {"", CLUSTER, ENGINE, FEDERATION, STOPPED}


def test_no_command_of_the_page_stands_outside_of_such_a_block() -> None:
    page = re.sub(r"^```.*?^```$", "", PAGE.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    assert re.findall(r"^ {4}\S.*", page, re.MULTILINE) == []


@pytest.mark.own_environment
@pytest.mark.timeout(1800)
def test_every_block_runs_in_a_clone_that_installs_everything_itself(tmp_path: Path) -> None:
    clone = cloned(tmp_path)
    made = Machine(clone, [clone / ".venv" / "bin"])
    try:
        run_through(made)
    finally:
        made.stop()


MISTAKES = [  # what the page says; what it might say; what whoever follows it would then read
    ("--file deploy/docker/Dockerfile", "--file deploy/Dockerfile", "No such file"),
    ("docker push registry.example/triskele:0.1.0", "docker push registry.example/triskele:0.2.0", "does not exist"),
    ("deploy/helm/values-$member.yaml", "deploy/helm/$member.yaml", "no such file"),
    ("check.py build/rendered/*.yaml", "check.py build/*.yaml", "check.py: error"),
    ("label namespace triskele-party-0", "label namespace party-0", "not found"),
    (" --from-file=fed/party-0/tls.key", "", r"\"triskele-party-0-tls\" has no \['tls.key'\]"),
    ("--from-file=fed/party-0/ca.crt", "--from-flie=fed/party-0/ca.crt", "unknown flag"),
    ("fed/party-0/tls.crt", "fed/party-1/tls.crt", "holds the certificate of .*/party/1"),
    ("--from-file=store-key=/dev/stdin", "--from-file=/dev/stdin", r"no \['store-key'\]"),
    ("helm test triskele-party-0", "helm test party-0", "release party-0"),
    ("/data:/srv/data", "/data:/var/lib/triskele", "no writable folder"),
    ("--network host", "--network bridge", "nobody outside the container"),
    ("--set role=coordinator", "", "role"),
    ("trial/$member/tls.crt", "trial/party-0/tls.crt", "holds the certificate of"),
    ("--config fed/operator/operator.toml", "--config fed/operator.toml", "operator.toml"),
    ("add-participant --directory fed ", "add-participant --folder fed ", "--folder"),
    ("exec deploy/triskele-coordinator", "exec deploy/coordinator", "not found"),
    ("kubectl --namespace triskele-coordinator exec", "kubectl exec", "not found"),
    ("/etc/triskele/config/coordinator.toml", "/etc/triskele/config/config.toml", "no such file"),
    ("--to /var/lib/triskele/backup", "--to /srv/backup", "in no volume"),
    ("helm upgrade triskele-party-0", "helm upgrade party-0", "release party-0 is not installed"),
    ("migrations back 0001", "migrations back 9999", "9999"),
]


@pytest.mark.parametrize(("right", "wrong", "told"), MISTAKES, ids=[wrong for _, wrong, _ in MISTAKES])
def test_a_mistake_in_the_page_is_found(machine: Machine, right: str, wrong: str, told: str) -> None:
    """With everything as it was when the run came to the block that the mistake is in."""
    page = PAGE.read_text("utf-8")
    assert right in page
    mistaken = blocks(page.replace(right, wrong, 1))
    (place,) = [i for i, pair in enumerate(zip(machine.ran, mistaken, strict=True)) if pair[0].text != pair[1].text]
    machine.back_to(place)
    tried = (machine.run(block) for block in mistaken[place : place + 4])
    failed = next(done for done in tried if done.returncode != 0)
    assert re.search(told, failed.stdout + failed.stderr), failed.stdout + failed.stderr
