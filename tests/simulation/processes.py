"""The processes of the servers: product code from the store to the protocol, in the name of incarnations.

A party is what `party.process.behind` puts behind a server, with the real worker code on both ends of an in-memory pipe
and the real `PeerHub`. The coordinator is the runner, the service and the store.
"""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from triskele.ids import PARTIES, PartyIndex
from triskele_proto.v1 import coordinator_pb2_grpc, peer_pb2_grpc
from triskele_server.config import CoordinatorConfig, PartyConfig, ScheduledTask, party_identity
from triskele_server.coordinator.changes import RoundChanges
from triskele_server.coordinator.log import Log
from triskele_server.coordinator.parties import Pace, Parties
from triskele_server.coordinator.party_link import PartyLink
from triskele_server.coordinator.process import terms_of
from triskele_server.coordinator.result_files import ResultFiles
from triskele_server.coordinator.rounds import RoundId
from triskele_server.coordinator.runner import TaskRunner
from triskele_server.coordinator.service import CoordinatorService
from triskele_server.coordinator.store import Store
from triskele_server.party.job import Abandon, Started
from triskele_server.party.process import behind
from triskele_server.party.worker import MpcWorker
from triskele_server.party.worker_process import WorkerProcess
from triskele_server.rpc.peer import GrpcTransport, PeerHub

from .network import Channel, Network, Server
from .virtual_time import Incarnation, WaitingQueue, blocking, context_of, task_of, wait

WORKER_START_SECONDS = 0.5
PACE = Pace(poll_seconds=0.5, slowest_poll_seconds=15.0, stall_seconds=400.0, pause_seconds=1.0)


class Hub(PeerHub):
    """Dials through the network in memory."""

    def __init__(self, config: PartyConfig, network: Network) -> None:
        super().__init__(config)
        self._network = network

    async def join(self, session: bytes) -> GrpcTransport:
        """As the real one; who waits for a frame waits in virtual time."""
        transport = await super().join(session)
        for link in transport._links.values():
            link.incoming = WaitingQueue()  # type: ignore[assignment]  # what of a SimpleQueue is used
        return transport

    def _channel_to_next(self) -> Any:
        address = self._config.peers[self._next]
        return Channel(
            self._network, f"party-{self._next}", address, party_identity(self._config.federation, self.party)
        )


class Worker(WorkerProcess):
    """The child's end, computing in a greenlet."""

    def __init__(self, config: PartyConfig, pipe: Any, network: Network, watch: Any) -> None:
        super().__init__(config, pipe)
        self._hub = Hub(config, network)
        self._watch = watch

    def _join(self, session: bytes) -> GrpcTransport:
        transport = wait(self._hub.join(session))
        self._watch.joined(session, transport)
        return transport


@dataclass
class _Pipe:
    """Both ends of the pipe between a party and its worker."""

    parent: Party
    life: Incarnation
    child: Worker | None = None

    def send(self, request: Any) -> None:
        """Parent to child."""
        if not self.life.alive:
            raise BrokenPipeError
        context_of(self.life).run(self._take, request)

    def _take(self, request: Any) -> None:
        assert self.child is not None
        if isinstance(request, Abandon):
            self.child.abandon(request.job)
        elif request is not None:
            self.parent.watch.began(self.parent.config.index, request[1])
            blocking(self.child.run, *request)


@dataclass
class _Answers:
    """Child to parent."""

    parent: Party
    worker: SimulatedMpcWorker

    def send(self, message: Any) -> None:
        loop = asyncio.get_running_loop()
        loop.call_soon(self.worker._heard, message, context=context_of(self.parent.life))


class SimulatedMpcWorker(MpcWorker):
    """The parent's end, whose child is not spawned but lives here."""

    party: Party

    async def start(self) -> None:
        self._started = asyncio.get_running_loop().create_future()
        await asyncio.sleep(WORKER_START_SECONDS)
        party = self.party
        life = party.worker_life = party.new_life()
        pipe = _Pipe(party, life)
        self._pipe = pipe  # type: ignore[assignment]  # what of a Connection the parent uses

        async def child() -> None:
            pipe.child = Worker(party.config, _Answers(party, self), party.network, party.watch)
            server = Server(party.network, party.host, life)
            peer_pb2_grpc.add_PeerServicer_to_server(pipe.child._hub, server)
            party.network.serve(party.config.peer_listen, server)

        await task_of(life, child())
        self._started.set_result(Started())


