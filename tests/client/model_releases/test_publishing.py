"""What may be published, by one person or by several; a step that does not hold is signed by nobody."""

import datetime
import os
import shutil
import stat
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import save_file
from tuf.api.metadata import Metadata, TargetFile

from triskele.errors import ConfigurationError, Conflict, InvalidUpdate, NotFound, WrongState
from triskele.model_releases import ModelRepository, RoleKeys, Thresholds, TrustFolder, pull_model
from triskele.model_releases.role_keys import write_key

from .publisher import Publisher, refused
from .rounds import TASK, Parties, certificate


def files(publisher):
    return {p: p.read_bytes() for p in publisher.place.rglob("*") if p.is_file()}


def test_a_version_that_exists_is_refused(publisher):
    before = files(publisher)
    for version in (0, 1, 2):
        with pytest.raises(Conflict, match="the next is 3"):
            publisher.publish(version, 5)
    assert files(publisher) == before


def test_a_gap_is_refused(publisher):
    with pytest.raises(WrongState, match="the next is 3"):
        publisher.publish(4, 5)


@pytest.mark.parametrize(
    ("numbers", "reason", "words"),
    [
        ((3,), "uncertified", "FAILED"),
        ((4,), "broken_chain", "not after round 4"),
        ((1, 5), "broken_chain", "not after round 4"),
        ((), "broken_chain", "rounds that it came from"),
    ],
)
def test_rounds_that_cannot_be_behind_a_version_are_refused(publisher, numbers, reason, words):
    before = files(publisher)
    with refused(reason, words):
        publisher.publish(3, *numbers)
    assert files(publisher) == before


def test_version_0_comes_from_no_round(tmp_path):
    publisher = Publisher(tmp_path / "publisher")
    with refused("broken_chain"):
        publisher.publish(0, 1)


def test_a_certificate_of_another_task_is_refused(publisher, tmp_path):
    spec = replace(TASK, name="voices")
    (publisher.rounds[9],) = publisher.parties.log(tmp_path / "log", [certificate(9, task=spec)])
    with refused("broken_chain", "another task"):
        publisher.publish(3, 9)


def test_a_certificate_of_other_parties_is_refused(publisher, tmp_path):
    (publisher.rounds[9],) = Parties(tmp_path / "others").log(tmp_path / "log", [certificate(9)])
    with refused("uncertified"):
        publisher.publish(3, 9)


@pytest.mark.parametrize("name", ["certificate.json", "proof.json"])
@pytest.mark.parametrize("damage", ["byte", "missing"])
def test_a_logged_certificate_that_is_damaged_is_refused(publisher, name, damage):
    file = publisher.rounds[5] / name
    if damage == "missing":
        file.unlink()
        with pytest.raises(ConfigurationError, match=name):
            publisher.publish(3, 5)
        return
    content = bytearray(file.read_bytes())
    content[content.index(b"checkpoint" if name == "proof.json" else b"payload") + 40] ^= 1
    file.write_bytes(content)
    with refused("uncertified"):
        publisher.publish(3, 5)


@pytest.mark.parametrize(("name", "content"), [("model-3.npz", b"no model"), ("model-3.pt", b"pickle")])
def test_a_file_that_is_no_model_is_refused(publisher, name, content):
    path = publisher.folder / name
    path.write_bytes(content)
    with pytest.raises(InvalidUpdate):
        publisher.repository.publish(path, 3, [publisher.rounds[5]], publisher.keys)


def test_a_safetensors_model_is_published(publisher, device):
    save_file({"w": np.ones(3)}, publisher.folder / "model.safetensors")
    done = publisher.repository.publish(
        publisher.folder / "model.safetensors", 3, [publisher.rounds[5]], publisher.keys
    )
    assert done.awaited == ()
    pulled = pull_model(str(publisher.place), device.trust, device.folder / "m.safetensors")
    assert pulled.release.suffix == ".safetensors"


def test_nobody_else_can_read_a_private_key(tmp_path):
    private, public = write_key(tmp_path / "keys", "targets", "alice")
    assert stat.S_IMODE(os.stat(private).st_mode) == 0o600
    assert (private.name, public.name) == ("targets-alice.pem", "targets-alice.pub")
    assert private.read_text().splitlines()[1] not in repr(RoleKeys.from_folder(tmp_path / "keys"))
    with pytest.raises(ConfigurationError, match="already"):
        write_key(tmp_path / "keys", "targets", "alice")
    with pytest.raises(ConfigurationError, match="no role"):
        write_key(tmp_path / "keys", "models")


def test_what_a_web_server_serves_is_as_readable_as_other_files(publisher):
    mask = os.umask(0o077)
    os.umask(mask)
    for path in (*publisher.metadata.iterdir(), publisher.stored("versions/0/model.npz")):
        assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask


