"""The JSON vectors of the share format: our code makes them, accepts the good and refuses the bad at the named step."""

import datetime
import json

import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from google.protobuf.message import DecodeError

from triskele.errors import InvalidTask, InvalidUpload
from triskele.ids import ParticipantId, RoundNumber, ShareIndex, TaskDigest, held_shares
from triskele.keystream import KeyStream, derive
from triskele.manifest import Manifest, verify
from triskele.ring import Ring
from triskele.sharing import ShareContext, Sharing, commitment_matches, reconstruct
from triskele.task import TaskSpec
from triskele_proto.v1 import types_pb2

from .make_vectors import FILE, FORMAT, STEPS, build

VECTORS = json.loads(FILE.read_text(encoding="utf-8"))
AUTHORITY = x509.load_der_x509_certificate(bytes.fromhex(VECTORS["federation"]["authority"]))


def unhex(text):
    return bytes.fromhex(text)


class RefusedError(Exception):
    """A check of a received upload has failed; the message is the step's name."""


def receive(case) -> Manifest:
    """Check an upload as a party does, step by step in the order of the vectors' `steps`."""
    try:
        spec = TaskSpec.from_canonical(unhex(case["task"]))
    except InvalidTask:
        raise RefusedError("task") from None
    try:
        signed = types_pb2.SignedManifest.FromString(unhex(case["signed_manifest"]))
        Manifest.from_proto(signed.manifest)
    except (DecodeError, InvalidUpload):
        raise RefusedError("decode") from None
    now = datetime.datetime.fromtimestamp(case["now"], datetime.UTC)
    try:
        manifest = verify(signed, authority=AUTHORITY, identity=case["identity"], now=now)
    except InvalidUpload as error:
        raise RefusedError(str(error).partition(":")[0]) from None
    if manifest.participant != case["identity"].rpartition("/")[2]:
        raise RefusedError("participant")
    try:
        manifest.check_belongs_to(spec, RoundNumber(case["round"]))
    except InvalidUpload:
        raise RefusedError("belongs-to") from None
    check_shares(case, manifest, spec.ring.word_bytes)
    return manifest


def check_shares(case, manifest, word_bytes) -> None:
    if tuple(share["index"] for share in case["shares"]) != held_shares(case["party"]):
        raise RefusedError("shares")
    for share in case["shares"]:
        expected = manifest.length * word_bytes if share["index"] == manifest.heavy else 16
        if len(unhex(share["salt"])) != 16 or len(unhex(share["share"])) != expected:
            raise RefusedError("shares")
    for share in case["shares"]:
        commitment = manifest.commitments[share["index"]]
        if not commitment_matches(commitment, unhex(share["salt"]), unhex(share["share"])):
            raise RefusedError("commitment")


def named(cases):
    return [pytest.param(case, id=case["name"]) for case in cases]


def test_file_is_what_the_generator_makes():
    assert build(VECTORS["federation"]) == VECTORS
    assert VECTORS["format"] == FORMAT


@pytest.mark.parametrize("case", named(VECTORS["positive"]))
def test_values_follow_from_each_other(case):
    spec = TaskSpec.from_canonical(case["task"].encode())
    assert spec.digest.hex() == case["task_digest"]
    context = ShareContext(
        TaskDigest(unhex(case["task_digest"])), RoundNumber(case["round"]), ParticipantId(case["participant"])
    )
    ring = Ring(case["ring_bits"])
    assert spec.ring == ring
    heavy = np.frombuffer(unhex(case["heavy_share"]), f"<i{case['ring_bits'] // 8}")
    total = heavy.copy()
    for index, seed in case["seeds"].items():
        info = context.info(ShareIndex(int(index)))
        assert info.hex() == case["hkdf_info"][index]
        assert derive(unhex(seed), info).hex() == case["keys"][index]
        expanded = KeyStream(unhex(case["keys"][index])).words(spec.length, ring)
        assert expanded.tobytes().hex() == case["expanded"][index]
        total += expanded
    words = [int(word) for word in case["words"]]
    assert total.tolist() == words
    seeds = {ShareIndex(int(index)): unhex(seed) for index, seed in case["seeds"].items()}
    sharing = Sharing(ShareIndex(case["heavy"]), heavy, seeds, tuple(unhex(salt) for salt in case["salts"]))
    assert reconstruct(sharing, context).tolist() == words
    assert [commitment.hex() for commitment in sharing.commitments()] == case["commitments"]
    key = Ed25519PrivateKey.from_private_bytes(unhex(VECTORS["federation"]["signing_key"]))
    assert key.sign(unhex(case["manifest"])).hex() == case["signature"]


@pytest.mark.parametrize("case", named(VECTORS["positive"]))
@pytest.mark.parametrize("party", [0, 1, 2])
def test_good_upload_is_received_by_every_party(case, party):
    received = {
        **case,
        "task": case["task"].encode().hex(),
        "identity": "spiffe://demo/participant/alice",
        "now": VECTORS["now"],
        **case["uploads"][party],
    }
    manifest = receive(received)
    assert manifest.canonical().hex() == case["manifest"]
    assert manifest.digest.hex() == case["manifest_digest"]
    assert (manifest.slot, manifest.heavy) == (case["slot"], case["heavy"])


@pytest.mark.parametrize("case", VECTORS["coordinates"])
def test_positions_follow_from_task_and_round(case):
    """With nothing of `triskele.coordinates`: as another language would do it."""
    digest, number = unhex(case["task_digest"]), case["round"]
    task = json.loads(case["task"])
    key = derive(digest, b"triskele/v1/coordinates" + number.to_bytes(8, "big"))
    kept, model = task["dimension"], task["model_dimension"]
    drawn = KeyStream(key).read(4 * kept).view("<u4").tolist()
    bounds = [j * model // kept for j in range(kept + 1)]
    runs = zip(drawn, bounds[:-1], bounds[1:], strict=True)
    assert [a + (r * (b - a) >> 32) for r, a, b in runs] == case["positions"]


@pytest.mark.parametrize("case", named(VECTORS["negative"]))
def test_bad_upload_is_refused_at_its_step(case):
    with pytest.raises(RefusedError) as caught:
        receive(case)
    assert str(caught.value) == case["step"]


def test_every_step_has_a_case_and_every_heavy_share_too():
    assert {case["step"] for case in VECTORS["negative"]} == set(STEPS)
    assert {case["heavy"] for case in VECTORS["positive"]} == {0, 1, 2}
    assert {case["ring_bits"] for case in VECTORS["positive"]} == {32, 64}
    names = [case["name"] for case in VECTORS["negative"]]
    assert len(set(names)) == len(names)
