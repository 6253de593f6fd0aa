"""byzfl 0.0.11 and byzpy 0.1.4 as functions of float64 rows [n, d]; each call gets its own copy of the rows.

Neither package has FLTrust, FLAME, DnC or FoolsGold.
"""

from __future__ import annotations

import importlib.util
import sys
import types
from collections.abc import Sequence

import numpy as np
import torch

# byzfl's own __init__ imports its benchmarks, which need torchvision and seaborn; the aggregators do not.
if "byzfl" not in sys.modules:
    found = importlib.util.find_spec("byzfl")
    assert found is not None
    package = types.ModuleType("byzfl")
    package.__path__ = list(found.submodule_search_locations or [])
    sys.modules["byzfl"] = package

from byzfl.aggregators import aggregators, preaggregators
from byzpy.aggregators.coordinate_wise.median import CoordinateWiseMedian
from byzpy.aggregators.coordinate_wise.trimmed_mean import CoordinateWiseTrimmedMean
from byzpy.aggregators.geometric_wise.geometric_median import GeometricMedian
from byzpy.aggregators.geometric_wise.krum import MultiKrum
from byzpy.aggregators.norm_wise.center_clipping import CenteredClipping
from byzpy.pre_aggregators import Bucketing, NearestNeighborMixing

Rows = np.ndarray


def _tensors(rows: Rows) -> list[torch.Tensor]:
    return [torch.from_numpy(row.copy()) for row in rows]


# ---- byzfl ----------------------------------------------------------------------------------------------------------


def byzfl_krum(rows: Rows, f: int) -> Rows:
    """The row with the smallest sum of its n - f - 1 smallest squared distances to others; needs 2f < n."""
    return aggregators.Krum(f)(rows.copy())


def byzfl_multi_krum(rows: Rows, f: int) -> Rows:
    """The mean of the n - f rows with the smallest scores of `byzfl_krum`."""
    return aggregators.MultiKrum(f)(rows.copy())


def byzfl_geometric_median(rows: Rows, nu: float, steps: int) -> Rows:
    """Smoothed Weiszfeld from zero."""
    return aggregators.GeometricMedian(nu, steps)(rows.copy())


def byzfl_centered_clip(rows: Rows, tau: float, steps: int, previous: Rows | None = None) -> Rows:
    """Centered clipping around what the instance returned last; around zero the first time."""
    rule = aggregators.CenteredClipping(L=steps, tau=tau)
    rule.m = None if previous is None else previous.copy()  # its constructor refuses every m
    with np.errstate(divide="ignore"):  # a row at the centre: tau / 0
        return rule(rows.copy())


def byzfl_centered_clip_over_rounds(rounds: Sequence[Rows], tau: float, steps: int) -> list[Rows]:
    """The aggregates of one instance called once per round."""
    rule = aggregators.CenteredClipping(L=steps, tau=tau)
    return [rule(rows.copy()) for rows in rounds]


def byzfl_trimmed_mean(rows: Rows, f: int) -> Rows:
    """Without the f smallest and largest of each coordinate; needs 2f < n."""
    return aggregators.TrMean(f)(rows.copy())


def byzfl_median(rows: Rows) -> Rows:
    """Coordinate-wise; even n: the mean of the two middle values."""
    return aggregators.Median()(rows.copy())


def byzfl_nnm(rows: Rows, f: int) -> Rows:
    """Each row's mean with its nearest, n - f in all."""
    return preaggregators.NNM(f)(rows.copy())


def byzfl_bucketing(rows: Rows, size: int, seed: int) -> tuple[Rows, list[int]]:
    """Bucket means, and the permutation that byzfl drew: the same seed on unit rows shows who is in which bucket."""
    np.random.seed(seed)
    means = preaggregators.Bucketing(size)(rows.copy())
    np.random.seed(seed)
    members = preaggregators.Bucketing(size)(np.eye(len(rows)))
    return means, np.nonzero(members)[1].tolist()


def byzfl_norm_clip(rows: Rows) -> Rows:
    """byzfl's mean of byzfl's static clipping to the median norm."""
    return aggregators.Average()(byzfl_clipping(rows))


def byzfl_clipping(rows: Rows) -> Rows:
    """Rows clipped to their median norm."""
    threshold = float(np.median(np.linalg.norm(rows, axis=1)))
    return preaggregators.Clipping(threshold)(rows.copy())


# ---- byzpy ----------------------------------------------------------------------------------------------------------


def byzpy_multi_krum(rows: Rows, f: int, selected: int) -> Rows:
    """The mean of the `selected` <= n - f rows with the smallest sums of their n - f - 1 smallest distances."""
    return MultiKrum(f, selected).aggregate(_tensors(rows)).numpy()


def byzpy_geometric_median(rows: Rows, nu: float, steps: int) -> Rows:
    """Smoothed Weiszfeld from the mean; stops early where a step no longer moves."""
    rule = GeometricMedian(init="mean", eps=nu, max_iter=steps, tol=1e-300)
    return rule.aggregate(_tensors(rows)).numpy()


def byzpy_centered_clip(rows: Rows, tau: float, steps: int) -> Rows:
    """Centered clipping around zero."""
    return CenteredClipping(c_tau=tau, M=steps, init="zero").aggregate(_tensors(rows)).numpy()


def byzpy_trimmed_mean(rows: Rows, f: int) -> Rows:
    """Without the f smallest and largest of each coordinate; needs 2f < n."""
    return CoordinateWiseTrimmedMean(f).aggregate(_tensors(rows)).numpy()


def byzpy_median(rows: Rows) -> Rows:
    """Coordinate-wise; even n: the lower of the two middle values."""
    return CoordinateWiseMedian().aggregate(_tensors(rows)).numpy()


def byzpy_nnm(rows: Rows, f: int) -> Rows:
    """Each row's mean with its nearest, n - f in all."""
    return torch.stack(NearestNeighborMixing(f).pre_aggregate(_tensors(rows))).numpy()


def byzpy_bucketing(rows: Rows, size: int, order: Sequence[int]) -> Rows:
    """Bucket means of the permuted rows."""
    return torch.stack(Bucketing(size, perm=order).pre_aggregate(_tensors(rows))).numpy()
