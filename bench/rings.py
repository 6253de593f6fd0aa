"""What the 32-bit ring costs in precision: the aggregate in both rings, rule by rule: `python -m bench.rings`."""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np

from triskele_server.simulate import simulate

RULES: dict[str, dict[str, Any]] = {
    "mean": {},
    "multi-krum": {"rule_options": {"num_malicious_nodes": 2, "num_nodes_to_select": 6}},
    "dnc": {},
    "norm-clip": {},
    "geometric-median": {},
    "flame": {},
    "fltrust": {"root": 0},
    "foolsgold": {},
}


def main() -> None:
    """Print, per rule, the difference of the two aggregates relative to their norm."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--participants", type=int, default=12)
    parser.add_argument("--dimension", type=int, nargs="+", default=[300, 20_000])
    chosen = parser.parse_args()
    rng = np.random.default_rng(1)
    for dimension in chosen.dimension:
        updates = rng.normal(size=(chosen.participants, dimension))
        updates = updates / np.linalg.norm(updates, axis=1, keepdims=True) + 0.05 * rng.normal(size=dimension)
        for rule, options in RULES.items():
            narrow, wide = (simulate(updates, rule=rule, ring=ring, **options) for ring in (32, 64))
            error = np.linalg.norm(narrow.aggregate - wide.aggregate) / np.linalg.norm(wide.aggregate)
            same = narrow.accepted is None or np.array_equal(narrow.accepted, wide.accepted)
            print(f"d = {dimension:<8} {rule:17} {error:.1e}{'' if same else '  (another selection)'}", flush=True)


if __name__ == "__main__":
    main()
