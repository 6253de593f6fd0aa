"""A device takes the newest model that its keys vouch for, and nothing that an attacker makes of a repository."""

import datetime
import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
from tuf.api.metadata import Metadata, MetaFile, TargetFile
from tuf.ngclient._internal import trusted_metadata_set  # where a device's clock is read

from triskele.array_files import read_arrays
from triskele.errors import ConfigurationError, NotFound
from triskele.model_releases import DownloadLimits, RoleKeys, TrustFolder, pull_model, verify_model

from .publisher import Publisher, refused
from .rounds import TASK, Parties, certificate


def test_a_device_gets_the_newest_model_and_every_certificate_behind_it_is_checked(publisher, device):
    pulled = device.pull(publisher.place)
    assert (pulled.release.version, pulled.newest, pulled.rounds, pulled.fetched) == (2, 2, 3, True)
    assert [r.number for r in pulled.release.rounds] == [2, 4]
    assert read_arrays(device.output)["w"].tolist() == [2.0] * 10
    assert not device.pull(publisher.place).fetched
    publisher.publish(3, 5)
    assert device.pull(publisher.place).release.version == 3


def test_an_older_version_is_given_to_who_asks_for_it(publisher, device):
    assert device.pull(publisher.place, version=1).release.version == 1
    assert read_arrays(device.output)["w"][0] == 1.0
    with pytest.raises(NotFound, match="0 to 2"):
        device.pull(publisher.place, version=3)


def test_a_file_is_recognised_as_a_version_or_refused(publisher, device):
    device.pull(publisher.place)
    for place in (str(publisher.place), None):  # None: offline, from what the pull saw
        assert verify_model(publisher.model(1), device.trust, place).release.version == 1
        assert verify_model(device.output, device.trust, place).release.version == 2
    device.output.write_bytes(device.output.read_bytes() + b"\0")
    with refused("unknown_model"):
        verify_model(device.output, device.trust)


def test_a_device_that_pulled_nothing_yet_cannot_verify_offline(publisher, device):
    with pytest.raises(NotFound, match="earlier pull"):
        verify_model(publisher.model(0), device.trust)


# An old state of the repository


def test_a_repository_that_is_rolled_back_is_refused(publisher, device):
    old = publisher.copy()
    publisher.publish(3, 5)
    device.pull(publisher.place)
    with refused("rolled_back"):
        device.pull(old)
    assert read_arrays(device.output)["w"][0] == 3.0


def test_a_timestamp_that_is_rolled_back_is_refused(publisher, device):
    old = (publisher.metadata / "timestamp.json").read_bytes()
    publisher.publish(3, 5)
    device.pull(publisher.place)
    (publisher.metadata / "timestamp.json").write_bytes(old)
    with refused("rolled_back"):
        device.pull(publisher.place)


@pytest.mark.parametrize("role", ["snapshot", "targets"])
def test_an_older_file_under_a_newer_name_is_refused(publisher, device, role):
    old = (publisher.metadata / f"4.{role}.json").read_bytes()
    publisher.publish(3, 5)
    (publisher.metadata / f"5.{role}.json").write_bytes(old)
    with refused("altered"):
        device.pull(publisher.place)


def test_a_root_that_is_served_again_under_the_next_name_is_refused(publisher, device):
    shutil.copyfile(publisher.metadata / "1.root.json", publisher.metadata / "2.root.json")
    with refused("rolled_back"):
        device.pull(publisher.place)


@pytest.mark.parametrize("role", ["snapshot", "timestamp"])
def test_an_old_list_of_versions_that_stolen_keys_sign_anew_is_refused(publisher, device, role):
    """The keys of snapshot and timestamp in wrong hands: newer numbers over older contents."""
    old = (publisher.metadata / ("4.targets.json" if role == "snapshot" else "4.snapshot.json")).read_bytes()
    publisher.publish(3, 5)
    device.pull(publisher.place)

    def older(signed):
        found = MetaFile.from_data(4, old, ["sha256"])
        if role == "snapshot":
            signed.meta["targets.json"] = found
        else:
            signed.snapshot_meta = found

    publisher.edit(role, older)
    with refused("rolled_back"):
        device.pull(publisher.place)


