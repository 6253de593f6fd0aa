"""Selection on additive shares by networks of comparators: few comparisons per row, where ranks take n (n - 1) / 2.

Which elements meet depends on sizes only. A comparator takes ten rounds, and all those of a stage go side by side.
"""

from __future__ import annotations

from functools import lru_cache

import torch

from triskele_server.mpc.arithmetic import add, constant, times_bit
from triskele_server.mpc.boolean import negative, sign_bit
from triskele_server.mpc.session import Session, Shares

Stage = tuple[tuple[int, int], ...]  # comparators (low, high), which leave the smaller word at `low`


def maximum(session: Session, x: Shares) -> Shares:
    """The largest word along the last dimension (n > 0), for differences of words below 2^63.

    A tournament: n - 1 comparisons per row, 10 ceil(log2 n) rounds.
    """
    while (n := x.shape[-1]) > 1:
        half = n // 2
        low, high, odd = (_part(x, *bounds) for bounds in ((0, half), (half, 2 * half), (2 * half, n)))
        larger = add(low, _positive(session, _minus(high, low)))
        x = Shares(torch.cat([larger.first, odd.first], -1), torch.cat([larger.second, odd.second], -1))
    return Shares(x.first[..., 0], x.second[..., 0])


def smallest(session: Session, x: Shares, count: int) -> Shares:
    """0/1 words: 1 at the `count` smallest words along the last dimension (ties to the lower index).

    For |x| < 2^(62 - ceil(log2 n)), which the caller has to know: a row's index goes into the low bits. The count-th
    smallest is found by a network, then compared with every element.
    """
    n = x.shape[-1]
    if not 0 < count < n:
        return constant(session, torch.full(x.shape, int(count > 0), dtype=torch.int64))
    index_bits = (n - 1).bit_length()
    keys = Shares(x.first << index_bits, x.second << index_bits)
    keys = add(keys, constant(session, torch.arange(n).expand(x.shape)))
    bound = at_place(session, keys, count - 1)
    above = _minus(Shares(bound.first.unsqueeze(-1), bound.second.unsqueeze(-1)), keys)
    is_above = negative(session, above)
    return _minus(constant(session, torch.ones(x.shape, dtype=torch.int64)), is_above)


def at_place(session: Session, x: Shares, place: int) -> Shares:
    """The word at a place of the ascending order of the last dimension, for differences below 2^63."""
    wires = Shares(*(word.movedim(-1, 0).clone() for word in (x.first, x.second)))
    for stage in selection_network(x.shape[-1], place):
        low, high = torch.tensor(stage).T
        lower, upper = (Shares(wires.first[i], wires.second[i]) for i in (low, high))
        excess = _positive(session, _minus(lower, upper))
        for word, moved in ((wires.first, excess.first), (wires.second, excess.second)):
            word[low] -= moved
            word[high] += moved
    return Shares(wires.first[place], wires.second[place])


@lru_cache(maxsize=64)
def selection_network(n: int, place: int) -> tuple[Stage, ...]:
    """Stages of comparators that bring the word of one place of the ascending order of n words to that wire.

    Batcher's odd-even merge sort (Batcher 1968, "Sorting networks and their applications"), less the comparators on
    which that wire does not depend.
    """
    needed, kept = {place}, []
    for low, high in reversed(_merge_sort(n)):
        if low in needed or high in needed:
            needed |= {low, high}
            kept.append((low, high))
    depth = [0] * n  # of the wires: each comparator goes into the earliest stage it can
    stages: list[list[tuple[int, int]]] = []
    for low, high in reversed(kept):
        stage = max(depth[low], depth[high])
        depth[low] = depth[high] = stage + 1
        if stage == len(stages):
            stages.append([])
        stages[stage].append((low, high))
    return tuple(tuple(stage) for stage in stages)


def _merge_sort(n: int) -> list[tuple[int, int]]:
    """Comparators of the network for the next power of two, less those of wires from n on.

    Those wires would hold words above all others, which never move.
    """
    comparators: list[tuple[int, int]] = []
    for run in (1 << p for p in range((n - 1).bit_length())):  # sorted runs of this length are merged two by two
        distance = run
        while distance:
            for start in range(distance % run, n - distance, 2 * distance):
                wires = range(start, min(start + distance, n - distance))
                merged = [low for low in wires if low // (2 * run) == (low + distance) // (2 * run)]
                comparators += [(low, low + distance) for low in merged]
            distance //= 2
    return comparators


def _positive(session: Session, x: Shares) -> Shares:
    """x where it is positive, else 0. Ten rounds."""
    return add(x, times_bit(session, sign_bit(session, x), Shares(-x.first, -x.second)))


def _minus(x: Shares, y: Shares) -> Shares:
    return Shares(x.first - y.first, x.second - y.second)


def _part(x: Shares, start: int, stop: int) -> Shares:
    return Shares(x.first[..., start:stop], x.second[..., start:stop])
