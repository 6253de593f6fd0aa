"""Before anything is opened the parties agree on the input, the coin and each share they hold in common."""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import replace

import numpy as np
import pytest
import torch
from round_parties import in_sessions, watched_transports

from triskele.errors import PartyFault
from triskele.ids import PARTIES, Slot
from triskele_server.mpc.session import Session, Shares
from triskele_server.party.agreement import agree, compare_shares, toss_coin

CONTEXT = b"task, round, attempt"


def test_equal_digests_are_agreed_on():
    assert not in_sessions(lambda s: agree(s, {"input set": bytes(32)})).errors


@pytest.mark.parametrize("different", PARTIES)
def test_one_other_digest_is_noticed_by_all_and_named_by_both_others(different):
    ran = in_sessions(lambda s: agree(s, {"rules": bytes(32), "input set": bytes([int(s.party == different)]) * 32}))
    assert all(isinstance(ran.errors[party], PartyFault) for party in PARTIES)
    assert {ran.errors[p].party for p in PARTIES if p != different} == {different}
    assert ran.errors[different].party is None


def test_three_different_digests_name_nobody():
    ran = in_sessions(lambda s: agree(s, {"input set": bytes([s.party]) * 32}))
    assert [ran.errors[p].party for p in PARTIES] == [None] * 3


def test_the_coin_is_common_and_new_every_time():
    ran = in_sessions(lambda s: [toss_coin(s, CONTEXT, secrets.token_bytes(32)) for _ in range(2)])
    assert ran.results[0] == ran.results[1] == ran.results[2]
    assert len(set(ran.results[0])) == 2
    assert all(len(coin) == 32 for coin in ran.results[0])


def test_every_party_moves_the_coin():
    """Two parties that reveal the same still cannot fix it."""
    transports = watched_transports()
    coins = {in_sessions(lambda s: toss_coin(s, CONTEXT, secrets.token_bytes(32))).results[0] for _ in range(5)}
    assert len(coins) == 5
    ran = in_sessions(lambda s: toss_coin(s, CONTEXT, secrets.token_bytes(32)), transports=transports)
    revealed = [{sender: p for sender, label, p in t.received if label == "coin/reveal"} for t in transports]
    values = {**revealed[0], **revealed[1]}
    expected = hashlib.sha256(b"triskele/v1/coin" + CONTEXT + b"".join(values[p] for p in PARTIES)).digest()
    assert ran.results[0] == expected


@pytest.mark.parametrize("liar", PARTIES)
def test_a_coin_other_than_committed_to_names_the_liar(liar):
    transports = watched_transports()
    transports[liar].change = lambda _, f: replace(f, payload=bytes(32)) if f.label == "coin/reveal" else f
    ran = in_sessions(lambda s: toss_coin(s, CONTEXT, secrets.token_bytes(32)), transports=transports)
    for party in PARTIES:
        if party != liar:
            assert isinstance(ran.errors[party], PartyFault)
            assert ran.errors[party].party == liar
            assert "another coin" in str(ran.errors[party])


def test_no_coin_is_revealed_before_both_commitments_are_there():
    transports = watched_transports()
    in_sessions(lambda s: toss_coin(s, CONTEXT, secrets.token_bytes(32)), transports=transports)
    for transport in transports:
        labels = [label for _, label, _ in transport.received if label.startswith("coin/")]
        assert labels == ["coin/commit"] * 2 + ["coin/reveal"] * 2


