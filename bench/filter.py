"""Large secure rounds through `simulate`: `python -m bench.filter --help`.

Prints for each rule the seconds per step, peak memory, rounds of communication and bytes sent per party. Every rule
runs in a process of its own. Run it on an idle machine.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from triskele_server.benchmark.scene import rule_options
from triskele_server.simulate import simulate

DEFAULT_RULES = "norm-clip,multi-krum,fltrust,flame"


def options_of(rule: str, participants: int) -> dict[str, Any]:
    """What `simulate` takes beside the updates: a fifth of the participants is expected to be malicious."""
    options = {"rule": tuple(rule.split("+")), "rule_options": rule_options(rule, participants)}
    return options | ({"root": 0} if "fltrust" in rule.split("+") else {})


def updates_of(rng: np.random.Generator, participants: int, dimension: int) -> NDArray[np.float32]:
    """float32 [participants, dimension] around one direction, a fifth of them turned round and three times as long."""
    rows = rng.standard_normal((participants, dimension), dtype=np.float32)
    rows += rng.standard_normal(dimension, dtype=np.float32)
    rows[-(participants // 5) :] *= -3
    return rows


def measure(rule: str, participants: int, dimension: int, max_rows: int) -> dict[str, Any]:
    """One round of float32 updates around one direction, a fifth of them turned round and three times as long."""
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    # Kernels are compiled once per installation; that is not what is measured.
    simulate(updates_of(rng, 6, 20_000), gram="sketch", **options_of(rule, 6))
    updates = updates_of(rng, participants, dimension)
    started = time.perf_counter()
    result = simulate(updates, max_rows=max_rows, **options_of(rule, participants))
    seconds = time.perf_counter() - started
    return {
        "rule": rule,
        "participants": participants,
        "dimension": dimension,
        "seconds": round(seconds, 2),
        "steps": {step: round(value, 2) for step, value in result.seconds.items()},
        "peak_gigabytes": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2),
        "rounds": max(t.rounds for t in result.traffic),
        "megabytes_sent": [round(t.bytes_sent / 1e6, 1) for t in result.traffic],
        "accepted": None if result.accepted is None else int(result.accepted.sum()),
    }


def main() -> None:
    """Measure each rule in a fresh process, or one rule in this one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rules", default=DEFAULT_RULES, help="comma-separated; stages joined by +")
    parser.add_argument("--participants", type=int, default=100)
    parser.add_argument("--dimension", type=int, default=1_000_000)
    parser.add_argument("--max-rows", type=int, default=128)
    given = parser.parse_args()
    rules = given.rules.split(",")
    if len(rules) == 1:
        print(json.dumps(measure(rules[0], given.participants, given.dimension, given.max_rows)), flush=True)
        return
    for rule in rules:
        sizes = {"participants": given.participants, "dimension": given.dimension, "max-rows": given.max_rows}
        arguments = [f"--{name}={value}" for name, value in sizes.items()]
        subprocess.run([sys.executable, "-m", "bench.filter", f"--rules={rule}", *arguments], check=True)  # noqa: S603  this module


if __name__ == "__main__":
    main()
