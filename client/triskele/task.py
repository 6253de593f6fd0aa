"""The task: everything that participants, parties and coordinator must agree on, with its canonical form and digest."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from types import MappingProxyType
from typing import Any, Literal

from triskele.errors import Forbidden, InvalidTask
from triskele.ids import ParticipantId, TaskDigest, TaskName, checked_name
from triskele.limits import DEFAULT_LIMITS
from triskele.privacy import Privacy
from triskele.ring import NARROW, WIDE, Ring

FORMAT = "triskele/v2/task"
FRACTION_BITS = 20  # of the 64-bit ring, and the most in the 32-bit one
VALUE_BITS = FRACTION_BITS + 1  # an accepted entry is at most 1.1 * 2^20 in absolute value
HEADROOM_BITS = WIDE.bits - 2  # one bit for the sign, one to spare
SKETCHED_BITS = 64  # of log2(dimension) + 2 f in the 32-bit ring, so that no bucket of a sketch wraps
LIFTED_BITS = 30  # a word of the 32-bit ring that is lifted is below 2^30
MIN_CLIP_NORM, MAX_CLIP_NORM = 1e-100, 1e100  # beyond, squares of entries leave what float64 can hold

Decisions = Literal["public", "hidden"]
Gram = Literal["auto", "exact", "sketch"]
Release = Literal["participants", "public"]
RingChoice = Literal["auto", 32, 64]
RuleOption = int | float | str | bool
RuleOptions = Mapping[str, RuleOption | Mapping[str, RuleOption]]

_IF_SET = ("privacy", "covers")  # fields that the canonical form has only where they are set

DEFAULT_RULE = "flame"
DEFAULT_RULE_WITH_ROOT = "fltrust"

_NUMBERS = (
    *("dimension", "max_weight", "max_participants", "max_rows", "min_accepted"),
    *("ring_bits", "fraction_bits", "model_dimension"),
)


@dataclass(frozen=True)
class TaskSpec:
    """One aggregation task. Frozen and valid by construction; raises InvalidTask, naming the numbers.

    `clip_norm` is the L2 norm C to which every update is clipped before it is encoded. `model_dimension`, if it is not
    0, is the length of the model of which a public random part of `dimension` entries travels in each round; the norm
    is then that of the part. `rule` names the aggregation
    rule, or pre-aggregation stages and then the rule; none means fltrust if there is a `root`, else flame. An option
    in `rule_options` goes to every stage that has it; options of one stage alone stand in a table of its name. `root`
    is the participant whose update is FLTrust's root. `participants` are the only ones who may take part, the root
    among them (none named: everybody whom the federation certified). `max_weight` is the largest example weight (0:
    the task is unweighted); more participants than `max_rows` are averaged in random buckets before the rule sees them;
    `min_accepted` is the minimum cohort: fewer accepted updates are never aggregated. `release` says who may read the
    aggregate: under "participants" coordinator and parties hold it under a mask, "public" shows it to them too.
    `privacy` (or its table) is the noise that the parties add to the aggregate; None adds none. `covers` allows
    submissions of weight 0 that nobody can tell from real ones.

    `ring_bits` says which ring updates are shared in, Z_{2^64} or Z_{2^32}; there they have `fraction_bits` places, 20
    in the 64-bit one. The coordinator chooses what provably wraps nowhere, and every party checks it.
    """

    name: TaskName
    dimension: int
    clip_norm: float
    rule: str | tuple[str, ...] = ()
    rule_options: RuleOptions = field(default_factory=dict)
    root: ParticipantId | None = None
    participants: tuple[ParticipantId, ...] = ()
    decisions: Decisions = "public"
    release: Release = "participants"
    gram: Gram = "auto"
    max_weight: int = 0
    max_participants: int = 128
    max_rows: int = 128
    min_accepted: int = 2
    model_dimension: int = 0
    privacy: Privacy | None = None
    covers: bool = False
    ring_bits: int = WIDE.bits
    fraction_bits: int = FRACTION_BITS

    def __post_init__(self) -> None:
        checked_name(self.name, "task name")
        if self.root is not None:
            checked_name(self.root, "root participant")
        object.__setattr__(self, "participants", self._checked_participants())
        object.__setattr__(self, "rule", self._checked_stages())
        object.__setattr__(self, "rule_options", _checked_options(self.rule_options))
        object.__setattr__(self, "privacy", Privacy.of(self.privacy))
        self._check_covers()
        if isinstance(self.clip_norm, int):
            object.__setattr__(self, "clip_norm", float(self.clip_norm))  # one canonical form for 1 and 1.0
        if not 1 <= self.dimension <= DEFAULT_LIMITS.max_dimension:
            raise InvalidTask(f"dimension {self.dimension} is not in 1 to {DEFAULT_LIMITS.max_dimension}")
        for name in _NUMBERS:
            if isinstance(getattr(self, name), bool):
                raise InvalidTask(f"{name} must be a number, not true or false")  # which Python would count as 1 or 0
        self._check_model_dimension()
        if not MIN_CLIP_NORM <= self.clip_norm <= MAX_CLIP_NORM:  # NaN fails too
            raise InvalidTask(f"clip_norm {self.clip_norm} is not in {MIN_CLIP_NORM:g} to {MAX_CLIP_NORM:g}")
        if not 0 <= self.max_weight < 1 << 32:
            raise InvalidTask(f"max_weight {self.max_weight} is not in 0 to 2^32 - 1")
        if not 2 <= self.max_participants <= DEFAULT_LIMITS.max_participants:
            raise InvalidTask(
                f"max_participants {self.max_participants} is not in 2 to {DEFAULT_LIMITS.max_participants}"
            )
        if not 2 <= self.max_rows <= DEFAULT_LIMITS.max_rows:
            raise InvalidTask(f"max_rows {self.max_rows} is not in 2 to {DEFAULT_LIMITS.max_rows}")
        if not 1 <= self.min_accepted <= self.max_participants:
            raise InvalidTask(f"min_accepted {self.min_accepted} is not in 1 to max_participants")
        _check_choice("decisions", self.decisions, "public", "hidden")
        _check_choice("release", self.release, "participants", "public")
        if self.gram not in ("auto", "exact", "sketch"):
            raise InvalidTask(f"gram {self.gram!r} is none of 'auto', 'exact', 'sketch'")
        self._check_ring()
        self.check_headroom()

    def _check_covers(self) -> None:
        if not isinstance(self.covers, bool):
            raise InvalidTask("covers must be true or false")
        if self.covers and not self.max_weight:
            raise InvalidTask("covers are submissions of weight 0: set max_weight to 1 or more")

    def _check_model_dimension(self) -> None:
        if self.model_dimension and not self.dimension < self.model_dimension <= DEFAULT_LIMITS.max_model_dimension:
            raise InvalidTask(
                f"model_dimension {self.model_dimension} is not in {self.dimension + 1} (dimension + 1) to "
                f"{DEFAULT_LIMITS.max_model_dimension}; leave it out where the whole model travels"
            )

    def _check_ring(self) -> None:
        if self.ring_bits not in (NARROW.bits, WIDE.bits) or not isinstance(self.ring_bits, int):
            raise InvalidTask(f"ring_bits {self.ring_bits} is neither 32 nor 64")
        least = 1 if self.ring_bits == NARROW.bits else FRACTION_BITS
        if not isinstance(self.fraction_bits, int) or not least <= self.fraction_bits <= FRACTION_BITS:
            raise InvalidTask(f"fraction_bits {self.fraction_bits} is not in {least} to {FRACTION_BITS}")
        if self.ring_bits == WIDE.bits:
            return
        if self.dimension << 2 * self.fraction_bits > 1 << SKETCHED_BITS:
            raise InvalidTask(
                f"in the 32-bit ring {self.dimension} words with {self.fraction_bits} fraction bits could wrap a sketch"
            )
        if self.max_weight >= 1 << LIFTED_BITS:
            raise InvalidTask(f"max_weight {self.max_weight} is not below 2^{LIFTED_BITS}, as the 32-bit ring needs it")

    def _checked_participants(self) -> tuple[ParticipantId, ...]:
        given: Any = self.participants
        if (
            isinstance(given, str)
            or not isinstance(given, Sequence)
            or not all(isinstance(name, str) for name in given)
        ):
            raise InvalidTask("participants must be a list of names")
        names = tuple(sorted(ParticipantId(checked_name(name, "participant")) for name in given))
        if len(set(names)) != len(names):
            raise InvalidTask("participants names somebody twice")
        if names and not self.min_accepted <= len(names):
            raise InvalidTask(f"{len(names)} participants are fewer than min_accepted ({self.min_accepted})")
        if names and self.root is not None and self.root not in names:
            raise InvalidTask(f"the root {self.root!r} is not among the participants")
        return names

    def _checked_stages(self) -> tuple[str, ...]:
        given: Any = (self.rule,) if isinstance(self.rule, str) else self.rule
        if not isinstance(given, Sequence) or not all(isinstance(name, str) for name in given):
            raise InvalidTask("rule must be a rule's name, or a list of names: stages, and the rule last")
        names = tuple(given)
        if not names:
            names = (DEFAULT_RULE_WITH_ROOT if self.root else DEFAULT_RULE,)
        for name in names:
            checked_name(name, "rule name")
        if len(set(names)) != len(names):
            raise InvalidTask(f"rule {list(names)} names a stage twice")
        return names

    @property
    def stages(self) -> tuple[str, ...]:
        """Names of the pre-aggregation stages, and of the rule, which is the last."""
        return (self.rule,) if isinstance(self.rule, str) else self.rule

    def check_takes_part(self, participant: str) -> None:
        """Raise Forbidden if the task names its participants, and not this one."""
        if self.participants and participant not in self.participants:
            raise Forbidden(
                f"task {self.name!r} is for a group of participants, and {participant!r} is not one of them"
            )

    @property
    def partial(self) -> bool:
        """Whether only a part of the model travels in a round."""
        return self.model_dimension > 0

    @property
    def entries(self) -> int:
        """Entries of an update as a participant gives it, and of the aggregate as it gets it back."""
        return self.model_dimension or self.dimension

    @property
    def ring(self) -> Ring:
        """The ring that updates are shared in."""
        return Ring(self.ring_bits)

    @property
    def narrow(self) -> bool:
        """Whether that is Z_{2^32}."""
        return self.ring == NARROW

    @property
    def weighted(self) -> bool:
        """Whether each submission carries a secret example weight."""
        return self.max_weight > 0

    @property
    def masked(self) -> bool:
        """Whether the aggregate leaves the parties under a mask that only participants can take off."""
        return self.release == "participants"

    @property
    def length(self) -> int:
        """Words of one share: the dimension, plus the weight's word in a weighted task."""
        return self.dimension + int(self.weighted)

    def check_headroom(self, coefficient_bits: int = 0, rows: int | None = None) -> None:
        """Raise InvalidTask unless no honest aggregate can wrap in the 64-bit ring.

        `coefficient_bits` are what the rule's own coefficients add (0 for a selection), `rows` how many rows it sees.
        """
        if self.narrow:  # the bounds of the 32-bit ring are the rules': triskele_server.rules.precision
            return
        weight_bits = max(self.max_weight.bit_length(), 1) + coefficient_bits
        count = rows if rows is not None else self.max_participants
        cohort_bits = math.ceil(math.log2(count))
        total = VALUE_BITS + weight_bits + cohort_bits
        if total > HEADROOM_BITS:
            raise InvalidTask(
                f"the aggregate could wrap: {VALUE_BITS} bits of value + {weight_bits} bits of weight + "
                f"{cohort_bits} bits for {count} rows = {total} > {HEADROOM_BITS}; "
                f"lower max_weight (now {self.max_weight}), max_participants or max_rows"
            )

    def content(self) -> dict[str, Any]:
        """The task as plain values for JSON: floats as C99 hexadecimal; some fields only if they are set."""
        content = {f.name: _plain(getattr(self, f.name)) for f in fields(self) if f.name not in _IF_SET}
        if self.privacy is not None:
            content["privacy"] = self.privacy.canonical()
        if self.covers:
            content["covers"] = True
        return {"format": FORMAT, **content}

    def canonical(self) -> bytes:
        """The task as canonical JSON: sorted keys, no white space."""
        return json.dumps(self.content(), sort_keys=True, separators=(",", ":")).encode()

    @cached_property
    def digest(self) -> TaskDigest:
        """SHA-256 of the canonical task; it goes into every message and every key derivation."""
        return TaskDigest(hashlib.sha256(self.canonical()).digest())

    @classmethod
    def from_canonical(cls, data: bytes) -> TaskSpec:
        """Decode and validate; anything but the exact canonical bytes of a valid task raises InvalidTask."""
        if len(data) > DEFAULT_LIMITS.max_task_bytes:
            raise InvalidTask(f"a task of {len(data)} bytes is over the limit of {DEFAULT_LIMITS.max_task_bytes}")
        try:
            content = json.loads(data)
            if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
                raise InvalidTask(f"not a task of format {FORMAT}")
            content["clip_norm"] = float.fromhex(content["clip_norm"])
            content["rule_options"] = _restored(content["rule_options"])
            content["rule"] = tuple(content["rule"])
            content["participants"] = tuple(content["participants"])
            if "privacy" in content:
                content["privacy"] = Privacy.from_canonical(content["privacy"])
            spec = cls(**content)
        except InvalidTask:
            raise
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
            raise InvalidTask(f"task does not decode: {type(error).__name__}") from error
        if spec.canonical() != data:
            raise InvalidTask("task is not in canonical form")
        return spec


