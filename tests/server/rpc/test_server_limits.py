"""What one caller, and all together, may take of a server: beyond it a typed status, and everybody else goes on."""

from __future__ import annotations

import asyncio
import socket
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import grpc.experimental
import pytest
from grpc._cython import cygrpc  # where gRPC's core is

from triskele.connection import channel_options
from triskele.errors import Busy, InvalidUpload, TimedOut, from_rpc_error
from triskele.identity import Identity
from triskele.limits import DEFAULT_LIMITS
from triskele.protocol import own_protocol
from triskele_proto.v1 import coordinator_pb2, coordinator_pb2_grpc
from triskele_server.limits import DEFAULT_SERVER_LIMITS, ServerLimits
from triskele_server.rpc import health
from triskele_server.rpc.channel import KEEPALIVE_MILLISECONDS, open_channel
from triskele_server.rpc.protocol import marking
from triskele_server.rpc.quotas import Quotas
from triskele_server.rpc.server import bind, build_server, server_options

FEDERATION = "bank.example"
SERVER = Identity(FEDERATION, "coordinator", "main")
ASK = coordinator_pb2.ListTasksRequest()
LIST = "/triskele.v1.Coordinator/ListTasks"


class Slow(coordinator_pb2_grpc.CoordinatorServicer):
    """Answers when it is told to."""

    def __init__(self) -> None:
        self.go_on = asyncio.Event()

    async def ListTasks(self, request, context):  # noqa: N802
        await self.go_on.wait()
        return coordinator_pb2.ListTasksReply()

    async def WatchRounds(self, request, context):  # noqa: N802
        yield coordinator_pb2.RoundView(round=1)
        await asyncio.Event().wait()


@asynccontextmanager
async def serving(members, *, ready: bool = True, **limits):
    """`(servicer, client of a member, port)`; `ready`: calls are answered at once."""
    tls = members.tls("coordinator", "main")
    server, slow = build_server(tls, FEDERATION, ServerLimits(**limits)), Slow()
    if ready:
        slow.go_on.set()
    coordinator_pb2_grpc.add_CoordinatorServicer_to_server(slow, server)
    port = bind(server, "127.0.0.1:0", tls)
    await server.start()
    channels = []

    def member(name="p00", role="participant"):
        channels.append(open_channel(f"127.0.0.1:{port}", SERVER, members.tls(role, name)))
        return coordinator_pb2_grpc.CoordinatorStub(channels[-1])

    try:
        yield slow, member, port
    finally:
        slow.go_on.set()
        for channel in channels:
            await channel.close()
        await server.stop(None)


async def refusal(call) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code(), caught.value.details()


def test_call_without_a_deadline_is_refused(members):
    async def scenario():
        async with serving(members) as (_, member, _port):
            return await refusal(member().ListTasks(ASK))

    code, text = asyncio.run(scenario())
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "without a deadline" in text


def test_call_with_a_long_deadline_is_ended_at_the_servers_limit(members):
    async def scenario():
        async with serving(members, ready=False, call_seconds=0.1) as (_, member, _port):
            return await refusal(member().ListTasks(ASK, timeout=3600))

    code, text = asyncio.run(scenario())
    assert code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert "0.1 s" in text  # the server's own words, not gRPC's


def test_stream_of_answers_is_ended_at_the_servers_limit(members):
    async def scenario():
        async with serving(members, stream_seconds=0.2) as (_, member, _port):
            call = member().WatchRounds(coordinator_pb2.WatchRoundsRequest())
            assert (await call.read()).round == 1
            return await refusal(call.read())

    assert asyncio.run(scenario())[0] is grpc.StatusCode.DEADLINE_EXCEEDED


