"""What can happen to a federation, as values that Hypothesis makes and shrinks; a printed list can be played again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hypothesis import strategies as st

from .network import FrameFault, RelayLoss
from .participants import Hostility

MEMBERS = 5
SERVERS = ("coordinator", "party-0", "party-1", "party-2")
Decisions = Literal["public", "hidden"]
Rule = Literal["mean", "multi-krum", "norm-clip", "fltrust"]


@dataclass(frozen=True)
class Setup:
    """The task, and who takes part in every round unasked."""

    seed: int = 0  # of delays
    rule: Rule = "mean"
    decisions: Decisions = "public"
    eager: int = 4  # participants 0 to eager - 1 take part in each round as it opens
    min_accepted: int = 2
    quorum: int = 3
    rounds: int = 2


@dataclass(frozen=True)
class Upload:
    """A participant takes part in the current round, or once more."""

    member: int


@dataclass(frozen=True)
class Hostile:
    """A participant sends what no honest client would."""

    member: int
    kind: Hostility


@dataclass(frozen=True)
class Replay:
    """The bytes of a participant's last submission once more, into whatever round is open."""

    member: int


@dataclass(frozen=True)
class Tick:
    """Time goes on; seconds."""

    seconds: float


@dataclass(frozen=True)
class UntilSealed:
    """Time goes on until the current round takes no uploads any more, or its deadline is well over."""


@dataclass(frozen=True)
class UntilEnded:
    """Time goes on until the current round has ended, for a few minutes at most."""


@dataclass(frozen=True)
class Crash:
    """A server process dies when it is to do its `writes`-th durable step or, a party, send its `frames`-th frame.

    At once if both are 0. It is started again after `down` seconds.
    """

    host: str
    down: float
    writes: int = 0
    frames: int = 0


@dataclass(frozen=True)
class WorkerCrash:
    """Only the computing process of a party dies, when it is about to send its `frames`-th frame."""

    party: int
    frames: int


@dataclass(frozen=True)
class Lose:
    """The next `count` requests, or the answers to them, get lost."""

    source: str
    target: str
    what: Literal["request", "response"]
    count: int


@dataclass(frozen=True)
class LoseRelay:
    """The next `count` relays of a party get lost, or all but their first messages, or the answers to them.

    Of such a party's other calls nothing is lost: what is due is known to both.
    """

    party: int
    what: RelayLoss
    count: int


@dataclass(frozen=True)
class RepeatRelay:
    """What a party brings next arrives once more, byte for byte, as far as it has been sent `lag` seconds later.

    The copy comes while the first one is still under way, or when the round is long over, and outlives its sender.
    """

    party: int
    lag: float


@dataclass(frozen=True)
class Part:
    """Two hosts cannot reach each other for a while."""

    one: str
    other: str
    seconds: float


@dataclass(frozen=True)
class SpoilFrame:
    """Something happens to a frame between two parties, after `after` others."""

    source: int
    target: int
    after: int
    fault: FrameFault


@dataclass(frozen=True)
class Skew:
    """A server's clock jumps."""

    host: str
    seconds: float


@dataclass(frozen=True)
class DiskFull:
    """Nothing can be written on a host for a while, from its `after`-th durable step on."""

    host: str
    after: int
    seconds: float


Operation = (
    Upload
    | Hostile
    | Replay
    | Tick
    | UntilSealed
    | UntilEnded
    | Crash
    | WorkerCrash
    | Lose
    | LoseRelay
    | RepeatRelay
    | Part
    | SpoilFrame
    | Skew
    | DiskFull
)

HARMLESS = (
    Upload,
    Hostile,
    Replay,
    Tick,
    UntilSealed,
    UntilEnded,
    LoseRelay,
    RepeatRelay,
)  # a round must come to its release in spite of these

_members = st.integers(0, MEMBERS - 1)
_names = st.sampled_from([f"p{i:02d}" for i in range(MEMBERS)])
_servers = st.sampled_from(SERVERS)
_parties = st.sampled_from(SERVERS[1:])
_party = st.integers(0, 2)
_down = st.sampled_from([0.1, 2.0, 20.0, 120.0])
_frames = st.integers(1, 60) | st.integers(60, 140)  # an attempt at a mean has about 60 of each party, others 140
_writes = st.integers(1, 60)  # a round without faults takes about as many at each party

_operations: list[st.SearchStrategy[Operation]] = [
    st.builds(Upload, _members),
    st.builds(
        Hostile,
        _members,
        st.sampled_from(
            [
                "too_long",
                "wrong_words",
                "truncated",
                "other_update",
                "foreign_slot",
                "foreign_manifest",
                "not_enrolled",
                "bytes",
            ]
        ),
    ),
    st.builds(Hostile, st.integers(3, MEMBERS - 1), st.just("too_long")),  # of those who are seldom there unasked
    st.builds(Replay, _members),
    st.builds(Tick, st.sampled_from([0.01, 0.1, 1.0, 6.0, 30.0])),
    st.just(UntilSealed()),
    st.just(UntilEnded()),
    st.builds(Crash, _servers, _down),
    st.builds(Crash, _servers, _down, writes=_writes),
    st.builds(Crash, _servers, _down, writes=st.integers(1, 12)),
    *[st.builds(Crash, _parties, _down, frames=_frames)] * 3,
    *[st.builds(WorkerCrash, _party, _frames)] * 2,
    st.builds(Lose, st.just("coordinator"), _parties, st.sampled_from(["request", "response"]), st.integers(1, 4)),
    st.builds(Lose, _names, _servers, st.sampled_from(["request", "response"]), st.integers(1, 3)),
    st.builds(LoseRelay, _party, st.sampled_from(["request", "middle", "response"]), st.integers(1, 4)),
    st.builds(RepeatRelay, _party, st.sampled_from([0.001, 0.003, 0.006, 0.01, 0.1, 6.0, 60.0])),
    st.builds(Part, _servers, _servers, st.sampled_from([2.0, 20.0, 120.0])).filter(lambda p: p.one != p.other),
    st.builds(Part, _names, _servers, st.sampled_from([2.0, 40.0])),
    st.builds(SpoilFrame, _party, _party, _frames, st.sampled_from(["duplicate", "swap", "reset"])).filter(
        lambda f: f.source != f.target
    ),
    st.builds(Skew, _servers, st.sampled_from([-100.0, -7.0, 7.0, 100.0])),
    st.builds(DiskFull, _servers, _writes, st.sampled_from([3.0, 30.0])),
]

lists_of_operations = st.lists(st.one_of(_operations), max_size=12)


RULES: tuple[tuple[Rule, Decisions], ...] = (  # the quick ones most of the time
    *(("mean", "public"),) * 6,
    *(("mean", "hidden"),) * 3,
    *(("norm-clip", "hidden"), ("norm-clip", "public"), ("multi-krum", "public"), ("multi-krum", "hidden")),
    ("fltrust", "hidden"),
)


@st.composite
def setups(draw: st.DrawFn) -> Setup:
    """Tasks, mostly of one round."""
    rule, decisions = draw(st.sampled_from(RULES))
    min_accepted = draw(st.integers(2, 3 if rule == "multi-krum" else 4))  # multi-Krum selects three
    return Setup(
        seed=draw(st.integers(0, 1 << 16)),
        rule=rule,
        decisions=decisions,
        eager=draw(st.sampled_from([0, 2, 3, 3, 4, 4, 4, 5])),
        min_accepted=min_accepted,
        quorum=draw(st.integers(min_accepted, MEMBERS)),
        rounds=draw(st.sampled_from([1, 1, 1, 2])),
    )
