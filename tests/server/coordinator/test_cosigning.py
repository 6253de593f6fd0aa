"""The parties cosign the log after every entry: away, lost answers, restarts, rollbacks and split views."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import closing
from pathlib import Path

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from fake_parties import COSIGNING_KEYS, PACE, Federation, federation
from structlog.testing import capture_logs
from test_log import envelope, filled, round_
from test_service import serving

from triskele.errors import PartyFault, Unavailable
from triskele.ids import PartyIndex
from triskele.transparency import checkpoint
from triskele_proto.v1 import control_pb2, coordinator_pb2
from triskele_server.coordinator.cosigning import have_cosigned, keep_cosigned
from triskele_server.coordinator.log import Log
from triskele_server.coordinator.store import Store
from triskele_server.party.cosigner import FILE

KEY_0 = COSIGNING_KEYS[0].public_key().public_bytes_raw()
Scenario = Callable[[Federation], Awaitable[None]]


class TheKeys:
    """Stands for PartyKeys."""

    def __init__(self, signatures: int = 3) -> None:
        self.signatures = signatures

    def of(self, party: PartyIndex) -> tuple[Ed25519PublicKey, ...]:
        return (COSIGNING_KEYS[party].public_key(),)


@pytest.fixture
def play(members: Path, tmp_path: Path) -> Callable[[Scenario], None]:
    def run(scenario: Scenario) -> None:
        async def played() -> None:
            async with federation(members, tmp_path) as it:
                await scenario(it)

        asyncio.run(played())

    return run


async def ask(it: Federation, log: Log | None = None) -> None:
    parties = it.links()
    try:
        async with asyncio.timeout(20):
            await have_cosigned(log or it.log, parties, PACE)
    finally:
        await parties.close()


def cosigned_size(it: Federation, signatures: int = 3) -> int:
    note = it.log.checkpoint(signatures)
    assert note is not None
    return checkpoint.verified(note, TheKeys(signatures), "demo").checkpoint.size


def test_the_log_is_cosigned_by_all_three_parties_as_it_grows(play) -> None:
    async def scenario(it: Federation) -> None:
        for number in range(1, 6):
            it.log.append(round_(number), envelope(f"statement {number}"))
            await ask(it)
            assert cosigned_size(it) == number
        assert [party.calls.count("cosign") for party in it.parties] == [5, 5, 5]
        await ask(it)  # nothing new: nobody is asked
        assert [party.calls.count("cosign") for party in it.parties] == [5, 5, 5]

    play(scenario)


def test_a_party_that_is_away_is_waited_for_and_two_cosignatures_are_served_meanwhile(play) -> None:
    async def scenario(it: Federation) -> None:
        filled(it.log, 3)
        await it.stop(1)
        asking = asyncio.create_task(ask(it))
        async with asyncio.timeout(20):
            while it.log.checkpoint(2) is None:  # noqa: ASYNC110  the store gives no event
                await asyncio.sleep(0.01)
        assert not asking.done()
        assert it.log.checkpoint(3) is None
        await it.start(1)
        await asking
        assert cosigned_size(it) == 3

    play(scenario)


def test_a_lost_answer_is_given_again(play) -> None:
    async def scenario(it: Federation) -> None:
        filled(it.log, 3)
        real, lost = it.parties[2].Cosign, []

        async def once(request: control_pb2.CosignRequest, context: object) -> control_pb2.CosignReply:
            reply = await real(request, context)
            if not lost:
                lost.append(reply)
                raise Unavailable("the answer is lost")
            return reply

        it.parties[2].Cosign = once  # type: ignore[method-assign]
        await it.stop(2)
        await it.start(2)
        await ask(it)
        assert lost
        assert cosigned_size(it) == 3

    play(scenario)


def test_a_coordinator_without_its_old_checkpoints_learns_where_to_prove_from(play, tmp_path: Path) -> None:
    async def scenario(it: Federation) -> None:
        statements = filled(it.log, 4)
        await ask(it)
        with closing(Store(f"sqlite:///{tmp_path / 'other.db'}")) as store:
            again = Log(store, "demo")
            for number, statement in enumerate([*statements, b"statement 5"], 1):
                again.append(round_(number), envelope(statement.decode()))
            await ask(it, again)
            assert checkpoint.verified(again.checkpoint() or b"", TheKeys(), "demo").checkpoint.size == 5

    play(scenario)


def test_a_database_that_was_put_back_is_refused_by_every_party(play, tmp_path: Path) -> None:
    async def scenario(it: Federation) -> None:
        filled(it.log, 5)
        await ask(it)
        with closing(Store(f"sqlite:///{tmp_path / 'backup.db'}")) as store:
            put_back = Log(store, "demo")
            filled(put_back, 3)
            with capture_logs() as logs:
                await ask(it, put_back)
            refusals = [line for line in logs if line["event"] == "log_not_cosigned" and "error" in line]
            assert {line["party"] for line in refusals} == {0, 1, 2}
            assert all("has 3 entries, but this party cosigned 5 before" in line["error"] for line in refusals)
            assert all("docs/runbooks.md" in line["error"] for line in refusals)
            assert put_back.checkpoint(1) is None
            # ... until it has the missing entries again, the very same ones
            for number in (4, 5, 6):
                put_back.append(round_(number), envelope(f"statement {number}"))
            await ask(it, put_back)
            assert checkpoint.verified(put_back.checkpoint() or b"", TheKeys(), "demo").checkpoint.size == 6

    play(scenario)


def test_no_second_view_of_the_log_gets_a_single_cosignature(play, tmp_path: Path) -> None:
    async def scenario(it: Federation) -> None:
        filled(it.log, 4)
        await ask(it)
        with closing(Store(f"sqlite:///{tmp_path / 'split.db'}")) as store:
            other = Log(store, "demo")
            for number in range(1, 7):
                other.append(
                    round_(number), envelope(f"statement {number}" if number != 3 else "what others do not see")
                )
            await ask(it, other)
            assert other.checkpoint(1) is None
        it.log.append(round_(5), envelope("statement 5"))
        await ask(it)
        assert cosigned_size(it) == 5

    play(scenario)


def test_one_party_that_refuses_does_not_hold_up_the_other_two(play) -> None:
    async def scenario(it: Federation) -> None:
        filled(it.log, 2)
        path = it.data / "party-0" / FILE
        path.write_bytes(checkpoint.Checkpoint("demo/rounds", 9, bytes(32)).body())
        it.restart_cosigner(PartyIndex(0))
        await ask(it)
        assert it.log.checkpoint(3) is None
        assert cosigned_size(it, signatures=2) == 2
        with pytest.raises(PartyFault, match="no valid cosignature of 0"):
            checkpoint.verified(it.log.checkpoint(2) or b"", TheKeys(), "demo")

    play(scenario)


def test_a_party_that_refused_is_asked_again_until_it_cosigns_without_another_entry(play) -> None:
    async def scenario(it: Federation) -> None:
        filled(it.log, 2)
        path, parties = it.data / "party-0" / FILE, it.links()
        path.write_bytes(checkpoint.Checkpoint("demo/rounds", 9, bytes(32)).body())
        it.restart_cosigner(PartyIndex(0))
        keeping = asyncio.create_task(keep_cosigned(it.log, parties, PACE, again_seconds=0.05))
        try:
            async with asyncio.timeout(20):
                while it.parties[0].calls.count("cosign") < 3:  # noqa: ASYNC110  the party gives no event
                    await asyncio.sleep(0.01)
                assert it.log.checkpoint(3) is None
                path.unlink()  # its operator has agreed to begin anew
                it.restart_cosigner(PartyIndex(0))
                while it.log.checkpoint(3) is None:  # noqa: ASYNC110  the store gives no event
                    await asyncio.sleep(0.01)
            assert cosigned_size(it) == 2
            asked = it.parties[0].calls.count("cosign")
            await asyncio.sleep(0.3)
            assert it.parties[0].calls.count("cosign") == asked  # nothing is missing: nobody is asked
        finally:
            keeping.cancel()
            await asyncio.gather(keeping, return_exceptions=True)
            await parties.close()

    play(scenario)


@pytest.mark.parametrize(
    "reply",
    [
        control_pb2.CosignReply(),
        control_pb2.CosignReply(old_size=1 << 40),
        control_pb2.CosignReply(old_size=2),
        control_pb2.CosignReply(time=1, signature=bytes(64), public_key=KEY_0),
        control_pb2.CosignReply(time=1, signature=bytes(3), public_key=KEY_0),
        control_pb2.CosignReply(time=1, signature=bytes(64), public_key=bytes(3)),
    ],
)
def test_an_answer_that_is_no_cosignature_is_left_out(play, reply: control_pb2.CosignReply) -> None:
    async def scenario(it: Federation) -> None:
        filled(it.log, 3)

        async def cosign(_request: object, _context: object) -> control_pb2.CosignReply:
            return reply

        it.parties[0].Cosign = cosign  # type: ignore[method-assign]
        await it.stop(0)
        await it.start(0)
        await ask(it)
        assert it.log.checkpoint(3) is None
        assert cosigned_size(it, signatures=2) == 3

    play(scenario)


def test_two_tasks_that_end_rounds_at_once_are_cosigned_one_after_the_other(play) -> None:
    async def scenario(it: Federation) -> None:
        async def one(number: int) -> None:
            it.log.append(round_(number), envelope(f"statement {number}"))
            await ask(it)

        with capture_logs() as logs:
            await asyncio.gather(*(one(number) for number in range(1, 5)))
        assert cosigned_size(it) == 4
        assert not [line for line in logs if line["event"] == "log_not_cosigned"]

    play(scenario)


async def pieces(stub: object, first: int = 0, cosignatures: int = 3) -> list[coordinator_pb2.LogPiece]:
    request = coordinator_pb2.FetchLogRequest(from_index=first, cosignatures=cosignatures)
    return [piece async for piece in stub.FetchLog(request, timeout=20)]  # type: ignore[attr-defined]


def entries(found: Sequence[coordinator_pb2.LogPiece]) -> list[tuple[int, bytes]]:
    return [(piece.entry.index, piece.entry.envelope) for piece in found[:-1]]


@pytest.mark.parametrize("member", ["participants/alice", "operator"])
def test_members_fetch_the_log_up_to_its_cosigned_checkpoint(play, member: str) -> None:
    async def scenario(it: Federation) -> None:
        async with serving(it) as served:
            filled(it.log, 40)
            await ask(it)
            it.log.append(round_(41), envelope("statement 41"))  # not cosigned yet
            found = await pieces(served.stub(member))
            assert entries(found) == [(i, envelope(f"statement {i + 1}")) for i in range(40)]
            assert checkpoint.verified(found[-1].checkpoint, TheKeys(), "demo").checkpoint.size == 40
            assert [index for index, _ in entries(await pieces(served.stub(member), 37))] == [37, 38, 39]
            assert entries(await pieces(served.stub(member), 40)) == []

    play(scenario)


def test_a_log_without_cosigned_entries_is_not_found(play) -> None:
    async def scenario(it: Federation) -> None:
        async with serving(it) as served:
            for first, text in ((0, "no round has ended"), (4, "there is no 4")):
                with pytest.raises(grpc.RpcError) as caught:
                    await pieces(served.stub(), first)
                assert caught.value.code() is grpc.StatusCode.NOT_FOUND
                assert text in str(caught.value.details())
                filled(it.log, 3)
                await ask(it)

    play(scenario)


def test_who_wants_fewer_cosignatures_sees_the_newer_checkpoint(play) -> None:
    async def scenario(it: Federation) -> None:
        async with serving(it) as served:
            filled(it.log, 3)
            await ask(it)
            it.log.append(round_(4), envelope("statement 4"))
            (it.data / "party-0" / FILE).write_bytes(checkpoint.Checkpoint("demo/rounds", 9, bytes(32)).body())
            it.restart_cosigner(PartyIndex(0))
            await ask(it)
            sizes = [len(entries(await pieces(served.stub(), cosignatures=n))) for n in (0, 1, 2, 3, 99)]
            assert sizes == [4, 4, 4, 3, 3]

    play(scenario)
