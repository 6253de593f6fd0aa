"""`triskele preflight` finds what is wrong with a member, and says what to do about it."""

from __future__ import annotations

import asyncio
import datetime
import json
import shutil
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from triskele.protocol import PROTOCOL
from triskele.task import TaskSpec
from triskele_proto.v1 import info_pb2, info_pb2_grpc
from triskele_server.config import PolicyTable, Schedule, load_coordinator, load_party
from triskele_server.operations import preflight as checks
from triskele_server.operations.findings import Finding
from triskele_server.operations.preflight import preflight
from triskele_server.provision import PortPlan, Provisioned, provision, write_task
from triskele_server.rpc.info import InfoService
from triskele_server.rpc.server import bind, build_server
from triskele_server.rpc.tls import TlsFiles

FEDERATION = "bank.example"


@dataclass
class Place:
    """A provisioned federation in which the servers of the test's choice run, as far as preflight asks them."""

    made: Provisioned
    ports: PortPlan
    clocks: dict[int, float] = field(default_factory=dict)  # seconds ahead, by party
    protocols: dict[int, int] = field(default_factory=dict)
    policies: dict[int, dict[str, Any]] = field(default_factory=dict)
    down: set[int] = field(default_factory=set)
    denied: Path | None = None  # the deny list of all servers

    def folder(self, member: str) -> Path:
        return self.made.directory / member

    def coordinator(self) -> list[Finding]:
        return preflight(self.made.coordinator)

    def party(self) -> list[Finding]:
        return preflight(self.made.parties[0])

    def participant(self) -> list[Finding]:
        return preflight(next(iter(self.made.participants.values())))

    def edit(self, member: str, name: str, old: str, new: str) -> None:
        path = self.folder(member) / name
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))


class OtherProtocol(InfoService):
    """Answers as a server of another version."""

    def __init__(self, protocol: int) -> None:
        super().__init__()
        self._protocol = protocol

    async def Describe(self, request, context):  # noqa: N802 - the name is the protocol's
        reply = await super().Describe(request, context)
        return info_pb2.DescribeReply(version=reply.version, protocol=self._protocol, unix_time=reply.unix_time)


@contextmanager
def serving(place: Place):
    """Parties 0 to 2 (listen and peer ports) and the coordinator answer Describe until the block ends."""
    loop, ready, stop = asyncio.new_event_loop(), threading.Event(), asyncio.Event()

    async def start(folder: Path, service: InfoService, *ports: int) -> list[Any]:
        tls = TlsFiles(folder / "tls.crt", folder / "tls.key", folder / "ca.crt", place.denied)
        servers = []
        for port in ports:
            server = build_server(tls, FEDERATION)
            info_pb2_grpc.add_InfoServicer_to_server(service, server)
            bind(server, f"127.0.0.1:{port}", tls)
            await server.start()
            servers.append(server)
        return servers

    async def run() -> None:
        servers = await start(place.folder("coordinator"), InfoService(), place.ports.coordinator.listen)
        for index, ports in enumerate(place.ports.parties):
            if index in place.down:
                continue
            ahead, protocol = place.clocks.get(index, 0.0), place.protocols.get(index, PROTOCOL)
            policy = place.policies.get(index, PolicyTable().model_dump(mode="json"))
            service = InfoService(policy, lambda ahead=ahead: time.time() + ahead)
            if protocol != PROTOCOL:
                service = OtherProtocol(protocol)
            servers += await start(place.folder(f"party-{index}"), service, ports.listen, ports.peer)
        ready.set()
        await stop.wait()
        for server in servers:
            await server.stop(None)

    thread = threading.Thread(target=lambda: loop.run_until_complete(run()))
    thread.start()
    try:
        assert ready.wait(20)
        yield
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()


@pytest.fixture
def place(tmp_path) -> Place:
    ports = PortPlan.free()
    made = provision(tmp_path / "f", participants=1, federation=FEDERATION, ports=ports)
    spec = TaskSpec(name="faces", dimension=10, clip_norm=1.0, max_participants=10, rule="mean")
    write_task(made.directory, spec, Schedule(rounds=1, quorum=2))
    return Place(made, ports)


def told(findings: list[Finding], check: str, *words: str) -> None:
    """There is a fault or warning of this check whose text and remedy hold the words; nothing unrelated is a fault."""
    bad = [f for f in findings if f.outcome != "ok"]
    text = [f"{f.found} | {f.remedy}" for f in bad if f.check == check]
    assert any(all(word in line for word in words) for line in text), bad
    assert all(f.remedy for f in bad)


