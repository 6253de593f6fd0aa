"""The smoothed geometric median (Pillutla et al. 2022, "Robust aggregation for federated learning", algorithm 2)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from triskele_server.rules.registry import WEIGHT_BITS, rule

if TYPE_CHECKING:
    from triskele_server.mpc.replicated import ReplicatedTensor

_PLACES = 30  # of an inverse distance, at most 2^16: the sum of 256 of them stays far below 2^62
_FINER = 7  # bits of a product's range that a Gram matrix of entries below 1.21 leaves free
_LEAST, _MOST = 2.0**-16, 4.0  # of nu in units of the clip norm: beyond, it changes nothing that can be measured


@rule("geometric-median", giving="fractions", rejects=False, minimum={"iterations": 1, "nu": 0.0})
def geometric_median(
    gram: ReplicatedTensor, *, clip_norm: float, iterations: int = 3, nu: float = 0.1
) -> ReplicatedTensor:
    """Smoothed Weiszfeld from z = 0: w_i = 1 / max(nu, |x_i - z|), z = sum w_i x_i / sum w_i; gives the last w.

    `nu` is in the units of the updates. z is kept as its coefficients, so that the Gram matrix is all it takes.
    """
    least = min(max(nu / clip_norm, _LEAST), _MOST) ** 2
    weights = _weiszfeld_weights(gram.diagonal(), least)
    for _ in range(iterations - 1):
        weights = _weiszfeld_weights(squared_distances_to(gram, weights), least)
    return weights.rescale(WEIGHT_BITS)


def _weiszfeld_weights(squared: ReplicatedTensor, least: float) -> ReplicatedTensor:
    """1 / sqrt(max(least, squared)), divided by their sum."""
    kept = (-squared + least) * squared.lt(least) + squared
    return kept.inv_sqrt().truncated(_PLACES).normalised()


def squared_distances_to(gram: ReplicatedTensor, coefficients: ReplicatedTensor) -> ReplicatedTensor:
    """|x_i - v|^2 for v = sum b_j x_j, b [n] of a sum near 1: right to 2^-24 or so, and perhaps below 0."""
    finer = gram.times_power_of_two(_FINER)  # both factors of a product are brought to 26 places: these are used well
    inner = finer.matmul(coefficients.unsqueeze(1))[:, 0]
    square = (inner * coefficients).sum()
    return gram.diagonal() + (square - inner * 2).times_power_of_two(-_FINER)
