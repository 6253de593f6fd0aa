"""`simulate`: its outcome for honest and for malicious participants, and that nothing of CrypTen's protocols runs."""

from __future__ import annotations

import inspect
import sys
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch

from triskele.errors import InvalidTask, InvalidUpdate, RoundFailed
from triskele_server.mpc.crypten_import import crypten
from triskele_server.rules import bucketing
from triskele_server.simulate import SimulatedRound
from triskele_server.simulate import simulate as simulate_in_a_ring

sys.path.append(str(Path(__file__).parents[2]))  # bench/ is a room of the repository, not of the package

from bench.plaintext import aggregate

simulate = partial(simulate_in_a_ring, ring=64)  # whose places the bounds here are about; the other: test_narrow_ring

torch.set_num_threads(1)

ONE = 1 << 20
MIN = -(1 << 63)
SHORT, LONG = 100, 8_500  # below and above the longest update that is its own sketch
RULES = {
    "mean": {},
    "norm-clip": {},
    "multi-krum": {"num_malicious_nodes": 1, "num_nodes_to_select": 4},
}
MORE_RULES = {
    "flame": {},
    "fltrust": {},
    "geometric-median": {"nu": 0.05},
    "centered-clip": {"tau": 0.4},
    "dnc": {"num_malicious_nodes": 1},
    "foolsgold": {},
    "median": {},
    "trimmed-mean": {"num_malicious_nodes": 1},
    "nnm krum": {"num_malicious_nodes": 1},
}
UNWEIGHTED = {"centered-clip", "median", "trimmed-mean"}


def _rule(name: str, rows: int) -> dict:
    """The arguments of `simulate` for a rule of the tables above; the root, if it needs one, is the last row."""
    options = {**RULES, **MORE_RULES}[name]
    root = rows - 1 if name == "fltrust" else None
    return {"rule": name.split(), "rule_options": options, "clip_norm": 1.0, "root": root}


def _grid(n: int, d: int, seed: int = 1, norm: float = 0.9) -> np.ndarray:
    """Rows of clip norm 1 that lie on the encoding's grid."""
    rows = np.random.default_rng(seed).normal(size=(n, d))
    return np.round(rows / np.linalg.norm(rows, axis=1, keepdims=True) * norm * ONE) / ONE


# ---- the interface ------------------------------------------------------------------------------------------------


def test_the_signature_that_notebooks_and_benchmarks_stand_on():
    parameters = inspect.signature(simulate_in_a_ring).parameters
    assert list(parameters) == [
        "updates", "rule", "rule_options", "clip_norm", "weights", "decisions", "release", "gram", "min_accepted",
        "raw_rows", "root", "previous", "max_rows", "transports", "privacy", "clip_bound", "ring",
    ]  # fmt: skip
    defaults = {name: p.default for name, p in parameters.items() if name != "updates"}
    assert defaults == {
        "rule": "mean", "rule_options": {}, "clip_norm": None, "weights": None, "decisions": "public",
        "release": "public", "gram": "auto", "min_accepted": 2, "raw_rows": {}, "root": None, "previous": None,
        "max_rows": 128, "transports": None, "privacy": None, "clip_bound": None, "ring": "auto",
    }  # fmt: skip
    assert all(p.kind is p.KEYWORD_ONLY for name, p in parameters.items() if name != "updates")


def test_the_outcome_tells_who_was_in_what_was_opened_and_what_it_cost():
    outcome = simulate(_grid(5, 20), rule="multi-krum", rule_options=RULES["multi-krum"])
    assert isinstance(outcome, SimulatedRound)
    assert (outcome.aggregate.shape, outcome.aggregate.dtype) == ((20,), np.float64)
    assert (outcome.accepted.shape, outcome.accepted.dtype, int(outcome.accepted.sum())) == ((5,), np.bool_, 4)
    assert outcome.invalid == {}
    assert outcome.openings == [("valid", (5,)), ("enough_accepted", ()), ("accepted", (5,)), ("aggregate", (20,))]
    assert [t.rounds > 5 and t.bytes_sent > 1000 for t in outcome.traffic] == [True] * 3
    assert set(outcome.seconds) == {"encode", "seal", "coin", "sketch", "check", "gram", "filter", "combine"}


