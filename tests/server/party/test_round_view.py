"""What one party receives in a round is uniform and does not depend on the updates, openings apart.

Frames are recorded over many rounds of two very different input sets, and tested label by label, alone and against
each other frame of the same size. Of a product the sender's words alone can be uniform and yet tell the receiver, who
holds some of the factors, what it must not know: so each exchange of the protocol is also recorded alone, on shares
that stay the same from run to run. Leaks put in on purpose show that the tests would find them.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable

import numpy as np
import pytest
import torch
from round_parties import ONE, in_sessions, participant, round_inputs, run_rounds, task

from triskele_server.mpc import arithmetic, boolean, graph, truncation
from triskele_server.mpc.carry_tree import NARROW
from triskele_server.mpc.randomness import CorrelatedRandomness
from triskele_server.mpc.session import Session, Shares

N, D = 16, 3
ENOUGH = 3 * 256  # bytes: fewer expected counts make a chi-square meaningless
SIGMAS = 7.0
# Public, and the same in every round of these tests: not secret, so not uniform.
PUBLIC = ("agree/input set", "agree/rules", "agree/previous aggregate", "tell/", "checkpoint/")

Frames = list[tuple[int, str, bytes]]  # sender, label, payload


@pytest.fixture(autouse=True)
def _rotated(monkeypatch):
    """In batches of this module's sizes, too, each party deals for a third of the comparisons."""
    monkeypatch.setattr(boolean, "ROTATED", 2 * COUNT)


