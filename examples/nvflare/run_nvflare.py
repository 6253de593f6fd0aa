"""Runs the example on this machine, a federation and NVFLARE's simulator beside it, and prints what it measured.

    python examples/nvflare/run_nvflare.py --nvflare-python .venv-nvflare/bin/python

The Python that runs this has `triskele[server]`; the one named has `triskele[nvflare]`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import softmax_sites as sites_code

from triskele import Participant
from triskele.task import TaskSpec
from triskele_server.config import Schedule, ScheduledTask
from triskele_server.local_federation import LocalFederation

HERE = Path(__file__).parent
SITES = tuple(f"site-{i}" for i in range(1, 9))
MALICIOUS = SITES[-2:]
SERVER = "server"  # NVFLARE's name for it
TASK = "softmax"


def task(rounds: int, sites: Sequence[str] = SITES) -> ScheduledTask:
    """Flame over all sites, weighted by their secret numbers of examples."""
    spec = TaskSpec(
        name=TASK,
        dimension=sites_code.SHAPE[0] * sites_code.SHAPE[1],
        clip_norm=16.0,
        rule="flame",
        max_weight=1000,
        max_participants=len(sites),
    )
    return ScheduledTask(spec, Schedule(rounds=rounds, quorum=len(sites), deadline_seconds=240.0, grace_seconds=0.2))


def federation(folder: Path, rounds: int, sites: Sequence[str] = SITES) -> LocalFederation:
    """Coordinator, three parties, a participant per site and one for the NVFLARE server; not started yet."""
    return LocalFederation.create(folder / "federation", participants=[*sites, SERVER], tasks=[task(rounds, sites)])


def run_job(python: Path, folder: Path, rounds: int, *options: str, sites: int = len(SITES)) -> np.ndarray:
    """The global model, float32 [65, 10], after a simulated job; what reached the server is in folder/record."""
    command = [str(python), str(HERE / "job.py"), "--workspace", str(folder / "workspace"), "--sites", str(sites),
               "--rounds", str(rounds), "--record", str(folder / "record"), *options]  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "job.log").open("wb") as log:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(  # noqa: S603  our own files
            command, check=False, stdout=log, stderr=log, env=environment
        )
    if done.returncode:
        raise RuntimeError("the job failed; the end of its log:\n" + (folder / "job.log").read_text()[-3000:])
    model: np.ndarray = np.load(next((folder / "workspace").rglob("models/server.npy")))
    return model


def needles(update: np.ndarray) -> Iterator[bytes]:
    """Pieces of an update as it would stand in a file: runs of entries as float32 and float64, large ones as text."""
    for dtype in ("<f4", "<f8"):
        data = update.astype(dtype).tobytes()
        yield from (data[start : start + 16] for start in range(0, len(data) - 16, len(data) // 8 // 16 * 16))
    largest = update.ravel()[np.argsort(-np.abs(update.ravel()))[:8]]
    yield from (str(value).encode()[:9] for value in largest)


def sightings(updates: Sequence[np.ndarray], folders: Sequence[Path]) -> int:
    """In how many files below the folders a piece of an update stands."""
    wanted = [needle for update in updates for needle in needles(update)]
    contents = (path.read_bytes() for folder in folders for path in folder.rglob("*") if path.is_file())
    return sum(any(needle in content for needle in wanted) for content in contents)


def first_updates(sites: Sequence[str] = SITES, malicious: Sequence[str] = MALICIOUS) -> list[np.ndarray]:
    """Every site's update of the first round; it starts at zero, so they are the trained weights too."""
    start = np.zeros(sites_code.SHAPE, np.float32)
    return [sites_code.trained(site, start, malicious=site in malicious)[0] for site in sites]


def main() -> None:
    """Three jobs and a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--nvflare-python", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sites", type=int, choices=range(4, 9), default=8, help="the last quarter of them attacks")
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    options = parser.parse_args()
    python = options.nvflare_python.absolute()  # not resolved: it may be a link into a virtual environment
    sites = SITES[: options.sites]
    malicious = sites[-(len(sites) // 4) :]
    attacked = f"{len(malicious)} of {len(sites)} attack"
    lines = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with federation(folder, options.rounds, sites) as running:
            attack = ("--malicious", ",".join(malicious))
            triskele = ("--task", TASK, "--participants", str(running.made.directory / "participants"))
            for label, attackers, chosen in (
                ("FedAvg, nobody attacks", (), ("--malicious", "none")),
                (f"FedAvg, {attacked}", malicious, attack),
                (f"Triskele, {attacked}", malicious, (*attack, *triskele)),
            ):
                start, place = time.monotonic(), folder / str(len(lines))
                model = run_job(python, place, options.rounds, *chosen, sites=len(sites))
                lines.append(
                    {
                        "job": label,
                        "accuracy": round(sites_code.accuracy(model), 3),
                        "results at the server": len(list((place / "record").iterdir())),
                        "their bytes": sum(path.stat().st_size for path in (place / "record").iterdir()),
                        "files with a first-round update": sightings(
                            first_updates(sites, attackers),
                            [place / "record", place / "workspace", running.made.directory / "logs"],
                        ),
                        "seconds": round(time.monotonic() - start, 1),
                    }
                )
            server = running.made.participants[SERVER]
            with Participant.from_config(server) as me:
                views = me.round_views(TASK)
            refused = [[view.participants[s] for s in range(len(sites)) if not view.accepted(s)] for view in views]
    print(f"| {' | '.join(lines[0])} |\n|{'---|' * len(lines[0])}")
    for line in lines:
        print(f"| {' | '.join(str(value) for value in line.values())} |")
    for view, left_out in zip(views, refused, strict=True):
        print(f"round {view.round} {view.state}: not in the aggregate: {', '.join(left_out)}")
    if options.json is not None:
        options.json.write_text(json.dumps({"jobs": lines, "not_in_the_aggregate": refused}, indent=2))


if __name__ == "__main__":
    main()
