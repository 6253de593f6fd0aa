"""`triskele provision`: a folder that works, keys that stay private, and nothing ever overwritten."""

from __future__ import annotations

import json
import os
import ssl
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509 import verification

from triskele.errors import ConfigurationError
from triskele.identity import Identity
from triskele.task import TaskSpec
from triskele_server.config import Schedule, load_coordinator, load_party, load_tasks
from triskele_server.provision import PortPlan, provision, write_task

FEDERATION = "bank.example"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    directory = tmp_path_factory.mktemp("provision") / "federation"
    return provision(directory, participants=3, federation=FEDERATION, operator=True)


def _files(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}


def _certificate(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def test_layout_is_complete_and_nothing_else(made):
    member = {"ca.crt", "tls.crt", "tls.key"}
    expected = {"ca/ca.crt", "ca/ca.key"}
    expected |= {f"coordinator/{name}" for name in member | {"coordinator.toml", "denied.txt"}}
    public = {f"party-{i}.pub" for i in range(3)}
    expected |= {f"keys/{name}" for name in public}
    expected |= {f"operator/{name}" for name in member | public | {"operator.toml"}}
    expected |= {f"party-{i}/{name}" for i in range(3) for name in member | {"party.toml", "signing.key", "denied.txt"}}
    own = member | public | {"participant.toml", "signing.crt", "signing.key"}
    expected |= {f"participants/p0{i}/{name}" for i in range(3) for name in own}
    assert set(_files(made.directory)) == expected
    assert (made.directory / "coordinator" / "tasks").is_dir()
    assert list(made.participants) == ["p00", "p01", "p02"]


def test_keys_and_folders_are_for_their_owner_only_whatever_the_umask(tmp_path):
    before = os.umask(0)
    try:
        directory = provision(tmp_path / "f", participants=1, operator=True).directory
    finally:
        os.umask(before)
    keys = list(directory.rglob("*.key"))
    assert len(keys) == 1 + 1 + 3 * 2 + 2 + 1  # authority, coordinator, parties' two, one participant's two, operator
    assert {stat.S_IMODE(path.stat().st_mode) for path in keys} == {0o600}
    folders = [directory, *(p for p in directory.rglob("*") if p.is_dir())]
    assert {stat.S_IMODE(path.stat().st_mode) for path in folders} == {0o700}


def _members():
    yield "coordinator", Identity(FEDERATION, "coordinator", "main")
    yield "operator", Identity(FEDERATION, "operator", "operator")
    for i in range(3):
        yield f"party-{i}", Identity(FEDERATION, "party", str(i))
        yield f"participants/p0{i}", Identity(FEDERATION, "participant", f"p0{i}")


@pytest.mark.parametrize(("folder", "identity"), list(_members()), ids=str)
def test_each_member_has_its_one_identity_and_a_chain_that_verifies(made, folder, identity):
    authority = _certificate(made.directory / "ca" / "ca.crt")
    leaf = _certificate(made.directory / folder / "tls.crt")
    builder = verification.PolicyBuilder().store(verification.Store([authority]))
    verified = builder.build_client_verifier().verify(leaf, [])
    assert [san.value for san in verified.subjects if isinstance(san, x509.UniformResourceIdentifier)] == [identity.uri]
    hosts = [san.value for san in verified.subjects if isinstance(san, x509.DNSName)]
    if identity.role in ("party", "coordinator"):
        assert hosts == [identity.host]
        builder.build_server_verifier(x509.DNSName(identity.host)).verify(leaf, [])
    else:
        assert hosts == []
    key = serialization.load_pem_private_key((made.directory / folder / "tls.key").read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    assert key.public_key() == leaf.public_key()
    assert (made.directory / folder / "ca.crt").read_bytes() == (made.directory / "ca" / "ca.crt").read_bytes()
    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(
        made.directory / folder / "tls.crt", made.directory / folder / "tls.key"
    )


def test_signing_certificates_are_ed25519_with_the_same_identity_and_no_use_for_tls(made):
    authority = _certificate(made.directory / "ca" / "ca.crt")
    for name, path in made.participants.items():
        leaf = _certificate(path.parent / "signing.crt")
        leaf.verify_directly_issued_by(authority)
        key = serialization.load_pem_private_key((path.parent / "signing.key").read_bytes(), None)
        assert isinstance(key, ed25519.Ed25519PrivateKey)
        assert key.public_key() == leaf.public_key()
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert [n.value for n in names] == [Identity(FEDERATION, "participant", name).uri]
        verifier = verification.PolicyBuilder().store(verification.Store([authority])).build_client_verifier()
        with pytest.raises(verification.VerificationError):
            verifier.verify(leaf, [])


def test_no_two_members_share_a_key(made):
    keys = [path.read_bytes() for path in made.directory.rglob("*.key")]
    assert len(set(keys)) == len(keys)


def test_configurations_load_and_agree_on_the_addresses(made):
    coordinator = load_coordinator(made.coordinator)
    parties = [load_party(path) for path in made.parties]
    assert {i: party.listen for i, party in enumerate(parties)} == coordinator.parties == coordinator.party_addresses
    for party in parties:
        assert party.peers == {p.index: p.peer_listen for p in parties if p.index != party.index}
        assert party.federation == coordinator.federation == FEDERATION
    assert load_tasks(coordinator.tasks) == ()
    listened = [coordinator.listen, *(a for p in parties for a in (p.listen, p.peer_listen))]
    probes = [n for c in (coordinator, *parties) for n in (c.probes.health_port, c.probes.metrics_port)]
    ports = [int(a.rpartition(":")[2]) for a in listened] + probes
    assert len(set(ports)) == len(ports) == 15


def test_task_that_is_written_is_the_task_that_is_read_and_is_never_overwritten(made):
    spec = TaskSpec(
        "face", 12, 1.5, rule="multi-krum", rule_options={"num_malicious_nodes": 1, "x": 0.1, "a b": "ü\n\x7f"}
    )
    schedule = Schedule(rounds=3, quorum=4, deadline_seconds=30.5, grace_seconds=0)
    path = write_task(made.directory, spec, schedule)
    (task,) = load_tasks(load_coordinator(made.coordinator).tasks)
    assert (task.spec, task.spec.digest, task.schedule) == (spec, spec.digest, schedule)
    before = path.read_bytes()
    with pytest.raises(ConfigurationError, match="File exists"):
        write_task(made.directory, TaskSpec("face", 13, 1.0), schedule)
    assert path.read_bytes() == before
    path.unlink()


@pytest.mark.parametrize("obstacle", ["federation", "other file", "file in its place"])
def test_nothing_that_exists_is_overwritten(tmp_path, obstacle):
    directory = tmp_path / "f"
    if obstacle == "federation":
        provision(directory, participants=1)
    elif obstacle == "other file":
        directory.mkdir()
        (directory / "notes.txt").write_text("mine")
    else:
        directory.write_text("mine")
    before = _files(tmp_path)
    with pytest.raises(ConfigurationError, match="already exists"):
        provision(directory, participants=2)
    assert _files(tmp_path) == before


def test_empty_folder_is_filled(tmp_path):
    provision(tmp_path / "f", participants=1)
    (tmp_path / "g").mkdir()
    assert load_party(provision(tmp_path / "g", participants=1).parties[0]).index == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["f", "g"]  # nothing half-made is left beside them


@pytest.mark.parametrize(
    "wrong",
    [
        {"participants": 0},
        {"participants": 1001},
        {"participants": ["a", "a"]},
        {"participants": ["Alice"]},
        {"participants": ["../p"]},
        {"participants": []},
        {"participants": 1, "federation": "A b"},
        {"participants": 1, "federation": "-bank"},
        {"participants": 1, "federation": "a..b"},
        {"participants": 1, "federation": "x" * 65},
    ],
)
def test_arguments_that_cannot_work_are_refused_before_anything_is_written(tmp_path, wrong):
    with pytest.raises(ConfigurationError):
        provision(tmp_path / "f", **wrong)
    assert list(tmp_path.iterdir()) == []


def test_free_ports_are_all_different():
    plan = PortPlan.free()
    ports = [plan.coordinator.listen, plan.coordinator.health, plan.coordinator.metrics]
    ports += [n for p in plan.parties for n in (p.listen, p.health, p.metrics, p.peer)]
    assert len(set(ports)) == 15


def test_two_federations_never_get_the_same_ports(monkeypatch):
    """Neither has begun to listen when the other one asks; two test runs at a time met on one now and then."""
    start = PortPlan.free().coordinator.listen  # what is claimed stays so: a test run has no need of these
    monkeypatch.setattr("triskele_server.rpc.ports._DRAWN", range(start, start + 15))
    with pytest.raises(ConfigurationError, match="none is free"):
        PortPlan.free()


@pytest.mark.parametrize("base", [0, -1, 65500])
def test_base_port_without_room_is_refused(base):
    with pytest.raises(ConfigurationError, match="base port"):
        PortPlan.from_base(base)


def _command(*arguments: str) -> subprocess.CompletedProcess[str]:
    code = "import sys; from triskele.cli import main; sys.exit(main())"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False, timeout=120
    )


@pytest.mark.parametrize("as_json", [False, True])
def test_command_reports_files_and_never_prints_a_key(tmp_path, as_json):
    directory = tmp_path / "f"
    extra = ["--json"] if as_json else []
    done = _command("provision", "--directory", str(directory), "--participants", "2", *extra)
    assert done.returncode == 0, done.stderr
    printed = done.stdout + done.stderr
    assert "PRIVATE" not in printed
    for path in directory.rglob("*.key"):
        body = "".join(path.read_text().splitlines()[1:-1])
        assert not any(body[i : i + 12] in printed for i in range(0, len(body) - 12, 12))
    assert str(directory / "party-2" / "party.toml") in printed
    if as_json:
        report = json.loads(done.stdout)
        assert report["participants"]["p01"] == str(directory / "participants" / "p01" / "participant.toml")


def test_command_refuses_an_existing_folder_with_one_line_and_exit_code_2(tmp_path):
    (tmp_path / "mine").write_text("")
    done = _command("provision", "--directory", str(tmp_path), "--participants", "2")
    assert done.returncode == 2
    assert done.stderr.startswith("triskele: ")
    assert len(done.stderr.splitlines()) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]
