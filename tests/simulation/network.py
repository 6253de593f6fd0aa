"""In-memory gRPC: the real services, interceptors and stubs, with messages as bytes and every fault of a network.

What stands in for sockets and TLS is below: `Network` carries messages between hosts with a delay, `Server` takes the
servicers that `add_..._to_server` gives it, `Channel` is what a stub calls through. A caller's certificate is what the
channel was made with.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any, Literal, Self

import grpc

from triskele.identity import Identity
from triskele.protocol import own_protocol
from triskele_server.limits import DEFAULT_SERVER_LIMITS
from triskele_server.rpc.deny_list import DenyList
from triskele_server.rpc.server import interceptors

from .virtual_time import Incarnation, context_of, current, task_of

DELAY_SECONDS = (0.0005, 0.004)
BREAK_SECONDS = 30.0  # after which keep-alive ends a connection over which nothing comes
_END = object()


FrameFault = Literal["duplicate", "swap", "reset"]
RelayLoss = Literal["request", "middle", "response"]
_RELAY = "/triskele.v1.Party/Relay"
_MIDDLE = 2  # messages of a relay that arrive before its middle


@dataclass
class Link:
    """What the network does to one direction between two hosts. Counts run down as they are used."""

    lose_requests: int = 0
    lose_responses: int = 0
    frame_faults: list[tuple[int, FrameFault]] = field(default_factory=list)  # after so many frames, once
    lose_relays: list[RelayLoss] = field(default_factory=list)  # the next ones, in this order
    repeat_relays: list[float] = field(default_factory=list)  # the next ones, after so many seconds

    def fault_of_next_frame(self) -> FrameFault | None:
        """What happens to the frame that is sent now."""
        due = [kind for left, kind in self.frame_faults if left <= 0]
        self.frame_faults = [(left - 1, kind) for left, kind in self.frame_faults if left > 0]
        return due[0] if due else None


class Network:
    """Hosts by name, servers by address. Nothing of it dies with a process."""

    def __init__(self, federation: str, chance: random.Random) -> None:
        self.federation = federation
        self._chance = chance
        self._servers: dict[str, Server] = {}
        self._links: dict[tuple[str, str], Link] = {}
        self._calls: set[Call] = set()
        self._parted: dict[frozenset[str], int] = {}
        self.on_frame: Callable[[Incarnation], None] = lambda _: None
        self.carried: list[bytes] = []  # every message of every call, as somebody who sees all wires has it

    def link(self, source: str, target: str) -> Link:
        """The faults of one direction."""
        return self._links.setdefault((source, target), Link())

    def part(self, one: str, other: str) -> None:
        """Nothing passes between two hosts any more; calls under way break when keep-alive notices."""
        pair = frozenset((one, other))
        self._parted[pair] = self._parted.get(pair, 0) + 1
        for call in list(self._calls):
            if {call.source.host, call.target_host} == pair:
                self.later(BREAK_SECONDS, call.break_off, "the connection is dead")

    def mend(self, one: str, other: str) -> None:
        """The opposite of `part`."""
        self._parted[frozenset((one, other))] -= 1

    def parted(self, one: str, other: str) -> bool:
        """Whether nothing passes between two hosts."""
        return self._parted.get(frozenset((one, other)), 0) > 0

    def heal(self) -> None:
        """No fault from now on."""
        self._parted.clear()
        self._links.clear()

    def later(self, seconds: float, callback: Callable[..., None], *args: Any) -> None:
        """Call back, whoever is dead by then."""
        asyncio.get_running_loop().call_later(seconds, callback, *args, context=context_of(None))

    def delay(self) -> float:
        """Seconds that the next message takes."""
        return self._chance.uniform(*DELAY_SECONDS)

    def serve(self, address: str, server: Server) -> None:
        """From now on `server` listens there."""
        self._servers[address] = server

    def server(self, address: str) -> Server | None:
        """Who listens there, if it is alive."""
        server = self._servers.get(address)
        return server if server is not None and server.life.alive else None

    def died(self, life: Incarnation) -> None:
        """The kernel of its host resets every connection of a process that died."""
        for call in list(self._calls):
            if call.source is life or call.server_life is life:
                self.later(self.delay(), call.break_off, "connection reset")

    def closed(self, channel: Channel) -> None:
        """Its calls under way are cancelled."""
        for call in list(self._calls):
            if call.channel is channel:
                call.cancel()

    def begin(self, call: Call) -> None:
        self._calls.add(call)

    def end(self, call: Call) -> None:
        self._calls.discard(call)


class Server:
    """Takes what `add_..._to_server` adds to a grpc.aio.Server, behind the real interceptors."""

    def __init__(self, network: Network, host: str, life: Incarnation) -> None:
        self.host = host
        self.life = life
        self._layers = interceptors(
            network.federation, DenyList(), DEFAULT_SERVER_LIMITS, asyncio.get_running_loop().time
        )
        self._handlers: dict[str, Any] = {}

    def add_generic_rpc_handlers(self, handlers: Any) -> None:
        """The registered ones are taken."""

    def add_registered_method_handlers(self, service: str, handlers: dict[str, Any]) -> None:
        self._handlers |= {f"/{service}/{name}": handler for name, handler in handlers.items()}

    async def handler(self, method: str) -> Any:
        """The handler with every layer around it."""

        async def innermost(_: Any) -> Any:
            return self._handlers[method]

        continuation: Any = innermost
        for layer in reversed(self._layers):
            continuation = _within(layer, continuation)
        return await continuation(_Details(method))


def _within(layer: grpc.aio.ServerInterceptor, continuation: Any) -> Any:
    async def intercept(details: Any) -> Any:
        return await layer.intercept_service(continuation, details)

    return intercept


@dataclass(frozen=True)
class _Details:
    method: str
    invocation_metadata: tuple[()] = ()


class _Aborted(grpc.aio.AbortError):
    pass


class Context:
    """What a servicer sees of a call."""

    def __init__(self, identity: Identity, until: float | None) -> None:
        self._identity = identity
        self._until = until
        self._code: grpc.StatusCode | None = None
        self.details = ""

    def auth_context(self) -> dict[str, list[bytes]]:
        return {"peer_spiffe_id": [self._identity.uri.encode()], "x509_pem_cert": [b""]}

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return (own_protocol(),)  # as every client's

    async def abort(self, code: grpc.StatusCode, details: str = "") -> None:
        self._code, self.details = code, details
        raise _Aborted

    def code(self) -> grpc.StatusCode | None:
        return self._code

    def time_remaining(self) -> float | None:
        return None if self._until is None else self._until - asyncio.get_running_loop().time()


class _Messages:
    """One direction of a call: messages in order, each a while after it was sent."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._queue: asyncio.Queue[Any] = asyncio.Queue()
        self._last = 0.0
        self._held: list[Any] = []

    def hold(self, message: Any) -> None:
        """Send it after the next one."""
        self._held.append(message)

    def send(self, message: Any) -> None:
        self._send(message)
        while self._held:
            self._send(self._held.pop())

    def _send(self, message: Any) -> None:
        now = asyncio.get_running_loop().time()
        self._last = max(self._last + 1e-6, now + self._network.delay())
        self._network.later(self._last - now, self._queue.put_nowait, message)

    def arrive(self, message: Any) -> None:
        self._queue.put_nowait(message)

    async def __aiter__(self) -> AsyncIterator[Any]:
        while (message := await self._queue.get()) is not _END:
            if isinstance(message, grpc.RpcError):
                raise message
            yield message


