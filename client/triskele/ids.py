"""A type for every identifier that travels: none of them is ever a bare str, int or bytes."""

from __future__ import annotations

import re
from typing import NewType

from triskele.errors import InvalidTask

TaskDigest = NewType("TaskDigest", bytes)  # SHA-256 of the canonical task, 32 bytes
TaskName = NewType("TaskName", str)
RoundNumber = NewType("RoundNumber", int)  # from 1
ParticipantId = NewType("ParticipantId", str)
Slot = NewType("Slot", int)  # admission index in a round, from 0
PartyIndex = NewType("PartyIndex", int)  # 0, 1, 2
ShareIndex = NewType("ShareIndex", int)  # 0, 1, 2

PARTIES = tuple(PartyIndex(i) for i in range(3))

_NAME = re.compile(r"[a-z0-9]([a-z0-9._-]{0,62}[a-z0-9])?")


def checked_name(text: str, what: str) -> str:
    """`text` if it is 1 to 64 characters of a-z 0-9 . _ - that begin and end with a letter or digit."""
    if not _NAME.fullmatch(text):
        raise InvalidTask(
            f"{what} {text[:80]!r} is not a name: use 1 to 64 characters of a-z, 0-9, '.', '_', '-', "
            "beginning and ending with a letter or digit"
        )
    return text


def held_shares(party: PartyIndex) -> tuple[ShareIndex, ShareIndex]:
    """The two share indices that `party` holds: s_i and s_{i+1}, indices mod 3."""
    return ShareIndex(party), ShareIndex((party + 1) % 3)
