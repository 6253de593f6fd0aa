"""A party's shares as flat files, private to the party's account, one folder per round.

<data>/rounds/<task digest, hex>/<round>/<participant>-<index>.seed     16 bytes
<data>/rounds/<task digest, hex>/<round>/<participant>-<index>.words    little-endian 64-bit words
<data>/rounds/<task digest, hex>/<round>/output.bin                     the aggregate
<data>/previous/<task digest, hex>.words                                the task's last released aggregate, in units
                                                                        of C / 2^20, for rules that start from it
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from triskele.errors import InvalidTask
from triskele.ids import ParticipantId, RoundNumber, ShareIndex, TaskDigest


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
    """The files below `<data>/rounds`."""

    def __init__(self, data: Path) -> None:
        self._root = data / "rounds"
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._previous = data / "previous"
        self._previous.mkdir(mode=0o700, exist_ok=True)

    def folder(self, key: RoundKey) -> Path:
        """Where a round's files are; it may not exist yet."""
        return self._root / key.task.hex() / str(key.number)

    def share(self, key: RoundKey, participant: ParticipantId, index: ShareIndex, *, seed: bool) -> Path:
        """The file of one share. Names of participants are names of files (triskele.ids.checked_name)."""
        return self.folder(key) / f"{participant}-{index}.{'seed' if seed else 'words'}"

    def output(self, key: RoundKey) -> Path:
        """The file of the round's aggregate."""
        return self.folder(key) / "output.bin"

    def previous(self, task: TaskDigest) -> Path:
        """The file of the task's last released aggregate; it may not exist."""
        return self._previous / f"{task.hex()}.words"

    def make_folder(self, key: RoundKey) -> None:
        """Create a round's folder, durably."""
        folder = self.folder(key)
        for path in (folder.parent, folder):
            if not path.exists():
                path.mkdir(mode=0o700, exist_ok=True)
                _sync_folder(path.parent)

    def open_words(self, path: Path, committed: int) -> int:
        """A descriptor for a heavy share; what stands beyond the committed bytes is cut off. The caller closes it."""
        new = not path.exists()
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        os.ftruncate(descriptor, committed)
        if new:
            _sync_folder(path.parent)
        return descriptor

    def write_seeds(self, key: RoundKey, seeds: dict[Path, bytes]) -> None:
        """Write and sync seed files, and sync the folder, so that all of the upload survives a power cut."""
        for path, seed in seeds.items():
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            try:
                os.write(descriptor, seed)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        _sync_folder(self.folder(key))

    def delete(self, key: RoundKey) -> None:
        """Delete everything of a round; nothing to delete is no error."""
        folder = self.folder(key)
        if folder.exists():
            shutil.rmtree(folder)
            _sync_folder(folder.parent)

    def delete_all_but(self, keep: Collection[RoundKey]) -> None:
        """Delete the folders of every other round: what a crash left behind."""
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


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
