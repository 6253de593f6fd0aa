"""Rows side by side, a word of each in one SIMD lane: what one coordinate of all of them needs is one instruction.

A line is 64 bytes, a cache line: a word each of 16 rows of the 32-bit ring, of 8 of the 64-bit ring. numba makes no
vector instructions of loops as short as a line, so the two operations on lines are written in LLVM's own vectors,
which it turns into the instructions of any processor. What calls them stays in this file: numba compiles a cached
function anew when its own file has changed, not another one.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import DTypeLike, NDArray

from triskele.ring import Ring, Words

LINE_BYTES = 64

_INDEX = ir.IntType(32)


def lanes(ring: Ring) -> int:
    """Words in a line."""
    return LINE_BYTES // ring.word_bytes


def aligned_zeros(shape: tuple[int, ...], dtype: DTypeLike) -> Words:
    """Zeros that begin at a line: one that lies across two cache lines costs twice as much."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    room = np.zeros(size + LINE_BYTES, np.uint8)
    start = -room.ctypes.data % LINE_BYTES
    words: Words = room[start : start + size].view(dtype).reshape(shape)
    return words


@intrinsic  # type: ignore[untyped-decorator]  # numba ships no types
def _add_line(_: Any, sums: Any, to: Any, lines: Any, at: Any, negative: Any) -> Any:
    """Line `to` of sums [.., lanes] += line `at` of lines [.., lanes], -= if `negative` is 1 and not 0; no branch.

    Nothing checks the lines' numbers.
    """

    def emit(context: Any, builder: ir.IRBuilder, signature: Any, given: list[ir.Value]) -> Any:
        kinds = signature.args
        target, source = _Lines(context, builder, kinds[0], given[0]), _Lines(context, builder, kinds[2], given[2])
        line = target.kind
        # (x ^ 0) - 0 is x, (x ^ -1) - -1 is -x.
        mask = builder.neg(given[4])
        if mask.type.width > line.element.width:
            mask = builder.trunc(mask, line.element)
        first = builder.insert_element(ir.Constant(line, ir.Undefined), mask, _INDEX(0))
        masks = builder.shuffle_vector(first, first, ir.Constant(ir.VectorType(_INDEX, line.count), None))
        words = builder.sub(builder.xor(source.load(source.line(given[3])), masks), masks)
        target.store(builder.add(target.load(target.line(given[1])), words), target.line(given[1]))
        return context.get_dummy_value()

    return types.void(sums, to, lines, at, negative), emit


@intrinsic  # type: ignore[untyped-decorator]  # numba ships no types
def _transpose_square(_: Any, target: Any, to: Any, source: Any, at: Any) -> Any:
    """A square with as many rows as a line has words, from word `at` of `source` on, is put to word `to` of `target`.

    Both are contiguous arrays with rows of any lengths; words are counted through all rows. Nothing checks them.
    """

    def emit(context: Any, builder: ir.IRBuilder, signature: Any, given: list[ir.Value]) -> Any:
        kinds = signature.args
        left, right = _Lines(context, builder, kinds[0], given[0]), _Lines(context, builder, kinds[2], given[2])
        count = left.kind.count
        rows = [right.load(builder.add(given[3], right.row(given[3].type(i)))) for i in range(count)]
        # Row i and row i + count / 2 are interleaved, log2(count) times: each turns the bits of (row, column) by one.
        half = count // 2
        parts = [
            ir.Constant(ir.VectorType(_INDEX, count), [k // 2 + k % 2 * count + first for k in range(count)])
            for first in (0, half)
        ]
        for _turn in range(count.bit_length() - 1):
            pairs = [(rows[i], rows[i + half]) for i in range(half)]
            rows = [builder.shuffle_vector(a, b, part) for a, b in pairs for part in parts]
        for i, row in enumerate(rows):
            left.store(row, builder.add(given[1], left.row(given[1].type(i))))
        return context.get_dummy_value()

    return types.void(target, to, source, at), emit


@numba.njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]  # numba ships no types
def add_to_buckets(rows: Words, places: NDArray[np.uint16], tile: Words, sums: Words) -> None:
    """Add the words of some rows [lanes, at least places.shape[1]] to their buckets' sums [BLOCKS * buckets, lanes]."""
    beside = rows.shape[0]
    blocks, count = places.shape
    buckets = sums.shape[0] // blocks
    for start in range(0, count, tile.shape[0]):
        stop = min(start + tile.shape[0], count)
        for t in range(start, stop, beside):
            _transpose_square(tile, (t - start) * beside, rows, t)
        for block in range(blocks):
            place, table = places[block, start:stop], sums[block * buckets : (block + 1) * buckets]
            for t in range(place.shape[0]):  # from 0: no index can be negative, none is checked
                bucket_and_sign = np.int64(place[t])
                _add_line(table, bucket_and_sign >> 1, tile, t, bucket_and_sign & 1)


def by_row(sums: Words) -> Words:
    """Words [rows, K] of the sums [groups, K, lanes], in their memory."""
    groups, words, beside = sums.shape
    turned = np.empty((beside, words), sums.dtype)
    for group in sums:
        _turn(group, turned)
        group.reshape(turned.shape)[...] = turned
    return sums.reshape(groups * beside, words)


@numba.njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]  # numba ships no types
def _turn(sums: Words, turned: Words) -> None:
    """Rows [lanes, K] of the sums [K, lanes]."""
    words, beside = sums.shape
    for t in range(0, words, beside):
        _transpose_square(turned, t, sums, t * beside)


class _Lines:
    """A contiguous array [rows, row length] that is given to an intrinsic, loaded and stored a line at a time."""

    def __init__(self, context: Any, builder: ir.IRBuilder, kind: Any, value: ir.Value) -> None:
        array = context.make_array(kind)(context, builder, value)
        element = context.get_value_type(kind.dtype)
        self.kind = ir.VectorType(element, LINE_BYTES * 8 // element.width)
        self._builder, self._data = builder, array.data
        self._row_length = cgutils.unpack_tuple(builder, array.shape)[1]
        self._word_bytes = element.width // 8  # no more is known of a line's alignment

    def row(self, number: ir.Value) -> ir.Value:
        """The first word of a row."""
        return self._builder.mul(number, self._row_length)

    def line(self, number: ir.Value) -> ir.Value:
        """The first word of a row as long as a line."""
        return self._builder.mul(number, number.type(self.kind.count))

    def load(self, word: ir.Value) -> ir.Value:
        """The line that begins at a word."""
        return self._builder.load(self._address(word), align=self._word_bytes)

    def store(self, line: ir.Value, word: ir.Value) -> None:
        """Put a line there."""
        self._builder.store(line, self._address(word), align=self._word_bytes)

    def _address(self, word: ir.Value) -> ir.Value:
        return self._builder.bitcast(self._builder.gep(self._data, [word]), self.kind.as_pointer())
