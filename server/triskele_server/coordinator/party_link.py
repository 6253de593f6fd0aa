"""The coordinator's side of PartyControl: values of `rounds` in, values out; protobuf stops here."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from typing import Any

import grpc
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from triskele.errors import IncompatibleVersion, PartyFault, Unavailable, from_rpc_error
from triskele.ids import ParticipantId, PartyIndex, RoundNumber, Slot
from triskele.limits import DEFAULT_LIMITS, Limits
from triskele.manifest import ManifestDigest
from triskele.task import TaskSpec
from triskele.transparency.checkpoint import Checkpoint, Cosignature, check_cosignature
from triskele_proto.v1 import control_pb2, control_pb2_grpc, types_pb2
from triskele_server.coordinator.result_files import Piece
from triskele_server.coordinator.rounds import (
    MAX_REASON,
    Blame,
    Outcome,
    PartyStatus,
    Refusal,
    RoundId,
    RoundRecord,
    Signed,
    Submission,
)
from triskele_server.metrics.rpc import outgoing
from triskele_server.round_state import RoundState

STATUS_SECONDS = 5.0  # deadline of a status call; a party that hangs must not hold up the other two for long
RENEW_SECONDS = 2.0  # a channel that does not work is built anew, but not more often than this


class PartyLink:
    """One party as a task's runner sees it. Calls raise the typed errors of triskele.errors, Unavailable to try again.

    A channel that gives Unavailable is built anew after `renew_seconds`: then gRPC's back-off, which grows to minutes,
    begins anew too, and the certificates are read again. So a link serves one caller at a time.
    """

    def __init__(
        self,
        index: PartyIndex,
        connect: Callable[[], grpc.aio.Channel],
        *,
        limits: Limits = DEFAULT_LIMITS,
        renew_seconds: float = RENEW_SECONDS,
    ) -> None:
        self.index = index
        self._connect = connect
        self._limits = limits
        self._renew_seconds = renew_seconds
        self._channel: grpc.aio.Channel | None = None
        self._connected_at = 0.0  # of the event loop's clock

    async def open_round(self, spec: TaskSpec, number: RoundNumber) -> PartyStatus:
        """Open a round; the same answer when repeated. A refusal is the party's own policy."""
        request = control_pb2.OpenRoundRequest(task=spec.canonical(), round=number)
        return await self._call("OpenRound", request, self._limits.rpc_seconds)

    async def status(
        self, id_: RoundId, seen: PartyStatus | None = None, *, enough: int = 0, seconds: float = 0.0
    ) -> PartyStatus:
        """Where the round stands at this party: once it is not as `seen`, or after `seconds`.

        Of an open round `enough` complete uploads are news, fewer are not.
        """
        request = _round_request(id_)
        if seen is not None:
            request.seen.CopyFrom(
                control_pb2.Seen(
                    state=seen.state,
                    attempt=seen.attempt,
                    running=seen.running,
                    enough=enough,
                    wait_ms=max(0, int(1000 * seconds)),
                )
            )
        return await self._call("RoundStatus", request, STATUS_SECONDS + seconds)

    async def seal(self, id_: RoundId, submissions: Sequence[Submission]) -> PartyStatus:
        """Fix the input set; the same answer when repeated."""
        request = control_pb2.SealRoundRequest(
            task_digest=id_.task,
            round=id_.number,
            submissions=[
                control_pb2.Submission(slot=s.slot, participant=s.participant, manifest_digest=s.manifest)
                for s in submissions
            ],
        )
        return await self._call("SealRound", request, self._limits.rpc_seconds)

    async def run(self, id_: RoundId, attempt: int) -> PartyStatus:
        """Start an attempt at the computation; the same answer when repeated."""
        request = control_pb2.RunRoundRequest(task_digest=id_.task, round=id_.number, attempt=attempt)
        return await self._call("RunRound", request, self._limits.rpc_seconds)

    async def end(self, record: RoundRecord, spec: TaskSpec) -> PartyStatus:
        """Tell that the round is over, so that the party deletes its shares and signs the round's certificate."""
        blame = record.blame
        request = control_pb2.EndRoundRequest(
            task_digest=record.id.task,
            round=record.id.number,
            state=record.state,
            task=spec.canonical(),
            left_out=[
                types_pb2.RefusedSubmission(slot=r.slot, participant=r.participant, reason=r.reason)
                for r in record.left_out
            ],
            blame=None if blame is None else types_pb2.Blame(reason=blame.reason, who=blame.who, detail=blame.detail),
        )
        return await self._call("EndRound", request, self._limits.rpc_seconds)

    async def output(self, id_: RoundId) -> AsyncGenerator[Piece]:
        """The words of the aggregate, as the party streams them: unchecked."""
        async with self._typed_errors("FetchOutput"):
            call = self._client().FetchOutput(_round_request(id_), timeout=self._limits.upload_seconds)
            async for message in call:
                yield Piece(message.chunk.offset, message.chunk.data)

    async def cosign(self, head: Checkpoint, old_size: int, growth: Callable[[int], Sequence[bytes]]) -> str:
        """The party's cosignature of the log, as a line of the signed note. `old_size`: what it may have cosigned last.

        `growth` proves that the log has grown from such a size to `head`. Raises Conflict if the party has cosigned
        another log.
        """
        reply = await self._cosign(head, old_size, growth)
        if not reply.signature and 1 <= reply.old_size <= head.size:
            reply = await self._cosign(head, reply.old_size, growth)
        try:
            key = Ed25519PublicKey.from_public_bytes(reply.public_key)
        except ValueError:
            raise PartyFault(
                f"party {self.index}: gave no cosignature, and no size to prove from", self.index
            ) from None
        federation = head.origin.removesuffix("/rounds")
        return check_cosignature(head, Cosignature(reply.time, reply.signature), federation, self.index, (key,))

    async def _cosign(
        self, head: Checkpoint, old_size: int, growth: Callable[[int], Sequence[bytes]]
    ) -> control_pb2.CosignReply:
        request = control_pb2.CosignRequest(
            checkpoint=head.body(), old_size=old_size, consistency=growth(old_size) if old_size else ()
        )
        async with self._typed_errors("Cosign"):
            reply: control_pb2.CosignReply = await self._client().Cosign(request, timeout=self._limits.rpc_seconds)
            return reply

    async def close(self) -> None:
        """Close the channel."""
        if self._channel is not None:
            channel, self._channel = self._channel, None
            await channel.close(None)

    def _client(self) -> control_pb2_grpc.PartyControlStub:
        if self._channel is None:
            self._channel = self._connect()
            self._connected_at = asyncio.get_running_loop().time()
        return control_pb2_grpc.PartyControlStub(self._channel)

    async def _call(self, method: str, request: Any, seconds: float) -> PartyStatus:
        async with self._typed_errors(method):
            return _status(await getattr(self._client(), method)(request, timeout=seconds))

    @contextlib.asynccontextmanager
    async def _typed_errors(self, method: str) -> AsyncIterator[None]:
        try:
            with outgoing(f"/triskele.v1.PartyControl/{method}", str(self.index)):
                yield
        except grpc.RpcError as error:
            typed = from_rpc_error(error, f"party {self.index}")
            now = asyncio.get_running_loop().time()
            if isinstance(typed, Unavailable) and now > self._connected_at + self._renew_seconds:
                await self.close()
            if isinstance(typed, IncompatibleVersion):  # while the federation is upgraded: waited for, no round is lost
                raise Unavailable(str(typed)) from None
            raise typed from None
        except PartyFault as error:
            raise PartyFault(f"party {self.index}: {error}", self.index) from None