def pass_days(monkeypatch, days):
    later = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=days)
    clock = SimpleNamespace(now=lambda _: later)
    monkeypatch.setattr(trusted_metadata_set, "datetime", SimpleNamespace(datetime=clock, timezone=datetime.timezone))


def test_a_repository_that_is_frozen_is_refused_once_its_timestamp_has_expired(publisher, device, monkeypatch):
    device.pull(publisher.place)
    pass_days(monkeypatch, 6.9)
    device.pull(publisher.place)
    pass_days(monkeypatch, 7.1)
    with refused("expired", "timestamp", "refresh"):
        device.pull(publisher.place)
    with refused("expired"):
        verify_model(device.output, device.trust)


def test_a_refreshed_repository_is_taken_and_vouches_for_another_week(publisher, device, monkeypatch):
    device.pull(publisher.place)
    publisher.clock[0] = datetime.timedelta(days=6)
    publisher.repository.refresh(publisher.keys)
    pass_days(monkeypatch, 10)
    assert device.pull(publisher.place).release.version == 2


@pytest.mark.parametrize("role", ["targets", "root"])
def test_a_fresh_timestamp_does_not_make_up_for_what_has_expired(publisher, device, monkeypatch, role):
    publisher.clock[0] = datetime.timedelta(days=300)
    if role == "root":  # a new list of targets is no new root, and the other way round
        publisher.publish(3, 5)
    else:
        publisher.repository.rotate(publisher.keys)
    publisher.clock[0] = datetime.timedelta(days=365)
    publisher.repository.refresh(publisher.keys)
    pass_days(monkeypatch, 366)
    with refused("expired", role):
        device.pull(publisher.place)


def test_a_snapshot_that_has_expired_is_refused(publisher, device):
    publisher.edit("snapshot", lambda s: setattr(s, "expires", datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)))
    with refused("expired", "snapshot"):
        device.pull(publisher.place)


# Other keys


@pytest.mark.parametrize("role", ["targets", "snapshot", "timestamp"])
def test_metadata_signed_with_another_key_is_refused(publisher, device, role, tmp_path):
    other = RoleKeys.completed(tmp_path / "other")
    publisher.keys = RoleKeys(publisher.keys.public, {**publisher.keys.signers, role: other.signers[role]})
    publisher.edit(role, lambda _: None)
    with refused("unsigned", role):
        device.pull(publisher.place)


def test_the_repository_of_another_root_is_refused(publisher, device, tmp_path):
    other = Publisher(tmp_path / "other")
    other.publish(0)
    with refused("unsigned"):
        device.pull(other.place)


def test_a_new_root_that_the_old_one_did_not_sign_is_refused(publisher, device, tmp_path):
    other = Publisher(tmp_path / "other")
    other.repository.rotate(other.keys)
    shutil.copyfile(other.metadata / "2.root.json", publisher.metadata / "2.root.json")
    with refused("unsigned"):
        device.pull(publisher.place)


def test_keys_are_rotated_under_a_device(publisher, device, tmp_path):
    device.pull(publisher.place)
    new = RoleKeys.completed(tmp_path / "new")
    assert publisher.repository.rotate(new, outgoing=publisher.keys).awaited == ()
    publisher.keys = new
    publisher.publish(3, 5)
    assert device.pull(publisher.place).release.version == 3


def test_the_keys_of_other_parties_are_not_believed(publisher, device, tmp_path):
    for path in Parties(tmp_path / "others").folder.iterdir():
        shutil.copyfile(path, device.folder / "trust" / path.name)
    with refused("uncertified", "no signature"):
        device.pull(publisher.place)


# Other bytes


@pytest.mark.parametrize(
    "path", ["versions/2/model.npz", "versions/1/round-1.certificate.json", "versions/2/round-4.proof.json"]
)
def test_a_target_that_is_changed_by_one_byte_is_refused(publisher, device, path):
    file = publisher.stored(path)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with refused("altered"):
        device.pull(publisher.place)
    assert not device.output.exists()
    assert list(device.folder.glob(".*.part")) == []


