"""The certificate of a round: what is signed cannot be changed, and what contradicts itself cannot be signed."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from triskele.errors import ConfigurationError, PartyFault
from triskele.ids import ParticipantId, RoundNumber, ShareIndex, Slot
from triskele.manifest import ManifestDigest
from triskele.privacy import Privacy
from triskele.release_mask import MaskKey
from triskele.task import TaskSpec
from triskele.transparency.certificate import (
    Blame,
    Certificate,
    LeftOut,
    PrivacySpent,
    assemble,
    mask_key_digest,
    open_envelope,
)
from triskele.transparency.explanations import explain
from triskele.transparency.party_keys import PartyKeys

from .rounds import SIGNERS, STRANGER, TASK, computation, digest, entries, enveloped, failed, party_keys, released


def test_a_certificate_signed_by_all_three_parties_is_read_back_as_it_was():
    for made in (released(), failed()):
        read = Certificate.verified(enveloped(made.statement), party_keys())
        assert read.account == made.account
        assert read.statement == made.statement
        assert read.task == TASK


def test_the_statement_is_an_in_toto_statement_about_the_released_words():
    content = json.loads(released().statement)
    assert content["_type"] == "https://in-toto.io/Statement/v1"
    assert content["subject"] == [{"name": "faces/1", "digest": {"sha256": digest("words")}}]
    assert json.loads(failed().statement)["subject"] == [{"name": "faces", "digest": {"sha256": TASK.digest.hex()}}]


def test_no_byte_of_an_envelope_can_be_changed():
    envelope = enveloped(released().statement)
    for place in range(len(envelope)):
        for changed in (envelope[place] ^ 1, envelope[place] ^ 0x20):
            tampered = envelope[:place] + bytes([changed]) + envelope[place + 1 :]
            with pytest.raises(PartyFault):
                Certificate.verified(tampered, party_keys())


@pytest.mark.parametrize("cut", [0, 1, 100, -1])
def test_a_truncated_or_lengthened_envelope_is_refused(cut):
    envelope = enveloped(released().statement)
    for tampered in (envelope[:cut], envelope + b" ", b" " + envelope, envelope + envelope):
        with pytest.raises(PartyFault):
            Certificate.verified(tampered, party_keys())


@given(st.binary(max_size=300))
def test_any_bytes_are_a_certificate_or_a_party_fault(data):
    for decode in (Certificate.from_statement, open_envelope, lambda d: Certificate.verified(d, party_keys())):
        with pytest.raises(PartyFault):
            decode(data)


def _every_change(value, path=()):
    """The JSON value with one place in it changed, for every place: another value, another type, gone, doubled."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield (*path, key), {k: v for k, v in value.items() if k != key}
            for where, changed in _every_change(inner, (*path, key)):
                yield where, value | {key: changed}
    elif isinstance(value, list):
        if value:
            yield path, value[:-1]
            yield path, [*value, value[-1]]
        for i, inner in enumerate(value):
            for where, changed in _every_change(inner, (*path, i)):
                yield where, [*value[:i], changed, *value[i + 1 :]]
    else:
        yield path, {"other": 1}
        if isinstance(value, str):
            yield path, value + "x"
            yield path, ""
        elif value is None or isinstance(value, bool):
            yield path, 7
        else:
            yield path, value + 1
            yield path, str(value)


def test_no_field_of_a_statement_can_be_changed_under_the_parties_signatures():
    made = released()
    signatures = {
        key: bytes.fromhex(s.signature) for key, s in open_envelope(enveloped(made.statement)).signatures.items()
    }
    seen = 0
    for where, changed in _every_change(json.loads(made.statement)):
        statement = json.dumps(changed, sort_keys=True, separators=(",", ":")).encode()
        with pytest.raises(PartyFault, match="signature"):
            Certificate.verified(assemble(statement, signatures), party_keys())
        seen += 1
        assert where
    assert seen > 200


def test_two_signatures_are_enough_only_where_the_policy_says_two():
    statement = released().statement
    two = enveloped(statement, SIGNERS[:2])
    assert Certificate.verified(two, party_keys(2)).statement == statement
    with pytest.raises(
        PartyFault, match="2 of the three parties have signed it, 3 must; there is no signature of party 2"
    ):
        Certificate.verified(two, party_keys())
    with pytest.raises(PartyFault, match="1 of the three"):
        Certificate.verified(enveloped(statement, SIGNERS[:1]), party_keys(2))


def test_a_strangers_signature_counts_for_nobody():
    statement = released().statement
    with pytest.raises(PartyFault, match="2 of the three"):
        Certificate.verified(enveloped(statement, (*SIGNERS[:2], STRANGER)), party_keys())


def test_two_keys_of_one_party_are_one_party():
    statement = released().statement
    keys = replace(party_keys(2), keys=((SIGNERS[0].public_key(), STRANGER.public_key()), *party_keys().keys[1:]))
    with pytest.raises(PartyFault, match="1 of the three"):
        Certificate.verified(enveloped(statement, (SIGNERS[0], STRANGER)), keys)


