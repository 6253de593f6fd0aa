"""The audit of a whole log: what anybody can check with three public keys and nobody's help.

Every finding names the entry, what is wrong, and whose doing it is. An entry that does not verify is named once and
counts for nothing else. What an audit cannot see stands in docs/how-to/audit.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any, Final

from triskele.errors import PartyFault
from triskele.ids import PARTIES, PartyIndex, TaskDigest
from triskele.privacy import Privacy
from triskele.task import TaskSpec
from triskele.transparency import checkpoint
from triskele.transparency.certificate import CLAIM, Certificate, Computation, LeftOut, open_envelope
from triskele.transparency.checkpoint import CosignedCheckpoint
from triskele.transparency.merkle import tree_head
from triskele.transparency.openings import declared, not_as_declared
from triskele.transparency.party_keys import PartyKeys
from triskele.transparency.saved_log import SavedLog

COORDINATOR: Final = "coordinator"
THE_PARTIES: Final = "the parties that signed it"
SOMEBODY: Final = "coordinator, or whoever changed the file"
_SAME_EPSILON: Final = 1e-4  # relative: parties give six digits, and numerical libraries differ in the last places


@dataclass(frozen=True)
class Finding:
    """Something that must not be. `entry` is the log's index, None if it concerns the log as a whole."""

    entry: int | None
    what: str
    whose: str


@dataclass(frozen=True)
class AuditedRound:
    """An entry whose signatures hold."""

    index: int
    certificate: Certificate

    @property
    def released(self) -> Computation | None:
        """What was computed, if the round gave a result."""
        return self.certificate.account.computation

    @property
    def left_out(self) -> int:
        """How many came into no input set, as the coordinator says."""
        return len(self.certificate.account.left_out)

    @property
    def refusals(self) -> tuple[LeftOut, ...]:
        """Whom the parties refused."""
        return () if self.released is None else self.released.refused

    @property
    def refused(self) -> int:
        """How many the parties refused."""
        return len(self.refusals)

    @property
    def counted(self) -> int:
        """How many are in the aggregate: the accepted where that is public, else the valid ones."""
        if self.released is None:
            return 0
        if self.released.accepted is not None:
            return len(self.released.accepted)
        return len(self.released.submissions) - self.refused

    @property
    def filtered(self) -> int:
        """How many valid submissions the rule rejected, where that is public."""
        return 0 if self.released is None else len(self.released.submissions) - self.refused - self.counted


@dataclass(frozen=True)
class AuditedTask:
    """The rounds of one task, in the order of the log."""

    task: TaskSpec
    rounds: tuple[AuditedRound, ...]

    def count(self, state: str) -> int:
        """How many rounds ended so."""
        return sum(each.certificate.account.state == state for each in self.rounds)


@dataclass(frozen=True)
class Audit:
    """What an audit saw. `findings` must not be; `notes` are what a reader should know."""

    federation: str
    entries: int
    cosigned: CosignedCheckpoint | None
    tasks: tuple[AuditedTask, ...]
    findings: tuple[Finding, ...]
    notes: tuple[str, ...]
    recomputed: bool  # whether epsilon was, with dp-accounting

    @property
    def clean(self) -> bool:
        """Whether nothing was found."""
        return not self.findings

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        found = self.cosigned
        return {
            "clean": self.clean,
            "federation": self.federation,
            "entries": self.entries,
            "checkpoint": None
            if found is None
            else {
                "size": found.checkpoint.size,
                "root": found.checkpoint.root.hex(),
                "cosigned": {str(party): time for party, time in sorted(found.times.items())},
            },
            "findings": [asdict(finding) for finding in self.findings],
            "notes": list(self.notes),
            "epsilon_recomputed": self.recomputed,
            "tasks": [_task_json(each) for each in self.tasks],
        }


def audit(log: SavedLog, keys: PartyKeys, federation: str = "", *, task: str = "") -> Audit:
    """Check the whole log under the parties' keys. `task`: show only the tasks of this name; checked is everything.

    `federation` is whose log it must be; without it, whosever the checkpoint is.
    """
    findings: list[Finding] = []
    cosigned, name = _cosigned(log, keys, federation, findings)
    rounds = _verified(log, keys, name, findings)
    notes: list[str] = []
    by_task: dict[TaskDigest, list[AuditedRound]] = {}
    for each in rounds:
        by_task.setdefault(each.certificate.task.digest, []).append(each)
    tasks = tuple(AuditedTask(found[0].certificate.task, tuple(found)) for found in by_task.values())
    epsilon = _accountant()
    for one in tasks:
        findings += _history(one, notes)
        findings += _privacy(one, epsilon)
    notes += _remarks(tasks)
    if epsilon is None and any(one.task.privacy for one in tasks):
        notes.append("epsilon was not recomputed: dp-accounting is not installed here (pip install dp-accounting)")
    shown = tuple(one for one in tasks if not task or one.task.name == task)
    in_order = sorted(findings, key=lambda finding: -1 if finding.entry is None else finding.entry)
    return Audit(
        name, len(log.envelopes), cosigned, shown, tuple(in_order), tuple(notes), recomputed=epsilon is not None
    )


