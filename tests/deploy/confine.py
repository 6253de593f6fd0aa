"""Stands for the container runtime: a first process of new PID and mount namespaces that becomes the command.

Run as root under `unshare --pid --fork --mount --mount-proc`. Every file system is read-only afterwards but the data
folder and /tmp; the command runs as the image's user, which has no entry in /etc/passwd, without any capability.

    python confine.py '{"folder": ..., "temporary": ..., "needed": [...], "user": 10001, "command": [...]}'
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

MEMBER = Path("/srv")  # where the member's folder (configuration and certificates) appears
STAGING = Path("/mnt")
TEMPORARY = Path("/tmp")  # noqa: S108 - the path is the subject


def mount(*arguments: str | Path) -> None:
    subprocess.run(["mount", *map(str, arguments)], check=True)


def hidden_by(path: Path) -> Path | None:
    """The topmost folder above `path` that others may not enter."""
    return next((folder for folder in reversed(path.parents) if not folder.stat().st_mode & 0o001), None)


def confine(folder: Path, temporary: Path, needed: list[Path]) -> None:
    """Lay the mounts. `needed` (interpreter, packages) stay visible where they are."""
    mount("--make-rprivate", "/")
    mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", STAGING)
    places = {path: STAGING / str(number) for number, path in enumerate([folder, temporary, *needed])}
    for path, place in places.items():
        place.mkdir()
        mount("--bind", path, place)
    mount("--bind", places[folder], MEMBER)
    mount("--bind", places[folder] / "data", MEMBER / "data")
    covered = {hidden for path in needed if (hidden := hidden_by(path)) is not None}
    for cover in covered:
        mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", cover)
    mount("--bind", places[temporary], TEMPORARY)
    for path in needed:
        if any(cover in path.parents for cover in {*covered, TEMPORARY}):
            path.mkdir(parents=True, exist_ok=True)
            mount("--bind", places[path], path)
            mount("-o", "remount,bind,ro", path)
    mount("-t", "tmpfs", "-o", "ro", "tmpfs", "/dev/shm")  # noqa: S108 - covered, not used
    for point in ("/", MEMBER, STAGING, *places.values(), *covered):
        mount("-o", "remount,bind,ro", point)


def main() -> None:
    given = json.loads(sys.argv[1])
    confine(Path(given["folder"]), Path(given["temporary"]), [Path(path) for path in given["needed"]])
    user = str(given["user"])
    os.chdir("/")
    os.execvp(  # noqa: S606 - the command takes this process's place, PID 1
        "setpriv",
        ["setpriv", "--reuid", user, "--regid", user, "--clear-groups", "--bounding-set=-all", "--inh-caps=-all",
         "--no-new-privs", "--", *given["command"]],
    )  # fmt: skip


if __name__ == "__main__":
    main()
