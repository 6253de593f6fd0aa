"""What the parties' logs say of a round: when each step ended, and what it sent."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

STEPS = ("seal", "coin", "sketch", "check", "gram", "filter", "combine")


@dataclass(frozen=True)
class Step:
    """One step over all three parties: when the last one ended it (Unix seconds), and the most that one sent."""

    ended: float
    rounds: int
    bytes_sent: int


def read_steps(logs: Mapping[Path, int]) -> dict[str, Step]:
    """The steps of the one round whose log lines stand after the given offset of each party's log."""
    by_party = [_steps(path, offset) for path, offset in logs.items()]
    found: dict[str, Step] = {}
    for name in STEPS:
        told = [steps[name] for steps in by_party if name in steps]
        if told:
            found[name] = Step(max(s.ended for s in told), max(s.rounds for s in told), max(s.bytes_sent for s in told))
    return found


def _steps(path: Path, offset: int) -> dict[str, Step]:
    with path.open("rb") as file:
        file.seek(offset)
        lines = file.read().decode("utf-8", "replace").splitlines()
    events = [json.loads(line) for line in lines if '"event": "step"' in line]
    return _differences(events)


def _differences(events: Sequence[Mapping[str, object]]) -> dict[str, Step]:
    """A line counts from the round's start; a step is the difference to the line before."""
    steps: dict[str, Step] = {}
    rounds = sent = 0
    for event in events:
        total_rounds, total_sent = int(str(event["rounds"])), int(str(event["bytes_sent"]))
        ended = datetime.datetime.fromisoformat(str(event["timestamp"])).timestamp()
        steps[str(event["step"])] = Step(ended, total_rounds - rounds, total_sent - sent)
        rounds, sent = total_rounds, total_sent
    return steps
