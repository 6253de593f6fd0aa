"""The life of a round: one transition table, state x event -> state, and nothing else (docs/protocol.md).

Coordinator and parties keep their own copy of a round's state and change it only through `advance`. The diagram in
docs/state-diagram.md is printed from the table: `python -m triskele_server.round_state`.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum

from triskele.errors import WrongState


class RoundState(StrEnum):
    """Where a round stands. The values are what the wire and the stores carry."""

    OPEN = "OPEN"  # participants enrol and upload
    SEALED = "SEALED"  # the input set is fixed
    CHECKED = "CHECKED"  # every submission's norm and weight was proved or refused
    FILTERED = "FILTERED"  # the rule has run; its weights are known to the parties, shared or opened
    COMBINED = "COMBINED"  # the parties have opened the aggregate
    RELEASED = "RELEASED"  # participants can fetch it, the same bytes for ever
    FAILED = "FAILED"  # ended without a result: reason and who
    EXPIRED = "EXPIRED"  # too few submissions by the deadline


class RoundEvent(StrEnum):
    """What happens to a round."""

    SEAL = "seal"
    CHECK = "check"
    FILTER = "filter"
    COMBINE = "combine"
    RELEASE = "release"
    FAIL = "fail"
    EXPIRE = "expire"


TRANSITIONS: dict[tuple[RoundState, RoundEvent], RoundState] = {
    (RoundState.OPEN, RoundEvent.SEAL): RoundState.SEALED,
    (RoundState.OPEN, RoundEvent.EXPIRE): RoundState.EXPIRED,
    (RoundState.OPEN, RoundEvent.FAIL): RoundState.FAILED,
    (RoundState.SEALED, RoundEvent.CHECK): RoundState.CHECKED,
    (RoundState.SEALED, RoundEvent.FAIL): RoundState.FAILED,
    (RoundState.CHECKED, RoundEvent.FILTER): RoundState.FILTERED,
    (RoundState.CHECKED, RoundEvent.FAIL): RoundState.FAILED,
    (RoundState.FILTERED, RoundEvent.COMBINE): RoundState.COMBINED,
    (RoundState.FILTERED, RoundEvent.FAIL): RoundState.FAILED,
    (RoundState.COMBINED, RoundEvent.RELEASE): RoundState.RELEASED,
    (RoundState.COMBINED, RoundEvent.FAIL): RoundState.FAILED,
}

_STEPS = {  # the event that carries a round on towards its release
    RoundState.OPEN: RoundEvent.SEAL,
    RoundState.SEALED: RoundEvent.CHECK,
    RoundState.CHECKED: RoundEvent.FILTER,
    RoundState.FILTERED: RoundEvent.COMBINE,
    RoundState.COMBINED: RoundEvent.RELEASE,
}
_ORDER = (*_STEPS, RoundState.RELEASED)

ENDINGS = frozenset(RoundState) - {state for state, _ in TRANSITIONS}


def advance(state: RoundState, event: RoundEvent) -> RoundState:
    """The state after `event`; raises WrongState if the event cannot happen in `state`."""
    after = TRANSITIONS.get((state, event))
    if after is None:
        possible = ", ".join(e for s, e in TRANSITIONS if s is state) or "nothing, it has ended"
        raise WrongState(f"a round that is {state} cannot {event}; possible now: {possible}")
    return after


def has_ended(state: RoundState) -> bool:
    """Whether nothing can change the round any more."""
    return state in ENDINGS


def progress(state: RoundState) -> int:
    """How far a round has come on the way to its release, OPEN = 0; raises WrongState for FAILED and EXPIRED."""
    if state not in _ORDER:
        raise WrongState(f"a round that is {state} is not on the way to a release")
    return _ORDER.index(state)


def least_advanced(states: Iterable[RoundState]) -> RoundState:
    """The state of those given that has come least far; raises WrongState as `progress` does."""
    return min(states, key=progress)


def steps(start: RoundState, target: RoundState) -> tuple[RoundEvent, ...]:
    """The events that carry a round from `start` on to `target`; none if it is already as far."""
    return tuple(_STEPS[state] for state in _ORDER[progress(start) : progress(target)])


def mermaid() -> str:
    """The transition table as a Mermaid state diagram."""
    lines = ["stateDiagram-v2", f"    [*] --> {RoundState.OPEN}"]
    lines += [f"    {before} --> {after}: {event}" for (before, event), after in TRANSITIONS.items()]
    lines += [f"    {state} --> [*]" for state in RoundState if has_ended(state)]
    return "\n".join(lines)


def document() -> str:
    """The whole text of docs/state-diagram.md."""
    return (
        "# The states of a round\n\n"
        "Generated from the transition table by `python -m triskele_server.round_state > docs/state-diagram.md`; "
        "do not edit.\n\n"
        f"```mermaid\n{mermaid()}\n```\n"
    )


if __name__ == "__main__":
    print(document(), end="")
