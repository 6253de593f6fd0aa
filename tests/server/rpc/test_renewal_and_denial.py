"""Certificates that are renewed, and members that are shut out, while the servers run."""

from __future__ import annotations

import asyncio
import os
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import grpc
import pytest
from cryptography import x509

from triskele.connection import Connections
from triskele.errors import ConfigurationError, Forbidden
from triskele.identity import Identity
from triskele.renewal import Renewed
from triskele_proto.v1 import coordinator_pb2, coordinator_pb2_grpc
from triskele_server.rpc.channel import open_channel
from triskele_server.rpc.deny_list import DenyList
from triskele_server.rpc.server import bind, build_server
from triskele_server.rpc.tls import TlsFiles, _Changes

FEDERATION = "bank.example"
SERVER = Identity(FEDERATION, "coordinator", "main")


class SeenCallers(coordinator_pb2_grpc.CoordinatorServicer):
    """Answers, and remembers the serial numbers of the certificates it was called with."""

    def __init__(self) -> None:
        self.serials: list[int] = []
        self.release = asyncio.Event()

    async def ListTasks(self, _request, context):  # noqa: N802 - the name is the protocol's
        (pem,) = context.auth_context()["x509_pem_cert"]
        self.serials.append(x509.load_pem_x509_certificate(pem).serial_number)
        return coordinator_pb2.ListTasksReply()

    async def WatchRounds(self, _request, _context):  # noqa: N802 - the same
        yield coordinator_pb2.RoundView()
        await self.release.wait()
        yield coordinator_pb2.RoundView()


@dataclass
class Running:
    address: str
    seen: SeenCallers


@asynccontextmanager
async def serving(tls: TlsFiles):
    server, seen = build_server(tls, FEDERATION), SeenCallers()
    coordinator_pb2_grpc.add_CoordinatorServicer_to_server(seen, server)
    port = bind(server, "127.0.0.1:0", tls)
    await server.start()
    try:
        yield Running(f"127.0.0.1:{port}", seen)
    finally:
        await server.stop(None)


def client(channel) -> coordinator_pb2_grpc.CoordinatorStub:
    return coordinator_pb2_grpc.CoordinatorStub(channel)


async def call(running: Running, tls: TlsFiles) -> None:
    """One call on a connection of its own."""
    async with open_channel(running.address, SERVER, tls) as channel:
        await client(channel).ListTasks(coordinator_pb2.ListTasksRequest(), timeout=10)


async def status_of(running: Running, tls: TlsFiles) -> grpc.StatusCode:
    try:
        await call(running, tls)
    except grpc.RpcError as error:
        return error.code()
    return grpc.StatusCode.OK


def serial(path: Path) -> int:
    return x509.load_pem_x509_certificate(path.read_bytes()).serial_number


def put(path: Path, content: bytes) -> None:
    """Replace a file as a secret's mount does it: by another file."""
    beside = path.with_suffix(".new")
    beside.write_bytes(content)
    os.replace(beside, path)


@pytest.fixture
def own(members, tmp_path) -> TlsFiles:
    """Files of the server that a test may change."""
    return copied(members.tls(SERVER.role, SERVER.name), tmp_path / "server")


@pytest.fixture
def alice(members, tmp_path) -> TlsFiles:
    return copied(members.tls("participant", "alice"), tmp_path / "alice")


@pytest.fixture
def bob(members) -> TlsFiles:
    return members.tls("participant", "bob")


def copied(tls: TlsFiles, folder: Path) -> TlsFiles:
    folder.mkdir()
    for name in ("certificate", "key", "authority"):
        (folder / name).write_bytes(getattr(tls, name).read_bytes())
    return TlsFiles(folder / "certificate", folder / "key", folder / "authority")


# ---- renewal ------------------------------------------------------------------------------------------------------


