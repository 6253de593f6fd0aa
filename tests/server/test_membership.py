"""Members added, renewed and shut out after `triskele provision`."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography import x509

from triskele.config import ParticipantConfig
from triskele.credentials import Credentials
from triskele.errors import ConfigurationError, Forbidden
from triskele.identity import Identity
from triskele.transparency.party_keys import PartyKeys
from triskele_server.config import load_coordinator, load_party
from triskele_server.membership import add_participants, revoke, rotate
from triskele_server.party.certifier import load_certifying_key
from triskele_server.provision import provision
from triskele_server.rpc.deny_list import DenyList

FEDERATION = "bank.example"


@pytest.fixture
def directory(tmp_path) -> Path:
    return provision(tmp_path / "f", participants=1, federation=FEDERATION, operator=True).directory


def serial(path: Path) -> int:
    return x509.load_pem_x509_certificate(path.read_bytes()).serial_number


def lists(directory: Path) -> list[DenyList]:
    parties = [load_party(directory / f"party-{i}" / "party.toml") for i in range(3)]
    coordinator = load_coordinator(directory / "coordinator" / "coordinator.toml")
    return [DenyList(config.tls.denied) for config in (*parties, coordinator)]


def everything(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}


def test_an_added_participant_is_as_good_as_one_of_the_first(directory):
    first = ParticipantConfig.load(directory / "participants" / "p00" / "participant.toml")
    made = add_participants(directory, ["zoe", "yan"])
    assert list(made) == ["zoe", "yan"]
    for name, path in made.items():
        config = ParticipantConfig.load(path)
        assert (config.participant, config.coordinator) == (name, first.coordinator)
        assert config.identity == Identity(FEDERATION, "participant", name)
        credentials = Credentials.load(config)
        authority = x509.load_pem_x509_certificate((directory / "ca" / "ca.crt").read_bytes())
        credentials.signing_certificate.verify_directly_issued_by(authority)
        assert stat.S_IMODE((path.parent / "tls.key").stat().st_mode) == 0o600


@pytest.mark.parametrize("names", [["p00"], ["zoe", "zoe"], ["zoe", "../x"], ["Zoe"], ["zoe", "p00"]])
def test_names_that_cannot_be_added_leave_everything_as_it_was(directory, names):
    before = everything(directory)
    with pytest.raises(ConfigurationError):
        add_participants(directory, names)
    assert everything(directory) == before


@pytest.mark.parametrize("broken", ["missing", "another authority's", "no key", "another federation's"])
def test_without_the_authoritys_own_key_nothing_is_issued(directory, tmp_path, broken):
    other = provision(tmp_path / "other", participants=1, federation=FEDERATION).directory
    foreign = provision(tmp_path / "foreign", participants=1, federation="other.example").directory
    key = directory / "ca" / "ca.key"
    match broken:
        case "missing":
            key.unlink()
        case "another authority's":
            key.write_bytes((other / "ca" / "ca.key").read_bytes())
        case "no key":
            key.write_text("-----BEGIN PRIVATE KEY-----\nsecret\n-----END PRIVATE KEY-----\n")
        case "another federation's":
            for name in ("ca.key", "ca.crt"):
                (directory / "ca" / name).write_bytes((foreign / "ca" / name).read_bytes())
    before = everything(directory)
    for change in (lambda: add_participants(directory, ["zoe"]), lambda: rotate(directory, "party-0")):
        with pytest.raises(ConfigurationError) as caught:
            change()
        assert "secret" not in str(caught.value)
    assert everything(directory) == before


@pytest.mark.parametrize("member", ["coordinator", "party-2", "operator", "p00"])
def test_a_rotated_member_keeps_its_identity_and_its_old_certificates_can_be_shut_out(directory, member):
    folder = directory / ("participants/p00" if member == "p00" else member)
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    old = [serial(folder / name) for name in ("tls.crt", "signing.crt") if name in before]
    done = rotate(directory, member)
    changed = {path.name for path in folder.iterdir() if path.is_file() and path.read_bytes() != before[path.name]}
    assert changed == {path.name for path in done.files}
    assert changed == {"tls.crt", "tls.key"} | ({"signing.crt", "signing.key"} if member == "p00" else set())
    if member == "p00":
        Credentials.load(ParticipantConfig.load(folder / "participant.toml"))  # each key fits its certificate
    for entry in done.replaced:
        revoke(directory, entry)
    for deny_list in lists(directory):
        for number in old:
            with pytest.raises(Forbidden, match="successor"):
                deny_list.check(done.identity, number)
        deny_list.check(done.identity, serial(folder / "tls.crt"))


def test_a_party_gets_a_new_key_for_certificates_and_everybody_its_public_half_beside_the_old_one(directory):
    folders = [directory / "keys", directory / "participants" / "p00", directory / "operator"]
    before = [PartyKeys.from_folder(folder) for folder in folders]
    old = load_certifying_key(directory / "party-1" / "signing.key")
    rotate(directory, "party-1", signing=True)
    new = load_certifying_key(directory / "party-1" / "signing.key")
    for folder, known in zip(folders, before, strict=True):
        now = PartyKeys.from_folder(folder)
        assert (now.of(0), now.of(2)) == (known.of(0), known.of(2))
        assert now.of(1) == (new.public_key(), old.public_key())
    with pytest.raises(ConfigurationError, match="only parties sign"):
        rotate(directory, "p00", signing=True)


@pytest.mark.parametrize("entry", ["p00", f"spiffe://{FEDERATION}/participant/p00"])
def test_a_revoked_member_is_on_the_list_of_every_server_once(directory, entry):
    assert revoke(directory, entry) == revoke(directory, entry)
    for deny_list in lists(directory):
        with pytest.raises(Forbidden):
            deny_list.check(Identity(FEDERATION, "participant", "p00"), 1)
        deny_list.check(Identity(FEDERATION, "participant", "p01"), 1)
    assert (directory / "party-1" / "denied.txt").read_text() == f"spiffe://{FEDERATION}/participant/p00\n"


@pytest.mark.parametrize("member", ["nobody", "../f/party-0", "ca", ""])
def test_what_is_no_member_is_refused(directory, member):
    before = everything(directory)
    for change in (rotate, revoke):
        with pytest.raises(ConfigurationError, match="no member"):
            change(directory, member)
    assert everything(directory) == before


def test_what_is_no_entry_is_refused_before_a_list_is_touched(directory):
    before = everything(directory)
    for entry in ("serial:xyz", "spiffe://bank.example/x", "serial:1\nspiffe://bank.example/party/0"):
        with pytest.raises(ConfigurationError):
            revoke(directory, entry)
    assert everything(directory) == before


def _command(*arguments: str) -> subprocess.CompletedProcess[str]:
    code = "import sys; from triskele.cli import main; sys.exit(main())"
    return subprocess.run(
        [sys.executable, "-c", code, "provision", *arguments], capture_output=True, text=True, check=False, timeout=120
    )


def test_commands_report_what_they_wrote_and_never_a_key(directory):
    added = _command("add-participant", "zoe", "--directory", str(directory), "--json")
    assert json.loads(added.stdout)["participants"] == {"zoe": str(directory / "participants/zoe/participant.toml")}
    rotated = _command("rotate", "zoe", "--directory", str(directory), "--json")
    entries = json.loads(rotated.stdout)["replaced"]
    revoked = _command("revoke", entries[0], "--directory", str(directory))
    assert all(str(directory / server / "denied.txt") in revoked.stdout for server in ("coordinator", "party-2"))
    assert (added.returncode, rotated.returncode, revoked.returncode) == (0, 0, 0)
    printed = added.stdout + rotated.stdout + revoked.stdout
    for path in directory.rglob("*.key"):
        body = "".join(path.read_text().splitlines()[1:-1])
        assert not any(body[i : i + 12] in printed for i in range(0, len(body) - 12, 12))
    wrong = _command("rotate", "nobody", "--directory", str(directory))
    assert (wrong.returncode, len(wrong.stderr.splitlines())) == (2, 1)
    assert _command().returncode == 2
