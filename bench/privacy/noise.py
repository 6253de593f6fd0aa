"""What noise costs a real round, of processes with mutual TLS: rounds with and without `[privacy]` in turn.

python -m bench.privacy.noise [--rule mean] [--participants 50] [--dimension 1000000] [--repeats 3]

`mean`, or `norm-clip` with a fixed bound. Where a task with noise needs the 64-bit ring, and would not without, it is
compared with the task without noise in that ring too. Medians.
"""

from __future__ import annotations

import argparse
import math
import os
import resource
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from triskele.ids import TaskName
from triskele.privacy import Privacy
from triskele.ring import WIDE
from triskele.task import RuleOption, TaskSpec
from triskele_server.benchmark.measure import LEAST_LIKENESS, WARM_UP, Measured, secure_round
from triskele_server.benchmark.scene import CLIP_NORM, WAIT_SECONDS, Scene
from triskele_server.config import Schedule, ScheduledTask
from triskele_server.linear.discrete_gaussian import discrete_gaussian
from triskele_server.local_federation import PARTY_NAMES, LocalFederation
from triskele_server.rules import with_ring
from triskele_server.rules.noise import party_sigma

PRIVACY = Privacy(noise_multiplier=1.0, delta=1e-5, budget_epsilon=1000.0)


def tasks(rule: str, participants: int, dimension: int) -> dict[str, TaskSpec]:
    """The tasks to be compared; the last one adds noise."""
    options: dict[str, RuleOption] = {"bound": CLIP_NORM} if rule == "norm-clip" else {}
    plain = replace(Scene(participants, dimension, rule).task().spec, rule_options=options)
    wide = with_ring(plain, WIDE.bits)
    noised = with_ring(replace(wide, privacy=PRIVACY), "auto")
    specs = {"without noise": with_ring(plain, "auto")}
    if specs["without noise"].ring != noised.ring:
        specs["without noise, 64 bits"] = wide
    specs["with noise"] = noised
    names = [f"bench-{participants}-{dimension}-{i}" for i in range(len(specs))]
    return {title: replace(spec, name=TaskName(name)) for (title, spec), name in zip(specs.items(), names, strict=True)}


def least_likeness(spec: TaskSpec, participants: int) -> float:
    """Half of the cosine that mean and honest direction have beside the noise of three parties."""
    if spec.privacy is None:
        return LEAST_LIKENESS
    noise = spec.privacy.noise_multiplier * math.sqrt(1.5 * spec.dimension) / participants
    return 0.5 * LEAST_LIKENESS / math.hypot(1.0, noise / 0.4)  # 3/5 of a vector of length sqrt(1/2)


def figures(measured: Measured) -> tuple[float, float, float]:
    """Seconds by the clock; of the processor, all processes; of the processor, the parties' workers."""
    workers = sum(measured.processes[f"{name} worker"].cpu_seconds for name in PARTY_NAMES)
    return measured.times.wall, measured.cpu_seconds, workers


def measure(rule: str, participants: int, dimension: int, repeats: int) -> dict[str, list[tuple[float, float, float]]]:
    """The figures of every round, by task."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    compared, small = tasks(rule, participants, dimension), tasks(rule, *WARM_UP)
    rounds: dict[str, list[tuple[float, float, float]]] = {title: [] for title in compared}
    with tempfile.TemporaryDirectory(prefix="triskele-noise-") as folder:
        schedules = [(spec, repeats, participants) for spec in compared.values()]
        schedules += [(spec, 1, WARM_UP[0]) for spec in small.values()]
        federation = LocalFederation.create(
            Path(folder) / "federation",
            participants=max(participants, WARM_UP[0]),
            tasks=[_scheduled(spec, count, quorum) for spec, count, quorum in schedules],
        )
        with federation:
            for spec in small.values():
                secure_round(federation, spec, WARM_UP[0], least_likeness=least_likeness(spec, WARM_UP[0]))
            for turn in range(repeats):
                for title, spec in list(compared.items())[:: 1 if turn % 2 else -1]:
                    least = least_likeness(spec, participants)
                    rounds[title].append(figures(secure_round(federation, spec, participants, least_likeness=least)))
    return rounds


def _scheduled(spec: TaskSpec, rounds: int, quorum: int) -> ScheduledTask:
    schedule = Schedule(rounds=rounds, quorum=quorum, deadline_seconds=WAIT_SECONDS, grace_seconds=0.0)
    return ScheduledTask(spec, schedule)


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rule", choices=("mean", "norm-clip"), default="mean")
    parser.add_argument("--participants", type=int, default=50)
    parser.add_argument("--dimension", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    sigma = party_sigma(PRIVACY, tasks(given.rule, given.participants, given.dimension)["with noise"], 1, 20)
    discrete_gaussian(bytes(16), sigma, 10)  # compiled
    began = time.process_time()
    discrete_gaussian(bytes(16), sigma, given.dimension)
    print(f"{given.dimension} samples: {time.process_time() - began:.2f} s of one core; load {os.getloadavg()[0]:.0f}")
    rounds = measure(given.rule, given.participants, given.dimension, given.repeats)
    print(f"\n{given.participants} participants, {given.dimension} parameters, medians of {given.repeats}, seconds\n")
    print("| task | bits | by the clock | processor, all processes | processor, three workers |\n|---|---|---|---|---|")
    medians = {
        title: [statistics.median(column) for column in zip(*told, strict=True)] for title, told in rounds.items()
    }
    for title, spec in tasks(given.rule, given.participants, given.dimension).items():
        cells = [
            f"{seconds:.2f} (noise: {100 * (noised / seconds - 1):+.0f} %)"
            if seconds is not noised
            else f"{noised:.2f}"
            for seconds, noised in zip(medians[title], medians["with noise"], strict=True)
        ]
        print(f"| {title} | {spec.ring_bits} | {' | '.join(cells)} |")
    print(f"\nload {os.getloadavg()[0]:.0f}")


if __name__ == "__main__":
    main()
