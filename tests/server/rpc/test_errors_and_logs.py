"""What a caller and the log learn of an error: ours in words, anybody else's as a reference only."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import textwrap

import grpc
import pytest
import structlog
from prometheus_client import REGISTRY

from triskele.errors import REASONS, PartyFault, RoundFailed, TriskeleError
from triskele.identity import Identity
from triskele_proto.v1 import coordinator_pb2, coordinator_pb2_grpc
from triskele_server.rpc.channel import open_channel
from triskele_server.rpc.server import bind, build_server

FEDERATION = "bank.example"
SERVER = Identity(FEDERATION, "coordinator", "main")
CANARY = "0123-CANARY-share-bytes"
METHOD = "/triskele.v1.Coordinator/ListTasks"


class Raising(coordinator_pb2_grpc.CoordinatorServicer):
    def __init__(self, error: BaseException | None) -> None:
        self._error = error

    async def ListTasks(self, request, context):  # noqa: N802
        if isinstance(self._error, grpc.aio.AbortError):
            await context.abort(grpc.StatusCode.DATA_LOSS, "said on purpose")
        if self._error is not None:
            raise self._error
        return coordinator_pb2.ListTasksReply()

    async def WatchRounds(self, request, context):  # noqa: N802
        yield coordinator_pb2.RoundView(round=1)
        if self._error is not None:
            raise self._error


async def _serve(members, error, use, caller=("participant", "p00")):
    tls = members.tls("coordinator", "main")
    server = build_server(tls, FEDERATION)
    coordinator_pb2_grpc.add_CoordinatorServicer_to_server(Raising(error), server)
    port = bind(server, "127.0.0.1:0", tls)
    await server.start()
    try:
        async with open_channel(f"127.0.0.1:{port}", SERVER, members.tls(*caller)) as channel:
            return await use(coordinator_pb2_grpc.CoordinatorStub(channel))
    finally:
        await server.stop(None)


def _call(members, error):
    async def use(stub):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.ListTasks(coordinator_pb2.ListTasksRequest(), timeout=10)
        return caught.value

    return asyncio.run(_serve(members, error, use))


@pytest.fixture
def events():
    with structlog.testing.capture_logs() as captured:
        yield captured


def _instance(kind: type[TriskeleError]) -> TriskeleError:
    return RoundFailed("reason", "party:1") if kind is RoundFailed else kind("told to the caller")


@pytest.mark.parametrize("kind", REASONS, ids=lambda kind: kind.__name__)
def test_every_error_of_ours_has_its_status_and_its_text(members, kind):
    error = _call(members, _instance(kind))
    assert error.code() is REASONS[kind].status
    assert error.details() == str(_instance(kind))


def test_subclass_that_is_not_in_the_table_takes_the_status_of_its_base(members):
    class LateParty(PartyFault):
        pass

    assert _call(members, LateParty("late", 2)).code() is REASONS[PartyFault].status


@pytest.mark.parametrize("error", [ValueError(CANARY), KeyError(CANARY), OSError(28, CANARY), AssertionError(CANARY)])
def test_unknown_exception_is_opaque_to_the_caller_and_to_the_log(members, events, error):
    try:
        raise RuntimeError(CANARY)
    except RuntimeError as cause:
        error.__cause__ = cause
    seen = _call(members, error)
    assert seen.code() is grpc.StatusCode.INTERNAL
    (line,) = [e for e in events if e["event"] == "rpc_internal_error"]
    assert line["error"] == type(error).__name__
    assert any("ListTasks" in frame for frame in line["where"])
    assert line["cause"]["error"] == "RuntimeError"
    assert line["reference"] in seen.details()
    assert CANARY not in seen.details() + (seen.debug_error_string() or "")
    assert CANARY not in repr(events)


def test_exception_in_the_middle_of_a_stream_is_opaque_too(members):
    async def use(stub):
        call = stub.WatchRounds(coordinator_pb2.WatchRoundsRequest(), timeout=10)
        views = [await call.read()]
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
        return views, caught.value

    views, error = asyncio.run(_serve(members, ValueError(CANARY), use))
    assert [view.round for view in views] == [1]
    assert error.code() is grpc.StatusCode.INTERNAL
    assert CANARY not in error.details()


def test_abort_of_a_handler_passes_unchanged(members):
    error = _call(members, grpc.aio.AbortError())
    assert (error.code(), error.details()) == (grpc.StatusCode.DATA_LOSS, "said on purpose")


def _count(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


def test_each_call_is_one_log_line_and_is_counted_by_code_and_reason(members, events):
    before = _count("triskele_grpc_server_handled_total", method=METHOD, code="NOT_FOUND")
    refused = _count("triskele_refusals_total", reason="not_found")
    kind = next(k for k, r in REASONS.items() if r.label == "not_found")
    _call(members, kind("nothing here"))
    (line,) = [e for e in events if e["event"] == "rpc"]
    assert (line["code"], line["reason"]) == ("NOT_FOUND", "not_found")
    assert _count("triskele_grpc_server_handled_total", method=METHOD, code="NOT_FOUND") == before + 1
    assert _count("triskele_refusals_total", reason="not_found") == refused + 1


def test_refused_caller_is_logged_by_name_and_counted(members):
    """Through the real logger: the caller's identity is bound to the line by contextvars."""
    lines: list[dict[str, object]] = []

    def keep(_logger, _name, event):
        lines.append(dict(event))
        raise structlog.DropEvent

    before = structlog.get_config()["processors"]
    structlog.configure(processors=[structlog.contextvars.merge_contextvars, keep])
    try:

        async def use(stub):
            with pytest.raises(grpc.aio.AioRpcError):
                await stub.ListTasks(coordinator_pb2.ListTasksRequest(), timeout=10)

        asyncio.run(_serve(members, None, use, caller=("party", "2")))
    finally:
        structlog.configure(processors=before)
    (line,) = [e for e in lines if e["event"] == "rpc"]
    assert line["caller"] == "spiffe://bank.example/party/2"
    assert (line["rpc"], line["code"], line["reason"]) == (METHOD, "PERMISSION_DENIED", "forbidden")


