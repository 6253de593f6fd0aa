"""A local federation whose processes run as in a container: PID 1, read-only file system, the image's user."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from dockerfile import ROOT, environment

from triskele_server.local_federation import COORDINATOR, LocalFederation

CONFINE = Path(__file__).parent / "confine.py"
USER = 10001
STOP_SECONDS = 15.0  # what deploy/README.md promises


def not_permitted() -> str:
    """Why this machine cannot run such a federation; "" if it can."""
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        return "needs root and setpriv to make namespaces"
    trial = "mount --make-rprivate / && mount -t tmpfs tmpfs /mnt && mount -o remount,bind,ro /"
    done = subprocess.run(
        ["unshare", "--pid", "--fork", "--mount", "--mount-proc", "sh", "-ec", trial],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return "" if done.returncode == 0 else f"unshare is not permitted here: {done.stderr.strip()}"


class ConfinedFederation(LocalFederation):
    """`start` and `stop` differ; signals go to the first process of each namespace."""

    def folder(self, name: str) -> Path:
        return self.made.directory / name

    def start(self, name: str) -> None:
        """Start one process; its /tmp outlives it, as an emptyDir outlives a container."""
        role = "coordinator" if name == COORDINATOR else "party"
        temporary = self.made.directory / f"tmp-{name}"
        for folder in (self.folder(name) / "data", temporary):
            folder.mkdir(exist_ok=True)
        for path in (temporary, self.folder(name), *self.folder(name).rglob("*")):
            os.chown(path, USER, USER)
        needed = dict.fromkeys(str(Path(p).resolve()) for p in (sys.base_prefix, sys.prefix, ROOT))
        given = {
            "folder": str(self.folder(name)),
            "temporary": str(temporary),
            "needed": list(needed),
            "user": USER,
            "command": [sys.executable, "-m", "triskele", role, "--config", f"/srv/{role}.toml"],
        }
        self._logs[name] = self.log(name).open("ab")
        self._processes[name] = subprocess.Popen(
            ["unshare", "--pid", "--fork", "--kill-child", "--mount", "--mount-proc", sys.executable, str(CONFINE),
             json.dumps(given)],
            stdin=subprocess.DEVNULL, stdout=self._logs[name], stderr=self._logs[name],
            env={"PATH": os.environ["PATH"]} | {k: v for k, v in environment("final").items() if k != "PATH"},
        )  # fmt: skip

    def first_process(self, name: str) -> int:
        """The PID 1 of a member's namespace, as seen from here, once it is the command itself."""
        outer = self._processes[name].pid
        until = time.monotonic() + 30
        while time.monotonic() < until:
            for child in children(outer):
                with contextlib.suppress(OSError):
                    if b"triskele" in Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")[2:3]:
                        return child
            time.sleep(0.01)
        raise TimeoutError(f"{name} did not become PID 1: {self.log(name).read_text()}")

    def listens_to_sigterm(self, name: str) -> None:
        """Wait until PID 1 catches SIGTERM: the kernel drops it before, whatever the process is."""
        pid, bit = self.first_process(name), 1 << (signal.SIGTERM - 1)
        until = time.monotonic() + 30
        while not int(status(pid)["SigCgt"], 16) & bit:
            if time.monotonic() > until:
                raise TimeoutError(f"{name} catches no SIGTERM")
            time.sleep(0.005)

    def terminate(self, name: str) -> int:
        """SIGTERM to PID 1; its exit code. Raises TimeoutExpired if it takes longer than promised."""
        os.kill(self.first_process(name), signal.SIGTERM)
        code = self._processes[name].wait(STOP_SECONDS)
        del self._processes[name]
        self._logs.pop(name).close()
        return code

    def stop(self) -> None:
        """Kill what is left."""
        for name in list(self._processes):
            self.kill(name)


def children(pid: int) -> list[int]:
    """Direct children of a process, whichever of its threads started them."""
    found: list[int] = []
    for thread in Path(f"/proc/{pid}/task").glob("*"):
        with contextlib.suppress(OSError):
            found += map(int, (thread / "children").read_text().split())
    return found


def status(pid: int) -> dict[str, str]:
    """/proc/<pid>/status."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}
