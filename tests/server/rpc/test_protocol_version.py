"""Members of two versions either understand each other or say who must be upgraded: every call, both ways."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import grpc
import pytest
from test_access import FEDERATION, METHODS, ROLES, SERVER, _every_method

from triskele import protocol
from triskele.config import MemberConfig, TlsFiles, TrustFiles
from triskele.connection import Connections, typed_errors
from triskele.errors import IncompatibleVersion, TriskeleError, Unavailable, WrongState, from_rpc_error
from triskele.ids import PartyIndex, RoundNumber, TaskDigest
from triskele_proto.v1 import info_pb2, info_pb2_grpc, party_pb2
from triskele_server.coordinator.party_link import PartyLink
from triskele_server.coordinator.rounds import RoundId
from triskele_server.rpc.channel import open_channel
from triskele_server.rpc.server import bind, build_server

Call = Callable[[grpc.aio.Channel], Awaitable[None]]
NEXT, LAST = protocol.PROTOCOL + 1, protocol.PROTOCOL - 1
UPGRADE_SERVER = f"the caller speaks protocol {NEXT}, this server {protocol.PROTOCOL}: upgrade this server"
UPGRADE_CALLER = f"the caller speaks protocol {LAST}, this server {protocol.PROTOCOL}: upgrade the caller"
REFUSED = "FAILED_PRECONDITION IncompatibleVersion party 0: "
CALLERS = {  # of each kind of call
    "/triskele.v1.PartyControl/RoundStatus": "coordinator",
    "/triskele.v1.PartyControl/FetchOutput": "coordinator",
    "/triskele.v1.Party/Upload": "participant",
    "/triskele.v1.Peer/Exchange": "party",
}


@pytest.fixture
def caller_is_newer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "own_protocol", lambda: (protocol.KEY, str(NEXT)))


@pytest.fixture
def caller_is_older(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "own_protocol", lambda: (protocol.KEY, str(LAST)))


@asynccontextmanager
async def served(members) -> AsyncIterator[str]:
    """The address of a server with every method."""
    own = members.tls(SERVER.role, SERVER.name)
    server = build_server(own, FEDERATION)
    server.add_generic_rpc_handlers(_every_method())
    address = f"127.0.0.1:{bind(server, '127.0.0.1:0', own)}"
    await server.start()
    try:
        yield address
    finally:
        await server.stop(None)


def told(members, call: Call, role: str = "coordinator", *, bare: bool = False) -> str:
    """What `call` raises on a channel of a member in that role, or "". `bare`: it says nothing of its protocol."""

    async def scenario() -> str:
        tls = members.tls(role, "1")
        options = [("grpc.ssl_target_name_override", SERVER.host)]
        async with served(members) as address:
            channel = open_channel(address, SERVER, tls)
            if bare:
                channel = grpc.aio.secure_channel(address, tls.channel_credentials(), options=options)
            async with channel:
                try:
                    await call(channel)
                except grpc.RpcError as error:
                    typed = from_rpc_error(error, "party 0")
                    return f"{error.code().name} {type(typed).__name__} {typed}"
        return ""

    return asyncio.run(scenario())


def calling(name: str) -> Call:
    async def call(channel: grpc.aio.Channel) -> None:
        method = METHODS[name]
        kind = f"{'stream' if method.client_streaming else 'unary'}_{'stream' if method.server_streaming else 'unary'}"
        made = getattr(channel, kind)(name)
        # A stream sends nothing: grpc.aio reports INTERNAL if a refusal overtakes a write.
        call = made(iter(()) if method.client_streaming else b"", timeout=10)
        if method.server_streaming:
            async for _ in call:
                pass
        else:
            await call

    return call


@pytest.mark.parametrize("name", CALLERS)
def test_same_protocol_is_served(members, name: str) -> None:
    assert told(members, calling(name), CALLERS[name]) == ""


@pytest.mark.parametrize("name", CALLERS)
@pytest.mark.usefixtures("caller_is_newer")
def test_newer_caller_is_refused_and_told_to_upgrade_the_server(members, name: str) -> None:
    assert told(members, calling(name), CALLERS[name]) == REFUSED + UPGRADE_SERVER


@pytest.mark.parametrize("name", CALLERS)
@pytest.mark.usefixtures("caller_is_older")
def test_older_caller_is_refused_and_told_to_upgrade_itself(members, name: str) -> None:
    assert told(members, calling(name), CALLERS[name]) == REFUSED + UPGRADE_CALLER


def test_caller_that_says_nothing_speaks_protocol_1(members, monkeypatch: pytest.MonkeyPatch) -> None:
    refusal = f"the caller speaks protocol 1, this server {protocol.PROTOCOL}: upgrade the caller"
    assert told(members, calling("/triskele.v1.PartyControl/RoundStatus"), bare=True) == REFUSED + refusal
    monkeypatch.setattr(protocol, "PROTOCOL", 1)
    assert told(members, calling("/triskele.v1.PartyControl/RoundStatus"), bare=True) == ""


@pytest.mark.parametrize("value", ["", "one", "-1", "1.0", "+1", "²", "9" * 400])
def test_number_that_is_none_is_refused_without_repeating_it(value: str) -> None:
    assert protocol.refusal([("other", "1"), (protocol.KEY, value)]) == "the call's triskele-protocol is no number"


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.usefixtures("caller_is_newer")
def test_every_version_may_ask_a_server_which_it_is(members, role: str) -> None:
    async def describe(channel: grpc.aio.Channel) -> None:
        await info_pb2_grpc.InfoStub(channel).Describe(info_pb2.DescribeRequest(), timeout=10)

    assert told(members, describe, role) == ""


@pytest.mark.parametrize("kind", ["UploadStatus", "Upload"])
def test_participant_of_another_version_gets_a_typed_error(members, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    tls = members.tls("participant", "1")
    table = TlsFiles(authority=tls.authority, certificate=tls.certificate, key=tls.key)
    trust = TrustFiles(parties=(tls.key, tls.key, tls.key))  # no certificate is checked here
    config = MemberConfig(federation=FEDERATION, coordinator="127.0.0.1:1", tls=table, trust=trust)
    credentials = tls.channel_credentials()
    connections = Connections(config, lambda: credentials)

    def ask(address: str) -> None:
        request = iter(()) if kind == "Upload" else party_pb2.UploadStatusRequest()
        with typed_errors("party 0"):
            getattr(connections.party(PartyIndex(0), address), kind)(request, timeout=10)

    async def scenario() -> None:
        async with served(members) as address:
            await asyncio.to_thread(ask, address)
            monkeypatch.setattr(protocol, "own_protocol", lambda: (protocol.KEY, str(NEXT)))
            with pytest.raises(IncompatibleVersion, match=f"party 0: {UPGRADE_SERVER}"):
                await asyncio.to_thread(ask, address)

    asyncio.run(scenario())
    connections.close()


def test_refusal_for_another_reason_is_not_blamed_on_the_version() -> None:
    class Refused(grpc.RpcError):
        def code(self) -> grpc.StatusCode:
            return grpc.StatusCode.FAILED_PRECONDITION

        def details(self) -> str:
            return "sealed"

        def trailing_metadata(self) -> None:
            return None

    typed: TriskeleError = from_rpc_error(Refused(), "party 0")
    assert type(typed) is WrongState


@pytest.mark.usefixtures("caller_is_newer")
def test_coordinator_waits_for_a_party_of_another_version(members) -> None:
    """No round is lost while a federation is upgraded."""

    async def status(channel: grpc.aio.Channel) -> None:
        with pytest.raises(Unavailable, match=UPGRADE_SERVER):
            await PartyLink(PartyIndex(0), lambda: channel).status(RoundId(TaskDigest(bytes(32)), RoundNumber(1)))

    assert told(members, status) == ""
