"""What sending less costs: accuracy on the ORL faces by the part of the model that travels and by fraction bits.

    python -m bench.bandwidth

20 participants, 4 of them malicious, train as in `triskele demo`. Each round is of the entries that
`triskele.coordinates` names, clipped and rounded at random as the client does, under the rule in the clear; with
--parties every round is a whole secure one (`simulate`), which takes twenty times as long. `residual` adds what did not
travel to the participant's next update; `step` is what the mean of what travelled is multiplied by before it is added
to the model, 1 / part unless said otherwise, as the client does. A test photograph is 0.8 %. Prints a Markdown table,
means over the seeds.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from bench import plaintext
from triskele.coordinates import positions, spread, taken
from triskele.ids import RoundNumber, TaskName
from triskele.task import FRACTION_BITS, TaskSpec
from triskele_server.demo.experiment import CLIP_NORM, AggregationOutcome, train
from triskele_server.demo.faces import load_photos
from triskele_server.demo.model import DIMENSION
from triskele_server.simulate import simulate

UPLOAD_BYTES = 2 * 8  # of one entry: the heavy share goes to two parties, as 64-bit words


@dataclass(frozen=True)
class Case:
    """What is sent, and what is done with it; `keep` is the part of the model that travels."""

    keep: float
    bits: int = FRACTION_BITS
    residual: bool = False
    scaled: bool = True  # by 1 / keep, as the client does
    attack: str = "none"


class PartialAggregation:
    """Each round the part that the task names, with `bits` fraction bits, under `rule`."""

    def __init__(self, case: Case, *, rule: str, parties: bool, seed: int) -> None:
        self._case, self._rule, self._parties = case, rule, parties
        sent = round(case.keep * DIMENSION)
        self.spec = TaskSpec(
            TaskName("faces"),
            sent,
            CLIP_NORM * math.sqrt(case.keep),
            rule=rule,
            model_dimension=0 if sent == DIMENSION else DIMENSION,
        )
        self._left: NDArray[np.float64] | None = None
        self._rng = np.random.default_rng([seed, 7])
        self._round = 0

    def __call__(self, updates: NDArray[np.float32], root_update: NDArray[np.float32]) -> AggregationOutcome:
        self._round += 1
        number = RoundNumber(self._round)
        rows = updates.astype(np.float64)
        if self._case.residual and self._left is not None:
            rows += self._left
        parts = np.stack([taken(row, self.spec, number) for row in rows])
        self._left = rows
        self._left[:, positions(self.spec, number)] = 0.0
        unit = self.spec.clip_norm / 2.0**self._case.bits
        parts *= np.minimum(1.0, self.spec.clip_norm / np.linalg.norm(parts, axis=1, keepdims=True))
        parts = np.floor(parts / unit + self._rng.random(parts.shape)) * unit  # stays as it is on a finer grid
        run = simulate if self._parties else plaintext.aggregate
        outcome = run(parts, rule=self._rule, clip_norm=self.spec.clip_norm)
        aggregate = spread(outcome.aggregate, self.spec, number)
        return AggregationOutcome(aggregate if self._case.scaled else aggregate * self._case.keep, outcome.accepted)


def measure(case: Case, *, rule: str, parties: bool, rounds: int, seeds: int) -> dict[str, str]:
    """One line of the table."""
    photos = load_photos()
    middle, last, backdoor = [], [], []
    for seed in range(seeds):
        aggregate = PartialAggregation(case, rule=rule, parties=parties, seed=seed)
        reports = list(train(aggregate, attack=case.attack, rounds=rounds, seed=seed, photos=photos))
        middle.append(reports[rounds // 2 - 1].accuracy)
        last.append(reports[-1].accuracy)
        if reports[-1].backdoor_success is not None:
            backdoor.append(reports[-1].backdoor_success)
    return {
        "attack": case.attack,
        "part": f"{case.keep:.0%}",
        "fraction bits": str(case.bits),
        "residual": "yes" if case.residual else "no",
        "step": f"{1 / case.keep if case.scaled else 1:g}",
        "upload": f"{round(case.keep * DIMENSION) * UPLOAD_BYTES / 1000:.0f} kB",
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
    parts = keeps[1:]
    cases = [Case(keep, bits) for keep in keeps for bits in (FRACTION_BITS, 16)]
    cases += [Case(keep, scaled=False, residual=residual) for keep in parts for residual in (False, True)]
    cases += [Case(keep, attack="backdoor-boosted") for keep in keeps]
    for i, case in enumerate(cases):
        line = measure(case, **vars(given))
        if i == 0:
            print(f"| {' | '.join(line)} |\n|{'---|' * len(line)}")
        print(f"| {' | '.join(line.values())} |", flush=True)


if __name__ == "__main__":
    main()
