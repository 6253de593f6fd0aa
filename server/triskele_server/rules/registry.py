"""The registry of rules, and what a rule declares about itself.

A rule is a function of the secret Gram matrix. It gives n weights: a numpy array of integers if they depend on nothing
secret, else a CrypTen tensor of integers, or `Scaled` weights. Neither this module nor a rule imports torch or CrypTen:
the coordinator and the parties' front processes read the registry too.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from triskele.errors import InvalidTask
from triskele.task import RuleOption, TaskSpec

if TYPE_CHECKING:
    from triskele.encoding import Words
    from triskele_server.mpc.replicated import ReplicatedTensor

    Weights = Words | ReplicatedTensor

SCALE_BITS = 20  # fraction bits of a row's scale


@dataclass(frozen=True)
class Scaled:
    """Weights t_i and secret scales c_i in [0, 1]: the aggregate is sum t_i c_i x_i / sum t_i."""

    weights: Weights
    scale: ReplicatedTensor  # SCALE_BITS fraction bits


@dataclass(frozen=True)
class Rule:
    """One rule. `selected` gives, for a rule whose weights are 0 or 1 and secret, how many of n rows it selects."""

    name: str
    function: Callable[..., Weights | Scaled]
    selected: Callable[[int, Mapping[str, RuleOption]], int] | None
    needs_gram: bool
    coefficient_bits: int
    minimum: Mapping[str, int]

    def check_options(self, options: Mapping[str, RuleOption]) -> None:
        """Raise InvalidTask unless every option is known, an integer, and in range."""
        for name, value in options.items():
            if name not in self.minimum:
                known = ", ".join(self.minimum) or "none"
                raise InvalidTask(f"rule {self.name!r} has no option {name!r}; its options: {known}")
            if not isinstance(value, int) or isinstance(value, bool) or not self.minimum[name] <= value < 1 << 31:
                raise InvalidTask(f"rule {self.name!r}: {name} = {value!r} is not an integer from {self.minimum[name]}")


_RULES: dict[str, Rule] = {}


def rule(
    name: str,
    *,
    selected: Callable[[int, Mapping[str, RuleOption]], int] | None = None,
    needs_gram: bool = True,
    coefficient_bits: int = 0,
    minimum: Mapping[str, int] | None = None,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a rule; `minimum` gives the smallest value of each keyword-only integer option of the function."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        bounds = dict(minimum or {})
        options = {p.name for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY}
        if options != set(bounds):
            raise InvalidTask(f"rule {name!r}: `minimum` must name its keyword-only options {sorted(options)}")
        if name in _RULES:
            raise InvalidTask(f"rule {name!r} is registered twice")
        _RULES[name] = Rule(name, function, selected, needs_gram, coefficient_bits, bounds)
        return function

    return register


def find(name: str) -> Rule:
    """The rule of that name; raises InvalidTask naming the ones there are."""
    found = _RULES.get(name)
    if found is None:
        raise InvalidTask(f"there is no rule {name!r}; known rules: {', '.join(sorted(_RULES))}")
    return found


def check_task(spec: TaskSpec) -> None:
    """Raise InvalidTask unless the task's rule exists, takes its options, and cannot make the aggregate wrap."""
    found = find(spec.rule)
    found.check_options(spec.rule_options)
    spec.check_headroom(found.coefficient_bits)
    if found.selected is not None:
        most = found.selected(spec.max_participants, spec.rule_options)
        if most < spec.min_accepted:
            raise InvalidTask(
                f"rule {spec.rule!r} selects {most} updates, below min_accepted = {spec.min_accepted}: every round "
                "would fail; select more or lower min_accepted"
            )
