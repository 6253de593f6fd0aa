"""What runs inside a party's worker process: the Peer server on an event loop, and one thread per round."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import signal
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path

import grpc
import structlog
import torch
from prometheus_client import Metric

from triskele.errors import ConfigurationError, PartyFault, PeerLost, RoundFailed
from triskele.ids import PartyIndex, ShareIndex, held_shares
from triskele.sharing import Seed, ShareContext
from triskele.task import TaskSpec
from triskele.tracing import TRACES, RoundTrace
from triskele_proto.v1 import info_pb2_grpc, peer_pb2_grpc
from triskele_server import logs
from triskele_server.at_rest import ShareVault, StoreDamaged
from triskele_server.config import PartyConfig
from triskele_server.hardening import harden
from triskele_server.linear.shares import FileShare, HeldShare, SeedShare, SharePair
from triskele_server.memory import give_freed_pages_back, keep_freed_pages, started
from triskele_server.metrics.exposition import worker_counts
from triskele_server.metrics.mpc import StepMeter
from triskele_server.party.checkpoint import FileCheckpoints
from triskele_server.party.job import (
    PEER_LOST,
    Abandon,
    Counted,
    Ended,
    HeldSubmission,
    Reached,
    RoundJob,
    RoundOutcome,
    Started,
)
from triskele_server.party.release_files import read_bound, read_previous
from triskele_server.party.round import RoundInput, SealedSubmission, run_round
from triskele_server.release.output_file import write_output
from triskele_server.round_state import RoundState
from triskele_server.rpc.info import InfoService
from triskele_server.rpc.peer import GrpcTransport, PeerHub
from triskele_server.rpc.server import bind, build_server

COUNT_SECONDS = 1.0  # between two reports of the worker's metrics
BIND_SECONDS = 10.0  # a worker of a party that was just killed may hold the port for a moment

_PHASES = {"check": RoundState.CHECKED, "filter": RoundState.FILTERED}  # COMBINED: once the words are on disk

_log = structlog.get_logger(__name__)


def main(config: PartyConfig, pipe: Connection, link_delay: float = 0.0) -> None:
    """Serve Peer and compute the jobs that come down the pipe, until it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides when this process ends
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    logs.configure(f"party-{config.index}-mpc")
    TRACES.configure(f"party-{config.index}-mpc")
    harden()
    keep_freed_pages()
    torch.set_num_threads(1)  # more threads per party only get in the other parties' way
    child = WorkerProcess(config, pipe, link_delay)
    threading.Thread(target=lambda: asyncio.run(child.serve()), daemon=True).start()
    with contextlib.suppress(EOFError, OSError):
        while (request := pipe.recv()) is not None:
            if isinstance(request, Abandon):
                child.abandon(request.job)
            else:
                threading.Thread(target=child.run, args=request, daemon=True).start()
    TRACES.flush()
    os._exit(0)  # threads in the middle of a computation are not waited for: the parent has given the round up