def test_calls_beyond_a_minutes_are_refused_to_that_caller_only_and_forbidden_ones_count(members):
    async def scenario():
        async with serving(members, calls_per_minute=3) as (_, member, _port):
            greedy = member("p00")
            codes = []
            for call in (greedy.ListTasks, greedy.EnrolFor, greedy.ListTasks, greedy.ListTasks):
                request = coordinator_pb2.EnrolForRequest() if call is greedy.EnrolFor else ASK
                try:
                    await call(request, timeout=10)
                    codes.append(grpc.StatusCode.OK)
                except grpc.aio.AioRpcError as error:
                    codes.append(error.code())
            await member("p01").ListTasks(ASK, timeout=10)
            return codes

    ok, forbidden, busy = grpc.StatusCode.OK, grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.RESOURCE_EXHAUSTED
    assert asyncio.run(scenario()) == [ok, forbidden, ok, busy]


class Caller:
    """A context in which a member calls."""

    def __init__(self, uri: str) -> None:
        self._uri = uri

    def auth_context(self):
        return {"peer_spiffe_id": [self._uri.encode()]}


def test_bucket_fills_again_and_quiet_callers_are_forgotten(monkeypatch):
    monkeypatch.setattr("triskele_server.rpc.quotas._REMEMBERED", 2)
    now = [0.0]
    quotas = Quotas(ServerLimits(calls_per_minute=60), lambda: now[0])

    async def call(name):
        async with quotas.layer(LIST, Caller(f"spiffe://{FEDERATION}/participant/{name}")):
            pass

    async def scenario():
        for _ in range(60):
            await call("p00")
        with pytest.raises(Busy):
            await call("p00")
        now[0] += 2.0
        await call("p00")
        await call("p00")
        with pytest.raises(Busy):
            await call("p00")
        await call("p01")
        now[0] += 61.0
        await call("p02")
        return set(quotas._accounts)

    assert asyncio.run(scenario()) == {f"spiffe://{FEDERATION}/participant/p02"}


def test_the_federations_own_servers_have_no_quota():
    quotas = Quotas(ServerLimits(calls_per_minute=1))

    async def scenario():
        for _ in range(5):
            async with quotas.layer(LIST, Caller(f"spiffe://{FEDERATION}/coordinator/main")):
                pass

    asyncio.run(scenario())


def test_calls_of_one_caller_at_a_time_are_limited_and_another_call_may_follow_when_one_ends(members):
    async def scenario():
        async with serving(members, ready=False, calls_at_once=2) as (slow, member, _port):
            greedy, other = member("p00"), member("p01")
            first = [asyncio.ensure_future(greedy.ListTasks(ASK, timeout=10)) for _ in range(2)]
            await asyncio.sleep(0.2)
            refused = await refusal(greedy.ListTasks(ASK, timeout=10))
            theirs = asyncio.ensure_future(other.ListTasks(ASK, timeout=10))
            await asyncio.sleep(0.05)
            slow.go_on.set()
            await asyncio.gather(*first, theirs)
            await greedy.ListTasks(ASK, timeout=10)
            return refused

    code, text = asyncio.run(scenario())
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "2 calls under way" in text


def test_calls_of_all_callers_at_a_time_are_limited(members):
    async def scenario():
        async with serving(members, ready=False, concurrent_rpcs=1) as (slow, member, _port):
            first = asyncio.ensure_future(member("p00").ListTasks(ASK, timeout=10))
            await asyncio.sleep(0.2)
            refused = await refusal(member("p01").ListTasks(ASK, timeout=10))
            slow.go_on.set()
            await first
            return refused

    assert asyncio.run(scenario())[0] is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_connections_at_a_time_are_limited(members):
    def opened(port):
        return socket.create_connection(("127.0.0.1", port), 5)

    def closed(connection) -> bool:
        connection.settimeout(2)
        try:
            return connection.recv(1) == b""
        except TimeoutError:
            return False

    async def scenario():
        async with serving(members, connections=2, handshake_seconds=60) as (_, _member, port):
            held = [await asyncio.to_thread(opened, port) for _ in range(3)]
            try:
                return [await asyncio.to_thread(closed, connection) for connection in held]
            finally:
                for connection in held:
                    connection.close()

    assert asyncio.run(scenario()) == [False, False, True]


