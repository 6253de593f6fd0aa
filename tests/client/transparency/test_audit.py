"""The audit of a log finds whatever was changed since the parties signed it, and what they should not have signed."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from triskele.errors import ConfigurationError, PartyFault
from triskele.ids import ParticipantId
from triskele.privacy import Privacy
from triskele.transparency.audit import Audit, audit
from triskele.transparency.certificate import CLAIM, NO_CLAIM, PrivacySpent, assemble, open_envelope, sign
from triskele.transparency.party_keys import key_id
from triskele.transparency.saved_log import SavedLog

from .logs import OPENED, PRIVATE, PRIVATE_OPENED, a_round, cosigned, history, log_of, with_checkpoint_of
from .rounds import SIGNERS, STRANGER, TASK, digest, enveloped, failed, party_keys

KEYS = party_keys()


def found(log: SavedLog) -> Audit:
    return audit(log, KEYS)


def whats(log: SavedLog) -> list[str]:
    return [finding.what for finding in found(log).findings]


def private(number: int, spent: int, epsilon: str | None = "", claim: Any = CLAIM, **changes: Any) -> Any:
    stated = EPSILON[spent] if epsilon == "" else epsilon
    privacy = PrivacySpent(claim=claim, rounds=spent, epsilon=stated)
    given = {"openings": PRIVATE_OPENED, "privacy": privacy, "accepted": (0, 1, 2, 3), "weights": None} | changes
    return a_round(number, PRIVATE, **given)


EPSILON = {1: "4.72839", 2: "7.07739", 3: "9.00996", 4: "10.7255"}  # dp-accounting, see the test below


def test_a_sound_log_is_clean() -> None:
    result = found(history())
    assert result.clean
    assert (result.findings, result.notes, result.entries, result.federation) == ((), (), 4, "demo")
    (task,) = result.tasks
    assert [(each.index, each.certificate.round) for each in task.rounds] == [(0, 1), (1, 2), (2, 3), (3, 4)]
    assert [task.count(state) for state in ("RELEASED", "FAILED", "EXPIRED")] == [3, 1, 0]
    first = task.rounds[0]
    assert (first.counted, first.refused, first.filtered, first.left_out) == (3, 1, 1, 1)
    assert result.cosigned is not None
    assert set(result.cosigned.times) == {0, 1, 2}
    assert json.loads(json.dumps(result.to_json()))["clean"] is True


def test_rounds_of_several_tasks_may_alternate() -> None:
    result = found(log_of(a_round(1), private(1, 1), a_round(2), private(2, 2)))
    assert result.clean
    assert [task.task.name for task in result.tasks] == ["faces", "voices"]
    shown = audit(log_of(a_round(1), private(1, 1)), KEYS, task="voices")
    assert [task.task.name for task in shown.tasks] == ["voices"]


# What was changed after the parties had signed


def test_no_byte_of_a_saved_log_can_be_changed() -> None:
    log = history(2)
    lines = [*log.envelopes, json.dumps({"checkpoint": log.checkpoint.decode()}, ensure_ascii=False).encode()]
    whole = b"\n".join(lines) + b"\n"
    assert found(SavedLog.from_bytes(whole)).clean
    drawn = random.Random(1)
    for position in range(0, len(whole), 5):
        changed = bytearray(whole)
        changed[position] ^= 1 << drawn.randrange(8)
        try:
            assert not found(SavedLog.from_bytes(bytes(changed))).clean, position
        except PartyFault:
            continue


def fields(content: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The place of every leaf of a JSON value, and of every member of a table or list."""
    if path:
        yield path
    inner = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in inner:
        yield from fields(value, (*path, key))


def with_field(content: Any, path: tuple[Any, ...], change: Callable[[Any], Any]) -> Any:
    copy = json.loads(json.dumps(content))
    inner = copy
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = change(inner[path[-1]])
    return copy


