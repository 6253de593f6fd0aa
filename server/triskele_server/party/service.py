"""gRPC on the outside, `Intake` and `RoundControl` on the inside: this adapter turns messages into values and back.

What waits for the disk, or for somebody who does, is done in a thread; what takes less than handing it over to one,
such as a chunk that goes into the page cache, is done at once.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from triskele.errors import Conflict, Forbidden, InvalidTask, InvalidUpload
from triskele.identity import Identity
from triskele.ids import ParticipantId, RoundNumber, Slot, TaskDigest
from triskele.limits import DEFAULT_LIMITS
from triskele.manifest import Manifest, ManifestDigest
from triskele.transparency.merkle import MAX_PROOF
from triskele_proto.v1 import control_pb2, control_pb2_grpc, party_pb2, party_pb2_grpc, types_pb2
from triskele_server.metrics import party as metrics
from triskele_server.party.certifier import Told
from triskele_server.party.control import RoundControl, RoundStatus, Seen
from triskele_server.party.cosigner import Cosigner, OtherSize
from triskele_server.party.intake import Intake, ReceivedShare
from triskele_server.party.job import RoundOutcome
from triskele_server.party.mask_keys import MaskKeys
from triskele_server.party.records import Submission
from triskele_server.party.sealed_intake import SealedIntake, SealedSession
from triskele_server.party.share_files import RoundKey
from triskele_server.party.upload import Progress, UploadSession
from triskele_server.round_state import RoundState
from triskele_server.rpc.interceptors import Context, about, caller

ANNOUNCED_SECONDS = 2.0  # that who has announced a relayed upload waits for its words at most, before it is answered
_SHARES_READ = 3  # a party takes 2
_STREAM_ENDED = Conflict("this stream has ended: begin another one to go on")


class PartyService(party_pb2_grpc.PartyServicer):  # type: ignore[misc]  # generated without types
    """The intake of shares, called by participants; `sealed` is absent where this party takes no sealed uploads."""

    def __init__(
        self,
        intake: Intake,
        keys: MaskKeys,
        sealed: SealedIntake | None = None,
        relay: Callable[[RoundKey, ParticipantId], None] = lambda *_: None,
        completed: Callable[[RoundKey], None] = lambda _: None,
    ) -> None:
        """`relay` hears of every upload whose words are to be brought to the other holder, `completed` of the rest."""
        self._intake = intake
        self._keys = keys
        self._sealed = sealed
        self._relay = relay
        self._completed = completed
        self._awaited: dict[tuple[RoundKey, ParticipantId], asyncio.Event] = {}  # relays, by whoever waits for them

    async def UploadStatus(  # noqa: N802  the proto's name
        self, request: party_pb2.UploadStatusRequest, context: Context
    ) -> party_pb2.UploadReply:
        """How much of the caller's upload is committed."""
        digest = ManifestDigest(request.manifest_digest)
        return _reply(await asyncio.to_thread(self._intake.status, caller(context), _key(request), digest))

    @metrics.counted
    async def Upload(  # noqa: N802  the proto's name
        self, requests: AsyncIterator[party_pb2.UploadRequest], context: Context
    ) -> party_pb2.UploadReply:
        """A header, then the heavy share's chunks."""
        header = await _header(requests)
        about(header.manifest.manifest.task_digest, header.manifest.manifest.round)
        shares = received_shares(header.shares)
        if header.relayed:
            return self._told(
                _key(header.manifest.manifest), await self._announced(caller(context), header.manifest, shares)
            )
        begin = partial(self._intake.begin, relay=header.relay)
        session = await asyncio.to_thread(begin, caller(context), header.manifest, shares)
        try:
            if not session.complete and not await _receive(requests, session):
                return _reply(Progress(session.position, complete=False))
            progress = await asyncio.to_thread(session.finish)
            if progress.relaying:
                self._relay(session.key, session.participant)
            return self._told(session.key, progress)
        finally:
            await _close(session)

    def _told(self, key: RoundKey, progress: Progress) -> party_pb2.UploadReply:
        """The answer to an upload, which the round's control hears of if it is complete."""
        if progress.complete:
            self._completed(key)
        return _reply(progress)

    async def _announced(
        self, participant: Identity, signed: types_pb2.SignedManifest, shares: Sequence[ReceivedShare]
    ) -> Progress:
        """Answered when the other holder has brought the words, or in a while: asking again and again costs more."""
        key = _key(signed.manifest)
        place = key, ParticipantId(participant.name)
        ended = self._awaited.setdefault(place, asyncio.Event())  # before the look at what is there
        try:
            progress = await asyncio.to_thread(self._intake.announce, participant, signed, shares)
            if progress.complete or not progress.relayed:
                return progress
            with suppress(TimeoutError):
                async with asyncio.timeout(ANNOUNCED_SECONDS):
                    await ended.wait()
            digest = Manifest.from_proto(signed.manifest).digest
            return await asyncio.to_thread(self._intake.status, participant, key, digest)
        finally:
            self._awaited.pop(place, None)

    async def Relay(  # noqa: N802  the proto's name
        self, requests: AsyncIterator[party_pb2.RelayRequest], context: Context
    ) -> party_pb2.UploadReply:
        """A header, then the words of a heavy share that the calling party holds too."""
        header = await _first(requests)
        about(header.manifest.manifest.task_digest, header.manifest.manifest.round)
        begin = self._intake.begin_relay
        session = await asyncio.to_thread(begin, caller(context), header.manifest, header.salt)
        try:
            if not session.complete and not await _receive(requests, session):
                return _reply(Progress(session.position, complete=False))
            return self._told(session.key, await asyncio.to_thread(session.finish))
        finally:
            await _close(session)
            if (ended := self._awaited.get((session.key, session.participant))) is not None:
                ended.set()

    async def RelayStatus(  # noqa: N802  the proto's name
        self, request: party_pb2.RelayStatusRequest, context: Context
    ) -> party_pb2.UploadReply:
        """How much the calling party has brought of an upload."""
        participant = ParticipantId(request.participant)
        status = self._intake.relay_status
        return _reply(
            await asyncio.to_thread(status, caller(context), _key(request), participant, request.manifest_digest)
        )

    @metrics.counted
    async def UploadSealed(  # noqa: N802  the proto's name
        self, requests: AsyncIterator[party_pb2.SealedUploadRequest], context: Context
    ) -> party_pb2.UploadReply:
        """A sealed header, then the heavy share's sealed chunks; brought by a forwarder."""
        if self._sealed is None:
            raise Forbidden("this party takes no sealed uploads: its configuration names no sealing_key")
        header = await _sealed_header(requests)
        upload = await asyncio.to_thread(self._sealed.begin, _key(header), header.participant, header.sealed)
        try:
            if not upload.session.complete:
                await _receive_sealed(requests, upload)
            return self._told(upload.session.key, await asyncio.to_thread(upload.session.finish))
        finally:
            await _close(upload.session)

    async def FetchMaskKeys(  # noqa: N802  the proto's name
        self, request: party_pb2.MaskKeysRequest, context: Context
    ) -> party_pb2.MaskKeysReply:
        """This party's keys of the mask over a released aggregate."""
        keys = self._keys.hand_out(caller(context), _key(request), request.output_digest)
        return party_pb2.MaskKeysReply(keys=[party_pb2.MaskKey(index=i, key=k) for i, k in keys.items()])


