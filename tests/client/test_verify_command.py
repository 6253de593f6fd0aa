"""`triskele verify` works from a folder alone, and refuses what was changed."""

import json

import pytest

from triskele.cli import main
from triskele.transparency.logged_certificate import LoggedCertificate

from .certificates import public_pem
from .toy_federation import logged
from .transparency.rounds import SIGNERS, STRANGER, failed, released


def write_keys(folder, signers=SIGNERS):
    folder.mkdir(exist_ok=True)
    for party, signer in enumerate(signers):
        (folder / f"party-{party}.pub").write_bytes(public_pem(signer))


@pytest.fixture
def folder(tmp_path):
    def make(certificate=None):
        reply = logged((certificate or released()).statement)
        given = LoggedCertificate(reply.envelope, reply.index, tuple(reply.hashes), reply.checkpoint)
        given.write(tmp_path / "round-1")
        write_keys(tmp_path / "round-1")
        return tmp_path / "round-1"

    return make


def test_a_folder_with_certificate_proof_and_keys_is_all_it_needs(folder, capsys):
    assert sorted(p.name for p in folder().iterdir()) == [
        *("certificate.json", "party-0.pub", "party-1.pub", "party-2.pub", "proof.json"),
    ]
    assert main(["verify", str(folder())]) == 0
    printed = capsys.readouterr().out
    assert "verified round 1 of task faces in demo" in printed
    assert "slot 4, p4: it failed the validity check" in printed
    assert "slot 5, p5: it was admitted, but its upload was not complete" in printed
    assert "--keys names yours" in printed


def test_json_holds_everything_and_the_explanations(folder, capsys):
    assert main(["verify", str(folder() / "certificate.json"), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["verified"] is True
    assert report["account"]["computation"]["accepted"] == [0, 1, 2]
    assert [each["reason"] for each in report["left_out"]] == ["failed_validity_check", "incomplete_upload"]
    assert "clip_norm (1.5" in report["left_out"][0]["explanation"]


def test_a_failed_rounds_certificate_says_why(folder, capsys):
    assert main(["verify", str(folder(failed()))]) == 0
    assert "because a party broke the protocol, and another one noticed: party:1" in capsys.readouterr().out


def test_other_keys_than_the_ones_that_signed_refuse_it(folder, tmp_path, capsys):
    write_keys(tmp_path / "mine", (*SIGNERS[:2], STRANGER))
    assert main(["verify", str(folder()), "--keys", str(tmp_path / "mine")]) == 1
    assert "no signature of party 2" in capsys.readouterr().err
    assert main(["verify", str(folder()), "--keys", str(tmp_path / "mine"), "--signatures", "2"]) == 0


@pytest.mark.parametrize("name", ["certificate.json", "proof.json"])
def test_a_changed_file_is_refused(folder, capsys, name):
    path = folder() / name
    content = bytearray(path.read_bytes())
    for place in range(2, len(content) - 2, max(1, len(content) // 40)):
        changed = content.copy()
        changed[place] ^= 1
        path.write_bytes(changed)
        assert main(["verify", str(path.parent)]) in (1, 2), (name, place)
    assert "Traceback" not in capsys.readouterr().err


def test_the_released_words_are_compared_with_the_signed_digest(folder, tmp_path, capsys):
    (tmp_path / "1.words").write_bytes(b"words")
    assert main(["verify", str(folder()), "--words", str(tmp_path / "1.words")]) == 0
    (tmp_path / "1.words").write_bytes(b"other")
    assert main(["verify", str(folder()), "--words", str(tmp_path / "1.words")]) == 1
    assert "not the words that the parties have signed" in capsys.readouterr().err
