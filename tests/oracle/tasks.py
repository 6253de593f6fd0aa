"""The rules as `simulate` is asked for them, how exactly each must agree, and how near its decision is to another."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from bench.plaintext import Outcome, aggregate

from triskele_server.simulate import SimulatedRound
from triskele_server.simulate import simulate as simulate_in_a_ring

from . import packages, papers
from .matrices import CLIP, malicious, matrix

simulate = partial(simulate_in_a_ring, ring=64)  # whose places the bounds here are about; the other: test_narrow_ring

# Norms of errors in clip norms.
EXACT = 1e-13  # integers throughout: only the division after opening rounds
SCALED = 2.0**-18  # rows times factors of 20 fraction bits
WEIGHTED = 2.0**-18  # by weights of 26 fraction bits, of roots and divisions
TRUSTED = 2.0**-16  # by such weights and such factors
RATIOS = 2.0**-16  # FoolsGold's, of honesties above 2^-6 that are right to 2^-25
CLIPPED = 2.0**-17  # by factors of 20 fraction bits, over several steps

NEAR = 1e-6  # decisions that hang on less than this are no part of the promise

Options = Mapping[str, Any]
Oracle = Callable[[np.ndarray, int], np.ndarray]  # rows and f to the aggregate


@dataclass(frozen=True)
class Task:
    """`options` of n rows; `tolerance`: the largest norm of an error, in clip norms. The last row is the root.

    `margin` of rows and f: how far the rule's decision is from another one, in the unit in which it decides.
    `oracles` compute the same aggregate in others' code.
    """

    rule: str | tuple[str, ...]
    options: Callable[[int], Options]
    tolerance: float
    oracles: tuple[Oracle, ...] = ()
    margin: Callable[[np.ndarray, int], float] = lambda rows, f: np.inf
    rooted: bool = False
    remembers: bool = False

    def given(self, rows: np.ndarray) -> dict[str, Any]:
        """The keywords that plaintext and `simulate` share."""
        given: dict[str, Any] = {"clip_norm": CLIP}
        if self.rooted:
            given["root"] = len(rows) - 1
        if self.remembers:
            given["previous"] = previous(rows)
        return given

    def in_plaintext(self, rows: np.ndarray, **more: Any) -> Outcome:
        """What `bench.plaintext` gives."""
        return aggregate(rows, self.rule, self.options(len(rows)), **self.given(rows), **more)

    def in_secret(self, rows: np.ndarray, **more: Any) -> SimulatedRound:
        """What a simulated round gives."""
        rule = self.rule if isinstance(self.rule, str) else list(self.rule)
        # Whoever carries the aggregate, also one row alone: what the minimum cohort refuses is another matter.
        given = {**self.given(rows), "min_accepted": 1, **more}
        return simulate(rows, rule=rule, rule_options=self.options(len(rows)), **given)


def previous(rows: np.ndarray) -> np.ndarray:
    """An aggregate on the grid, of half the clip norm, that has nothing to do with the rows."""
    return matrix("independent", 4, rows.shape[1], seed=9)[0] / 2


def selected(n: int) -> int:
    """How many rows multi-Krum selects here."""
    return max(2, n // 2)


def _malicious(n: int) -> Options:
    return {"num_malicious_nodes": malicious(n)}


def _nothing(_n: int) -> Options:
    return {}


def _gap(scores: np.ndarray, count: int, rows: np.ndarray, unit: float | None = None) -> float:
    """From the `count`-th smallest score to the next, relative to `unit` or to itself; identical rows may tie."""
    order = np.argsort(scores, kind="stable")
    if count >= len(scores):
        return np.inf
    last, first = order[count - 1], order[count]
    if np.array_equal(rows[last], rows[first]):
        return np.inf
    return float(scores[first] - scores[last]) / (unit or max(scores[first], 1e-300))


def _squared_distances(rows: np.ndarray) -> np.ndarray:
    return np.array([((rows - row) ** 2).sum(1) for row in rows])


def krum_margin(rows: np.ndarray, f: int, selected: int) -> float:
    """Relative to the score."""
    distances = np.sort(_squared_distances(rows), axis=1)
    return _gap(distances[:, 1 : 1 + max(1, len(rows) - f - 2)].sum(1), selected, rows)


def dnc_margin(rows: np.ndarray, f: int) -> float:
    """Relative to the sum of the scores, less what 1024 steps of a power iteration leave of the second direction."""
    scores = papers.dnc_scores(rows)
    strengths = np.linalg.svd(rows - rows.mean(0), compute_uv=False) ** 2
    rest = float((strengths[1] / strengths[0]) ** 1024) if len(strengths) > 1 and strengths[0] > 0 else 0.0
    return _gap(scores, len(rows) - f, rows, unit=scores.sum() or 1.0) - rest


def nnm_margin(rows: np.ndarray, f: int) -> float:
    """Relative to the distance."""
    return min(_gap(row, len(rows) - f, rows) for row in _squared_distances(rows))


def trust_margin(rows: np.ndarray) -> float:
    """The smallest cosine with the root other than 0."""
    cosines = [abs(papers.cosine(row, rows[-1])) for row in rows[:-1]]
    return min((c for c in cosines if c > 0), default=np.inf)


def foolsgold_margin(rows: np.ndarray, _f: int) -> float:
    """From the share of the largest honesty at which weight begins; nothing where everybody is nearly a double."""
    honesty = papers.foolsgold_honesty(rows)
    if honesty.max() < 1e-12:
        return np.inf
    edge = 1 / (1 + np.exp(0.5))  # of ln(w / (1 - w)) + 0.5 = 0
    return float(np.abs(honesty / honesty.max() - edge).min()) if honesty.max() > 2.0**-6 else 0.0


def _after_nnm(margin: Callable[[np.ndarray, int], float]) -> Callable[[np.ndarray, int], float]:
    def of_both(rows: np.ndarray, f: int) -> float:
        near = np.argsort(_squared_distances(rows), axis=1, kind="stable")[:, : len(rows) - f]
        return min(nnm_margin(rows, f), margin(rows[near].mean(1), f))

    return of_both


def _flame(rows: np.ndarray, _f: int) -> np.ndarray:
    return packages.byzfl_clipping(rows)[papers.flame_cluster_by_hdbscan(rows)].mean(0)


def _foolsgold(rows: np.ndarray, _f: int) -> np.ndarray:
    return np.average(rows, axis=0, weights=papers.foolsgold_weights(rows))


def _mixed_beside_root(rows: np.ndarray, f: int) -> np.ndarray:
    return np.concatenate([packages.byzfl_nnm(rows[:-1], f), rows[-1:]])


def _fltrust_of_mixed(rows: np.ndarray, f: int) -> np.ndarray:
    return papers.fltrust(_mixed_beside_root(rows, f), len(rows) - 1)


def _fltrust_of_mixed_margin(rows: np.ndarray, f: int) -> float:
    return min(nnm_margin(rows[:-1], f), trust_margin(_mixed_beside_root(rows, f)))


TASKS = {
    "mean": Task("mean", _nothing, EXACT),
    "norm-clip": Task("norm-clip", _nothing, SCALED, (lambda rows, f: packages.byzfl_norm_clip(rows),)),
    "krum": Task(
        "krum",
        _malicious,
        EXACT,
        (
            lambda rows, f: packages.byzfl_krum(rows, f + 1),
            lambda rows, f: packages.byzpy_multi_krum(rows, f + 1, 1),
        ),
        margin=lambda rows, f: krum_margin(rows, f, 1),
    ),
    "multi-krum": Task(
        "multi-krum",
        lambda n: {"num_malicious_nodes": malicious(n), "num_nodes_to_select": selected(n)},
        EXACT,
        (lambda rows, f: packages.byzpy_multi_krum(rows, f + 1, selected(len(rows))),),
        margin=lambda rows, f: krum_margin(rows, f, selected(len(rows))),
    ),
    "multi-krum, all but f + 1": Task(
        "multi-krum",
        lambda n: {"num_malicious_nodes": malicious(n), "num_nodes_to_select": n - malicious(n) - 1},
        EXACT,
        (lambda rows, f: packages.byzfl_multi_krum(rows, f + 1),),
        margin=lambda rows, f: krum_margin(rows, f, len(rows) - f - 1),
    ),
    "fltrust": Task(
        "fltrust",
        _nothing,
        TRUSTED,
        (lambda rows, f: papers.fltrust(rows, len(rows) - 1),),
        margin=lambda rows, f: trust_margin(rows),
        rooted=True,
    ),
    "flame": Task("flame", _nothing, SCALED, (_flame,), margin=lambda rows, f: papers.flame_margin(rows)),
    "geometric-median": Task(
        "geometric-median", _nothing, WEIGHTED, (lambda rows, f: packages.byzfl_geometric_median(rows, 0.1, 3),)
    ),
    "geometric-median, longer and sharper": Task(
        "geometric-median",
        lambda n: {"iterations": 6, "nu": 0.02},
        WEIGHTED,
        (lambda rows, f: packages.byzfl_geometric_median(rows, 0.02, 6),),
    ),
    "centered-clip": Task(
        "centered-clip",
        lambda n: {"tau": 0.5},
        CLIPPED,
        (
            lambda rows, f: packages.byzfl_centered_clip(rows, 0.5, 1),
            lambda rows, f: packages.byzpy_centered_clip(rows, 0.5, 1),
        ),
    ),
    "centered-clip, three steps from a previous aggregate": Task(
        "centered-clip",
        lambda n: {"tau": 0.7, "iterations": 3},
        CLIPPED,
        (lambda rows, f: packages.byzfl_centered_clip(rows, 0.7, 3, previous(rows)),),
        remembers=True,
    ),
    "dnc": Task("dnc", _malicious, EXACT, (papers.dnc,), margin=dnc_margin),
    "foolsgold": Task("foolsgold", _nothing, RATIOS, (_foolsgold,), margin=foolsgold_margin),
    "median": Task("median", _nothing, EXACT, (lambda rows, f: packages.byzfl_median(rows),)),
    "trimmed-mean": Task("trimmed-mean", _malicious, EXACT, (packages.byzfl_trimmed_mean, packages.byzpy_trimmed_mean)),
    "nnm, mean": Task(
        ("nnm", "mean"),
        _malicious,
        EXACT,
        (
            lambda rows, f: packages.byzfl_nnm(rows, f).mean(0),
            lambda rows, f: packages.byzpy_nnm(rows, f).mean(0),
        ),
        margin=nnm_margin,
    ),
    "nnm, multi-krum": Task(
        ("nnm", "multi-krum"),
        lambda n: {"num_malicious_nodes": malicious(n), "multi-krum": {"num_nodes_to_select": selected(n)}},
        EXACT,
        (lambda rows, f: packages.byzpy_multi_krum(packages.byzpy_nnm(rows, f), f + 1, selected(len(rows))),),
        margin=_after_nnm(lambda rows, f: krum_margin(rows, f, selected(len(rows)))),
    ),
    "nnm, geometric-median": Task(
        ("nnm", "geometric-median"),
        _malicious,
        WEIGHTED,
        (lambda rows, f: packages.byzfl_geometric_median(packages.byzfl_nnm(rows, f), 0.1, 3),),
        margin=nnm_margin,
    ),
    "nnm, flame": Task(
        ("nnm", "flame"),
        _malicious,
        WEIGHTED,
        (lambda rows, f: _flame(packages.byzfl_nnm(rows, f), f),),
        margin=_after_nnm(lambda rows, f: papers.flame_margin(rows)),
    ),
    "nnm, fltrust": Task(  # the root is nobody's neighbour
        ("nnm", "fltrust"),
        _malicious,
        TRUSTED,
        (_fltrust_of_mixed,),
        margin=_fltrust_of_mixed_margin,
        rooted=True,
    ),
    "nnm, trimmed-mean": Task(
        ("nnm", "trimmed-mean"),
        _malicious,
        EXACT,
        (lambda rows, f: packages.byzfl_trimmed_mean(packages.byzfl_nnm(rows, f), f),),
        margin=nnm_margin,
    ),
}
