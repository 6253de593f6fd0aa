"""Damaged messages to every RPC over real gRPC: the answer is a typed status, and the server goes on."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from triskele.errors import REASONS
from triskele.transparency.checkpoint import Checkpoint
from triskele_proto.v1 import control_pb2, coordinator_pb2, info_pb2, party_pb2, peer_pb2
from triskele_server.rpc.methods import ALL

from .material import NAME, ROUND, SPEC, Material
from .mutations import flips, truncations
from .served import FORWARDED, Served, serving

TYPED = frozenset(reason.status for reason in REASONS.values()) | {grpc.StatusCode.OK}
_EACH = 150  # damaged versions of each message


def requests(made: Material) -> dict[str, list[bytes]]:
    """A valid stream of messages to every RPC."""
    place = {"task_digest": SPEC.digest, "round": ROUND}
    submission = control_pb2.Submission(slot=0, participant=NAME, manifest_digest=made.submission.digest)
    messages = {
        "Coordinator/ListTasks": [coordinator_pb2.ListTasksRequest()],
        "Coordinator/ListRounds": [coordinator_pb2.ListRoundsRequest(task_digest=SPEC.digest)],
        "Coordinator/WatchRounds": [coordinator_pb2.WatchRoundsRequest(task_digest=SPEC.digest, from_round=1)],
        "Coordinator/Enrol": [coordinator_pb2.EnrolRequest(**place)],
        "Coordinator/EnrolFor": [made.wish],
        "Coordinator/FetchResult": [coordinator_pb2.FetchResultRequest(**place)],
        "Coordinator/FetchCertificate": [coordinator_pb2.FetchCertificateRequest(**place)],
        "Coordinator/FetchLog": [coordinator_pb2.FetchLogRequest(from_index=0, cosignatures=3)],
        "Info/Describe": [info_pb2.DescribeRequest()],
        "Party/UploadStatus": [party_pb2.UploadStatusRequest(**place, manifest_digest=made.submission.digest)],
        "Party/Upload": made.upload(),
        "Party/Relay": made.relay(),
        "Party/RelayStatus": [
            party_pb2.RelayStatusRequest(**place, participant=NAME, manifest_digest=made.relayed.digest)
        ],
        "Party/FetchMaskKeys": [party_pb2.MaskKeysRequest(**place, output_digest=bytes(32))],
        "Party/UploadSealed": made.sealed_requests(),
        "PartyControl/OpenRound": [control_pb2.OpenRoundRequest(task=SPEC.canonical(), round=ROUND)],
        "PartyControl/RoundStatus": [control_pb2.RoundRequest(**place)],
        "PartyControl/SealRound": [control_pb2.SealRoundRequest(**place, submissions=[submission])],
        "PartyControl/RunRound": [control_pb2.RunRoundRequest(**place, attempt=1)],
        "PartyControl/FetchOutput": [control_pb2.RoundRequest(**place)],
        "PartyControl/EndRound": [control_pb2.EndRoundRequest(**place, state="OPEN")],
        "PartyControl/Cosign": [
            control_pb2.CosignRequest(
                checkpoint=Checkpoint("demo/rounds", 3, bytes(32)).body(), old_size=2, consistency=[bytes(32)] * 2
            )
        ],
        "Peer/Exchange": [
            peer_pb2.Frame(session=bytes(32), label="helo", last=True),
            peer_pb2.Frame(payload=b"\1" * 24),
        ],
    }
    return {f"/triskele.v1.{name}": [m.SerializeToString() for m in stream] for name, stream in messages.items()}


def damaged(stream: list[bytes], seed: int) -> Iterator[list[bytes]]:
    """The stream with one message damaged, left out, sent twice, or cut off after it."""
    generator = random.Random(seed)
    for place, message in enumerate(stream):
        versions = [*truncations(message), *flips(message), generator.randbytes(64), message * 2]
        for version in generator.sample(versions, min(_EACH, len(versions))):
            yield [*stream[:place], version, *stream[place + 1 :]]
        if len(stream) > 1:
            yield [*stream[:place], *stream[place + 1 :]]
            yield [*stream[: place + 1], message, *stream[place + 1 :]]
            yield stream[: place + 1]


def ends(method: str, stream: list[bytes]) -> bool:
    """Whether a damaged request may come out as one that ends the round, or waits for news as it should."""
    return method.endswith("WatchRounds") or (method.endswith("Exchange") and b"hello" in stream[0])


def test_every_rpc_has_a_valid_request_here(material: Material) -> None:
    assert set(requests(material)) == ALL
    assert FORWARDED <= ALL


@pytest.mark.parametrize("method", sorted(ALL))
def test_damaged_requests_get_typed_statuses(material: Material, tmp_path: Path, method: str) -> None:
    streams = list(damaged(requests(material)[method], seed=len(method)))

    async def scenario() -> list[grpc.StatusCode]:
        async with serving(material, tmp_path) as served:
            seconds = 0.2 if ends(method, streams[0]) else 20.0
            answers = await asyncio.gather(*(served.call(method, stream, seconds) for stream in streams))
            assert await _alive(served)
            return answers

    answers = asyncio.run(scenario())
    assert set(answers) <= TYPED, {code: streams[i] for i, code in enumerate(answers) if code not in TYPED}
    assert grpc.StatusCode.INVALID_ARGUMENT in answers or len(answers) < 5  # some of them never were a message


async def _alive(served: Served) -> bool:
    valid = requests(served.material)
    codes = [
        await served.call(method, valid[method])
        for method in ("/triskele.v1.Coordinator/Enrol", "/triskele.v1.PartyControl/RoundStatus")
    ]
    return codes == [grpc.StatusCode.OK] * 2


def test_what_broken_streams_left_behind_an_honest_one_goes_on_from(material: Material, tmp_path: Path) -> None:
    method = "/triskele.v1.Party/Upload"
    header, first, second = requests(material)[method]

    async def scenario() -> grpc.StatusCode:
        async with serving(material, tmp_path) as served:
            for stream in [[header], [header, first[:-1]], [header, second], [header, first, first]]:
                assert await served.call(method, stream) is grpc.StatusCode.INVALID_ARGUMENT
            return await served.call(method, [header, second])

    assert asyncio.run(scenario()) is grpc.StatusCode.OK