def test_a_commitment_cannot_be_copied_from_another_party():
    """The committing party's index is hashed in: party 1 cannot repeat party 0's coin as its own."""
    transports = watched_transports()
    heard: dict[str, bytes] = {}

    def copied(_: int, frame):
        return replace(frame, payload=heard[frame.label]) if frame.label.startswith("coin/") else frame

    original = transports[0].change

    def overheard(peer: int, frame):
        if frame.label.startswith("coin/"):
            heard[frame.label] = frame.payload
        return original(peer, frame)

    transports[0].change = overheard
    put = transports[1]._put

    def after_party_0(peer, frame):
        if frame.label.startswith("coin/"):  # a rushing party: waits until party 0 has spoken
            while frame.label not in heard:
                pass
            frame = copied(peer, frame)
        put(peer, frame)

    transports[1]._put = after_party_0
    ran = in_sessions(lambda s: toss_coin(s, CONTEXT, secrets.token_bytes(32)), transports=transports)
    assert ran.errors[2].party == 1
    assert "another coin" in str(ran.errors[2])


SLOTS = [Slot(4), Slot(7), Slot(9)]


def _compared(first: dict[int, np.ndarray]) -> dict[int, BaseException]:
    """Party i holds shares i and i + 1; `first` overrides what it has computed from share i."""
    shares = [np.arange(6, dtype=np.int64).reshape(3, 2) + 10 * i for i in PARTIES]

    def run(session: Session) -> None:
        own = first.get(session.party, shares[session.party])
        compare_shares(session, "sketch", SLOTS, own, shares[(session.party + 1) % 3])

    return in_sessions(run).errors


def test_a_word_beside_each_row_is_compared_with_it():
    """As if it were one column more, which would be a second copy of all sketches."""
    shares = [np.arange(6, dtype=np.int64).reshape(3, 2) + 10 * i for i in PARTIES]
    weights = [np.arange(3, dtype=np.int64) + 100 * i for i in PARTIES]

    def run(session: Session) -> None:
        i, j = session.party, (session.party + 1) % 3
        own = weights[i] + np.array([0, 5, 0]) if i == 2 else weights[i]
        beside = Shares(torch.from_numpy(own), torch.from_numpy(weights[j]))
        if i == 0:
            whole = [np.column_stack(pair) for pair in ((shares[i], own), (shares[j], weights[j]))]
            compare_shares(session, "sketch", SLOTS, *whole)
        else:
            compare_shares(session, "sketch", SLOTS, shares[i], shares[j], beside=beside)

    errors = in_sessions(run).errors
    for holder, peer in ((2, 1), (1, 2)):
        assert f"parties {holder} and {peer} hold different words for the same share of slots [7]" in str(
            errors[holder]
        )
    assert 0 not in errors


def test_equal_shares_pass_the_comparison():
    assert _compared({}) == {}


@pytest.mark.parametrize("party", PARTIES)
@pytest.mark.parametrize("rows", [[0], [2], [0, 1]])
def test_differing_shares_are_named_by_slot_at_both_holders(party, rows):
    changed = np.arange(6, dtype=np.int64).reshape(3, 2) + 10 * party
    changed[rows, 1] ^= -(1 << 63)
    errors = _compared({party: changed})
    other = (party + 2) % 3
    for holder, peer in ((party, other), (other, party)):
        assert isinstance(errors[holder], PartyFault)
        assert f"parties {holder} and {peer} hold different words" in str(errors[holder])
        assert f"slots {[int(SLOTS[r]) for r in rows]}" in str(errors[holder])
    third = 3 - party - other
    assert third not in errors or "different words" not in str(errors[third])


def test_a_party_that_reveals_different_coins_to_its_peers_is_noticed_at_once():
    """Each reveal fits the commitment that its receiver got, so only comparing the coins tells."""
    transports = watched_transports()
    other = bytes(32)

    def two_faced(peer, frame):
        if peer != 2:
            return frame
        if frame.label == "coin/commit":
            digest = hashlib.sha256(b"triskele/v1/coin" + CONTEXT + bytes([0]) + other).digest()
            return replace(frame, payload=digest)
        return replace(frame, payload=other) if frame.label == "coin/reveal" else frame

    transports[0].change = two_faced
    ran = in_sessions(lambda s: toss_coin(s, CONTEXT, secrets.token_bytes(32)), transports=transports)
    assert all(isinstance(error, PartyFault) for error in ran.errors.values())
    assert set(ran.errors) == set(PARTIES)
