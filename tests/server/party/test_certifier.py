"""A party signs one statement on a round that has ended at it, and never another."""

from __future__ import annotations

import asyncio

import grpc
import pytest

from triskele.errors import PartyFault
from triskele.task import TaskSpec
from triskele.transparency.certificate import Certificate, assemble
from triskele.transparency.party_keys import PartyKeys
from triskele_proto.v1 import types_pb2

BLAME = types_pb2.Blame(reason="not_enough_submissions", who="coordinator", detail="2 of 9")
LEFT_OUT = [types_pb2.RefusedSubmission(slot=7, participant="late", reason="incomplete_upload")]


@pytest.fixture
def small() -> TaskSpec:
    return TaskSpec("face", 1000, 1.0, max_participants=16, min_accepted=2)


def _read(signed) -> Certificate:
    return Certificate.from_statement(signed.statement)


async def _combined(party, spec, submission, names=("alice", "bob", "carol")):
    await party.open(spec)
    made = [submission(name, slot=slot, task=spec) for slot, name in enumerate(names)]
    for one in made:
        await party.submit(one)
    await party.seal(spec, made)
    await party.run(spec)
    await party.until(spec, "COMBINED")
    return made


def test_a_released_rounds_certificate_says_who_was_in_who_was_refused_and_what_came_out(
    start_party, small, submission, federation
):
    async def scenario():
        async with start_party(1) as party:
            made = await _combined(party, small, submission)
            outcome = (await party.round_status(small)).outcome
            await party.end(small, "RELEASED", left_out=LEFT_OUT)
            return made, outcome, party.certificates[0]

    made, outcome, signed = asyncio.run(scenario())
    certificate = _read(signed)
    given = certificate.released
    assert (certificate.account.federation, certificate.task.digest, certificate.round) == ("demo", small.digest, 1)
    assert [(e.slot, e.participant, e.manifest) for e in given.submissions] == [
        (i, m.participant, m.manifest.digest.hex()) for i, m in enumerate(made)
    ]
    assert [(r.slot, r.participant, r.reason) for r in given.refused] == [(0, "alice", "norm")]
    assert [(r.slot, r.participant, r.reason) for r in certificate.account.left_out] == [
        (7, "late", "incomplete_upload")
    ]
    assert given.accepted == (1, 2)
    assert given.output.digest == outcome.output_digest.hex()
    assert given.openings == ("y[3]",)
    assert given.output.mask_keys == ("01" * 32, "02" * 32, "03" * 32)
    keys = PartyKeys.from_folder(federation.directory / "keys", 2)
    with pytest.raises(PartyFault, match="1 of the three parties"):  # and that one holds
        Certificate.verified(assemble(signed.statement, {signed.key_id: signed.signature}), keys)
    with pytest.raises(PartyFault, match="the signature of party 1 does not hold"):
        Certificate.verified(assemble(signed.statement, {signed.key_id: bytes(64)}), keys)


def test_whatever_the_coordinator_tells_later_the_statement_is_the_first_one(start_party, small, submission):
    async def scenario():
        async with start_party(1) as party:
            await _combined(party, small, submission)
            await party.end(small, "RELEASED", left_out=LEFT_OUT)
            await party.end(small, "RELEASED")
            first = party.certificates
        async with start_party(1) as party:  # restarted
            await party.end(small, "RELEASED", left_out=LEFT_OUT * 2)
            return [*first, *party.certificates]

    one, two, three = asyncio.run(scenario())
    assert one == two == three


def test_nothing_is_signed_before_the_round_has_ended(start_party, small, submission):
    async def scenario():
        async with start_party(1) as party:
            await _combined(party, small, submission)
            return await party.round_status(small)

    assert not asyncio.run(scenario()).HasField("certificate")


@pytest.mark.parametrize("state", ["FAILED", "EXPIRED"])
def test_a_round_without_a_result_is_certified_by_the_coordinators_account(start_party, small, state):
    async def scenario():
        async with start_party(1) as party:
            await party.open(small)
            await party.end(small, state, blame=BLAME, left_out=LEFT_OUT)
            return party.certificates[0]

    account = _read(asyncio.run(scenario())).account
    assert (account.state, account.computation) == (state, None)
    assert (account.blame.reason, account.blame.who, account.blame.detail) == (
        "not_enough_submissions",
        "coordinator",
        "2 of 9",
    )
    assert [r.participant for r in account.left_out] == ["late"]


def test_a_round_that_a_party_never_opened_is_ended_for_ever(start_party, small, refused):
    async def scenario():
        async with start_party(1) as party:
            async with refused(grpc.StatusCode.NOT_FOUND):
                await party.end(small, "FAILED", blame=BLAME)
            async with refused(grpc.StatusCode.NOT_FOUND):
                await party.end(small, "RELEASED", task=small.canonical())
            other = TaskSpec("other", 1000, 1.0)
            async with refused(grpc.StatusCode.INVALID_ARGUMENT, "not the one whose digest"):
                await party.end(small, "FAILED", blame=BLAME, task=other.canonical())
            await party.end(small, "FAILED", blame=BLAME, task=small.canonical())
            return await party.open(small), party.certificates[0]

    opened, signed = asyncio.run(scenario())
    assert opened.state == "FAILED"
    assert _read(signed).account.state == "FAILED"


def test_an_account_that_a_certificate_cannot_hold_is_refused_and_can_be_mended(start_party, small, refused):
    async def scenario():
        async with start_party(1) as party:
            await party.open(small)
            endless = types_pb2.Blame(reason="r" * 65, who="w", detail="d")
            async with refused(grpc.StatusCode.INVALID_ARGUMENT, "cannot hold"):
                await party.end(small, "FAILED", blame=endless)
            await party.end(small, "FAILED", blame=BLAME)
            return party.certificates[0]

    assert _read(asyncio.run(scenario())).account.blame.reason == "not_enough_submissions"


def test_an_outcome_that_contradicts_itself_ends_the_round_and_is_not_signed(start_party, small, submission):
    """Signing it would be a lie, and refusing the end would keep the coordinator from closing the round for ever."""

    async def scenario():
        async with start_party(1) as party:
            party.runner.openings = ()
            await _combined(party, small, submission)
            return (await party.end(small, "RELEASED")).state, party.certificates[0], party.share_files()

    state, signed, files = asyncio.run(scenario())
    assert (state, signed.statement, files) == ("RELEASED", b"", {})
