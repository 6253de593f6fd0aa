"""What holds whatever happens: at every step of a run (`check_step`), and when all has come to its end (`check`)."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np

from triskele.errors import TriskeleError
from triskele.ids import PARTIES
from triskele.transparency import checkpoint
from triskele.transparency.audit import audit
from triskele.transparency.logged_certificate import LoggedCertificate
from triskele.transparency.merkle import check_consistency
from triskele.transparency.saved_log import SavedLog
from triskele_server.coordinator.log import Log
from triskele_server.coordinator.rounds import RoundRecord
from triskele_server.coordinator.store import Store
from triskele_server.party.control import INTERNAL_ERROR
from triskele_server.party.cosigner import FILE, read_cosigned
from triskele_server.party.filter import declared_openings
from triskele_server.round_state import RoundState, progress

from .openings import AGREED
from .operations import HARMLESS, LoseRelay

if TYPE_CHECKING:
    from .federation import Federation

ONE = 1 << 20  # a clip norm in words
TOLERANCE = 1e-3  # of a rule that rounds inside MPC, in clip norms
RELAY_LOSSES = 6  # that a relay outlasts before its participant loses patience and sends the words itself
RELAY_SECONDS = 15.0  # that it takes then
POLL_SECONDS = 12.0  # within which an upload that all parties have confirmed is known to the coordinator


def check_step(federation: Federation, store: Store) -> None:
    """A round only goes forward; what has ended, and what was sealed, stays as it is."""
    from .federation import Seen

    for record in store.rounds(federation.spec.digest):
        number, now = record.id.number, federation.loop.time()
        seen = federation.seen.get(number)
        if seen is None:
            assert number == max(federation.seen, default=0) + 1, f"round {number} was opened out of turn"
            seen = federation.seen[number] = Seen(record.state, at=now)
        before = seen.record
        if before is not None:
            if before.ended:
                assert _kept(record) == _kept(before), f"round {number} changed after its end"
            elif not record.ended:
                assert progress(record.state) >= progress(before.state), f"round {number} went back"
            if before.state is not RoundState.OPEN:
                assert record.sealed == before.sealed, f"round {number} has another input set"
        if record.state is not RoundState.OPEN and seen.sealed_at is None:
            seen.sealed_at = now
        seen.state, seen.record = record.state, record
        if record.state is RoundState.RELEASED:
            result = store.result(record.id)
            assert seen.result in (None, result), f"round {number} was released twice"
            seen.result = result
    _check_checkpoints(federation, store)


def _check_checkpoints(federation: Federation, store: Store) -> None:
    """What was cosigned once, by one party or by all, is not taken back: neither by the log nor by a party."""
    notes = {f"{count} cosignatures": store.checkpoint(count) for count in (1, len(PARTIES))}
    found = {name: note and checkpoint.unverified(note) for name, note in notes.items()}
    for party in federation.parties:
        found[party.host] = read_cosigned(party.config.data / FILE)
    for name, now in found.items():
        before = federation.checkpoints.get(name)
        if before is not None:
            assert now is not None, f"the checkpoint of {name} is gone"
            assert now.size >= before.size, f"the checkpoint of {name} went back from {before.size} to {now.size}"
            assert now.size > before.size or now == before, f"the checkpoint of {name} has another root"
        if now is not None and now != before:
            federation.checkpoints[name] = now
            federation.cosigned.append(now)


def _kept(record: RoundRecord) -> tuple[Any, ...]:
    return record.state, record.sealed, record.accepted, record.refused, record.openings, record.blame


def check(federation: Federation) -> None:
    """Everything, once the federation is at rest."""
    seen = federation.seen
    rounds = federation.setup.rounds
    assert sorted(seen) == list(range(1, rounds + 1)), f"{sorted(seen)} of {rounds} rounds were opened"
    for number, round_ in seen.items():
        record = round_.record
        assert record is not None
        assert record.ended, f"round {number} is {record.state} for ever"
        assert record.closed, f"round {number} has ended, but not at every party"
        _check_openings(federation, record)
        _check_inputs(federation, record)
        if record.state is RoundState.RELEASED:
            _check_release(federation, record, round_.result)
        else:
            assert record.blame is not None, f"round {number} is {record.state} without a reason"
            assert record.blame.reason, record.blame
            assert record.blame.who, record.blame
            if record.blame.reason == INTERNAL_ERROR:
                assert federation.disk_was_full, f"round {number} broke: {record.blame}, {federation.logged.errors}"
        _check_nothing_was_lost(federation, record, round_.sealed_at)
        _check_relays(federation, record, round_.sealed_at)
    _check_log(federation)
    assert not federation.left_behind, f"files of ended rounds were kept: {federation.left_behind}"
    if not federation.disk_was_full:
        assert not federation.logged.errors, federation.logged.errors
        broke = [why for process in federation.processes for why in process.broke]
        assert not broke, broke
        assert not federation.loop.unhandled, federation.loop.unhandled


def _check_log(federation: Federation) -> None:
    """Its audit finds nothing: one certificate of each round, under checkpoints that continue one another."""
    store, keys = federation.coordinator.store, federation.keys
    assert store is not None
    log, note = Log(store, federation.name), store.checkpoint(len(PARTIES))
    assert note is not None, "the log was never cosigned by all"
    entries = list(log.entries(0, log.size))
    audited = audit(SavedLog(tuple(entry.envelope for entry in entries), note), keys, federation.name)
    assert audited.clean, f"the log's audit: {[finding.what for finding in audited.findings]}"
    told = {each.certificate.round: each.certificate.account.state for one in audited.tasks for each in one.rounds}
    assert len(entries) == len(told)
    assert told == {number: str(round_.state) for number, round_ in federation.seen.items()}
    for entry in entries:
        proof = log.proof(entry.index)
        LoggedCertificate(entry.envelope, proof.index, proof.hashes, proof.checkpoint).verified(keys)
    head = log.head()
    for earlier in federation.cosigned:
        check_consistency(earlier.size, head.size, log.growth(earlier.size, head.size), earlier.root, head.root)
    for name, last in federation.checkpoints.items():
        assert last == head, f"the checkpoint of {name} is of {last.size} entries of {head.size}"


def _check_openings(federation: Federation, record: RoundRecord) -> None:
    """Nothing beside the ledger; of all attempts one aggregate at most."""
    number, openings = record.id.number, federation.openings
    declared, opened = set(declared_openings(federation.spec)), openings.names[number]
    assert opened <= declared, f"round {number} opened {opened - declared}"
    for name in AGREED:
        assert len(openings.values[number, name]) <= 1, f"round {number} opened {name} twice, differently"
    assert len(openings.decisions[number]) <= 1, f"round {number} opened an aggregate for {openings.decisions[number]}"
    if record.state is RoundState.EXPIRED:
        assert not opened, f"round {number} expired, but opened {opened}"
    if record.state is RoundState.RELEASED:
        told = {text.partition("[")[0] for text in record.openings}
        assert opened == told, f"round {number} opened {opened} and told {told}"


def _check_inputs(federation: Federation, record: RoundRecord) -> None:
    """Every party computes with what was sealed, in every attempt, and never with fewer than the minimum."""
    sealed = {bytes(s.manifest) for s in record.sealed}
    for (number, attempt), by_party in federation.openings.inputs.items():
        if number == record.id.number:
            for party, manifests in by_party.items():
                what = f"round {number}, attempt {attempt}: party {party}"
                assert manifests == sealed, f"{what} computes with another set than was sealed"
                assert len(manifests) >= federation.setup.min_accepted, f"{what} computes with {len(manifests)}"
    if record.sealed:
        assert len(record.sealed) >= federation.setup.min_accepted
        assert len({s.participant for s in record.sealed}) == len(record.sealed), "a participant was sealed twice"
        for submission in record.sealed:
            sent = federation.members[int(submission.participant[1:])].sent.get(submission.manifest)
            assert sent is not None, f"{submission} was never sent"
            assert record.enrolled[submission.participant] == submission.slot


def _check_release(federation: Federation, record: RoundRecord, result: Any) -> None:
    """The aggregate is that of exactly the accepted submissions, and everybody gets the same bytes."""
    number, spec = record.id.number, federation.spec
    (released, words), (again, words_again) = (_fetch(federation, member, number) for member in federation.members[:2])
    assert released == again
    assert np.array_equal(words, words_again)
    assert hashlib.sha256(released).digest() == result.digest
    _check_nobody_could_read(federation, number, words)
    got = words / result.weight_total / 2.0**result.coefficient_bits / ONE
    sent = {s.slot: federation.members[int(s.participant[1:])].sent[s.manifest] for s in record.sealed}
    out = {r.slot for r in record.refused if r.slot in sent and r.reason == "failed_validity_check"}
    valid = {slot for slot in sent if slot not in out}
    assert out == {slot for slot, s in sent.items() if not s.valid}, f"refused {out}: {record.refused}"
    counted = set(record.accepted) if spec.decisions == "public" else valid
    assert counted <= valid, f"{counted - valid} were counted and are not valid or not sealed"
    rule = federation.setup.rule
    if rule == "fltrust":  # all others agree with the root alike; the root itself is not averaged
        counted = {slot for slot in valid if sent[slot].participant != spec.root}
    assert len(counted) >= spec.min_accepted, f"{len(counted)} were counted, below the minimum cohort"
    if rule == "multi-krum":
        assert spec.min_accepted <= result.weight_total <= 3, f"{result.weight_total} rows were selected"
        if spec.decisions == "hidden":  # any three of them, each once
            weights = got * result.weight_total
            assert np.allclose(weights, weights.round(), atol=TOLERANCE), f"the aggregate counts {weights}"
            assert set(weights.round()) <= {0.0, 1.0}, f"the aggregate counts {weights}"
            return
    expected = np.mean([sent[slot].words for slot in sorted(counted)], axis=0) / ONE
    exact = rule in ("mean", "multi-krum")
    assert np.allclose(got, expected, rtol=0, atol=1e-9 if exact else TOLERANCE), f"{got} is not {expected}"
    if rule == "mean":
        assert result.weight_total == len(counted)


def _check_nobody_could_read(federation: Federation, number: int, words: np.ndarray) -> None:
    """No message of any call and no file of coordinator and parties holds three entries of the aggregate in a row.

    A chunk has three words. Where two of them are 0 they may be something else.
    """
    parts = [words[at : at + 3] for at in range(0, len(words) - 2, 3)]
    needles = [part.tobytes() for part in parts if np.count_nonzero(part) > 1]
    folders = [process.config.data for process in (federation.coordinator, *federation.parties)]
    files = {path: path.read_bytes() for folder in folders for path in folder.rglob("*") if path.is_file()}
    for name, content in {"a message": b"|".join(federation.network.carried), **files}.items():
        assert not any(needle in content for needle in needles), f"{name} holds the aggregate of round {number}"


def _check_nothing_was_lost(federation: Federation, record: RoundRecord, sealed_at: float | None) -> None:
    """Who was confirmed by all parties in time is in; without faults of servers there is a release."""
    number = record.id.number
    sealed = {s.manifest for s in record.sealed}
    in_time: set[bytes] = set()
    for member in federation.members:
        for (round_, manifest), at in member.confirmed.items():
            if round_ == number and sealed_at is not None and at + POLL_SECONDS < sealed_at:
                in_time.add(manifest)
    if record.state is RoundState.RELEASED and not federation.hostile:
        assert in_time <= sealed, f"{len(in_time - sealed)} confirmed submissions are not in round {number}"
    if all(isinstance(operation, HARMLESS) for operation in federation.operations):
        valid = [s for s in record.sealed if federation.members[int(s.participant[1:])].sent[s.manifest].valid]
        enough = len(valid) >= federation.setup.min_accepted
        if enough and federation.setup.rule == "mean":
            assert record.state is RoundState.RELEASED, f"nothing was wrong, but {record.blame}"
        if len(in_time) >= federation.setup.min_accepted and not federation.hostile:
            assert record.state is not RoundState.EXPIRED, "enough were there in time"


def _check_relays(federation: Federation, record: RoundRecord, sealed_at: float | None) -> None:
    """A relay that is lost or comes twice leaves the right words, and costs nobody its place or a second upload."""
    number, sealed = record.id.number, {s.manifest for s in record.sealed}
    wrong = [what for member in federation.members for what in member.confirmed_wrongly]
    assert not wrong, wrong
    losses = sum(operation.count for operation in federation.operations if isinstance(operation, LoseRelay))
    only_relays = all(isinstance(operation, HARMLESS) for operation in federation.operations) and not federation.hostile
    if not only_relays or losses > RELAY_LOSSES:
        return
    for member in federation.members:
        for (round_, manifest), times in member.began.items():
            if round_ != number or len(times) > 1:  # it broke its own first upload off
                continue
            name = f"{member.id} in round {number}"
            if (number, manifest) in member.confirmed:
                assert (number, manifest) not in member.sent_twice, f"{name} sent its words twice"
            if sealed and sealed_at is not None and times[0] + RELAY_SECONDS + POLL_SECONDS < sealed_at:
                assert manifest in sealed, f"{name} was there in time and is not in it"


def _fetch(federation: Federation, member: Any, number: int) -> tuple[bytes, np.ndarray]:
    async def fetched() -> Any:
        return await member.start(member.fetch, federation.spec, number)

    answer = federation.loop.run_until_complete(fetched())
    assert not isinstance(answer, TriskeleError), f"round {number} is released, but {answer!r}"
    released, words = answer
    return released, words
