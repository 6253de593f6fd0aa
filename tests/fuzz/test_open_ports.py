"""A fuzzer's bytes against every open port of a running federation: it lives, answers typed statuses, and works on."""

from __future__ import annotations

import os
import random
import urllib.request
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import pytest

from triskele import Participant
from triskele.call_metadata import MetadataInterceptor
from triskele.errors import REASONS
from triskele.identity import Identity
from triskele_server.local_federation import COORDINATOR, LocalFederation
from triskele_server.rpc.methods import ALL, CALLS, UPLOADS
from triskele_server.rpc.tls import TlsFiles

from .federation import DIMENSION, logs, ports
from .wire import client_context, garbage, knock, send

pytestmark = pytest.mark.timeout(240)

TYPED = frozenset(reason.status for reason in REASONS.values()) | {grpc.StatusCode.OK, grpc.StatusCode.UNIMPLEMENTED}
MEMBERS = ("participants/p00", "coordinator", "party-0", "forwarder")


def tls_files(federation: LocalFederation, member: str) -> TlsFiles:
    folder = federation.made.directory / member
    return TlsFiles(folder / "tls.crt", folder / "tls.key", folder / "ca.crt")


def pids(federation: LocalFederation) -> dict[str, int]:
    return {name: process.pid for name, process in federation._processes.items() if process.poll() is None}


def test_garbage_on_every_port(federation: LocalFederation) -> None:
    authority = federation.made.directory / "ca" / "ca.crt"
    member = client_context(tls_files(federation, "participants/p00"), authority)
    stranger = client_context(None, authority)
    jobs = []
    for place, (speaks, port) in ports(federation).items():
        for data in garbage(random.Random(place)):
            jobs.append((port, data, None))
            if speaks == "grpc":
                jobs += [(port, data, member), (port, data, stranger)]
    before = pids(federation)
    with ThreadPoolExecutor(24) as pool:
        list(pool.map(lambda job: send(*job), jobs))
        list(pool.map(lambda job: knock(*job[:2]), jobs * 6))  # a crash of certificate renewal took hundreds of these
    assert pids(federation) == before
    assert len(before) == 4
    federation.wait_ready()


def answer(channel: grpc.Channel, method: str, data: bytes) -> grpc.StatusCode:
    try:
        if method in UPLOADS:
            channel.stream_unary(method)(iter([data, data]), timeout=10)
        elif method in CALLS or method not in ALL:
            channel.unary_unary(method)(data, timeout=10)
        elif method.endswith("Exchange"):
            next(channel.stream_stream(method)(iter([data, data]), timeout=1), None)
        else:
            next(channel.unary_stream(method)(data, timeout=1), None)
    except grpc.RpcError as error:
        return error.code()
    return grpc.StatusCode.OK


def test_every_method_on_every_grpc_port_answers_garbage_with_a_typed_status(federation: LocalFederation) -> None:
    generator = random.Random(1)
    methods = [
        *sorted(ALL),
        "/triskele.v1.Party/Nothing",
        "/x",
        "/triskele.v1.Nobody/Upload",
        "/grpc.health.v1.Health/Check",
    ]
    messages = [b"", b"\xff" * 40, generator.randbytes(300), b"\x0a\x20" + bytes(32) + b"\x10\x01", b"\0" * (5 << 20)]
    options = [("grpc.max_send_message_length", 8 << 20)]
    codes: Counter[tuple[str, grpc.StatusCode]] = Counter()

    def attack(place: str, port: int, member: str) -> None:
        name = place.split("/", maxsplit=1)[0]
        role, label = ("coordinator", "main") if name == COORDINATOR else ("party", name[-1])
        server = Identity("demo", role, label)
        credentials = tls_files(federation, member).channel_credentials()
        given = [*options, ("grpc.ssl_target_name_override", server.host)]
        with grpc.secure_channel(f"127.0.0.1:{port}", credentials, given) as channel:
            marked = grpc.intercept_channel(channel, MetadataInterceptor())
            for method in methods:
                for data in messages:
                    codes[f"{place} {method}", answer(marked, method, data)] += 1

    jobs = [
        (place, port, member)
        for place, (speaks, port) in ports(federation).items()
        if speaks == "grpc"
        for member in MEMBERS
    ]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda job: attack(*job), jobs))
    assert {key: count for key, count in codes.items() if key[1] not in TYPED} == {}
    assert {code for _, code in codes} >= {
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
    }


def test_health_port_answers_garbage_with_a_typed_status(federation: LocalFederation) -> None:
    method, health = (
        "/grpc.health.v1.Health/Check",
        [port for speaks, port in ports(federation).values() if speaks == "health"],
    )
    codes = set()
    for port in health:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            codes |= {answer(channel, method, data) for data in (b"", b"\x0a\x01x", b"\0" * 5000)}
            codes.add(answer(channel, "/triskele.v1.PartyControl/EndRound", b""))
    ok, unknown = grpc.StatusCode.OK, grpc.StatusCode.NOT_FOUND
    assert codes == {ok, unknown, grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNIMPLEMENTED}


def test_afterwards_a_round_is_right_and_no_process_met_an_unknown_exception(federation: LocalFederation) -> None:
    members = [Participant.from_config(path) for path in federation.made.participants.values()]
    rows = np.random.default_rng(1).normal(1.0, 0.1, (len(members), DIMENSION))
    rows *= 2.0 / np.linalg.norm(rows, axis=1, keepdims=True)
    try:
        with ThreadPoolExecutor(len(members)) as pool:
            rounds = list(pool.map(lambda m: next(m.rounds("hostile")), members))
            given = pool.map(lambda i: rounds[i].submit(rows[i], weight=10).result(timeout=120), range(len(members)))
            results = list(given)
    finally:
        for member in members:
            member.close()
    assert all(np.array_equal(result, results[0]) for result in results)
    np.testing.assert_allclose(results[0], rows.mean(axis=0), atol=2e-5)
    said = logs(federation)
    assert "rpc_internal_error" not in said
    assert "uncaught_exception" not in said
    assert "Traceback" not in said
    assert len(pids(federation)) == 4
    for pid in pids(federation).values():
        limits = Path(f"/proc/{pid}/limits").read_text() if os.path.exists(f"/proc/{pid}/limits") else ""
        assert "Max core file size        0                    0" in limits
    metrics = [port for speaks, port in ports(federation).values() if speaks == "metrics"]
    for port in metrics:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as page:
            assert b"triskele_refusals_total" in page.read()