class PartyControlService(control_pb2_grpc.PartyControlServicer):  # type: ignore[misc]  # generated without types
    """What the coordinator asks; only the one that this party's configuration names."""

    def __init__(self, control: RoundControl, cosigner: Cosigner, coordinator: str) -> None:
        self._control = control
        self._coordinator = coordinator
        self._cosigner = cosigner

    async def OpenRound(  # noqa: N802  the proto's name
        self, request: control_pb2.OpenRoundRequest, context: Context
    ) -> control_pb2.RoundStatusReply:
        """Open a round of a task that the policy allows."""
        self._check_coordinator(context)
        about(hashlib.sha256(request.task).digest(), request.round)
        return _status(await self._control.open(request.task, RoundNumber(request.round)))

    async def RoundStatus(  # noqa: N802  the proto's name
        self, request: control_pb2.RoundRequest, context: Context
    ) -> control_pb2.RoundStatusReply:
        """Where a round stands, at once or when there is news."""
        self._check_coordinator(context)
        if not request.HasField("seen"):
            return _status(await self._control.status(_key(request)))
        return _status(await self._control.news(_key(request), _seen(request.seen)))

    async def SealRound(  # noqa: N802  the proto's name
        self, request: control_pb2.SealRoundRequest, context: Context
    ) -> control_pb2.RoundStatusReply:
        """Fix the input set."""
        self._check_coordinator(context)
        submissions = [
            Submission(Slot(s.slot), ParticipantId(s.participant), ManifestDigest(s.manifest_digest))
            for s in request.submissions
        ]
        return _status(await self._control.seal(_key(request), submissions))

    async def RunRound(  # noqa: N802  the proto's name
        self, request: control_pb2.RunRoundRequest, context: Context
    ) -> control_pb2.RoundStatusReply:
        """Start an attempt at the computation."""
        self._check_coordinator(context)
        return _status(await self._control.run(_key(request), request.attempt))

    async def FetchOutput(  # noqa: N802  the proto's name
        self, request: control_pb2.RoundRequest, context: Context
    ) -> AsyncIterator[control_pb2.OutputChunk]:
        """The aggregate's words, in chunks from the start."""
        self._check_coordinator(context)
        path = await self._control.output(_key(request))
        offset = 0
        while data := await asyncio.to_thread(_read, path, offset):
            yield control_pb2.OutputChunk(chunk={"offset": offset, "data": data})
            offset += len(data)

    async def EndRound(  # noqa: N802  the proto's name
        self, request: control_pb2.EndRoundRequest, context: Context
    ) -> control_pb2.RoundStatusReply:
        """The round is over; the shares are deleted."""
        self._check_coordinator(context)
        try:
            state = RoundState(request.state)
        except ValueError as error:
            raise InvalidTask("end: not the name of a round's state") from error
        blame = request.blame
        told = Told(
            state,
            tuple((Slot(r.slot), ParticipantId(r.participant), r.reason) for r in request.left_out),
            (blame.reason, blame.who, blame.detail),
        )
        return _status(await self._control.end(_key(request), told, request.task))

    async def Cosign(  # noqa: N802  the proto's name
        self, request: control_pb2.CosignRequest, context: Context
    ) -> control_pb2.CosignReply:
        """Cosign the coordinator's log, if it has only grown."""
        self._check_coordinator(context)
        cosign, proof = self._cosigner.cosign, list(request.consistency[:MAX_PROOF])
        answer = await asyncio.to_thread(cosign, request.checkpoint, request.old_size, proof)
        if isinstance(answer, OtherSize):
            return control_pb2.CosignReply(old_size=answer.size)
        key = self._cosigner.public_key.public_bytes_raw()
        return control_pb2.CosignReply(time=answer.time, signature=answer.signature, public_key=key)

    def _check_coordinator(self, context: Context) -> None:
        name = caller(context).name
        if name != self._coordinator:
            raise Forbidden(f"coordinator {name!r} does not drive this party, {self._coordinator!r} does")


