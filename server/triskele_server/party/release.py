"""Step 10 at a party: the aggregate is masked before it is opened; what a later round starts from stays shared.

Under `release = "participants"` the parties open y + PRG(m_0) + PRG(m_1) + PRG(m_2). Party i knows m_i and m_{i+1}, so
the opened words are uniform to it, to the coordinator, and to both together. Every attempt has keys of its own: should
a corrupted party bring another one to open something else, the two differ by streams that it does not know.
"""

from __future__ import annotations

import hashlib
import hmac

import numpy as np
import torch

from triskele.errors import PartyFault
from triskele.ids import RoundNumber, ShareIndex, held_shares
from triskele.release_mask import MaskKey, add_mask, remove_masks
from triskele.ring import Words
from triskele.task import TaskSpec
from triskele_server.linear.shares import SharePair, WordShare
from triskele_server.mpc import arithmetic
from triskele_server.mpc.session import Session, Shares
from triskele_server.party.filter import aggregate_name
from triskele_server.party.release_files import PreviousAggregate

_DIGEST_BYTES = 32
_RECIPROCAL_BITS = 36  # of 1 / weight_total: an aggregate divided by its weights is below 2^21, so nothing wraps


def open_shares(session: Session, spec: TaskSpec, number: RoundNumber, y: Shares) -> Words:
    """Open y, whose shares are this function's to change; masked if the task says so.

    Both computers of a share add the same stream, so the opening compares them as ever.
    """
    if spec.masked:
        for share, key, index in zip((y.first, y.second), session.mask_keys, held_shares(session.party), strict=True):
            add_mask(share.numpy(), key, spec.digest, number, index)
    return session.open(y, aggregate_name(spec)).numpy()


def open_part(session: Session, spec: TaskSpec, number: RoundNumber, part: Words) -> Words:
    """The same of an additive part: party i adds the stream of m_i, so that each of the three is in the sum once."""
    if spec.masked:
        add_mask(part, session.mask_keys[0], spec.digest, number, ShareIndex(session.party))
    return session.open_sum(torch.from_numpy(part), aggregate_name(spec)).numpy()


def previous_row(session: Session, spec: TaskSpec, previous: PreviousAggregate | None) -> SharePair:
    """This party's shares of the previous aggregate in units of C / 2^20, zeros if there was none.

    A masked one is never put together: y' less the streams is a sharing of y, which is divided inside MPC (four rounds,
    32 bytes a word; an entry is off by less than two units). Raises PartyFault if the two holders of a key differ.
    """
    if previous is None:
        return _known_to_all(session, np.zeros(spec.dimension, np.int64))
    if previous.keys is None:
        divisor = previous.weight_total * 2.0**previous.coefficient_bits
        return _known_to_all(session, np.rint(previous.words / divisor).astype(np.int64))
    _compare_keys(session, previous.keys)
    shares = []
    for key, index in zip(previous.keys, held_shares(session.party), strict=True):
        words = previous.words.astype(np.int64, copy=True) if index == 0 else np.zeros(spec.dimension, np.int64)
        remove_masks(words, {index: key}, spec.digest, previous.round)
        shares.append(torch.from_numpy(words))
    y = Shares(*shares)
    if previous.coefficient_bits:
        y = arithmetic.truncate(session, y, previous.coefficient_bits)
    if previous.weight_total > 1:
        reciprocal = round((1 << _RECIPROCAL_BITS) / previous.weight_total)
        y = arithmetic.truncate(session, Shares(y.first * reciprocal, y.second * reciprocal), _RECIPROCAL_BITS)
    return SharePair(WordShare(y.first.numpy()), WordShare(y.second.numpy()))


def _known_to_all(session: Session, words: Words) -> SharePair:
    """Trivial shares of public words: share 0 is the value."""
    value, zero = WordShare(words), WordShare(np.zeros(len(words), np.int64))
    return SharePair(value if session.party == 0 else zero, value if session.party == 2 else zero)


def _compare_keys(session: Session, keys: tuple[MaskKey, MaskKey]) -> None:
    label = "compare/previous-key"
    mine = {
        peer: hashlib.sha256(b"triskele/v1/previous-key" + key).digest()
        for peer, key in zip((session.previous, session.next), keys, strict=True)
    }
    theirs = session.swap({peer: (label, digest) for peer, digest in mine.items()}, _DIGEST_BYTES)
    for peer, digest in mine.items():
        if not hmac.compare_digest(digest, theirs[peer]):
            raise PartyFault(
                f"parties {session.party} and {peer} keep different keys of the previous aggregate's mask; the round "
                "ends, nothing is opened"
            )
