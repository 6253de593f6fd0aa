"""Ports: health before and after readiness, metrics, a port that is taken, and the end on SIGTERM."""

from __future__ import annotations

import asyncio
import os
import signal
import urllib.request

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from triskele.errors import ConfigurationError
from triskele_server.rpc.health import start_probes
from triskele_server.rpc.server import bind, build_server, until_stop_signal
from triskele_server.rpc.tls import TlsFiles

FEDERATION = "bank.example"


async def _health(port: int) -> int:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        reply = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
        return reply.status


def test_health_serves_only_between_ready_and_not_ready():
    async def scenario():
        probes = await start_probes(host="127.0.0.1", health_port=0, metrics_port=None)
        try:
            seen = [await _health(probes.health_port)]
            await probes.ready()
            seen.append(await _health(probes.health_port))
            await probes.not_ready()
            seen.append(await _health(probes.health_port))
            return seen
        finally:
            await probes.stop()

    serving, not_serving = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
    assert asyncio.run(scenario()) == [not_serving, serving, not_serving]


def _get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as answer:  # noqa: S310  a loopback address
        return answer.read().decode()


def test_metrics_are_served_in_prometheus_text():
    async def scenario():
        probes = await start_probes(host="127.0.0.1", health_port=None, metrics_port=0)
        try:
            return probes.health_port, await asyncio.to_thread(_get, f"http://127.0.0.1:{probes.metrics_port}/metrics")
        finally:
            await probes.stop()

    health, text = asyncio.run(scenario())
    assert health is None
    for name in (
        "triskele_grpc_server_started_total",
        "triskele_grpc_server_handled_total",
        "triskele_grpc_server_handling_seconds",
        "triskele_refusals_total",
        "triskele_grpc_server_received_bytes_total",
        "triskele_deny_list_entries",
    ):
        assert f"# TYPE {name.removesuffix('_total')}" in text


@pytest.mark.parametrize("off", [None, -1])
def test_probes_can_be_switched_off(off):
    async def scenario():
        probes = await start_probes(host="127.0.0.1", health_port=off, metrics_port=off)
        await probes.stop()
        return probes.health_port, probes.metrics_port

    assert asyncio.run(scenario()) == (None, None)


def test_port_that_is_taken_is_a_configuration_error_for_every_kind_of_port(members):
    async def scenario():
        tls = members.tls("party", "0")
        first, second = build_server(tls, FEDERATION), build_server(tls, FEDERATION)
        port = bind(first, "127.0.0.1:0", tls)
        await first.start()
        try:
            with pytest.raises(ConfigurationError, match="cannot listen"):
                bind(second, f"127.0.0.1:{port}", tls)
            with pytest.raises(ConfigurationError, match="health_port"):
                await start_probes(host="127.0.0.1", health_port=port, metrics_port=None)
            with pytest.raises(ConfigurationError, match="metrics_port"):
                await start_probes(host="127.0.0.1", health_port=0, metrics_port=port)
        finally:
            await first.stop(None)

    asyncio.run(scenario())


def test_missing_tls_file_is_named(tmp_path):
    with pytest.raises(ConfigurationError, match=r"tls\.crt: cannot be read"):
        build_server(TlsFiles(tmp_path / "tls.crt", tmp_path / "tls.key", tmp_path / "ca.crt"), FEDERATION)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_the_wait_and_its_handler_is_removed(number):
    async def scenario():
        waiting = asyncio.create_task(until_stop_signal())
        await asyncio.sleep(0)
        assert not waiting.done()
        os.kill(os.getpid(), number)
        await asyncio.wait_for(waiting, 10)

    before = signal.getsignal(number)
    asyncio.run(scenario())
    assert signal.getsignal(number) in (before, signal.SIG_DFL, signal.default_int_handler)
