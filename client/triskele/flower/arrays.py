"""Between Flower's ArrayRecords and updates: what a client learnt, and the model that the aggregate leads to.

Arrays of floating point take part. Others (counters, masks) and arrays without entries are no update: the ServerApp's
own stay as they are.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord
from numpy.typing import NDArray

from triskele.errors import InvalidUpdate
from triskele.structure import flatten

NamedArrays = dict[str, NDArray[Any]]


def trained(record: ArrayRecord) -> NamedArrays:
    """The arrays that take part, by name, as numpy."""
    arrays = {name: array.numpy() for name, array in record.items()}
    return {name: array for name, array in arrays.items() if array.dtype.kind == "f" and array.size}


def update_of(received: NamedArrays, replied: NamedArrays) -> NamedArrays:
    """New minus received arrays, float32 or wider; raises InvalidUpdate unless names and shapes are the same."""
    shapes = [{name: array.shape for name, array in arrays.items()} for arrays in (received, replied)]
    if shapes[0] != shapes[1]:
        raise InvalidUpdate("the reply's arrays do not have the names and shapes of those received; no update was sent")
    wide = {name: np.result_type(np.float32, array.dtype) for name, array in received.items()}
    return {name: np.subtract(replied[name], received[name], dtype=wide[name]) for name in received}


def moved(current: ArrayRecord, mean: NDArray[np.float64]) -> ArrayRecord:
    """The current arrays plus the mean update, float64 [entries] in the task's flat order; same names and dtypes."""
    vector, structure = flatten(trained(current))
    arrays = structure.restore(vector.astype(np.float64) + mean)
    return ArrayRecord({name: Array(arrays[name]) if name in arrays else array for name, array in current.items()})
