"""Secrets that a test knows, in every form in which they could come to light."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from triskele.credentials import Credentials
from triskele.ids import ParticipantId, RoundNumber, Slot
from triskele.submission import Submission, encode_update, prepare
from triskele.task import TaskSpec


@dataclass(frozen=True)
class Marker:
    """One secret: its bytes, and how numbers would be printed, if it is numbers."""

    name: str
    secret: bytes
    printed: tuple[str, ...] = ()

    def forms(self) -> Iterator[bytes]:
        """The secret as it is, in hexadecimal, in base 64 wherever it begins, escaped as Python prints bytes."""
        yield self.secret
        yield self.secret.hex().encode()
        yield self.secret.hex().upper().encode()
        for shift in range(3):
            text = base64.b64encode(bytes(shift) + self.secret)
            yield text[4 if shift else 0 : len(text) // 4 * 4 - 4]
        yield repr(self.secret)[2:-1].encode()
        yield from (text.encode() for text in self.printed)


def found(markers: list[Marker], text: bytes) -> list[str]:
    """The names of the markers that show in the text."""
    return [marker.name for marker in markers if any(form in text for form in marker.forms() if len(form) >= 8)]


def submissions(
    spec: TaskSpec,
    number: RoundNumber,
    name: ParticipantId,
    update: np.ndarray,
    *,
    weight: int,
    credentials: Credentials,
) -> list[Submission]:
    """What the participant sends in whichever slot it gets, the same every time."""
    key, certificate = credentials.signing_key, credentials.signing_certificate
    encoded = encode_update(update, spec, number, weight=weight, clip=True, key=key)
    return [prepare(encoded, slot=Slot(slot), participant=name, key=key, certificate=certificate) for slot in range(3)]


def markers_of(name: str, update: np.ndarray, made: list[Submission], credentials: Credentials) -> list[Marker]:
    """The update, its shares, seeds and salts, and the key that signs."""
    numbers = tuple(f"{value!r}" for value in update[:3].tolist())
    markers = [
        Marker(f"{name}: update", update[:4].astype("<f8").tobytes(), numbers),
        Marker(f"{name}: update in float32", update[:6].astype("<f4").tobytes()),
        Marker(f"{name}: signing key", credentials.signing_key.private_bytes_raw()),
    ]
    for submission in made:
        sharing = submission.sharing
        for index, seed in sharing.seeds.items():
            markers.append(Marker(f"{name}: seed {index}", seed))
        for index, salt in enumerate(sharing.salts):
            markers.append(Marker(f"{name}: salt {index}", salt))
        words = sharing.heavy_words
        for start in (0, len(words) // 2, len(words) - 4):
            printed = (str(int(words[start])),)
            markers.append(Marker(f"{name}: words {start}", words[start : start + 3].tobytes(), printed))
    return list({(m.name, m.secret): m for m in markers}.values())
