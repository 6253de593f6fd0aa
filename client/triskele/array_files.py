"""Named arrays in files: .npz and .safetensors, read strictly, written atomically."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from numpy.lib import format as npy
from numpy.typing import NDArray

from triskele.errors import ConfigurationError, InvalidUpdate

SUFFIXES = (".npz", ".safetensors")


def read_arrays(path: str | os.PathLike[str]) -> dict[str, NDArray[Any]]:
    """Every array of a .npz or .safetensors file by its name.

    Pickled objects are never loaded. Raises InvalidUpdate if the file cannot be read or is of another kind.
    """
    file = Path(path)
    suffix = file.suffix.lower()
    if suffix not in SUFFIXES:
        raise InvalidUpdate(f"{file}: an update is read from {' or '.join(SUFFIXES)}")
    try:
        if suffix == ".safetensors":
            return dict(safetensors.numpy.load_file(file))
        # opened here: given a path, numpy leaves a damaged file open
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except OSError as error:
        raise InvalidUpdate(f"{file}: cannot be read ({error.strerror or type(error).__name__})") from error
    except Exception as error:
        raise InvalidUpdate(f"{file}: not a {suffix} file of plain arrays ({type(error).__name__})") from error


def check_writable(path: Path) -> None:
    """Raise ConfigurationError unless `write_arrays` can be expected to write `path`; nothing is written."""
    if path.suffix.lower() not in SUFFIXES:
        raise ConfigurationError(f"{path}: a result is written to {' or '.join(SUFFIXES)}")
    if not path.parent.is_dir():
        raise ConfigurationError(f"{path}: the folder {path.parent} does not exist")


def write_arrays(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write named arrays to a .npz or .safetensors file, whole or not at all; an older file is replaced."""
    check_writable(path)
    unfinished = path.with_name(f".{path.name}.part")
    try:
        if path.suffix.lower() == ".safetensors":
            safetensors.numpy.save_file(
                {name: np.asarray(array, order="C") for name, array in arrays.items()}, unfinished
            )
        else:
            _write_npz(unfinished, arrays)
        unfinished.replace(path)
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be written ({error.strerror})") from error
    finally:
        unfinished.unlink(missing_ok=True)


def _write_npz(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    # np.savez takes the names as keyword arguments, so an array could not be called "file"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                npy.write_array(member, array, allow_pickle=False)
