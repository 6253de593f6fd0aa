"""The shape of a model update: many named arrays in, one flat vector out, and the same arrays back.

Arrays are laid end to end in the sorted order of their names, each in C order, so that every participant of a task
lays the same model out the same way whatever order its framework iterates in. torch is never imported: a tensor is
known by its methods, and a result is made by the tensor's own `new_tensor`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from triskele.array_files import read_arrays
from triskele.errors import InvalidUpdate
from triskele.task import TaskSpec

Vector = NDArray[np.floating[Any]]
Update = NDArray[Any] | Mapping[str, Any] | str | os.PathLike[str]

_DTYPES = (np.dtype(np.float16), np.dtype(np.float32), np.dtype(np.float64))
_CHUNK = 1 << 16  # entries checked at a time
_ALONE = "update"  # how an array that came without a name is called in errors
_SHOWN = 6  # arrays listed in an error


@dataclass(frozen=True)
class _Piece:
    """One array's place in the flat vector."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    start: int
    stop: int
    prototype: Any = field(default=None, repr=False)  # an empty tensor of the original's kind, or None for numpy

    def restore(self, vector: Vector) -> Any:
        part = vector[self.start : self.stop].reshape(self.shape)
        if self.dtype.itemsize < vector.dtype.itemsize:  # narrower than what it is made from: saturate, never Inf
            limits = np.finfo(self.dtype)
            part = np.clip(part, limits.min, limits.max)
        array = part.astype(self.dtype, copy=True)
        return array if self.prototype is None else self.prototype.new_tensor(array)


@dataclass(frozen=True)
class Structure:
    """Names, shapes and dtypes of an update, enough to give an aggregate back in the same form.

    `names` is the caller's own order of names, or None for a single array.
    """

    pieces: tuple[_Piece, ...]
    names: tuple[str, ...] | None

    @property
    def dimension(self) -> int:
        """Entries of the flat vector."""
        return self.pieces[-1].stop

    def check_fits(self, spec: TaskSpec) -> None:
        """Raise InvalidUpdate, naming the arrays, unless the update has as many entries as the task."""
        if self.dimension == spec.entries:
            return
        listed = ", ".join(f"{piece.name} {piece.shape}" for piece in self.pieces[:_SHOWN])
        more = f" and {len(self.pieces) - _SHOWN} more" if len(self.pieces) > _SHOWN else ""
        raise InvalidUpdate(
            f"the update has {self.dimension} entries ({listed}{more}), but task {spec.name!r} has {spec.entries}; "
            "send the arrays that the task was made for"
        )

    def restore(self, vector: Vector) -> Any:
        """A vector [dimension] in this structure: same names, order, shapes, dtypes, and tensors where tensors came.

        Values beyond a narrower dtype's range saturate. Raises InvalidUpdate for a vector of another length.
        """
        if vector.shape != (self.dimension,):
            raise InvalidUpdate(
                f"a vector of shape {vector.shape} does not fit a structure of {self.dimension} entries"
            )
        arrays = {piece.name: piece.restore(vector) for piece in self.pieces}
        return arrays[self.pieces[0].name] if self.names is None else {name: arrays[name] for name in self.names}


def flatten(update: Update) -> tuple[Vector, Structure]:
    """The update as one vector [d] of float32 or float64 (the widest that its arrays need) and its structure.

    update: one float16, float32 or float64 array or tensor of any shape, a mapping from names to such arrays (a torch
    state_dict is one), or the path of a .npz or .safetensors file. A contiguous float32 or float64 array is not copied.
    Raises InvalidUpdate, naming the array, on NaN, Inf, another dtype, an array without entries, and an empty mapping.
    """
    if isinstance(update, str | os.PathLike):
        update = read_arrays(update)
    if not isinstance(update, Mapping):
        array, prototype = _as_array(_ALONE, update)
        piece = _Piece(_ALONE, array.shape, array.dtype, 0, array.size, prototype)
        return _checked(_ALONE, _widened(array).reshape(-1)), Structure((piece,), None)
    pieces, arrays = _pieces(update)
    vector = np.empty(pieces[-1].stop, np.result_type(np.float32, *(piece.dtype for piece in pieces)))
    for piece, array in zip(pieces, arrays, strict=True):
        part = vector[piece.start : piece.stop]
        part.reshape(piece.shape)[...] = array
        _checked(piece.name, part)
    return vector, Structure(tuple(pieces), tuple(update))


def _pieces(update: Mapping[str, Any]) -> tuple[list[_Piece], list[NDArray[Any]]]:
    if not update:
        raise InvalidUpdate("the update has no arrays")
    for name in update:
        if not isinstance(name, str):
            raise InvalidUpdate(f"the update's arrays must be named by text, not by {type(name).__name__}")
    pieces: list[_Piece] = []
    arrays = []
    start = 0
    for name in sorted(update):
        array, prototype = _as_array(name, update[name])
        pieces.append(_Piece(name, array.shape, array.dtype, start, start + array.size, prototype))
        arrays.append(array)
        start += array.size
    return pieces, arrays


def _as_array(name: str, value: Any) -> tuple[NDArray[Any], Any]:
    """The value as a numpy array, and an empty tensor of its kind if it is a tensor."""
    prototype = None
    if all(hasattr(value, method) for method in ("detach", "cpu", "numpy", "new_tensor", "new_empty")):
        tensor = value.detach()
        prototype = tensor.new_empty((0,))  # keeps dtype and device, not the entries
        try:
            value = tensor.cpu().numpy()
        except (TypeError, RuntimeError) as error:
            raise InvalidUpdate(
                f"{name}: a tensor of {tensor.dtype} does not become a numpy array; "
                "convert it to float32, float16 or float64"
            ) from error
    if not isinstance(value, np.ndarray | np.floating):
        raise InvalidUpdate(f"{name}: {type(value).__name__} is neither a numpy array nor a tensor")
    array = np.asarray(value)
    if array.dtype.newbyteorder("=") not in _DTYPES:
        raise InvalidUpdate(
            f"{name}: dtype {array.dtype} cannot be aggregated; use float16, float32 or float64, "
            "and leave counters and masks out of the update"
        )
    if array.size == 0:
        raise InvalidUpdate(f"{name}: shape {array.shape} has no entries")
    return array, prototype


def _widened(array: NDArray[Any]) -> NDArray[Any]:
    """Native float32 or float64, contiguous; the array itself if it already is."""
    return np.ascontiguousarray(array, np.result_type(np.float32, array.dtype))


def _checked(name: str, vector: NDArray[Any]) -> NDArray[Any]:
    for part in _parts(vector):
        if not np.isfinite(part).all():
            raise InvalidUpdate(f"{name}: has NaN or Inf entries; such an update cannot be aggregated")
    return vector


def _parts(vector: NDArray[Any]) -> Iterator[NDArray[Any]]:
    for start in range(0, len(vector), _CHUNK):
        yield vector[start : start + _CHUNK]
