"""A party cosigns one log that only grows; whatever a coordinator tries, it remembers what it cosigned."""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from triskele.errors import ConfigurationError, Conflict, InvalidCall, Unavailable
from triskele.ids import PartyIndex
from triskele.transparency.checkpoint import Checkpoint, Cosignature, check_cosignature
from triskele.transparency.merkle import Tree, leaf_hash
from triskele_proto.v1 import control_pb2
from triskele_server.party.cosigner import FILE, Cosigner, OtherSize

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
NOW = 1_763_990_400


def tree(size: int, *, rewritten: int = -1) -> Tree:
    return Tree(leaf_hash(f"round {i}{' rewritten' * (i == rewritten)}".encode()) for i in range(size))


LOG = tree(20)


def checkpoint(size: int, of: Tree = LOG, origin: str = "demo/rounds") -> Checkpoint:
    return Checkpoint(origin, size, of.root(size))


def cosigner(data: Path) -> Cosigner:
    return Cosigner(data, "demo", KEY, lambda: NOW + 0.9)


def grown(to: Cosigner, size: int, old_size: int, of: Tree = LOG) -> Cosignature | OtherSize:
    proof = of.consistency_proof(old_size, size) if old_size else []
    return to.cosign(checkpoint(size, of).body(), old_size, proof)


def signed(answer: Cosignature | OtherSize, size: int, of: Tree = LOG) -> bool:
    assert isinstance(answer, Cosignature)
    check_cosignature(checkpoint(size, of), answer, "demo", PartyIndex(1), [KEY.public_key()])
    return answer.time == NOW


def test_a_log_that_grows_is_cosigned(tmp_path: Path) -> None:
    party = cosigner(tmp_path)
    assert signed(grown(party, 1, 0), 1)
    for old, size in ((1, 2), (2, 3), (3, 8), (8, 13), (13, 20)):
        assert signed(grown(party, size, old), size)


def test_the_same_checkpoint_is_cosigned_again_when_the_answer_was_lost(tmp_path: Path) -> None:
    party = cosigner(tmp_path)
    for old in (0, 5, 7, 3):
        assert signed(grown(party, 7, old or 0), 7)


def test_a_coordinator_that_does_not_know_what_was_cosigned_is_told(tmp_path: Path) -> None:
    party = cosigner(tmp_path)
    grown(party, 5, 0)
    for old in (0, 4, 6):
        assert grown(party, 9, old) == OtherSize(5)
    assert signed(grown(party, 9, 5), 9)


def test_a_shorter_log_is_refused_with_what_to_look_at(tmp_path: Path) -> None:
    party = cosigner(tmp_path)
    grown(party, 9, 0)
    with pytest.raises(Conflict, match=r"has 8 entries, but this party cosigned 9 before.*put back.*runbooks"):
        grown(party, 8, 0)
    assert signed(grown(party, 10, 9), 10)


def test_another_log_of_the_same_size_is_refused(tmp_path: Path) -> None:
    party = cosigner(tmp_path)
    grown(party, 9, 0)
    for entry in range(9):
        with pytest.raises(Conflict, match="does not continue what this party cosigned"):
            grown(party, 9, 9, tree(9, rewritten=entry))


def test_a_log_whose_earlier_entries_are_others_is_refused(tmp_path: Path) -> None:
    party = cosigner(tmp_path)
    grown(party, 9, 0)
    for entry in range(9):
        with pytest.raises(Conflict, match=r"does not begin with|another root"):
            grown(party, 12, 9, tree(12, rewritten=entry))
    assert signed(grown(party, 12, 9, tree(12, rewritten=10)), 12, tree(12, rewritten=10))  # later ones are free


def test_no_proof_and_no_bit_of_a_wrong_one_is_enough(tmp_path: Path) -> None:
    party = cosigner(tmp_path)
    grown(party, 6, 0)
    proof = LOG.consistency_proof(6, 11)
    body = checkpoint(11).body()
    for wrong in ([], proof[1:], proof[:-1], [*proof, bytes(32)], [bytes(32), *proof]):
        with pytest.raises(Conflict):
            party.cosign(body, 6, wrong)
    for position in range(len(proof)):
        changed = list(proof)
        changed[position] = bytes([changed[position][0] ^ 1]) + changed[position][1:]
        with pytest.raises(Conflict):
            party.cosign(body, 6, changed)
    assert signed(party.cosign(body, 6, proof), 11)


def test_another_federations_log_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Conflict, match="cosigns the log demo/rounds, not other/rounds"):
        cosigner(tmp_path).cosign(checkpoint(3, origin="other/rounds").body(), 0, [])


@pytest.mark.parametrize("body", [b"", b"demo/rounds\n1\n", b"\xff" * 60, bytes(5000)])
def test_what_is_no_checkpoint_is_refused(tmp_path: Path, body: bytes) -> None:
    with pytest.raises(InvalidCall):
        cosigner(tmp_path).cosign(body, 0, [])


def test_a_restarted_party_remembers(tmp_path: Path) -> None:
    grown(cosigner(tmp_path), 9, 0)
    assert (tmp_path / FILE).read_bytes() == checkpoint(9).body()
    again = cosigner(tmp_path)
    with pytest.raises(Conflict):
        grown(again, 8, 0)
    assert grown(again, 12, 3) == OtherSize(9)
    assert signed(grown(again, 12, 9), 12)


def test_nothing_is_cosigned_that_cannot_be_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    party = cosigner(tmp_path)
    grown(party, 3, 0)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("os.fsync", full)
        with pytest.raises(Unavailable, match="No space left on device"):
            grown(party, 5, 3)
    assert cosigner(tmp_path)._last == checkpoint(3)
    assert signed(grown(party, 5, 3), 5)


@pytest.mark.parametrize("damaged", [b"", b"demo/rounds\n9\n", checkpoint(9).body() + b"\n"])
def test_a_damaged_memory_stops_the_party_and_says_what_to_do(tmp_path: Path, damaged: bytes) -> None:
    (tmp_path / FILE).write_bytes(damaged)
    with pytest.raises(ConfigurationError, match=r"cosigned last.*Restore the file"):
        cosigner(tmp_path)


def test_only_the_named_coordinator_asks(start_party, refused) -> None:
    request = control_pb2.CosignRequest(checkpoint=checkpoint(3).body())

    async def scenario() -> None:
        async with start_party() as party:
            assert (await party.control.Cosign(request, timeout=20)).signature
        other = start_party(coordinator="backup")
        async with other as party, refused(grpc.StatusCode.PERMISSION_DENIED, "does not drive this party"):
            await party.control.Cosign(request, timeout=20)

    asyncio.run(scenario())
