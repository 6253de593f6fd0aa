"""Random rounds of every rule against every oracle: `python -m tests.oracle.sweep [seconds] [seed]`.

Prints, for each task, the rounds run, those left out because their decision is a tie within `NEAR`, the worst error
beside its tolerance in clip norms, and how many disagreed; each disagreement is printed with what repeats it. Ends
with status 1 if there was one.
"""

from __future__ import annotations

import sys
import time
from collections import Counter

import numpy as np
import torch

from triskele.errors import RoundFailed

from .matrices import CLIP, KINDS, malicious, matrix
from .tasks import NEAR, TASKS, Task

MAX_COMPARED = 60 * 60 * 1000  # n^2 d of a coordinate-wise rule: more takes seconds
_RESULTS = ("agreed", "tied", "disagreed")


def disagreement(task: Task, rows: np.ndarray) -> tuple[float, str]:
    """The error in clip norms, and what is wrong, if anything."""
    expected = task.in_plaintext(rows)
    try:
        outcome = task.in_secret(rows)
    except RoundFailed as failed:
        right = failed.reason == "too_few_accepted" and not expected.accepted.any()
        return 0.0, "" if right else str(failed)
    if outcome.accepted is None or outcome.accepted.tolist() != expected.accepted.tolist():
        return 0.0, f"accepted {np.flatnonzero(outcome.accepted)} instead of {np.flatnonzero(expected.accepted)}"
    aggregates = [expected.aggregate, *(oracle(rows, malicious(len(rows))) for oracle in task.oracles)]
    error = max(float(np.linalg.norm(outcome.aggregate - theirs)) / CLIP for theirs in aggregates)
    return error, "" if error <= task.tolerance + 1e-7 else f"an error of {error:.2e}"


def drawn(rng: np.random.Generator, task: Task) -> tuple[str, int, int, int]:
    """Kind, n, d and seed of a matrix; sizes are spread evenly in their logarithm."""
    n = int(5 * 12 ** rng.random())
    d = int(3000 ** rng.random())
    if task.rule in ("median", "trimmed-mean") or "trimmed-mean" in task.rule:
        d = min(d, MAX_COMPARED // n**2)
    return str(rng.choice(KINDS)), n, d, int(rng.integers(1 << 31))


def main(seconds: float = 300, seed: int = 0) -> int:
    torch.set_num_threads(1)
    rng = np.random.default_rng(seed)
    counts = {name: Counter[str]() for name in TASKS}
    worst = dict.fromkeys(TASKS, 0.0)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for name, task in TASKS.items():
            kind, n, d, matrix_seed = drawn(rng, task)
            rows = matrix(kind, n, d, matrix_seed)
            if not task.margin(rows, malicious(n)) > NEAR:
                counts[name]["tied"] += 1
                continue
            error, problem = disagreement(task, rows)
            worst[name] = max(worst[name], error)
            counts[name]["disagreed" if problem else "agreed"] += 1
            if problem:
                print(f"{name}: matrix({kind!r}, {n}, {d}, {matrix_seed}): {problem}", flush=True)
    for name, task in TASKS.items():
        numbers = "  ".join(f"{counts[name][result]:4} {result}" for result in _RESULTS)
        print(f"{name:54} {numbers}  worst error {worst[name]:.1e} of {task.tolerance:.1e}")
    return int(any(count["disagreed"] for count in counts.values()))


if __name__ == "__main__":
    sys.exit(main(*(int(argument) for argument in sys.argv[1:3])))
