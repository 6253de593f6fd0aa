"""What sending less costs: accuracy on the ORL faces by the part of the model that travels and by fraction bits.

    python -m bench.bandwidth

20 participants, 4 of them malicious, train as in `triskele demo`. Each round is of the entries that
`triskele.coordinates` names, clipped and rounded at random as the client does, under the rule in the clear; with
--parties every round is a whole secure one (`simulate`), which takes twenty times as long. `residual` adds what did not
travel to the participant's next update. A test photograph is 0.8 %. Prints a Markdown table, means over the seeds.
"""

from __future__ import annotations

import argparse
import math

import numpy as np
import torch
from numpy.typing import NDArray

from bench import plaintext
from triskele.coordinates import spread, taken
from triskele.ids import RoundNumber, TaskName
from triskele.task import FRACTION_BITS, TaskSpec
from triskele_server.demo.experiment import CLIP_NORM, AggregationOutcome, train
from triskele_server.demo.faces import load_photos
from triskele_server.demo.model import DIMENSION
from triskele_server.simulate import simulate

UPLOAD_BYTES = 2 * 8  # of one entry: the heavy share goes to two parties, as 64-bit words


class PartialAggregation:
    """Each round the part that the task names, with `bits` fraction bits, under `rule`."""

    def __init__(self, keep: float, bits: int, *, residual: bool, rule: str, parties: bool, seed: int) -> None:
        sent = round(keep * DIMENSION)
        self.spec = TaskSpec(
            TaskName("faces"),
            sent,
            CLIP_NORM * math.sqrt(keep),
            rule=rule,
            model_dimension=0 if sent == DIMENSION else DIMENSION,
        )
        self._bits, self._residual, self._rule, self._parties = bits, residual, rule, parties
        self._left: NDArray[np.float64] | None = None
        self._rng = np.random.default_rng([seed, 7])
        self._round = 0

    def __call__(self, updates: NDArray[np.float32], root_update: NDArray[np.float32]) -> AggregationOutcome:
        self._round += 1
        number = RoundNumber(self._round)
        rows = updates.astype(np.float64)
        if self._residual and self._left is not None:
            rows += self._left
        parts = np.stack([taken(row, self.spec, number) for row in rows])
        self._left = rows - np.stack([spread(part, self.spec, number) for part in parts])
        unit = self.spec.clip_norm / 2.0**self._bits
        parts *= np.minimum(1.0, self.spec.clip_norm / np.linalg.norm(parts, axis=1, keepdims=True))
        parts = np.floor(parts / unit + self._rng.random(parts.shape)) * unit  # stays as it is on a finer grid
        run = simulate if self._parties else plaintext.aggregate
        outcome = run(parts, rule=self._rule, clip_norm=self.spec.clip_norm)
        return AggregationOutcome(spread(outcome.aggregate, self.spec, number), outcome.accepted)


def measure(
    keep: float, bits: int, *, residual: bool, attack: str, rule: str, parties: bool, rounds: int, seeds: int
) -> dict[str, str]:
    """One line of the table."""
    photos = load_photos()
    middle, last, backdoor = [], [], []
    for seed in range(seeds):
        aggregate = PartialAggregation(keep, bits, residual=residual, rule=rule, parties=parties, seed=seed)
        reports = list(train(aggregate, attack=attack, rounds=rounds, seed=seed, photos=photos))
        middle.append(reports[rounds // 2 - 1].accuracy)
        last.append(reports[-1].accuracy)
        if reports[-1].backdoor_success is not None:
            backdoor.append(reports[-1].backdoor_success)
    return {
        "attack": attack,
        "part": f"{keep:.0%}",
        "fraction bits": str(bits),
        "residual": "yes" if residual else "no",
        "upload": f"{round(keep * DIMENSION) * UPLOAD_BYTES / 1000:.0f} kB",
        f"accuracy, {rounds // 2} rounds": f"{np.mean(middle):.1%}",
        f"{rounds} rounds": f"{np.mean(last):.1%}",
        "backdoor": f"{np.mean(backdoor):.1%}" if backdoor else "–",
    }


def main() -> None:
    """All lines."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rule", default="flame")
    parser.add_argument("--parties", action="store_true", help="whole secure rounds")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(1)
    keeps = (1.0, 0.5, 0.25, 0.1)
    cases = [(keep, bits, False, "none") for keep in keeps for bits in (FRACTION_BITS, 16)]
    cases += [(keep, FRACTION_BITS, True, "none") for keep in keeps[1:]]
    cases += [(keep, FRACTION_BITS, False, "backdoor-boosted") for keep in keeps]
    for i, (keep, bits, residual, attack) in enumerate(cases):
        line = measure(keep, bits, residual=residual, attack=attack, **vars(given))
        if i == 0:
            print(f"| {' | '.join(line)} |\n|{'---|' * len(line)}")
        print(f"| {' | '.join(line.values())} |", flush=True)


if __name__ == "__main__":
    main()
