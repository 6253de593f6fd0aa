"""Shares at rest: AES-256-GCM under a key from the environment, so that a stolen disk or backup shows no share.

A small value is nonce 12 | ciphertext | tag 16. A file of words is

    "TRSKWRD1" | salt 16 | blocks of nonce 12 | ciphertext of 64 KiB, the last one shorter | tag 16

under a key of its own, HKDF-SHA256(store key, "triskele/v1/at-rest" | salt | place), with the block's number as
associated data. The place says what is encrypted (task, round, participant, index): a file opens nowhere else. A nonce
is drawn whenever a block is written, so a block may be written again after a crash. Blocks are decrypted where they
are read.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Final, Protocol, Self

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from triskele.errors import ConfigurationError, PartyFault
from triskele.keystream import derive
from triskele.limits import DEFAULT_LIMITS
from triskele.ring import WIDE, Ring, Words

STORE_KEY: Final = "TRISKELE_PARTY_STORE_KEY"  # the environment variable: 64 hexadecimal digits
KEY_BYTES: Final = 32
BLOCK_BYTES: Final = 1 << 16  # of plaintext; what `linear` reads at a time is a multiple
SMALL_OVERHEAD: Final = 12 + 16  # nonce and tag

_MAGIC: Final = b"TRSKWRD1"
_SALT: Final = 16
_HEADER: Final = len(_MAGIC) + _SALT
_SLOT: Final = BLOCK_BYTES + SMALL_OVERHEAD
_NONCE: Final = 12
_INFO: Final = b"triskele/v1/at-rest"


class StoreDamaged(PartyFault):
    """What this party has on its own disk is not what it wrote there."""


class WordsFile(Protocol):
    """A heavy share that is being written, in order. Raises OSError where the disk fails; then nothing was taken."""

    def stored(self) -> Iterator[bytes]:
        """What was written before this file was opened."""
        ...

    def append(self, data: bytes) -> None:
        """Take the next bytes."""
        ...

    def sync(self) -> int:
        """How many bytes from the start would survive a power cut from now on."""
        ...

    def finish(self) -> None:
        """All bytes have come: from now on all of them would survive."""
        ...

    def close(self) -> None:
        """Give the descriptor back."""
        ...


class ShareVault:
    """Encrypts and opens what a party keeps on its disk. Never printed."""

    def __init__(self, key: bytes) -> None:
        if len(key) != KEY_BYTES:
            raise ConfigurationError(f"{STORE_KEY}: the key has {len(key)} bytes, not {KEY_BYTES}")
        self._key = key

    def __repr__(self) -> str:
        return "ShareVault(...)"

    @classmethod
    def from_environment(cls) -> ShareVault | None:
        """The vault of this process, None without a key; raises ConfigurationError, which never quotes the key."""
        text = os.environ.get(STORE_KEY, "")
        if not text:
            return None
        try:
            return cls(bytes.fromhex(text))
        except ValueError:
            raise ConfigurationError(f"{STORE_KEY}: is not {2 * KEY_BYTES} hexadecimal digits") from None

    def seal(self, place: bytes, plaintext: bytes) -> bytes:
        """A small value, SMALL_OVERHEAD bytes longer."""
        nonce = secrets.token_bytes(_NONCE)
        return nonce + self._small(place).encrypt(nonce, plaintext, None)

    def open(self, place: bytes, sealed: bytes) -> bytes:
        """The value sealed for this place; raises StoreDamaged."""
        try:
            return self._small(place).decrypt(sealed[:_NONCE], sealed[_NONCE:], None)
        except (InvalidTag, ValueError):
            raise _damaged() from None

    def create(self, path: Path, place: bytes) -> EncryptedFile:
        """A new file of words, private to the party's account; an older one is replaced."""
        salt = secrets.token_bytes(_SALT)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            _write_all(descriptor, _MAGIC + salt, 0)
        except OSError:
            os.close(descriptor)
            raise
        return EncryptedFile(descriptor, self._cipher(salt, place), 0)

    def resume(self, path: Path, place: bytes, committed: int) -> EncryptedFile:
        """A file that is written further from `committed` bytes, a multiple of BLOCK_BYTES; raises StoreDamaged."""
        descriptor = os.open(path, os.O_RDWR)
        try:
            cipher = self._cipher(_salt(os.pread(descriptor, _HEADER, 0)), place)
            os.ftruncate(descriptor, _HEADER + committed // BLOCK_BYTES * _SLOT)
        except BaseException:
            os.close(descriptor)
            raise
        return EncryptedFile(descriptor, cipher, committed // BLOCK_BYTES)

    def read(self, path: Path, place: bytes, size: int, start: int) -> Iterator[bytes]:
        """The bytes of a finished file of `size` bytes of words from `start` on; raises OSError, StoreDamaged."""
        with path.open("rb") as file:
            cipher = self._cipher(_salt(file.read(_HEADER)), place)
            first = start // BLOCK_BYTES
            file.seek(_HEADER + first * _SLOT)
            for number in range(first, -(-size // BLOCK_BYTES)):
                block = _opened(cipher, number, file.read(_SLOT))
                yield block[start - first * BLOCK_BYTES :] if number == first else block

    def words(self, path: Path, place: bytes, length: int, ring: Ring = WIDE) -> EncryptedWordShare:
        """A finished file of `length` words, for reading; raises StoreDamaged if it is not as long."""
        try:
            size, header = path.stat().st_size, _head(path)
        except OSError:
            raise StoreDamaged(f"{path.name} cannot be read") from None
        if size != encrypted_size(length * ring.word_bytes):
            raise StoreDamaged(f"{path.name} does not hold {length} words")
        return EncryptedWordShare(path, length, self._cipher(_salt(header), place), ring)

    def _cipher(self, salt: bytes, place: bytes) -> AESGCM:
        return AESGCM(derive(self._key, _INFO + salt + place, KEY_BYTES))

    def _small(self, place: bytes) -> AESGCM:
        return self._cipher(b"value/", place)


@dataclass
class EncryptedFile:
    """A heavy share that is being encrypted, see WordsFile; the bytes of an unfinished block wait in memory."""

    _descriptor: int
    _cipher: AESGCM = field(repr=False)
    _blocks: int  # written so far
    _waiting: bytes = field(default=b"", repr=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _: TracebackType | None
    ) -> None:
        self.close()

    def stored(self) -> Iterator[bytes]:
        """See WordsFile; raises StoreDamaged if the file was damaged or is another key's."""
        for number in range(self._blocks):
            yield _opened(self._cipher, number, os.pread(self._descriptor, _SLOT, _HEADER + number * _SLOT))

    def append(self, data: bytes) -> None:
        """See WordsFile."""
        given = self._waiting + data
        whole = len(given) // BLOCK_BYTES
        for i in range(whole):
            self._write(self._blocks + i, given[i * BLOCK_BYTES : (i + 1) * BLOCK_BYTES])
        self._blocks += whole
        self._waiting = given[whole * BLOCK_BYTES :]

    def sync(self) -> int:
        """See WordsFile: whole blocks survive."""
        os.fsync(self._descriptor)
        return self._blocks * BLOCK_BYTES

    def finish(self) -> None:
        """See WordsFile."""
        if self._waiting:
            self._write(self._blocks, self._waiting)
        os.fsync(self._descriptor)

    def close(self) -> None:
        """See WordsFile."""
        os.close(self._descriptor)

    def _write(self, number: int, block: bytes) -> None:
        nonce = secrets.token_bytes(_NONCE)
        sealed = nonce + self._cipher.encrypt(nonce, block, number.to_bytes(8, "big"))
        _write_all(self._descriptor, sealed, _HEADER + number * _SLOT)


@dataclass
class PlainFile:
    """A heavy share that is being written as it is, see WordsFile."""

    _descriptor: int
    _position: int

    @classmethod
    def at(cls, path: Path, committed: int) -> PlainFile:
        """New, or written further from `committed` bytes; what stands beyond them is cut off."""
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            os.ftruncate(descriptor, committed)
        except OSError:
            os.close(descriptor)
            raise
        return cls(descriptor, committed)

    def stored(self) -> Iterator[bytes]:
        """See WordsFile."""
        for start in range(0, self._position, 1 << 20):
            yield os.pread(self._descriptor, min(1 << 20, self._position - start), start)

    def append(self, data: bytes) -> None:
        """See WordsFile."""
        _write_all(self._descriptor, data, self._position)
        self._position += len(data)

    def sync(self) -> int:
        """See WordsFile."""
        os.fsync(self._descriptor)
        return self._position

    def finish(self) -> None:
        """See WordsFile."""
        os.fsync(self._descriptor)

    def close(self) -> None:
        """See WordsFile."""
        os.close(self._descriptor)


@dataclass(frozen=True)
class EncryptedWordShare:
    """A share that is words in an encrypted file: `triskele_server.linear.shares.HeldShare`."""

    path: Path
    length: int
    cipher: AESGCM = field(repr=False)
    ring: Ring = WIDE

    def stream(self, start: int) -> EncryptedWordStream:
        """See HeldShare."""
        return EncryptedWordStream(self.path, self.cipher, start * self.ring.word_bytes)


@dataclass
class EncryptedWordStream:
    """The words of an encrypted file in order: `triskele_server.linear.shares.WordStream`."""

    path: Path
    _cipher: AESGCM = field(repr=False)
    _position: int  # in bytes of words

    def read_into(self, out: Words) -> None:
        """See WordStream; raises StoreDamaged if the file was damaged or is another key's."""
        stop = self._position + out.nbytes
        first, last = self._position // BLOCK_BYTES, -(-stop // BLOCK_BYTES)
        view, filled, skipped = out.view(np.uint8), 0, self._position - first * BLOCK_BYTES
        try:
            with self.path.open("rb") as file:
                file.seek(_HEADER + first * _SLOT)
                for number in range(first, last):
                    block = np.frombuffer(_opened(self._cipher, number, file.read(_SLOT)), np.uint8)
                    part = block[skipped : skipped + len(view) - filled]
                    view[filled : filled + len(part)] = part
                    filled, skipped = filled + len(part), 0
        except OSError:
            raise StoreDamaged(f"{self.path.name} cannot be read") from None
        self._position = stop


def read_plain(path: Path, size: int, start: int) -> Iterator[bytes]:
    """The bytes of a file of words from `start` on, up to `size`; raises OSError, StoreDamaged if it is shorter."""
    with path.open("rb") as file:
        file.seek(start)
        while start < size:
            block = file.read(min(DEFAULT_LIMITS.chunk_bytes, size - start))
            if not block:
                raise StoreDamaged(f"{path.name} is shorter than it was")
            start += len(block)
            yield block


def encrypted_size(plain: int) -> int:
    """Bytes of a finished file with `plain` bytes of words."""
    return _HEADER + plain + -(-plain // BLOCK_BYTES) * SMALL_OVERHEAD


def plain_size(encrypted: int) -> int:
    """Bytes of words in a file of so many bytes, an unfinished one too."""
    blocks, rest = divmod(max(encrypted - _HEADER, 0), _SLOT)
    return blocks * BLOCK_BYTES + max(rest - SMALL_OVERHEAD, 0)


def _opened(cipher: AESGCM, number: int, sealed: bytes) -> bytes:
    try:
        return cipher.decrypt(sealed[:_NONCE], sealed[_NONCE:], number.to_bytes(8, "big"))
    except (InvalidTag, ValueError):
        raise _damaged() from None


def _damaged() -> StoreDamaged:
    return StoreDamaged(f"a file of this party's store was damaged, or written under another {STORE_KEY}")


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_HEADER)


def _salt(header: bytes) -> bytes:
    if len(header) != _HEADER or not header.startswith(_MAGIC):
        raise _damaged()
    return header[len(_MAGIC) :]


def _write_all(descriptor: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written
