"""The Merkle tree of an append-only log: RFC 9162, section 2.1, with SHA-256.

A proof is a list of hashes, and whoever checks one knows the sizes and roots from a cosigned checkpoint. What a proof
says depends on them: the same hashes may prove an entry in trees of two sizes that share a root path, so a size
without its root proves nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from triskele.errors import NotFound, PartyFault

HASH_BYTES: Final = 32
MAX_PROOF: Final = 65  # hashes: of the largest tree whose size fits 64 bits, and one


def leaf_hash(leaf: bytes) -> bytes:
    """The hash of an entry."""
    return hashlib.sha256(b"\x00" + leaf).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """The hash of an inner node; another first byte than a leaf's, so that neither passes for the other."""
    return hashlib.sha256(b"\x01" + left + right).digest()


class Tree:
    """A growing tree that answers for any of its earlier sizes too. Appending and every proof cost O(log n) hashes.

    It keeps the hashes of all complete subtrees, two for each entry: an incomplete one is at the right edge, and is put
    together from at most log n complete ones.
    """

    def __init__(self, leaf_hashes: Iterable[bytes] = ()) -> None:
        self._levels: list[list[bytes]] = [[]]  # of each height the complete subtrees, from the left
        for leaf in leaf_hashes:
            self.append(leaf)

    @property
    def size(self) -> int:
        """How many entries there are."""
        return len(self._levels[0])

    def append(self, leaf: bytes) -> int:
        """Add the hash of an entry; returns the entry's index."""
        index, node = self.size, leaf
        for height, level in enumerate(self._levels):
            level.append(node)
            if len(level) % 2:
                break
            node = node_hash(level[-2], node)
            if height + 1 == len(self._levels):
                self._levels.append([node])
                break
        return index

    def leaf(self, index: int) -> bytes:
        """The hash of an entry; raises NotFound."""
        if not 0 <= index < self.size:
            raise NotFound(f"the log has no entry {index}: its {self.size} entries are numbered from 0")
        return self._levels[0][index]

    def root(self, size: int | None = None) -> bytes:
        """The root of the first `size` entries, by default of all; raises NotFound for none or too many."""
        return self._hash(0, self._checked(self.size if size is None else size))

    def inclusion_proof(self, index: int, size: int | None = None) -> list[bytes]:
        """That an entry is in the first `size` entries (section 2.1.3.1); raises NotFound."""
        start, end = 0, self._checked(self.size if size is None else size)
        if not 0 <= index < end:
            raise NotFound(f"there is no entry {index} in a log of {end}: they are numbered from 0")
        siblings: list[tuple[int, int]] = []
        while end - start > 1:
            middle = start + _left_size(end - start)
            if index < middle:
                siblings.append((middle, end))
                end = middle
            else:
                siblings.append((start, middle))
                start = middle
        return [self._hash(*sibling) for sibling in reversed(siblings)]

    def consistency_proof(self, old_size: int, size: int | None = None) -> list[bytes]:
        """That the first `old_size` entries begin the first `size` ones (section 2.1.4.1); raises NotFound.

        Empty if they are all.
        """
        end = self._checked(self.size if size is None else size)
        if not 1 <= old_size <= end:
            raise NotFound(f"{old_size} entries are not the beginning of a log of {end}")
        start, nodes = 0, list[tuple[int, int]]()
        while old_size != end:
            middle = start + _left_size(end - start)
            if old_size <= middle:
                nodes.append((middle, end))
                end = middle
            else:
                nodes.append((start, middle))
                start = middle
        if start:  # else the old tree is a complete subtree of the new one, and its root known to whoever checks
            nodes.append((start, end))
        return [self._hash(*node) for node in reversed(nodes)]

    def _checked(self, size: int) -> int:
        if not 1 <= size <= self.size:
            raise NotFound(f"the log has {self.size} entries: there is no tree of {size}")
        return size

    def _hash(self, start: int, end: int) -> bytes:
        """Of the entries from `start` to `end`; `start` is a multiple of the largest power of two that fits."""
        parts = list(self._complete(start, end))
        node = parts.pop()
        while parts:
            node = node_hash(parts.pop(), node)
        return node

    def _complete(self, start: int, end: int) -> Iterator[bytes]:
        while start < end:
            height = (end - start).bit_length() - 1
            yield self._levels[height][start >> height]
            start += 1 << height


