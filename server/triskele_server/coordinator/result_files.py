"""The words of released rounds in flat files: written beside, synced, renamed, and from then on never changed."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import BinaryIO, NamedTuple

from triskele.errors import PartyFault
from triskele_server.coordinator.rounds import RoundId


class Piece(NamedTuple):
    """Consecutive bytes of a result; `offset` in bytes."""

    offset: int
    data: bytes


class ResultFiles:
    """A directory with one file of little-endian 64-bit words per released round."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)

    async def receive(self, id_: RoundId, pieces: AsyncGenerator[Piece], *, length: int, digest: bytes) -> str:
        """Store the round's `length` bytes and return the file's name.

        Raises PartyFault if the pieces are not exactly the bytes whose SHA-256 is `digest`; then nothing is kept.
        """
        target = self._directory / f"{id_.task.hex()}-{id_.number}.words"
        partial = target.with_suffix(".part")
        try:
            async with aclosing(pieces):
                with partial.open("wb") as file:
                    await _copy(pieces, file, length, digest)
                    await asyncio.to_thread(os.fsync, file.fileno())
            partial.replace(target)
            _sync_directory(self._directory)
        finally:
            partial.unlink(missing_ok=True)
        return target.name

    async def read(self, name: str, chunk_bytes: int) -> AsyncIterator[Piece]:
        """The stored bytes in order, in pieces of at most `chunk_bytes`."""
        with (self._directory / name).open("rb") as file:
            offset = 0
            while data := file.read(chunk_bytes):  # from the page cache, but for the first who asks: not worth a thread
                yield Piece(offset, data)
                offset += len(data)


async def _copy(pieces: AsyncIterator[Piece], file: BinaryIO, length: int, digest: bytes) -> None:
    hashed, size = hashlib.sha256(), 0
    async for piece in pieces:
        if piece.offset != size or size + len(piece.data) > length:
            raise PartyFault(f"the output's piece at byte {piece.offset} is out of order or too long")
        hashed.update(piece.data)
        file.write(piece.data)
        size += len(piece.data)
    if size != length:
        raise PartyFault(f"the output has {size} bytes instead of {length}")
    if hashed.digest() != digest:
        raise PartyFault("the output's bytes do not match the agreed digest")
    file.flush()


def _sync_directory(directory: Path) -> None:
    """The rename itself must survive a power cut."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