class Process:
    """One host's process: started, killed, started again."""

    host: str

    def __init__(self, network: Network) -> None:
        self.network = network
        self.life = Incarnation(self.host, 0, alive=False)
        self.lives: list[Incarnation] = []
        self.tasks: list[asyncio.Task[Any]] = []  # kept: what nobody refers to would be unwound
        self._retired = False
        self.broke: list[str] = []  # errors that ended the process

    def new_life(self) -> Incarnation:
        """Another process on this host."""
        life = Incarnation(self.host, len(self.lives) + 1)
        self.lives.append(life)
        return life

    def start(self) -> None:
        """Start the process; it serves a moment later."""
        if not (self.life.alive or self._retired):
            self.life = self.new_life()
            self.tasks.append(task_of(self.life, self._guarded(self.life)))

    async def _guarded(self, life: Incarnation) -> None:
        try:
            await self.main()
        except Exception as error:  # noqa: BLE001  as an escaped exception ends a process
            self.broke.append(repr(error))
            self.network.later(0.0, self.kill)
            self.network.later(5.0, self.start)

    async def main(self) -> None:
        raise NotImplementedError

    def kill(self) -> None:
        """Kill it and everything on its host."""
        for life in self.lives:
            self._kill(life)

    def retire(self) -> None:
        """Kill it and never start it again."""
        self._retired = True
        self.kill()

    def _kill(self, life: Incarnation) -> None:
        from .disk import let_go

        if life.alive:
            life.alive = False
            self.network.died(life)
            self.network.later(0.0, let_go, life)


class Party(Process):
    """One party: service process and worker."""

    def __init__(self, network: Network, config: PartyConfig, watch: Any, now: Callable[[], datetime.datetime]) -> None:
        self.host = f"party-{config.index}"
        super().__init__(network)
        self.config = config
        self.watch = watch
        self.worker_life: Incarnation | None = None
        self._now = now
        self._worker: SimulatedMpcWorker | None = None

    async def main(self) -> None:
        self._worker = worker = SimulatedMpcWorker(self.config)
        worker.party = self
        await worker.start()
        server: Any = Server(self.network, self.host, self.life)
        async with behind(server, self.config, worker, self._now, self._dial):
            self.network.serve(self.config.listen, server)
            await asyncio.Event().wait()

    def _dial(self, config: PartyConfig) -> Any:
        """To the party that shares are relayed to."""
        target = f"party-{(config.index + 2) % 3}"
        identity = party_identity(config.federation, config.index)
        return Channel(self.network, target, config.relay_to or "", identity)

    def kill_worker(self) -> None:
        """The worker dies alone; its parent sees the end of the pipe."""
        if self.worker_life is not None and self.worker_life.alive and self._worker is not None:
            self._kill(self.worker_life)
            if self.life.alive:
                loop = asyncio.get_running_loop()
                loop.call_soon(self._worker._died, self._worker._pipe, context=context_of(self.life))


class WatchedChanges(RoundChanges):
    """Tells the simulation too, so that it need not look all the time."""

    def __init__(self, news: asyncio.Event) -> None:
        super().__init__()
        self._news = news

    def announce(self, id_: RoundId, *, counts_only: bool = False) -> None:
        super().announce(id_, counts_only=counts_only)
        self._news.set()


class Coordinator(Process):
    """The coordinator with one task."""

    host = "coordinator"

    def __init__(
        self, network: Network, config: CoordinatorConfig, task: ScheduledTask, clock: Callable[[], float]
    ) -> None:
        super().__init__(network)
        self.config = config
        self.task = task
        self.store: Store | None = None
        self.news = asyncio.Event()
        self.changes: RoundChanges = WatchedChanges(self.news)
        self._clock = clock

    def kill(self) -> None:
        super().kill()
        self.store = None

    async def main(self) -> None:
        config, spec = self.config, self.task.spec
        config.data.mkdir(parents=True, exist_ok=True)
        self.changes = WatchedChanges(self.news)
        self.news.set()
        store = self.store = Store(config.database)
        store.put_task(spec, self.task.schedule.rounds)
        files, changes = ResultFiles(config.data / "results"), self.changes
        log = Log(store, config.federation)
        service = CoordinatorService(
            store=store,
            log=log,
            files=files,
            changes=changes,
            served=frozenset((spec.digest,)),
            party_addresses=config.party_addresses,
        )
        server: Any = Server(self.network, self.host, self.life)
        coordinator_pb2_grpc.add_CoordinatorServicer_to_server(service, server)
        self.network.serve(config.listen, server)
        parties = Parties([self._link(party) for party in PARTIES])
        runner = TaskRunner(
            spec,
            terms_of(self.task),
            store=store,
            files=files,
            parties=parties,
            changes=changes,
            log=log,
            clock=self._clock,
            pace=PACE,
        )
        await runner.run(self.task.schedule.rounds)
        await asyncio.Event().wait()

    def _link(self, party: PartyIndex) -> PartyLink:
        address = self.config.parties[party]
        connect: Any = partial(Channel, self.network, f"party-{party}", address, self.config.identity)
        return PartyLink(party, connect)
