"""What a party keeps of its rounds beyond their end: the keys of masks, and what a task's next round starts from.

<data>/release/<task digest, hex>/<round>-<attempt>.keys   two mask keys, for as long as the round can be fetched
<data>/previous/<task digest, hex>.words                   the last released aggregate as it was released, and
<data>/previous/<task digest, hex>.json                    how it is read, with its mask keys
<data>/previous/<task digest, hex>.bound                   what an adaptive bound has become

Keys are encrypted if the party has a store key. A key alone says nothing; three together read an aggregate that
every participant may read.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from triskele.ids import RoundNumber, TaskDigest
from triskele.release_mask import MASK_KEY_BYTES, MaskKey
from triskele.ring import Words
from triskele_server.at_rest import ShareVault, StoreDamaged
from triskele_server.party.job import RoundOutcome
from triskele_server.party.share_files import RoundKey

_WORD_BYTES = 8


@dataclass(frozen=True)
class PreviousAggregate:
    """A released aggregate as one party holds it: words / weight_total / 2^coefficient_bits * C / 2^20 is the mean.

    `keys`: this party's two keys of the mask over `words`; None if there is none.
    """

    round: RoundNumber
    words: Words = field(repr=False)
    weight_total: int = 1
    coefficient_bits: int = 0
    keys: tuple[MaskKey, MaskKey] | None = field(default=None, repr=False)

    def digest(self) -> bytes:
        """SHA-256 of what all three parties hold alike."""
        header = f"{self.round}/{self.weight_total}/{self.coefficient_bits}/{self.keys is not None}/"
        return hashlib.sha256(header.encode() + self.words.astype("<i8").tobytes()).digest()

    def output_digest(self) -> bytes:
        """SHA-256 of the words as they were released: that round's certificate names it."""
        return hashlib.sha256(np.ascontiguousarray(self.words).data).digest()


class ReleaseFiles:
    """Files below `<data>/release` and `<data>/previous`. Every write is all or nothing, and survives a power cut."""

    def __init__(self, data: Path, vault: ShareVault | None = None) -> None:
        self._vault = vault
        self._keys = data / "release"
        self._previous = data / "previous"
        for folder in (self._keys, self._previous):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def keep_keys(self, key: RoundKey, attempt: int, keys: tuple[MaskKey, MaskKey]) -> None:
        """Keep this party's two keys of the mask that this attempt opened under."""
        path = self._of(key, attempt)
        path.parent.mkdir(mode=0o700, exist_ok=True)
        _write(path, self._sealed(_place(key.task, key.number), b"".join(keys)))

    def keys(self, key: RoundKey, attempt: int) -> tuple[MaskKey, MaskKey]:
        """What was kept; raises StoreDamaged if it is not there whole."""
        try:
            sealed = self._of(key, attempt).read_bytes()
        except OSError:
            raise StoreDamaged(f"this party's mask keys of {key} cannot be read") from None
        both = self._opened(_place(key.task, key.number), sealed)
        if len(both) != 2 * MASK_KEY_BYTES:
            raise StoreDamaged(f"this party's mask keys of {key} are damaged")
        return MaskKey(both[:MASK_KEY_BYTES]), MaskKey(both[MASK_KEY_BYTES:])

    def forget_keys(self, key: RoundKey, but: int | None = None) -> None:
        """Delete the keys of every attempt at a round but one."""
        kept = None if but is None else self._of(key, but)
        for path in self._of(key, 0).parent.glob(f"{key.number}-*.keys"):
            if path != kept:
                path.unlink(missing_ok=True)

    def keep_previous(self, key: RoundKey, output: Path, outcome: RoundOutcome) -> None:
        """Keep a released aggregate for the task's next round; replaces the one before."""
        keys = self.keys(key, outcome.attempt) if outcome.masked else None
        content = {
            "round": key.number,
            "digest": outcome.output_digest.hex(),
            "weight_total": outcome.weight_total,
            "coefficient_bits": outcome.coefficient_bits,
            "keys": None if keys is None else [k.hex() for k in keys],
        }
        words = self.previous(key.task)
        partial = words.with_suffix(".partial")
        shutil.copyfile(output, partial)
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.rename(words)
        _write(words.with_suffix(".json"), self._sealed(_place(key.task, RoundNumber(0)), json.dumps(content).encode()))

    def previous(self, task: TaskDigest) -> Path:
        """The words that `keep_previous` wrote; the file may not exist."""
        return self._previous / f"{task.hex()}.words"

    def keep_bound(self, key: RoundKey, bound: int) -> None:
        """Keep an adaptive bound for the task's next round; replaces the one before. It is public."""
        content = {"round": key.number, "bound": bound}
        _write(self.bound(key.task), json.dumps({**content, "digest": _bound_digest(key.task, **content)}).encode())

    def bound(self, task: TaskDigest) -> Path:
        """What `keep_bound` wrote; the file may not exist."""
        return self._previous / f"{task.hex()}.bound"

    def _of(self, key: RoundKey, attempt: int) -> Path:
        return self._keys / key.task.hex() / f"{key.number}-{attempt}.keys"

    def _sealed(self, place: bytes, content: bytes) -> bytes:
        return content if self._vault is None else self._vault.seal(place, content)

    def _opened(self, place: bytes, content: bytes) -> bytes:
        return content if self._vault is None else self._vault.open(place, content)