async def _header(requests: AsyncIterator[party_pb2.UploadRequest]) -> party_pb2.UploadHeader:
    header: party_pb2.UploadHeader = await _first(requests)
    return header


async def _sealed_header(requests: AsyncIterator[party_pb2.SealedUploadRequest]) -> party_pb2.SealedUploadHeader:
    header: party_pb2.SealedUploadHeader = await _first(requests)
    return header


async def _first(requests: AsyncIterator[Any]) -> Any:
    """The header that each kind of upload begins with."""
    async for request in requests:
        if request.WhichOneof("part") == "header":
            return request.header
        break
    raise InvalidUpload("an upload begins with its header")


async def _receive_sealed(requests: AsyncIterator[party_pb2.SealedUploadRequest], upload: SealedSession) -> None:
    await _resume(upload.session)
    async for request in requests:
        if request.WhichOneof("part") != "chunk":
            raise InvalidUpload("after the header of an upload come chunks only")
        chunk = request.chunk
        upload.write(chunk.offset, chunk.sealed)
        await _commit_if_due(upload.session)


async def _receive(
    requests: AsyncIterator[party_pb2.UploadRequest] | AsyncIterator[party_pb2.RelayRequest], session: UploadSession
) -> bool:
    """False, and nothing is taken, if a stream begins at byte 0 where a part is here already: who sends it is told."""
    known = session.position
    await _resume(session)
    async for request in requests:
        if request.WhichOneof("part") != "chunk":
            raise InvalidUpload("after the header of an upload come chunks only")
        chunk = request.chunk
        if known and not chunk.offset and session.position == known:
            return False
        session.write(chunk.offset, chunk.data)
        await _commit_if_due(session)
    return True


