"""A SuperLink and SuperNodes as processes, as Flower deploys them, with a recorder on the wire between them.

Plain HTTP (`--insecure`), so that what crosses the wire can be searched; Flower's own TLS would hide it from us only.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

START_SECONDS = 240.0

# Flower gives every process 30 s from its start to its first sign of life, which eight at once do not keep on two
# cores that other tests use too. Python imports this file by itself wherever it is on the path.
PATIENCE = """
try:
    import flwr.common.constant as constant
except ModuleNotFoundError:
    pass
else:
    constant.HEARTBEAT_DEFAULT_INTERVAL = 300
"""


class Recorder:
    """A TCP proxy that keeps every byte: `up` to the SuperLink, `down` from it."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port: int = self._listener.getsockname()[1]
        self._lock = threading.Lock()
        self._kept: dict[str, list[bytes]] = {"up": [], "down": []}
        self._threads: list[threading.Thread] = []
        self._start(self._accept)

    def close(self) -> None:
        """Take no further connection, and wait for those there are; their processes have ended."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # ends the wait for a connection
        for thread in self._threads:
            thread.join(10)
        self._listener.close()

    def bytes_of(self, direction: str) -> bytes:
        """What went in one direction, connection by connection in the order of arrival."""
        with self._lock:
            return b"".join(self._kept[direction])

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                self._start(self._relay, near)

    def _relay(self, near: socket.socket) -> None:
        with near, contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self._target)) as far:
            down = threading.Thread(target=self._pump, args=(far, near, "down"))
            down.start()
            self._pump(near, far, "up")
            down.join()

    def _pump(self, source: socket.socket, sink: socket.socket, direction: str) -> None:
        whole = bytearray()
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                whole += data
                sink.sendall(data)
        with self._lock:
            self._kept[direction].append(bytes(whole))
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _start(self, target: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@dataclass(frozen=True)
class DeployedRun:
    """What one `flwr run` left: the log that the user sees, the wire, and the logs of the processes."""

    log: str
    up: bytes
    down: bytes
    kept: bytes  # logs of the SuperLink and the SuperNodes


@dataclass
class Deployment:
    """One SuperLink and `nodes` SuperNodes; `run` submits an app to them and waits for its end."""

    flower: Path  # the folder of Flower's commands
    out: Path
    nodes: int
    node_config: str = ""  # more of every SuperNode's --node-config
    _processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def environment(self) -> Mapping[str, str]:
        # Nothing is told to Flower's makers, and nothing of this user's own Flower is touched.
        path = os.pathsep.join([str(self.flower), os.environ["PATH"]])
        own = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_HOME": str(self.out), "OMP_NUM_THREADS": "1", "PATH": path}
        return {**os.environ, **own, "PYTHONPATH": str(self.out / "patience")}

    @contextlib.contextmanager
    def running(self) -> Iterator[Deployment]:
        (self.out / "patience").mkdir(parents=True)
        (self.out / "patience" / "sitecustomize.py").write_text(PATIENCE, encoding="utf-8")
        self._port = free_port()
        link = ["flower-superlink", "--insecure", "--disable-runtime-dependency-installation"]
        self._start("superlink", *link, "--port", str(self._port))
        self._recorder = Recorder(self._port)
        (self.out / "config.toml").write_text(
            f'[superlink]\ndefault = "here"\n\n[superlink.here]\naddress = "127.0.0.1:{self._port}"\ninsecure = true\n',
            encoding="utf-8",
        )
        try:
            self._wait_listening(self._port)
            for node in range(self.nodes):
                config = f"partition-id={node} num-partitions={self.nodes} {self.node_config}"
                link = ["--insecure", "--superlink", f"127.0.0.1:{self._recorder.port}", "--port", str(free_port())]
                self._start(f"supernode-{node}", "flower-supernode", *link, "--node-config", config)
            yield self
        finally:
            self._stop()
            self._recorder.close()

    def run(self, app: Path, config: Mapping[str, object], *, timeout: float = 800) -> str:
        """Submit the app and wait for its end; the run's log, as its user sees it.

        `flwr run --stream` returns early on a busy machine, so its end is asked for.
        """
        given = " ".join(f"{key}={json.dumps(value)}" for key, value in config.items())
        submitted = self._flwr("run", str(app), "here", "--run-config", given)
        number = re.search(r"Successfully started run (\d+)", submitted)
        assert number is not None, submitted
        until = time.monotonic() + timeout
        while (status := self._status(number[1])) is None:
            assert time.monotonic() < until, "the run does not end"
            time.sleep(3)
        log = self._flwr("log", number[1], "here", "--show")
        assert status == "finished:completed", (status, log)
        return log

    def _status(self, number: str) -> str | None:
        """How the run ended, None while it has not."""
        listed = json.loads(self._flwr("ls", "here", "--run-id", number, "--format", "json"))
        status = str(listed["runs"][0]["status"])
        return status if status.startswith("finished") else None

    def _flwr(self, *arguments: str) -> str:
        done = subprocess.run(
            [self.flower / "flwr", *arguments], env=self.environment, cwd=self.out, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, timeout=120, check=False, text=True, encoding="utf-8", errors="replace",
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-4000:]
        return done.stdout

    def found(self, log: str) -> DeployedRun:
        """What is known when the processes have ended."""
        kept = b"".join(p.read_bytes() for p in self.out.iterdir() if p.is_file())
        return DeployedRun(log, self._recorder.bytes_of("up"), self._recorder.bytes_of("down"), kept)

    def _start(self, name: str, command: str, *arguments: str) -> None:
        with (self.out / f"{name}.log").open("wb") as log:
            self._processes.append(
                subprocess.Popen(
                    [self.flower / command, *arguments], env=self.environment, cwd=self.out, stdout=log, stderr=log
                )
            )

    def _stop(self) -> None:
        """SuperNodes first; one that does not end in time is killed, and with it what it started ends itself."""
        until = time.monotonic() + 30
        for process in reversed(self._processes):
            process.terminate()
        for process in self._processes:
            try:
                process.wait(max(0.1, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _wait_listening(self, port: int) -> None:
        until = time.monotonic() + START_SECONDS
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                return
            assert self._processes[0].poll() is None, (self.out / "superlink.log").read_text("utf-8")
            assert time.monotonic() < until, "the SuperLink does not listen"
            time.sleep(0.2)