def _near_zero() -> np.ndarray:
    return np.array([[i % 2, -(i // 8), 0] for i in range(N - 1)] + [[5, -900, 700]])


def _large() -> np.ndarray:
    return np.array([[ONE // 2 + i, -ONE // 3, 7 * i] for i in range(N - 1)] + [[-ONE, 0, 3]])


def _near_the_axes() -> np.ndarray:
    """Nobody looks like anybody's Sybil."""
    return np.concatenate([np.eye(D, dtype=np.int64), -np.eye(D, dtype=np.int64)])


def _long_and_askew() -> np.ndarray:
    rows = np.array([[2, 2, 1], [-2, 1, 2], [1, -2, 2], [-2, -2, -1], [2, -1, -2], [-1, 2, -2]])
    return rows * (ONE // 4)


def _recorded(spec, words: np.ndarray, rounds: int) -> list[list[Frames]]:
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
    """Bytes by label; of every frame XOR and minus the one before of the same size (a mask used twice shows); and XOR
    the same frame of the round before (what is not masked shows if the shares stay the same)."""
    pooled: dict[str, list[np.ndarray]] = defaultdict(list)
    last_round: list[np.ndarray] = []
    for frames in rounds:
        before: dict[int, np.ndarray] = {}
        contents = [np.frombuffer(payload, np.uint8) for _, label, payload in frames if _secret(label) and payload]
        labels = [_kind(label) for _, label, payload in frames if _secret(label) and payload]
        for place, (kind, content) in enumerate(zip(labels, contents, strict=True)):
            pooled[kind].append(content)
            if len(content) in before:
                pooled[f"{kind} xor before"].append(content ^ before[len(content)])
                if "int64" in kind:
                    difference = content.view(np.int64) - before[len(content)].view(np.int64)
                    pooled[f"{kind} minus before"].append(difference.view(np.uint8))
            before[len(content)] = content
            if last_round:
                pooled[f"{kind} xor last"].append(content ^ last_round[place])
        last_round = contents
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
    freedom = max(int(used.sum()) - 1, 1)
    return _sigmas(float(((table - expected)[:, used] ** 2 / expected[:, used]).sum()), freedom)


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


HIDDEN = {"decisions": "hidden"}
SPECS = {  # options, input sets, rounds of each
    "mean": ({}, (_near_zero, _large), 7),
    "norm-clip": (HIDDEN, (_near_zero, _large), 5),
    "multi-krum": ({"rule_options": {"num_nodes_to_select": N - 1}}, (_near_zero, _large), 5),
    "flame": (HIDDEN, (_near_zero, _large), 3),
    "fltrust": ({**HIDDEN, "root": participant(9)}, (_near_zero, _large), 5),
    "geometric-median": (HIDDEN, (_near_zero, _large), 5),
    "foolsgold": (HIDDEN, (_near_the_axes, _long_and_askew), 5),
    "nnm trimmed-mean": (HIDDEN, (_near_zero, _large), 5),
}


@pytest.mark.parametrize("names", SPECS)
def test_a_partys_view_does_not_depend_on_the_updates(names):
    options, inputs, rounds = SPECS[names]
    spec = task(D, tuple(names.split()), **options)
    one, other = (_recorded(spec, words(), rounds) for words in inputs)
    assert _suspicious(one, other) == set()
    for party in range(3):
        outlines = [_outline(frames) for frames in one[party] + other[party]]
        assert all(outline == outlines[0] for outline in outlines)  # labels, order, sizes
        public = defaultdict(set)
        for frames in one[party] + other[party]:
            for _, label, payload in frames:
                if label.startswith(PUBLIC):
                    public[label].add(payload)
        assert len(public) >= 3
        assert all(len(payloads) == 1 for payloads in public.values())


# ---- each exchange alone, on shares that stay the same ---------------------------------------------------------------

RUNS = 14
COUNT = 32  # elements of an operand


def _parts(secret: np.ndarray, seed: int) -> list[torch.Tensor]:
    """Three additive shares, always the same ones."""
    drawn = np.random.default_rng(seed).integers(-(1 << 63), 1 << 63, (2, *secret.shape), dtype=np.int64)
    return [torch.from_numpy(part) for part in (*drawn, secret - drawn[0] - drawn[1])]


def _bit_parts(secret: np.ndarray, seed: int) -> list[torch.Tensor]:
    drawn = np.random.default_rng(seed).integers(0, 2, (2, *secret.shape), dtype=np.uint8)
    return [torch.from_numpy(part) for part in (*drawn, secret.astype(np.uint8) ^ drawn[0] ^ drawn[1])]


def _held(session: Session, parts: list[torch.Tensor]) -> Shares:
    return Shares(parts[session.party], parts[(session.party + 1) % 3])


# Of two words, two bits and a graph's matrix, all secret.
EXCHANGES: dict[str, Callable[[Session, Shares, Shares, Shares, Shares], object]] = {
    "parts": lambda s, x, y, bits, edges: [
        arithmetic.reshare_at_once(s, label, x.first) for label in ("gram", "norms")
    ],
    "multiply": lambda s, x, y, bits, edges: arithmetic.multiply(s, x, y),
    "matmul": lambda s, x, y, bits, edges: arithmetic.matmul(s, _square(x), _square(y)),
    "truncate": lambda s, x, y, bits, edges: arithmetic.truncate(s, x, 9),
    "multiply and truncate": lambda s, x, y, bits, edges: truncation.multiply_truncated(s, x, y, 9),
    "bit to word": lambda s, x, y, bits, edges: arithmetic.bit_to_word(s, bits),
    "times bit": lambda s, x, y, bits, edges: arithmetic.times_bit(s, bits, x),
    "sign bit": lambda s, x, y, bits, edges: boolean.sign_bit(s, x),
    "negative": lambda s, x, y, bits, edges: boolean.negative(s, x, width=NARROW),
    "negative, each party deals": lambda s, x, y, bits, edges: boolean.negative(s, _twice(x)),
    "floor": lambda s, x, y, bits, edges: boolean.floor_shift(s, x, 9),
    "closure": lambda s, x, y, bits, edges: graph.closure(s, edges),
}


def _twice(x: Shares) -> Shares:
    return Shares(x.first.repeat(2), x.second.repeat(2))


def _square(x: Shares) -> Shares:
    return Shares(x.first[:25].reshape(5, 5), x.second[:25].reshape(5, 5))


def _exchanged(name: str, secret: int, runs: int = RUNS) -> list[list[Frames]]:
    """[party][run] what it received in one exchange on the same shares of words `secret`, of its lowest bit, and of a
    graph with edges at its bits."""
    words = np.full(COUNT, secret)
    edges = np.array([[1 if i == j or secret >> (i + j) & 1 else 0 for j in range(6)] for i in range(6)])
    shared = [_parts(words, 1), _parts(words // 2 + 1, 2), _bit_parts(words & 1, 3), _parts(edges, 4)]
    views: list[list[Frames]] = [[], [], []]
    for _ in range(runs):
        ran = in_sessions(lambda s: EXCHANGES[name](s, *(_held(s, parts) for parts in shared)))
        for error in ran.errors.values():
            raise error
        for party, transport in enumerate(ran.transports):
            views[party].append(transport.received)
    return views


def _suspicious_exchanges() -> set[str]:
    """Labels at which some exchange tells a party something about what it does not hold."""
    found = set()
    for name in EXCHANGES:
        found |= {kind.split(" ")[0] for _, kind in _suspicious(_exchanged(name, 0), _exchanged(name, 777_777_777))}
    return found


def _labels(views: list[list[Frames]]) -> set[str]:
    return {_kind(label) for view in views for frames in view for _, label, _ in frames}


def _labels_of_exchanges() -> set[str]:
    return {label for name in EXCHANGES for label in _labels(_exchanged(name, 5, runs=1))} - {"key"}


def test_each_exchange_alone_tells_a_party_nothing_on_shares_that_stay_the_same():
    assert _suspicious_exchanges() == set()


def test_every_label_of_a_round_is_tested():
    """The statistics look at every operation of the protocol; only these few frames are left to other tests."""
    views = {
        names: _recorded(task(D, tuple(names.split()), **options), inputs[0](), 1)
        for names, (options, inputs, _) in SPECS.items()
    }
    labels = {label for names in SPECS for label in _labels(views[names])}
    opened = {label for label in labels if label.startswith("open/")}
    assert {label.split(":")[0] for label in opened} == {
        f"open/{name}" for name in ("valid", "enough_accepted", "accepted", "aggregate")
    }
    agreed = {"key", "coin/commit", "coin/reveal", "agree/coin", "compare/sketch"}
    public = {label for label in labels if label.startswith(PUBLIC)}
    secret = labels - opened - public - agreed
    assert secret == _labels_of_exchanges()
    enough = {
        kind
        for names, (_, _, rounds) in SPECS.items()
        for view in views[names]
        for kind, content in _samples(view).items()
        if len(content) * rounds >= ENOUGH
    }
    assert secret <= enough


# ---- leaks put in on purpose: each must be found ---------------------------------------------------------------------


def _undrawn(self, shape, dtype=torch.int64):
    return torch.zeros(shape, dtype=dtype)


MASKS = {
    "zero_sum": {"gram", "norms", "bit"},
    "with_next": {"mul", "matmul", "part", "compare", "carry", "bit", "shift", "shift-top", "select"},
    "with_previous": {"mul", "matmul", "part", "carry", "bit", "shift", "select"},
}


@pytest.mark.parametrize("mask", MASKS)
def test_exchanges_without_a_mask_are_found(mask, monkeypatch):
    """CrypTen's own replicated multiplication sends its products so."""
    monkeypatch.setattr(CorrelatedRandomness, mask, _undrawn)
    assert {label.split(":")[0] for label in _suspicious_exchanges()} >= MASKS[mask]


def test_no_label_goes_without_a_mask_whose_loss_is_found():
    assert set().union(*MASKS.values()) == {label.split(":")[0] for label in _labels_of_exchanges()}


def _found_in_rounds(patch: Callable[[], None]) -> set[str]:
    patch()
    spec = task(D, "norm-clip", decisions="hidden")
    suspicious = _suspicious(*(_recorded(spec, words, 3) for words in (_near_zero(), _large())))
    return {kind.split(" ")[0] for _, kind in suspicious}


def test_unmasked_words_are_found_in_a_whole_round(monkeypatch):
    """In what parties 1 and 2 send: what party 0 sends is masked with the shares that it draws, too."""
    monkeypatch.setattr(CorrelatedRandomness, "zero_sum", _undrawn)
    spec = task(D, "norm-clip", decisions="hidden")
    views = [_recorded(spec, words, 3) for words in (_near_zero(), _large())]
    sent = [[[[f for f in frames if f[0]] for frames in rounds] for rounds in view] for view in views]
    assert "gram:int64" in {kind.split(" ")[0] for _, kind in _suspicious(*sent)}


def test_unmasked_exchanges_of_parties_1_and_2_are_found_in_a_whole_round(monkeypatch):
    def undrawn(session, like):
        return Shares(torch.zeros_like(like), torch.zeros_like(like))

    found = _found_in_rounds(lambda: monkeypatch.setattr(arithmetic, "_drawn_share", undrawn))
    assert {"mul:int64", "part:int64"} & found


def test_unmasked_carries_are_found_in_a_whole_round(monkeypatch):
    drawn = boolean._Lane._drawn

    def undrawn(self, draw):
        return tuple(torch.zeros_like(mask) for mask in drawn(self, draw))

    found = _found_in_rounds(lambda: monkeypatch.setattr(boolean._Lane, "_drawn", undrawn))
    assert {"carry:int32", "carry:uint8"} <= found


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

    assert {"shift:int64", "shift-top:int64"} & _found_in_rounds(patch)
