"""The coordinator as a process: configuration in, three ports and one runner per task, until SIGTERM."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from contextlib import closing
from functools import partial
from typing import NamedTuple

import structlog
from cryptography import x509

from triskele.errors import ConfigurationError, InvalidTask
from triskele.ids import PARTIES, PartyIndex, TaskName
from triskele.task import TaskSpec
from triskele.tracing import TRACES
from triskele.unusable import UNUSABLE_CERTIFICATE
from triskele_proto.v1 import coordinator_pb2_grpc, info_pb2_grpc
from triskele_server import logs
from triskele_server.config import CoordinatorConfig, ScheduledTask, load_tasks, party_identity
from triskele_server.coordinator.changes import RoundChanges
from triskele_server.coordinator.claim import Claim, claimed
from triskele_server.coordinator.cosigning import keep_cosigned
from triskele_server.coordinator.log import Log
from triskele_server.coordinator.parties import Pace, Parties
from triskele_server.coordinator.party_link import PartyLink
from triskele_server.coordinator.result_files import ResultFiles
from triskele_server.coordinator.rounds import RoundId, Terms
from triskele_server.coordinator.runner import TaskRunner, close_ended_rounds, outlasting_the_store
from triskele_server.coordinator.service import CoordinatorService, wishes_certified_by
from triskele_server.coordinator.store import Store
from triskele_server.hardening import harden
from triskele_server.memory import keep_freed_pages, started
from triskele_server.metrics.coordinator import TASKS_RUNNING
from triskele_server.metrics.member import MemberCollector, shown
from triskele_server.rpc.channel import open_channel
from triskele_server.rpc.health import start_probes
from triskele_server.rpc.info import InfoService
from triskele_server.rpc.server import bind, build_server, stop_server, until_stop_signal

_log = structlog.get_logger(__name__)


class _Kept(NamedTuple):
    """What all tasks share."""

    store: Store
    files: ResultFiles
    changes: RoundChanges
    log: Log


async def serve(config: CoordinatorConfig) -> None:
    """Run the coordinator until SIGTERM or SIGINT.

    Raises ConfigurationError if a file, a task, the database or a port cannot be used, Unavailable if the claim to the
    database is lost: another coordinator may have taken over.
    """
    logs.configure("coordinator")
    TRACES.configure("coordinator")
    harden()
    keep_freed_pages()
    tasks = load_tasks(config.tasks)
    check_rules(tasks)
    config.data.mkdir(mode=0o700, parents=True, exist_ok=True)
    with claimed(config.database) as claim, closing(Store(config.database)) as store:
        check_unchanged(store.in_progress(), tasks)
        for task in tasks:
            store.put_task(task.spec, task.schedule.rounds)
        await _serve(config, tasks, store, claim)
        claim.check()


async def _serve(config: CoordinatorConfig, tasks: Sequence[ScheduledTask], store: Store, claim: Claim) -> None:
    files, changes, log = ResultFiles(config.data / "results"), RoundChanges(), Log(store, config.federation)
    service = CoordinatorService(
        store=store,
        log=log,
        files=files,
        changes=changes,
        served=frozenset(task.spec.digest for task in tasks),
        party_addresses=config.party_addresses,
        check_wish=wishes_certified_by(_authority(config), config.federation),
    )
    server = build_server(config.tls.files, config.federation, config.limits)
    coordinator_pb2_grpc.add_CoordinatorServicer_to_server(service, server)
    info_pb2_grpc.add_InfoServicer_to_server(InfoService(), server)
    probes = await start_probes(
        host=config.probes.host, health_port=config.probes.health_port, metrics_port=config.probes.metrics_port
    )
    try:
        port = bind(server, config.listen, config.tls.files)
        await server.start()
        started()
        await probes.ready()
        _log.info("coordinator_ready", listen=config.listen, port=port, tasks=[t.spec.name for t in tasks])
        with shown(_collector(config)):
            await _run_all(config, tasks, _Kept(store, files, changes, log), claim)
    finally:
        await probes.not_ready()
        changes.stop()
        await stop_server(server)
        await probes.stop()
        _log.info("coordinator_stopped")


async def _run_all(config: CoordinatorConfig, tasks: Sequence[ScheduledTask], kept: _Kept, claim: Claim) -> None:
    """Until SIGTERM or SIGINT, or until the claim is lost. A runner that breaks ends the process, visibly."""
    async with asyncio.TaskGroup() as group:
        running = [group.create_task(_run(config, task, kept)) for task in tasks]
        running += [group.create_task(_close(config, spec, kept)) for spec in _without_file(kept.store, tasks)]
        running.append(group.create_task(_cosign(config, kept.log)))
        await _until_stopped(claim)
        for each in running:
            each.cancel()


async def _until_stopped(claim: Claim) -> None:
    """Until a signal to stop, or until the database may be another coordinator's."""
    ends = [asyncio.create_task(until_stop_signal()), asyncio.create_task(claim.until_lost())]
    try:
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for each in ends:
            each.cancel()
        await asyncio.gather(*ends, return_exceptions=True)