def test_all_is_well_and_nothing_is_changed(place):
    before = sorted(str(p) for p in place.made.directory.rglob("*"))
    with serving(place):
        for findings in (place.coordinator(), place.party(), place.participant()):
            assert {f.outcome for f in findings} == {"ok"}, [f for f in findings if f.outcome != "ok"]
    assert sorted(str(p) for p in place.made.directory.rglob("*")) == before


def test_free_ports_are_told_from_ports_of_another_program(place):
    with socket.socket() as other:
        other.bind(("127.0.0.1", place.ports.parties[0].listen))
        other.listen()
        told(place.party(), "port", str(place.ports.parties[0].listen), "stop what listens there")


# ---- certificates -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("days", "word"), [(366, "expired"), (-1, "valid only from"), (350, "expires in")])
def test_a_certificate_out_of_its_time_is_found(place, days, word):
    now = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=days)
    told(preflight(place.made.parties[0], now), "certificate", word)


def test_files_of_another_member_are_found(place):
    for name in ("tls.crt", "tls.key"):
        shutil.copy(place.folder("party-1") / name, place.folder("party-0") / name)
    told(place.party(), "certificate", "speaks for spiffe://bank.example/party/1", "own files")


def test_a_key_of_another_certificate_is_found(place):
    shutil.copy(place.folder("party-1") / "tls.key", place.folder("party-0") / "tls.key")
    told(place.party(), "certificate", "is not the key of")


def test_a_signing_key_of_another_certificate_is_found(place, tmp_path):
    other = provision(tmp_path / "g", participants=1, federation=FEDERATION).directory / "participants" / "p00"
    shutil.copy(other / "signing.key", place.folder("participants/p00") / "signing.key")
    told(place.participant(), "signing key", "is not the key of")


def test_another_federations_authority_is_found(place, tmp_path):
    other = provision(tmp_path / "g", participants=1, federation=FEDERATION).directory
    shutil.copy(other / "ca" / "ca.crt", place.folder("party-0") / "ca.crt")
    with serving(place):
        findings = place.party()
    told(findings, "certificate", "not of the authority")
    told(findings, "party 1", "not of this federation's authority")


def test_a_key_that_others_can_read_and_one_that_is_no_key_are_found(place):
    key = place.folder("party-0") / "tls.key"
    key.chmod(0o644)
    told(place.party(), "certificate", "can be read by others", "chmod 600")
    key.write_text("no key")
    told(place.party(), "certificate", "is not PEM")
    key.unlink()
    told(place.party(), "certificate", "cannot be read")


def test_a_line_that_denies_nobody_is_found(place):
    (place.folder("party-0") / "denied.txt").write_text("alcie\n")
    told(place.party(), "deny list", "line 1")


# ---- reaching each other ------------------------------------------------------------------------------------------


def test_a_server_that_is_down_is_found(place):
    place.down = {1}
    with serving(place):
        told(place.coordinator(), "party 1", "nobody listens", "start it")
        told(place.party(), "party 1", "nobody listens")


def test_swapped_addresses_are_found(place):
    one, two = (f'"127.0.0.1:{place.ports.parties[i].listen}"' for i in (1, 2))
    place.edit("coordinator", "coordinator.toml", f"1 = {one}", f"1 = {two}")
    with serving(place):
        told(place.coordinator(), "party 1", "another member", "swapped")


def test_a_name_that_does_not_resolve_is_found(place):
    place.edit(
        "coordinator", "coordinator.toml", f'1 = "127.0.0.1:{place.ports.parties[1].listen}"', '1 = "nowhere.invalid:1"'
    )
    told(place.coordinator(), "party 1", "does not resolve", "DNS")


def test_a_program_that_speaks_no_tls_is_found(place):
    place.down = {1}
    with serving(place), socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", place.ports.parties[1].listen))
        other.listen()

        def hang_up() -> None:
            connection, _ = other.accept()
            connection.sendall(b"220 mail.example ESMTP\r\n")
            connection.close()

        thread = threading.Thread(target=hang_up)
        thread.start()
        told(place.coordinator(), "party 1", "TLS handshake", "another program")
        thread.join()


def test_a_member_that_is_denied_hears_so(place, tmp_path):
    place.denied = tmp_path / "denied.txt"
    place.denied.write_text(f"spiffe://{FEDERATION}/coordinator/main\n")
    with serving(place):
        told(place.coordinator(), "party 1", "deny list", "ask its operator")


@pytest.mark.parametrize(("ahead", "outcome"), [(60.0, "warning"), (-4000.0, "fault")])
def test_a_clock_that_is_off_is_found(place, ahead, outcome):
    place.clocks = {2: ahead}
    with serving(place):
        findings = place.coordinator()
    told(findings, "clock", "party 2", "ahead of" if ahead > 0 else "behind", "time service")
    assert [f.outcome for f in findings if f.check == "clock"] == [outcome]


