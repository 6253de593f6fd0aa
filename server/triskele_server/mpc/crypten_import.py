"""The only module that imports CrypTen, and what has to be done first.

CrypTen 0.4.1 is the newest release. `pip install crypten` cannot succeed (its dependency `sklearn` refuses to build),
so it is installed with --no-deps. Its import wants the packages onnx and tensorboard for a model converter that
nothing here uses: an empty module stands in for that converter.

We take from CrypTen the tensor language only: the `CrypTensor` base class and its function library. Its protocols do
not fit three servers that distrust each other, as its code shows: the default provider lets rank 0 see every operand;
binary AND and bit conversion always use it; the replicated multiplication sends unmasked products; masks come from a
Mersenne twister seeded with 64 bits; the transport is Gloo in clear text. None of them is used.
"""

from __future__ import annotations

import sys
import types
from typing import TYPE_CHECKING, Any

_CONVERTER = "crypten.nn.onnx_converter"
_VERSION = "0.4.1"


def _import_crypten() -> Any:
    if "crypten" not in sys.modules:
        converter = types.ModuleType(_CONVERTER)
        vars(converter).update(
            dict.fromkeys(("from_onnx", "from_pytorch", "from_tensorflow"), None), TF_AND_TF2ONNX=False
        )
        sys.modules[_CONVERTER] = converter
    import crypten  # noqa: PLC0415 - only after the converter's place is taken

    if crypten.__version__ != _VERSION:
        raise ImportError(
            f"crypten {_VERSION} is required (its extension points are private API), found {crypten.__version__}"
        )
    crypten.set_grad_enabled(False)
    return crypten


crypten = _import_crypten()

if TYPE_CHECKING:
    CrypTensor = Any
else:
    CrypTensor = crypten.CrypTensor

__all__ = ["CrypTensor", "crypten"]