@pytest.mark.parametrize("kind", [np.float64, np.float32, np.float16, np.int64, list])
def test_updates_of_any_real_type(kind):
    rows = np.array([[1, 0, -1], [0, 1, 1], [1, 1, 0]])
    updates = rows.tolist() if kind is list else rows.astype(kind)
    assert np.abs(simulate(updates, clip_norm=2.0).aggregate - rows.mean(0)).max() < 2.0**-18


def test_the_clip_norm_defaults_to_the_largest_norm():
    updates = np.array([[3.0, 4.0], [0.0, 1.0], [1.0, 0.0]])
    assert np.abs(simulate(updates).aggregate - updates.mean(0)).max() < 5 * 2.0**-19
    assert simulate(np.zeros((3, 4))).aggregate.tolist() == [0.0] * 4


def test_longer_updates_are_clipped():
    updates = np.array([[30.0, 40.0], [0.0, 0.5], [0.0, 0.5]])
    expected = np.array([0.6, 0.8 + 1.0]) / 3
    assert np.abs(simulate(updates, clip_norm=1.0).aggregate - expected).max() < 2.0**-18


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_an_update_that_is_no_number_is_refused_by_its_own_client(bad):
    updates = _grid(4, 10)
    clean = updates.copy()
    updates[2, 3] = bad
    outcome = simulate(updates, clip_norm=1.0)
    assert list(outcome.invalid) == [2]
    assert outcome.accepted.tolist() == [True, True, False, True]
    assert np.abs(outcome.aggregate - clean[[0, 1, 3]].mean(0)).max() < 1e-14


@pytest.mark.parametrize(
    "updates", [np.zeros(3), np.zeros((1, 3)), np.zeros((3, 0)), [["a", "b"]] * 3, np.ones((2, 2)) * 1j]
)
def test_what_is_no_matrix_of_updates_is_refused(updates):
    with pytest.raises(InvalidUpdate):
        simulate(updates)


@pytest.mark.parametrize("weights", [[1, 2], [1, -1, 1], [1.0, 1.0, 1.0]])
def test_what_are_no_weights_is_refused(weights):
    with pytest.raises(InvalidUpdate, match="integers >= 0"):
        simulate(np.ones((3, 2)), weights=weights)


def test_an_impossible_task_is_refused():
    for options in (
        {"rule": "no-such"},
        {"decisions": "secret"},
        {"gram": "rough"},
        {"min_accepted": 0},
        {"clip_norm": 0},
    ):
        with pytest.raises(InvalidTask):
            simulate(np.ones((3, 2)), **options)


@pytest.mark.parametrize("rule", ["mean", "norm-clip"])
def test_weights_of_nought_are_left_out(rule):
    updates = _grid(5, 30, norm=0.5)  # equal norms: nothing is clipped
    outcome = simulate(updates, rule=rule, clip_norm=1.0, weights=[0, 2, 2, 3, 0])
    expected = (updates[1] * 2 + updates[2] * 2 + updates[3] * 3) / 7
    assert np.abs(outcome.aggregate - expected).max() < 2.0**-18


# ---- malicious ring words -----------------------------------------------------------------------------------------


