"""The face recogniser of the demo: one hidden layer, trained by plain SGD in numpy float32."""

from collections.abc import Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

from triskele_server.demo.faces import PEOPLE, PIXELS

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int64]
Params = dict[str, FloatArray]

HIDDEN: Final = 48
SHAPES: Final[dict[str, tuple[int, ...]]] = {
    "hidden.weight": (PIXELS, HIDDEN),
    "hidden.bias": (HIDDEN,),
    "output.weight": (HIDDEN, PEOPLE),
    "output.bias": (PEOPLE,),
}
"""Name and shape of each parameter, in the order in which a flat vector holds them."""
DIMENSION: Final = sum(int(np.prod(shape)) for shape in SHAPES.values())
BATCH: Final = 16
MAX_GRADIENT_NORM: Final = 2.0
"""A batch's gradient is scaled down to this L2 norm, so that a destroyed global model cannot overflow float32."""


def initial_params(rng: np.random.Generator) -> Params:
    """Random weights scaled by fan-in (He et al. 2015), zero biases."""
    params = {name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()}
    for name in ("hidden.weight", "output.weight"):
        fan_in = SHAPES[name][0]
        params[name] += rng.standard_normal(SHAPES[name], np.float32) * np.float32(np.sqrt(2 / fan_in))
    return params


def to_vector(params: Params) -> FloatArray:
    """All parameters as float32[DIMENSION], in the order of SHAPES."""
    return np.concatenate([params[name].ravel() for name in SHAPES])


def from_vector(vector: NDArray[np.floating]) -> Params:
    """The inverse of ``to_vector``; takes any float type, copies."""
    if vector.shape != (DIMENSION,):
        raise ValueError(f"expected a vector of {DIMENSION} parameters, got shape {vector.shape}")
    params: Params = {}
    start = 0
    for name, shape in SHAPES.items():
        end = start + int(np.prod(shape))
        params[name] = vector[start:end].astype(np.float32).reshape(shape)
        start = end
    return params


def predict(params: Params, images: FloatArray) -> IntArray:
    """The most likely person, int64[n], for images float32[n, PIXELS]."""
    _, logits = _forward(params, images)
    people: IntArray = logits.argmax(axis=1)
    return people


def accuracy(params: Params, images: FloatArray, labels: IntArray) -> float:
    """Fraction of the images whose person is recognised."""
    if len(labels) == 0:
        raise ValueError("accuracy of no images")
    return float(np.mean(predict(params, images) == labels))


def local_update(
    params: Params,
    images: FloatArray,
    labels: IntArray,
    *,
    epochs: int,
    lr: float,
    rng: np.random.Generator,
    batch_size: int | None = BATCH,
) -> Params:
    """Parameters after ``epochs`` of SGD on the images minus the parameters before (McMahan et al. 2017, FedAvg).

    ``batch_size`` None takes all images in every step: what is left then is a participant's own view of the task,
    without the noise of small batches, and honest updates agree more.
    """
    trained = {name: value.copy() for name, value in params.items()}
    for batch in _batches(len(labels), batch_size or max(len(labels), 1), epochs, rng):
        gradient = _gradient(trained, images[batch], labels[batch])
        norm = float(np.sqrt(sum(float(np.vdot(g, g)) for g in gradient.values())))
        step = np.float32(lr * min(1.0, MAX_GRADIENT_NORM / max(norm, 1e-12)))
        for name, value in gradient.items():
            trained[name] -= step * value
    return {name: trained[name] - params[name] for name in SHAPES}


def _batches(count: int, size: int, epochs: int, rng: np.random.Generator) -> Iterator[IntArray]:
    for _ in range(epochs):
        order = rng.permutation(count)
        for start in range(0, count, size):
            yield order[start : start + size]


def _forward(params: Params, images: FloatArray) -> tuple[FloatArray, FloatArray]:
    hidden = np.maximum(images @ params["hidden.weight"] + params["hidden.bias"], 0)
    return hidden, hidden @ params["output.weight"] + params["output.bias"]


def _gradient(params: Params, images: FloatArray, labels: IntArray) -> Params:
    """Gradient of the mean cross-entropy."""
    hidden, logits = _forward(params, images)
    error = np.exp(logits - logits.max(axis=1, keepdims=True))
    error /= error.sum(axis=1, keepdims=True)
    error[np.arange(len(labels)), labels] -= 1
    error /= len(labels)
    hidden_error = (error @ params["output.weight"].T) * (hidden > 0)
    return {
        "hidden.weight": images.T @ hidden_error,
        "hidden.bias": hidden_error.sum(axis=0),
        "output.weight": hidden.T @ error,
        "output.bias": error.sum(axis=0),
    }