def test_a_key_for_two_parties_and_a_party_without_key_are_refused():
    one, two, _ = party_keys().keys
    with pytest.raises(ConfigurationError, match="twice"):
        PartyKeys((one, two, one))
    with pytest.raises(ConfigurationError, match="all three"):
        PartyKeys((one, two, ()))
    with pytest.raises(ConfigurationError, match="two or three"):
        PartyKeys(party_keys().keys, 1)


CONTRADICTIONS = {
    "another root": {"inputs": digest("other")},
    "submissions out of order": {"submissions": entries()[::-1]},
    "a submission twice": {"submissions": (*entries(), entries()[-1])},
    "refuses who did not submit": {"refused": (LeftOut(slot=9, participant="p9", reason="failed_validity_check"),)},
    "refuses under another name": {"refused": (LeftOut(slot=4, participant="p3", reason="failed_validity_check"),)},
    "accepts who was refused": {"accepted": (0, 1, 4)},
    "accepts who did not submit": {"accepted": (0, 1, 7)},
    "accepts twice": {"accepted": (0, 0, 1)},
    "accepts too few": {"accepted": (0,), "weights": (1,)},
    "hides public decisions": {"accepted": None, "weights": None},
    "weights of others": {"weights": (1, 1)},
    "noise that the task has not": {"privacy": PrivacySpent(claim="noise without a DP claim", rounds=1, epsilon=None)},
    "no mask": {"output": computation().output.model_copy(update={"mask_keys": None})},
    "opened nothing": {"openings": ()},
}


@pytest.mark.parametrize("changes", CONTRADICTIONS.values(), ids=CONTRADICTIONS)
def test_a_certificate_that_contradicts_itself_is_refused(changes):
    with pytest.raises(PartyFault, match="certificate"):
        released(**changes)


def test_hidden_decisions_masks_and_noise_are_those_of_the_task():
    hidden = TaskSpec(name="t", dimension=8, clip_norm=1.0, rule="multi-krum", decisions="hidden", release="public")
    output = computation().output.model_copy(update={"mask_keys": None})
    assert released(hidden, accepted=None, weights=None, output=output).accepted(0) is None
    noisy = TaskSpec(name="t", dimension=8, clip_norm=1.0, rule="mean", privacy=Privacy(1.0, 1e-5, 10.0))
    spent = PrivacySpent(claim="differential privacy", rounds=3, epsilon="4.5")
    assert released(noisy, privacy=spent).released.privacy == spent
    with pytest.raises(PartyFault, match="noise"):
        released(noisy)


def test_a_failed_round_has_no_result_and_a_released_one_no_blame():
    with pytest.raises(PartyFault, match="ended as FAILED, without a result"):
        _ = failed().released
    blame = Blame(reason="party_fault", who="party:1", detail="")
    for account in (
        failed().account.model_copy(update={"blame": None}),
        failed().account.model_copy(update={"state": "RELEASED"}),
        released().account.model_copy(update={"blame": blame}),
        released().account.model_copy(update={"state": "EXPIRED"}),
    ):
        with pytest.raises(PartyFault, match="must say what it gave, or why not"):
            Certificate(account)


def test_the_certificate_of_another_round_task_or_federation_is_not_taken():
    made = released()
    made.check_is_of("demo", TASK.digest, RoundNumber(1))
    other = TaskSpec(name="voices", dimension=8, clip_norm=1.5)
    for asked in (("demo", TASK.digest, 2), ("demo", other.digest, 1), ("bank", TASK.digest, 1)):
        with pytest.raises(PartyFault, match="not the one that was asked for"):
            made.check_is_of(*asked)


def test_a_participants_submission_is_in_the_input_set_as_it_made_it_or_left_out_by_name():
    made = released()
    mine = ManifestDigest(bytes.fromhex(digest("manifest 2")))
    made.check_accounts_for(Slot(2), ParticipantId("p2"), mine)
    made.check_accounts_for(Slot(5), ParticipantId("p5"), mine)  # left out, with a reason
    for slot, name, manifest in (
        (2, "p2", bytes(32)),  # another submission under its name
        (3, "p2", mine),
        (2, "p3", mine),
        (9, "p9", mine),  # silently dropped
    ):
        with pytest.raises(PartyFault, match="does not account for the submission"):
            made.check_accounts_for(Slot(slot), ParticipantId(name), ManifestDigest(manifest))


def test_who_was_accepted():
    made = released()
    assert [made.accepted(slot) for slot in range(6)] == [True, True, True, False, False, False]


def test_the_digest_of_a_mask_key_is_bound_to_its_place():
    key = MaskKey(bytes(32))
    places = {
        mask_key_digest(key, task, RoundNumber(number), ShareIndex(index))
        for task in (TASK.digest, bytes(32))
        for number in (1, 2)
        for index in range(3)
    }
    assert len(places) == 12


def test_a_refusal_is_explained_with_the_check_and_its_bound_and_no_participants_value():
    text = explain("failed_validity_check", TASK)
    assert "clip_norm (1.5" in text
    assert "was not opened" in text
    assert "weight" not in text
    weighted = TaskSpec(name="t", dimension=8, clip_norm=1.5, max_weight=9)
    assert "its weight in 0 to 9" in explain("failed_validity_check", weighted)
    assert explain("never_heard_of", TASK) == "reason code never_heard_of"