@pytest.mark.parametrize("path", ["versions/2/model.npz", "versions/2/round-4.proof.json"])
def test_a_file_that_is_longer_than_announced_is_refused(publisher, device, path):
    with publisher.stored(path).open("ab") as file:
        file.write(b"\0")
    with refused("too_large"):
        device.pull(publisher.place)


@pytest.mark.parametrize("name", ["timestamp.json", "2.root.json"])
def test_metadata_without_end_is_refused(publisher, device, name):
    (publisher.metadata / name).write_bytes(b" " * 600_000)
    with refused("too_large"):
        device.pull(publisher.place)


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"\xff", b'{"signed": 1, "signatures": 1}', b"[" * 9000])
def test_metadata_that_is_none_is_refused(publisher, device, content):
    (publisher.metadata / "timestamp.json").write_bytes(content)
    with refused("malformed"):
        device.pull(publisher.place)


def test_a_model_over_the_devices_limits_is_not_fetched(publisher, device):
    with refused("too_large"):
        device.pull(publisher.place, limits=DownloadLimits(model_bytes=100))
    with refused("too_large"):
        verify_model(publisher.model(0), device.trust, str(publisher.place), limits=DownloadLimits(evidence_bytes=100))
    device.pull(publisher.place)


# A chain that does not hold, signed by the publisher's own keys


def test_a_skipped_version_is_refused(publisher, device):
    def without_1(targets):
        targets.targets = {path: t for path, t in targets.targets.items() if not path.startswith("versions/1/")}

    publisher.edit("targets", without_1)
    with refused("broken_chain", "version 1 is missing"):
        device.pull(publisher.place)


def test_a_version_that_was_made_from_another_one_is_refused(publisher, device):
    def other_parent(targets):
        targets.targets["versions/2/model.npz"].custom["parent"] = "a" * 64

    publisher.edit("targets", other_parent)
    with refused("broken_chain", "made from another model"):
        device.pull(publisher.place)


def test_a_version_in_the_middle_that_was_exchanged_is_refused(publisher, device):
    def exchanged(targets):
        targets.targets["versions/1/model.npz"].hashes["sha256"] = "a" * 64

    publisher.edit("targets", exchanged)
    with refused("broken_chain", "made from another model"):
        device.pull(publisher.place)


def test_a_version_without_rounds_is_refused(publisher, device):
    def without_rounds(targets):
        targets.targets["versions/1/model.npz"].custom["rounds"] = []
        for kind in ("certificate", "proof"):
            del targets.targets[f"versions/1/round-1.{kind}.json"]

    publisher.edit("targets", without_rounds)
    with refused("broken_chain", "rounds that it came from"):
        device.pull(publisher.place)


def test_a_round_that_is_not_after_those_before_is_refused(publisher, device):
    def twice(targets):
        rounds = targets.targets["versions/2/model.npz"].custom["rounds"]
        rounds.reverse()

    publisher.edit("targets", twice)
    with refused("broken_chain", "not after round 4"):
        device.pull(publisher.place)


@pytest.mark.parametrize("kind", ["certificate", "proof"])
def test_a_version_whose_certificate_or_proof_is_missing_is_refused(publisher, device, kind):
    publisher.edit("targets", lambda targets: targets.targets.pop(f"versions/1/round-1.{kind}.json"))
    with refused("broken_chain", f"round-1.{kind}.json"):
        device.pull(publisher.place)


def test_a_certificate_of_another_task_is_refused(publisher, device, tmp_path):
    spec = replace(TASK, name="voices")
    (other,) = publisher.parties.log(tmp_path / "log", [certificate(1, task=spec)])
    publisher.replace_evidence(1, 1, other)
    with refused("uncertified", "another task"):
        device.pull(publisher.place)


def test_versions_of_two_tasks_are_refused(publisher, device, tmp_path):
    spec = replace(TASK, name="voices")
    (other,) = publisher.parties.log(tmp_path / "log", [certificate(1, task=spec)])
    publisher.replace_evidence(1, 1, other)

    def of_the_other(targets):
        named = targets.targets["versions/1/model.npz"].custom["rounds"][0]
        named["task"] = spec.digest.hex()

    publisher.edit("targets", of_the_other)
    with refused("broken_chain", "another task"):
        device.pull(publisher.place)


