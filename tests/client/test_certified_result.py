"""A participant uses a result only with the parties' certificate for it: every tampering is refused, with a reason."""

import json

import numpy as np
import pytest

from triskele import Participant, PartyFault
from triskele.errors import WrongState
from triskele.task import TaskSpec
from triskele.transparency.certificate import Certificate, inputs_root
from triskele.transparency.logged_certificate import LoggedCertificate

from .toy_federation import MASK_KEYS, logged
from .transparency.rounds import SIGNERS, STRANGER, digest, party_keys

WORDS = np.arange(1500, dtype=np.int64) << 8


@pytest.fixture
def released(federation, join):
    federation.coordinator.release(1, WORDS, 2)
    return lambda: join().round("faces", 1).aggregate()


def _resigned(toy, /, signers=SIGNERS, **changes):
    """Another account of the round, signed by `signers` all the same."""
    account = toy.coordinator.account
    output = changes.pop("output", {})
    inner = account.computation.model_copy(
        update={k: v for k, v in changes.items() if k in type(account.computation).model_fields}
        | {"output": account.computation.output.model_copy(update=output)}
    )
    outer = {k: v for k, v in changes.items() if k in type(account).model_fields}
    made = Certificate(account.model_copy(update={"computation": inner} | outer))
    toy.coordinator.certificate = logged(made.statement, signers)


def test_a_result_with_its_certificate_is_used(released):
    assert np.array_equal(released(), WORDS / 2 * 4.0 / 2**20)


def test_how_the_words_are_decoded_is_what_the_parties_signed(federation, released):
    _resigned(federation, output={"weight_total": 4, "coefficient_bits": 1})
    assert np.array_equal(released(), WORDS / 8 * 4.0 / 2**20)


def test_other_words_than_the_signed_ones_are_refused_though_the_coordinator_announces_them(federation, released):
    header, data = federation.coordinator.result
    before = federation.coordinator.certificate
    federation.coordinator.release(1, WORDS + 1, 2)
    federation.coordinator.certificate = before
    with pytest.raises(PartyFault, match="other words than those that the parties have signed"):
        released()
    assert header.digest
    assert data


@pytest.mark.parametrize("index", range(3))
def test_a_mask_key_that_both_its_holders_changed_is_refused(federation, released, index):
    for party in federation.parties:
        if index in party.mask_keys:
            party.mask_keys[index] = bytes([MASK_KEYS[index][0] ^ 1]) + MASK_KEYS[index][1:]
    with pytest.raises(PartyFault, match=f"parties {index} and {(index + 2) % 3} gave another key") as caught:
        released()
    assert all(key.hex() not in str(caught.value) for key in MASK_KEYS)


def test_a_certificate_of_another_round_or_task_is_refused(federation, released):
    _resigned(federation, round=2)
    with pytest.raises(PartyFault, match="round 2"):
        released()
    other = TaskSpec("faces", 1500, 4.0, min_accepted=1)
    _resigned(federation, task=other.content())
    with pytest.raises(PartyFault, match="not the one that was asked for"):
        released()
    _resigned(federation, federation="other")
    with pytest.raises(PartyFault):
        released()


def test_two_signatures_of_three_are_refused_unless_the_participant_says_two(federation, join, tmp_path, released):
    _resigned(federation, SIGNERS[:2])
    with pytest.raises(PartyFault, match="no signature of party 2"):
        released()
    config = tmp_path / "alice" / "participant.toml"
    config.write_text(config.read_text("utf-8") + "signatures = 2\n", "utf-8")
    with Participant.from_config(config) as me:
        assert np.array_equal(me.round("faces", 1).aggregate(), WORDS / 2 * 4.0 / 2**20)


def test_a_signature_of_somebody_else_is_refused(federation, released):
    _resigned(federation, (*SIGNERS[:2], STRANGER))
    with pytest.raises(PartyFault, match="no signature of party 2"):
        released()


def test_no_byte_of_certificate_or_checkpoint_can_be_changed(federation, released):
    good = federation.coordinator.certificate
    rng = np.random.default_rng(1)
    for field in ("envelope", "checkpoint"):
        data = getattr(good, field)
        for place in rng.choice(len(data), 40, replace=False):
            changed = data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
            bad = type(good)()
            bad.CopyFrom(good)
            setattr(bad, field, changed)
            federation.coordinator.certificate = bad
            with pytest.raises(PartyFault):
                released()


@pytest.mark.parametrize("change", [{"index": 1}, {"hashes": [bytes(32)]}, {"hashes": [b"short"]}, {"checkpoint": b""}])
def test_a_certificate_that_is_not_in_the_cosigned_log_is_refused(federation, released, change):
    certificate = federation.coordinator.certificate
    for name, value in change.items():
        if isinstance(value, list):
            certificate.hashes.extend(value)
        else:
            setattr(certificate, name, value)
    with pytest.raises(PartyFault):
        released()


def test_a_log_without_the_certificate_in_it_is_refused(federation, released):
    elsewhere = logged(json.dumps({"another": "statement"}).encode())
    federation.coordinator.certificate.checkpoint = elsewhere.checkpoint
    with pytest.raises(PartyFault, match="leads to another root"):
        released()


def test_a_round_without_certificate_gives_no_result(federation, released):
    federation.coordinator.certificate = None
    with pytest.raises(WrongState):
        released()


def test_a_submission_that_the_parties_do_not_account_for_is_told(federation, join):
    federation.coordinator.show(1, "OPEN")
    submitted = join().round("faces", 1).submit(np.ones(1500))
    federation.coordinator.uploads.clear()
    federation.coordinator.release(1, WORDS, 2)
    with pytest.raises(PartyFault, match="does not account for the submission of 'alice' in slot 0"):
        submitted.result(timeout=20)
    assert submitted.certificate is None


def test_a_submission_that_was_changed_is_told(federation, join):
    federation.coordinator.show(1, "OPEN")
    submitted = join().round("faces", 1).submit(np.ones(1500))
    federation.coordinator.release(1, WORDS, 2)
    account = federation.coordinator.account
    entries = list(account.computation.submissions)
    entries[0] = entries[0].model_copy(update={"manifest": digest("another")})
    _resigned(federation, submissions=tuple(entries), inputs=inputs_root(entries))
    with pytest.raises(PartyFault, match="does not account for"):
        submitted.result(timeout=20)


def test_the_certificate_is_at_hand_after_the_result(federation, join):
    federation.coordinator.show(1, "OPEN")
    submitted = join().round("faces", 1).submit(np.ones(1500))
    assert submitted.certificate is None
    federation.coordinator.release(1, WORDS, 2)
    submitted.result(timeout=20)
    assert submitted.certificate.released.output.weight_total == 2
    assert submitted.accepted is True


def test_a_certificate_is_saved_once_it_is_checked(federation, released, join, tmp_path):
    saved = join().round("faces", 1).save_certificate(tmp_path / "a" / "b")
    kept = LoggedCertificate.read(tmp_path / "a" / "b" / "certificate.json", tmp_path / "a" / "b" / "proof.json")
    assert kept.verified(party_keys()).statement == saved.statement
    _resigned(federation, round=2)
    with pytest.raises(PartyFault, match="round 2"):
        join().round("faces", 1).save_certificate(tmp_path / "c")
    _resigned(federation, signers=(*SIGNERS[:2], STRANGER))
    with pytest.raises(PartyFault, match="signed"):
        join().round("faces", 1).save_certificate(tmp_path / "c")
    assert not (tmp_path / "c").exists()
