"""The rules under test with their options, run by three parties through `simulate`, or in the clear."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from bench import plaintext
from triskele.errors import RoundFailed
from triskele.task import Gram
from triskele_server.simulate import simulate

FloatArray = NDArray[np.float32]
Vector = NDArray[np.float64]
Options = dict[str, Any]

CENTERED_CLIP_TAU: Final = 1.0
"""Radius of centered clipping in units of the updates: about the norm of an honest one."""
MIN_ACCEPTED: Final = 2
"""Rows that must have weight, or the round fails."""


@dataclass(frozen=True)
class Defence:
    """A rule of the report. ``options(n, f)``: for n participants of whom at most f are expected to be malicious."""

    name: str
    stages: tuple[str, ...]
    options: Callable[[int, int], Options] = lambda n, f: {}
    reference: str | None = None  # the extra row that it needs: "root", or the "previous" aggregate

    @property
    def rule(self) -> str | list[str]:
        """As a task names it."""
        return list(self.stages) if len(self.stages) > 1 else self.stages[0]


@dataclass(frozen=True)
class Execution:
    """How rules are run: by three parties with this kind of Gram matrix, or in the clear in float64."""

    in_the_clear: bool = False
    gram: Gram = "auto"


def _malicious(n: int, f: int) -> Options:
    return {"num_malicious_nodes": f}


DEFENCES: Final[Mapping[str, Defence]] = MappingProxyType(
    {
        defence.name: defence
        for defence in (
            Defence("mean", ("mean",)),
            Defence("norm-clip", ("norm-clip",)),
            Defence(
                "centered-clip",
                ("centered-clip",),
                lambda n, f: {"tau": CENTERED_CLIP_TAU, "iterations": 3},
                reference="previous",
            ),
            Defence("geometric-median", ("geometric-median",)),
            Defence("nnm+geometric-median", ("nnm", "geometric-median"), _malicious),
            Defence("multi-krum", ("multi-krum",), lambda n, f: _malicious(n, f) | {"num_nodes_to_select": n - f}),
            Defence("dnc", ("dnc",), _malicious),
            Defence("foolsgold", ("foolsgold",)),
            Defence("median", ("median",)),
            Defence("trimmed-mean", ("trimmed-mean",), _malicious),
            Defence("flame", ("flame",)),
            Defence("fltrust", ("fltrust",), reference="root"),
        )
    }
)
"""Every rule of the report by its name, in the order of the report."""


class Aggregation:
    """One defence in one training run; keeps the previous aggregate for the rule that starts from it."""

    def __init__(self, defence: Defence, participants: int, malicious: int, execution: Execution) -> None:
        self._defence = defence
        self._options = defence.options(participants, malicious)
        self._execution = execution
        self._previous: Vector | None = None
        self.failed_rounds = 0

    def __call__(self, updates: FloatArray, root: FloatArray) -> Vector:
        """The round's aggregate float64[d] of updates float32[n, d]; zeros if the round fails, which is counted.

        ``root`` float32[d] is sent too if the rule has a root. The clip norm is the norm of the longest row: attackers
        may send rows of any length, so that the rule itself is measured and not the bound on norms.
        """
        try:
            in_the_clear = self._execution.in_the_clear
            aggregate = self._in_the_clear(updates, root) if in_the_clear else self._by_parties(updates, root)
        except RoundFailed:
            self.failed_rounds += 1
            aggregate = np.zeros(updates.shape[1])
        self._previous = aggregate
        return aggregate

    def foreseen(self, updates: FloatArray, root: FloatArray) -> Vector:
        """What an attacker who knows the rule expects of these rows: the rule in the clear. Changes nothing here."""
        try:
            return self._in_the_clear(updates, root)
        except RoundFailed:
            return np.zeros(updates.shape[1])

    def _in_the_clear(self, updates: FloatArray, root: FloatArray) -> Vector:
        outcome = plaintext.aggregate(
            self._rows(updates, root),
            self._defence.rule,
            self._options,
            clip_norm=None,
            root=len(updates) if self._defence.reference == "root" else None,
            previous=self._previous,
        )
        if np.count_nonzero(outcome.accepted) < MIN_ACCEPTED:
            raise RoundFailed("too_few_accepted", "rule")
        return np.asarray(outcome.aggregate, np.float64)

    def _by_parties(self, updates: FloatArray, root: FloatArray) -> Vector:
        return simulate(
            self._rows(updates, root),
            rule=self._defence.rule,
            rule_options=self._options,
            gram=self._execution.gram,
            min_accepted=MIN_ACCEPTED,
            root=len(updates) if self._defence.reference == "root" else None,
            previous=self._previous if self._defence.reference == "previous" else None,
        ).aggregate

    def _rows(self, updates: FloatArray, root: FloatArray) -> FloatArray:
        return np.concatenate([updates, root[None]]) if self._defence.reference == "root" else updates
