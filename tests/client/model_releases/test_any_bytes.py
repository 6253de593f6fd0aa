"""Whatever a repository or a disk holds, a device gets a value or our typed error, never another exception."""

import contextlib
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tuf.api.metadata import TargetFile

from triskele.errors import ConfigurationError, ModelRefused, TriskeleError
from triskele.model_releases import ReleaseChain, RoleKeys
from triskele.model_releases.certified_round import certified_round
from triskele.transparency.party_keys import PartyKeys

MANY = settings(max_examples=100, deadline=None, database=None, suppress_health_check=list(HealthCheck))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=10,
)
PATHS = st.sampled_from(("versions/0/model.npz", "versions/1/model.npz", "versions/0/round-1.proof.json"))


def note(rounds):
    return st.fixed_dictionaries({"version": st.integers(-1, 2) | JSON, "parent": JSON, "rounds": rounds})


ROUND = st.fixed_dictionaries({"federation": JSON, "task": JSON, "number": JSON, "leaf": JSON})
NOTES = JSON | note(JSON) | note(st.lists(ROUND | JSON, max_size=3))


@MANY
@given(st.dictionaries(PATHS, st.tuples(NOTES, st.dictionaries(st.text(max_size=8), st.text(max_size=70)))))
def test_any_list_of_targets(content):
    targets = {
        path: TargetFile(1, hashes or {"sha256": "a" * 64}, path, {"custom": custom})
        for path, (custom, hashes) in content.items()
    }
    with contextlib.suppress(ModelRefused):
        ReleaseChain.from_targets(targets)


@pytest.mark.parametrize("name", ["certificate.json", "proof.json"])
def test_any_certificate_and_any_proof(publisher, name, tmp_path):
    keys = PartyKeys.from_folder(publisher.parties.folder)
    files = {kind: (publisher.rounds[1] / kind).read_bytes() for kind in ("certificate.json", "proof.json")}
    paths = [tmp_path / kind for kind in files]
    for path in paths:
        path.write_bytes(files[path.name])
    assert certified_round(*paths, keys, "round 1").number == 1

    @MANY
    @given(
        st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()),
        st.integers(0),
        st.integers(1, 255),
    )
    def run(content, place, change):
        damaged = bytearray(files[name])
        damaged[place % len(damaged)] ^= change
        for data in (content, bytes(damaged), files[name][: place % len(damaged)]):
            (tmp_path / name).write_bytes(data)
            with contextlib.suppress(ModelRefused):
                certified_round(*paths, keys, "round 1")

    run()


@pytest.mark.parametrize("name", ["root.json", "state/accepted.json", "state/metadata/targets.json", "party-0.pub"])
def test_any_file_of_a_device(publisher, device, name):
    device.pull(publisher.place)
    file = device.folder / "trust" / name
    kept = file.read_bytes()

    @settings(MANY, max_examples=15)
    @given(
        st.binary(max_size=100) | JSON.map(lambda value: json.dumps(value).encode()),
        st.integers(0),
        st.integers(1, 255),
    )
    def run(content, place, change):
        damaged = bytearray(kept)
        damaged[place % len(damaged)] ^= change
        for data in (content, bytes(damaged)):
            file.write_bytes(data)
            with contextlib.suppress(TriskeleError):
                device.pull(publisher.place)
        file.write_bytes(kept)

    run()


@MANY
@given(content=st.binary(max_size=200))
@pytest.mark.parametrize("name", ["root.pem", "targets-x.pub"])
def test_any_key(tmp_path_factory, name, content):
    folder = tmp_path_factory.mktemp("keys")
    (folder / name).write_bytes(content)
    with contextlib.suppress(ConfigurationError):
        RoleKeys.from_folder(folder)
