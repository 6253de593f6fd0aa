"""What sending less costs: accuracy on the ORL faces by the part of the model that travels, and by the ring.

    python -m bench.bandwidth

20 participants, 4 of them malicious, train as in `triskele demo`. Each round is of the entries that
`triskele.coordinates` names. Where the table names a ring, every round is a whole secure one in it (`simulate`):
encoded, shared, checked, filtered and rounded as a real one. The other lines are of the rule in the clear, on rows
clipped and rounded at random as the client does in the ring that a task file would choose; --parties makes them whole
rounds too. `residual` adds what did not travel to the participant's next update; `step` is what the mean of what
travelled is multiplied by before it is added to the model, 1 / part unless said otherwise, as the client does. A test
photograph is 0.8 %. Prints a Markdown table, means over the seeds.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from bench import plaintext
from triskele.coordinates import positions, spread, taken
from triskele.ids import RoundNumber, TaskName
from triskele.task import RingChoice, TaskSpec
from triskele_server.demo.experiment import CLIP_NORM, PARTICIPANTS, AggregationOutcome, train
from triskele_server.demo.faces import load_photos
from triskele_server.demo.model import DIMENSION
from triskele_server.rules import with_ring
from triskele_server.simulate import simulate


@dataclass(frozen=True)
class Case:
    """What is sent, and what is done with it; `keep` is the part of the model that travels."""

    keep: float
    ring: RingChoice = "auto"  # 32 or 64: whole secure rounds
    residual: bool = False
    scaled: bool = True  # by 1 / keep, as the client does
    attack: str = "none"


class PartialAggregation:
    """Each round the part that the task names, in the case's ring, under `rule`."""

    def __init__(self, case: Case, *, rule: str, parties: bool, seed: int) -> None:
        self._case, self._rule, self._secure = case, rule, parties or case.ring != "auto"
        sent = round(case.keep * DIMENSION)
        spec = TaskSpec(
            TaskName("faces"),
            sent,
            CLIP_NORM * math.sqrt(case.keep),
            rule=rule,
            model_dimension=0 if sent == DIMENSION else DIMENSION,
            max_participants=PARTICIPANTS,
        )
        self.spec = with_ring(spec, case.ring)
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
        run = partial(simulate, ring=self._case.ring)
        if not self._secure:
            run = plaintext.aggregate
            unit = self.spec.clip_norm / 2.0**self.spec.fraction_bits
            parts *= np.minimum(1.0, self.spec.clip_norm / np.linalg.norm(parts, axis=1, keepdims=True))
            parts = np.floor(parts / unit + self._rng.random(parts.shape)) * unit
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
        "secure rounds, ring": str(case.ring) if case.ring != "auto" else "yes" if parties else "–",
        "fraction bits": str(aggregate.spec.fraction_bits),
        "residual": "yes" if case.residual else "no",
        "step": f"{1 / case.keep if case.scaled else 1:g}",
        "upload": f"{aggregate.spec.length * aggregate.spec.ring.word_bytes / 1000:.0f} kB",
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
    rings: tuple[RingChoice, ...] = (64, 32)
    cases = [Case(keep, ring) for keep in keeps for ring in rings]
    cases += [Case(keep, scaled=False, residual=residual) for keep in parts for residual in (False, True)]
    cases += [Case(keep, attack="backdoor-boosted") for keep in keeps]
    for i, case in enumerate(cases):
        line = measure(case, **vars(given))
        if i == 0:
            print(f"| {' | '.join(line)} |\n|{'---|' * len(line)}")
        print(f"| {' | '.join(line.values())} |", flush=True)


if __name__ == "__main__":
    main()
