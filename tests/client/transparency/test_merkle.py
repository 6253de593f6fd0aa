"""RFC 9162's tree against known roots, a recursive reading of the RFC, and every bit of every proof changed."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from triskele.errors import NotFound, PartyFault
from triskele.transparency.merkle import (
    Tree,
    check_consistency,
    check_inclusion,
    leaf_hash,
    node_hash,
    tree_head,
)

# The entries and roots of the test tree of certificate-transparency (C++, Go, transparency-dev/merkle).
ENTRIES = [
    bytes.fromhex(text)
    for text in ("", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f")
]
ROOTS = (
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
)
LARGEST = 40


def mth(entries: Sequence[bytes]) -> bytes:
    """Section 2.1.1, as it is written there."""
    if len(entries) == 1:
        return leaf_hash(entries[0])
    k = split(len(entries))
    return node_hash(mth(entries[:k]), mth(entries[k:]))


def split(n: int) -> int:
    k = 1
    while 2 * k < n:
        k *= 2
    return k


def path(m: int, entries: Sequence[bytes]) -> list[bytes]:
    """Section 2.1.3.1."""
    if len(entries) == 1:
        return []
    k = split(len(entries))
    if m < k:
        return [*path(m, entries[:k]), mth(entries[k:])]
    return [*path(m - k, entries[k:]), mth(entries[:k])]


def subproof(m: int, entries: Sequence[bytes], *, known: bool) -> list[bytes]:
    """Section 2.1.4.1."""
    if m == len(entries):
        return [] if known else [mth(entries)]
    k = split(len(entries))
    if m <= k:
        return [*subproof(m, entries[:k], known=known), mth(entries[k:])]
    return [*subproof(m - k, entries[k:], known=False), mth(entries[:k])]


def grown(size: int) -> tuple[list[bytes], Tree]:
    entries = [f"entry {i}".encode() for i in range(size)]
    return entries, Tree(map(leaf_hash, entries))


def test_roots_are_those_of_certificate_transparency() -> None:
    assert [tree_head(ENTRIES[: size + 1]).hex() for size in range(8)] == list(ROOTS)
    tree = Tree(map(leaf_hash, ENTRIES))
    assert [tree.root(size + 1).hex() for size in range(8)] == list(ROOTS)


def test_proofs_are_those_of_certificate_transparency() -> None:
    tree = Tree(map(leaf_hash, ENTRIES))
    assert [h.hex() for h in tree.inclusion_proof(0, 8)] == [
        "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
    ]
    assert [h.hex() for h in tree.consistency_proof(6, 8)] == [
        "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ]


def test_every_proof_up_to_a_size_is_the_recursive_definitions_and_holds() -> None:
    entries, tree = grown(LARGEST)
    for size in range(1, LARGEST + 1):
        root = tree.root(size)
        assert root == mth(entries[:size])
        for index in range(size):
            proof = tree.inclusion_proof(index, size)
            assert proof == path(index, entries[:size])
            check_inclusion(leaf_hash(entries[index]), index, size, proof, root)
        for old in range(1, size + 1):
            proof = tree.consistency_proof(old, size)
            assert proof == subproof(old, entries[:size], known=True)
            check_consistency(old, size, proof, tree.root(old), root)


def test_a_proof_holds_for_no_other_entry_and_no_other_history() -> None:
    entries, tree = grown(LARGEST)
    for size in range(2, LARGEST + 1):
        for index in range(size):
            proof = tree.inclusion_proof(index, size)
            for other in range(-1, size + 1):
                if other != index:
                    with pytest.raises(PartyFault):
                        check_inclusion(leaf_hash(entries[index]), other, size, proof, tree.root(size))
        for old in range(1, size):
            proof = tree.consistency_proof(old, size)
            for other in {1, old - 1, old + 1, size - 1} - {0, old}:
                with pytest.raises(PartyFault):
                    check_consistency(old, size, proof, tree.root(other), tree.root(size))


def test_a_log_that_was_rewritten_has_no_proof_of_consistency() -> None:
    _, tree = grown(20)
    for rewritten in range(13):
        other = Tree(leaf_hash(f"entry {i}".encode() + b"!" * (i == rewritten)) for i in range(20))
        for old in range(rewritten + 1, 20):
            with pytest.raises(PartyFault, match=r"does not begin with|another root"):
                check_consistency(old, 20, other.consistency_proof(old, 20), tree.root(old), other.root(20))


@pytest.mark.parametrize("size", [1, 2, 7, 8, 33])
def test_a_proof_of_another_length_is_refused(size: int) -> None:
    _, tree = grown(size)
    for index in range(size):
        proof, root = tree.inclusion_proof(index), tree.root()
        for wrong in (*(proof[:n] for n in range(len(proof))), [*proof, root], [bytes(32), *proof]):
            with pytest.raises(PartyFault):
                check_inclusion(tree.leaf(index), index, size, wrong, root)
    for old in range(1, size):
        proof = tree.consistency_proof(old)
        for wrong in (*(proof[:n] for n in range(len(proof))), [*proof, bytes(32)], [tree.root(old), *proof]):
            with pytest.raises(PartyFault):
                check_consistency(old, size, wrong, tree.root(old), tree.root())


@given(st.integers(1, LARGEST), st.data())
def test_no_bit_of_an_inclusion_proof_can_be_changed(size: int, data: st.DataObject) -> None:
    _, tree = grown(size)
    index = data.draw(st.integers(0, size - 1))
    leaf, proof, root = tree.leaf(index), tree.inclusion_proof(index), tree.root()
    values = [leaf, root, *proof]
    for position in range(len(values)):
        changed = list(values)
        changed[position] = flipped(values[position], data.draw(st.integers(0, 255)))
        with pytest.raises(PartyFault):
            check_inclusion(changed[0], index, size, changed[2:], changed[1])
    other = index ^ (1 << data.draw(st.integers(0, 62)))
    with pytest.raises(PartyFault):
        check_inclusion(leaf, other, size, proof, root)


@given(st.integers(1, LARGEST), st.data())
def test_no_bit_of_a_consistency_proof_can_be_changed(size: int, data: st.DataObject) -> None:
    _, tree = grown(size)
    old = data.draw(st.integers(1, size))
    proof = tree.consistency_proof(old)
    values = [tree.root(old), tree.root(), *proof]
    for position in range(len(values)):
        changed = list(values)
        changed[position] = flipped(values[position], data.draw(st.integers(0, 255)))
        with pytest.raises(PartyFault):
            check_consistency(old, size, changed[2:], changed[0], changed[1])


@given(st.integers(1, LARGEST), st.integers(0, 62), st.data())
def test_a_changed_size_is_refused_or_has_the_same_shape(size: int, bit: int, data: st.DataObject) -> None:
    # The hashes alone do not bind the size: in 3 and in 4 entries the way up from entry 0 is the same. The root does.
    _, tree = grown(LARGEST)
    index = data.draw(st.integers(0, size - 1))
    other = size ^ (1 << bit)
    proof = tree.inclusion_proof(index, size)
    try:
        check_inclusion(tree.leaf(index), index, other, proof, tree.root(size))
    except PartyFault:
        return
    assert other != size
    if other <= LARGEST:
        with pytest.raises(PartyFault):
            check_inclusion(tree.leaf(index), index, other, proof, tree.root(other))


@pytest.mark.parametrize("length", [0, 31, 33])
def test_a_hash_of_another_length_is_refused(length: int) -> None:
    _, tree = grown(5)
    for position in range(2 + 3):
        values = [tree.leaf(1), tree.root(), *tree.inclusion_proof(1)]
        values[position] = bytes(length)
        with pytest.raises(PartyFault, match="another length"):
            check_inclusion(values[0], 1, 5, values[2:], values[1])


def test_there_is_no_tree_of_nothing_and_no_proof_of_what_is_not_there() -> None:
    _, tree = grown(5)
    for ask in (
        lambda: tree_head([]),
        lambda: Tree().root(),
        lambda: tree.root(0),
        lambda: tree.root(6),
        lambda: tree.leaf(5),
        lambda: tree.leaf(-1),
        lambda: tree.inclusion_proof(5),
        lambda: tree.inclusion_proof(-1),
        lambda: tree.inclusion_proof(0, 0),
        lambda: tree.inclusion_proof(0, 6),
        lambda: tree.consistency_proof(0),
        lambda: tree.consistency_proof(6),
        lambda: tree.consistency_proof(4, 3),
    ):
        with pytest.raises(NotFound):
            ask()
    for index, size in ((0, 0), (-1, 5), (5, 5), (0, -1)):
        with pytest.raises(PartyFault):
            check_inclusion(tree.leaf(0), index, size, [], tree.root())
    for old, size in ((0, 5), (6, 5), (-1, 5), (0, 0)):
        with pytest.raises(PartyFault):
            check_consistency(old, size, [], tree.root(), tree.root())


def test_appending_costs_few_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    hashes = 0
    real = hashlib.sha256

    def counting(data: bytes) -> object:
        nonlocal hashes
        hashes += 1
        return real(data)

    _, tree = grown(3000)
    monkeypatch.setattr(hashlib, "sha256", counting)
    tree.append(bytes(32))
    tree.root()
    tree.inclusion_proof(1234)
    tree.consistency_proof(2999)
    assert hashes < 5 * 12


def flipped(value: bytes, bit: int) -> bytes:
    changed = bytearray(value)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)
