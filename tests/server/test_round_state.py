"""The transition table is the only way a round moves, and the docs show it as it is."""

from __future__ import annotations

from itertools import pairwise, product
from pathlib import Path

import pytest

from triskele.errors import WrongState
from triskele_server.round_state import (
    ENDINGS,
    TRANSITIONS,
    RoundEvent,
    RoundState,
    advance,
    document,
    has_ended,
    least_advanced,
    progress,
    steps,
)

DIAGRAM = Path(__file__).parents[2] / "docs" / "state-diagram.md"
WAY = (
    RoundState.OPEN,
    RoundState.SEALED,
    RoundState.CHECKED,
    RoundState.FILTERED,
    RoundState.COMBINED,
    RoundState.RELEASED,
)


@pytest.mark.parametrize(("state", "event"), list(product(RoundState, RoundEvent)))
def test_only_the_events_of_the_table_move_a_round(state: RoundState, event: RoundEvent) -> None:
    if (state, event) in TRANSITIONS:
        assert advance(state, event) is TRANSITIONS[state, event]
    else:
        with pytest.raises(WrongState, match=f"{state} cannot {event}"):
            advance(state, event)


def test_a_released_failed_or_expired_round_never_changes() -> None:
    assert {RoundState.RELEASED, RoundState.FAILED, RoundState.EXPIRED} == ENDINGS
    assert [state for state in RoundState if has_ended(state)] == [
        RoundState.RELEASED,
        RoundState.FAILED,
        RoundState.EXPIRED,
    ]


def test_every_state_before_the_end_can_fail_and_only_open_rounds_expire() -> None:
    for state in set(RoundState) - ENDINGS:
        assert advance(state, RoundEvent.FAIL) is RoundState.FAILED
    assert [state for state, event in TRANSITIONS if event is RoundEvent.EXPIRE] == [RoundState.OPEN]


def test_no_step_on_the_way_to_the_release_can_be_left_out() -> None:
    for before, after in pairwise(WAY):
        (event,) = steps(before, after)
        assert advance(before, event) is after
        assert progress(after) == progress(before) + 1
    state = RoundState.OPEN
    for event in steps(RoundState.OPEN, RoundState.RELEASED):
        state = advance(state, event)
    assert state is RoundState.RELEASED
    assert steps(RoundState.COMBINED, RoundState.SEALED) == ()


def test_the_round_is_where_its_least_advanced_party_is() -> None:
    assert least_advanced([RoundState.COMBINED, RoundState.SEALED, RoundState.FILTERED]) is RoundState.SEALED
    with pytest.raises(WrongState):
        least_advanced([RoundState.FAILED, RoundState.SEALED])


def test_docs_show_the_current_table() -> None:
    assert DIAGRAM.read_text() == document(), "run: python -m triskele_server.round_state > docs/state-diagram.md"
