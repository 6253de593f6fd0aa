"""A checkpoint counts only as what enough parties have cosigned, byte for byte."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from triskele.errors import PartyFault
from triskele.ids import PARTIES, PartyIndex
from triskele.transparency.checkpoint import (
    Checkpoint,
    Cosignature,
    check_cosignature,
    cosign,
    cosigner,
    note,
    signature_line,
    unverified,
    verified,
)

NOW = 1_763_990_400
CHECKPOINT = Checkpoint("demo/rounds", 3, hashlib.sha256(b"root").digest())
SECRET = [Ed25519PrivateKey.from_private_bytes(bytes([i]) * 32) for i in range(5)]


class TheKeys:
    """Stands for PartyKeys."""

    def __init__(self, *keys: Sequence[Ed25519PrivateKey], signatures: int = 3) -> None:
        self.signatures = signatures
        self._keys = [tuple(key.public_key() for key in each) for each in keys]

    def of(self, party: PartyIndex) -> tuple[Ed25519PublicKey, ...]:
        return self._keys[party]


KEYS = TheKeys(*([key] for key in SECRET[:3]))


def line(party: int, key: Ed25519PrivateKey, *, at: int = NOW, of: Checkpoint = CHECKPOINT, name: str = "") -> str:
    return signature_line(cosign(of, key, at), name or cosigner("demo", PartyIndex(party)), key.public_key())


def signed(*lines: str) -> bytes:
    return note(CHECKPOINT, lines or [line(i, SECRET[i]) for i in PARTIES])


def test_a_checkpoint_that_all_three_cosigned_is_verified() -> None:
    found = verified(signed(), KEYS, "demo")
    assert found.checkpoint == CHECKPOINT
    assert found.times == dict.fromkeys(PARTIES, NOW)
    assert unverified(signed()) == CHECKPOINT


def test_the_format_is_that_of_c2sp() -> None:
    public = SECRET[1].public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    lines = signed().decode().split("\n")
    assert lines[:2] == ["demo/rounds", "3"]
    assert lines[2] == base64.b64encode(CHECKPOINT.root).decode()
    assert lines[3] == lines[7] == ""
    dash, name, text = lines[5].split(" ")
    assert (dash, name) == ("—", "demo/party-1")
    content = base64.b64decode(text)
    assert content[:4] == hashlib.sha256(b"demo/party-1\n\x04" + public).digest()[:4]
    assert int.from_bytes(content[4:12], "big") == NOW
    message = f"cosignature/v1\ntime {NOW}\ndemo/rounds\n3\n{lines[2]}\n".encode()
    SECRET[1].public_key().verify(content[12:], message)


def test_no_bit_of_a_cosigned_checkpoint_can_be_changed() -> None:
    whole = signed()
    for position in range(8 * len(whole)):
        changed = bytearray(whole)
        changed[position // 8] ^= 1 << position % 8
        with pytest.raises(PartyFault):
            verified(bytes(changed), KEYS, "demo")


def test_no_byte_can_be_left_out_or_put_in() -> None:
    whole = signed()
    for position in range(len(whole)):
        for changed in (whole[:position] + whole[position + 1 :], whole[:position] + b"1" + whole[position:]):
            if changed != whole:
                with pytest.raises(PartyFault):
                    verified(changed, KEYS, "demo")
    for position in range(len(whole)):
        with pytest.raises(PartyFault):
            verified(whole[:position], KEYS, "demo")


def test_cosignatures_of_two_parties_are_not_three() -> None:
    two = signed(line(0, SECRET[0]), line(2, SECRET[2]))
    with pytest.raises(PartyFault, match="cosigned by 2 parties, 3 are needed: no valid cosignature of 1"):
        verified(two, KEYS, "demo")
    assert set(verified(two, TheKeys(*([key] for key in SECRET[:3]), signatures=2), "demo").times) == {0, 2}


def test_one_party_that_signs_twice_counts_once() -> None:
    keys = TheKeys([SECRET[0], SECRET[3]], [SECRET[1]], [SECRET[2]], signatures=2)
    twice = signed(line(0, SECRET[0]), line(0, SECRET[3]), line(0, SECRET[0], at=NOW + 1))
    with pytest.raises(PartyFault, match="cosigned by 1 parties"):
        verified(twice, keys, "demo")
    assert verified(signed(line(0, SECRET[3], at=NOW + 9), line(0, SECRET[0]), line(1, SECRET[1])), keys, "demo").times[
        PartyIndex(0)
    ] == (NOW + 9)


def test_a_party_cannot_sign_as_another() -> None:
    stolen = signed(line(0, SECRET[0]), line(1, SECRET[0]), line(2, SECRET[0]))
    with pytest.raises(PartyFault, match="cosigned by 1 parties"):
        verified(stolen, KEYS, "demo")


def test_signatures_under_other_names_and_keys_are_passed_over() -> None:
    more = [line(i, SECRET[i]) for i in PARTIES]
    more += [line(0, SECRET[4]), line(0, SECRET[0], name="other/party-0"), line(0, SECRET[4], name="example.org/log")]
    assert verified(signed(*more), KEYS, "demo").checkpoint == CHECKPOINT


def test_a_line_that_claims_a_partys_key_and_is_not_signed_by_it_is_refused() -> None:
    bad = cosign(Checkpoint("demo/rounds", 4, CHECKPOINT.root), SECRET[1], NOW)
    forged = signature_line(bad, cosigner("demo", PartyIndex(1)), SECRET[1].public_key())
    with pytest.raises(PartyFault, match="none of its keys made") as caught:
        verified(signed(*(line(i, SECRET[i]) for i in PARTIES), forged), KEYS, "demo")
    assert caught.value.party == 1


def test_a_checkpoint_of_another_federations_log_is_refused() -> None:
    other = Checkpoint("other/rounds", 3, CHECKPOINT.root)
    lines = [line(i, SECRET[i], of=other) for i in PARTIES]
    with pytest.raises(PartyFault, match="is of the log other/rounds"):
        verified(note(other, lines), KEYS, "demo")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"demo/rounds\n3\n",
        b"demo/rounds\n03\n" + base64.b64encode(bytes(32)) + b"\n",
        b"demo/rounds\n0\n" + base64.b64encode(bytes(32)) + b"\n",
        b"demo/rounds\n9223372036854775808\n" + base64.b64encode(bytes(32)) + b"\n",
        b"demo/rounds\n3\n" + base64.b64encode(bytes(31)) + b"\n",
        b"demo/rounds\n3\n" + base64.b64encode(bytes(32)).replace(b"A=", b"B=") + b"\n",
        b"demo/rounds\n3\n" + base64.b64encode(bytes(32)) + b"\nextension\n",
        b"demo/rounds\r\n3\n" + base64.b64encode(bytes(32)) + b"\n",
        b"demo\n3\n" + base64.b64encode(bytes(32)) + b"\n",
        b"demo/rounds\n3\n" + base64.b64encode(bytes(32)),
        b"demo/rounds\n3\n" + bytes(600),
        "demo/rounds\n３\n".encode(),
    ],
)
def test_what_is_no_checkpoint_is_refused(body: bytes) -> None:
    with pytest.raises(PartyFault):
        Checkpoint.from_body(body)
    with pytest.raises(PartyFault):
        unverified(body + b"\n" + line(0, SECRET[0]).encode() + b"\n")


def test_a_note_has_a_bounded_size() -> None:
    with pytest.raises(PartyFault, match="at most"):
        unverified(signed() + b"x" * (1 << 14))
    with pytest.raises(PartyFault, match="lines of signatures"):
        unverified(signed(*(line(0, SECRET[0], at=at) for at in range(1, 66))))


@pytest.mark.parametrize("given", [Cosignature(0, bytes(64)), Cosignature(NOW, b""), Cosignature(1 << 63, bytes(64))])
def test_an_impossible_cosignature_is_refused(given: Cosignature) -> None:
    with pytest.raises(PartyFault, match="impossible"):
        check_cosignature(CHECKPOINT, given, "demo", PartyIndex(1), KEYS.of(PartyIndex(1)))
