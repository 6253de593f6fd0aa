"""Signed manifests: what is not exactly right is refused, with the step that failed."""

import datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from triskele.errors import InvalidUpload
from triskele.ids import ParticipantId, RoundNumber, ShareIndex, Slot, TaskDigest
from triskele.manifest import Manifest, sign, verify
from triskele.sharing import Commitment
from triskele.task import TaskSpec
from triskele_proto.v1 import types_pb2

from .certificates import FROM, UNTIL, Authority

AUTHORITY = Authority()
ALICE = AUTHORITY.identity("participant", "alice")
CERTIFICATE, KEY = AUTHORITY.signing(ALICE)
SPEC = TaskSpec("faces", 10, 1.0)
NOW = FROM + datetime.timedelta(days=1)


def manifest(**change) -> Manifest:
    commitments = tuple(Commitment(bytes([i]) * 32) for i in range(3))
    fields = {
        "task": SPEC.digest,
        "round": RoundNumber(1),
        "participant": ParticipantId("alice"),
        "slot": Slot(4),
        "heavy": ShareIndex(1),
        "length": 10,
        "commitments": commitments,
    }
    return Manifest(**{**fields, **change})


SIGNED = sign(manifest(), KEY, CERTIFICATE)


def check(signed, *, authority=AUTHORITY, identity=ALICE.uri, now=NOW):
    return verify(signed, authority=authority.certificate, identity=identity, now=now)


def changed(**change):
    signed = types_pb2.SignedManifest()
    signed.CopyFrom(SIGNED)
    for name, value in change.items():
        setattr(signed, name, value)
    return signed


def test_signed_manifest_comes_back():
    assert check(SIGNED) == manifest()
    assert check(types_pb2.SignedManifest.FromString(SIGNED.SerializeToString())).digest == manifest().digest


@pytest.mark.parametrize(
    ("field", "value"),
    [("task_digest", bytes(32)), ("round", 2), ("participant", "bob"), ("slot", 7), ("length", 11)],
)
def test_any_changed_field_breaks_the_signature(field, value):
    signed = changed()
    setattr(signed.manifest, field, value)
    with pytest.raises(InvalidUpload, match=r"^signature:"):
        check(signed)


def test_exchanged_commitments_break_the_signature():
    signed = changed()
    signed.manifest.commitments[0], signed.manifest.commitments[2] = bytes([2]) * 32, bytes(32)
    with pytest.raises(InvalidUpload, match=r"^signature:"):
        check(signed)


@pytest.mark.parametrize(
    "signature",
    [b"", bytes(64), SIGNED.signature[:-1], SIGNED.signature + b"\0"],
    ids=["empty", "zeros", "short", "long"],
)
def test_wrong_signature_is_refused(signature):
    with pytest.raises(InvalidUpload, match=r"^signature:"):
        check(changed(signature=signature))


def test_certificate_of_another_authority_is_refused():
    other = Authority()
    certificate, key = other.signing(ALICE)
    with pytest.raises(InvalidUpload, match=r"^certificate:"):
        check(sign(manifest(), key, certificate))


def test_certificate_outside_its_time_is_refused():
    for now in (FROM - datetime.timedelta(seconds=1), UNTIL + datetime.timedelta(seconds=1)):
        with pytest.raises(InvalidUpload, match=r"^certificate:.*valid now"):
            check(SIGNED, now=now)


def test_certificate_of_another_participant_is_refused():
    certificate, key = AUTHORITY.signing(AUTHORITY.identity("participant", "mallory"))
    with pytest.raises(InvalidUpload, match=r"^identity:"):
        check(sign(manifest(), key, certificate))


def test_tls_certificate_does_not_sign_manifests():
    tls = AUTHORITY.issue(ALICE, ec.generate_private_key(ec.SECP256R1()).public_key())
    with pytest.raises(InvalidUpload, match=r"^certificate:.*Ed25519"):
        check(changed(certificate=tls.public_bytes(Encoding.DER)))


def test_certificate_of_the_authority_itself_is_refused():
    with pytest.raises(InvalidUpload, match=r"^certificate:"):
        check(changed(certificate=AUTHORITY.certificate.public_bytes(Encoding.DER)))


@pytest.mark.parametrize(
    "change",
    [
        {"task": TaskDigest(bytes(31))},
        {"round": 0},
        {"round": 1 << 63},
        {"participant": ""},
        {"participant": "Alice"},
        {"participant": "a/b"},
        {"heavy": 0},
        {"heavy": 4},
        {"length": 0},
        {"length": 1 << 48},
        {"commitments": (bytes(32), bytes(32))},
        {"commitments": (bytes(32), bytes(32), bytes(31))},
    ],
)
def test_impossible_manifest_is_refused(change):
    with pytest.raises(InvalidUpload, match=r"manifest|participant"):
        manifest(**change)


def test_manifest_of_another_task_round_or_length_does_not_belong():
    manifest().check_belongs_to(SPEC, RoundNumber(1))
    for change in ({"task": TaskDigest(bytes(32))}, {"round": 2}, {"length": 11}, {"slot": 129, "heavy": 0}):
        with pytest.raises(InvalidUpload, match=r"^manifest:"):
            manifest(**change).check_belongs_to(SPEC, RoundNumber(1))


def test_canonical_bytes_tell_neighbouring_fields_apart():
    one, other = manifest(participant="a", slot=Slot(0), heavy=0), manifest(participant="a0", slot=Slot(0), heavy=0)
    assert one.canonical() != other.canonical()
    assert len(other.canonical()) == len(one.canonical()) + 1


@given(
    st.builds(
        types_pb2.Manifest,
        task_digest=st.binary(min_size=31, max_size=33),
        round=st.integers(0, 2**64 - 1),
        participant=st.text(max_size=5),
        slot=st.integers(0, 2**32 - 1),
        heavy=st.integers(0, 3),
        length=st.integers(0, 2**64 - 1),
        commitments=st.lists(st.binary(min_size=32, max_size=32), min_size=2, max_size=4),
    ),
    st.binary(max_size=70),
    st.binary(max_size=300),
)
def test_any_message_is_refused_with_our_error(content, signature, certificate):
    signed = types_pb2.SignedManifest(manifest=content, signature=signature, certificate=certificate)
    with pytest.raises(InvalidUpload):
        check(signed)


@given(st.integers(0, len(SIGNED.certificate) - 1), st.integers(1, 255))
@pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")
def test_certificate_with_any_byte_changed_is_refused(place, difference):
    """Or is the same one: the signature's count of unused bits may be 1 where its last bit is 0 anyway."""
    certificate = bytearray(SIGNED.certificate)
    certificate[place] ^= difference
    try:
        check(changed(certificate=bytes(certificate)))
    except InvalidUpload:
        return
    one, other = (x509.load_der_x509_certificate(bytes(der)) for der in (SIGNED.certificate, certificate))
    assert (one.tbs_certificate_bytes, one.signature) == (other.tbs_certificate_bytes, other.signature)