@pytest.mark.parametrize(("protocol", "word"), [(PROTOCOL + 1, "upgrade this program"), (PROTOCOL - 1, "upgrade it")])
def test_another_protocol_is_found(place, protocol, word):
    place.protocols = {1: protocol}
    with serving(place):
        told(place.coordinator(), "party 1", f"protocol {protocol}", word)


# ---- policy, tasks, machine ---------------------------------------------------------------------------------------


def test_parties_that_pin_other_sources_of_a_rule_are_found(place):
    policies = [PolicyTable(rule_sources={"own": digest * 64}).model_dump(mode="json") for digest in "ab"]
    place.policies = {0: policies[0], 1: policies[0], 2: policies[1]}
    with serving(place):
        told(place.coordinator(), "policy", "different sources of rule 'own'", "party 2: bbbb", "agree")


def test_a_task_that_a_party_would_refuse_is_found(place):
    place.policies = {2: PolicyTable(min_accepted=5).model_dump(mode="json")}
    with serving(place):
        told(place.coordinator(), "task faces", "party 2 would refuse it", "min_accepted")


def test_a_rule_that_is_not_installed_or_of_another_source_is_found(place):
    digest = "0" * 64
    path = place.folder("party-0") / "party.toml"
    path.write_text(f'{path.read_text()}\n[policy.rule_sources]\nown = "{digest}"\nmean = "{digest}"\n')
    findings = place.party()
    told(findings, "policy", "there is no rule 'own'", "install it")
    told(findings, "policy", "the source of rule 'mean'", digest)


def test_a_task_file_that_is_wrong_is_found(place):
    (place.folder("coordinator") / "tasks" / "faces.toml").write_text("name = 3\n")
    told(place.coordinator(), "tasks", "faces.toml", "task validate")


def test_a_database_that_does_not_answer_is_found(place):
    path = place.folder("coordinator") / "coordinator.toml"
    path.write_text('database_url = "sqlite:////nowhere/at/all.db"\n' + path.read_text())
    Path(load_coordinator(path).data).mkdir()
    findings = place.coordinator()
    assert [f.outcome for f in findings if f.check == "database"] == ["ok"]  # SQLite makes it at the first start
    broken = place.folder("coordinator") / "broken.db"
    broken.write_bytes(b"this is no database" * 100)
    path.write_text(path.read_text().replace("sqlite:////nowhere/at/all.db", f"sqlite:///{broken}"))
    told(place.coordinator(), "database", "cannot be")


def test_a_data_folder_that_cannot_be_written_and_a_full_disk_are_found(place, monkeypatch):
    monkeypatch.setattr(checks.os, "access", lambda *_: False)
    told(place.party(), "data", "cannot be written", "give the server's user")
    monkeypatch.undo()
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(checks.shutil, "disk_usage", lambda _: usage._replace(free=10**9))
    told(place.party(), "disk", "1.0 GB", "make room")


@pytest.mark.parametrize(("package", "found"), [("crypten", None), ("crypten", "0.3"), ("torch", None)])
def test_an_engine_that_is_missing_or_of_another_version_is_found(place, monkeypatch, package, found):
    def version(name: str) -> str:
        if name != package:
            return "0.4.1"
        if found is None:
            raise checks.PackageNotFoundError(name)
        return found

    monkeypatch.setattr(checks, "version", version)
    told(place.party(), "engine", package, "pip install")


@pytest.mark.parametrize("content", ["", "index = 7", 'participant = "p00"', "federation ="])
def test_a_configuration_that_is_none_is_one_fault(place, content):
    place.made.parties[0].write_text(content)
    (finding,) = place.party()
    assert (finding.check, finding.outcome) == ("configuration", "fault")
    assert str(place.made.parties[0]) in finding.found


def test_command_prints_remedies_and_its_exit_code_is_2(place):
    (place.folder("party-0") / "tls.key").unlink()
    command = [sys.executable, "-m", "triskele", "preflight", "--config", str(place.made.parties[0])]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 2
    assert "FAULT" in done.stdout
    assert "do: name the file" in done.stdout
    report = json.loads(subprocess.run([*command, "--json"], capture_output=True, check=False, timeout=120).stdout)
    assert report["worst"] == "fault"


def test_the_policy_that_a_server_describes_is_its_configurations(place):
    config = load_party(place.made.parties[0])
    place.policies = {0: config.policy.model_dump(mode="json")}
    with serving(place):
        assert {f.outcome for f in place.coordinator()} == {"ok"}
