"""One run: a federation of real processes, a small round to warm it up, then each scene: in plain, secure, in plain."""

from __future__ import annotations

import multiprocessing
import resource
import tempfile
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import fmean
from typing import Final

from prometheus_client.parser import text_string_to_metric_families

from triskele.errors import PartyFault
from triskele.task import TaskSpec
from triskele_server.benchmark.clients import take_part
from triskele_server.benchmark.plain import FLOAT_BYTES, PlainServer, serve_plain
from triskele_server.benchmark.processes import cpu_seconds, own_peak_megabytes, worker_of
from triskele_server.benchmark.scene import RoundTimes, Scene
from triskele_server.benchmark.steps import STEPS, Step, read_steps
from triskele_server.config import load_coordinator
from triskele_server.local_federation import COORDINATOR, PARTY_NAMES, LocalFederation

WARM_UP: Final = (6, 20_000)  # participants, dimension: kernels are compiled and loaded, pages are touched
LEAST_LIKENESS: Final = 0.8  # the mean of six updates, one of them the opposite: 0.85; more are closer
_RECEIVED: Final = "triskele_grpc_server_received_bytes_total"
_FROM_PARTICIPANTS: Final = frozenset(
    ("/triskele.v1.Party/Upload", "/triskele.v1.Party/UploadStatus", "/triskele.v1.Coordinator/Enrol")
)
_SERVER_SECONDS: Final = 60.0


@dataclass(frozen=True)
class Process:
    """What one process took during a round; its largest size since it began."""

    cpu_seconds: float
    peak_megabytes: float


@dataclass(frozen=True)
class Measured:
    """One round: its times, what each process took, and the bytes that the participants sent, as messages."""

    times: RoundTimes
    processes: dict[str, Process]
    upload_bytes: int

    @property
    def cpu_seconds(self) -> float:
        """Of all processes together."""
        return sum(process.cpu_seconds for process in self.processes.values())


@dataclass(frozen=True)
class Comparison:
    """A scene, measured; `plain` are the plaintext rounds before and after: a machine drifts while it is measured."""

    scene: Scene
    secure: Measured
    plain: tuple[Measured, Measured]
    steps: dict[str, Step]

    @property
    def plain_wall(self) -> float:
        """Seconds, the mean of the plaintext rounds."""
        return fmean(plain.times.wall for plain in self.plain)

    @property
    def plain_cpu_seconds(self) -> float:
        """Processor seconds of all processes, the mean of the plaintext rounds."""
        return fmean(plain.cpu_seconds for plain in self.plain)

    @property
    def ratio(self) -> float:
        """Wall of the secure round by that of the plaintext rounds."""
        return self.secure.times.wall / self.plain_wall

    @property
    def cpu_ratio(self) -> float:
        """Processor seconds of all processes of the secure round by those of the plaintext rounds."""
        return self.secure.cpu_seconds / self.plain_cpu_seconds

    @property
    def phases(self) -> dict[str, float]:
        """Seconds of the secure round by phase, in order; they add up to its wall."""
        times = self.secure.times
        ends = {"upload": times.started + times.upload}
        ends |= {name: self.steps[name].ended for name in STEPS if name in self.steps}
        ends["release"] = times.started + times.wall
        seconds, since = {}, times.started
        for name, end in ends.items():
            seconds[name] = max(0.0, end - since)
            since = max(since, end)
        return seconds


def run(scenes: Sequence[Scene], on_event: Callable[[str], None]) -> list[Comparison]:
    """Measure the scenes, which differ in participants and dimension only, one after the other in one federation.

    `on_event` hears what happens next. Raises PartyFault if a round goes wrong.
    """
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    most = max(scene.participants for scene in scenes)
    first = scenes[0]
    warm_up = Scene(min(WARM_UP[0], most), WARM_UP[1], first.rule, first.decisions, first.ring)
    with tempfile.TemporaryDirectory(prefix="triskele-bench-") as folder:
        on_event("starting a coordinator and three parties")
        federation = LocalFederation.create(
            Path(folder) / "federation",
            participants=most,
            tasks=[scene.task() for scene in {scene.task_name: scene for scene in (warm_up, *scenes)}.values()],
            link_delay=first.link_delay,
        )
        with federation:
            on_event("warming up")
            if warm_up.task_name not in {scene.task_name for scene in scenes}:
                _secure(federation, warm_up)
            return [_compared(federation, scene, on_event) for scene in scenes]


