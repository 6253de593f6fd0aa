"""Step 8: run the rule on the secret Gram matrix, check the cohort, and open the decisions if they are public."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from triskele.errors import PartyFault, RoundFailed, TriskeleError
from triskele.task import TaskSpec
from triskele_server.mpc.arithmetic import LIMIT_BITS
from triskele_server.mpc.opening_ledger import UndeclaredOpening
from triskele_server.mpc.replicated import ReplicatedTensor
from triskele_server.mpc.session import Session
from triskele_server.rules.registry import SCALE_BITS, Rule, Scaled, find

Weights = torch.Tensor | ReplicatedTensor  # public or secret

_COHORT_BITS = 26  # bits of a weight in the effective cohort: 1024 (sum w)^2 stays below 2^62


@dataclass(frozen=True)
class Coefficients:
    """What step 9 combines: the rows that may take part, an integer coefficient for each, and the weights' sum.

    `rows` are the accepted ones under public decisions, all valid ones under hidden decisions.
    """

    rows: tuple[int, ...]
    weights: Weights
    weight_total: int
    fraction_bits: int  # of the coefficients: y / weight_total / 2^fraction_bits is the mean


@dataclass(frozen=True)
class _Verdict:
    """What the rule gave for `rows` valid submissions, right in type and shape."""

    rule: Rule
    rows: int
    weights: Weights
    scale: ReplicatedTensor | None


def declared_openings(spec: TaskSpec) -> list[str]:
    """Names of everything that a round of this task opens, in order."""
    found = find(spec.rule)
    secret_weights = spec.weighted or found.selected is not None or found.coefficient_bits > 0
    opened = [
        ("valid", True),
        ("enough_accepted", secret_weights),
        ("accepted", found.selected is not None and spec.decisions == "public"),
        ("weight_total", spec.weighted),
        ("aggregate", True),
    ]
    return [name for name, wanted in opened if wanted]


def run_filter(
    session: Session,
    spec: TaskSpec,
    rows: int,
    gram: Callable[[], ReplicatedTensor],
    examples: ReplicatedTensor | None,
) -> Coefficients:
    """The coefficients of the `rows` valid submissions; `examples` are their secret example weights.

    Raises RoundFailed if the rule misbehaves or fewer than the minimum cohort would carry the aggregate: nothing but
    the validity bits, and the bit that says so, is open then.
    """
    rule = find(spec.rule)
    verdict = _run_rule(session, rule, spec, rows, gram)
    try:
        return _decided(session, spec, verdict, examples)
    except UndeclaredOpening as error:  # secret weights from a rule that declared none
        raise RoundFailed("rule_failed", f"rule:{rule.name}", str(error)) from error


def _run_rule(
    session: Session, rule: Rule, spec: TaskSpec, rows: int, gram: Callable[[], ReplicatedTensor]
) -> _Verdict:
    blame = f"rule:{rule.name}"
    try:
        with session.ledger.withheld():
            result = rule.function(gram() if rule.needs_gram else rows, **spec.rule_options)
    except (RoundFailed, PartyFault):
        raise
    except TriskeleError as error:  # an undeclared opening, above all
        raise RoundFailed("rule_failed", blame, str(error)) from error
    except Exception as error:  # a rule may be anybody's code; whatever it raises ends the round, opening nothing
        raise RoundFailed("rule_failed", blame, type(error).__name__) from error
    weights, scale = (result.weights, result.scale) if isinstance(result, Scaled) else (result, None)
    for part, kind in ((weights, np.ndarray | ReplicatedTensor), (scale, ReplicatedTensor | None)):
        if not isinstance(part, kind) or (part is not None and tuple(part.shape) != (rows,)):
            raise RoundFailed("rule_failed", blame, f"weights must be {rows} words, scales secret ones")
    if isinstance(weights, np.ndarray):
        bits = weights.dtype == np.int64 and bool(np.isin(weights, (0, 1)).all())
    else:
        bits = weights.fraction_bits == 0
    if not bits or (scale is not None and scale.fraction_bits != SCALE_BITS):
        raise RoundFailed("rule_failed", blame, f"weights are 0 or 1, scales have {SCALE_BITS} places")
    return _Verdict(rule, rows, torch.from_numpy(weights) if isinstance(weights, np.ndarray) else weights, scale)


def _decided(session: Session, spec: TaskSpec, verdict: _Verdict, examples: ReplicatedTensor | None) -> Coefficients:
    total = verdict.weights if examples is None else examples * verdict.weights
    combined = total if verdict.scale is None else (verdict.scale * total).times_power_of_two(SCALE_BITS)
    _check_cohort(spec, verdict, combined)
    taking_part = tuple(range(verdict.rows))
    if verdict.rule.selected is not None and spec.decisions == "public":
        bits = session.open(_secret(verdict).shares, "accepted")
        taking_part = tuple(int(i) for i in torch.nonzero(bits).flatten())
        combined = (bits if examples is None else examples)[list(taking_part)]
    return Coefficients(
        taking_part, combined, _weight_total(spec, verdict, total), 0 if verdict.scale is None else SCALE_BITS
    )


def _check_cohort(spec: TaskSpec, verdict: _Verdict, combined: Weights) -> None:
    """At least min_accepted rows carry weight, and the effective cohort (sum w)^2 / sum w^2 is at least that large.

    One row with nearly all the weight would be an opened update. What the rule gave must also lie in range: weights in
    [0, 1], scales in [0, 1] and a sixteenth for rounding (the example weights in `combined` were checked in step 6).
    All of it is one opened bit.
    """
    if isinstance(combined, torch.Tensor):
        enough = int(torch.count_nonzero(combined)) >= spec.min_accepted
    else:
        ranges = _outside(verdict.weights, 1) + _outside(verdict.scale, 17 << (SCALE_BITS - 4))
        signs = combined.stack([-combined, *ranges]).lt(0)
        carrying, violations = signs[0].sum(), signs[1:].sum()
        bits = not spec.weighted and verdict.scale is None
        parts = combined if bits else _parts_of_the_total(combined)
        spread = parts.sum().square() - parts.square().sum() * spec.min_accepted
        passed = 1 - combined.stack([carrying - spec.min_accepted, spread, -violations]).lt(0)
        enough = bool((passed[0] * passed[1] * passed[2]).open("enough_accepted"))
    if not enough:
        raise RoundFailed(
            "too_few_accepted",
            "cohort",
            f"fewer than min_accepted = {spec.min_accepted} of {verdict.rows} valid submissions would carry it",
        )


def _parts_of_the_total(weights: ReplicatedTensor) -> ReplicatedTensor:
    """Non-negative integer weights in units of 2^-24 of their sum or finer, each below 2^26: squares cannot wrap."""
    scaled: ReplicatedTensor = weights * weights.sum().leading_power()  # the sum is in [2^60, 2^62) now
    return scaled.times_power_of_two(_COHORT_BITS - LIMIT_BITS).rescale(0)


def _outside(given: Weights | None, bound: int) -> list[ReplicatedTensor]:
    """Words that are negative where a secret value is outside [0, bound] in units of its last place."""
    if given is None or isinstance(given, torch.Tensor):
        return []
    words = given.times_power_of_two(given.fraction_bits)
    return [words, -words + bound]


def _weight_total(spec: TaskSpec, verdict: _Verdict, total: Weights) -> int:
    """The sum of the weights: public by construction, or opened where example weights are secret."""
    if isinstance(total, torch.Tensor):
        return int(total.sum())
    if verdict.rule.selected is not None and not spec.weighted:
        return verdict.rule.selected(verdict.rows, spec.rule_options)
    return int(total.sum().open("weight_total"))


def _secret(verdict: _Verdict) -> ReplicatedTensor:
    if isinstance(verdict.weights, torch.Tensor):
        blame = f"rule:{verdict.rule.name}"
        raise RoundFailed("rule_failed", blame, "a rule that declares `selected` must give secret weights")
    return verdict.weights