def test_the_certificate_of_another_round_is_refused(publisher, device):
    publisher.replace_evidence(1, 1, publisher.rounds[2])
    with refused("uncertified", "round 2"):
        device.pull(publisher.place)


def test_another_outcome_of_the_same_round_is_refused(publisher, device, tmp_path):
    (other,) = publisher.parties.log(tmp_path / "log", [certificate(1, output="other")])
    publisher.replace_evidence(1, 1, other)
    with refused("uncertified", "another outcome"):
        device.pull(publisher.place)


def test_the_certificate_of_a_round_that_was_not_released_is_refused(publisher, device):
    publisher.replace_evidence(1, 1, publisher.rounds[3])
    with refused("uncertified", "FAILED"):
        device.pull(publisher.place)


def test_a_certificate_with_two_signatures_is_refused_unless_two_are_enough(publisher, device, tmp_path):
    (other,) = publisher.parties.log(tmp_path / "log", [certificate(1)], signers=(0, 1), cosigners=(0, 1))
    publisher.replace_evidence(1, 1, other)
    with refused("uncertified"):
        device.pull(publisher.place)
    two = TrustFolder.from_folder(device.folder / "trust", signatures=2)
    assert verify_model(publisher.model(2), two, str(publisher.place)).rounds == 3


def test_a_log_that_two_parties_have_cosigned_is_refused(publisher, device, tmp_path):
    (other,) = publisher.parties.log(tmp_path / "log", [certificate(1)], cosigners=(1, 2))
    publisher.replace_evidence(1, 1, other)
    with refused("uncertified", "cosigned by 2"):
        device.pull(publisher.place)


def test_a_certificate_that_is_not_in_the_log_is_refused(publisher, device, tmp_path):
    mixed = tmp_path / "mixed"
    shutil.copytree(publisher.rounds[1], mixed)
    shutil.copyfile(publisher.rounds[2] / "proof.json", mixed / "proof.json")
    publisher.replace_evidence(1, 1, mixed)
    with refused("uncertified"):
        device.pull(publisher.place)


@pytest.mark.parametrize("proof", [b"", b"[]", b"{}", b'{"index": "0", "hashes": [], "checkpoint": ""}', b"[" * 9000])
def test_a_proof_that_is_none_is_refused(publisher, device, tmp_path, proof):
    bad = tmp_path / "bad"
    shutil.copytree(publisher.rounds[1], bad)
    (bad / "proof.json").write_bytes(proof)
    publisher.replace_evidence(1, 1, bad)
    with refused("uncertified"):
        device.pull(publisher.place)


def test_versions_that_were_accepted_before_cannot_be_told_differently(publisher, device):
    """The targets key in wrong hands: a consistent chain with another past."""

    def another_past(targets):
        targets.targets["versions/0/model.npz"].hashes["sha256"] = "a" * 64
        targets.targets["versions/1/model.npz"].custom["parent"] = "a" * 64

    device.pull(publisher.place)
    publisher.edit("targets", another_past)
    with refused("rewritten"):
        device.pull(publisher.place)


def test_versions_that_were_accepted_before_cannot_vanish(publisher, device):
    def shorter(targets):
        targets.targets = {path: t for path, t in targets.targets.items() if not path.startswith("versions/2/")}

    device.pull(publisher.place)
    publisher.edit("targets", shorter)
    with refused("rewritten"):
        device.pull(publisher.place)


@pytest.mark.parametrize(
    "change",
    [
        lambda note: note.update(version=2),
        lambda note: note.update(version=True),
        lambda note: note.update(parent=7),
        lambda note: note.update(parent="A" * 64),
        lambda note: note.update(rounds={}),
        lambda note: note.update(rounds=[1]),
        lambda note: note["rounds"][0].update(number="1"),
        lambda note: note["rounds"][0].update(leaf="A" * 64),
        lambda note: note["rounds"][0].update(task=None),
        lambda note: note["rounds"][0].pop("federation"),
        lambda note: note.update(more=1),
    ],
)
def test_a_note_that_cannot_be_read_is_refused(publisher, device, change):
    publisher.edit("targets", lambda targets: change(targets.targets["versions/1/model.npz"].custom))
    with refused("malformed"):
        device.pull(publisher.place)


