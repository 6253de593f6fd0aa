"""Frames between parties over gRPC: one bidirectional stream per pair of parties and session, mutual TLS.

Party i dials party i+1. The streams live on one event loop; a computation's thread hands frames to it and waits for
frames from it, and never touches the loop otherwise.

`triskele bench --latency-ms` measures what a long line between the parties costs: its hubs hold every frame back for
so long. No configuration has such an option.
"""

from __future__ import annotations

import asyncio
import queue
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import grpc
import structlog

from triskele.errors import ConfigurationError, Forbidden, PartyFault, PeerLost, WrongState, from_rpc_error
from triskele.ids import PartyIndex
from triskele.limits import DEFAULT_LIMITS
from triskele.ring import WIDE
from triskele_proto.v1 import peer_pb2, peer_pb2_grpc
from triskele_server.config import PartyConfig, party_identity
from triskele_server.metrics.rpc import outgoing
from triskele_server.mpc.transport import Frame, Transport
from triskele_server.rpc.channel import open_channel
from triskele_server.rpc.server import caller

OPEN_SECONDS = 30.0  # how long a peer that is ahead of us waits until we join the session
FRAME_SECONDS = 120.0  # how long a computation waits for one frame
_PIECE_BYTES = DEFAULT_LIMITS.chunk_bytes
_MAX_FRAME_BYTES = DEFAULT_LIMITS.max_dimension * WIDE.word_bytes
_HELLO = "hello"
_EXCHANGE = "/triskele.v1.Peer/Exchange"

_log = structlog.get_logger(__name__)


@dataclass
class _Link:
    """The frames of one session with one peer, in both directions; None ends a direction."""

    outgoing: asyncio.Queue[peer_pb2.Frame | None] = field(default_factory=asyncio.Queue)
    incoming: queue.SimpleQueue[Frame | None] = field(default_factory=queue.SimpleQueue)
    attached: bool = False
    partial: list[bytes] = field(default_factory=list)
    ids: dict[str, Any] = field(default_factory=dict)  # task, round and attempt, for the log
    delay: float = 0.0  # seconds that a frame is held back: a benchmark's
    held_back: deque[Frame | None] = field(default_factory=deque)

    def received(self, message: peer_pb2.Frame) -> None:
        """Collect a frame's pieces and hand it over when it is whole."""
        self.partial.append(message.payload)
        if sum(map(len, self.partial)) > _MAX_FRAME_BYTES:
            raise PartyFault(f"a frame {message.label[:80]!r} is larger than {_MAX_FRAME_BYTES} bytes")
        if message.last:
            payload = self.partial[0] if len(self.partial) == 1 else b"".join(self.partial)
            self.partial = []
            self.deliver(Frame(message.sequence, message.label, payload))

    def deliver(self, frame: Frame | None) -> None:
        """Hand a frame to the computation, or None: no more will come. On the event loop."""
        if not self.delay:
            self.incoming.put(frame)
            return
        self.held_back.append(frame)  # the timer takes the oldest: of two that end together either may be first
        asyncio.get_running_loop().call_later(self.delay, lambda: self.incoming.put(self.held_back.popleft()))