def test_logs_are_json_lines_without_bytes_and_without_the_text_of_foreign_exceptions():
    script = textwrap.dedent(
        f"""
        import logging, structlog
        from triskele_server import logs
        logs.configure("party-1")
        structlog.contextvars.bind_contextvars(round=3)
        structlog.get_logger().info("stored", share=b"{CANARY}", slot=2)
        try:
            raise ValueError("{CANARY}")
        except ValueError:
            logging.getLogger("grpc").exception("failed")
        """
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert CANARY not in done.stderr + done.stdout
    first, second = map(json.loads, done.stderr.splitlines())
    assert (first["event"], first["share"], first["slot"]) == ("stored", f"<{len(CANARY)} bytes>", 2)
    assert (first["process"], first["round"], first["level"]) == ("party-1", 3, "info")
    assert (second["event"], second["error"], second["level"]) == ("failed", "ValueError", "error")


def test_two_processes_that_share_an_unbuffered_file_do_not_write_into_each_others_lines(tmp_path):
    script = textwrap.dedent(
        """
        import sys, structlog
        from triskele_server import logs
        logs.configure(sys.argv[1])
        for number in range(3000):
            structlog.get_logger().info("said", number=number)
        """
    )
    path = tmp_path / "log"
    with path.open("ab") as log:
        writers = [
            subprocess.Popen(  # as in the image: PYTHONUNBUFFERED is set there
                [sys.executable, "-u", "-c", script, name], stderr=log, env=os.environ | {"PYTHONUNBUFFERED": "1"}
            )
            for name in ("party-1", "party-1-mpc")
        ]
        assert [writer.wait(60) for writer in writers] == [0, 0]
    assert len([json.loads(line) for line in path.read_text().splitlines()]) == 6000