class Call:
    """One RPC of any kind, from its request to its status."""

    def __init__(self, channel: Channel, method: str, *, deadline: float | None, wait_for_ready: bool) -> None:
        self._network = channel.network
        self.channel = channel
        self.source = channel.life
        self.target_host = channel.target
        self.server_life: Incarnation | None = None
        self.requests = _Messages(self._network)
        self.responses = _Messages(self._network)
        self._identity = channel.identity
        self._address = channel.address
        self._method = method
        self._wait_for_ready = wait_for_ready
        self._handling: asyncio.Task[Any] | None = None
        self._sending: asyncio.Task[Any] | None = None
        self.over = False
        self.cancelled = False  # by the caller itself
        self._silent = False  # nothing of the answer gets through
        self._messages_left: int | None = None  # until the connection breaks
        self._sent: list[bytes] = []  # of a relay
        self._all_sent = False
        self._network.begin(self)
        self._until = None if deadline is None else asyncio.get_running_loop().time() + deadline
        if deadline is not None:
            self._network.later(deadline, self._fail, grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded")
        self._connect()

    def _connect(self) -> None:
        """Find the server; a call that waits for readiness tries again, another one fails."""
        if self.over:
            return
        server = self._network.server(self._address)
        link = self._network.link(self.source.host, self.target_host)
        parted = self._network.parted(self.source.host, self.target_host)
        if server is None or parted:
            if self._wait_for_ready:
                self._network.later(1.0, self._connect)
            elif parted:
                self._network.later(BREAK_SECONDS, self.break_off, "connection timed out")
            else:
                self._network.later(self._network.delay(), self.break_off, "connection refused")
            return
        if link.lose_requests > 0:
            link.lose_requests -= 1
            self._network.later(self._network.delay(), self.break_off, "connection reset")
            return
        if link.lose_responses > 0:
            link.lose_responses -= 1
            self._silent = True
        if self._method == _RELAY:
            if link.repeat_relays:
                self._network.later(link.repeat_relays.pop(0), self._repeat)
            loss = link.lose_relays.pop(0) if link.lose_relays else None
            if loss == "request":
                self._network.later(self._network.delay(), self.break_off, "connection reset")
                return
            self._silent = self._silent or loss == "response"
            self._messages_left = _MIDDLE if loss == "middle" else None
        self.server_life = server.life
        self._handling = task_of(server.life, self._handle(server))

    async def _handle(self, server: Server) -> None:
        context = Context(self._identity, self._until)
        failed: tuple[grpc.StatusCode, str] | None = None
        try:
            handler = await server.handler(self._method)
            requests = self._decoded(handler.request_deserializer)
            given = requests if handler.request_streaming else await anext(requests)
            if handler.response_streaming:
                inner = handler.stream_stream or handler.unary_stream
                async for reply in inner(given, context):
                    self._reply(handler.response_serializer(reply))
            else:
                inner = handler.stream_unary or handler.unary_unary
                self._reply(handler.response_serializer(await inner(given, context)))
        except grpc.aio.AbortError:
            failed = context.code() or grpc.StatusCode.UNKNOWN, context.details
        self._status(failed)

    async def _decoded(self, deserialize: Callable[[bytes], Any]) -> AsyncIterator[Any]:
        async for message in self.requests:
            yield deserialize(message)

    def _reply(self, message: bytes) -> None:
        if not (self.over or self._silent or self._cut()):
            self._pass(message, self.server_life, self.source, self.responses)

    def _pass(self, message: bytes, sender: Incarnation | None, receiver: Incarnation | None, way: _Messages) -> None:
        """Send it; a frame between parties may be the one that something happens to."""
        self._network.carried.append(message)
        if not self._method.endswith("/Exchange") or sender is None or receiver is None:
            way.send(message)
            return
        self._network.on_frame(sender)
        fault = self._network.link(sender.host, receiver.host).fault_of_next_frame()
        if fault == "reset":
            self.break_off("connection reset")
        elif fault == "swap":
            way.hold(message)
        else:
            way.send(message)
            if fault == "duplicate":
                way.send(message)

    def _status(self, failed: tuple[grpc.StatusCode, str] | None) -> None:
        if self._silent:
            self._network.later(self._network.delay(), self.break_off, "connection reset")
        elif not (self.over or self._cut()):
            self.responses.send(_END if failed is None else _error(*failed))
            self._network.later(1.0, self._finish)

    def _cut(self) -> bool:
        return self._network.parted(self.source.host, self.target_host)

    def send(self, message: bytes) -> None:
        """One message of the caller."""
        if not (self.over or self._cut()):
            if self._method == _RELAY:
                self._sent.append(message)
            self._pass(message, self.source, self.server_life, self.requests)
            if self._messages_left is not None:
                self._messages_left -= 1
                if self._messages_left == 0:
                    self._network.later(DELAY_SECONDS[1], self.break_off, "connection reset")

    def send_end(self) -> None:
        """The caller has sent everything."""
        if not self.over:
            self._all_sent = True
            self.requests.send(_END)

    def _repeat(self) -> None:
        """What has been sent so far, once more in a call of its own, which nobody waits for."""
        channel = Channel(
            self._network, self.target_host, self._address, self._identity, Incarnation(self.source.host, 0)
        )
        again = Call(channel, self._method, deadline=BREAK_SECONDS, wait_for_ready=False)
        for message in self._sent:
            again.send(message)
        if self._all_sent:
            again.send_end()
        else:
            self._network.later(DELAY_SECONDS[1], again.break_off, "connection reset")

    def send_from(
        self, messages: Any, serialize: Callable[[Any], bytes], change: Callable[[Call, bytes], None]
    ) -> None:
        """Send what an (asynchronous) iterator gives."""

        async def pump() -> None:
            async for message in messages:
                change(self, serialize(message))
            self.send_end()

        self._sending = task_of(self.source, pump())

    def break_off(self, why: str) -> None:
        """The connection is gone: the caller hears UNAVAILABLE, the handler is cancelled."""
        self._fail(grpc.StatusCode.UNAVAILABLE, why)

    def cancel(self) -> None:
        """The caller has gone, or closed its channel."""
        self.cancelled = not self.over
        self._fail(grpc.StatusCode.CANCELLED, "cancelled")

    def _fail(self, code: grpc.StatusCode, details: str) -> None:
        if not self.over:
            self._finish()
            self.responses.arrive(_error(code, details))
            if self._handling is not None:
                self._handling.cancel()
            if self._sending is not None:
                self._sending.cancel()

    def _finish(self) -> None:
        self.over = True
        self._network.end(self)


def _error(code: grpc.StatusCode, details: str) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), details)


