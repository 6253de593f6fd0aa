"""Every rule and stage in float64 numpy, written from its definition: what the secret computation is compared with.

`aggregate` runs a rule as a round would: rows clipped to the clip norm, stages, the rule, example weights. All rules
but the coordinate-wise ones see the Gram matrix [n, n] of their rows alone and give weights, so a call costs one
matrix product. Nothing here is shared with the code that runs on secrets.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

LARGEST_SCALE = 2.0**15  # of a row in FLTrust
SMALLEST_SIMILARITY = 2.0**-10  # that FoolsGold divides by
DOUBLE = 2.0**-20  # FoolsGold takes two rows for one another's double if 1 - cos is less
NOISE = 1e-14  # of float64 Gram matrices, relative to the largest squared norm: what differs by less is a tie


@dataclass(frozen=True)
class Outcome:
    """aggregate: float64 [d], zero if no row has weight (a round fails then).

    coefficients: float64 [n] with aggregate = sum coefficient_i x_i (+ the rest of 1 times the previous aggregate, for
    centered-clip) over the clipped rows x_i, or None for coordinate-wise rules. accepted: bool [n], the rows to which
    the rule gives weight, whatever their example weight.
    """

    aggregate: Floats
    coefficients: Floats | None
    accepted: Mask


@dataclass(frozen=True)
class Weighted:
    """A rule's answer for its rows: sum w_i c_i x_i / sum w_i. Example weights multiply the w_i."""

    weights: Floats
    scales: Floats


def aggregate(
    updates: ArrayLike,
    rule: str | Sequence[str],
    options: Mapping[str, Any] = {},
    *,
    clip_norm: float | None,
    weights: ArrayLike | None = None,
    root: int | None = None,
    previous: ArrayLike | None = None,
    order: Sequence[int] | None = None,
) -> Outcome:
    """The aggregate of float [n, d] `updates` under `rule`, a name, or stages and then a name.

    `options` are flat (they go to every stage that has them) or nested by stage. `clip_norm=None` is the largest row
    norm. `root` is FLTrust's root row, which no stage mixes. `previous` (float [d], default zero) is centered-clip's
    centre. `order` is bucketing's permutation of the rows (default: as given). Raises ValueError on an unknown name
    or option and on what no rule can do.
    """
    given = np.asarray(updates, np.float64)
    norms = np.sqrt(np.einsum("ij,ij->i", given, given))
    limit = float(norms.max()) if clip_norm is None else clip_norm
    given = given * np.minimum(1, _divided(limit, norms))[:, None]
    *stages, last = [rule] if isinstance(rule, str) else rule
    chosen = _options_by_stage([*stages, last], options)
    if last in COORDINATE_RULES and weights is not None:
        raise ValueError(f"{last} takes no example weights")
    if (last == "fltrust") != (root is not None):
        raise ValueError("fltrust, and no other rule, needs a root")

    voters = np.delete(np.arange(len(given)), [] if root is None else [root])
    rows = given[voters]
    mix = np.eye(len(rows))
    for name in stages:
        mix = STAGES[name](mix @ rows, **chosen[name], **({"order": order} if name == "bucketing" else {})) @ mix
    if last in COORDINATE_RULES:
        return Outcome(COORDINATE_RULES[last](mix @ rows, **chosen[last]), None, np.ones(len(given), bool))

    centre = None
    if last == "centered-clip":
        centre = np.zeros(given.shape[1]) if previous is None else np.asarray(previous, np.float64)
        chosen[last]["tau"] = chosen[last].get("tau") or limit
    beside = given[[root]] if root is not None else np.empty((0, given.shape[1])) if centre is None else centre[None]
    answer = GRAM_RULES[last](gram(np.concatenate([mix @ rows, beside])), **chosen[last])

    row_weights = np.zeros(len(given))
    row_weights[voters] = answer.weights @ mix
    parts = np.zeros(len(given))
    parts[voters] = (answer.weights * answer.scales) @ mix
    examples = np.ones(len(given)) if weights is None else np.asarray(weights, np.float64)
    coefficients = _divided(examples * parts, (examples * row_weights).sum(), 0.0)
    total = coefficients @ given
    if centre is not None:
        total += (1 - coefficients.sum()) * centre
    return Outcome(total, coefficients, row_weights > 0)


