"""Three parties' PeerHubs over real gRPC and mutual TLS on loopback, on one event loop in a thread."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, Self, TypeVar

from triskele.ids import PARTIES
from triskele_proto.v1 import peer_pb2_grpc
from triskele_server.config import PartyConfig, load_party
from triskele_server.provision import PortPlan, provision
from triskele_server.rpc.peer import GrpcTransport, PeerHub
from triskele_server.rpc.server import bind, build_server

T = TypeVar("T")


class PeerHubs:
    """The hubs of parties 0, 1, 2 and their servers. Use as a context manager."""

    def __init__(self, folder: Path) -> None:
        self.federation = provision(folder / "federation", participants=["mallory"], ports=PortPlan.free())
        self.directory = self.federation.directory
        self.configs: list[PartyConfig] = [load_party(path) for path in self.federation.parties]
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)

    def run(self, work: Coroutine[Any, Any, T], seconds: float = 20.0) -> T:
        """The result of a coroutine on the hubs' event loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(seconds)

    def __enter__(self) -> Self:
        self._thread.start()
        self.run(self._start())
        return self

    def __exit__(self, *_: object) -> None:
        self.run(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _start(self) -> None:
        self.hubs, self._servers = [], []
        for config in self.configs:
            hub = PeerHub(config)
            server = build_server(config.tls.files, config.federation)
            peer_pb2_grpc.add_PeerServicer_to_server(hub, server)
            bind(server, config.peer_listen, config.tls.files)
            await server.start()
            self.hubs.append(hub)
            self._servers.append(server)

    async def _stop(self) -> None:
        for hub in self.hubs:
            await hub.close()
        for server in self._servers:
            await server.stop(None)
        leftover = asyncio.all_tasks() - {asyncio.current_task()}
        for task in leftover:
            task.cancel()
        await asyncio.gather(*leftover, return_exceptions=True)

    def join(self, session: bytes) -> list[GrpcTransport]:
        """All three ends of a session."""

        async def everybody() -> list[GrpcTransport]:
            return [await self.hubs[party].join(session) for party in PARTIES]

        return self.run(everybody())
