"""What noise costs a round: the same round of a million parameters with and without, in turn, on one machine.

python -m bench.privacy.noise [--participants 20] [--dimension 1000000] [--repeats 3]
"""

from __future__ import annotations

import argparse
import os
import statistics
import time

import numpy as np
import torch

from triskele.encoding import encode
from triskele.ids import ParticipantId, RoundNumber, Slot, TaskDigest
from triskele.keystream import KeyStream
from triskele.privacy import Privacy
from triskele.sharing import ShareContext, heavy_index, split
from triskele_server.linear.discrete_gaussian import discrete_gaussian
from triskele_server.simulate import simulate

PRIVACY = Privacy(noise_multiplier=1.0, delta=1e-5, budget_epsilon=100.0)
RULES = {"mean": {}, "norm-clip": {"bound": 1.0}}


def _encoding(updates: np.ndarray) -> float:
    """CPU seconds of the participants' part: encoding and sharing."""
    began = time.process_time()
    for slot, row in enumerate(updates):
        words = encode(row, clip_norm=1.0, rounding=KeyStream(bytes(16)))
        context = ShareContext(TaskDigest(bytes(32)), RoundNumber(1), ParticipantId("p"))
        split(words, heavy=heavy_index(Slot(slot)), context=context, entropy=bytes(32), in_place=True)
    return time.process_time() - began


def _seconds(updates: np.ndarray, rule: str, privacy: Privacy | None) -> tuple[float, float]:
    """Of the three parties' round: by the clock, and of the processor, the latter with the participants' encoding."""
    began = time.process_time()
    outcome = simulate(updates, rule=rule, rule_options=RULES[rule], clip_norm=1.0, privacy=privacy)
    cpu = time.process_time() - began
    return sum(seconds for step, seconds in outcome.seconds.items() if step != "encode"), cpu


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--participants", type=int, default=20)
    parser.add_argument("--dimension", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(1)
    updates = np.random.default_rng(1).normal(size=(given.participants, given.dimension)).astype(np.float32)
    updates /= np.linalg.norm(updates, axis=1, keepdims=True)
    discrete_gaussian(bytes(16), 1 << 20, 10)  # compiled
    began = time.process_time()
    discrete_gaussian(bytes(16), 1 << 20, given.dimension)
    print(
        f"{given.dimension} samples: {time.process_time() - began:.2f} s of one core; load {os.getloadavg()[0]:.0f}\n"
    )
    encoding = _encoding(updates)
    print("| rule | round, s by the clock | with noise | more | round, s of the processor | with noise | more |")
    print("|---|---|---|---|---|---|---|")
    for rule in RULES:
        _seconds(updates[:, :1000], rule, PRIVACY)
        runs = [(*_seconds(updates, rule, None), *_seconds(updates, rule, PRIVACY)) for _ in range(given.repeats)]
        clock, cpu, noisy_clock, noisy_cpu = (statistics.median(column) for column in zip(*runs, strict=True))
        cpu, noisy_cpu = cpu - encoding, noisy_cpu - encoding
        cells = [
            text
            for a, b in ((clock, noisy_clock), (cpu, noisy_cpu))
            for text in (f"{a:.2f}", f"{b:.2f}", f"{100 * (b / a - 1):.0f} %")
        ]
        print(f"| `{rule}` | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