@dataclass
class Channel:
    """grpc.aio.Channel of the process in whose name it is made."""

    network: Network
    target: str  # host
    address: str
    identity: Identity  # of the caller
    life: Incarnation = field(default_factory=current)  # type: ignore[arg-type]  # made inside a process

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self, grace: float | None = None) -> None:
        self.network.closed(self)

    def _call(self, method: str, timeout: float | None, wait_for_ready: bool | None = None) -> Call:
        return Call(self, method, deadline=timeout, wait_for_ready=bool(wait_for_ready))

    def unary_unary(self, method: str, request_serializer: Any, response_deserializer: Any, **_: Any) -> Any:
        async def call(request: Any, timeout: float | None = None) -> Any:  # noqa: ASYNC109  gRPC's name
            begun = self._call(method, timeout)
            begun.send(request_serializer(request))
            begun.send_end()
            return await _single(begun, response_deserializer)

        return call

    def unary_stream(self, method: str, request_serializer: Any, response_deserializer: Any, **_: Any) -> Any:
        def call(request: Any, timeout: float | None = None) -> AsyncIterator[Any]:
            begun = self._call(method, timeout)
            begun.send(request_serializer(request))
            begun.send_end()
            return _stream(begun, response_deserializer)

        return call

    def stream_unary(self, method: str, request_serializer: Any, response_deserializer: Any, **_: Any) -> Any:
        async def call(requests: Any, timeout: float | None = None) -> Any:  # noqa: ASYNC109  gRPC's name
            begun = self._call(method, timeout)
            begun.send_from(_asynchronous(requests), request_serializer, Call.send)
            return await _single(begun, response_deserializer)

        return call

    def stream_stream(self, method: str, request_serializer: Any, response_deserializer: Any, **_: Any) -> Any:
        def call(requests: Any, timeout: float | None = None, wait_for_ready: bool | None = None) -> AsyncIterator[Any]:
            begun = self._call(method, timeout, wait_for_ready)
            begun.send_from(requests, request_serializer, Call.send)
            return _stream(begun, response_deserializer)

        return call


async def _single(call: Call, deserialize: Callable[[bytes], Any]) -> Any:
    try:
        async for message in call.responses:
            return deserialize(message)
    except asyncio.CancelledError:
        call.cancel()
        raise
    except grpc.RpcError:
        if call.cancelled:  # by whoever closed the channel: grpc.aio tells it as if the task had been cancelled
            raise asyncio.CancelledError from None
        raise
    raise _error(grpc.StatusCode.INTERNAL, "no answer")


async def _stream(call: Call, deserialize: Callable[[bytes], Any]) -> AsyncIterator[Any]:
    try:
        async for message in call.responses:
            yield deserialize(message)
    except (asyncio.CancelledError, GeneratorExit):
        call.cancel()
        raise


async def _asynchronous(messages: Any) -> AsyncIterator[Any]:
    if hasattr(messages, "__aiter__"):
        async for message in messages:
            yield message
        return
    for message in messages:
        yield message