def test_a_server_renews_its_certificate_and_keeps_open_streams(own, bob, members, strangers):
    """Seen by the authority: the new certificate is one that only clients of the other federation's authority take."""

    async def scenario():
        async with serving(own) as running, open_channel(running.address, SERVER, bob) as before:
            stream = client(before).WatchRounds(coordinator_pb2.WatchRoundsRequest(), timeout=20)
            await stream.read()
            theirs = strangers.authority.tls(SERVER)
            put(own.certificate, theirs.certificate)
            put(own.key, theirs.key)
            both = b"".join(m.authority.credential.certificate for m in (members, strangers))
            put(own.authority, both)  # clients of both are let in: only the server's own certificate decides
            old, new = await status_of(running, bob), await status_of(running, strangers.tls("participant", "bob"))
            running.seen.release.set()
            assert await stream.read() == coordinator_pb2.RoundView()
            return old, new

    assert asyncio.run(scenario()) == (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.OK)


@pytest.mark.parametrize("half", ["certificate", "key"])
def test_a_server_goes_on_with_its_old_pair_until_both_files_are_there(own, bob, members, half):
    async def scenario():
        async with serving(own) as running:
            new = members.authority.tls(SERVER)
            put(getattr(own, half), getattr(new, half))
            meanwhile = await status_of(running, bob)
            for name in ("certificate", "key"):
                put(getattr(own, name), getattr(new, name))
            return meanwhile, await status_of(running, bob)

    assert asyncio.run(scenario()) == (grpc.StatusCode.OK, grpc.StatusCode.OK)


@pytest.mark.parametrize("content", [b"", b"no PEM", None])
def test_a_server_with_an_unusable_file_does_not_start_and_goes_on_if_it_runs(own, bob, content):
    async def scenario():
        async with serving(own) as running:
            put(own.key, content) if content is not None else own.key.unlink()
            return await status_of(running, bob)

    assert asyncio.run(scenario()) is grpc.StatusCode.OK
    with pytest.raises(ConfigurationError, match="server"):
        build_server(own, FEDERATION)


def connections_of(tls: TlsFiles, running: Running) -> Connections:
    files = (tls.authority, tls.key, tls.certificate)
    renewed = Renewed(files, lambda: grpc.ssl_channel_credentials(*(path.read_bytes() for path in files)))
    return Connections(SimpleNamespace(federation=FEDERATION, coordinator=running.address), renewed.current)


def test_a_participant_uses_its_renewed_certificate_from_the_next_call_on(own, alice, members):
    async def scenario():
        async with serving(own) as running:
            connections = connections_of(alice, running)

            def list_tasks():
                connections.coordinator().ListTasks(coordinator_pb2.ListTasksRequest(), timeout=10)

            await asyncio.to_thread(list_tasks)
            open_stream = connections.coordinator().WatchRounds(coordinator_pb2.WatchRoundsRequest(), timeout=20)
            await asyncio.to_thread(next, open_stream)
            first = serial(alice.certificate)
            new = members.authority.tls(Identity(FEDERATION, "participant", "alice"))
            put(alice.certificate, new.certificate)
            put(alice.key, new.key)
            await asyncio.to_thread(list_tasks)
            running.seen.release.set()
            await asyncio.to_thread(next, open_stream)  # what was under way is not cut
            assert running.seen.serials == [first, serial(alice.certificate)]
            await asyncio.to_thread(connections.close)

    asyncio.run(scenario())


def test_a_coordinator_or_party_dials_with_the_files_as_they_are(own, alice, members):
    async def scenario():
        async with serving(own) as running:
            await call(running, alice)
            first = serial(alice.certificate)
            new = members.authority.tls(Identity(FEDERATION, "participant", "alice"))
            put(alice.certificate, new.certificate)
            with pytest.raises(ConfigurationError, match="do not belong together"):
                await call(running, alice)
            put(alice.key, new.key)
            await call(running, alice)
            assert running.seen.serials == [first, serial(alice.certificate)]

    asyncio.run(scenario())


def test_what_cannot_be_loaded_any_more_stays_as_it_was_and_is_told(tmp_path):
    path, told = tmp_path / "file", []
    path.write_text("1")

    def load():
        try:
            return int(path.read_text())
        except (OSError, ValueError) as error:
            raise ConfigurationError("no number") from error

    renewed = Renewed([path], load, told=told.append)
    first = renewed.current()
    put(path, b"x")
    assert (renewed.current(), renewed.current(), len(told)) == (first, first, 1)
    path.unlink()
    assert (renewed.current(), len(told)) == (first, 2)
    put(path, b"2")
    assert (renewed.current(), len(told)) == (2, 2)
    put(path, b"x")
    with pytest.raises(ConfigurationError, match="no number"):
        Renewed([path], load)


