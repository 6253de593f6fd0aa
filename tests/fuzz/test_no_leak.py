"""A canary: markers planted in a real round with failures on the way show up nowhere that they should not."""

from __future__ import annotations

import base64
import contextlib
import os
import signal
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import pytest

from triskele import Conflict, Participant, Round
from triskele.call_metadata import MetadataInterceptor
from triskele.config import ParticipantConfig
from triskele.credentials import Credentials
from triskele.identity import Identity
from triskele.ids import PARTIES, ParticipantId
from triskele.upload import upload_header
from triskele_proto.v1 import party_pb2, party_pb2_grpc, types_pb2
from triskele_server.local_federation import LocalFederation

from .federation import DIMENSION, STORE_KEY_HEX, logs, of_the_servers, ports
from .markers import Marker, found, markers_of, submissions

pytestmark = pytest.mark.timeout(240)


def test_markers_are_found_in_every_form() -> None:
    secret = bytes(range(200, 216))
    marker = Marker("m", secret, ("-1234567890123456789",))
    for shown in (secret, secret.hex(), f"{secret!r}", "x=-1234567890123456789,", secret.hex().upper()):
        text = shown if isinstance(shown, bytes) else shown.encode()
        assert found([marker], b"before" + text + b"after") == ["m"]
    for shift in range(3):
        assert found([marker], base64.b64encode(b"y" * shift + secret + b"zz")) == ["m"]
    assert found([marker], b"nothing of it") == []


def _files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _stored(federation: LocalFederation) -> dict[str, bytes]:
    """Everything on the disks of coordinator and parties: databases, their logs, shares."""
    root = federation.made.directory
    folders = ["coordinator/data", *(f"party-{i}/data" for i in PARTIES)]
    return {f"{folder}/{name}": data for folder in folders for name, data in _files(root / folder).items()}


def _metrics(federation: LocalFederation) -> bytes:
    pages = []
    for speaks, port in ports(federation).values():
        if speaks == "metrics":
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as page:
                pages.append(page.read())
    return b"".join(pages)


def _provoked(
    federation: LocalFederation, party: int, member: str, streams: list[list[party_pb2.UploadRequest]]
) -> str:
    """What a party says to broken upload streams."""
    folder = federation.made.directory / "participants" / member
    pem = {name: (folder / name).read_bytes() for name in ("ca.crt", "tls.key", "tls.crt")}
    credentials = grpc.ssl_channel_credentials(pem["ca.crt"], pem["tls.key"], pem["tls.crt"])
    options = [("grpc.ssl_target_name_override", Identity("demo", "party", str(party)).host)]
    said = []
    with grpc.secure_channel(f"127.0.0.1:{federation.ports.parties[party].listen}", credentials, options) as channel:
        marked = grpc.intercept_channel(channel, MetadataInterceptor())
        for stream in streams:
            with contextlib.suppress(grpc.RpcError):
                try:
                    party_pb2_grpc.PartyStub(marked).Upload(iter(stream), timeout=20)
                except grpc.RpcError as error:
                    said.append(f"{error.code()} {error.details()} {error}")
                    raise
    assert len(said) == len(streams)
    return "".join(said)


def _broken_streams(submission) -> list[list[party_pb2.UploadRequest]]:
    """Uploads that fail at every step: a changed seed, salt, word, offset, and a chunk too many."""
    share = bytes(submission.heavy_share)

    def header(**changes: bytes) -> party_pb2.UploadRequest:
        made = upload_header(submission, PARTIES[0])
        for place in made.shares:
            for name, value in changes.items():
                if getattr(place, name):
                    setattr(place, name, value)
        return party_pb2.UploadRequest(header=made)

    def chunk(offset: int, data: bytes) -> party_pb2.UploadRequest:
        return party_pb2.UploadRequest(chunk=types_pb2.Chunk(offset=offset, data=data))

    right = [header(), chunk(0, share)]
    return [
        [header(seed=submission.sharing.salts[0])],
        [header(salt=submission.sharing.salts[1])],
        [chunk(0, share[:100])],
        [*right[:1], chunk(8, share[8:100])],
        [*right[:1], chunk(0, share[:-8] + share[:8])],  # does not open its commitment: thrown away
        [*right[:1], chunk(0, share), chunk(len(share), share[:8])],
    ]


