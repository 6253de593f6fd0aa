"""The registry of rules, and what a rule declares about itself.

A rule is a function of the secret Gram matrix of the updates (in units of the clip norm: a row's squared norm is at
most 1.21) and gives one weight per row. Neither this module nor a built-in rule imports torch or CrypTen: the
coordinator and the parties' front processes read the registry too. Public operands can be numpy arrays.

Three kinds, each registered by its decorator:

- `@rule`: the last stage. Gives n weights: public 0/1 integers (a numpy array), a secret selection (a CrypTen tensor of
  0/1 integers) or secret fractions in [0, 1]; `Scaled` adds a secret factor per row.
- `@pre_aggregation`: in front of a rule. Gives a `Mixing`: each row becomes a weighted mean of rows.
- `@coordinate_wise`: takes the updates themselves, a block of coordinates at a time.

A function's keyword-only parameters are its options; `clip_norm` and `coin` are given by the round.
"""

from __future__ import annotations

import hashlib
import inspect
import marshal
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from triskele.errors import InvalidTask
from triskele.task import RuleOption

if TYPE_CHECKING:
    from triskele.ring import Words
    from triskele_server.mpc.replicated import ReplicatedTensor

    Weights = Words | ReplicatedTensor

Kind = Literal["rule", "pre_aggregation", "coordinate_wise"]
Giving = Literal["public", "selection", "fractions"]
Reference = Literal["root", "previous"]
Options = Mapping[str, RuleOption]

SCALE_BITS = 20  # fraction bits of a row's scale
WEIGHT_BITS = 26  # fraction bits of a fractional weight
MAX_SCALE_BITS = 15  # the largest scale is 2^15
MAX_DIVISOR_BITS = 6  # of a public stage's mixing
ENTRY_POINTS = "triskele.rules"

_GIVEN = frozenset(("adapted_bound", "clip_norm", "coin"))  # keyword-only parameters that the round fills in


@dataclass(frozen=True)
class Scaled:
    """Weights t_i and secret scales c_i >= 0: the aggregate is (sum t_i c_i x_i + reference * r) / sum t_i.

    `scale` has SCALE_BITS fraction bits; `reference` too, the coefficient of the rule's reference row r (a scalar).
    `counted`: 0 or 1 for each row, of a built-in rule that declares `counts`; their noised sum is opened.
    """

    weights: Weights
    scale: ReplicatedTensor
    reference: ReplicatedTensor | None = None
    counted: ReplicatedTensor | None = None


@dataclass(frozen=True)
class Mixing:
    """New rows Y = matrix X / divisor: an integer [m, n] matrix >= 0, public or secret; each row sums to `divisor`."""

    matrix: Weights
    divisor: int


@dataclass(frozen=True)
class CoordinateSum:
    """What a coordinate-wise rule gives for a block of coordinates: `total` (integers) / `divisor`."""

    total: ReplicatedTensor
    divisor: int


@dataclass(frozen=True)
class Rule:
    """One rule or stage, and its declarations.

    selected: for a selection whose size is public, how many of n rows it selects. rejects: whether weights may be 0
    (with public decisions one accept bit per participant is opened then). scale_bits: None if it gives no `Scaled`,
    else the scales are at most 2^scale_bits. reference: the extra last row of its Gram matrix, if it needs one: the
    root participant's update or the previous aggregate. norms_only: of its Gram matrix it reads the diagonal, and the
    rest is 0; a large model's is measured on the check's sketch. comparisons: of a coordinate-wise rule, for each
    coordinate.
    moves_alone: whether, under its options, a participant's update changes its own term of the sum alone, and that term
    is at most its own update: what a differential-privacy claim needs (docs/privacy.md). counts: whether, under its
    options, it gives bits of which the noised sum is opened; asked of built-in rules only.
    """

    name: str
    function: Callable[..., Any]
    kind: Kind
    giving: Giving = "public"
    selected: Callable[[int, Options], int] | None = None
    rejects: bool = False
    scale_bits: int | None = None
    needs_gram: bool = True
    norms_only: bool = False
    reference: Reference | None = None
    minimum: Mapping[str, int | float] | None = None
    rows_after: Callable[[int, Options], int] | None = None
    comparisons: Callable[[int, Options], int] | None = None
    moves_alone: Callable[[Options], bool] | None = None
    counts: Callable[[Options], bool] | None = None

    def __post_init__(self) -> None:
        bounds = set(self.minimum or {})
        if self._keywords - _GIVEN != bounds:
            named = sorted(self._keywords - _GIVEN)
            raise InvalidTask(f"rule {self.name!r}: `minimum` must name its keyword-only options {named}")
        if self.kind == "pre_aggregation" and (self.giving, self.needs_gram) not in (
            ("public", False),
            ("selection", True),
        ):
            raise InvalidTask(
                f"stage {self.name!r}: a public mixing is drawn before there is a Gram matrix (giving='public', "
                "needs_gram=False), a secret one is made of it"
            )
        if self.scale_bits is not None and not 0 <= self.scale_bits <= MAX_SCALE_BITS:
            raise InvalidTask(f"rule {self.name!r}: scale_bits must be in 0 to {MAX_SCALE_BITS}")

    @cached_property
    def _keywords(self) -> set[str]:
        parameters = inspect.signature(self.function).parameters.values()
        return {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}

    @property
    def options(self) -> dict[str, RuleOption]:
        """Every option and its default."""
        parameters = inspect.signature(self.function).parameters
        return {name: parameters[name].default for name in self.minimum or {}}

    @property
    def built_in(self) -> bool:
        """Whether it comes with Triskele: then the code version stands for its source."""
        return self.function.__module__.startswith("triskele_server.rules.")

    @cached_property
    def source_digest(self) -> str:
        """SHA-256 of the file of the module that defines it, hexadecimal; of its code where it has no file."""
        file = getattr(sys.modules.get(self.function.__module__), "__file__", None)
        source = Path(file).read_bytes() if file and Path(file).is_file() else marshal.dumps(self.function.__code__)
        return hashlib.sha256(source).hexdigest()

    def counting(self, options: Options) -> bool:
        """Whether it gives bits to be counted. A rule of another package cannot: what it counted could be anything."""
        return self.built_in and self.counts is not None and self.counts(options)

    def check_options(self, options: Options) -> None:
        """Raise InvalidTask unless every option is known, of its type, and in range."""
        for name, value in options.items():
            default, least = self.options.get(name), (self.minimum or {}).get(name)
            if least is None:
                known = ", ".join(self.options) or "none"
                raise InvalidTask(f"rule {self.name!r} has no option {name!r}; its options: {known}")
            number = int | float if isinstance(default, float) else int
            if not isinstance(value, number) or isinstance(value, bool) or not least <= value < 1 << 31:
                what = "a number" if isinstance(default, float) else "an integer"
                raise InvalidTask(f"rule {self.name!r}: {name} = {value!r} is not {what} from {least}")

    def call(self, *arguments: Any, options: Options, **given: Any) -> Any:
        """Call the function with the task's options and those of the round's values that it asks for."""
        return self.function(*arguments, **options, **{k: v for k, v in given.items() if k in self._keywords})


