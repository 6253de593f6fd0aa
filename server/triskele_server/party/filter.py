"""Step 8: run the rule on the secret Gram matrix, check the cohort, and open the decisions if they are public."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from triskele.errors import PartyFault, RoundFailed, TriskeleError
from triskele.task import TaskSpec
from triskele_server.mpc.replicated import ReplicatedTensor
from triskele_server.mpc.session import Session
from triskele_server.rules.registry import SCALE_BITS, Rule, Scaled, find

Weights = torch.Tensor | ReplicatedTensor  # public or secret

_COHORT_BITS = 20  # bits of a weight in the effective cohort: 1024 rows' (sum w)^2 stays below 2^62


@dataclass(frozen=True)
class Coefficients:
    """What step 9 combines: the rows that may take part, an integer coefficient for each, and the weights' sum.

    `rows` are the accepted ones under public decisions, all valid ones under hidden decisions.
    """

    rows: tuple[int, ...]
    weights: Weights
    weight_total: int
    fraction_bits: int  # of the coefficients: y / weight_total / 2^fraction_bits is the mean


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

    Raises RoundFailed if fewer than the minimum cohort would carry the aggregate: nothing but the validity bits and
    the bit that says so is open then.
    """
    rule = find(spec.rule)
    weights, scale = _run_rule(session, rule, spec, rows, gram)
    total = weights if examples is None else examples * weights
    combined = total if scale is None else (scale * total).times_power_of_two(SCALE_BITS)
    _check_cohort(session, spec, rows, combined, [(weights, 1), (scale, 17 << (SCALE_BITS - 4))])
    taking_part = tuple(range(rows))
    if rule.selected is not None and spec.decisions == "public":
        bits = _secret(weights).open("accepted")
        taking_part = tuple(int(i) for i in torch.nonzero(bits).flatten())
        combined = (bits if examples is None else examples)[list(taking_part)]
    weight_total = _weight_total(rule, spec, rows, total)
    return Coefficients(taking_part, combined, weight_total, SCALE_BITS if scale is not None else 0)


def _run_rule(
    session: Session, rule: Rule, spec: TaskSpec, rows: int, gram: Callable[[], ReplicatedTensor]
) -> tuple[Weights, ReplicatedTensor | None]:
    """The rule's weights and scales, checked for type and shape."""
    try:
        with session.ledger.withheld():
            result = rule.function(gram() if rule.needs_gram else rows, **spec.rule_options)
    except (RoundFailed, PartyFault):
        raise
    except TriskeleError as error:  # an undeclared opening, above all
        raise RoundFailed("rule_failed", f"rule:{rule.name}", str(error)) from error
    except Exception as error:  # a rule may be anybody's code; whatever it raises ends the round, opening nothing
        raise RoundFailed("rule_failed", f"rule:{rule.name}", type(error).__name__) from error
    weights, scale = (result.weights, result.scale) if isinstance(result, Scaled) else (result, None)
    for part in (weights, scale):
        if part is not None and (not isinstance(part, np.ndarray | ReplicatedTensor) or tuple(part.shape) != (rows,)):
            raise RoundFailed("rule_failed", f"rule:{rule.name}", f"weights must be {rows} words, public or secret")
    if isinstance(weights, np.ndarray):
        integer = weights.dtype == np.int64 and bool(np.isin(weights, (0, 1)).all())
    else:
        integer = weights.fraction_bits == 0
    if not integer or (scale is not None and scale.fraction_bits != SCALE_BITS):
        raise RoundFailed("rule_failed", f"rule:{rule.name}", f"weights are 0 or 1, scales have {SCALE_BITS} places")
    return torch.from_numpy(weights) if isinstance(weights, np.ndarray) else weights, scale


def _check_cohort(
    session: Session,
    spec: TaskSpec,
    rows: int,
    combined: Weights,
    given: Sequence[tuple[Weights | None, int]],
) -> None:
    """At least min_accepted rows carry weight, and the effective cohort (sum w)^2 / sum w^2 is at least that large.

    One row with nearly all the weight would be an opened update. `combined` are the coefficients of the rows; `given`
    what the rule gave, with upper bounds: anything of it outside [0, bound] fails too (the example weights in
    `combined` have been checked before). All of it is one opened bit.
    """
    if isinstance(combined, torch.Tensor):
        enough = int(torch.count_nonzero(combined)) >= spec.min_accepted
    else:
        ranges = [part for secret, bound in given for part in _outside(secret, bound)]
        signs = combined.stack([-combined, *ranges]).lt(0)
        carrying, violations = signs[0].sum(), signs[1:].sum()
        largest = max(spec.max_weight, 1) << (SCALE_BITS if given[1][0] is not None else 0)
        excess = max(0, largest.bit_length() - _COHORT_BITS)
        small = combined.times_power_of_two(-excess).rescale(0)
        spread = small.sum().square() - small.square().sum() * spec.min_accepted
        passed = 1 - combined.stack([carrying - spec.min_accepted, spread, -violations]).lt(0)
        enough = bool((passed[0] * passed[1] * passed[2]).open("enough_accepted"))
    if not enough:
        raise RoundFailed(
            "too_few_accepted",
            "cohort",
            f"fewer than min_accepted = {spec.min_accepted} of {rows} valid submissions would carry the aggregate",
        )


def _outside(given: Weights | None, bound: int) -> list[ReplicatedTensor]:
    """Words that are negative where a secret value is outside [0, bound] in units of its last place."""
    if given is None or isinstance(given, torch.Tensor):
        return []
    words = given.times_power_of_two(given.fraction_bits)
    return [words, -words + bound]


def _weight_total(rule: Rule, spec: TaskSpec, rows: int, total: Weights) -> int:
    """The sum of the weights: public by construction, or opened where example weights are secret."""
    if isinstance(total, torch.Tensor):
        return int(total.sum())
    if rule.selected is not None and not spec.weighted:
        return rule.selected(rows, spec.rule_options)
    return int(total.sum().open("weight_total"))


def _secret(weights: Weights) -> ReplicatedTensor:
    if isinstance(weights, torch.Tensor):
        raise RoundFailed("rule_failed", "rule", "a rule that declares `selected` must give secret weights")
    return weights
