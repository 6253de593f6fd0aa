"""A party's shares as flat files, private to the party's account, one folder per round.

<data>/rounds/<task digest, hex>/<round>/<participant>-<index>.seed     16 bytes
<data>/rounds/<task digest, hex>/<round>/<participant>-<index>.words    little-endian 64-bit words
<data>/rounds/<task digest, hex>/<round>/<participant>-<index>.relay    what goes before words to the other holder
                        ...seed.enc, ...words.enc, ...relay.enc         the same under the party's store key (at_rest)
<data>/rounds/<task digest, hex>/<round>/output-<attempt>.bin           the aggregate, masked unless it is public
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from triskele.errors import ConfigurationError, InvalidTask
from triskele.ids import ParticipantId, RoundNumber, ShareIndex, TaskDigest
from triskele.sharing import SEED_BYTES, ShareContext
from triskele_server.at_rest import (
    SMALL_OVERHEAD,
    STORE_KEY,
    PlainFile,
    ShareVault,
    StoreDamaged,
    WordsFile,
    plain_size,
    read_plain,
)


@dataclass(frozen=True)
class RoundKey:
    """One round of one task."""

    task: TaskDigest
    number: RoundNumber

    def __post_init__(self) -> None:
        if len(self.task) != 32 or not 1 <= self.number < 1 << 63:
            raise InvalidTask("a round is named by a task digest of 32 bytes and a number from 1 to 2^63 - 1")

    def __str__(self) -> str:
        return f"round {self.number} of task {self.task.hex()[:16]}"


class ShareFiles:
    """The files below `<data>/rounds`, encrypted if there is a vault.

    Raises ConfigurationError if the folder was written under a store key, and this is another one or none.
    """

    def __init__(self, data: Path, vault: ShareVault | None = None) -> None:
        self._vault = vault
        self._root = data / "rounds"
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._made: dict[RoundKey, Path] = {}  # folders that are there for certain
        _check_key(data / "store-key.check", vault)

    def folder(self, key: RoundKey) -> Path:
        """Where a round's files are; it may not exist yet."""
        return self._made.get(key) or self._root / key.task.hex() / str(key.number)

    def share(self, key: RoundKey, participant: ParticipantId, index: ShareIndex, *, seed: bool) -> Path:
        """The file of one share. Names of participants are names of files (triskele.ids.checked_name)."""
        kind = ("seed" if seed else "words") + ("" if self._vault is None else ".enc")
        return self.folder(key) / f"{participant}-{index}.{kind}"

    def output(self, key: RoundKey, attempt: int) -> Path:
        """The file of the aggregate that an attempt gave: each has a mask of its own."""
        return self.folder(key) / f"output-{attempt}.bin"

    def make_folder(self, key: RoundKey) -> None:
        """Create a round's folder, durably."""
        if key in self._made:
            return
        folder = self.folder(key)
        for path in (folder.parent, folder):
            if not path.exists():
                path.mkdir(mode=0o700, exist_ok=True)
                _sync_folder(path.parent)
        self._made[key] = folder

    def open_words(self, key: RoundKey, participant: ParticipantId, index: ShareIndex, committed: int) -> WordsFile:
        """A heavy share to be written; what stands beyond the committed bytes is cut off. The caller closes it.

        Its name survives a power cut after `sync_folder` or `write_seeds` only.
        """
        path = self.share(key, participant, index, seed=False)
        if self._vault is None:
            return PlainFile.at(path, committed)
        place = _place(key, participant, index)
        return self._vault.resume(path, place, committed) if committed else self._vault.create(path, place)

    def sync_folder(self, key: RoundKey) -> None:
        """Make sure that the names of all files of a round survive a power cut."""
        _sync_folder(self.folder(key))

    def write_seeds(self, key: RoundKey, participant: ParticipantId, seeds: Mapping[ShareIndex, bytes]) -> None:
        """Write and sync seed files, and sync the folder, so that all of the upload survives a power cut."""
        for index, seed in seeds.items():
            content = seed if self._vault is None else self._vault.seal(_place(key, participant, index), seed)
            _write_synced(self.share(key, participant, index, seed=True), content)
        self.sync_folder(key)

    def read_words(
        self, key: RoundKey, participant: ParticipantId, index: ShareIndex, size: int, start: int
    ) -> Iterator[bytes]:
        """The bytes of a whole heavy share of `size` bytes from `start` on; raises OSError, StoreDamaged."""
        path = self.share(key, participant, index, seed=False)
        if self._vault is None:
            return read_plain(path, size, start)
        return self._vault.read(path, _place(key, participant, index), size, start)

    def write_relay(self, key: RoundKey, participant: ParticipantId, index: ShareIndex, header: bytes) -> None:
        """Write and sync what the other holder is told before the words; the folder is synced with the seeds."""
        place = _place(key, participant, index) + b"/relay"
        content = header if self._vault is None else self._vault.seal(place, header)
        _write_synced(self._relay(key, participant, index), content)

    def read_relay(self, key: RoundKey, participant: ParticipantId, index: ShareIndex) -> bytes:
        """The same again; raises OSError, StoreDamaged."""
        content = self._relay(key, participant, index).read_bytes()
        place = _place(key, participant, index) + b"/relay"
        return content if self._vault is None else self._vault.open(place, content)

    def _relay(self, key: RoundKey, participant: ParticipantId, index: ShareIndex) -> Path:
        return self.folder(key) / (f"{participant}-{index}.relay" + ("" if self._vault is None else ".enc"))

    def stored(self, path: Path, *, seed: bool) -> int:
        """Bytes of a share that a file holds, whether all of them were committed or not; 0 if there is none."""
        size = size_of(path)
        if self._vault is None:
            return size
        return max(size - SMALL_OVERHEAD, 0) if seed else plain_size(size)

    def has_seed(self, path: Path) -> bool:
        """Whether a seed's file is whole."""
        return self.stored(path, seed=True) == SEED_BYTES

    def delete(self, key: RoundKey) -> None:
        """Delete everything of a round; nothing to delete is no error."""
        folder = self.folder(key)
        if folder.exists():
            shutil.rmtree(folder)
            _sync_folder(folder.parent)
        self._made.pop(key, None)

    def delete_all_but(self, keep: Collection[RoundKey]) -> None:
        """Delete the folders of every other round: what a crash left behind."""
        self._made.clear()
        kept = {self.folder(key) for key in keep}
        for task in self._root.iterdir():
            for folder in task.iterdir():
                if folder not in kept:
                    shutil.rmtree(folder)
            if not any(task.iterdir()):
                task.rmdir()


def size_of(path: Path) -> int:
    """Bytes of a file, 0 if there is none."""
    return path.stat().st_size if path.exists() else 0


def _place(key: RoundKey, participant: ParticipantId, index: ShareIndex) -> bytes:
    return ShareContext(key.task, key.number, participant).info(index)


def _check_key(path: Path, vault: ShareVault | None) -> None:
    """Raise ConfigurationError unless this is the key that the folder's files were written under."""
    if vault is None:
        if path.exists():
            raise ConfigurationError(f"{path.parent}: was written under a store key; set {STORE_KEY}, it is not set")
    elif path.exists():
        try:
            vault.open(b"check", path.read_bytes())
        except StoreDamaged:
            raise ConfigurationError(f"{path.parent}: was written under another store key than {STORE_KEY}") from None
    else:
        path.write_bytes(vault.seal(b"check", b""))


def _write_synced(path: Path, content: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        os.write(descriptor, content)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