def _collector(config: CoordinatorConfig) -> MemberCollector:
    local = None if config.database_url else config.data / "coordinator.db"
    results = ("triskele_coordinator_results_bytes", "Bytes of released aggregates", config.data / "results")
    return MemberCollector(config.identity, config.tls.files, config.data, local, (results,))


async def _run(config: CoordinatorConfig, task: ScheduledTask, kept: _Kept) -> None:
    parties = _parties(config)
    runner = TaskRunner(
        task.spec,
        terms_of(task),
        store=kept.store,
        files=kept.files,
        parties=parties,
        changes=kept.changes,
        log=kept.log,
        pace=Pace(),
    )
    try:
        with TASKS_RUNNING.track_inprogress():
            await runner.run(task.schedule.rounds)
        _log.info("task_finished", task=task.spec.name)
    finally:
        await parties.close()


async def _close(config: CoordinatorConfig, spec: TaskSpec, kept: _Kept) -> None:
    parties = _parties(config)
    close = partial(
        close_ended_rounds, spec, store=kept.store, parties=parties, log=kept.log, changes=kept.changes, pace=Pace()
    )
    try:
        await outlasting_the_store(close)
    finally:
        await parties.close()


async def _cosign(config: CoordinatorConfig, log: Log) -> None:
    parties = _parties(config)
    try:
        await outlasting_the_store(partial(keep_cosigned, log, parties, Pace()))
    finally:
        await parties.close()


def _authority(config: CoordinatorConfig) -> x509.Certificate:
    path = config.tls.authority
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, *UNUSABLE_CERTIFICATE) as error:
        raise ConfigurationError(f"tls.authority: {path} cannot be used as a certificate") from error


def _parties(config: CoordinatorConfig) -> Parties:
    def link(party: PartyIndex) -> PartyLink:
        identity = party_identity(config.federation, party)
        return PartyLink(party, partial(open_channel, config.parties[party], identity, config.tls.files))

    return Parties([link(party) for party in PARTIES])


def _without_file(store: Store, tasks: Sequence[ScheduledTask]) -> list[TaskSpec]:
    """Tasks of earlier days: nothing of them runs any more, but a party may still have to hear of their last end."""
    present = {task.spec.digest for task in tasks}
    return [stored.spec for stored in store.tasks() if stored.spec.digest not in present]


def terms_of(task: ScheduledTask) -> Terms:
    """The terms under which the task's next round is opened."""
    schedule, spec = task.schedule, task.spec
    return Terms(
        schedule.quorum, schedule.deadline_seconds, schedule.grace_seconds, spec.min_accepted, spec.max_participants
    )


def check_rules(tasks: Iterable[ScheduledTask]) -> None:
    """Raise ConfigurationError unless every task's rule exists and takes the task's options."""
    from triskele_server.rules import check_task  # noqa: PLC0415  only a starting coordinator needs the rules

    for task in tasks:
        try:
            check_task(task.spec)
        except InvalidTask as error:
            raise ConfigurationError(f"task {task.spec.name!r} cannot be run: {error}") from error


def check_unchanged(in_progress: Iterable[tuple[TaskName, RoundId]], tasks: Iterable[ScheduledTask]) -> None:
    """Raise ConfigurationError if a task with a round in progress has another digest now, or no file any more.

    The schedule is not part of the digest and may change at any time.
    """
    digests = {task.spec.name: task.spec.digest for task in tasks}
    for name, id_ in in_progress:
        if digests.get(name) != id_.task:
            what = "the file of task {!r} has changed" if name in digests else "there is no file of task {!r} any more"
            raise ConfigurationError(
                f"{what.format(name)}, but its round {id_.number} is in progress: put the earlier file back and set "
                f"rounds = {id_.number} in its [schedule], let that round end, then change it; or give the new task "
                "another name and keep the earlier file too"
            )
