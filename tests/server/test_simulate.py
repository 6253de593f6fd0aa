"""`simulate`: its outcome for honest and for malicious participants, and that nothing of CrypTen's protocols runs."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch

from triskele.errors import InvalidTask, InvalidUpdate, RoundFailed
from triskele_server.mpc.crypten_import import crypten
from triskele_server.simulate import SimulatedRound, simulate

torch.set_num_threads(1)

ONE = 1 << 20
MIN = -(1 << 63)
SHORT, LONG = 100, 8_500  # below and above the longest update that is its own sketch
RULES = {
    "mean": {},
    "norm-clip": {},
    "multi-krum": {"num_malicious_nodes": 1, "num_nodes_to_select": 4},
}


def _grid(n: int, d: int, seed: int = 1, norm: float = 0.9) -> np.ndarray:
    """Rows of clip norm 1 that lie on the encoding's grid."""
    rows = np.random.default_rng(seed).normal(size=(n, d))
    return np.round(rows / np.linalg.norm(rows, axis=1, keepdims=True) * norm * ONE) / ONE


# ---- the interface ------------------------------------------------------------------------------------------------


def test_the_signature_that_notebooks_and_benchmarks_stand_on():
    parameters = inspect.signature(simulate).parameters
    assert list(parameters) == [
        "updates", "rule", "rule_options", "clip_norm", "weights", "decisions", "gram", "min_accepted", "raw_rows"
    ]  # fmt: skip
    defaults = {name: p.default for name, p in parameters.items() if name != "updates"}
    assert defaults == {
        "rule": "mean", "rule_options": {}, "clip_norm": None, "weights": None, "decisions": "public", "gram": "auto",
        "min_accepted": 2, "raw_rows": {},
    }  # fmt: skip
    assert all(p.kind is p.KEYWORD_ONLY for name, p in parameters.items() if name != "updates")


def test_the_outcome_tells_who_was_in_what_was_opened_and_what_it_cost():
    outcome = simulate(_grid(5, 20), rule="multi-krum", rule_options=RULES["multi-krum"])
    assert isinstance(outcome, SimulatedRound)
    assert (outcome.aggregate.shape, outcome.aggregate.dtype) == ((20,), np.float64)
    assert (outcome.accepted.shape, outcome.accepted.dtype, int(outcome.accepted.sum())) == ((5,), np.bool_, 4)
    assert outcome.invalid == {}
    assert outcome.openings == [("valid", (5,)), ("enough_accepted", ()), ("accepted", (5,)), ("aggregate", (20,))]
    assert [t.rounds > 20 and t.bytes_sent > 1000 for t in outcome.traffic] == [True] * 3
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
        {"min_accepted": 1},
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


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("attack", ["pair of 2^63", "norm 1.3 C"])
def test_every_rule_gives_what_it_gives_without_the_malicious_row(rule, attack):
    d = SHORT
    honest = _grid(6, d) * np.linspace(0.2, 1, 6)[:, None]
    honest = np.round(honest * ONE) / ONE
    options = {"rule": rule, "rule_options": RULES[rule], "clip_norm": 1.0}
    alone = simulate(honest, **options)
    among = simulate(np.insert(honest, 2, 0, axis=0), raw_rows={2: _attacks(d)[attack]}, **options)
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


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("rule", RULES)
def test_crypten_protocols_are_never_used(rule, weighted, monkeypatch):
    updates = _grid(5, 30)
    options = {"rule": rule, "rule_options": RULES[rule], "clip_norm": 1.0, "weights": [7] * 5 if weighted else None}
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
