"""The three parties together: asked at the same time, waited for with patience, and what their answers mean."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import structlog

from triskele.errors import PartyFault, RoundFailed, TriskeleError, Unavailable
from triskele.ids import PARTIES, PartyIndex
from triskele_server.coordinator.party_link import PartyLink
from triskele_server.coordinator.rounds import Blame, Outcome, PartyStatus
from triskele_server.coordinator.schedule import PARTY_UNREACHABLE, party_name
from triskele_server.metrics import coordinator as metrics
from triskele_server.round_state import RoundState, least_advanced

PARTY_REFUSED = "party_refused"  # a party answered a call of the coordinator with an error
PARTY_BROKE_PROTOCOL = "party_broke_protocol"  # a party's answer makes no sense
NO_PROGRESS = "no_progress"  # no party's state changed for `Pace.stall_seconds`
OUT_OF_STEP = "out_of_step"  # a party's round is in a state that it cannot be in now

ATTEMPTS_EXHAUSTED = "attempts_exhausted"  # parties kept falling silent in the middle of the computation

_REASONS_TOLD = 10  # of one silence; gRPC's words vary

T = TypeVar("T")
Answer = PartyStatus | TriskeleError
_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Pace:
    """How often parties are asked and how long they are waited for; seconds."""

    poll_seconds: float = 0.05  # between two status calls while things move
    slowest_poll_seconds: float = 0.5  # while nothing moves
    news_seconds: float = 1.0  # that a party may wait for news before it answers
    attempts: int = 5  # at one round's computation, when parties fall silent in the middle of it
    stall_seconds: float = 600.0  # without any party's state changing: the round fails
    pause_seconds: float = 1.0  # after a failed round, so that a standing fault does not burn the rounds in a moment


_POLLS_AT_MOST = 0.1  # of the time, as far as the slowest poll allows: a large round's status costs three parties much


class Waiting:
    """Sleeps that grow from the quickest to the slowest poll until something moves; by the event loop's clock."""

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self._woke = asyncio.get_running_loop().time()
        self.moved()

    def moved(self) -> None:
        """Something happened: poll quickly again."""
        self._seconds = self._pace.poll_seconds
        self._since = asyncio.get_running_loop().time()

    @property
    def stalled(self) -> bool:
        """Whether nothing has moved for too long."""
        return asyncio.get_running_loop().time() - self._since > self._pace.stall_seconds

    @property
    def held(self) -> bool:
        """Whether the last poll took as long as parties may wait for news: then they did, and no sleep is needed."""
        return asyncio.get_running_loop().time() - self._woke >= self._pace.news_seconds

    async def sleep(self, at_most: float = math.inf) -> None:
        """Until the next poll, or for `at_most` seconds."""
        polled = asyncio.get_running_loop().time() - self._woke
        seconds = min(max(self._seconds, polled / _POLLS_AT_MOST), self._pace.slowest_poll_seconds)
        await asyncio.sleep(min(seconds, max(at_most, 0.0)))
        self._woke = asyncio.get_running_loop().time()
        self._seconds = min(self._seconds * 1.5, self._pace.slowest_poll_seconds)


class Parties:
    """The links to parties 0, 1, 2, for one caller at a time."""

    def __init__(self, links: Sequence[PartyLink]) -> None:
        self.links = tuple(links)
        self._silent: dict[PartyIndex, set[str]] = {}  # with the reasons that were logged

    async def ask(
        self, call: Callable[[PartyLink], Awaitable[T]], whom: Iterable[PartyIndex] = PARTIES
    ) -> dict[PartyIndex, T | TriskeleError]:
        """What each of the parties `whom` answers, by party; errors of ours are answers too."""

        async def answer(link: PartyLink) -> T | TriskeleError:
            try:
                return await call(link)
            except TriskeleError as error:
                return error

        asked = sorted(whom)
        answers = dict(zip(asked, await asyncio.gather(*(answer(self.links[p]) for p in asked)), strict=True))
        for party, heard in answers.items():
            self._note(party, heard)
        return answers

    async def close(self) -> None:
        """Close the channels."""
        for link in self.links:
            await link.close()

    def _note(self, party: PartyIndex, answer: object) -> None:
        """Log when a party falls silent, when the reason is another, and when it is back; not every call in between."""
        metrics.PARTY_REACHABLE.labels(str(party)).set(not isinstance(answer, Unavailable))
        if isinstance(answer, Unavailable):
            told = self._silent.setdefault(party, set())
            if str(answer) not in told and len(told) < _REASONS_TOLD:
                told.add(str(answer))
                _log.warning("party_unreachable", party=party, error=str(answer))
        elif self._silent.pop(party, None) is not None:
            _log.info("party_reachable", party=party)


