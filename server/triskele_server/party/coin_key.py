"""The secret of a party that its part of every coin derives from: docs/protocol.md, "Coin"."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from triskele.errors import ConfigurationError

_KEY_BYTES = 32


def coin_key(data: Path, *, new: bool = True) -> bytes:
    """The secret of this party that its part of every coin derives from, made when it is first asked for.

    Raises ConfigurationError if it is missing and must not be `new`: the coin of a round in progress would be another.
    """
    path = data / "coin.key"
    if not path.exists():
        if not new:
            raise ConfigurationError(f"{path} is missing from a folder that was in use: restore it from a backup")
        partial = path.with_suffix(".partial")
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_bytes(_KEY_BYTES))
            file.flush()
            os.fsync(file.fileno())
        partial.rename(path)
    key = path.read_bytes()
    if len(key) != _KEY_BYTES:
        raise ConfigurationError(f"{path}: has {len(key)} bytes, not {_KEY_BYTES}: restore it from a backup")
    return key
