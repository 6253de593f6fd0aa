"""Where a round's messages between parties go: `python -m bench.rounds --help`.

Prints for each rule, by step and by operation, the longest chain of messages that wait for each other and the bytes
that each party sends; and the same for the rule alone on a secret matrix. `--latency-ms` lets every frame travel for
that long and adds the seconds of the round and of the rule.
"""

from __future__ import annotations

import argparse
import re
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

from bench.filter import options_of, updates_of
from triskele.ids import PARTIES, PartyIndex
from triskele.task import FRACTION_BITS
from triskele_server.benchmark.operations import DepthTransport
from triskele_server.mpc.opening_ledger import OpeningLedger
from triskele_server.mpc.replicated import ReplicatedTensor
from triskele_server.mpc.session import Session, Shares
from triskele_server.mpc.transport import Frame, thread_transports
from triskele_server.rules.registry import find
from triskele_server.simulate import simulate

DEFAULT_RULES = "norm-clip,multi-krum,fltrust,flame"
# A step's frames carry one of its labels; () takes what its neighbours do not.
STEPS = (
    ("keys", ("key",)), ("agreement", ("agree/",)), ("coin", ("coin/", "agree/coin")), ("attempts", ("checkpoint/",)),
    ("sketch", ("compare/",)), ("check", ()), ("gram", ("gram",)), ("filter", ()), ("decision", ("checkpoint/",)),
    ("combine", ("open/aggregate",)),
)  # fmt: skip


class Tracing(DepthTransport):
    """Counts, by step and by operation, the chain's growth at this party and the bytes it sends."""

    def __init__(self, *args: Any, latency: float, arrivals: dict[tuple[int, int, int], float]) -> None:
        super().__init__(*args)
        self.latency, self.arrivals = latency, arrivals  # the latter of all frames, by sender, receiver and number
        self.step = 0
        self.rounds: dict[tuple[str, str], int] = defaultdict(int)
        self.sent: dict[tuple[str, str], int] = defaultdict(int)

    def _place(self, label: str) -> tuple[str, str]:
        labels = STEPS[self.step][1]
        following = STEPS[self.step + 1][1] if self.step + 1 < len(STEPS) else ()
        if label.startswith(following or ("\0",)) or (labels and not label.startswith(labels)):
            self.step = min(self.step + 1, len(STEPS) - 1)
        return STEPS[self.step][0], re.sub(":.*|/digest.*", "", label)

    def _put(self, peer: PartyIndex, frame: Frame) -> None:
        self.sent[self._place(frame.label)] += len(frame.payload)
        self.arrivals[self.party, peer, frame.sequence] = time.monotonic() + self.latency
        super()._put(peer, frame)

    def _get(self, peer: PartyIndex, label: str) -> Frame:
        place, depth = self._place(label), self.depth
        frame = super()._get(peer, label)
        time.sleep(max(0.0, self.arrivals.pop((peer, self.party, frame.sequence)) - time.monotonic()))
        self.rounds[place] += self.depth - depth
        return frame


def _transports(latency: float) -> list[Tracing]:
    queues = thread_transports()[0]._queues  # noqa: SLF001 - the same channels under another class
    arrivals: dict[tuple[int, int, int], float] = {}
    return [Tracing(party, queues, 120.0, latency=latency, arrivals=arrivals) for party in PARTIES]


def of_the_rule(name: str, rows: int, latency: float) -> tuple[list[Tracing], float]:
    """The transports after the rule alone ran on a secret Gram matrix [rows, rows], and the seconds."""
    words = updates_of(np.random.default_rng(0), rows, 1000).astype(np.float64)
    words /= np.linalg.norm(words, axis=1).max()
    secret = torch.from_numpy(np.rint(words @ words.T * 2.0**40).astype(np.int64))
    options = {k: v for k, v in options_of(name, rows)["rule_options"].items() if k in find(name).options}
    transports = _transports(latency)
    shares = _shared(secret)

    def run(party: PartyIndex) -> None:
        session = Session(transports[party], OpeningLedger([]), b"bench")
        gram = ReplicatedTensor(shares[party], session, 40)
        find(name).call(gram, options=options, clip_norm=1.0, adapted_bound=1 << FRACTION_BITS)

    return transports, _in_threads(run)


def _shared(secret: torch.Tensor) -> list[Shares]:
    parts = [torch.from_numpy(np.frombuffer(np.random.bytes(secret.numel() * 8), np.int64).copy()) for _ in range(2)]
    whole = [part.reshape(secret.shape) for part in parts]
    whole.append(secret - whole[0] - whole[1])
    return [Shares(whole[party], whole[(party + 1) % 3]) for party in PARTIES]


def _in_threads(run: Callable[[PartyIndex], None]) -> float:
    started = time.perf_counter()
    with ThreadPoolExecutor(len(PARTIES)) as pool:
        list(pool.map(run, PARTIES))  # raises what a party raises
    return time.perf_counter() - started


def table(transports: Sequence[Tracing], by: int) -> list[str]:
    """Lines by step (`by` = 0) or by operation (1)."""
    longest = max(transports, key=lambda t: (t.depth, t.party))  # party 0 waits for openings only
    names = list(dict.fromkeys(place[by] for t in transports for place in [*t.sent, *t.rounds]))
    lines = []
    for name in names:
        rounds = sum(count for place, count in longest.rounds.items() if place[by] == name)
        sent = [sum(count for place, count in t.sent.items() if place[by] == name) for t in transports]
        lines.append(f"  {name:24} {rounds:4} rounds   {' '.join(f'{s / 1e6:8.3f}' for s in sent)} MB")
    return lines


def main() -> None:
    """Trace each rule's round and the rule alone."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rules", default=DEFAULT_RULES, help="comma-separated")
    parser.add_argument("--participants", type=int, default=100)
    parser.add_argument("--dimension", type=int, default=20_000)
    parser.add_argument("--latency-ms", type=float, default=0.0)
    parser.add_argument("--operations", action="store_true", help="by operation, too")
    given = parser.parse_args()
    torch.set_num_threads(1)
    latency = given.latency_ms / 1e3
    updates = updates_of(np.random.default_rng(0), given.participants, given.dimension)
    for rule in given.rules.split(","):
        of_the_rule(rule, 6, 0.0)  # kernels are compiled once per installation
        alone, seconds = of_the_rule(rule, given.participants, latency)
        print(f"{rule}, alone: {seconds:.2f} s")
        print("\n".join(_totals(alone) + (table(alone, 1) if given.operations else [])))
        transports = _transports(latency)
        started = time.perf_counter()
        simulate(updates, transports=transports, **options_of(rule, given.participants))
        print(f"{rule}, whole round: {time.perf_counter() - started:.2f} s")
        print("\n".join(_totals(transports) + table(transports, 0)))
        if given.operations:
            print("\n".join(table(transports, 1)), flush=True)


def _totals(transports: Sequence[Tracing]) -> list[str]:
    depth = max(t.depth for t in transports)
    sent = " ".join(f"{t.traffic.bytes_sent / 1e6:8.3f}" for t in transports)
    return [f"  {'all':24} {depth:4} rounds   {sent} MB"]


if __name__ == "__main__":
    main()
