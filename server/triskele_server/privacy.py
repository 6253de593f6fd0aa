"""What rounds with noise have spent of their task's privacy budget.

Party and coordinator ask the same functions, each of its own count of rounds: neither believes the other's.
"""

from __future__ import annotations

from functools import cache

from triskele.privacy import MAX_EPSILON, Privacy

BUDGET_SPENT = "privacy_budget_spent"  # the reason of a round that was refused
NOTHING_OPENED = frozenset(("too_few_submissions", "too_few_accepted", "root_missing", "rule_failed", BUDGET_SPENT))
"""Reasons that end a round before any noised value could be opened: such a round has cost nothing."""

_MOST_ROUNDS = 1 << 20


@cache
def epsilon(privacy: Privacy, rounds: int) -> float:
    """What `rounds` rounds have spent, by dp-accounting: Renyi-DP of the Gaussian, add-or-remove neighbours.

    The discrete Gaussian's Renyi divergences are at most the Gaussian's (Canonne, Kamath, Steinke 2020, theorem 4).
    No amplification by subsampling is counted. Infinite where no order of Renyi-DP gives a bound.
    """
    if rounds == 0:
        return 0.0
    import dp_accounting  # noqa: PLC0415  scipy with it: only tasks with noise pay for it
    from dp_accounting.rdp import RdpAccountant  # noqa: PLC0415  the same

    accountant = RdpAccountant(neighboring_relation=dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE)
    accountant.compose(dp_accounting.GaussianDpEvent(privacy.noise_multiplier), rounds)
    return float(accountant.get_epsilon(privacy.delta))


@cache
def affordable_rounds(privacy: Privacy) -> int:
    """How many rounds the budget is enough for."""
    if epsilon(privacy, 1) > privacy.budget_epsilon:
        return 0
    low, high = 1, 2
    while high < _MOST_ROUNDS and epsilon(privacy, high) <= privacy.budget_epsilon:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if epsilon(privacy, middle) <= privacy.budget_epsilon else (low, middle)
    return low


def spent_text(privacy: Privacy, rounds: int) -> str:
    """Why one round more is refused."""
    return (
        f"{rounds} rounds of this task have been opened, or may have been, and one more would spend epsilon = "
        f"{min(epsilon(privacy, rounds + 1), MAX_EPSILON):.4g} at delta = {privacy.delta:g}; its budget_epsilon is "
        f"{privacy.budget_epsilon:g}"
    )
