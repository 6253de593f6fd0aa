"""The parties' signatures of an ended round come into the log as its certificate, and from there to who asks."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import grpc
import pytest
from fake_parties import SPEC, Federation, federation, without_grace
from structlog.testing import capture_logs
from test_service import serving

from triskele.ids import PartyIndex, RoundNumber
from triskele.transparency import merkle
from triskele.transparency.certificate import open_envelope
from triskele.transparency.checkpoint import unverified
from triskele_proto.v1 import coordinator_pb2
from triskele_server.coordinator.certification import common_statement
from triskele_server.coordinator.rounds import Blame, RoundId, Signed
from triskele_server.round_state import RoundEvent, RoundState

Play = Callable[[Callable[[Federation], Awaitable[None]]], None]
REQUEST = coordinator_pb2.FetchCertificateRequest(task_digest=SPEC.digest, round=1)


@pytest.fixture
def play(members: Path, tmp_path: Path) -> Play:
    def run(scenario: Callable[[Federation], Awaitable[None]]) -> None:
        async def played() -> None:
            async with federation(members, tmp_path) as it:
                await scenario(it)

        asyncio.run(played())

    return run


async def one_round(it: Federation, *, fails: bool = False) -> None:
    async with it.running(terms=without_grace()) as runner:
        if fails:
            it.parties[1].policy_refuses = True
        else:
            await it.take_part("alice", "bob")
        await asyncio.wait_for(runner, 20)


def signed(statement: bytes) -> Signed:
    return Signed(statement, "0" * 64, bytes(64))


def test_a_released_rounds_certificate_is_handed_out_with_its_place_in_the_cosigned_log(play: Play) -> None:
    async def scenario(it: Federation) -> None:
        await one_round(it)
        async with serving(it) as served:
            found = await served.stub().FetchCertificate(REQUEST, timeout=20)
            opened = open_envelope(found.envelope)
            assert opened.payload == b"round 1"
            assert len(opened.signatures) == 3
            log = unverified(found.checkpoint)
            merkle.check_inclusion(merkle.leaf_hash(b"round 1"), found.index, log.size, found.hashes, log.root)

    play(scenario)


def test_who_asks_before_the_parties_have_signed_waits_for_them(play: Play) -> None:
    async def scenario(it: Federation) -> None:
        async with serving(it) as served, it.running(terms=without_grace()):
            await it.take_part("alice", "bob")
            await it.until_state(RoundState.RELEASED)
            found = await served.stub().FetchCertificate(REQUEST, timeout=20)
            assert open_envelope(found.envelope).payload == b"round 1"

    play(scenario)


def test_a_round_that_goes_on_has_no_certificate_and_signatures_are_waited_for_only_so_long(
    play: Play,
) -> None:
    async def scenario(it: Federation) -> None:
        async with serving(it) as served, it.running(terms=without_grace()):
            await it.until_state(RoundState.OPEN)
            with pytest.raises(grpc.RpcError) as open_:
                await served.stub().FetchCertificate(REQUEST, timeout=20)
            it.enrol("alice")
            it.store.end(RoundId(SPEC.digest, RoundNumber(1)), RoundEvent.EXPIRE, Blame("reason", "coordinator"))
            it.changes.announce(RoundId(SPEC.digest, RoundNumber(1)))
            with pytest.raises(grpc.RpcError) as ended:
                await served.stub().FetchCertificate(REQUEST, timeout=1.5)
        assert open_.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert ended.value.code() is grpc.StatusCode.UNAVAILABLE

    play(scenario)


def test_a_round_that_no_two_parties_signed_alike_never_gets_a_certificate(play: Play) -> None:
    async def scenario(it: Federation) -> None:
        for party in it.parties:
            party.statement = f"of party {party.index}".encode()
        with capture_logs() as events:
            await one_round(it)
        assert [e["event"] for e in events if e["log_level"] == "error"][-1] == "round_not_certified"
        async with serving(it) as served:
            with pytest.raises(grpc.RpcError) as caught:
                await served.stub().FetchCertificate(REQUEST, timeout=20)
            assert caught.value.code() is grpc.StatusCode.NOT_FOUND

    play(scenario)


def test_one_party_with_another_statement_is_named_and_its_signature_is_missing(play: Play) -> None:
    async def scenario(it: Federation) -> None:
        it.parties[1].statement = b"another account of the round"
        with capture_logs() as events:
            await one_round(it)
        assert [e["party"] for e in events if e["event"] == "statements_differ"] == [1]
        entry = it.log.entry(RoundId(SPEC.digest, RoundNumber(1)))
        opened = open_envelope(entry.envelope)
        assert (opened.payload, len(opened.signatures)) == (b"round 1", 2)

    play(scenario)


def test_a_round_without_a_result_is_in_the_log_too(play: Play) -> None:
    async def scenario(it: Federation) -> None:
        await one_round(it, fails=True)
        assert it.log.size == 1

    play(scenario)


def test_a_coordinator_that_is_killed_while_it_closes_a_round_logs_it_once(play: Play) -> None:
    async def scenario(it: Federation) -> None:
        async with it.running(terms=without_grace()):
            await it.take_part("alice", "bob")
            await it.parties[2].until_called("end")
        async with it.running(terms=without_grace()) as runner:
            await asyncio.wait_for(runner, 20)
        assert it.log.size == 1
        assert it.store.round(RoundId(SPEC.digest, RoundNumber(1))).closed

    play(scenario)


def test_two_equal_statements_are_the_certificate_and_three_different_ones_are_none() -> None:
    a, b, c = signed(b"a"), signed(b"b"), signed(b"c")
    assert common_statement({PartyIndex(0): a, PartyIndex(1): b, PartyIndex(2): a}) == b"a"
    assert common_statement({PartyIndex(0): a, PartyIndex(1): b, PartyIndex(2): c}) is None
    assert common_statement({PartyIndex(0): a, PartyIndex(1): b}) is None
    assert common_statement({PartyIndex(1): b}) == b"b"
    assert common_statement({}) is None
