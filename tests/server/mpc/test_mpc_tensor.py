"""The CrypTen tensor type "replicated": the tensor language gives what numpy gives, at every mix of scales."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from three_parties import encoded, on_tensors, share, values

from triskele.errors import TriskeleError
from triskele_server.mpc.crypten_import import CrypTensor
from triskele_server.mpc.replicated import ReplicatedTensor

NUMBERS = [0.0, 1.0, -1.0, 0.5, -0.75, 3.25, -7.125, 20.0, -31.5]
few = settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.too_slow])
SCALES = [(0, 0), (0, 20), (20, 0), (20, 20), (26, 20), (20, 40), (40, 42)]


def _pair(bits: int, other_bits: int) -> tuple[np.ndarray, np.ndarray, tuple, tuple]:
    """Two columns of numbers, integers where there are no fraction bits, and the same as inputs of on_tensors."""
    x, y = np.array(NUMBERS), np.array(NUMBERS[::-1]) + 1
    x, y = (np.round(v) if b == 0 else v for v, b in ((x, bits), (y, other_bits)))
    return x, y, (encoded(x, bits), bits), (encoded(y, other_bits), other_bits)


@pytest.mark.parametrize(("bits", "other_bits"), SCALES)
def test_sum_and_difference_of_mixed_scales_are_exact(bits, other_bits):
    x, y, shared_x, shared_y = _pair(bits, other_bits)
    assert values(on_tensors(lambda a, b: a + b, shared_x, shared_y)).tolist() == (x + y).tolist()
    assert values(on_tensors(lambda a, b: a - b, shared_x, shared_y)).tolist() == (x - y).tolist()


@pytest.mark.parametrize(("bits", "other_bits"), SCALES)
def test_product_of_mixed_scales(bits, other_bits):
    """Exact while one factor is an integer, else right to the places that products are truncated to."""
    x, y, shared_x, shared_y = _pair(bits, other_bits)
    got = values(on_tensors(lambda a, b: a * b, shared_x, shared_y))
    tolerance = 0 if 0 in (bits, other_bits) else 40 * 2.0 ** -min(20, bits, other_bits)
    assert np.abs(got - x * y).max() <= tolerance


def test_matrix_product_and_square():
    rng = np.random.default_rng(4)
    x, y = rng.uniform(-2, 2, (4, 6)), rng.uniform(-2, 2, (6, 3))
    got = values(on_tensors(lambda a, b: a.matmul(b), (encoded(x, 20), 20), (encoded(y, 24), 24)))
    assert np.abs(got - x @ y).max() < 2.0**-16
    assert np.abs(values(on_tensors(lambda a: a.square(), (encoded(x, 20), 20))) - x * x).max() < 2.0**-17


@pytest.mark.parametrize("bits", [0, 20, 40])
@pytest.mark.parametrize("public", [3, -2, 0.5, -1.25, torch.tensor([2]), torch.tensor([0.125, -3.5, 2.0])])
def test_public_operands(bits, public):
    x = np.array([1.0, -4.0, 6.0])
    shared = (encoded(x, bits), bits)
    plain = public.double().numpy() if torch.is_tensor(public) else public
    assert values(on_tensors(lambda a: a + public, shared)).tolist() == (x + plain).tolist()
    assert values(on_tensors(lambda a: a - public, shared)).tolist() == (x - plain).tolist()
    if not torch.is_tensor(public):  # CrypTen wants the secret tensor first otherwise
        assert values(on_tensors(lambda a: public - a, shared)).tolist() == (plain - x).tolist()
    assert np.abs(values(on_tensors(lambda a: a * public, shared)) - x * plain).max() < 2.0**-18


def test_public_operands_broadcast_both_ways():
    x, row = torch.arange(4), torch.arange(3) * 10
    assert values(on_tensors(lambda a: a.unsqueeze(1) + row, (x, 0))).tolist() == (x[:, None] + row).tolist()
    assert values(on_tensors(lambda a: a.unsqueeze(1) * row, (x, 0))).tolist() == (x[:, None] * row).tolist()


def test_negation_and_halving_are_exact():
    x = np.array(NUMBERS)
    assert values(on_tensors(lambda a: -a, (encoded(x, 20), 20))).tolist() == (-x).tolist()
    assert values(on_tensors(lambda a: a / 4, (encoded(x, 20), 20))).tolist() == (x / 4).tolist()
    assert values(on_tensors(lambda a: a.times_power_of_two(3), (encoded(x, 20), 20))).tolist() == (x * 8).tolist()


def test_rescaling_down_is_the_exact_floor():
    words = torch.tensor([-(1 << 40) - 1, -1025, -1024, -1, 0, 1, 1023, 1024, (1 << 61) + 7])
    got, bits = on_tensors(lambda a: a.rescale(10), (words, 20))
    assert (got.tolist(), bits) == ((words >> 10).tolist(), 10)
    assert on_tensors(lambda a: a.rescale(30), (torch.tensor([-3, 5]), 20))[0].tolist() == [-3072, 5120]


def test_comparisons_between_mixed_scales():
    x, y = np.array([1.0, -2.0, 3.0, 0.0, -1.0]), np.array([1.0, -1.5, 2.999, 0.0, 1.0])
    shared = (encoded(x, 0), 0), (encoded(y, 20), 20)
    rounded = encoded(y, 20).numpy() / 2**20
    expectations = {
        "lt": x < rounded,
        "le": x <= rounded,
        "gt": x > rounded,
        "ge": x >= rounded,
        "eq": x == rounded,
        "ne": x != rounded,
    }
    for name, expected in expectations.items():
        got = values(on_tensors(lambda a, b, name=name: getattr(a, name)(b), *shared))
        assert got.tolist() == expected.astype(float).tolist(), name


@pytest.mark.parametrize("bits", [0, 20])
def test_sign_abs_relu_of_the_function_library(bits):
    x = np.array([0.0, 1.0, -1.0, 5.0, -1024.0])
    shared = (encoded(x, bits), bits)
    assert values(on_tensors(lambda a: a.abs(), shared)).tolist() == np.abs(x).tolist()
    assert values(on_tensors(lambda a: a.relu(), shared)).tolist() == np.maximum(x, 0).tolist()
    assert values(on_tensors(lambda a: a.sign(), shared)).tolist() == [
        1.0,
        1.0,
        -1.0,
        1.0,
        -1.0,
    ]  # 0 counts as positive


def test_where_takes_secret_and_public_conditions_and_mixed_scales():
    x, y = np.array([1.5, -2.0, 4.0, 0.0]), np.array([7.0, 8.0, 9.0, 10.0])
    condition = np.array([1, 0, 0, 1])
    expected = np.where(condition, x, y).tolist()
    inputs = (encoded(x, 20), 20), (encoded(y, 0), 0)
    got = on_tensors(lambda a, b, c: a.where(c, b), *inputs, (torch.from_numpy(condition), 0))
    assert values(got).tolist() == expected
    for public in (torch.from_numpy(condition), torch.from_numpy(condition).bool()):
        assert values(on_tensors(lambda a, b, c=public: a.where(c, b), *inputs)).tolist() == expected


@few
@given(st.lists(st.integers(-4, 4), min_size=1, max_size=9))
def test_rank_is_the_stable_order(entries):
    order = np.argsort(np.array(entries), kind="stable")
    expected = np.empty(len(entries), np.int64)
    expected[order] = np.arange(len(entries))
    assert on_tensors(lambda a: a.rank(), (entries, 0))[0].tolist() == expected.tolist()


def test_rank_of_rows_and_of_words_at_the_edges():
    edge = [(1 << 62) - 1, -(1 << 62), 0, -1, 1, (1 << 62) - 1]
    rows = torch.tensor([edge, edge[::-1]])
    expected = np.argsort(np.argsort(rows.numpy(), axis=1, kind="stable"), axis=1)
    assert on_tensors(lambda a: a.rank(), (rows, 20))[0].tolist() == expected.tolist()


@pytest.mark.parametrize("count", [0, 1, 3, 6, 9])
def test_smallest_marks_ties_at_the_lower_index(count):
    entries = np.array([5, 1, 1, 0, 1, 5])
    expected = np.zeros(6, np.int64)
    expected[np.argsort(entries, kind="stable")[:count]] = 1
    assert on_tensors(lambda a: a.smallest(count), (entries, 0))[0].tolist() == expected.tolist()


@few
@given(st.lists(st.integers(-(1 << 61), 1 << 61), min_size=1, max_size=9))
def test_extremes_and_order_statistics(entries):
    ordered = sorted(entries)
    places = sorted({0, len(entries) // 2, len(entries) - 1})
    got = on_tensors(lambda a: [a.min(), a.max(), *a.order_statistics(*places)], (entries, 20))
    assert [int(words) for words, _ in got] == [ordered[0], ordered[-1], *(ordered[p] for p in places)]


def test_one_place_may_be_asked_for_twice():
    got = on_tensors(lambda a: list(a.order_statistics(1, 1)), ([7, 3, 5], 0))
    assert [int(words) for words, _ in got] == [5, 5]


def test_structural_functions_move_words_only():
    x = torch.arange(12).reshape(3, 4)
    for program in (
        lambda a: a.t(), lambda a: a[1], lambda a: a[:, [0, 2]], lambda a: a.sum(0), lambda a: a.reshape(4, 3),
        lambda a: a.unsqueeze(0), lambda a: a.flip(0), lambda a: a.cumsum(1), lambda a: a.diagonal(),
        lambda a: a.transpose(0, 1), lambda a: a.flatten(),
    ):  # fmt: skip
        expected = program(x) if program(x) is not None else x
        assert on_tensors(program, (x, 0))[0].tolist() == expected.tolist()


def test_stack_and_cat_of_one_scale():
    x, y = torch.arange(3), torch.arange(3) * 7
    assert on_tensors(lambda a, b: a.stack([a, b]), (x, 5), (y, 5))[0].tolist() == torch.stack([x, y]).tolist()
    assert on_tensors(lambda a, b: a.cat([a, b]), (x, 5), (y, 5))[0].tolist() == torch.cat([x, y]).tolist()


@pytest.mark.parametrize("join", ["stack", "cat"])
def test_stack_and_cat_align_mixed_scales(join):
    got = values(on_tensors(lambda a, b: getattr(a, join)([a, b]), (encoded([1.5], 20), 20), (encoded([1.5], 30), 30)))
    assert got.flatten().tolist() == [1.5, 1.5]


@pytest.mark.parametrize("divisor", [1e6, 4e6])
def test_quotient_by_a_large_public_number(divisor):
    got = values(on_tensors(lambda a: a / divisor, (encoded([500.0], 30), 30)))
    assert abs(float(got[0]) * divisor / 500.0 - 1) < 2.0**-10


@pytest.mark.parametrize("number", [2.0**-16, 2.0**-12, 2.0**30])
def test_reciprocal_over_the_whole_range(number):
    got = values(on_tensors(lambda a: a.reciprocal(), (encoded([number], 20), 20)))
    assert abs(float(got[0]) * number - 1) < 2.0**-10


def test_nothing_printed_shows_a_value():
    secret = 123456789
    tensor = ReplicatedTensor(share([secret])[0], None, 20)
    for shown in (
        repr(tensor),
        str(tensor),
        f"{tensor}",
        repr(tensor.shares),
        repr([tensor]),
        repr(share([secret])[0]),
    ):
        assert not any(str(int(word)) in shown for word in (*tensor.shares.first, *tensor.shares.second, secret))
    assert repr(tensor) == "ReplicatedTensor([1], fraction_bits=20)"


def test_the_type_is_registered_with_crypten():
    assert CrypTensor.__CRYPTENSOR_TYPES__["replicated"] is ReplicatedTensor


def test_a_tensor_without_a_session_computes_nothing_secret():
    tensor = ReplicatedTensor(share([1])[0])
    with pytest.raises(TriskeleError, match="no session"):
        tensor.mul(tensor)