def read_previous(path: Path, task: TaskDigest, dimension: int, vault: ShareVault | None) -> PreviousAggregate:
    """What `keep_previous` kept; raises StoreDamaged if it is not whole."""
    try:
        data, sealed = path.read_bytes(), path.with_suffix(".json").read_bytes()
    except OSError:
        raise StoreDamaged("this party's previous aggregate of the task cannot be read") from None
    if len(data) != dimension * _WORD_BYTES:
        raise StoreDamaged(f"this party's previous aggregate of the task does not hold {dimension} words")
    try:
        plain = sealed if vault is None else vault.open(_place(task, RoundNumber(0)), sealed)
        content = json.loads(plain)
        keys = None if content["keys"] is None else [MaskKey(bytes.fromhex(k)) for k in content["keys"]]
        found = PreviousAggregate(
            RoundNumber(content["round"]),
            np.frombuffer(data, "<i8"),
            content["weight_total"],
            content["coefficient_bits"],
            None if keys is None else (keys[0], keys[1]),
        )
        expected = bytes.fromhex(content["digest"])
    except (ValueError, TypeError, KeyError, IndexError):  # from None: the text could quote a key
        raise StoreDamaged("this party's previous aggregate of the task is damaged") from None
    if hashlib.sha256(data).digest() != expected:
        raise StoreDamaged("this party's previous aggregate of the task is another one than its description says")
    return found


def read_bound(path: Path, task: TaskDigest) -> int:
    """What `keep_bound` kept; raises StoreDamaged if it is not whole."""
    try:
        content = json.loads(path.read_bytes())
        number, bound, digest = content["round"], content["bound"], content["digest"]
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        raise StoreDamaged("this party's adaptive bound of the task cannot be read") from None
    if type(bound) is not int or bound < 1 or digest != _bound_digest(task, number, bound):
        raise StoreDamaged("this party's adaptive bound of the task is damaged")
    return bound


def _bound_digest(task: TaskDigest, round: int, bound: int) -> str:  # noqa: A002  as the file calls it
    return hashlib.sha256(b"triskele/v1/clip-bound" + task + f"{round}/{bound}".encode()).hexdigest()


def _place(task: TaskDigest, number: RoundNumber) -> bytes:
    return b"triskele/v1/release-keys" + task + number.to_bytes(8, "big")


def _write(path: Path, content: bytes) -> None:
    partial = path.with_name(path.name + ".partial")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.rename(path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
