"""One function opens, and only what the ledger declares: anything else raises before a word is sent."""

from __future__ import annotations

import pytest
import torch
from three_parties import Recording, at_three_parties, share, transports_of

from triskele.errors import TriskeleError
from triskele_server.mpc.opening_ledger import Opening, OpeningLedger, UndeclaredOpening
from triskele_server.mpc.replicated import ReplicatedTensor
from triskele_server.mpc.session import Session

SECRET = [1 << 40, -5, (1 << 63) - 1]


def _opened_frames(transports: list[Recording]) -> list[str]:
    return [frame.label for t in transports for _, frame in t.frames if frame.label.startswith("open/")]


def test_a_declared_value_is_opened_to_all_and_recorded():
    shared = share(SECRET)

    def run(session: Session):
        tensor = ReplicatedTensor(shared[session.party], session, 0)
        return tensor.open("first").tolist(), session.ledger.openings

    for opened, ledger in at_three_parties(run, declared=["first", "second"]):
        assert opened == SECRET
        assert ledger == [Opening("first", (3,), "parties")]
        assert str(ledger[0]) == "first[3]"


def test_fraction_bits_are_divided_out_after_opening():
    shared = share([3 << 18, -(1 << 20)])
    opened = at_three_parties(lambda s: ReplicatedTensor(shared[s.party], s, 20).open("x"), declared=["x"])
    assert all(o.tolist() == [0.75, -1.0] for o in opened)


def test_additive_parts_are_opened_as_their_sum():
    parts = [torch.tensor([1 << 62, 1]), torch.tensor([1 << 62, 2]), torch.tensor([1 << 62, -7])]
    opened = at_three_parties(lambda s: s.open_sum(parts[s.party], "x"), declared=["x"])
    assert all(o.tolist() == [(3 << 62) - 2**64, -4] for o in opened)


@pytest.mark.parametrize(
    "names",
    [["undeclared"], ["second", "first"], ["first", "first"], ["first", "second", "first"], ["first", ""]],
    ids=["undeclared", "out of order", "twice", "again later", "empty name"],
)
@pytest.mark.parametrize("additive", [False, True], ids=["replicated", "additive"])
def test_an_opening_out_of_the_ledger_is_refused_and_sends_nothing(names, additive):
    shared = share(SECRET)
    transports = transports_of(Recording)

    def open_one(session: Session, name: str) -> None:
        if additive:
            session.open_sum(shared[session.party].first, name)
        else:
            session.open(shared[session.party], name)

    def run(session: Session) -> tuple[int, int]:
        for name in names[:-1]:
            try:
                open_one(session, name)
            except UndeclaredOpening:
                pytest.fail(f"{name} is declared")
        before = session.transport.traffic.bytes_sent
        with pytest.raises(UndeclaredOpening, match="refused"):
            open_one(session, names[-1])
        return session.transport.traffic.bytes_sent - before, len(session.ledger.openings)

    assert at_three_parties(run, declared=["first", "second"], transports=transports) == [(0, len(names) - 1)] * 3
    assert all(label.startswith(tuple(f"open/{n}:" for n in names[:-1])) for label in _opened_frames(transports))


@pytest.mark.parametrize("name", ["get_plain_text", "reveal"])
def test_cryptens_own_openings_want_a_name(name):
    shared = share(SECRET)
    transports = transports_of(Recording)

    def run(session: Session):
        tensor = ReplicatedTensor(shared[session.party], session, 0)
        with pytest.raises(TriskeleError, match="by name"):
            getattr(tensor, name)()
        with pytest.raises(UndeclaredOpening):
            getattr(tensor, name)("other")
        sent = session.transport.traffic.bytes_sent
        return sent, getattr(tensor, name)("x").tolist()

    results = at_three_parties(run, declared=["x"], transports=transports)
    assert [opened for _, opened in results] == [SECRET] * 3
    assert len({sent for sent, _ in results}) == 1  # the two keys, nothing else


def test_a_refusal_tells_names_and_no_values():
    ledger = OpeningLedger(["valid"])
    ledger.admit("valid", (2,))
    with pytest.raises(UndeclaredOpening) as caught:
        ledger.admit("score", (2,))
    assert "'score'" in str(caught.value)
    assert "['valid']" in str(caught.value)


def test_declared_openings_may_be_left_out():
    ledger = OpeningLedger(["a", "b", "c"])
    ledger.admit("a", ())
    ledger.admit("c", (4,))
    assert [str(o) for o in ledger.openings] == ["a[]", "c[4]"]
    with pytest.raises(UndeclaredOpening):
        ledger.admit("b", ())


def test_a_rule_cannot_end_the_withholding_that_it_runs_in():
    ledger = OpeningLedger(["x"])
    with ledger.withheld():
        with ledger.withheld():
            pass
        with pytest.raises(UndeclaredOpening):
            ledger.admit("x", (1,))
    ledger.admit("x", (1,))