def silent_parties(answers: Mapping[PartyIndex, object]) -> set[PartyIndex]:
    """Those that could not be reached."""
    return {p for p, answer in answers.items() if isinstance(answer, Unavailable)}


def statuses(answers: Mapping[PartyIndex, Answer]) -> dict[PartyIndex, PartyStatus]:
    """The answers of parties in a round that goes on.

    Raises RoundFailed if a party has ended the round or refuses what it is asked.
    """
    heard: dict[PartyIndex, PartyStatus] = {}
    for party, answer in answers.items():
        if isinstance(answer, PartyStatus):
            if answer.state in (RoundState.FAILED, RoundState.EXPIRED):
                blame = answer.blame or Blame(OUT_OF_STEP, "", f"its round is {answer.state}")
                raise RoundFailed(blame.reason, blame.who or party_name(party), blame.detail)
            heard[party] = answer
        elif not isinstance(answer, Unavailable):
            reason = PARTY_BROKE_PROTOCOL if isinstance(answer, PartyFault) else PARTY_REFUSED
            raise RoundFailed(reason, party_name(party), str(answer))
    return heard


def check_open(heard: Mapping[PartyIndex, PartyStatus]) -> None:
    """Raise RoundFailed if a party has sealed a round for which the coordinator fixed no input set."""
    for party, status in heard.items():
        if status.state is not RoundState.OPEN:
            raise RoundFailed(OUT_OF_STEP, party_name(party), f"its round is {status.state} while it should be OPEN")


def outcomes_of(combined: Mapping[PartyIndex, PartyStatus]) -> list[Outcome]:
    """The outcomes of parties 0, 1, 2; raises RoundFailed if one reports COMBINED without."""
    outcomes = [combined[p].outcome for p in PARTIES]
    missing = [PartyIndex(i) for i, outcome in enumerate(outcomes) if outcome is None]
    if missing:
        raise RoundFailed(OUT_OF_STEP, names(missing), "reports COMBINED without an outcome")
    return [outcome for outcome in outcomes if outcome is not None]


def all_combined(heard: Iterable[PartyStatus]) -> bool:
    """Whether all have come to the end of the same attempt; an earlier one's outcome counts no more while one runs."""
    given = list(heard)
    return (
        all(s.state is RoundState.COMBINED and not s.running for s in given)
        and len({s.outcome.attempt for s in given if s.outcome is not None}) <= 1
    )


def next_attempt(heard: Iterable[PartyStatus], most: int) -> int | None:
    """The number of the attempt that is due at all three parties; None while one runs or all are COMBINED.

    It is due if somewhere the latest one neither runs nor came to its end. Raises RoundFailed after `most` attempts.
    """
    given = list(heard)
    latest = max(s.attempt for s in given)
    going_on = [s.running and s.attempt == latest for s in given]
    if all_combined(given):
        return None
    if any(going_on) and all(s.state is RoundState.COMBINED or on for s, on in zip(given, going_on, strict=True)):
        return None
    if latest >= most:
        setbacks = "; ".join(sorted({s.setback for s in given if s.setback})) or "a party was restarted"
        raise RoundFailed(
            ATTEMPTS_EXHAUSTED, "parties", f"{latest} attempts were lost, the last one because: {setbacks}"
        )
    return latest + 1


def stall(silent: Iterable[PartyIndex], latest: Mapping[PartyIndex, PartyStatus], seconds: float) -> RoundFailed:
    """The error for a round in which nothing moved for `seconds`, blaming who is away or else who is behind."""
    if away := names(silent):
        return RoundFailed(PARTY_UNREACHABLE, away, f"did not answer for {seconds:g} s")
    slowest = least_advanced(s.state for s in latest.values())
    behind = [p for p, status in latest.items() if status.state is slowest]
    return RoundFailed(NO_PROGRESS, names(behind), f"stayed {slowest} for {seconds:g} s")


def names(parties: Iterable[PartyIndex]) -> str:
    """As in a blame."""
    return ",".join(party_name(p) for p in sorted(parties))
