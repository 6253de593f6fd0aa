"""A plaintext FedAvg server: float32 updates over the same gRPC stack, chunks and mutual TLS; their mean by numpy.

It answers two RPCs of the protocol, `Party.Upload` (a header, which it passes over, then chunks of float32) and
`Coordinator.FetchResult` (which waits for the mean), so that interceptors, limits and access are the same too. Every
participant may read everybody's update here; it exists to be measured.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from triskele.errors import InvalidUpload
from triskele.limits import DEFAULT_LIMITS
from triskele_proto.v1 import coordinator_pb2, coordinator_pb2_grpc, party_pb2, party_pb2_grpc
from triskele_server import logs
from triskele_server.benchmark.scene import Row
from triskele_server.memory import keep_freed_pages, started
from triskele_server.metrics import rpc as metrics
from triskele_server.rpc.interceptors import Context
from triskele_server.rpc.server import bind, build_server, stop_server
from triskele_server.rpc.tls import TlsFiles

FLOAT_BYTES = 4
_UPLOAD = "/triskele.v1.Party/Upload"


class PlainAverage:
    """The mean of float32 [dimension] updates, one after the other; both services read and write it."""

    def __init__(self, participants: int, dimension: int) -> None:
        self._missing = participants
        self._participants = participants
        self._total = np.zeros(dimension, np.float64)
        self._mean = asyncio.get_running_loop().create_future()

    @property
    def dimension(self) -> int:
        """Entries of an update."""
        return len(self._total)

    def add(self, row: Row) -> None:
        """Take an update in."""
        self._total += row
        self._missing -= 1
        if not self._missing:
            self._mean.set_result((self._total / self._participants).astype("<f4"))

    async def mean(self) -> Row:
        """The mean, once every update is in."""
        mean: Row = await asyncio.shield(self._mean)
        return mean


class PlainIntake(party_pb2_grpc.PartyServicer):  # type: ignore[misc]  # generated without types
    """Uploads."""

    def __init__(self, average: PlainAverage) -> None:
        self._average = average

    async def Upload(  # noqa: N802  the proto's name
        self, requests: AsyncIterator[party_pb2.UploadRequest], context: Context
    ) -> party_pb2.UploadReply:
        """A header, then chunks of float32."""
        row = np.empty(self._average.dimension, "<f4")
        room, filled = row.data.cast("B"), 0
        async for request in requests:
            if request.WhichOneof("part") != "chunk":
                continue
            data = request.chunk.data
            if request.chunk.offset != filled or filled + len(data) > len(room):
                raise InvalidUpload("chunk: out of order, or too long")
            room[filled : filled + len(data)] = data
            filled += len(data)
        if filled != len(room):
            raise InvalidUpload(f"truncated: {filled} of {len(room)} bytes")
        self._average.add(row)
        return party_pb2.UploadReply(committed=filled, complete=True)


class PlainResult(coordinator_pb2_grpc.CoordinatorServicer):  # type: ignore[misc]  # generated without types
    """The mean, for everybody."""

    def __init__(self, average: PlainAverage) -> None:
        self._average = average

    async def FetchResult(  # noqa: N802  the proto's name
        self, request: coordinator_pb2.FetchResultRequest, context: Context
    ) -> AsyncIterator[coordinator_pb2.ResultChunk]:
        """A header, then float32 words."""
        words = (await self._average.mean()).data.cast("B")
        yield coordinator_pb2.ResultChunk(header=coordinator_pb2.ResultHeader(dimension=self._average.dimension))
        for start in range(0, len(words), DEFAULT_LIMITS.chunk_bytes):
            data = bytes(words[start : start + DEFAULT_LIMITS.chunk_bytes])
            yield coordinator_pb2.ResultChunk(chunk={"offset": start, "data": data})


@dataclass(frozen=True)
class PlainServer:
    """What the process is started with; `tls` are those of the coordinator, whose place it takes."""

    tls: TlsFiles
    federation: str
    participants: int
    dimension: int
    log: Path


def serve_plain(given: PlainServer, pipe: Connection) -> None:
    """The process: tells its port, serves until it is told to end, then tells how many bytes of uploads came."""
    with given.log.open("a", encoding="utf-8") as log:
        sys.stderr = log
        logs.configure("plain")  # as much is logged as by any other server
        keep_freed_pages()
        asyncio.run(_serve(given, pipe))


async def _serve(given: PlainServer, pipe: Connection) -> None:
    server = build_server(given.tls, given.federation)
    average = PlainAverage(given.participants, given.dimension)
    party_pb2_grpc.add_PartyServicer_to_server(PlainIntake(average), server)
    coordinator_pb2_grpc.add_CoordinatorServicer_to_server(PlainResult(average), server)
    port = bind(server, "127.0.0.1:0", given.tls)
    await server.start()
    started()
    pipe.send(port)
    await asyncio.to_thread(pipe.recv)
    received = metrics.RPC_RECEIVED.labels(_UPLOAD)
    pipe.send(sum(s.value for m in received.collect() for s in m.samples if s.name.endswith("_total")))
    await stop_server(server, seconds=1.0)