_RULES: dict[str, Rule] = {}

_Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def rule(
    name: str,
    *,
    giving: Giving = "selection",
    selected: Callable[[int, Options], int] | None = None,
    rejects: bool | None = None,
    scale_bits: int | None = None,
    needs_gram: bool = True,
    norms_only: bool = False,
    reference: Reference | None = None,
    minimum: Mapping[str, int | float] | None = None,
    moves_alone: Callable[[Options], bool] | None = None,
    counts: Callable[[Options], bool] | None = None,
) -> _Decorator:
    """Register a rule; `minimum` gives the smallest value of each option, `rejects` is true of a selection."""
    drops = giving == "selection" if rejects is None else rejects
    return _registered(
        name,
        kind="rule",
        giving=giving,
        selected=selected,
        rejects=drops,
        scale_bits=scale_bits,
        needs_gram=needs_gram,
        norms_only=norms_only,
        reference=reference,
        minimum=minimum,
        moves_alone=moves_alone,
        counts=counts,
    )


def pre_aggregation(
    name: str,
    *,
    giving: Giving = "selection",
    needs_gram: bool = True,
    rows_after: Callable[[int, Options], int] | None = None,
    minimum: Mapping[str, int | float] | None = None,
) -> _Decorator:
    """Register a stage. A public one (`giving="public"`, no Gram matrix) takes n and the coin."""
    return _registered(
        name, kind="pre_aggregation", giving=giving, needs_gram=needs_gram, rows_after=rows_after, minimum=minimum
    )


def coordinate_wise(
    name: str, *, comparisons: Callable[[int, Options], int], minimum: Mapping[str, int | float] | None = None
) -> _Decorator:
    """Register a coordinate-wise rule; `comparisons` says how many it makes of n rows, per coordinate."""
    return _registered(name, kind="coordinate_wise", needs_gram=False, comparisons=comparisons, minimum=minimum)


def _registered(name: str, **declared: Any) -> _Decorator:
    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        if name in _RULES:
            raise InvalidTask(f"rule {name!r} is registered twice")
        _RULES[name] = Rule(name, function, **declared)
        return function

    return register


def find(name: str) -> Rule:
    """The rule of that name, from an installed package if need be; raises InvalidTask naming the ones there are."""
    if name not in _RULES:
        _load(name)
    found = _RULES.get(name)
    if found is None:
        raise InvalidTask(f"there is no rule {name!r}; known rules: {', '.join(known())}")
    return found


def known() -> list[str]:
    """Names of the rules that are there, the installed ones included."""
    return sorted(_RULES.keys() | {point.name for point in entry_points(group=ENTRY_POINTS)})


def _load(name: str) -> None:
    points = {(p.value, p.dist.name if p.dist else ""): p for p in entry_points(group=ENTRY_POINTS, name=name)}
    if len(points) > 1:
        owners = ", ".join(f"{value} ({package})" for value, package in sorted(points))
        raise InvalidTask(f"rule {name!r} is installed more than once: {owners}; uninstall all but one")
    for point in points.values():
        before = dict(_RULES)
        try:
            point.load()
        except (Exception, SystemExit) as error:
            # A user's own module: whatever it raises, the task is refused and nothing else suffers.
            _RULES.clear()
            _RULES.update(before)
            raise InvalidTask(
                f"rule {name!r} ({point.value}) does not load: {type(error).__name__}: {error}"
            ) from error


def ceil_log2(number: int) -> int:
    """The smallest e with 2^e >= number."""
    return math.ceil(math.log2(number))