# ---- stages: rows [n, d] to the matrix [m, n] that averages them ----------------------------------------------------


def nnm(rows: Floats, *, num_malicious_nodes: int = 0) -> Floats:
    """Nearest-neighbour mixing (Allouah et al. 2023, "Fixing by mixing"): each row's n - f nearest, itself included.

    Ties go to the lower index.
    """
    products = gram(rows)
    near = max(1, len(rows) - num_malicious_nodes)
    noise = NOISE * products.diagonal().max()
    return np.stack([smallest(of_row, near, noise) for of_row in squared_distances(products)]) / near


def bucketing(rows: Floats, *, size: int = 2, order: Sequence[int] | None = None) -> Floats:
    """Averages of consecutive groups of the permuted rows (Karimireddy et al. 2022); the last may be smaller."""
    n = len(rows)
    permutation = np.arange(n) if order is None else np.asarray(order)
    if sorted(permutation.tolist()) != list(range(n)) or size < 1:
        raise ValueError(f"bucketing needs a permutation of {n} rows and a size of at least 1")
    mix = np.zeros((-(-n // size), n))
    mix[np.arange(n) // size, permutation] = 1
    return np.asarray(mix / mix.sum(1, keepdims=True), np.float64)


# ---- rules on the Gram matrix of their rows [n, n] ------------------------------------------------------------------


def mean(products: Floats) -> Weighted:
    """Every row with weight 1."""
    return _unscaled(np.ones(len(products)))


def norm_clip(products: Floats) -> Weighted:
    """Every row, shortened to the median norm if it is longer (compare Sun et al. 2019)."""
    return Weighted(np.ones(len(products)), _to_median_norm(products))


def krum(products: Floats, *, num_malicious_nodes: int = 0) -> Weighted:
    """Multi-Krum that selects one row."""
    return multi_krum(products, num_malicious_nodes=num_malicious_nodes, num_nodes_to_select=1)


def multi_krum(products: Floats, *, num_malicious_nodes: int = 0, num_nodes_to_select: int = 1) -> Weighted:
    """The rows with the smallest sums of their max(1, n - f - 2) smallest squared distances to others.

    Blanchard et al. 2017, "Machine learning with adversaries". Ties go to the lower index.
    """
    neighbours = max(1, len(products) - num_malicious_nodes - 2)
    distances = squared_distances(products)
    np.fill_diagonal(distances, np.inf)
    scores = np.sort(distances, axis=1)[:, :neighbours]
    sums = np.where(np.isinf(scores), 0, scores).sum(1)  # fewer others than neighbours: all of them
    noise = NOISE * products.diagonal().max() * neighbours
    return _unscaled(smallest(sums, num_nodes_to_select, noise).astype(np.float64))


def fltrust(products: Floats) -> Weighted:
    """Weights max(0, cos(x_i, r)), rows rescaled to the root's norm (Cao et al. 2021); r is the last row."""
    norms = np.sqrt(products.diagonal())
    scales = np.minimum(LARGEST_SCALE, _divided(norms[-1], norms[:-1], 0.0))
    return Weighted(np.maximum(0, cosines(products)[-1, :-1]), scales)


def flame(products: Floats) -> Weighted:
    """The majority cluster by cosine distance, its rows shortened to the median norm of all (Nguyen et al. 2022).

    The cluster is the connected component of more than n/2 rows in the graph {1 - cos <= threshold}, at the smallest
    threshold that has one: HDBSCAN with minimum cluster size n//2 + 1, min_samples 1, and a single cluster allowed.
    """
    first, second = np.triu_indices(len(products))
    distances = (1 - cosines(products))[first, second]
    labels = np.arange(len(products))
    threshold, majority = np.inf, 0
    for edge in np.argsort(distances, kind="stable"):
        if distances[edge] > threshold + 1e-12:
            break
        labels[labels == labels[second[edge]]] = labels[first[edge]]
        if threshold == np.inf and 2 * np.count_nonzero(labels == labels[first[edge]]) > len(products):
            threshold, majority = distances[edge], first[edge]
    return Weighted((labels == labels[majority]).astype(np.float64), _to_median_norm(products))


def geometric_median(products: Floats, *, iterations: int = 3, nu: float = 0.1) -> Weighted:
    """Smoothed Weiszfeld from the zero vector: w_i = 1/max(nu, |x_i - z|), z = sum w_i x_i / sum w_i.

    Pillutla et al. 2022, "Robust aggregation for federated learning". `nu` is in the units of the rows.
    """
    at = np.zeros(len(products))  # z = sum at_i x_i
    for _ in range(iterations):
        closeness = 1 / np.maximum(nu, _distances_to(products, at))
        at = closeness / closeness.sum()
    return _unscaled(at)


def centered_clip(products: Floats, *, tau: float, iterations: int = 1) -> Weighted:
    """v <- v + (1/n) sum (x_i - v) min(1, tau/|x_i - v|), v at first the last row (Karimireddy et al. 2021).

    What the weights leave of 1 belongs to that last row.
    """
    n = len(products) - 1
    at = np.zeros(n + 1)  # v = sum at_i x_i, over the rows and the centre
    at[-1] = 1
    for _ in range(iterations):
        steps = np.minimum(1, _divided(tau, _distances_to(products, at)[:-1])) / n
        at *= 1 - steps.sum()
        at[:-1] += steps
    return Weighted(np.ones(n), at[:-1] * n)


def dnc(products: Floats, *, num_malicious_nodes: int = 0, filter_fraction: float = 1.0) -> Weighted:
    """The mean without the int(fraction * f) rows that stand out most along the main direction of the centred rows.

    Shejwalkar and Houmansadr 2021, "Manipulating the Byzantine", in one pass over all coordinates: scores are the
    squared entries of the centred Gram matrix's top eigenvector. Of tied rows the higher index is dropped first. One
    row stays in any case.
    """
    means = products.mean(0)
    values, vectors = np.linalg.eigh(products - means - means[:, None] + means.mean())
    none = values[-1] <= NOISE * len(products) * products.diagonal().max()
    scores = np.zeros(len(products)) if none else vectors[:, -1] ** 2
    kept = len(products) - int(filter_fraction * num_malicious_nodes)
    return _unscaled(smallest(scores, max(1, kept), 1e-12).astype(np.float64))


def foolsgold(products: Floats) -> Weighted:
    """Little weight for rows that are like another one (Fung et al. 2020), on this round's rows alone.

    Similarities below 0 count as 0 and are at least 2^-10 where they divide. Where everybody has a double, nobody has
    weight.
    """
    similar = np.maximum(0, cosines(products) * (1 - np.eye(len(products))))
    most = np.maximum(similar.max(1), SMALLEST_SIMILARITY)
    pardoned = similar * np.minimum(1, most[:, None] / most)
    unlike = np.clip(1 - pardoned.max(1), 0, 1)
    if unlike.max() < DOUBLE:
        return _unscaled(np.zeros(len(products)))
    unlike = np.clip(unlike / unlike.max(), 1e-300, 0.99)  # from 0.63 to 1 the logit below is 1 at any rate
    return _unscaled(np.clip(np.log(unlike / (1 - unlike)) + 0.5, 0, 1))


# ---- coordinate-wise rules: rows [n, d] to the aggregate [d] --------------------------------------------------------


def median(rows: Floats) -> Floats:
    """The coordinate-wise median (Yin et al. 2018); even n: the mean of the two middle values."""
    return trimmed_mean(rows, num_malicious_nodes=(len(rows) - 1) // 2)


def trimmed_mean(rows: Floats, *, num_malicious_nodes: int = 0) -> Floats:
    """The mean without the f smallest and f largest values of each coordinate (Yin et al. 2018).

    Where f is too large for the rows there are, the one or two middle values stay.
    """
    dropped = min(num_malicious_nodes, (len(rows) - 1) // 2)
    kept = np.sort(rows, axis=0)[dropped : len(rows) - dropped]
    return np.asarray(kept.mean(0), np.float64)


# ---- geometry on the Gram matrix ------------------------------------------------------------------------------------


def gram(rows: Floats) -> Floats:
    """Inner products [n, n]."""
    return np.asarray(rows @ rows.T, np.float64)


def squared_distances(products: Floats) -> Floats:
    """[n, n], never negative, exactly 0 on the diagonal."""
    norms = products.diagonal()
    return np.asarray(np.maximum(0, norms[:, None] + norms - 2 * products), np.float64)


def cosines(products: Floats) -> Floats:
    """[n, n]; 0 for zero rows."""
    inverse = _divided(1.0, np.sqrt(products.diagonal()), 0.0)
    return np.clip(products * inverse[:, None] * inverse, -1, 1)


def smallest(scores: Floats, count: int, noise: float) -> Mask:
    """The `count` smallest; scores that follow each other within `noise` are tied, and ties go to the lower index."""
    ascending = np.sort(scores)
    group = np.concatenate([[0], np.cumsum(np.diff(ascending) > noise)])
    rank = np.empty(len(scores), np.int64)
    rank[np.argsort(scores)] = group
    chosen = np.zeros(len(scores), np.bool_)
    chosen[np.argsort(rank, kind="stable")[:count]] = True
    return chosen


def _distances_to(products: Floats, at: Floats) -> Floats:
    """|x_i - z| for z = sum at_i x_i."""
    inner = products @ at
    return np.asarray(np.sqrt(np.maximum(0, products.diagonal() - 2 * inner + at @ inner)), np.float64)


def _to_median_norm(products: Floats) -> Floats:
    norms = np.sqrt(products.diagonal())
    return np.asarray(np.minimum(1, _divided(float(np.median(norms)), norms)), np.float64)


def _divided(value: Any, by: Any, where_zero: float = np.inf) -> Floats:
    """value / by, and `where_zero` where `by` is 0."""
    safe = np.where(np.asarray(by) > 0, by, 1.0)
    return np.asarray(np.where(np.asarray(by) > 0, value / safe, where_zero), np.float64)


def _unscaled(weights: Floats) -> Weighted:
    return Weighted(weights, np.ones(len(weights)))


STAGES: dict[str, Callable[..., Floats]] = {"nnm": nnm, "bucketing": bucketing}
GRAM_RULES: dict[str, Callable[..., Weighted]] = {
    "mean": mean,
    "norm-clip": norm_clip,
    "krum": krum,
    "multi-krum": multi_krum,
    "fltrust": fltrust,
    "flame": flame,
    "geometric-median": geometric_median,
    "centered-clip": centered_clip,
    "dnc": dnc,
    "foolsgold": foolsgold,
}
COORDINATE_RULES: dict[str, Callable[..., Floats]] = {"median": median, "trimmed-mean": trimmed_mean}


def _options_by_stage(names: Sequence[str], options: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    for place, name in enumerate(names):
        known = STAGES if place < len(names) - 1 else GRAM_RULES | COORDINATE_RULES
        if name not in known:
            raise ValueError(f"{name!r} is none of {sorted(known)}")
    takes = {name: _option_names(name) for name in names}
    chosen: dict[str, dict[str, Any]] = {name: {} for name in names}
    for key, value in sorted(options.items(), key=lambda item: isinstance(item[1], Mapping)):  # nested ones prevail
        meant = {key: value} if isinstance(value, Mapping) else {n: {key: value} for n in names if key in takes[n]}
        if not meant or not all(n in takes and set(given) <= takes[n] for n, given in meant.items()):
            raise ValueError(f"no stage of {list(names)} takes {key!r}: {value!r}")
        for name, given in meant.items():
            chosen[name].update(given)
    return chosen


def _option_names(name: str) -> set[str]:
    function = (STAGES | GRAM_RULES | COORDINATE_RULES)[name]
    keywords = inspect.signature(function).parameters.values()
    return {p.name for p in keywords if p.kind is p.KEYWORD_ONLY} - {"order"}