async def _resume(session: UploadSession) -> None:
    if session.position:
        await asyncio.to_thread(session.resume)


async def _commit_if_due(session: UploadSession) -> None:
    if session.commit_due:
        await asyncio.to_thread(session.commit)


async def _close(session: UploadSession) -> None:
    """Also when the participant vanished: what it sent is committed, even if this task is cancelled."""
    if session.complete:
        session.close(_STREAM_ENDED)
    else:
        await asyncio.shield(asyncio.to_thread(session.close, _STREAM_ENDED))


def _key(
    request: types_pb2.Manifest
    | party_pb2.UploadStatusRequest
    | party_pb2.RelayStatusRequest
    | party_pb2.MaskKeysRequest
    | party_pb2.SealedUploadHeader
    | control_pb2.RoundRequest
    | control_pb2.SealRoundRequest
    | control_pb2.RunRoundRequest
    | control_pb2.EndRoundRequest,
) -> RoundKey:
    about(request.task_digest, request.round)
    return RoundKey(TaskDigest(request.task_digest), RoundNumber(request.round))


def _read(path: Path, offset: int) -> bytes:
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(DEFAULT_LIMITS.chunk_bytes)


def received_shares(messages: Sequence[party_pb2.ShareHeader]) -> list[ReceivedShare]:
    """The announced shares as values; of the millions that a message has room for, one too many is enough to refuse."""
    return [ReceivedShare(s.index, s.salt, s.seed) for s in messages[:_SHARES_READ]]


def _reply(progress: Progress) -> party_pb2.UploadReply:
    return party_pb2.UploadReply(
        committed=progress.committed,
        complete=progress.complete,
        relayed=progress.relayed,
        relaying=progress.relaying,
    )


def _status(status: RoundStatus) -> control_pb2.RoundStatusReply:
    reply = control_pb2.RoundStatusReply(
        state=status.state,
        attempt=status.attempt,
        running=status.running,
        setback=status.setback,
        complete=[
            control_pb2.Submission(slot=s.slot, participant=s.participant, manifest_digest=s.manifest_digest)
            for s in status.complete
        ],
    )
    if status.blame is not None:
        blame = status.blame
        reply.blame.CopyFrom(types_pb2.Blame(reason=blame.reason, who=blame.who, detail=blame.detail))
    if status.certificate is not None:
        signed = status.certificate
        reply.certificate.CopyFrom(
            control_pb2.SignedStatement(statement=signed.statement, key_id=signed.key_id, signature=signed.signature)
        )
    if status.outcome is not None:
        reply.outcome.CopyFrom(_outcome(status.outcome, status.participants))
    return reply


def _seen(message: control_pb2.Seen) -> Seen:
    try:
        state = RoundState(message.state)
    except ValueError as error:
        raise InvalidTask("seen: not the name of a round's state") from error
    return Seen(state, message.attempt, message.running, message.enough, message.wait_ms / 1000)


def _outcome(outcome: RoundOutcome, participants: dict[int, str]) -> control_pb2.RoundOutcome:
    return control_pb2.RoundOutcome(
        output_digest=outcome.output_digest,
        weight_total=outcome.weight_total,
        coefficient_bits=outcome.coefficient_bits,
        refused=[
            types_pb2.RefusedSubmission(slot=slot, participant=participants.get(slot, ""), reason=reason)
            for slot, reason in outcome.refused
        ],
        accepted_slots=outcome.accepted or (),
        openings=outcome.openings,
        attempt=outcome.attempt,
    )