def tree_head(leaves: Iterable[bytes]) -> bytes:
    """The root of the tree of these entries; raises NotFound if there are none."""
    level = [leaf_hash(leaf) for leaf in leaves]
    if not level:
        raise NotFound("there is no tree of no entries")
    while len(level) > 1:  # the last of an odd number of nodes goes up as it is
        pairs = [node_hash(left, right) for left, right in zip(level[::2], level[1::2], strict=False)]
        level = pairs + level[2 * len(pairs) :]
    return level[0]


def check_inclusion(leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes) -> None:
    """That the entry whose hash is `leaf` is number `index` of the `size` entries under `root` (section 2.1.3.2).

    Raises PartyFault.
    """
    _check_hashes((leaf, root, *proof))
    if not 0 <= index < size:
        raise PartyFault(f"a proof was given for entry {index} of a log of {size}: there is none")
    node = leaf
    for sibling, left in _way_up(index, size - 1, proof, f"that entry {index} is in the log of {size}"):
        node = node_hash(sibling, node) if left else node_hash(node, sibling)
    if node != root:
        raise PartyFault(f"entry {index} is not what the log of {size} holds there: its proof leads to another root")


def check_consistency(old_size: int, size: int, proof: Sequence[bytes], old_root: bytes, root: bytes) -> None:
    """That the `old_size` entries under `old_root` are the first of the `size` under `root` (section 2.1.4.2).

    Raises PartyFault.
    """
    _check_hashes((old_root, root, *proof))
    if not 1 <= old_size <= size:
        raise PartyFault(f"a log of {size} entries cannot continue one of {old_size}")
    if old_size == size:
        if proof or old_root != root:
            raise PartyFault(f"two different logs of {size} entries, or a proof where none is needed")
        return
    growth = f"of the log's growth from {old_size} to {size} entries"
    path = [old_root, *proof] if proof and old_size & (old_size - 1) == 0 else list(proof)
    if not path:
        raise PartyFault(f"the proof {growth} is too short")
    fn, sn = old_size - 1, size - 1
    while fn & 1:
        fn, sn = fn >> 1, sn >> 1
    old_node = node = path[0]
    for sibling, left in _way_up(fn, sn, path[1:], growth):
        old_node = node_hash(sibling, old_node) if left else old_node
        node = node_hash(sibling, node) if left else node_hash(node, sibling)
    if old_node != old_root:
        raise PartyFault(f"the log of {size} entries does not begin with the {old_size} that were there before")
    if node != root:
        raise PartyFault(f"the proof {growth} leads to another root")


def _way_up(fn: int, sn: int, proof: Sequence[bytes], what: str) -> Iterator[tuple[bytes, bool]]:
    """The hashes of a proof, and whether each is the left one, on the way from node `fn` of `sn` + 1 to the root.

    Raises PartyFault if there are too many or too few of them. The names are the RFC's.
    """
    for sibling in proof:
        if sn == 0:
            raise PartyFault(f"the proof {what} is too long")
        left = bool(fn & 1) or fn == sn
        while left and fn and not fn & 1:
            fn, sn = fn >> 1, sn >> 1
        yield sibling, left
        fn, sn = fn >> 1, sn >> 1
    if sn:
        raise PartyFault(f"the proof {what} is too short")


def _left_size(size: int) -> int:
    """The largest power of two below `size`."""
    return 1 << (size - 1).bit_length() - 1


def _check_hashes(hashes: Iterable[bytes]) -> None:
    if any(len(each) != HASH_BYTES for each in hashes):
        raise PartyFault(f"a hash of the log's tree has another length than {HASH_BYTES} bytes")
