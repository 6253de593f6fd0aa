"""What one party receives in a round is uniform and does not depend on the updates, openings apart.

Frames are recorded over many rounds of two very different input sets, and tested label by label, alone and against
each other frame of the same size. Leaks put in on purpose show that the test would find them.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable

import numpy as np
import pytest
from round_parties import ONE, round_inputs, run_rounds, task

from triskele_server.mpc import arithmetic, boolean
from triskele_server.mpc.randomness import CorrelatedRandomness
from triskele_server.mpc.session import Shares

ROUNDS, LEAKING_ROUNDS = 7, 3
N, D = 16, 3
ENOUGH = 3 * 256  # bytes: fewer expected counts make a chi-square meaningless
SIGMAS = 7.0
# Public, and the same for everybody: not secret, so not uniform over rounds of one input set.
PUBLIC = ("agree/input set",)

Frames = list[tuple[int, str, bytes]]  # sender, label, payload


def _near_zero() -> np.ndarray:
    return np.array([[i % 2, -(i // 8), 0] for i in range(N - 1)] + [[5, -900, 700]])


def _large() -> np.ndarray:
    return np.array([[ONE // 2 + i, -ONE // 3, 7 * i] for i in range(N - 1)] + [[-ONE, 0, 3]])


def _recorded(spec, words: np.ndarray, rounds: int = ROUNDS) -> list[list[Frames]]:
    """[party][round] what it received."""
    views: list[list[Frames]] = [[], [], []]
    for _ in range(rounds):
        ran = run_rounds(round_inputs(spec, words))
        assert not ran.errors
        for party, transport in enumerate(ran.transports):
            views[party].append(transport.received)
    return views


def _secret(label: str) -> bool:
    return not label.startswith(("open/", *PUBLIC))


def _kind(label: str) -> str:
    return re.sub(r"\[.*\]", "", label)


def _samples(rounds: list[Frames]) -> dict[str, np.ndarray]:
    """Bytes by label, and of every frame XOR and minus the one before of the same size (a mask used twice shows)."""
    pooled: dict[str, list[np.ndarray]] = defaultdict(list)
    for frames in rounds:
        before: dict[int, np.ndarray] = {}
        for _, label, payload in frames:
            if not _secret(label) or not payload:
                continue
            content = np.frombuffer(payload, np.uint8)
            kind = _kind(label)
            pooled[kind].append(content)
            if len(content) in before:
                pooled[f"{kind} xor before"].append(content ^ before[len(content)])
                if "int64" in kind:
                    difference = content.view(np.int64) - before[len(content)].view(np.int64)
                    pooled[f"{kind} minus before"].append(difference.view(np.uint8))
            before[len(content)] = content
    return {kind: np.concatenate(parts) for kind, parts in pooled.items()}


def _sigmas(statistic: float, freedom: int) -> float:
    return (statistic - freedom) / (2 * freedom) ** 0.5


def _non_uniform(content: np.ndarray) -> float:
    """By how many standard deviations the bytes' chi-square is above that of uniform bytes."""
    counts = np.bincount(content, minlength=256)
    expected = len(content) / 256
    return _sigmas(float(((counts - expected) ** 2 / expected).sum()), 255)


def _different(one: np.ndarray, other: np.ndarray) -> float:
    """The same for the two-sample chi-square of homogeneity."""
    table = np.stack([np.bincount(c, minlength=256) for c in (one, other)]).astype(float)
    expected = table.sum(1, keepdims=True) * table.sum(0) / table.sum()
    used = expected[0] > 0
    return _sigmas(float(((table - expected)[:, used] ** 2 / expected[:, used]).sum()), int(used.sum()) - 1)


def _suspicious(one: list[list[Frames]], other: list[list[Frames]]) -> set[tuple[int, str]]:
    """Party and label of every sample that is not uniform or differs between the two input sets."""
    found = set()
    for party in range(3):
        a, b = _samples(one[party]), _samples(other[party])
        assert a.keys() == b.keys()
        for kind in a:
            far = max(_non_uniform(a[kind]), _non_uniform(b[kind]), _different(a[kind], b[kind]))
            if len(a[kind]) >= ENOUGH and far > SIGMAS:
                found.add((party, kind))
    return found