def test_connection_that_never_shakes_hands_is_closed(members):
    def held(port) -> bytes:
        with socket.create_connection(("127.0.0.1", port), 10) as connection:
            return connection.recv(1)

    async def scenario():
        async with serving(members, handshake_seconds=0.3) as (_, _member, port):
            return await asyncio.wait_for(asyncio.to_thread(held, port), 10)

    assert asyncio.run(scenario()) == b""


def test_metadata_beyond_the_limit_is_refused(members):
    async def scenario():
        async with serving(members, metadata_bytes=2048) as (_, member, _port):
            await member().ListTasks(ASK, timeout=10, metadata=(("x", "y" * 100),))
            return await refusal(member().ListTasks(ASK, timeout=10, metadata=(("x", "y" * 4000),)))

    assert asyncio.run(scenario())[0] is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_compressed_message_is_refused_before_it_is_inflated(members):
    """gRPC inflates first and looks at the size then: 300 KB on the wire became 300 MB of memory."""

    async def scenario():
        async with serving(members) as (_, _member, port):
            tls = members.tls("participant", "p00")
            options = [("grpc.ssl_target_name_override", SERVER.host), ("grpc.max_send_message_length", 1 << 27)]
            channel = grpc.aio.secure_channel(
                f"127.0.0.1:{port}", tls.channel_credentials(), options, grpc.Compression.Gzip, marking()
            )
            async with channel:
                return await refusal(channel.unary_unary(LIST)(bytes(1 << 26), timeout=20))

    assert asyncio.run(scenario())[0] is grpc.StatusCode.UNIMPLEMENTED


def test_our_own_clients_ping_less_often_than_servers_allow():
    theirs = dict(channel_options(SERVER, DEFAULT_LIMITS))["grpc.keepalive_time_ms"]
    assert DEFAULT_SERVER_LIMITS.ping_seconds * 1000 < min(theirs, KEEPALIVE_MILLISECONDS)


def test_stream_on_which_nothing_happens_outlives_its_clients_pings(members):
    async def scenario():
        async with serving(members, ping_seconds=0.02) as (_, _member, port):
            tls = members.tls("participant", "p00")
            options = [
                ("grpc.ssl_target_name_override", SERVER.host),
                ("grpc.keepalive_time_ms", 50),  # gRPC sends one a second at most
                ("grpc.http2.max_pings_without_data", 0),  # else gRPC sends the third of them a minute later
            ]
            async with grpc.aio.secure_channel(f"127.0.0.1:{port}", tls.channel_credentials(), options) as channel:
                watch = coordinator_pb2_grpc.CoordinatorStub(channel).WatchRounds(
                    coordinator_pb2.WatchRoundsRequest(), timeout=20, metadata=(own_protocol(),)
                )
                await watch.read()
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(watch.read(), 6.0)  # gRPC breaks it off at the fourth ping or so

    asyncio.run(scenario())


def test_grpc_knows_every_option_that_it_is_given():
    known = Path(cygrpc.__file__).read_bytes()
    given = [*server_options(DEFAULT_SERVER_LIMITS), *channel_options(SERVER, DEFAULT_LIMITS), *health._OPTIONS]
    of_python = {grpc.experimental.ChannelOptions.SingleThreadedUnaryStream}  # grpc/_channel.py takes it out
    assert {name for name, _ in given if name.encode() not in known} == of_python


def test_clients_take_a_full_server_as_a_reason_to_try_again_and_a_message_too_large_not():
    class Answer(grpc.RpcError):
        def __init__(self, code, text):
            self._code, self._text = code, text

        def code(self):
            return self._code

        def details(self):
            return self._text

    busy = from_rpc_error(Answer(grpc.StatusCode.RESOURCE_EXHAUSTED, "Concurrent RPC limit exceeded!"), "party 1")
    late = from_rpc_error(Answer(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded"), "party 1")
    large = "Received message larger than max (5000000 vs. 4194304)"
    assert type(busy) is Busy
    assert type(late) is TimedOut
    assert type(from_rpc_error(Answer(grpc.StatusCode.RESOURCE_EXHAUSTED, large), "party 1")) is InvalidUpload
