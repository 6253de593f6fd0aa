"""What each operation of the engine costs: `python -m bench.operations`; see triskele_server.benchmark.operations."""

from __future__ import annotations

from triskele_server.benchmark.operations import OPERATIONS, measured

if __name__ == "__main__":
    for name, operation in OPERATIONS.items():
        costs = measured(operation)
        parties = "  ".join(f"{cost.rounds:3} waits {cost.sent:7.1f} B" for cost in costs)
        print(f"{name:24} chain {max(cost.depth for cost in costs):3}   {parties}")