def _cosigned(
    log: SavedLog, keys: PartyKeys, federation: str, findings: list[Finding]
) -> tuple[CosignedCheckpoint | None, str]:
    """The log as a whole: enough parties have cosigned this many entries with this root, and these are they."""
    try:
        name = federation or checkpoint.unverified(log.checkpoint).origin.removesuffix("/rounds")
        found = checkpoint.verified(log.checkpoint, keys, name)
    except PartyFault as error:
        findings.append(Finding(None, f"the checkpoint does not verify: {error}", _of_party(error) or SOMEBODY))
        return None, federation
    size = found.checkpoint.size
    if size != len(log.envelopes):
        what = f"{len(log.envelopes)} entries are here, but the parties cosigned {size}"
        findings.append(Finding(None, what, SOMEBODY))
    elif tree_head(map(_leaf, log.envelopes)) != found.checkpoint.root:
        what = (
            f"these are not the {size} entries that the parties cosigned: one was changed, left out, put in or moved. "
            "Compare the file with one that somebody else saved, line by line"
        )
        findings.append(Finding(None, what, SOMEBODY))
    return found, name


def _of_party(error: PartyFault) -> str:
    return "" if error.party is None else f"party {error.party}, or {SOMEBODY}"


def _leaf(envelope: bytes) -> bytes:
    try:
        return open_envelope(envelope).payload
    except PartyFault:
        return b""  # no statement is empty: the root cannot be right


def _verified(log: SavedLog, keys: PartyKeys, federation: str, findings: list[Finding]) -> list[AuditedRound]:
    rounds = []
    for index, envelope in enumerate(log.envelopes):
        try:
            certificate = Certificate.verified(envelope, keys)
        except PartyFault as error:
            whose = f"{SOMEBODY}; {THE_PARTIES}, if their signatures hold"
            findings.append(Finding(index, str(error), _of_party(error) or whose))
            continue
        if federation and certificate.account.federation != federation:
            what = f"it is a certificate of the federation {certificate.account.federation!r}"
            findings.append(Finding(index, what, THE_PARTIES))
            continue
        rounds.append(AuditedRound(index, certificate))
    return rounds


def _history(of: AuditedTask, notes: list[str]) -> Iterator[Finding]:
    """The rounds of a task one after the other: consecutive, each once, and each as the task wants it."""
    name, last = of.task.name, 0
    coins: dict[str, int] = {}
    output: str | None = None  # of the latest released round
    for each in of.rounds:
        number = each.certificate.round
        if number <= last:
            what = f"round {number} of task {name!r} comes after round {last}: rounds go forward, each once"
            yield Finding(each.index, what, f"{COORDINATOR}, and {THE_PARTIES}")
        elif last == 0 and number > 1:
            notes.append(
                f"task {name!r} begins with round {number} at entry {each.index}: earlier ones ended before there was "
                "a log, or were never logged"
            )
        elif number > last + 1:
            missing = f"{last + 1} is" if number == last + 2 else f"{last + 1} to {number - 1} are"
            what = f"task {name!r} goes on with round {number}, and round {missing} missing before it"
            yield Finding(each.index, what, COORDINATOR)
        last = max(last, number)
        if (released := each.released) is None:
            continue
        for what in _wrong(released, of.task):
            yield Finding(each.index, f"round {number} of task {name!r}: {what}", THE_PARTIES)
        if released.coin in coins:
            what = f"round {number} of task {name!r} has the coin of round {coins[released.coin]}"
            yield Finding(each.index, what, THE_PARTIES)
        coins[released.coin] = number
        if released.previous is not None and output is not None and released.previous != output:
            what = f"round {number} of task {name!r} started from another aggregate than the last that was released"
            yield Finding(each.index, what, THE_PARTIES)
        output = released.output.digest


def _wrong(released: Computation, task: TaskSpec) -> Iterator[str]:
    """Beyond what a certificate checks of itself, such as the smallest cohort."""
    if len(released.submissions) > task.max_participants:
        yield f"it has {len(released.submissions)} submissions; its task takes {task.max_participants} at most"
    strangers = [
        e.participant for e in released.submissions if task.participants and e.participant not in task.participants
    ]
    if strangers:
        yield f"{', '.join(strangers)} took part; its task names who may"
    if wrong := not_as_declared(task, len(released.submissions), released.openings):
        yield wrong


