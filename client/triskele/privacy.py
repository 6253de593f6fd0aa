"""The differential privacy of a task: how much noise the parties add to its aggregates, and how much may be spent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from triskele.errors import InvalidTask

MIN_NOISE_MULTIPLIER, MAX_NOISE_MULTIPLIER = 2.0**-6, 2.0**10
MAX_DELTA = 0.1
MAX_EPSILON = 1000.0


@dataclass(frozen=True)
class Privacy:
    """The [privacy] table of a task. Frozen and valid by construction; raises InvalidTask, naming the number.

    noise_multiplier: standard deviation of the noise in a sum of updates, in units of the most that one honest
    participant's update can move it, the noise of any two parties counted (the third one's comes on top). delta,
    budget_epsilon: what all rounds of the task together may cost one participant: a round that would cost more is
    refused. docs/privacy.md says what the guarantee covers.
    """

    noise_multiplier: float
    delta: float
    budget_epsilon: float

    def __post_init__(self) -> None:
        for name, least, most in (
            ("noise_multiplier", MIN_NOISE_MULTIPLIER, MAX_NOISE_MULTIPLIER),
            ("delta", 0.0, MAX_DELTA),
            ("budget_epsilon", 0.0, MAX_EPSILON),
        ):
            value: Any = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise InvalidTask(f"privacy: {name} must be a number")
            if not least <= value <= most or value == 0:  # NaN fails too
                raise InvalidTask(f"privacy: {name} {value} is not in {least or 'above 0'} to {most}")
            object.__setattr__(self, name, float(value))  # one canonical form for 1 and 1.0

    @classmethod
    def of(cls, given: Privacy | Mapping[str, Any] | None) -> Privacy | None:
        """What a task was given as its `privacy`; raises InvalidTask if a field of the table is missing or unknown."""
        if given is None or isinstance(given, Privacy):
            return given
        names = {f.name for f in fields(cls)}
        if not isinstance(given, Mapping) or set(given) != names:
            raise InvalidTask(f"privacy is a table of {', '.join(sorted(names))}: all of them and nothing else")
        return cls(**given)

    def canonical(self) -> dict[str, str]:
        """For the canonical task: floats as C99 hexadecimal."""
        return {f.name: float(getattr(self, f.name)).hex() for f in fields(self)}

    @classmethod
    def from_canonical(cls, content: Mapping[str, str]) -> Privacy | None:
        """The inverse of `canonical`; raises InvalidTask, AttributeError, TypeError or ValueError for anything else."""
        return cls.of({name: float.fromhex(text) for name, text in content.items()})