def _attacks(d: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(5)

    def entries(value: int, *places: int) -> np.ndarray:
        row = np.zeros(d, np.int64)
        row[list(places)] = value
        return row

    long = rng.normal(size=d)
    return {
        "one 2^32": entries(1 << 32, 4),
        "one -2^32": entries(-(1 << 32), d - 1),
        "one -2^63": entries(MIN, 0),
        "one 2^63 - 1": entries(-MIN - 1, 7),
        "pair of 2^63": entries(MIN, 0, 1),
        "pair of 2^63 far apart": entries(MIN, 3, d - 2),
        "pair of opposite signs": entries(MIN, 9) + entries(-MIN - 1, 10),
        "2^63 everywhere": np.full(d, MIN),
        "2^63 at every second": entries(MIN, *range(0, d, 2)),
        "random words": rng.integers(MIN, -MIN, d, dtype=np.int64),
        "norm 1.3 C": np.round(long / np.linalg.norm(long) * 1.3 * ONE).astype(np.int64),
        "one entry of 1.3 C": entries(int(1.3 * ONE), 2),
    }


@pytest.mark.parametrize("gram", ["auto", "sketch"])
@pytest.mark.parametrize("d", [SHORT, LONG])
def test_malicious_words_are_invalid_and_leave_the_aggregate_of_the_others_untouched(d, gram):
    attacks = _attacks(d)
    honest = _grid(5, d, norm=0.99999)
    n = len(honest) + len(attacks)
    bad = {2 * k + 1: row for k, row in enumerate(list(attacks.values())[:4])}  # among the honest ones
    bad |= {9 + k: row for k, row in enumerate(list(attacks.values())[4:])}
    good = [i for i in range(n) if i not in bad]
    updates = np.zeros((n, d))
    updates[good] = honest
    outcome = simulate(updates, clip_norm=1.0, raw_rows=bad, gram=gram)
    assert set(outcome.invalid) == set(bad)
    assert outcome.accepted.tolist() == [i in good for i in range(n)]
    assert np.abs(outcome.aggregate - honest.mean(0)).max() < 1e-14


@pytest.mark.parametrize(
    ("rule", "attack"), [*product(RULES, ["pair of 2^63", "norm 1.3 C"]), *product(MORE_RULES, ["norm 1.3 C"])]
)
def test_every_rule_gives_what_it_gives_without_the_malicious_row(rule, attack):
    d = SHORT
    common = _grid(1, d, seed=2)
    honest = (_grid(6, d) + common) / 2 * np.linspace(0.2, 1, 6)[:, None]
    honest = np.round(honest * ONE) / ONE
    alone = simulate(honest, **_rule(rule, 6))
    among = simulate(np.insert(honest, 2, 0, axis=0), raw_rows={2: _attacks(d)[attack]}, **_rule(rule, 7))
    assert set(among.invalid) == {2}
    assert np.delete(among.accepted, 2).tolist() == alone.accepted.tolist()
    assert np.abs(among.aggregate - alone.aggregate).max() < 2.0**-18


@pytest.mark.parametrize("d", [SHORT, LONG])
def test_raw_words_of_norm_exactly_c_are_accepted(d):
    spike = np.zeros(d, np.int64)
    spike[0] = ONE
    quarters = np.zeros(d, np.int64)
    quarters[:4] = [ONE // 2, -ONE // 2, ONE // 2, -ONE // 2]
    outcome = simulate(np.zeros((2, d)), clip_norm=1.0, raw_rows={0: spike, 1: quarters})
    assert outcome.invalid == {}
    assert outcome.aggregate[:4].tolist() == [0.75, -0.25, 0.25, -0.25]


@pytest.mark.parametrize("weight", [-1, 31, MIN])
@pytest.mark.parametrize("rule", RULES)
def test_a_weight_out_of_range_makes_its_row_invalid(rule, weight):
    updates = _grid(6, 20)
    words = np.append((updates[3] * ONE).astype(np.int64), weight)
    options = {"rule": rule, "rule_options": RULES[rule], "clip_norm": 1.0}
    outcome = simulate(updates, weights=[30] * 6, raw_rows={3: words}, **options)
    assert set(outcome.invalid) == {3}
    others = simulate(np.delete(updates, 3, 0), weights=[30] * 5, **options)
    assert np.abs(outcome.aggregate - others.aggregate).max() < 2.0**-18


def test_a_raw_row_with_a_weight_in_range_counts_with_it():
    updates = _grid(4, 10)
    words = np.append((updates[0] * ONE).astype(np.int64), 20)
    outcome = simulate(updates, weights=[1, 20, 20, 20], clip_norm=1.0, raw_rows={0: words})
    assert outcome.invalid == {}
    assert np.abs(outcome.aggregate - updates.mean(0)).max() < 1e-14


def test_too_few_valid_rows_end_the_round():
    bad = np.full(10, MIN)
    with pytest.raises(RoundFailed) as caught:
        simulate(_grid(4, 10), clip_norm=1.0, raw_rows={0: bad, 2: bad, 3: bad})
    assert caught.value.reason == "too_few_submissions"


def test_a_raw_row_of_another_length_is_refused():
    with pytest.raises(InvalidUpdate, match="raw row 1 must have 10 words"):
        simulate(_grid(3, 10), raw_rows={1: np.zeros(9, np.int64)})


# ---- buckets ------------------------------------------------------------------------------------------------------


COIN = b"c" * 32


@pytest.fixture
def buckets(monkeypatch):
    """`buckets(n, size)`: the rows in the order in which rounds of this test put them into buckets."""
    monkeypatch.setattr("triskele_server.party.round.toss_coin", lambda *_: COIN)

    def order(n: int, size: int) -> np.ndarray:
        matrix = bucketing.bucketing(n, coin=COIN, size=size).matrix
        return np.concatenate([np.flatnonzero(row) for row in matrix])

    return order


def _poisoned(n: int, d: int, spread: float = 1.5) -> np.ndarray:
    """Rows around a common direction, a sixth of them the other way, of lengths from 0.3 to 0.95, on the grid."""
    rng = np.random.default_rng(1)
    rows = rng.normal(size=d) + spread * rng.normal(size=(n, d))
    rows[: n // 6] *= -1
    rows *= rng.uniform(0.3, 0.95, (n, 1)) / np.linalg.norm(rows, axis=1, keepdims=True)
    return np.round(rows * ONE) / ONE


@pytest.mark.parametrize("weights", [None, [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8]])
@pytest.mark.parametrize("size", [1, 2, 3, 4, 6])
def test_the_mean_of_equal_buckets_is_the_mean(size, weights):
    updates = _grid(12, 30)
    options = {"rule_options": {"size": size}, "clip_norm": 1.0, "weights": weights}
    outcome = simulate(updates, rule=["bucketing", "mean"], **options)
    assert np.abs(outcome.aggregate - np.average(updates, axis=0, weights=weights)).max() < 1e-14
    assert outcome.accepted.all()


@pytest.mark.parametrize(("n", "size"), [(7, 3), (9, 8), (13, 7), (11, 4)])
def test_a_smaller_last_bucket_weighs_as_much_as_the_others(n, size, buckets):
    updates = _grid(n, 30)
    outcome = simulate(updates, rule=["bucketing", "mean"], rule_options={"size": size}, clip_norm=1.0)
    order = buckets(n, size)
    means = [updates[order[start : start + size]].mean(0) for start in range(0, n, size)]
    assert np.abs(outcome.aggregate - np.mean(means, axis=0)).max() < 1e-14


@pytest.mark.parametrize(
    ("rule", "n", "options"),
    [
        ("flame", 300, {}),
        ("multi-krum", 300, {"num_nodes_to_select": 20, "num_malicious_nodes": 5}),
        ("multi-krum", 299, {"num_nodes_to_select": 20, "num_malicious_nodes": 5}),  # the last bucket is smaller
    ],
)
def test_more_rows_than_max_rows_are_averaged_in_buckets_before_the_rule(rule, n, options, buckets):
    updates = _poisoned(n, 50)
    outcome = simulate(updates, rule=rule, rule_options=options, clip_norm=1.0, max_rows=64)
    expected = aggregate(updates, ["bucketing", rule], {"size": 5, **options}, clip_norm=1.0, order=buckets(n, 5))
    assert outcome.accepted.tolist() == expected.accepted.tolist()
    assert np.linalg.norm(outcome.aggregate - expected.aggregate) < 2.0**-20
    assert outcome.openings[2] == ("accepted", (60,))


@pytest.mark.parametrize(("rule", "options"), [("flame", {}), ("multi-krum", {"num_nodes_to_select": 18})])
def test_sketches_of_buckets_decide_as_the_rows_do(rule, options, buckets):
    """The honest rows are equal, and so are their buckets: the estimate's one per cent decides nothing."""
    updates = np.tile(_grid(1, LONG), (96, 1))
    updates[:9] = _grid(9, LONG, seed=2)
    outcome = simulate(updates, rule=rule, rule_options=options, clip_norm=1.0, max_rows=32, gram="sketch")
    expected = aggregate(updates, ["bucketing", rule], {"size": 3, **options}, clip_norm=1.0, order=buckets(96, 3))
    assert 48 < expected.accepted.sum() < 96
    assert outcome.accepted.tolist() == expected.accepted.tolist()
    assert np.linalg.norm(outcome.aggregate - expected.aggregate) < 2.0**-17


def test_a_thousand_participants(buckets):
    updates = _poisoned(1000, 2000)
    outcome = simulate(updates, rule="flame", clip_norm=1.0)
    expected = aggregate(updates, ["bucketing", "flame"], {"size": 8}, clip_norm=1.0, order=buckets(1000, 8))
    assert outcome.accepted.tolist() == expected.accepted.tolist()
    assert np.linalg.norm(outcome.aggregate - expected.aggregate) < 2.0**-20


def test_stages_and_weights_behind_buckets(buckets):
    updates, weights = _poisoned(40, 30), np.arange(40) % 7 + 1
    rule, options = ["bucketing", "nnm", "geometric-median"], {"size": 3, "num_malicious_nodes": 3}
    outcome = simulate(updates, rule=rule, rule_options=options, clip_norm=1.0, weights=weights)
    expected = aggregate(updates, rule, options, clip_norm=1.0, weights=weights, order=buckets(40, 3))
    assert np.linalg.norm(outcome.aggregate - expected.aggregate) < 2.0**-14


@pytest.mark.parametrize("rule", ["geometric-median", "fltrust"])
@pytest.mark.parametrize("weighted", [False, True])
def test_a_thousand_participants_lose_no_precision(rule, weighted, buckets):
    """Trust and example weights of a thousandth each make weights of a millionth."""
    updates, root = _poisoned(1001, 60), 1000 if rule == "fltrust" else None
    weights = np.arange(1001) * 7919 % 50 + 1 if weighted else None
    outcome = simulate(updates, rule=rule, clip_norm=1.0, root=root, weights=weights)
    order = buckets(1001 - (root is not None), 8)
    expected = aggregate(
        updates, ["bucketing", rule], {"size": 8}, clip_norm=1.0, root=root, weights=weights, order=order
    )
    assert np.linalg.norm(outcome.aggregate - expected.aggregate) < 2.0**-14 * np.linalg.norm(expected.aggregate)


# ---- a root, and a previous aggregate -----------------------------------------------------------------------------


@pytest.mark.parametrize("root", [0, 7, 40])
def test_the_root_is_in_no_bucket(root, buckets):
    updates = _poisoned(41, 60)
    updates[root] = _poisoned(41, 60)[-1] * 0.7
    outcome = simulate(updates, rule="fltrust", clip_norm=1.0, max_rows=8, root=root)
    expected = aggregate(updates, ["bucketing", "fltrust"], {"size": 5}, clip_norm=1.0, root=root, order=buckets(40, 5))
    assert np.linalg.norm(outcome.aggregate - expected.aggregate) < 2.0**-17
    assert outcome.accepted.tolist() == expected.accepted.tolist()
    assert not outcome.accepted[root]


@pytest.mark.parametrize(("n", "size"), [(6, 1), (9, 8), (15, 8)])
def test_rows_shorter_than_any_scale_reaches_count_at_the_largest_scale(n, size, buckets):
    """Their length is a 50,000th of the root's, and the largest scale 2^15; the last bucket is smaller than others."""
    rng = np.random.default_rng(3)
    direction = rng.normal(size=50)
    direction /= np.linalg.norm(direction)
    words = np.concatenate([np.tile(18 * direction, (n, 1)) + 2 * rng.normal(size=(n, 50)), [0.99 * ONE * direction]])
    updates = np.round(words) / ONE
    options = {"size": size}
    outcome = simulate(updates, rule=["bucketing", "fltrust"], rule_options=options, clip_norm=1.0, root=n)
    expected = aggregate(updates, ["bucketing", "fltrust"], options, clip_norm=1.0, root=n, order=buckets(n, size))
    assert np.linalg.norm(outcome.aggregate - expected.aggregate) < 2.0**-12


@pytest.mark.parametrize(("stage", "ratio"), [("", 2.0**-9), ("", 2.0**4), ("nnm ", 2.0**-5), ("nnm ", 2.0**4)])
def test_the_roots_length_is_given_to_rows_however_long_they_are(ratio, stage):
    updates = _poisoned(31, 60) * (1 / 32)
    updates[:30] *= min(ratio, 1) * 16
    updates[30] = _poisoned(31, 60)[29] * (0.9 if ratio < 1 else 1 / 32)
    updates = np.round(updates * ONE) / ONE
    rule, options = [*stage.split(), "fltrust"], {"num_malicious_nodes": 5} if stage else {}
    outcome = simulate(updates, rule=rule, rule_options=options, clip_norm=1.0, root=30)
    expected = aggregate(updates, rule, options, clip_norm=1.0, root=30)
    assert np.linalg.norm(outcome.aggregate - expected.aggregate) < 2.0**-11 * np.linalg.norm(expected.aggregate)


@pytest.mark.parametrize("root", [-1, 6, 100])
def test_a_root_that_is_no_row_ends_the_round(root):
    with pytest.raises(RoundFailed) as caught:
        simulate(_grid(6, 20), rule="fltrust", root=root)
    assert caught.value.reason == "root_missing"


@pytest.mark.parametrize("weights", [[5] * 6 + [1], [1, 2, 3, 4, 5, 6, 7]])
def test_the_roots_example_weight_counts_for_nothing(weights):
    updates = _poisoned(7, 30)
    outcome = simulate(updates, rule="fltrust", clip_norm=1.0, root=6, weights=weights)
    expected = aggregate(updates, "fltrust", clip_norm=1.0, root=6, weights=weights)
    assert np.linalg.norm(outcome.aggregate - expected.aggregate) < 2.0**-15


@pytest.mark.parametrize("clip_norm", [None, 1.0, 3.0])
@pytest.mark.parametrize("iterations", [1, 3])
def test_centered_clipping_goes_on_from_the_previous_aggregate(iterations, clip_norm):
    updates, previous = _poisoned(8, 30), _poisoned(1, 30)[0]
    options = {"iterations": iterations, "tau": 0.3}
    outcome = simulate(updates, rule="centered-clip", rule_options=options, clip_norm=clip_norm, previous=previous)
    expected = aggregate(updates, "centered-clip", options, clip_norm=clip_norm, previous=previous)
    assert np.linalg.norm(outcome.aggregate - expected.aggregate) < 2.0**-14


def test_two_rounds_one_after_the_other():
    updates = _poisoned(8, 30)
    first = simulate(updates, rule="centered-clip", rule_options={"tau": 0.3}, clip_norm=1.0)
    again = simulate(updates, rule="centered-clip", rule_options={"tau": 0.3}, clip_norm=1.0, previous=first.aggregate)
    expected = aggregate(updates, "centered-clip", {"tau": 0.3}, clip_norm=1.0, previous=first.aggregate)
    assert np.linalg.norm(again.aggregate - expected.aggregate) < 2.0**-14


def test_rounds_go_on_where_rounding_makes_an_aggregate_longer_than_the_clip_norm():
    row = np.zeros(30, np.int64)
    row[0] = ONE + 3  # what a client's rounding may give; up to 1.1 clip norms are valid
    previous = None
    for _ in range(4):
        outcome = simulate(
            np.zeros((4, 30)),
            raw_rows=dict.fromkeys(range(4), row),
            rule="centered-clip",
            clip_norm=1.0,
            previous=previous,
        )
        previous = outcome.aggregate
    assert np.abs(previous * ONE - row).max() < 2


@pytest.mark.parametrize("previous", [np.zeros(29), np.zeros((1, 30)), np.full(30, np.nan), np.full(30, np.inf)])
def test_what_is_no_aggregate_of_these_updates_is_refused(previous):
    with pytest.raises(InvalidUpdate):
        simulate(_poisoned(8, 30), rule="centered-clip", previous=previous)


def test_a_previous_aggregate_longer_than_the_clip_norm_is_refused():
    """No round gives one, and the Gram matrix has no room for it."""
    with pytest.raises(InvalidUpdate, match="previous"):
        simulate(_poisoned(8, 30), rule="centered-clip", clip_norm=1.0, previous=np.full(30, 10.0))


# ---- CrypTen's own protocols ----------------------------------------------------------------------------------------


GENERATORS = {
    torch: "rand randint randn randperm bernoulli rand_like randn_like randint_like Generator manual_seed seed normal "
    "multinomial",
    torch.Tensor: "random_ normal_ uniform_ bernoulli_",
    np.random: "default_rng RandomState Generator seed rand randn randint random normal bytes",
}


class CryptenUsedError(Exception):
    """Something reached a protocol, provider, generator or communicator of CrypTen or a generator of torch or numpy."""


def _forbid_everything(monkeypatch: pytest.MonkeyPatch) -> int:
    """Make every entry point raise; gives how many there are."""

    def used(*_args, **_kwargs):
        raise CryptenUsedError

    forbidden = 0

    def forbid(owner, name) -> None:
        nonlocal forbidden
        monkeypatch.setattr(owner, name, used)
        forbidden += 1

    from crypten import communicator, generators, mpc
    from crypten.common import rng
    from crypten.communicator import communicator as base
    from crypten.communicator import distributed_communicator, in_process_communicator
    from crypten.mpc import primitives, provider
    from crypten.mpc.primitives import beaver, circuit, converters, replicated

    for name in ("get", "_init", "uninit"):
        forbid(communicator, name)
    classes = [
        base.Communicator, distributed_communicator.DistributedCommunicator,
        in_process_communicator.InProcessCommunicator, provider.TrustedFirstParty, provider.TrustedThirdParty,
        provider.TTPServer, provider.HomomorphicProvider, primitives.ArithmeticSharedTensor,
        primitives.BinarySharedTensor, mpc.MPCTensor,
    ]  # fmt: skip
    for owner in classes:
        for name, member in list(vars(owner).items()):
            if inspect.isfunction(member) or isinstance(member, classmethod | staticmethod):
                forbid(owner, name)
    for module in (beaver, circuit, converters, replicated, rng):
        for name, member in list(vars(module).items()):
            if inspect.isfunction(member) and member.__module__ == module.__name__:
                forbid(module, name)
    for name in ("init", "init_thread", "cryptensor", "rand", "randn", "bernoulli", "manual_seed"):
        forbid(crypten, name)
    monkeypatch.setattr(crypten, "generators", None)
    for name in list(generators):
        monkeypatch.delitem(generators, name)
    for owner, names in GENERATORS.items():
        for name in names.split():
            forbid(owner, name)
    return forbidden


@pytest.mark.parametrize("rule", RULES | MORE_RULES)
def test_crypten_protocols_are_never_used(rule, monkeypatch):
    updates = _grid(6, 30) + _grid(1, 30, seed=2) / 2
    options = {**_rule(rule, 6), "clip_norm": 2.0, "weights": None if rule in UNWEIGHTED else [7] * 6}
    expected = simulate(updates, **options)
    assert _forbid_everything(monkeypatch) > 150
    outcome = simulate(updates, **options)
    assert np.abs(outcome.aggregate - expected.aggregate).max() < 2.0**-18
    assert outcome.accepted.tolist() == expected.accepted.tolist()


def test_the_ban_on_crypten_protocols_would_be_noticed(monkeypatch):
    _forbid_everything(monkeypatch)
    with pytest.raises(CryptenUsedError):
        crypten.communicator.get()
    with pytest.raises(CryptenUsedError):
        torch.randint(2, (1,))
    with pytest.raises(CryptenUsedError):
        crypten.mpc.MPCTensor([1.0])
    with pytest.raises(CryptenUsedError):
        crypten.mpc.provider.TrustedFirstParty.square(None, 1)
