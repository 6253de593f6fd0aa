"""All four services over real gRPC and mutual TLS in this process, called with bytes as they are."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from triskele.call_metadata import MetadataInterceptor
from triskele.errors import PeerLost
from triskele.identity import Identity
from triskele.ids import PARTIES
from triskele_proto.v1 import coordinator_pb2_grpc, peer_pb2_grpc
from triskele_server.config import PartyConfig, ProbesTable, load_coordinator, load_party, load_tasks
from triskele_server.coordinator.changes import RoundChanges
from triskele_server.coordinator.log import Log
from triskele_server.coordinator.process import terms_of
from triskele_server.coordinator.result_files import ResultFiles
from triskele_server.coordinator.rounds import RoundId
from triskele_server.coordinator.service import CoordinatorService, wishes_certified_by
from triskele_server.coordinator.store import Store
from triskele_server.limits import ServerLimits
from triskele_server.party.job import RoundJob, RoundOutcome
from triskele_server.party.process import running
from triskele_server.round_state import RoundState
from triskele_server.rpc.methods import CALLS, UPLOADS
from triskele_server.rpc.peer import PeerHub
from triskele_server.rpc.server import bind, build_server
from triskele_server.rpc.tls import TlsFiles

from .material import ROUND, SPEC, Material

LIMITS = ServerLimits(calls_per_minute=1_000_000, forwarder_calls_per_minute=1_000_000, free_disk_bytes=1)

CALLER = {
    "Coordinator": "participant",
    "Party": "participant",
    "PartyControl": "coordinator",
    "Peer": "party-2",
    "Info": "participant",
}
FORWARDED = frozenset(("/triskele.v1.Coordinator/EnrolFor", "/triskele.v1.Party/UploadSealed"))
RELAYED = frozenset(("/triskele.v1.Party/Relay", "/triskele.v1.Party/RelayStatus"))  # to party 0 from party 1


class Nobody:
    """A worker whose every attempt is lost."""

    async def run(self, job: RoundJob, on_phase: Callable[[RoundState], None]) -> RoundOutcome:
        raise PeerLost("nobody computes here")


@dataclass
class Served:
    """Coordinator, party 0 with its control, and party 0's peer port."""

    material: Material
    ports: dict[str, int]
    party: PartyConfig
    _channels: dict[tuple[str, str], grpc.Channel] = field(default_factory=dict)
    _callers: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(24))  # the servers need the default
    _opening: threading.Lock = field(default_factory=threading.Lock)

    async def call(self, method: str, requests: Iterable[bytes], seconds: float = 20.0) -> grpc.StatusCode:
        """The status that the method answers to these messages.

        With the blocking API: grpc.aio reports an answer that is given in mid-stream as an INTERNAL of its own.
        """
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._callers, self._call, method, list(requests), seconds)

    def _call(self, method: str, requests: list[bytes], seconds: float) -> grpc.StatusCode:
        channel = self._channel(method)
        try:
            if method in CALLS:
                channel.unary_unary(method)(requests[0], timeout=seconds)
            elif method in UPLOADS:
                channel.stream_unary(method)(iter(requests), timeout=seconds)
            elif method.endswith("Exchange"):
                list(channel.stream_stream(method)(iter(requests), timeout=seconds))
            else:
                list(channel.unary_stream(method)(requests[0], timeout=seconds))
        except grpc.RpcError as error:
            return error.code()
        return grpc.StatusCode.OK

    def _channel(self, method: str) -> grpc.Channel:
        service = method.split("/")[1].rsplit(".", 1)[-1]
        caller = "forwarder" if method in FORWARDED else "party-1" if method in RELAYED else CALLER[service]
        with self._opening:
            if (service, caller) not in self._channels:
                folder = self.material.member if caller == "participant" else self.material.folder / caller
                tls = TlsFiles(folder / "tls.crt", folder / "tls.key", folder / "ca.crt")
                coordinator, party = Identity("demo", "coordinator", "main"), Identity("demo", "party", "0")
                host = (coordinator if service == "Coordinator" else party).host
                channel = grpc.secure_channel(
                    f"127.0.0.1:{self.ports[service]}",
                    tls.channel_credentials(),
                    options=[("grpc.ssl_target_name_override", host)],
                )
                self._channels[service, caller] = grpc.intercept_channel(channel, MetadataInterceptor())
            return self._channels[service, caller]

    def close(self) -> None:
        for channel in self._channels.values():
            channel.close()
        self._callers.shutdown()


@asynccontextmanager
async def serving(material: Material, data: Path, limits: ServerLimits = LIMITS) -> AsyncIterator[Served]:
    """All services, with an open round of the task; its end closes them."""
    changes = {"listen": "127.0.0.1:0", "data": data / "party", "probes": ProbesTable(), "limits": limits}
    party = load_party(material.folder / "party-0" / "party.toml").model_copy(update=changes)
    async with AsyncExitStack() as stack:
        ports = {"Coordinator": await _coordinator(material, data, limits, stack)}
        bound = await stack.enter_async_context(running(party, Nobody()))
        ports["Party"] = ports["PartyControl"] = ports["Info"] = bound.listen
        ports["Peer"] = await _peer(party, stack)
        served = Served(material, ports, party)
        stack.push_async_callback(asyncio.to_thread, served.close)
        await served.call(
            "/triskele.v1.PartyControl/OpenRound",
            [b"\n" + _varint(len(SPEC.canonical())) + SPEC.canonical() + b"\x10" + _varint(ROUND)],
        )
        yield served


async def _coordinator(material: Material, data: Path, limits: ServerLimits, stack: AsyncExitStack) -> int:
    config = load_coordinator(material.folder / "coordinator" / "coordinator.toml")
    (task,) = load_tasks(config.tasks)
    (data / "coordinator").mkdir()
    store = Store(f"sqlite:///{data / 'coordinator' / 'coordinator.db'}")
    stack.callback(store.close)
    store.put_task(task.spec, 1)
    store.open_round(RoundId(task.spec.digest, ROUND), terms_of(task), 0.0)
    changes = RoundChanges()
    service = CoordinatorService(
        store=store,
        log=Log(store, "demo"),
        files=ResultFiles(data / "coordinator" / "results"),
        changes=changes,
        served=frozenset([task.spec.digest]),
        party_addresses={party: f"127.0.0.1:{7000 + party}" for party in PARTIES},
        check_wish=wishes_certified_by(material.authority, "demo"),
    )
    server = build_server(config.tls.files, "demo", limits)
    coordinator_pb2_grpc.add_CoordinatorServicer_to_server(service, server)
    return await _started(server, config.tls.files, stack)


async def _peer(party: PartyConfig, stack: AsyncExitStack) -> int:
    hub = PeerHub(party)
    stack.push_async_callback(hub.close)
    server = build_server(party.tls.files, "demo", party.limits)
    peer_pb2_grpc.add_PeerServicer_to_server(hub, server)
    return await _started(server, party.tls.files, stack)


async def _started(server: grpc.aio.Server, tls: TlsFiles, stack: AsyncExitStack) -> int:
    port = bind(server, "127.0.0.1:0", tls)
    await server.start()
    stack.push_async_callback(server.stop, None)
    return port


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])