def _check_choice(key: str, value: Any, one: str, other: str) -> None:
    if value not in (one, other):
        raise InvalidTask(f"{key} {value!r} is neither {one!r} nor {other!r}")


def _checked_options(options: RuleOptions) -> RuleOptions:
    if not isinstance(options, Mapping) or not all(isinstance(name, str) for name in options):
        raise InvalidTask("rule_options must be a table of options by name")
    for key, value in options.items():
        if isinstance(value, Mapping):
            _checked_options(value)
        elif not isinstance(value, int | float | str | bool) or (isinstance(value, float) and not math.isfinite(value)):
            raise InvalidTask(f"rule option {key!r} must be a number, a text or true/false")
    if any(isinstance(v, Mapping) and any(isinstance(w, Mapping) for w in v.values()) for v in options.values()):
        raise InvalidTask("rule options are a table of options, or one table per stage; not deeper")
    return MappingProxyType(
        {
            k: MappingProxyType(dict(sorted(v.items()))) if isinstance(v, Mapping) else v
            for k, v in sorted(options.items())
        }
    )


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value.hex()
    if isinstance(value, Mapping):
        return _plain_options(value)
    return list(value) if isinstance(value, tuple) else value


def _plain_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Texts, integers and tables as they are; a float as ["float", its hexadecimal form], which nothing else is."""

    def plain(value: Any) -> Any:
        if isinstance(value, float):
            return ["float", value.hex()]
        return _plain_options(value) if isinstance(value, Mapping) else value

    return {key: plain(value) for key, value in options.items()}


def _restored(options: Any) -> Any:
    if isinstance(options, dict):
        return {key: _restored(value) for key, value in options.items()}
    if isinstance(options, list):
        _, written = options
        return float.fromhex(written)
    return options
