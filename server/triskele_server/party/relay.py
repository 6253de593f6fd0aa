"""Bringing heavy shares to their other holder: party h, which has the words from the participant, to party h - 1.

Which are due stands in the store, so that nothing is forgotten when this process or the other one is killed. A relay
goes on from what the other party has committed. It ends when that party has the words, when it refuses them, or with
the round: whoever is still missing something then asks the participant, who uploads it directly after a while.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

import grpc
import structlog

from triskele.errors import Busy, NotFound, TimedOut, TriskeleError, Unavailable, from_rpc_error
from triskele.ids import ParticipantId
from triskele.limits import DEFAULT_LIMITS
from triskele_proto.v1 import party_pb2, party_pb2_grpc
from triskele_server.metrics import party as metrics
from triskele_server.metrics.rpc import outgoing
from triskele_server.party.records import Relay, Upload
from triskele_server.party.share_files import RoundKey, ShareFiles
from triskele_server.party.store import PartyStore
from triskele_server.round_state import RoundState

AT_A_TIME: Final = 4  # relays of one party
FIRST_PAUSE, LONGEST_PAUSE = 0.2, 10.0  # seconds before a relay that failed is tried again
_AGAIN = (Unavailable, Busy, TimedOut, NotFound)  # NotFound: the other party has not opened the round yet

Connect = Callable[[], grpc.aio.Channel]

_log = structlog.get_logger(__name__)


@dataclass
class _Line:
    """A way to the other party, for one relay at a time: closing it breaks nobody else's off.

    grpc.aio ends the calls of a channel that is closed with CancelledError, as if their own task had been cancelled.
    """

    connect: Connect
    _channel: grpc.aio.Channel | None = None

    def client(self) -> Any:
        """Raises as `connect`."""
        if self._channel is None:
            self._channel = self.connect()
        return party_pb2_grpc.PartyStub(self._channel)

    async def close(self) -> None:
        """The next relay dials anew, with the certificate as it is then."""
        if self._channel is not None:
            channel, self._channel = self._channel, None
            await channel.close(None)


@dataclass
class Relays:
    """The relays of one party, on one event loop. Without `connect` this party brings nothing."""

    store: PartyStore
    files: ShareFiles
    connect: Connect | None
    party: str  # that the words go to, as a label
    _waiting: asyncio.Queue[tuple[RoundKey, ParticipantId]] = field(default_factory=asyncio.Queue)
    _known: set[tuple[RoundKey, ParticipantId]] = field(default_factory=set)
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def due(self, key: RoundKey, participant: ParticipantId) -> None:
        """An upload is complete here and its words are to be brought; telling it twice changes nothing."""
        if self.connect is not None and (key, participant) not in self._known:
            self._known.add((key, participant))
            metrics.RELAYS_WAITING.inc()
            self._waiting.put_nowait((key, participant))

    async def start(self) -> None:
        """Go on with what was due when the process ended last, and take what becomes due."""
        if self.connect is None:
            return
        for key, participant in await asyncio.to_thread(self.store.relays_due):
            self.due(key, participant)
        self._tasks = [asyncio.create_task(self._work(_Line(self.connect))) for _ in range(AT_A_TIME)]

    async def stop(self) -> None:
        """Break off; what is due is found again at the next start."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _work(self, line: _Line) -> None:
        try:
            while True:
                key, participant = await self._waiting.get()
                try:
                    await self._bring_until_done(line, key, participant)
                finally:
                    self._known.discard((key, participant))
                    metrics.RELAYS_WAITING.dec()
        finally:
            await line.close()

    async def _bring_until_done(self, line: _Line, key: RoundKey, participant: ParticipantId) -> None:
        pause, asks = FIRST_PAUSE, False  # the first time nothing is there yet, or the other party says so
        while (upload := await asyncio.to_thread(self._still_due, key, participant)) is not None:
            try:
                await self._bring(line, key, upload, asks=asks)
                ended = Relay.DONE
            except _AGAIN as error:
                _log.info("relay_put_off", party=self.party, problem=str(error)[:200])
                await asyncio.sleep(pause)
                pause, asks = min(2 * pause, LONGEST_PAUSE), True
                continue
            except (
                TriskeleError,
                OSError,
            ) as error:  # the participant, who is not told that it is done, uploads itself
                ended = Relay.REFUSED
                _log.warning("relay_refused", party=self.party, slot=upload.slot, problem=str(error)[:200])
            await asyncio.to_thread(self.store.relay_ended, key, participant, ended)
            metrics.RELAYS.labels("sent" if ended is Relay.DONE else "refused").inc()
            return

    def _still_due(self, key: RoundKey, participant: ParticipantId) -> Upload | None:
        with suppress(NotFound, Unavailable):  # Unavailable: this party is stopping
            upload = self.store.upload(key, participant)
            if upload is not None and upload.relay is Relay.DUE:
                return upload if self.store.round(key).state is RoundState.OPEN else None
        return None

    async def _bring(self, line: _Line, key: RoundKey, upload: Upload, *, asks: bool) -> None:
        """Raises the other party's answer as its typed error."""
        client = line.client()
        problems: list[TriskeleError | OSError] = []
        try:
            start = await self._committed(client, key, upload) if asks else 0
            while start < upload.size:
                with outgoing("/triskele.v1.Party/Relay", self.party):
                    words = self._requests(key, upload, start, problems)
                    reply = await client.Relay(words, timeout=DEFAULT_LIMITS.upload_seconds)
                start, before = _brought(reply, upload), start
                if start <= before:
                    raise Unavailable(f"party {self.party} has {start} bytes after bytes from {before} on were sent")
        except grpc.RpcError as error:
            if problems:
                raise problems[0] from None
            typed = from_rpc_error(error, f"party {self.party}")
            if isinstance(typed, Unavailable):
                await line.close()
            raise typed from None

    async def _committed(self, client: Any, key: RoundKey, upload: Upload) -> int:
        request = party_pb2.RelayStatusRequest(
            task_digest=key.task,
            round=key.number,
            participant=upload.participant,
            manifest_digest=upload.manifest_digest,
        )
        with outgoing("/triskele.v1.Party/RelayStatus", self.party):
            return _brought(await client.RelayStatus(request, timeout=DEFAULT_LIMITS.rpc_seconds), upload)

    async def _requests(
        self, key: RoundKey, upload: Upload, start: int, problems: list[TriskeleError | OSError]
    ) -> AsyncIterator[party_pb2.RelayRequest]:
        """The header, then the words from byte `start` on; a problem of this party's disk is put into `problems`.

        grpc would answer an exception with a cancellation that looks like one from outside.
        """
        try:
            content = self.files.read_relay(key, upload.participant, upload.heavy)
            yield party_pb2.RelayRequest(header=party_pb2.RelayHeader.FromString(content))
            blocks = self.files.read_words(key, upload.participant, upload.heavy, upload.size, start)
            for block in blocks:  # written a moment ago: in the page cache
                yield party_pb2.RelayRequest(chunk={"offset": start, "data": block})
                start += len(block)
        except (TriskeleError, OSError) as error:
            problems.append(error)


def _brought(reply: party_pb2.UploadReply, upload: Upload) -> int:
    """How many bytes of the words the other party has."""
    return upload.size if reply.complete else int(reply.committed)
