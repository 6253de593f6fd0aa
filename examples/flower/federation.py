"""A federation on this machine: coordinator, three parties, certificates for eight clients and the ServerApp."""

import shutil
import signal
import sys
import threading
from pathlib import Path

from triskele.task import TaskSpec
from triskele_server.config import Schedule, ScheduledTask
from triskele_server.local_federation import LocalFederation

DIRECTORY = Path("federation")
CLIENTS, ROUNDS = 8, 3
# 650 = a 10 x 64 matrix and 10 biases; no client has more than 1000 examples.
SPEC = TaskSpec("digits", 650, clip_norm=20.0, rule="flame", max_weight=1000, max_participants=CLIENTS)
TASK = ScheduledTask(SPEC, Schedule(rounds=ROUNDS, quorum=CLIENTS, deadline_seconds=300.0, grace_seconds=0.1))


def main() -> None:
    """Serve until Ctrl-C, then remove the folder."""
    if DIRECTORY.exists():
        sys.exit(f"{DIRECTORY} is there already: another federation.py is running, or was killed; remove the folder")
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    try:
        with LocalFederation.create(DIRECTORY, participants=CLIENTS, tasks=[TASK], reader=True, forwarder=True):
            print(f"ready: {CLIENTS} clients in {DIRECTORY}/participants; Ctrl-C ends it", flush=True)
            stop.wait()
    finally:
        shutil.rmtree(DIRECTORY, ignore_errors=True)


if __name__ == "__main__":
    main()
