"""One large secure round through `simulate`, and the filter alone: `python -m bench.filter [participants] [dimension]`.

Prints seconds per step, peak memory, rounds of communication and bytes sent per party. Run it on an idle machine.
"""

from __future__ import annotations

import json
import resource
import sys
import time

import numpy as np
import torch

from triskele_server.simulate import simulate


def main(participants: int = 100, dimension: int = 1_000_000) -> None:
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    options = {"num_malicious_nodes": participants // 5, "num_nodes_to_select": participants * 3 // 5}
    # Kernels are compiled once per installation; that is not what is measured.
    simulate(
        rng.standard_normal((4, 20_000)), rule="multi-krum", rule_options={"num_nodes_to_select": 2}, gram="sketch"
    )
    updates = rng.standard_normal((participants, dimension), dtype=np.float32)
    updates[-(participants // 5) :] *= 3
    started = time.perf_counter()
    result = simulate(updates, rule="multi-krum", rule_options=options)
    seconds = time.perf_counter() - started
    assert result.accepted is not None
    report = {
        "participants": participants,
        "dimension": dimension,
        "seconds": round(seconds, 2),
        "steps": {step: round(value, 2) for step, value in result.seconds.items()},
        "peak_gigabytes": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2),
        "rounds": max(t.rounds for t in result.traffic),
        "megabytes_sent": [round(t.bytes_sent / 1e6, 1) for t in result.traffic],
        "outliers_accepted": int(result.accepted[-(participants // 5) :].sum()),
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:3]))