class WorkerProcess:
    """One event loop for the peer streams, one thread per job."""

    def __init__(self, config: PartyConfig, pipe: Connection, link_delay: float = 0.0) -> None:
        self._config = config
        self._link_delay = link_delay
        self._pipe = pipe
        self._sending = threading.Lock()
        self._vault = ShareVault.from_environment()
        self._transports: dict[int, GrpcTransport] = {}

    def _tell(self, message: Started | Reached | Ended | Counted) -> None:
        with self._sending, contextlib.suppress(OSError):  # the parent is gone: the main thread ends this process
            self._pipe.send(message)

    async def serve(self) -> None:
        """Serve Peer until the process ends; the parent hears whether that worked."""
        try:
            self._hub, server = await self._listening()
        except ConfigurationError as error:
            self._tell(Started(str(error)))
            return
        started()
        self._tell(Started())
        told: tuple[Metric, ...] = ()
        while await server.wait_for_termination(COUNT_SECONDS):  # what is counted between steps, and after the last
            if (counts := worker_counts()) != told:
                self._tell(Counted(counts))
                told = counts

    async def _listening(self) -> tuple[PeerHub, grpc.aio.Server]:
        hub = PeerHub(self._config, self._link_delay)
        tls = self._config.tls.files
        server = build_server(tls, self._config.federation, self._config.limits)
        peer_pb2_grpc.add_PeerServicer_to_server(hub, server)
        info_pb2_grpc.add_InfoServicer_to_server(InfoService(self._config.policy.model_dump(mode="json")), server)
        until = time.monotonic() + BIND_SECONDS
        while True:
            try:
                bind(server, self._config.peer_listen, tls)
                break
            except ConfigurationError:
                if time.monotonic() > until:
                    raise
                await asyncio.sleep(0.1)
        await server.start()
        return hub, server

    def run(self, number: int, job: RoundJob, place: str = "") -> None:
        """Run one job to its end and tell the parent; nothing escapes. `place`: the parent process's, in the trace."""
        task = hashlib.sha256(job.task).digest()
        structlog.contextvars.bind_contextvars(task=task[:8].hex(), round=job.round, attempt=job.attempt)
        try:
            with TRACES.round("compute", RoundTrace(task, job.round), place):
                outcome = self._compute(number, job)
        except RoundFailed as error:
            self._tell(Ended(number, None, (error.reason, error.who, error.detail)))
        except PeerLost as error:
            self._tell(Ended(number, None, (PEER_LOST, f"party:{self._config.index}", str(error))))
        except StoreDamaged as error:
            self._tell(Ended(number, None, ("store_damaged", f"party:{self._config.index}", str(error))))
        except PartyFault as error:
            who = f"party:{error.party}" if error.party is not None else "parties"
            self._tell(Ended(number, None, ("party_fault", who, str(error))))
        except Exception as error:  # noqa: BLE001 - whatever it is, the round must end; its text may hold data
            _log.error("round_broke", **logs.describe(error))
            self._tell(Ended(number, None, ("internal_error", f"party:{self._config.index}", type(error).__name__)))
        else:
            self._tell(Ended(number, outcome))

    def abandon(self, number: int) -> None:
        """Make a job end that the parent has given up."""
        transport = self._transports.get(number)
        if transport is not None:
            transport.abandon()

    def _join(self, session: bytes) -> GrpcTransport:
        """This party's end of a session, from the thread that computes."""
        return asyncio.run_coroutine_threadsafe(self._hub.join(session), self._hub.loop).result()

    def _compute(self, number: int, job: RoundJob) -> RoundOutcome:
        spec = TaskSpec.from_canonical(job.task)
        submissions = [_mapped(spec, self._config.index, job, s, self._vault) for s in job.submissions]
        previous = None
        if job.previous is not None:
            previous = read_previous(job.previous, spec.digest, spec.dimension, self._vault)
        bound = None if job.clip_bound is None else read_bound(job.clip_bound, spec.digest)
        checkpoints = FileCheckpoints(job.output.parent, self._vault)
        given = RoundInput(
            spec, job.round, job.attempt, submissions, previous, bound, job.coin_key, checkpoints, job.rounds_spent
        )
        session = hashlib.sha256(b"triskele/v1/session" + given.context).digest()
        transport = self._join(session)
        self._transports[number] = transport

        meter, steps = StepMeter(), TRACES.steps()

        def on_step(step: str) -> None:
            give_freed_pages_back()
            traffic = transport.traffic
            _log.info("step", step=step, rounds=traffic.rounds, bytes_sent=traffic.bytes_sent)
            meter.ended(step, traffic.rounds, traffic.bytes_sent)
            steps.ended(step, rounds=traffic.rounds, bytes_sent=traffic.bytes_sent)
            self._tell(Counted(worker_counts()))
            if step in _PHASES:
                self._tell(Reached(number, _PHASES[step]))

        try:
            output = run_round(given, transport, on_step)
        finally:
            del self._transports[number]
            transport.close()
        digest = write_output(job.output, output.words)
        give_freed_pages_back()
        self._tell(Reached(number, RoundState.COMBINED))
        return RoundOutcome(
            digest,
            output.weight_total,
            output.coefficient_bits,
            tuple(output.refused.items()),
            output.accepted,
            tuple(str(o) for o in output.ledger.openings),
            output.attested,
            job.attempt,
            output.mask_keys,
            masked=spec.masked,
            clip_bound=output.clip_bound,
        )


def _mapped(
    spec: TaskSpec, party: PartyIndex, job: RoundJob, held: HeldSubmission, vault: ShareVault | None
) -> SealedSubmission:
    context = ShareContext(spec.digest, job.round, held.participant)
    if tuple(s.index for s in held.shares) != held_shares(party):
        raise PartyFault(f"the store holds other shares of slot {held.slot} than party {party}'s", party)

    def share(index: ShareIndex, path: Path, *, seed: bool) -> HeldShare:
        if seed:
            content = path.read_bytes()
            plain = content if vault is None else vault.open(context.info(index), content)
            return SeedShare(Seed(plain), context, index, spec.ring)
        if vault is None:
            return FileShare.of(path, spec.length, spec.ring)
        return vault.words(path, context.info(index), spec.length, spec.ring)

    first, second = (share(s.index, s.path, seed=s.seed) for s in held.shares)
    return SealedSubmission(held.slot, held.participant, held.manifest_digest, SharePair(first, second))