def _outline(frames: Frames) -> list[tuple[int, str, int]]:
    return [(sender, label, len(payload)) for sender, label, payload in frames]


SPECS = {
    "mean": {},
    "norm-clip": {"decisions": "hidden"},
    "multi-krum": {"rule_options": {"num_malicious_nodes": 1, "num_nodes_to_select": N - 1}},
}


@pytest.mark.parametrize("rule", SPECS)
def test_a_partys_view_does_not_depend_on_the_updates(rule):
    spec = task(D, rule, **SPECS[rule])
    one, other = _recorded(spec, _near_zero()), _recorded(spec, _large())
    assert _suspicious(one, other) == set()
    for party in range(3):
        outlines = [_outline(frames) for frames in one[party] + other[party]]
        assert all(outline == outlines[0] for outline in outlines)  # labels, order, sizes
        public = {
            (label, payload)
            for frames in one[party] + other[party]
            for _, label, payload in frames
            if label.startswith(PUBLIC)
        }
        assert len(public) == 1


def test_every_label_of_a_round_is_tested():
    """The statistics look at every operation of the protocol; only these few frames are left to other tests."""
    spec = task(D, "norm-clip", decisions="hidden")
    views = _recorded(spec, _near_zero(), 1)
    labels = {_kind(label) for view in views for frames in view for _, label, _ in frames if not _secret(label)}
    assert labels == {
        "agree/input set",
        *(f"open/{name}:int64{tail}" for name in ("valid", "enough_accepted") for tail in ("", "/digest")),
        "open/aggregate:int64",
    }
    tested = {kind for view in views for kind, c in _samples(view).items() if len(c) * ROUNDS >= ENOUGH}
    assert {"word:int64", "and:int64", "and:int32", "and:int16", "and:uint8", "bit:int64", "mul:int64"} < tested
    assert {"shift:int64", "shift-top:int64", "norms:int64", "gram:int64", "compare/sketch"} < tested


# ---- leaks put in on purpose: each must be found ---------------------------------------------------------------------


def _found(patch: Callable[[], None]) -> set[str]:
    patch()
    spec = task(D, "norm-clip", decisions="hidden")
    suspicious = _suspicious(*(_recorded(spec, words, LEAKING_ROUNDS) for words in (_near_zero(), _large())))
    return {kind.split(" ")[0] for _, kind in suspicious}


def test_unmasked_products_are_found(monkeypatch):
    """CrypTen's own replicated multiplication sends them so."""

    def reshare(session, label, part):
        return Shares(part, session.pass_back(label, part))

    found = _found(lambda: monkeypatch.setattr(arithmetic, "reshare", reshare))
    assert {"mul:int64", "bit:int64"} <= found


def test_unmasked_conjunctions_are_found(monkeypatch):
    def conjunction(session, x, y):
        part = (x.first & (y.first ^ y.second)) ^ (x.second & y.first)
        return Shares(part, session.pass_back("and", part))

    found = _found(lambda: monkeypatch.setattr(boolean, "conjunction", conjunction))
    assert "and:int64" in found


def test_a_mask_used_twice_is_found(monkeypatch):
    """Every dealt value under the same mask: each frame alone is uniform, two together are not."""

    def repeating(self, *args):
        original(self, *args)
        self._fixed = {}

    original = CorrelatedRandomness.__init__
    draws = {"with_next": CorrelatedRandomness.with_next, "with_previous": CorrelatedRandomness.with_previous}

    def repeated(name):
        def draw(self, shape, dtype):
            kept = self._fixed.setdefault((name, tuple(shape)), None)
            if kept is None:
                kept = self._fixed[name, tuple(shape)] = draws[name](self, shape, dtype)
            return kept.clone()

        return draw

    def patch() -> None:
        monkeypatch.setattr(CorrelatedRandomness, "__init__", repeating)
        for name in draws:
            monkeypatch.setattr(CorrelatedRandomness, name, repeated(name))

    assert {"shift:int64", "shift-top:int64"} & _found(patch)
