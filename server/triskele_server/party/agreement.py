"""What the parties agree on among themselves before anything is computed: the input set, and a common coin."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from triskele.errors import PartyFault
from triskele.ids import PARTIES, Slot
from triskele.ring import Words
from triskele_server.mpc.session import Session

_DIGEST_BYTES = 32


def agree(session: Session, digests: Mapping[str, bytes]) -> None:
    """Raise PartyFault unless all three parties hold the same SHA-256 digest of each thing named. One round."""
    labelled = {f"agree/{what}": digest for what, digest in digests.items()}
    for label, theirs in session.broadcast_all(labelled, _DIGEST_BYTES):
        own, what = theirs[session.party], label.removeprefix("agree/")
        different = [i for i in PARTIES if not hmac.compare_digest(theirs[i], own)]
        if different:
            raise PartyFault(
                f"{what}: party {session.party} and parties {different} do not have the same; the round ends before "
                "anything is opened",
                different[0] if len(different) == 1 else None,
            )


def toss_coin(
    session: Session,
    context: bytes,
    own: bytes,
    remember: Callable[[Sequence[bytes]], None] = lambda _: None,
) -> bytes:
    """32 bytes that no party chose, by commit then reveal of `own`, 32 secret bytes; `context` is already agreed on.

    `remember` hears the commitments of parties 0, 1, 2 before anything is revealed, and may raise.

    Raises PartyFault if a party reveals something else than it committed to.
    """

    def committed(party: int, value: bytes) -> bytes:
        return hashlib.sha256(b"triskele/v1/coin" + context + bytes([party]) + value).digest()

    commitments = session.broadcast("coin/commit", committed(session.party, own), _DIGEST_BYTES)
    remember(commitments)
    values = session.broadcast("coin/reveal", own, _DIGEST_BYTES)
    for party in PARTIES:
        if not hmac.compare_digest(commitments[party], committed(party, values[party])):
            raise PartyFault(f"party {party} revealed another coin than it had committed to", party)
    coin = hashlib.sha256(b"triskele/v1/coin" + context + b"".join(values)).digest()
    agree(session, {"coin": coin})  # a party may have told its two peers different things, each consistently
    return coin


def compare_shares(session: Session, what: str, slots: Sequence[Slot], first: Words, second: Words) -> None:
    """Compare with the other holder of each share a hash of what both computed from it.

    `first` and `second` have one row per slot. Raises PartyFault naming the slots and both parties: a participant
    cannot cause this, because each holder has checked its share against the same signed commitment.
    """
    label = f"compare/{what}"
    mine = {session.previous: _digests(first), session.next: _digests(second)}
    theirs = session.swap({peer: (label, digests) for peer, digests in mine.items()}, _DIGEST_BYTES * len(slots))
    for peer, digests in mine.items():
        differing = [
            int(slot)
            for k, slot in enumerate(slots)
            if not hmac.compare_digest(
                digests[k * _DIGEST_BYTES : (k + 1) * _DIGEST_BYTES],
                theirs[peer][k * _DIGEST_BYTES : (k + 1) * _DIGEST_BYTES],
            )
        ]
        if differing:
            raise PartyFault(
                f"{what}: parties {session.party} and {peer} hold different words for the same share of slots "
                f"{differing}; the round ends, nothing is opened",
                None,
            )


def _digests(rows: Words) -> bytes:
    return b"".join(hashlib.sha256(np.ascontiguousarray(row).data).digest() for row in rows)