# ---- denial -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["identity", "serial", "serial in small letters"])
def test_a_member_on_the_deny_list_is_refused_from_then_on_and_nobody_else(own, alice, bob, kind, tmp_path):
    number = f"{serial(alice.certificate):X}"
    entry = {
        "identity": f"spiffe://{FEDERATION}/participant/alice",
        "serial": f"serial:{number}",
        "serial in small letters": f"serial:0{number.lower()}",
    }[kind]
    listed = tmp_path / "denied.txt"
    listed.write_text("# nobody yet\n\n")

    async def scenario():
        async with serving(replace(own, denied=listed)) as running, open_channel(running.address, SERVER, alice) as old:
            await client(old).ListTasks(coordinator_pb2.ListTasksRequest(), timeout=10)
            before = await status_of(running, alice)
            put(listed, f"# her laptop was stolen\n  {entry}   # ticket 7\n".encode())
            with pytest.raises(grpc.RpcError) as on_an_old_connection:
                await client(old).ListTasks(coordinator_pb2.ListTasksRequest(), timeout=10)
            return (
                before,
                await status_of(running, alice),
                on_an_old_connection.value.code(),
                await status_of(running, bob),
            )

    ok, denied = grpc.StatusCode.OK, grpc.StatusCode.PERMISSION_DENIED
    assert asyncio.run(scenario()) == (ok, denied, denied, ok)


def test_a_member_with_a_new_certificate_is_let_in_when_only_its_old_one_is_denied(own, alice, members, tmp_path):
    listed = tmp_path / "denied.txt"
    listed.write_text(f"serial:{serial(alice.certificate):X}\n")

    async def scenario():
        async with serving(replace(own, denied=listed)) as running:
            successor = members.tls("participant", "alice")
            return await status_of(running, alice), await status_of(running, successor)

    assert asyncio.run(scenario()) == (grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.OK)


@pytest.mark.parametrize("line", ["alice", "serial:", "serial:xyz", "spiffe://bank.example/participant", "serial 12"])
def test_a_deny_list_with_a_line_that_is_no_entry_stops_the_start(tmp_path, line):
    path = tmp_path / "denied.txt"
    path.write_text(f"serial:1\n{line}\n")
    with pytest.raises(ConfigurationError, match=r"denied\.txt: line 2"):
        DenyList(path)


def test_a_deny_list_that_does_not_exist_stops_the_start(tmp_path):
    with pytest.raises(ConfigurationError, match=r"denied\.txt: cannot be read"):
        DenyList(tmp_path / "denied.txt")


@pytest.mark.parametrize("broken", [None, b"\xff\xfe", b"alcie\nserial:2\n"])
def test_a_deny_list_that_becomes_unusable_takes_nothing_back(tmp_path, broken):
    path = tmp_path / "denied.txt"
    path.write_text("serial:1\n")
    who, deny_list = Identity(FEDERATION, "participant", "alice"), DenyList(path)
    path.unlink() if broken is None else put(path, broken)
    with pytest.raises(Forbidden):
        deny_list.check(who, 1)
    if broken and b"serial:2" in broken:
        with pytest.raises(Forbidden):
            deny_list.check(who, 2)
    put(path, b"serial:3\n")
    deny_list.check(who, 1)
    with pytest.raises(Forbidden):
        deny_list.check(who, 3)


def test_without_a_file_nobody_is_denied():
    DenyList().check(Identity(FEDERATION, "participant", "alice"), 1)


def test_grpc_is_handed_a_configuration_only_when_it_is_another_one(members):
    """Handing over the same one in every handshake ended the process, hundreds of connections later."""
    tls = members.tls("coordinator", "main")
    changes = _Changes(Renewed((tls.certificate,), tls._configuration))
    assert [changes.next() for _ in range(3)] == [None] * 3
    tls.certificate.write_bytes(tls.certificate.read_bytes() + b"\n")
    assert changes.next() is changes.last
    assert changes.next() is None