def _privacy(of: AuditedTask, epsilon: Callable[[Privacy, int], float] | None) -> Iterator[Finding]:
    """The privacy spent only grows, by a round at least with every release, and is what its rounds cost."""
    privacy = of.task.privacy
    before = 0
    for each in of.rounds:
        if privacy is None or each.released is None or each.released.privacy is None:
            continue
        spent, about = each.released.privacy, f"round {each.certificate.round} of task {of.task.name!r}"
        if spent.rounds <= before:
            what = f"{about} says that {spent.rounds} rounds were spent, after {before}: what is spent only grows"
            yield Finding(each.index, what, THE_PARTIES)
        elif spent.rounds > each.certificate.round:
            what = f"{about} says that {spent.rounds} rounds were spent, more than there were"
            yield Finding(each.index, what, THE_PARTIES)
        before = max(before, spent.rounds)
        if spent.claim != CLAIM or spent.epsilon is None:
            continue
        stated = stated_epsilon(each)
        if stated is None or stated > privacy.budget_epsilon:
            what = f"{about} has spent epsilon = {spent.epsilon}, over its budget of {privacy.budget_epsilon:g}"
            yield Finding(each.index, what, THE_PARTIES)
        elif epsilon is not None and abs(stated - (right := epsilon(privacy, spent.rounds))) > _SAME_EPSILON * right:
            what = f"{about} says epsilon = {spent.epsilon}; {spent.rounds} rounds cost {right:.6g}"
            yield Finding(each.index, what, THE_PARTIES)


def stated_epsilon(each: AuditedRound) -> float | None:
    """What a round's certificate says that was spent, if that is a finite number."""
    spent = None if each.released is None else each.released.privacy
    if spent is None or spent.epsilon is None:
        return None
    try:
        found = float(spent.epsilon)
    except ValueError:
        return None
    return found if math.isfinite(found) and found >= 0 else None


def _remarks(tasks: tuple[AuditedTask, ...]) -> Iterator[str]:
    """Tasks that changed under the same name; and rules whose openings nobody here can judge."""
    digests: dict[str, list[str]] = {}
    for each in tasks:
        digests.setdefault(each.task.name, []).append(each.task.digest.hex()[:16])
        if declared(each.task) is None:
            yield (
                f"task {each.task.name!r} has a rule that does not come with Triskele ({', '.join(each.task.stages)}): "
                "whether its rounds opened only what it declares is for the parties to say"
            )
    for name, found in digests.items():
        if len(found) > 1:
            yield f"the task called {name!r} was changed: the log has {len(found)} of this name, {', '.join(found)}"


def _accountant() -> Callable[[Privacy, int], float] | None:
    """Epsilon of so many rounds by dp-accounting, as docs/privacy.md has it; None where that is not installed."""
    try:
        import dp_accounting  # noqa: PLC0415  heavy, and of the server's extra
        from dp_accounting.rdp import RdpAccountant  # noqa: PLC0415  the same
    except ImportError:
        return None

    @cache
    def epsilon(privacy: Privacy, rounds: int) -> float:
        accountant = RdpAccountant(neighboring_relation=dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE)
        accountant.compose(dp_accounting.GaussianDpEvent(privacy.noise_multiplier), rounds)
        return float(accountant.get_epsilon(privacy.delta))

    return epsilon


def _task_json(of: AuditedTask) -> dict[str, Any]:
    return {
        "name": of.task.name,
        "digest": of.task.digest.hex(),
        "rule": list(of.task.stages),
        "min_accepted": of.task.min_accepted,
        "rounds": [_round_json(each) for each in of.rounds],
    }


def _round_json(each: AuditedRound) -> Mapping[str, Any]:
    account, released = each.certificate.account, each.released
    content: dict[str, Any] = {
        "entry": each.index,
        "round": account.round,
        "state": account.state,
        "left_out": [part.model_dump() for part in account.left_out],
    }
    if account.blame is not None:
        content["blame"] = account.blame.model_dump()
    if released is not None:
        content |= {
            "submissions": len(released.submissions),
            "refused": [part.model_dump() for part in released.refused],
            "in_aggregate": each.counted,
            "output": released.output.digest,
            "privacy": None if released.privacy is None else released.privacy.model_dump(),
        }
    return content


def cosigners(found: CosignedCheckpoint) -> list[tuple[PartyIndex, int]]:
    """Who cosigned, and when."""
    return [(party, found.times[party]) for party in PARTIES if party in found.times]