def otherwise(value: Any) -> Any:
    """The same kind of value, and another one."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, str):
        return value[:-1] + ("0" if value[-1:] != "0" else "1")
    if isinstance(value, list):
        return value[:-1] or [1]
    if isinstance(value, dict):
        return {**value, "more": 1}
    return 1


def test_no_field_of_a_certificate_can_be_changed_without_the_parties_keys() -> None:
    log = history(2)
    opened = open_envelope(log.envelopes[0])
    statement = json.loads(opened.payload)
    places = list(fields(statement))
    assert len(places) > 80
    signatures = {each.keyid: bytes.fromhex(each.signature) for each in opened.signatures.values()}
    for place in places:
        changed = with_field(statement, place, otherwise)
        payload = json.dumps(changed, sort_keys=True, separators=(",", ":")).encode()
        assert payload != opened.payload, place
        result = found(replace(log, envelopes=(assemble(payload, signatures), log.envelopes[1])))
        assert {finding.entry for finding in result.findings} == {None, 0}, place
        assert any("signature of party" in finding.what for finding in result.findings), place


def test_not_even_the_parties_can_change_an_entry_that_they_cosigned() -> None:
    log = history()
    other = enveloped(a_round(2, coin=digest("another coin")).statement)
    changed = replace(log, envelopes=(log.envelopes[0], other, *log.envelopes[2:]))
    (what,) = whats(changed)
    assert what.startswith("these are not the 4 entries that the parties cosigned: one was changed, left out, put in")


@pytest.mark.parametrize("dropped", range(4))
def test_an_entry_that_was_dropped_is_missed(dropped: int) -> None:
    log = history()
    rest = tuple(e for i, e in enumerate(log.envelopes) if i != dropped)
    result = found(replace(log, envelopes=rest))
    assert result.findings[0].what == "3 entries are here, but the parties cosigned 4"
    gaps = [finding for finding in result.findings[1:] if "missing" in finding.what]
    assert len(gaps) == (dropped in (1, 2))
    assert all(gap.whose == "coordinator" for gap in gaps)
    assert not found(with_checkpoint_of(cosigned(rest), log)).clean


def test_an_entry_that_stands_twice_or_elsewhere_is_found() -> None:
    log = history()
    one, two, three, four = log.envelopes
    assert (
        whats(replace(log, envelopes=(one, two, two, three, four)))[0]
        == "5 entries are here, but the parties cosigned 4"
    )
    for moved in ((two, one, three, four), (one, two, four, three), (four, three, two, one)):
        texts = whats(replace(log, envelopes=moved))
        assert "these are not the 4 entries" in texts[0]
        assert any("rounds go forward" in text for text in texts)


def test_signatures_and_checkpoint_of_another_log_do_not_fit() -> None:
    log, other = history(4), history(5)
    assert whats(with_checkpoint_of(log, other)) == ["4 entries are here, but the parties cosigned 5"]
    assert whats(replace(log, checkpoint=cosigned(log.envelopes, signers=(0, 2)).checkpoint))[0].endswith(
        "no valid cosignature of 1 under the keys given"
    )
    assert audit(cosigned(log.envelopes, signers=(0, 2)), party_keys(2)).clean
    assert (
        "is of the log other/rounds"
        in audit(cosigned(log.envelopes, federation="other"), KEYS, "demo").findings[0].what
    )
    assert not audit(log, KEYS, "other").clean


def test_a_log_of_one_federation_under_anothers_name_is_found() -> None:
    texts = [f.what for f in audit(cosigned(history().envelopes, federation="other"), KEYS).findings]
    assert texts == ["it is a certificate of the federation 'demo'"] * 4


@pytest.mark.parametrize("signers", [SIGNERS[:2], SIGNERS[:1], (), (*SIGNERS[:2], STRANGER)])
def test_too_few_signatures_are_found(signers: tuple[Ed25519PrivateKey, ...]) -> None:
    envelopes = [enveloped(a_round(1).statement, signers), enveloped(a_round(2).statement)]
    result = found(cosigned(envelopes))
    assert [finding.entry for finding in result.findings] == [0]
    assert "of the three parties have signed it" in result.findings[0].what


def test_a_signature_of_something_else_names_its_party() -> None:
    certificate = a_round(1)
    signatures = {key_id(s.public_key()): sign(certificate.statement, s) for s in SIGNERS}
    signatures[key_id(SIGNERS[1].public_key())] = sign(b"something else", SIGNERS[1])
    (finding,) = found(cosigned([assemble(certificate.statement, signatures)])).findings
    assert finding.what == "certificate: the signature of party 1 does not hold"
    assert finding.whose.startswith("party 1, or coordinator")


# What all three parties signed, and must not be


def wrong(*certificates: Any) -> list[tuple[int | None, str]]:
    return [(finding.entry, finding.what) for finding in found(log_of(*certificates)).findings]


def test_a_round_that_was_never_logged_is_missed() -> None:
    assert wrong(a_round(1), a_round(3)) == [(1, "task 'faces' goes on with round 3, and round 2 is missing before it")]
    assert wrong(a_round(1), a_round(5)) == [
        (1, "task 'faces' goes on with round 5, and round 2 to 4 are missing before it")
    ]


def test_a_round_with_two_certificates_is_found() -> None:
    assert wrong(a_round(1), failed(number=1)) == [
        (1, "round 1 of task 'faces' comes after round 1: rounds go forward, each once")
    ]


def test_a_task_that_began_before_the_log_is_noted_not_blamed() -> None:
    result = found(log_of(a_round(7), a_round(8)))
    assert result.clean
    assert result.notes == (
        "task 'faces' begins with round 7 at entry 0: earlier ones ended before there was a log, or were never logged",
    )


def test_a_task_that_was_changed_is_noted() -> None:
    result = found(log_of(a_round(1), a_round(1, replace(TASK, clip_norm=2.0))))
    assert result.clean
    assert "the task called 'faces' was changed: the log has 2 of this name" in result.notes[0]


def test_an_aggregate_of_fewer_than_the_task_wants_is_found_though_all_signed_it() -> None:
    statement = json.loads(a_round(1).statement)
    statement["predicate"]["task"]["min_accepted"] = 4  # and 3 were accepted
    payload = json.dumps(statement, sort_keys=True, separators=(",", ":")).encode()
    (finding,) = found(cosigned([enveloped(payload)])).findings
    assert finding.what == "certificate: fewer submissions are in it than the task's min_accepted"
    assert "the parties that signed it" in finding.whose


def test_strangers_and_too_many_are_found() -> None:
    closed = replace(TASK, participants=tuple(map(ParticipantId, ("p0", "p1", "p2", "p3"))), max_participants=4)
    texts = [what for _, what in wrong(a_round(1, closed))]
    assert texts == [
        "round 1 of task 'faces': it has 5 submissions; its task takes 4 at most",
        "round 1 of task 'faces': p4 took part; its task names who may",
    ]


@pytest.mark.parametrize(
    ("openings", "text"),
    [
        ((*OPENED[:3], "norms[4]", OPENED[3]), "it opened valid, enough_accepted, accepted, norms, masked_aggregate"),
        (OPENED[:2] + OPENED[3:], "its task declares valid, enough_accepted, accepted, masked_aggregate"),
        (("valid[4]", *OPENED[1:]), "not the 5 validity bits"),
        ((*OPENED[:3], "masked_aggregate[9]"), "not the aggregate of 8 words"),
        ((*OPENED[:3], "aggregate[8]"), "its task declares"),
        ((OPENED[1], OPENED[0], *OPENED[2:]), "its task declares"),
    ],
)
def test_openings_that_the_task_does_not_declare_are_found(openings: tuple[str, ...], text: str) -> None:
    ((entry, what),) = wrong(a_round(1, openings=openings))
    assert entry == 0
    assert text in what


def test_a_rule_of_somebody_else_is_noted_and_may_open_what_rules_open() -> None:
    own = replace(TASK, rule="our-rule", rule_options={})
    result = found(log_of(a_round(1, own)))
    assert result.clean
    assert "a rule that does not come with Triskele (our-rule)" in result.notes[0]
    texts = [what for _, what in wrong(a_round(1, own, openings=(*OPENED[:2], "scores[4]", OPENED[3])))]
    assert texts == ["round 1 of task 'faces': it opened scores, which no rule may"]


def test_a_coin_that_was_tossed_before_is_found() -> None:
    ((entry, what),) = wrong(a_round(1, coin=digest("c")), a_round(2, coin=digest("c")))
    assert (entry, what) == (1, "round 2 of task 'faces' has the coin of round 1")


def test_a_round_that_started_from_another_aggregate_is_found() -> None:
    first = a_round(1)
    output = first.released.output.digest
    assert wrong(first, failed(number=2), a_round(3, previous=output)) == []
    ((entry, what),) = wrong(first, a_round(2, previous=digest("another")))
    assert entry == 1
    assert "started from another aggregate than the last that was released" in what


# Privacy


def test_epsilon_is_recomputed_where_dp_accounting_is_installed() -> None:
    pytest.importorskip("dp_accounting")
    result = found(log_of(*(private(n, n) for n in range(1, 5))))
    assert result.clean
    assert result.recomputed
    ((entry, what),) = wrong(private(1, 1), private(2, 2, epsilon="5.5"))
    assert entry == 1
    assert what == "round 2 of task 'voices' says epsilon = 5.5; 2 rounds cost 7.07739"


def test_what_is_spent_only_grows() -> None:
    assert wrong(private(1, 1), private(2, 1)) == [
        (1, "round 2 of task 'voices' says that 1 rounds were spent, after 1: what is spent only grows")
    ]
    assert wrong(private(1, 1), private(2, 3)) == [
        (1, "round 2 of task 'voices' says that 3 rounds were spent, more than there were")
    ]
    assert wrong(private(1, 1), failed(PRIVATE, 2), private(3, 3)) == []  # the failed one may have opened something


def test_what_is_over_the_budget_is_found() -> None:
    tight = replace(PRIVATE, privacy=Privacy(1.0, 1e-5, 5.0))
    spent = PrivacySpent(claim=CLAIM, rounds=2, epsilon=EPSILON[2])
    given = {"openings": PRIVATE_OPENED, "accepted": (0, 1, 2, 3), "weights": None}
    ((entry, what),) = wrong(a_round(2, tight, privacy=spent, **given))
    assert entry == 0
    assert what == "round 2 of task 'voices' has spent epsilon = 7.07739, over its budget of 5"
    for text in ("..", "1e999", "-1"):
        ((_, what),) = wrong(private(1, 1, epsilon=text))
        assert f"epsilon = {text}, over its budget" in what


def test_noise_without_a_claim_has_no_epsilon_to_check() -> None:
    assert wrong(private(1, 1, epsilon=None, claim=NO_CLAIM)) == []


def test_without_dp_accounting_the_audit_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    result = found(log_of(private(1, 1, epsilon="5.5")))
    assert result.clean
    assert not result.recomputed
    assert "dp-accounting is not installed here" in result.notes[0]


# The file


def test_a_saved_log_is_read_as_it_was_written(tmp_path: Path) -> None:
    log = history()
    log.write(tmp_path / "log.jsonl")
    assert SavedLog.read(tmp_path / "log.jsonl") == log
    lines = (tmp_path / "log.jsonl").read_text("utf-8").splitlines()
    assert len(lines) == 5
    assert [set(json.loads(line)) for line in lines[:4]] == [{"payload", "payloadType", "signatures"}] * 4


@pytest.mark.parametrize(
    "content", [b"", b"\n", b"{}\n", b"[]\n", b'{"checkpoint": 1}\n', b'{"checkpoint": "x"}', b"\xff\n"]
)
def test_what_is_no_saved_log_is_refused(content: bytes) -> None:
    with pytest.raises(PartyFault):
        SavedLog.from_bytes(content)


def test_a_saved_log_that_was_cut_off_is_refused(tmp_path: Path) -> None:
    log = history()
    log.write(tmp_path / "log.jsonl")
    whole = (tmp_path / "log.jsonl").read_bytes()
    for end in (len(whole) - 1, len(whole) // 2, len(log.envelopes[0]) + 1, 10):
        with pytest.raises(PartyFault, match=r"cut off|whole line"):
            SavedLog.from_bytes(whole[:end])
    with pytest.raises(ConfigurationError, match="cannot be read"):
        SavedLog.read(tmp_path / "nothing.jsonl")
