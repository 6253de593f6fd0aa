"""FLTrust, FLAME, DnC and FoolsGold, which neither package has, the slow way: word for word, on the rows themselves.

scikit-learn's HDBSCAN does FLAME's clustering, as the paper says; scipy's graphs do it by the threshold.
"""

from __future__ import annotations

import math
import warnings

import numpy as np
from scipy.cluster.hierarchy import linkage
from scipy.sparse.csgraph import connected_components
from scipy.spatial.distance import squareform
from sklearn.cluster import HDBSCAN

Rows = np.ndarray


def cosine(a: Rows, b: Rows) -> float:
    """0 if one of them is the zero vector."""
    length = np.linalg.norm(a) * np.linalg.norm(b)
    return float(a @ b / length) if length > 0 else 0.0


def fltrust(rows: Rows, root: int) -> Rows:
    """Cao et al. 2021, algorithm 2: trust scores, then rows of the root's length, averaged by trust."""
    reference = rows[root]
    total, trust = np.zeros(rows.shape[1]), 0.0
    for i, row in enumerate(rows):
        score = max(0.0, cosine(row, reference))
        if i != root and score > 0:
            total += score * row * (np.linalg.norm(reference) / np.linalg.norm(row))
            trust += score
    return total / trust


def cosine_distances(rows: Rows) -> Rows:
    """1 - cos [n, n], with a diagonal of 0; rows that are parallel on paper are at distance 0."""
    units = [row / max(np.linalg.norm(row), 1e-300) for row in rows]
    distances = np.array([[1 - a @ b for b in units] for a in units])
    distances[np.abs(distances) < 1e-12] = 0
    np.fill_diagonal(distances, 0)
    return (distances + distances.T) / 2


def flame_cluster_by_hdbscan(rows: Rows) -> np.ndarray:
    """Nguyen et al. 2022, section 4.1: HDBSCAN with a minimum cluster of n//2 + 1, everything else is noise."""
    model = HDBSCAN(
        min_cluster_size=len(rows) // 2 + 1, min_samples=1, metric="precomputed", allow_single_cluster=True, copy=True
    )
    with warnings.catch_warnings(), np.errstate(divide="ignore"):  # 1 / distance of identical rows
        warnings.simplefilter("ignore")
        labels = model.fit_predict(cosine_distances(rows))
    return labels == 0


def flame_cluster_by_threshold(rows: Rows) -> np.ndarray:
    """The connected component of more than n/2 rows at the smallest threshold that has one."""
    distances = cosine_distances(rows)
    for threshold in np.unique(distances):
        # Zeros are no edges to scipy: identical rows are joined through the boolean matrix.
        _, labels = connected_components(distances <= threshold + 1e-12)
        sizes = np.bincount(labels)
        if 2 * sizes.max() > len(rows):
            return labels == sizes.argmax()
    raise AssertionError("at the largest threshold everything is connected")


def flame_margin(rows: Rows) -> float:
    """How far the threshold at which the majority forms is from the next one at which clusters join."""
    distances = cosine_distances(rows)
    heights = linkage(squareform(distances), "single")[:, 2]
    cluster = flame_cluster_by_threshold(rows)
    threshold = linkage(squareform(distances[np.ix_(cluster, cluster)]), "single")[-1, 2]
    apart = np.abs(heights - threshold)
    return float(apart[apart > 1e-12].min(initial=np.inf))


def dnc_scores(rows: Rows) -> np.ndarray:
    """Shejwalkar and Houmansadr 2021, algorithm 2 without sampling: <x_i - mean, v>^2, v the top singular vector."""
    centred = rows - rows.mean(0)
    direction = np.linalg.svd(centred, full_matrices=False)[2][0]
    return (centred @ direction) ** 2


def dnc(rows: Rows, drop: int) -> Rows:
    """The mean of all but the `drop` largest scores."""
    return rows[np.argsort(dnc_scores(rows), kind="stable")[: len(rows) - drop]].mean(0)


def foolsgold_honesty(rows: Rows) -> np.ndarray:
    """Fung et al. 2020, algorithm 1 on one round, up to line 12: 1 - the largest similarity after pardoning."""
    n = len(rows)
    similar = (1 - cosine_distances(rows)) * (1 - np.eye(n))
    most = [max(line) for line in similar]
    for i in range(n):
        for j in range(n):
            if most[j] > most[i]:
                similar[i][j] *= most[i] / most[j]
    return np.array([min(max(1 - max(line), 0.0), 1.0) for line in similar])


def foolsgold_weights(rows: Rows) -> list[float]:
    """The rest of the algorithm, with confidence 1; 1 becomes 0.99 before the logit, as in its authors' code.

    Where everybody has a double, the paper divides 0 by 0; here nobody has weight then.
    """
    honesty = foolsgold_honesty(rows)
    if honesty.max() < 1e-12:
        return [0.0] * len(rows)
    shares = [0.99 if share == 1 else share for share in honesty / honesty.max()]
    logits = [math.log(share / (1 - share)) + 0.5 if share > 0 else -math.inf for share in shares]
    return [min(max(logit, 0.0), 1.0) for logit in logits]
