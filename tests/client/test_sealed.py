"""Party keys for sealing, wishes to enrol, and the carried form: nothing counts that the authority did not certify."""

from __future__ import annotations

import datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from hypothesis import given
from hypothesis import strategies as st

from triskele.enrolment_wish import EnrolmentWish
from triskele.errors import ConfigurationError, InvalidUpload
from triskele.identity import Identity
from triskele.ids import ParticipantId, RoundNumber, TaskDigest
from triskele.limits import DEFAULT_LIMITS
from triskele.sealed import SealedUpload, certified_party_keys
from triskele_server.rpc.certificates import Authority

NOW = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
LATER = NOW + datetime.timedelta(days=3000)
TASK = TaskDigest(b"t" * 32)


def der(pem: bytes) -> bytes:
    return x509.load_pem_x509_certificate(pem).public_bytes(Encoding.DER)


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority("demo", NOW)


@pytest.fixture(scope="module")
def certificate(authority) -> x509.Certificate:
    return x509.load_pem_x509_certificate(authority.credential.certificate)


def party(index: int, federation: str = "demo") -> Identity:
    return Identity(federation, "party", str(index))


def test_certified_keys_of_the_three_parties_are_taken(authority, certificate):
    made = [authority.sealing(party(i)) for i in range(3)]
    keys = certified_party_keys([der(m.certificate) for m in made], authority=certificate, federation="demo", now=NOW)
    assert list(keys) == [load_pem_private_key(m.key, None).public_key() for m in made]


@pytest.mark.parametrize(
    ("wrong", "now", "words"),
    [
        pytest.param(
            lambda a: der(Authority("demo", NOW).sealing(party(1)).certificate), NOW, "not one of", id="stranger"
        ),
        pytest.param(lambda a: der(a.sealing(party(0)).certificate), NOW, "somebody else", id="another party's"),
        pytest.param(lambda a: der(a.sealing(party(1, "other")).certificate), NOW, "somebody else", id="federation"),
        pytest.param(
            lambda a: der(a.sealing(Identity("demo", "forwarder", "1")).certificate), NOW, "somebody else", id="role"
        ),
        pytest.param(lambda a: der(a.tls(party(1)).certificate), NOW, "no X25519 key", id="for TLS"),
        pytest.param(lambda a: der(a.signing(party(1)).certificate), NOW, "no X25519 key", id="for signing"),
        pytest.param(lambda a: der(a.sealing(party(1)).certificate), LATER, "not valid now", id="expired"),
        pytest.param(lambda a: b"garbage", NOW, "not one of", id="garbage"),
    ],
)
def test_key_that_the_authority_did_not_certify_for_that_party_is_refused(authority, certificate, wrong, now, words):
    good = [der(authority.sealing(party(i)).certificate) for i in range(3)]
    good[1] = wrong(authority)
    with pytest.raises(ConfigurationError, match=words):
        certified_party_keys(good, authority=certificate, federation="demo", now=now)


@pytest.mark.parametrize("count", [0, 2, 4])
def test_another_number_of_certificates_is_refused(authority, certificate, count):
    made = [der(authority.sealing(party(min(i, 2))).certificate) for i in range(count)]
    with pytest.raises(ConfigurationError, match="certificates came"):
        certified_party_keys(made, authority=certificate, federation="demo", now=NOW)


def wish(authority, name="alice", *, signed_as="alice", number=1) -> EnrolmentWish:
    made = authority.signing(Identity("demo", "participant", signed_as))
    key, certificate = load_pem_private_key(made.key, None), x509.load_pem_x509_certificate(made.certificate)
    return EnrolmentWish.sign(TASK, RoundNumber(number), ParticipantId(name), key=key, certificate=certificate)


def check(one: EnrolmentWish, certificate: x509.Certificate) -> None:
    identity = Identity("demo", "participant", one.participant).uri
    one.verify(authority=certificate, identity=identity, now=NOW)


def test_wish_of_a_participant_is_taken(authority, certificate):
    check(wish(authority), certificate)


def test_nobody_can_be_enrolled_who_did_not_ask_for_this_round(authority, certificate):
    asked = wish(authority)
    others = [
        (wish(authority, "bob", signed_as="alice"), "identity"),
        (EnrolmentWish(TASK, RoundNumber(2), asked.participant, asked.signature, asked.certificate), "signature"),
        (
            EnrolmentWish(TaskDigest(b"u" * 32), asked.round, asked.participant, asked.signature, asked.certificate),
            "sig",
        ),
        (EnrolmentWish(TASK, asked.round, asked.participant, b"", asked.certificate), "signature"),
        (EnrolmentWish(TASK, asked.round, asked.participant, asked.signature, b""), "certificate"),
        (wish(Authority("demo", NOW)), "certificate"),
    ]
    for other, step in others:
        with pytest.raises(InvalidUpload, match=f"^{step}"):
            check(other, certificate)


@given(st.binary(max_size=400))
def test_any_carried_bytes_decode_or_are_refused(data):
    try:
        upload = SealedUpload.from_bytes(data, DEFAULT_LIMITS)
    except InvalidUpload:
        return
    assert upload.to_bytes() == data
