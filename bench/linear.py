"""What one party does alone on n * d words, beside numpy's float32 mean over the same number of words read from files.

    python -m bench.linear --participants 100 --dimension 1000000

Heavy shares are files of random words and are read a chunk at a time, as in a party; seeds are expanded. Each step
runs in a process of its own, which starts with empty memory: `sketch` (both shares of every submission, as step 5, with
the check's buckets; `sketch-gram` with a sketched Gram matrix's), `combine` with secret and with public weights
(step 9), and the mean. `seeds` and `files` only read these shares, once: no pass over the words can be cheaper. CPU
seconds are user and system time of the process from when its code is compiled, wall seconds beside them; peak is the
most memory it ever had. Everything goes to a temporary folder, which is deleted.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import secrets
import tempfile
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from triskele.ids import ParticipantId, PartyIndex, RoundNumber, ShareIndex, Slot, TaskDigest, held_shares
from triskele.ring import Ring
from triskele.sharing import Seed, ShareContext, heavy_index
from triskele_server.linear.combine import combine_public, combine_secret
from triskele_server.linear.shares import CHUNK_WORDS, FileShare, HeldShare, SeedShare, SharePair, chunks
from triskele_server.linear.sketch import CHECK_BUCKETS, GRAM_BUCKETS, Sketch

PARTY = PartyIndex(0)
STEPS = ("mean", "seeds", "files", "sketch", "sketch-gram", "combine-secret", "combine-public")
_PIECE = 1 << 22


@dataclass(frozen=True)
class Case:
    """What is measured: files in `folder` of `count` submissions of `dimension` words."""

    folder: Path
    count: int
    dimension: int
    ring: Ring


def write_words(case: Case) -> None:
    """The heavy shares that the party holds, and `count` float32 rows of the same length for the mean."""
    size = case.dimension * case.ring.word_bytes
    for i in range(case.count):
        if heavy_index(Slot(i)) in held_shares(PARTY):
            with (case.folder / f"{i}.words").open("wb") as file:
                for start in range(0, size, _PIECE):
                    file.write(os.urandom(min(_PIECE, size - start)))
    rng = np.random.default_rng(1)
    for i in range(case.count):
        rng.standard_normal(case.dimension, np.float32).tofile(case.folder / f"{i}.float32")


def pairs(case: Case) -> list[SharePair]:
    """The party's two shares of each submission."""

    def share(i: int, index: ShareIndex) -> HeldShare:
        if index == heavy_index(Slot(i)):
            return FileShare.of(case.folder / f"{i}.words", case.dimension, case.ring)
        context = ShareContext(TaskDigest(bytes(32)), RoundNumber(1), ParticipantId(f"p{i}"))
        return SeedShare(Seed(i.to_bytes(16, "big")), context, index, case.ring)

    return [SharePair(*(share(i, index) for index in held_shares(PARTY))) for i in range(case.count)]


def run(step: str, case: Case) -> None:
    """One step, results thrown away."""
    if step == "mean":
        total = np.zeros(case.dimension, np.float32)
        for i in range(case.count):
            total += np.fromfile(case.folder / f"{i}.float32", np.float32)
        total /= case.count
        return
    rows, dimension = pairs(case), case.dimension
    first, second = [row.first for row in rows], [row.second for row in rows]
    if step in ("seeds", "files"):
        room = np.empty(CHUNK_WORDS, case.ring.dtype)
        for share in first + second:
            if isinstance(share, SeedShare) == (step == "seeds"):
                stream = share.stream(0)
                for start, stop in chunks(dimension):
                    stream.read_into(room[: stop - start])
    elif step.startswith("sketch"):
        Sketch(bytes(32), dimension, GRAM_BUCKETS if step == "sketch-gram" else CHECK_BUCKETS).apply(first + second)
    elif step == "combine-secret":
        weights = [(secrets.randbits(62), secrets.randbits(62)) for _ in rows]
        combine_secret(rows, weights, dimension)
    else:
        for shares in (first, second):
            combine_public(shares, [1] * case.count, dimension)


def measured(step: str, case: Case) -> dict[str, float]:
    """CPU seconds, wall seconds and peak megabytes of one step in a new process; compiled code is loaded before."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_child, args=(theirs, step, case))
    process.start()
    theirs.close()
    figures: dict[str, float] = ours.recv()
    process.join()
    return figures


def _child(pipe: Connection, step: str, case: Case) -> None:
    small = Case(case.folder / "warm", 2, 10_000, case.ring)
    small.folder.mkdir(exist_ok=True)
    write_words(small)
    run(step, small)  # compiles
    before, started = time.process_time(), time.perf_counter()
    run(step, case)
    wall, cpu = time.perf_counter() - started, time.process_time() - before
    status = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    peak = next(int(line.split()[1]) / 1e3 for line in status if line.startswith("VmHWM"))
    pipe.send({"cpu": cpu, "wall": wall, "peak_mb": peak})


def main() -> None:
    """Measure, print a table (or JSON), delete."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--participants", type=int, default=50)
    parser.add_argument("--dimension", type=int, default=1_000_000)
    parser.add_argument("--ring", type=int, nargs="+", default=[32, 64])
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=STEPS)
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    found: dict[str, dict[str, float]] = {}
    for bits in chosen.ring:
        ring = Ring(bits)
        with tempfile.TemporaryDirectory(prefix="bench-linear-") as name:
            case = Case(Path(name), chosen.participants, chosen.dimension, ring)
            write_words(case)
            for step in chosen.steps:
                figures = measured(step, case)
                found[f"{step} {bits}"] = figures
                mean = found.get(f"mean {bits}", figures)["cpu"]
                if not chosen.json:
                    print(
                        f"ring {bits}  {step:15} {figures['cpu']:7.3f} s CPU  {figures['wall']:7.2f} s wall  "
                        f"{figures['cpu'] / mean:5.1f} x the mean's CPU  peak {figures['peak_mb']:6.0f} MB",
                        flush=True,
                    )
    if chosen.json:
        print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