def test_nothing_secret_shows_in_logs_errors_metrics_databases_and_files(federation: LocalFederation) -> None:
    configs = [ParticipantConfig.load(path) for path in federation.made.participants.values()]
    credentials = [Credentials.load(config) for config in configs]
    members = [Participant.from_config(path) for path in federation.made.participants.values()]
    rows = np.random.default_rng(7).normal(0.01, 0.01, (len(members), DIMENSION))
    rows *= 2.0 / np.linalg.norm(rows, axis=1, keepdims=True)
    said = ""
    try:
        rounds: list[Round] = [next(member.rounds("canary")) for member in members]
        spec, number = rounds[0].task, rounds[0].number
        made = [
            submissions(spec, number, ParticipantId(config.participant), row, weight=17, credentials=keys)
            for config, row, keys in zip(configs, rows, credentials, strict=True)
        ]
        markers = [Marker("store key", bytes.fromhex(STORE_KEY_HEX))]
        for config, row, mine, keys in zip(configs, rows, made, credentials, strict=True):
            markers += markers_of(config.participant, row, mine, keys)
        assert len({m.name for m in markers}) == 1 + len(members) * (3 + 3 + 3 + 3)

        said += _provoked(federation, 0, configs[0].participant, _broken_streams(made[0][0]))
        handles = [r.submit(row, weight=17) for r, row in zip(rounds[:2], rows[:2], strict=True)]
        with pytest.raises(Conflict) as conflict:
            rounds[0].submit(rows[1], weight=18)
        said += str(conflict.value)
        _crash(federation, "party-1")
        at_rest = _stored(federation)
        assert any(name.endswith(".words.enc") for name in at_rest)
        assert {name: found(markers, data) for name, data in at_rest.items() if found(markers, data)} == {}

        handles.append(rounds[2].submit(rows[2], weight=17))
        with ThreadPoolExecutor(3) as pool:
            result, *_ = pool.map(lambda handle: handle.result(timeout=120), handles)
        np.testing.assert_allclose(result, rows.mean(axis=0), atol=2e-5)
    finally:
        for member in members:
            member.close()
    until = time.monotonic() + 20
    while left := [name for name in _stored(federation) if "/rounds/" in name]:  # deleted when the round has ended
        assert time.monotonic() < until, left
        time.sleep(0.1)
    stored = _stored(federation)
    shown = {**stored, "logs": logs(federation).encode(), "errors": said.encode(), "metrics": _metrics(federation)}
    assert b'"level": "debug"' in shown["logs"]
    assert {name: found(markers, data) for name, data in shown.items() if found(markers, data)} == {}
    assert not [path for path in Path.cwd().glob("core*") if path.is_file()]


def _crash(federation: LocalFederation, name: str) -> None:
    """SIGABRT, which would leave a core file; then the process starts again."""
    process = federation._processes.pop(name)
    os.kill(process.pid, signal.SIGABRT)
    assert process.wait(20) == -signal.SIGABRT
    federation._logs.pop(name).close()
    with of_the_servers():
        federation.start(name)
    federation.wait_ready(name)


def test_server_process_leaves_no_core_and_shows_no_text_of_an_exception_that_nobody_caught() -> None:
    script = """
import ctypes, resource, threading
from triskele_server import logs
from triskele_server.hardening import harden
logs.configure("party-0"); harden()
assert resource.getrlimit(resource.RLIMIT_CORE) == (0, 0)
assert ctypes.CDLL(None).prctl(3, 0, 0, 0, 0) == 0, "dumpable"
class Late:
    def __del__(self): raise ValueError("CANARY")
def fail(): raise ValueError("CANARY")
thread = threading.Thread(target=fail); thread.start(); thread.join()
Late()
fail()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1, done.stderr
    assert done.stderr.count("ValueError") == 3
    assert "CANARY" not in done.stderr + done.stdout
    assert "AssertionError" not in done.stderr