def _compared(federation: LocalFederation, scene: Scene, on_event: Callable[[str], None]) -> Comparison:
    size = f"{scene.participants} participants, {scene.dimension:,} parameters"
    on_event(f"plaintext FedAvg: {size}")
    before = _plain(federation, scene)
    on_event(f"secure round, {scene.rule}: {size}")
    secure, steps = _secure(federation, scene)
    on_event("plaintext FedAvg once more")
    return Comparison(scene, secure, (before, _plain(federation, scene)), steps)


def _secure(federation: LocalFederation, scene: Scene) -> tuple[Measured, dict[str, Step]]:
    logs = {federation.log(name): federation.log(name).stat().st_size for name in PARTY_NAMES}
    measured = secure_round(federation, scene.task().spec, scene.participants)
    return measured, read_steps(logs)


def secure_round(
    federation: LocalFederation, task: TaskSpec, participants: int, *, least_likeness: float = LEAST_LIKENESS
) -> Measured:
    """The task's next round with so many participants; raises PartyFault if its aggregate is not like what was sent."""
    ids = federation.process_ids()
    members = {COORDINATOR: ids[COORDINATOR]}
    for name in PARTY_NAMES:
        members |= {name: ids[name], f"{name} worker": worker_of(ids[name])}
    received = _received(federation)  # which costs the servers a little
    cpu = {name: cpu_seconds(process) for name, process in members.items()}
    paths = list(federation.made.participants.values())[:participants]
    times = take_part(paths, dimension=task.dimension, task=task.name)
    _check_likeness(times, least_likeness)
    processes = {
        name: Process(cpu_seconds(process) - cpu[name], own_peak_megabytes(process))
        for name, process in members.items()
    }
    processes["clients"] = Process(times.client_cpu_seconds, times.client_peak_megabytes)
    return Measured(times, processes, _received(federation) - received)


def _plain(federation: LocalFederation, scene: Scene) -> Measured:
    config = load_coordinator(federation.made.coordinator)
    log = federation.log("plain")
    given = PlainServer(config.tls.files, config.federation, scene.participants, scene.dimension, log)
    paths = list(federation.made.participants.values())[: scene.participants]
    with _plain_server(given) as (process, port, pipe):
        cpu = cpu_seconds(process)
        times = take_part(paths, dimension=scene.dimension, task="", address=f"127.0.0.1:{port}")
        _check_likeness(times, LEAST_LIKENESS)
        server = Process(cpu_seconds(process) - cpu, own_peak_megabytes(process))
        pipe.send(None)
        received = int(_told(pipe))
    clients = Process(times.client_cpu_seconds, times.client_peak_megabytes)
    return Measured(times, {"server": server, "clients": clients}, received)


@contextmanager
def _plain_server(given: PlainServer) -> Iterator[tuple[int, int, Connection]]:
    """Process id and port of a plaintext server, and the pipe to it."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=serve_plain, args=(given, theirs), daemon=True)
    process.start()
    theirs.close()
    try:
        port = int(_told(ours))
        yield process.pid or 0, port, ours
    finally:
        process.join(5)
        if process.is_alive():
            process.kill()
            process.join()


def _told(pipe: Connection) -> float:
    try:
        if pipe.poll(_SERVER_SECONDS):
            return float(pipe.recv())
    except EOFError:
        pass
    raise PartyFault("the plaintext server ended, or told nothing in time")


def _received(federation: LocalFederation) -> int:
    """Bytes that participants have sent to coordinator and parties so far, as these count them."""
    total = 0.0
    for ports in (federation.ports.coordinator, *federation.ports.parties):
        with urllib.request.urlopen(f"http://127.0.0.1:{ports.metrics}/metrics", timeout=10) as reply:
            families = list(text_string_to_metric_families(reply.read().decode()))
        total += sum(
            sample.value
            for family in families
            for sample in family.samples
            if sample.name == _RECEIVED and sample.labels.get("method") in _FROM_PARTICIPANTS
        )
    return int(total)


def _check_likeness(times: RoundTimes, least: float) -> None:
    if times.likeness < least:
        raise PartyFault(
            f"the aggregate is not what was sent: its cosine with the honest direction is {times.likeness}"
        )


def plain_update_bytes(scene: Scene) -> int:
    """Bytes of one update as float32."""
    return FLOAT_BYTES * scene.dimension