class PeerHub(peer_pb2_grpc.PeerServicer):  # type: ignore[misc]  # generated without types
    """All peer streams of one party. Everything but `GrpcTransport` runs on the event loop."""

    def __init__(self, config: PartyConfig, link_delay: float = 0.0) -> None:
        self.party = config.index
        self.loop = asyncio.get_running_loop()
        self._previous = PartyIndex((config.index + 2) % 3)
        self._next = PartyIndex((config.index + 1) % 3)
        self._config = config
        self._link_delay = link_delay
        self._sessions: dict[bytes, dict[PartyIndex, _Link]] = {}
        self._dials: dict[bytes, asyncio.Task[None]] = {}
        self._joined = asyncio.Condition()

    async def join(self, session: bytes) -> GrpcTransport:
        """Open this party's end of a session; raises WrongState if it is open already.

        The log lines of both streams name what the caller has bound: task, round, attempt.
        """
        if session in self._sessions:
            raise WrongState("this attempt of the round is already running here")
        ids = structlog.contextvars.get_contextvars()
        links = {peer: _Link(ids=ids, delay=self._link_delay) for peer in (self._previous, self._next)}
        async with self._joined:
            self._sessions[session] = links
            self._joined.notify_all()
        self._dials[session] = asyncio.create_task(self._dial(session, links[self._next]))
        return GrpcTransport(self, session, links)

    def leave(self, session: bytes) -> None:
        """End both streams of a session once what is queued has been sent; a peer that is late still gets it."""
        for link in self._sessions.get(session, {}).values():
            link.outgoing.put_nowait(None)
        self.loop.call_later(OPEN_SECONDS, self._forget, session)

    def _forget(self, session: bytes) -> None:
        self._sessions.pop(session, None)
        dial = self._dials.pop(session, None)
        if dial is not None:
            dial.cancel()

    async def close(self) -> None:
        """End all sessions and the channel."""
        for session in list(self._sessions):
            self.leave(session)
            self._forget(session)

    async def _dial(self, session: bytes, link: _Link) -> None:
        try:
            link.attached = True
            hello = peer_pb2.Frame(session=session, label=_HELLO, last=True)
            async with self._channel_to_next() as channel:
                call = peer_pb2_grpc.PeerStub(channel).Exchange(_messages(link, hello), wait_for_ready=True)
                with outgoing(_EXCHANGE, str(self._next)):
                    async for message in call:
                        link.received(message)
        except grpc.aio.AioRpcError as error:
            problem = str(from_rpc_error(error, f"party {self._next}"))[:200]
            _log.warning("peer_stream_broke", peer=self._next, status=error.code().name, problem=problem)
        except ConfigurationError as error:
            _log.error("peer_not_dialled", peer=self._next, problem=str(error))
        finally:
            link.deliver(None)

    def _channel_to_next(self) -> grpc.aio.Channel:
        """A new one for each session: a certificate that was renewed is used from the next attempt on."""
        identity = party_identity(self._config.federation, self._next)
        return open_channel(self._config.peers[self._next], identity, self._config.tls.files)

    async def Exchange(  # noqa: N802 - the name is the protocol's
        self,
        request_iterator: AsyncIterator[peer_pb2.Frame],
        context: grpc.aio.ServicerContext[peer_pb2.Frame, peer_pb2.Frame],
    ) -> AsyncIterator[peer_pb2.Frame]:
        """Serve the previous party's stream of one session."""
        peer = caller(context)
        if peer.name != str(self._previous):
            raise Forbidden(f"{peer.uri} does not dial party {self.party}; party {self._previous} does")
        hello = await anext(request_iterator, None)
        if hello is None or hello.label != _HELLO:
            raise WrongState("a peer stream begins with hello")
        link = await self._expected(hello.session)
        structlog.contextvars.bind_contextvars(**link.ids)
        reader = asyncio.create_task(_read(link, request_iterator))
        try:
            async for message in _messages(link):
                yield message
        finally:
            reader.cancel()

    async def _expected(self, session: bytes) -> _Link:
        async with self._joined:
            try:
                await asyncio.wait_for(self._joined.wait_for(lambda: session in self._sessions), OPEN_SECONDS)
            except TimeoutError:
                raise WrongState(f"party {self.party} has not begun this round within {OPEN_SECONDS:g} s") from None
        link = self._sessions.get(session, {}).get(self._previous)
        if link is None or link.attached:
            raise WrongState("this session is over or already has its stream")
        link.attached = True
        return link


async def _messages(link: _Link, first: peer_pb2.Frame | None = None) -> AsyncIterator[peer_pb2.Frame]:
    if first is not None:
        yield first
    while (message := await link.outgoing.get()) is not None:
        yield message


async def _read(link: _Link, messages: AsyncIterator[peer_pb2.Frame]) -> None:
    try:
        async for message in messages:
            link.received(message)
    finally:
        link.deliver(None)


class GrpcTransport(Transport):
    """One session's frames, used from the thread that computes."""

    def __init__(self, hub: PeerHub, session: bytes, links: dict[PartyIndex, _Link]) -> None:
        super().__init__(hub.party)
        self._hub = hub
        self._session = session
        self._links = links

    def _put(self, peer: PartyIndex, frame: Frame) -> None:
        queue_ = self._links[peer].outgoing
        pieces = range(0, len(frame.payload) or 1, _PIECE_BYTES)
        for start in pieces:
            message = peer_pb2.Frame(
                session=self._session,
                sequence=frame.sequence,
                label=frame.label,
                payload=frame.payload[start : start + _PIECE_BYTES],
                last=start == pieces[-1],
            )
            self._hub.loop.call_soon_threadsafe(queue_.put_nowait, message)

    def _get(self, peer: PartyIndex, label: str) -> Frame:
        try:
            frame = self._links[peer].incoming.get(timeout=FRAME_SECONDS)
        except queue.Empty:
            raise PeerLost(f"party {peer} sent nothing for {FRAME_SECONDS:g} s; {label!r} was due", peer) from None
        if frame is None:
            raise PeerLost(f"the stream with party {peer} ended; {label!r} was due", peer)
        return frame

    def abandon(self) -> None:
        """End a computation that waits for a frame, from any thread: it gets a PeerLost."""
        for link in self._links.values():
            link.incoming.put(None)

    def close(self) -> None:
        """Leave the session; what was sent is still delivered."""
        self._hub.loop.call_soon_threadsafe(self._hub.leave, self._session)