@pytest.mark.parametrize(
    "path", ["versions/3/model.exe", "versions/03/model.npz", "../model.npz", "notes", "versions/3/"]
)
def test_a_target_that_is_no_part_of_a_release_is_refused(publisher, device, path):
    publisher.edit("targets", lambda t: t.targets.update({path: TargetFile.from_data(path, b"", ["sha256"])}))
    with refused("malformed"):
        device.pull(publisher.place)


@pytest.mark.parametrize("hashes", [{"sha512": "a" * 128}, {"sha256": "../../a"}])
def test_evidence_with_another_kind_of_digest_is_refused(publisher, device, hashes):
    def other(targets):
        targets.targets["versions/1/round-1.proof.json"].hashes = hashes

    publisher.edit("targets", other)
    with refused("malformed"):
        device.pull(publisher.place)


# What the device itself keeps


def test_a_damaged_memory_stops_the_device_instead_of_being_forgotten(publisher, device):
    device.pull(publisher.place)
    for content in ("{", "{}", "[1]"):
        (device.folder / "trust" / "state" / "accepted.json").write_text(content)
        with pytest.raises(ConfigurationError, match=r"accepted.json: is damaged"):
            device.pull(publisher.place)


def test_damaged_metadata_and_certificates_of_the_device_are_fetched_again(publisher, device):
    device.pull(publisher.place)
    state = device.folder / "trust" / "state"
    for path in [*(state / "metadata").glob("*.json"), *(state / "evidence").iterdir()]:
        if not path.is_symlink():
            path.write_bytes(b"damaged")
    assert device.pull(publisher.place).release.version == 2


def test_a_device_whose_keys_cannot_be_written_keeps_its_state_elsewhere(publisher, device, tmp_path):
    trust = TrustFolder.from_folder(device.folder / "trust", state=tmp_path / "elsewhere")
    assert verify_model(publisher.model(2), trust, str(publisher.place)).release.version == 2
    assert json.loads((tmp_path / "elsewhere" / "accepted.json").read_text())[2]["version"] == 2
    assert not (device.folder / "trust" / "state").exists()


@pytest.mark.parametrize("name", ["root.json", "party-1.pub"])
def test_a_trust_folder_that_lacks_a_file_is_told_which(device, name):
    (device.folder / "trust" / name).unlink()
    with pytest.raises(ConfigurationError, match=name):
        _ = device.trust


@pytest.mark.parametrize("root", [b"", b"{}", b"\xff"])
def test_a_root_that_is_none_is_refused(publisher, device, root):
    (device.folder / "trust" / "root.json").write_bytes(root)
    with refused("malformed", "root.json"):
        device.pull(publisher.place)


@pytest.mark.parametrize(("name", "words"), [("m.safetensors", r"is a \.npz file"), ("no/m.npz", "does not exist")])
def test_an_output_that_cannot_be_is_named(publisher, device, tmp_path, name, words):
    with pytest.raises(ConfigurationError, match=words):
        pull_model(str(publisher.place), device.trust, tmp_path / name)


def test_a_folder_that_is_no_repository_is_named(device, tmp_path):
    with pytest.raises(ConfigurationError, match="no repository of models"):
        device.pull(tmp_path)


def test_metadata_of_the_repository_is_what_tuf_says_it_is(publisher):
    """Read by python-tuf's own classes; consistent snapshots, digests at every step."""
    root = Metadata.from_file(str(publisher.metadata / "1.root.json")).signed
    assert root.consistent_snapshot
    assert {role: len(found.keyids) for role, found in root.roles.items()} == dict.fromkeys(root.roles, 1)
    timestamp = Metadata.from_file(str(publisher.metadata / "timestamp.json")).signed
    assert set(timestamp.snapshot_meta.hashes) == {"sha256"}
