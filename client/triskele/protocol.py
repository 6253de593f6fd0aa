"""The version of the messages between members: every call carries its number, and a server refuses one it cannot serve.

It changes when processes of two versions could misunderstand each other, which is rarer than releases.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

PROTOCOL: Final = 2
"""What this version speaks, and the only one that it serves. 2: words of 32 or 64 bits, tasks of format v2."""

KEY: Final = "triskele-protocol"  # of the metadata: of a call, and of a refusal in return
_UNMARKED: Final = 1  # what a call that carries no number is of

Metadata = Iterable[tuple[str, str | bytes]] | None


def own_protocol() -> tuple[str, str]:
    """What this version adds to the metadata of every call."""
    return KEY, str(PROTOCOL)


def told_protocol(metadata: Metadata) -> str | None:
    """The number that the metadata carry, as it is written there."""
    return next((str(value) for key, value in metadata or () if key == KEY), None)


def refusal(metadata: Metadata) -> str | None:
    """Why a server of this version does not serve a call with these metadata, and whom to upgrade; None if it does."""
    told = told_protocol(metadata)
    if told is not None and not (told.isascii() and told.isdigit() and len(told) < 10):
        return f"the call's {KEY} is no number"
    theirs = _UNMARKED if told is None else int(told)
    if theirs == PROTOCOL:
        return None
    older = "this server" if theirs > PROTOCOL else "the caller"
    return f"the caller speaks protocol {theirs}, this server {PROTOCOL}: upgrade {older}"
