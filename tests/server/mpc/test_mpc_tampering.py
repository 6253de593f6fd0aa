"""A party whose frames are wrong is noticed: flipped shares in an opening, foreign, repeated and missing frames."""

from __future__ import annotations

import dataclasses

import pytest
from three_parties import Tampering, at_three_parties, share, transports_of

from triskele.errors import PartyFault
from triskele_server.mpc.session import Session
from triskele_server.mpc.transport import Frame

SECRET = [7, -9, 1 << 50]
LIAR = 1


def _run(change, program, declared=("x",)) -> tuple[list, dict[int, BaseException]]:
    transports = transports_of(Tampering, seconds=1.0)
    transports[LIAR].change = change
    errors: dict[int, BaseException] = {}
    return at_three_parties(program, declared=declared, transports=transports, errors=errors), errors


def _flipped(frame: Frame) -> Frame:
    return dataclasses.replace(frame, payload=bytes([frame.payload[0] ^ 1]) + frame.payload[1:])


@pytest.mark.parametrize("victim", [0, 2])
def test_a_flipped_bit_in_an_opening_is_caught_by_the_one_who_got_it(victim):
    """A share goes to the next party and its digest to the previous one; either lie is seen."""
    shared = share(SECRET)

    def change(peer: int, frame: Frame) -> Frame:
        return _flipped(frame) if peer == victim and frame.label.startswith("open/") else frame

    results, errors = _run(change, lambda s: s.open(shared[s.party], "x").tolist())
    assert isinstance(errors[victim], PartyFault)
    assert "same share but sent different" in str(errors[victim])
    assert results[victim] is None


def test_an_honest_opening_is_not_refused():
    shared = share(SECRET)
    results, errors = _run(lambda _, frame: frame, lambda s: s.open(shared[s.party], "x").tolist())
    assert (results, errors) == ([SECRET] * 3, {})


def _three_swaps(session: Session) -> None:
    for k in range(3):
        session.broadcast(f"step{k}", bytes([k] * 4), 4)


@pytest.mark.parametrize(
    ("attack", "text"),
    [
        ("replay", "where"),
        ("reorder", "where"),
        ("relabel", "where"),
        ("truncate", "3 bytes"),
        ("extend", "5 bytes"),
        ("drop", "sent nothing|where"),
    ],
)
def test_a_wrong_frame_ends_the_computation_naming_the_party(attack, text):
    held: list[Frame] = []

    def change(_peer: int, frame: Frame) -> Frame | None:
        if _peer != 0 or frame.label not in ("step1", "step2"):
            held[:] = [frame] if _peer == 0 else held
            return frame
        if frame.label == "step2":
            return frame
        return {
            "replay": held[0],
            "reorder": dataclasses.replace(frame, sequence=frame.sequence + 1),
            "relabel": dataclasses.replace(frame, label="step9"),
            "truncate": dataclasses.replace(frame, payload=frame.payload[:-1]),
            "extend": dataclasses.replace(frame, payload=frame.payload + b"\0"),
            "drop": None,
        }[attack]

    _, errors = _run(change, _three_swaps)
    assert isinstance(errors[0], PartyFault)
    assert errors[0].party == LIAR
    assert any(part in str(errors[0]) for part in text.split("|"))


def test_a_tensor_of_another_shape_of_the_same_size_is_refused():
    """Desynchronised parties must never add up garbage: the label carries dtype and shape."""
    shared = share([[1, 2], [3, 4]])

    def run(session: Session) -> None:
        mine = shared[session.party].first
        session.pass_back("x", mine.reshape(4) if session.party == LIAR else mine)

    _, errors = _run(lambda _, frame: frame, run)
    assert isinstance(errors[0], PartyFault)
    assert "x:int64[4]" in str(errors[0])


def test_faults_never_show_a_payload():
    secret = b"\xde\xad\xbe\xef" * 8
    frame = Frame(0, "x", secret)
    assert repr(frame) == "Frame(0, 'x', 32 bytes)"