def _round_request(id_: RoundId) -> control_pb2.RoundRequest:
    return control_pb2.RoundRequest(task_digest=id_.task, round=id_.number)


def _status(reply: control_pb2.RoundStatusReply) -> PartyStatus:
    try:
        state = RoundState(reply.state)
    except ValueError:
        raise PartyFault(f"reported a round state that does not exist: {reply.state[:20]!r}") from None
    return PartyStatus(
        state,
        tuple(
            Submission(Slot(s.slot), ParticipantId(s.participant), ManifestDigest(s.manifest_digest))
            for s in reply.complete
        ),
        Blame(reply.blame.reason, reply.blame.who, reply.blame.detail) if reply.HasField("blame") else None,
        _outcome(reply.outcome) if reply.HasField("outcome") else None,
        reply.attempt,
        reply.running,
        reply.setback[:MAX_REASON],
        _signed(reply.certificate) if reply.HasField("certificate") else None,
    )


def _signed(message: control_pb2.SignedStatement) -> Signed:
    return Signed(message.statement, message.key_id, message.signature)


def _outcome(message: control_pb2.RoundOutcome) -> Outcome:
    return Outcome(
        output_digest=message.output_digest,
        weight_total=message.weight_total,
        coefficient_bits=message.coefficient_bits,
        # Sorted, because only what these two hold must agree; the order of the openings is part of the ledger.
        refused=tuple(
            sorted(Refusal(Slot(r.slot), ParticipantId(r.participant), r.reason[:MAX_REASON]) for r in message.refused)
        ),
        accepted=tuple(sorted(Slot(s) for s in message.accepted_slots)),
        openings=tuple(message.openings),
        attempt=message.attempt,
    )
