"""The task: everything that participants, parties and coordinator must agree on, with its canonical form and digest."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from types import MappingProxyType
from typing import Any, Literal

from triskele.errors import InvalidTask
from triskele.ids import TaskDigest, TaskName, checked_name
from triskele.limits import DEFAULT_LIMITS

FORMAT = "triskele/v1/task"
FRACTION_BITS = 20
VALUE_BITS = FRACTION_BITS + 1  # an accepted entry is at most 1.1 * 2^20 in absolute value
RING_BITS = 64
HEADROOM_BITS = RING_BITS - 2  # one bit for the sign, one to spare
MIN_CLIP_NORM, MAX_CLIP_NORM = 1e-100, 1e100  # beyond, squares of entries leave what float64 can hold

Decisions = Literal["public", "hidden"]
Gram = Literal["auto", "exact", "sketch"]
RuleOption = int | float | str | bool


@dataclass(frozen=True)
class TaskSpec:
    """One aggregation task. Frozen and valid by construction; raises InvalidTask, naming the numbers.

    `clip_norm` is the L2 norm C to which every update is clipped before it is encoded; `max_weight` is the largest
    example weight (0: the task is unweighted); `min_accepted` the minimum cohort: fewer accepted updates are
    never aggregated.
    """

    name: TaskName
    dimension: int
    clip_norm: float
    rule: str = "mean"
    rule_options: Mapping[str, RuleOption] = field(default_factory=dict)
    decisions: Decisions = "public"
    gram: Gram = "auto"
    max_weight: int = 0
    max_participants: int = 128
    min_accepted: int = 2

    def __post_init__(self) -> None:
        checked_name(self.name, "task name")
        checked_name(self.rule, "rule name")
        object.__setattr__(self, "rule_options", MappingProxyType(dict(sorted(self.rule_options.items()))))
        if isinstance(self.clip_norm, int):
            object.__setattr__(self, "clip_norm", float(self.clip_norm))  # one canonical form for 1 and 1.0
        if not 1 <= self.dimension <= DEFAULT_LIMITS.max_dimension:
            raise InvalidTask(f"dimension {self.dimension} is not in 1 to {DEFAULT_LIMITS.max_dimension}")
        for name in ("dimension", "max_weight", "max_participants", "min_accepted"):
            if isinstance(getattr(self, name), bool):
                raise InvalidTask(f"{name} must be a number, not true or false")  # which Python would count as 1 or 0
        if not MIN_CLIP_NORM <= self.clip_norm <= MAX_CLIP_NORM:  # NaN fails too
            raise InvalidTask(f"clip_norm {self.clip_norm} is not in {MIN_CLIP_NORM:g} to {MAX_CLIP_NORM:g}")
        if not 0 <= self.max_weight < 1 << 32:
            raise InvalidTask(f"max_weight {self.max_weight} is not in 0 to 2^32 - 1")
        if not 2 <= self.max_participants <= DEFAULT_LIMITS.max_participants:
            raise InvalidTask(
                f"max_participants {self.max_participants} is not in 2 to {DEFAULT_LIMITS.max_participants}"
            )
        if not 2 <= self.min_accepted <= self.max_participants:
            raise InvalidTask(f"min_accepted {self.min_accepted} is not in 2 to max_participants")
        if self.decisions not in ("public", "hidden"):
            raise InvalidTask(f"decisions {self.decisions!r} is neither 'public' nor 'hidden'")
        if self.gram not in ("auto", "exact", "sketch"):
            raise InvalidTask(f"gram {self.gram!r} is none of 'auto', 'exact', 'sketch'")
        for key, value in self.rule_options.items():
            if not isinstance(value, int | float | str | bool) or (
                isinstance(value, float) and not math.isfinite(value)
            ):
                raise InvalidTask(f"rule option {key!r} must be a number, a text or true/false")
        self.check_headroom()

    @property
    def weighted(self) -> bool:
        """Whether each submission carries a secret example weight."""
        return self.max_weight > 0

    @property
    def length(self) -> int:
        """Words of one share: the dimension, plus the weight's word in a weighted task."""
        return self.dimension + int(self.weighted)

    def check_headroom(self, coefficient_bits: int = 0) -> None:
        """Raise InvalidTask unless no honest aggregate can wrap in the ring.

        `coefficient_bits` are the fraction bits that the rule's own coefficients add (0 for a selection).
        """
        weight_bits = max(self.max_weight.bit_length(), 1) + coefficient_bits
        cohort_bits = math.ceil(math.log2(self.max_participants))
        total = VALUE_BITS + weight_bits + cohort_bits
        if total > HEADROOM_BITS:
            raise InvalidTask(
                f"the aggregate could wrap: {VALUE_BITS} bits of value + {weight_bits} bits of weight + "
                f"{cohort_bits} bits for {self.max_participants} participants = {total} > {HEADROOM_BITS}; "
                f"lower max_weight (now {self.max_weight}) or max_participants"
            )

    def canonical(self) -> bytes:
        """The task as canonical JSON: sorted keys, no white space, floats as C99 hexadecimal."""
        content = {f.name: _plain(getattr(self, f.name)) for f in fields(self)}
        return json.dumps({"format": FORMAT, **content}, sort_keys=True, separators=(",", ":")).encode()

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
            content["rule_options"] = {k: _restored(v) for k, v in content["rule_options"].items()}
            spec = cls(**content)
        except InvalidTask:
            raise
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
            raise InvalidTask(f"task does not decode: {type(error).__name__}") from error
        if spec.canonical() != data:
            raise InvalidTask("task is not in canonical form")
        return spec


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value.hex()
    if isinstance(value, Mapping):
        return {k: {"float": v.hex()} if isinstance(v, float) else v for k, v in value.items()}
    return value


def _restored(value: Any) -> Any:
    return float.fromhex(value["float"]) if isinstance(value, dict) else value