@pytest.mark.parametrize("content", ["", "-----BEGIN PRIVATE KEY-----\nAA==\n-----END PRIVATE KEY-----\n"])
@pytest.mark.parametrize("name", ["root-x.pem", "root-x.pub"])
def test_a_key_file_that_is_none_is_named(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    with pytest.raises(ConfigurationError, match=name):
        RoleKeys.from_folder(tmp_path)


def test_a_second_repository_in_the_same_place_is_refused(publisher):
    with pytest.raises(Conflict):
        publisher.repository.create(publisher.keys, publisher.parties.folder)


def test_no_repository_is_named(tmp_path, publisher):
    with pytest.raises(NotFound, match="triskele model init"):
        ModelRepository(tmp_path / "nowhere").refresh(publisher.keys)


def test_a_repository_that_somebody_changed_is_not_built_upon(publisher):
    path = publisher.metadata / "4.targets.json"
    path.write_bytes(path.read_bytes().replace(b'"version":2', b'"version":3'))
    with refused("unsigned"):
        publisher.publish(3, 5)


# Several people


class Two:
    """Alice and Bob hold a key of root and targets each; both must sign. Alice's machine also keeps the newest."""

    def __init__(self, folder):
        self.folder = folder
        self.place = folder / "repository"
        self.parties = Parties(folder / "parties")
        for name in ("alice", "bob"):
            for role in ("root", "targets"):
                write_key(folder / name, role, name)
        for role in ("root", "targets"):
            shutil.copy(folder / "bob" / f"{role}-bob.pub", folder / "alice")
        self.alice = RoleKeys.completed(folder / "alice")
        self.bob = RoleKeys.from_folder(folder / "bob")
        self.repository = ModelRepository(self.place)
        self.made = self.repository.create(self.alice, self.parties.folder, Thresholds(root=2, targets=2))
        self.model = folder / "model.npz"
        np.savez(self.model, w=np.ones(3))
        self.rounds = self.parties.log(folder / "log", [certificate(n) for n in (1, 2)])

    def pull(self, name="device"):
        device = self.folder / name
        if not device.exists():
            shutil.copytree(self.place / "trust", device)
        return pull_model(str(self.place), TrustFolder.from_folder(device), self.folder / "out.npz")


@pytest.fixture
def two(tmp_path):
    return Two(tmp_path)


def test_a_repository_of_two_begins_when_both_have_signed(two):
    assert [tuple(entry) for entry in two.made.awaited] == [("root", 1), ("targets", 1)]
    assert not (two.place / "trust" / "root.json").exists()
    with pytest.raises(WrongState, match="root awaits"):
        two.repository.publish(two.model, 0, [], two.alice)
    # Bob has signed what was wanted of him, but snapshot and timestamp are Alice's
    assert [entry.role for entry in two.repository.sign(two.bob).awaited] == ["snapshot", "timestamp"]
    assert two.repository.sign(two.alice).awaited == ()
    with pytest.raises(NotFound, match="nothing awaits"):
        two.repository.sign(two.alice)


@pytest.fixture
def begun(two):
    two.repository.sign(two.bob)
    two.repository.sign(two.alice)
    return two


def test_a_version_is_seen_when_both_have_signed_and_not_before(begun):
    begun.repository.publish(begun.model, 0, [], begun.alice)
    with pytest.raises(NotFound, match="no version"):
        begun.pull()
    with pytest.raises(Conflict, match="awaits"):
        begun.repository.publish(begun.model, 0, [], begun.alice)
    begun.repository.sign(begun.bob)
    with pytest.raises(NotFound, match="no version"):
        begun.pull()
    assert begun.repository.refresh(begun.alice).awaited == ()
    assert begun.pull().release.version == 0


def test_one_person_signing_twice_is_not_two(begun):
    begun.repository.publish(begun.model, 0, [], begun.alice)
    assert begun.repository.sign(begun.alice).awaited == (("targets", 1),)


def test_what_is_newest_is_renewed_while_a_version_awaits_signatures(begun):
    begun.repository.publish(begun.model, 0, [], begun.alice)
    before = Metadata.from_file(str(begun.place / "metadata" / "timestamp.json")).signed.version
    assert begun.repository.refresh(begun.alice).awaited == (("targets", 1),)
    assert Metadata.from_file(str(begun.place / "metadata" / "timestamp.json")).signed.version == before + 1
    with pytest.raises(ConfigurationError, match="snapshot and timestamp"):
        begun.repository.refresh(begun.bob)
    begun.repository.sign(begun.bob)
    begun.repository.refresh(begun.alice)
    assert begun.pull().release.version == 0


def stage(place, change, keys):
    """What a signer who means harm would ask the others to sign."""
    staged = place / "staged" / "targets.json"
    found = Metadata.from_file(str(staged))
    change(found.signed)
    found.sign(next(iter(keys.signers["targets"].values())))
    staged.write_bytes(found.to_bytes())


def test_a_signer_refuses_what_publish_would_have_refused(begun, tmp_path):
    begun.repository.publish(begun.model, 0, [], begun.alice)
    begun.repository.sign(begun.bob)
    begun.repository.refresh(begun.alice)
    begun.repository.publish(begun.model, 1, begun.rounds[:1], begun.alice)
    kept = (begun.place / "staged" / "targets.json").read_bytes()

    def another_certificate(targets):
        for kind in ("certificate", "proof"):
            path = f"versions/1/round-1.{kind}.json"
            content = (begun.rounds[1] / f"{kind}.json").read_bytes()
            targets.targets[path] = target = TargetFile.from_data(path, content, ["sha256"])
            (begun.place / "targets" / target.get_prefixed_paths()[0]).write_bytes(content)

    def another_past(targets):
        targets.targets["versions/0/model.npz"].length += 1

    def a_later_version(targets):
        targets.version += 1

    def another_model(targets):
        targets.targets["versions/1/model.npz"].length += 1

    for change, reason in (
        (another_certificate, "uncertified"),
        (another_past, "rewritten"),
        (a_later_version, "malformed"),
        (another_model, "altered"),
    ):
        stage(begun.place, change, begun.alice)
        with refused(reason):
            begun.repository.sign(begun.bob)
        (begun.place / "staged" / "targets.json").write_bytes(kept)
    begun.repository.sign(begun.bob)


def test_keys_change_hands_only_with_the_old_ones_and_the_new_ones(begun):
    begun.repository.publish(begun.model, 0, [], begun.alice)
    begun.repository.sign(begun.bob)
    begun.repository.refresh(begun.alice)
    begun.pull()
    # Carol takes Bob's place
    for role in ("root", "targets"):
        write_key(begun.folder / "carol", role, "carol")
        shutil.copy(begun.folder / "carol" / f"{role}-carol.pub", begun.folder / "alice")
        (begun.folder / "alice" / f"{role}-bob.pub").unlink()
    alice, carol = RoleKeys.from_folder(begun.folder / "alice"), RoleKeys.from_folder(begun.folder / "carol")
    assert begun.repository.rotate(alice).awaited == (("root", 1), ("targets", 1))
    assert begun.repository.sign(carol).awaited[0] == ("root", 1)  # Bob's is missing: two of those before must agree
    begun.repository.sign(begun.bob)
    assert begun.repository.sign(alice).awaited == ()
    assert begun.pull().release.version == 0
    begun.repository.publish(begun.model, 1, begun.rounds[:1], alice)
    begun.repository.sign(begun.bob)
    assert begun.pull().newest == 0  # Bob's signature counts no more
    begun.repository.sign(carol)
    begun.repository.refresh(alice)
    assert begun.pull().newest == 1


def test_fewer_keys_than_must_sign_are_refused(tmp_path, publisher):
    keys = RoleKeys.completed(tmp_path / "keys")
    with pytest.raises(ConfigurationError, match="2 keys of the role targets must sign, but 1"):
        ModelRepository(tmp_path / "r").create(keys, publisher.parties.folder, Thresholds(targets=2))
    with pytest.raises(ConfigurationError, match="2 keys of the role root"):
        publisher.repository.rotate(publisher.keys, thresholds=Thresholds(root=2))


@pytest.mark.parametrize("lost", ["metadata/timestamp.json", "metadata/5.snapshot.json", "metadata/5.targets.json"])
def test_a_step_that_was_interrupted_is_taken_again(publisher, device, lost, monkeypatch):
    """Killed before the file was written: what is before it in the order is there, the rest is not."""

    class Killed(BaseException):
        pass

    write = ModelRepository._write

    def until(self, name, content):
        if name == lost:
            raise Killed
        write(self, name, content)

    monkeypatch.setattr(ModelRepository, "_write", until)
    with pytest.raises(Killed):
        publisher.publish(3, 5)
    monkeypatch.undo()
    assert device.pull(publisher.place).newest == 2
    assert publisher.repository.sign(publisher.keys).awaited == ()
    assert device.pull(publisher.place).newest == 3


def test_a_change_of_all_keys_that_was_interrupted_is_taken_again(publisher, device, monkeypatch, tmp_path):
    class Killed(BaseException):
        pass

    write = ModelRepository._write

    def until(self, name, content):
        if name == "metadata/timestamp.json":
            raise Killed
        write(self, name, content)

    new = RoleKeys.completed(tmp_path / "new")
    monkeypatch.setattr(ModelRepository, "_write", until)
    with pytest.raises(Killed):
        publisher.repository.rotate(new, outgoing=publisher.keys)
    monkeypatch.undo()
    assert publisher.repository.sign(new).awaited == ()
    assert device.pull(publisher.place).newest == 2


def test_what_expires_when_is_told(publisher):
    expires = publisher.repository.look().expires
    days = {role: (when - datetime.datetime.now(datetime.UTC)).days for role, when in expires.items()}
    assert days == {"root": 364, "targets": 364, "snapshot": 29, "timestamp": 6}
