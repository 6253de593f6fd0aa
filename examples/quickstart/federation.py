"""A whole federation on this machine: coordinator, three parties, five participants' certificates. Ends on Ctrl-C."""

import shutil
import signal
import sys
import threading
from pathlib import Path

from triskele.task import TaskSpec
from triskele_server.config import Schedule, ScheduledTask
from triskele_server.local_federation import LocalFederation

DIRECTORY = Path("federation")
PARTICIPANTS = 5
ROUNDS = 5


def task(name: str, dimension: int) -> ScheduledTask:
    """FLAME over `dimension` parameters: five rounds, each as soon as everybody has uploaded."""
    spec = TaskSpec(name, dimension, clip_norm=10.0, rule="flame")
    return ScheduledTask(spec, Schedule(rounds=ROUNDS, quorum=PARTICIPANTS, deadline_seconds=3600, grace_seconds=0))


# 650 = a 10 x 64 matrix and 10 biases (train.py); 2474 is triskele.torch.dimension(model) in train_torch.py.
TASKS = [task("digits", 650), task("digits-torch", 2474)]


def main() -> None:
    """Serve until Ctrl-C, then remove the folder."""
    if DIRECTORY.exists():
        sys.exit(f"{DIRECTORY} is there already: another federation.py is running, or was killed; remove the folder")
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    try:
        with LocalFederation.create(DIRECTORY, participants=PARTICIPANTS, tasks=TASKS):
            print(f"ready: {PARTICIPANTS} participants in {DIRECTORY}/participants; Ctrl-C ends it", flush=True)
            while not stop.wait(0.5):  # short waits, so that Ctrl-C is noticed on Windows too
                pass
    finally:
        shutil.rmtree(DIRECTORY, ignore_errors=True)


if __name__ == "__main__":
    main()
