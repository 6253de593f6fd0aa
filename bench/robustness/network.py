"""A network with one hidden layer, of the shape that a data set needs; the demo's training works on any."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from triskele_server.demo.faces import LabelledImages
from triskele_server.demo.model import Params

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class Network:
    """One hidden layer, and how a participant trains it in one round: so many steps, each on all its images."""

    pixels: int
    hidden: int
    classes: int
    epochs: int
    learning_rate: float

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of each parameter, in the order of a flat vector."""
        return {
            "hidden.weight": (self.pixels, self.hidden),
            "hidden.bias": (self.hidden,),
            "output.weight": (self.hidden, self.classes),
            "output.bias": (self.classes,),
        }

    @property
    def dimension(self) -> int:
        """Number of parameters d."""
        return sum(int(np.prod(shape)) for shape in self.shapes.values())


def initial_params(network: Network, rng: np.random.Generator) -> Params:
    """Random weights scaled by fan-in (He et al. 2015), zero biases."""
    params = {name: np.zeros(shape, np.float32) for name, shape in network.shapes.items()}
    for name, shape in network.shapes.items():
        if len(shape) == 2:
            params[name] += rng.standard_normal(shape, np.float32) * np.float32(np.sqrt(2 / shape[0]))
    return params


def from_vector(vector: Vector, network: Network) -> Params:
    """The parameters of float64[d], in the order of the network's shapes; copies."""
    params: Params = {}
    start = 0
    for name, shape in network.shapes.items():
        end = start + int(np.prod(shape))
        params[name] = vector[start:end].astype(np.float32).reshape(shape)
        start = end
    return params


def loss(params: Params, data: LabelledImages) -> float:
    """Mean cross-entropy."""
    hidden = np.maximum(data.images @ params["hidden.weight"] + params["hidden.bias"], 0)
    logits = (hidden @ params["output.weight"] + params["output.bias"]).astype(np.float64)
    logits -= logits.max(axis=1, keepdims=True)
    own = logits[np.arange(len(data.labels)), data.labels]
    return float(np.mean(np.log(np.exp(logits).sum(axis=1)) - own))
