"""The party as a process: store, worker, servers, and their orderly start and end."""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial

import grpc
import structlog
from cryptography import x509

from triskele.errors import ConfigurationError
from triskele.ids import PartyIndex
from triskele.tracing import TRACES
from triskele.unusable import UNUSABLE_CERTIFICATE
from triskele_proto.v1 import control_pb2_grpc, info_pb2_grpc, party_pb2_grpc
from triskele_server import logs
from triskele_server.at_rest import STORE_KEY, ShareVault
from triskele_server.config import PartyConfig, party_identity
from triskele_server.hardening import harden
from triskele_server.memory import keep_freed_pages, started
from triskele_server.metrics.member import MemberCollector, shown
from triskele_server.party.certifier import Certifier, load_certifying_key
from triskele_server.party.control import RoundControl
from triskele_server.party.cosigner import Cosigner
from triskele_server.party.disk_room import DiskRoom
from triskele_server.party.intake import Intake
from triskele_server.party.job import RoundRunner
from triskele_server.party.mask_keys import MaskKeys
from triskele_server.party.relay import Relays
from triskele_server.party.release_files import ReleaseFiles
from triskele_server.party.sealed_intake import SealedIntake, load_sealing_key
from triskele_server.party.service import PartyControlService, PartyService
from triskele_server.party.share_files import ShareFiles
from triskele_server.party.store import PartyStore
from triskele_server.rpc.channel import open_channel
from triskele_server.rpc.deny_list import DenyList
from triskele_server.rpc.health import start_probes
from triskele_server.rpc.info import InfoService
from triskele_server.rpc.server import bind, build_server, stop_server, until_stop_signal

_log = structlog.get_logger(__name__)


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


@dataclass(frozen=True)
class BoundPorts:
    """Where a party listens, after ports 0 were given real numbers."""

    listen: int
    health: int | None
    metrics: int | None


@asynccontextmanager
async def running(config: PartyConfig, runner: RoundRunner) -> AsyncIterator[BoundPorts]:
    """A party that serves participants and its coordinator until the block ends; the caller owns the runner."""
    probes = await start_probes(
        host=config.probes.host, health_port=config.probes.health_port, metrics_port=config.probes.metrics_port
    )
    try:
        server = build_server(config.tls.files, config.federation, config.limits)
        if ShareVault.from_environment() is None:
            _log.warning("shares_not_encrypted", hint=f"set {STORE_KEY} to encrypt shares on this party's disk")
        async with behind(server, config, runner), _shown(config):
            info_pb2_grpc.add_InfoServicer_to_server(InfoService(config.policy.model_dump(mode="json")), server)
            port = bind(server, config.listen, config.tls.files)
            await server.start()
            try:
                await probes.ready()
                _log.info("serving", port=port, health=probes.health_port, metrics=probes.metrics_port)
                yield BoundPorts(port, probes.health_port, probes.metrics_port)
            finally:
                await probes.not_ready()
                await stop_server(server)
    finally:
        await probes.stop()


@asynccontextmanager
async def behind(
    server: grpc.aio.Server,
    config: PartyConfig,
    runner: RoundRunner,
    now: Callable[[], datetime.datetime] = _now,
    dial: Callable[[PartyConfig], grpc.aio.Channel] | None = None,
) -> AsyncIterator[None]:
    """Everything of a party but its sockets: recovered from its disk and added to `server`, which the caller starts.

    The caller stops `server` before the block ends. `now` is what certificates are checked against, `dial`
    gives a channel to the party that this one relays heavy shares to.
    """
    vault = ShareVault.from_environment()
    key = load_certifying_key(config.signing_key)
    store = await asyncio.to_thread(PartyStore, config.data)
    try:
        files = ShareFiles(config.data, vault)
        deny_list = DenyList(config.tls.denied)
        intake = Intake(
            store,
            files,
            party=config.index,
            authority=_authority(config),
            deny_list=deny_list,
            now=now,
            room=DiskRoom(config.data, config.limits),
            relays=config.relay_to is not None,
        )
        other = PartyIndex((config.index + 2) % 3)
        connect = None if config.relay_to is None else partial(dial or _dial_previous, config)
        relays = Relays(store, files, connect, str(other))
        releases = ReleaseFiles(config.data, vault)
        control = RoundControl(
            store=store,
            files=files,
            releases=releases,
            intake=intake,
            runner=runner,
            certifier=Certifier(config.federation, key),
            config=config,
        )
        await control.recover()
        keys = MaskKeys(store, releases, config.index, config.policy)
        service = PartyService(intake, keys, _sealed(config, intake), relays.due, control.announce)
        party_pb2_grpc.add_PartyServicer_to_server(service, server)
        driven = PartyControlService(control, Cosigner(config.data, config.federation, key), config.coordinator)
        control_pb2_grpc.add_PartyControlServicer_to_server(driven, server)
        await relays.start()
        try:
            yield
        finally:
            await relays.stop()
            await control.stop()
    finally:
        await asyncio.to_thread(store.close)


def _dial_previous(config: PartyConfig) -> grpc.aio.Channel:
    """To the party that holds this one's first share too."""
    other = PartyIndex((config.index + 2) % 3)
    return open_channel(config.relay_to or "", party_identity(config.federation, other), config.tls.files)


async def serve(config: PartyConfig, *, link_delay: float = 0.0) -> None:
    """Run a party until SIGTERM or SIGINT. Raises ConfigurationError if it cannot start.

    `link_delay`: seconds that each frame of another party is held back; a benchmark's only, see rpc/peer.py.
    """
    from triskele_server.party.worker import MpcWorker  # noqa: PLC0415  tests of the party's service need no worker

    logs.configure(f"party-{config.index}")
    TRACES.configure(f"party-{config.index}")
    harden()
    keep_freed_pages()
    stop = asyncio.create_task(until_stop_signal())  # from now on: a signal during the start ends it in order
    config.tls.files.server_credentials()  # a file that cannot be read is told before a process is spawned
    worker = MpcWorker(config, link_delay)
    try:
        starting = asyncio.create_task(worker.start())
        await asyncio.wait((starting, stop), return_when=asyncio.FIRST_COMPLETED)
        if stop.done():  # nothing was served yet: the worker is not waited for, it may import for many seconds
            starting.cancel()
            return
        await starting
        async with running(config, worker):
            started()
            await stop
            _log.info("stopping")
    finally:
        stop.cancel()
        await worker.stop()


@asynccontextmanager
async def _shown(config: PartyConfig) -> AsyncIterator[None]:
    shares = ("triskele_party_shares_bytes", "Bytes of shares held for rounds in progress", config.data / "rounds")
    with shown(MemberCollector(config.identity, config.tls.files, config.data, config.data / "party.db", (shares,))):
        yield


def _sealed(config: PartyConfig, intake: Intake) -> SealedIntake | None:
    if config.sealing_key is None:
        return None
    return SealedIntake(intake, load_sealing_key(config.sealing_key), config.federation, config.index)


def _authority(config: PartyConfig) -> x509.Certificate:
    path = config.tls.authority
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, *UNUSABLE_CERTIFICATE) as error:
        raise ConfigurationError(f"tls.authority: {path} cannot be used as a certificate") from error
