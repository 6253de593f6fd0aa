"""A party's own policy: what it lets a coordinator ask of it. The coordinator is trusted for liveness only."""

from __future__ import annotations

from triskele.errors import Forbidden
from triskele.task import TaskSpec
from triskele_server.config import PolicyTable


def check_task(spec: TaskSpec, policy: PolicyTable) -> None:
    """Raise Forbidden if the task is outside this party's policy, InvalidTask if no party could run it."""
    from triskele_server.rules import check_task as check_rule  # noqa: PLC0415  loads the rules' code, not for `--help`

    if spec.min_accepted < policy.min_accepted:
        raise _refused(spec, "min_accepted", f"{spec.min_accepted} is below this party's {policy.min_accepted}")
    for name in spec.stages:
        _check_rule(spec, name, policy)
    if spec.decisions not in policy.decisions:
        raise _refused(spec, "decisions", f"{spec.decisions!r} is not among this party's {', '.join(policy.decisions)}")
    if spec.release not in policy.releases:
        raise _refused(spec, "releases", f"{spec.release!r} is not among this party's {', '.join(policy.releases)}")
    if spec.dimension > policy.max_dimension:
        raise _refused(spec, "max_dimension", f"{spec.dimension} is above this party's {policy.max_dimension}")
    if spec.max_participants > policy.max_participants:
        raise _refused(
            spec, "max_participants", f"{spec.max_participants} is above this party's {policy.max_participants}"
        )
    check_rule(spec)
    _check_privacy(spec, policy)


def _check_privacy(spec: TaskSpec, policy: PolicyTable) -> None:
    """The floor below which this party adds no updates up: an operator's promise to its own people."""
    from triskele_server.rules.noise import no_claim  # noqa: PLC0415  loads the rules' code, not for `--help`

    noise = 0.0 if spec.privacy is None else spec.privacy.noise_multiplier
    if noise < policy.min_noise_multiplier:
        raise _refused(
            spec,
            "min_noise_multiplier",
            f"the task's noise multiplier {noise:g} is below this party's {policy.min_noise_multiplier:g}",
        )
    if policy.max_epsilon is None:
        return
    if spec.privacy is None or (reason := no_claim(spec)):
        why = "the task adds no noise" if spec.privacy is None else reason
        raise _refused(spec, "max_epsilon", f"the task has no differential-privacy guarantee: {why}")
    if spec.privacy.budget_epsilon > policy.max_epsilon:
        detail = f"budget_epsilon {spec.privacy.budget_epsilon:g} is above this party's {policy.max_epsilon:g}"
        raise _refused(spec, "max_epsilon", detail)
    if spec.privacy.delta > policy.max_delta:
        raise _refused(spec, "max_delta", f"delta {spec.privacy.delta:g} is above this party's {policy.max_delta:g}")


def _check_rule(spec: TaskSpec, name: str, policy: PolicyTable) -> None:
    """A rule of another package is allowed by name and source: its code decides what is averaged."""
    from triskele_server.rules import find  # noqa: PLC0415  the same

    if name not in policy.rules and name not in policy.rule_sources:
        raise _refused(spec, "rules", f"{name!r} is not among this party's {', '.join(policy.rules)}")
    rule = find(name)
    if not rule.built_in and policy.rule_sources.get(name) != rule.source_digest:
        raise _refused(
            spec,
            "rule_sources",
            f"{name!r} comes from another package, and its source here has the digest {rule.source_digest}, which the "
            "policy does not list (`triskele rules` prints it)",
        )


def _refused(spec: TaskSpec, key: str, detail: str) -> Forbidden:
    return Forbidden(
        f"task {spec.name!r} is outside this party's policy, {key}: {detail}; "
        "change the task, or ask the party's operator to change [policy]"
    )
