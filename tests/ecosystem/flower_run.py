"""One run of a Flower app by flower_runner.py, and the search of what it sent for what its clients learnt."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[2]
APPS = ROOT / "examples" / "flower"
FLOWER_PYTHON = ROOT / ".venv-flower" / "bin" / "python"
CLIENTS, MALICIOUS = 8, 2  # of the example
HONEST = range(CLIENTS - MALICIOUS)


@dataclass(frozen=True)
class FlowerRun:
    """What one run of flower_runner.py left."""

    out: Path
    log: str

    @property
    def result(self) -> dict[str, dict[str, dict[str, float]]]:
        return json.loads((self.out / "result.json").read_text())

    @property
    def model(self) -> np.ndarray:
        arrays = np.load(self.out / "model.npz")
        return np.concatenate([arrays[name].ravel() for name in arrays.files])

    @property
    def replies(self) -> list[dict[str, dict[str, float]]]:
        """Every reply that the ServerApp got: its metrics, and how many arrays each of its ArrayRecords has."""
        return [json.loads(line) for line in (self.out / "replies.jsonl").read_text().splitlines()]

    def bytes_of(self, name: str) -> bytes:
        return (self.out / name).read_bytes()

    def learnt(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """What each honest client received and what it had trained it to: float64 [6, 650] both."""
        arrays = np.load(self.out / "learnt.npz")
        received, new = (
            np.stack([arrays[f"{number}-{client}-{what}"] for client in HONEST]) for what in ("received", "new")
        )
        return received, new


def run_flower(
    out: Path, app: str | Path, config: dict[str, object], *mods: str, python: Path = FLOWER_PYTHON
) -> FlowerRun:
    """Run an app; relative paths in its configuration are in the folder of `out`."""
    out.mkdir()
    command = [python, Path(__file__).with_name("flower_runner.py"), APPS / app, out, json.dumps(config), *mods]
    # Nothing is told to Flower's makers, and nothing of this user's own Flower is touched.
    environment = os.environ | {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_HOME": str(out), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, env=environment, cwd=out.parent, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        timeout=150, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:]
    return FlowerRun(out, done.stdout)


def windows(vector: np.ndarray) -> list[bytes]:
    """Four neighbours of the coefficients [10, 64], none of them zero: as float64, as float32, by row and by column."""
    coefficients = vector[:640].reshape(10, 64)
    return [
        flat[start : start + 4].astype(kind).tobytes()
        for flat in (coefficients.ravel("C"), coefficients.ravel("F"))
        for start in range(0, len(flat) - 3, 2)
        if np.all(flat[start : start + 4] != 0)
        for kind in (np.float64, np.float32)
    ]


def found(run: FlowerRun, file: str, vectors: np.ndarray) -> int:
    content = run.bytes_of(file)
    pieces = [piece for vector in vectors for piece in windows(vector)]
    assert len(pieces) > 1000, "there is something to search for"
    return sum(piece in content for piece in pieces)
