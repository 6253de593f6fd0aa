"""AES-128-CTR as a stream of pseudo-random bytes: the one expansion that shares, masks and rounding are made with.

Read from its beginning, a stream is that of AES-GCM with a nonce of zeros, whose counter begins at 2: OpenSSL has the
wide AES instructions of newer processors for GCM only, and is faster by a third there, authentication included.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

from triskele.ring import WIDE, Ring, Words

_ZEROS: Final = memoryview(bytes(1 << 18))  # AES-CTR of zeros is the key stream; a part of a view is no copy
_BLOCK: Final = 16  # bytes of one AES block
_GCM_NONCE: Final = 12  # bytes; the other four of a block are the counter


def derive(secret: bytes, info: bytes, length: int = 16) -> bytes:
    """HKDF-SHA256 (RFC 5869, no salt) of `secret`, bound to `info`."""
    return HKDF(SHA256(), length, None, info).derive(secret)


class KeyStream:
    """AES-128-CTR key stream, counter from `block` (big endian, 128 bits), read in order, 64 GiB at most."""

    __slots__ = ("_cipher", "_first")

    def __init__(self, key: bytes, *, block: int = 0) -> None:
        cipher = algorithms.AES(key)
        self._first = b""  # what comes before the stream of `_cipher`
        if block:
            self._cipher: Any = Cipher(cipher, modes.CTR(block.to_bytes(_BLOCK, "big"))).encryptor()
        else:
            self._first = Cipher(cipher, modes.CTR(bytes(_BLOCK))).encryptor().update(bytes(2 * _BLOCK))
            self._cipher = Cipher(cipher, modes.GCM(bytes(_GCM_NONCE))).encryptor()

    def __repr__(self) -> str:
        return "KeyStream(...)"

    def read(self, length: int) -> NDArray[np.uint8]:
        """The next `length` bytes."""
        out = np.empty(length, np.uint8)
        self.read_into(out)
        return out

    def read_into(self, out: NDArray[Any]) -> None:
        """Fill a contiguous array [length] with the next bytes, without an allocation."""
        view = out.view(np.uint8).data
        if self._first:
            given, self._first = self._first[: len(view)], self._first[len(view) :]
            view[: len(given)] = given
            view = view[len(given) :]
        for start in range(0, len(view), len(_ZEROS)):
            stop = min(start + len(_ZEROS), len(view))
            self._cipher.update_into(_ZEROS[: stop - start], view[start:stop])

    def words(self, count: int, ring: Ring = WIDE) -> Words:
        """The next `count` little-endian words of a ring."""
        out = np.empty(count, ring.dtype)
        self.read_into(out)
        return out
