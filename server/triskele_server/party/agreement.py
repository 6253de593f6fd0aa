"""What the parties agree on among themselves before anything is computed: the input set, and a common coin."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from triskele.errors import PartyFault
from triskele.ids import PARTIES, RoundNumber, Slot
from triskele.ring import Words
from triskele_server.mpc.session import Session, Shares

_DIGEST_BYTES = 32
_KEYS = ("mask key first", "mask key second")
_VERSION = re.compile(rb"[0-9A-Za-z.+-]{1,32}")


def agree(
    session: Session, digests: Mapping[str, bytes], told: Mapping[str, bytes] = MappingProxyType({})
) -> dict[str, list[bytes]]:
    """Raise PartyFault unless all three parties hold the same SHA-256 digest of each thing named. One round.

    `told`, 32 bytes each, goes along and need not be equal: what each party told is returned, by party index.
    """
    labelled = {f"agree/{what}": digest for what, digest in digests.items()}
    labelled |= {f"tell/{what}": content for what, content in told.items()}
    heard: dict[str, list[bytes]] = {}
    for label, theirs in session.broadcast_all(labelled, _DIGEST_BYTES):
        kind, what = label.split("/", 1)
        if kind == "tell":
            heard[what] = theirs
            continue
        own = theirs[session.party]
        different = [i for i in PARTIES if not hmac.compare_digest(theirs[i], own)]
        if different:
            raise PartyFault(
                f"{what}: party {session.party} and parties {different} do not have the same; the round ends before "
                "anything is opened",
                different[0] if len(different) == 1 else None,
            )
    return heard


@dataclass(frozen=True)
class Terms:
    """What each party brings into a round's certificate: its software's version, how many other rounds of the task it
    counts as opened, and, under a mask, the digests of its two keys."""

    version: str
    rounds: int
    mask_keys: tuple[bytes, bytes] | None

    def to_tell(self) -> dict[str, bytes]:
        """For `agree`."""
        told = {
            "version": self.version.encode().ljust(_DIGEST_BYTES, b"\0"),
            "rounds": self.rounds.to_bytes(_DIGEST_BYTES, "big"),
        }
        return told if self.mask_keys is None else told | dict(zip(_KEYS, self.mask_keys, strict=True))


def common_terms(
    heard: Mapping[str, Sequence[bytes]], number: RoundNumber
) -> tuple[tuple[str, str, str], int, tuple[bytes, bytes, bytes] | None]:
    """From what all three told: their versions, the largest count of rounds, the digests of mask keys 0, 1, 2.

    Raises PartyFault if a party told what cannot be, or the two holders of a key have different ones.
    """
    one, two, three = (_version(told, party) for party, told in zip(PARTIES, heard["version"], strict=True))
    counts = [int.from_bytes(told, "big") for told in heard["rounds"]]
    for party, count in zip(PARTIES, counts, strict=True):
        if count >= number:
            raise PartyFault(f"party {party} counts {count} opened rounds of the task before round {number}", party)
    if _KEYS[0] not in heard:
        return (one, two, three), max(counts), None
    firsts, seconds = (heard[name] for name in _KEYS)
    for index in PARTIES:
        if not hmac.compare_digest(firsts[index], seconds[(index + 2) % 3]):
            raise PartyFault(
                f"parties {index} and {(index + 2) % 3} hold different keys of the mask; the round ends before "
                "anything is opened"
            )
    return (one, two, three), max(counts), (firsts[0], firsts[1], firsts[2])


def _version(told: bytes, party: int) -> str:
    text = told.rstrip(b"\0")
    if not _VERSION.fullmatch(text):
        raise PartyFault(f"party {party} told a version of its software that is none", party)
    return text.decode()


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


def compare_shares(
    session: Session, what: str, slots: Sequence[Slot], first: Words, second: Words, *, beside: Shares | None = None
) -> None:
    """Compare with the other holder of each share a hash of what both computed from it.

    `first` and `second` have one row per slot, `beside` one word more. Raises PartyFault naming the slots and both
    parties: a participant cannot cause this, because each holder has checked its share against the same signed
    commitment.
    """
    label = f"compare/{what}"
    more = (None, None) if beside is None else (beside.first.numpy(), beside.second.numpy())
    mine = {session.previous: _digests(first, more[0]), session.next: _digests(second, more[1])}
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


def _digests(rows: Words, beside: Words | None) -> bytes:
    """Of each row with the word beside it, if there is one."""
    digests = [hashlib.sha256(np.ascontiguousarray(row).data) for row in rows]
    if beside is not None:
        for digest, word in zip(digests, beside, strict=True):
            digest.update(word.tobytes())
    return b"".join(digest.digest() for digest in digests)
