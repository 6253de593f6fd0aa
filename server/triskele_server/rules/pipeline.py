"""A task's stages in order, each with its options, and the check that a task's pipeline can run and wraps nowhere."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from triskele.errors import InvalidTask
from triskele.task import RuleOption, TaskSpec
from triskele_server.rules.precision import check_narrow
from triskele_server.rules.registry import MAX_DIVISOR_BITS, SCALE_BITS, WEIGHT_BITS, Rule, ceil_log2, find

BUCKETING = "bucketing"
MAX_BUCKET_SIZE = 8  # rows averaged in one bucket: two sizes' least common multiple stays below 2^6
MAX_COMPARISONS = 10**7  # secret comparisons of a coordinate-wise rule in one round: about 220 MB sent per party


@dataclass(frozen=True)
class Stage:
    """A rule or pre-aggregation with the options that a task gives it."""

    rule: Rule
    options: dict[str, RuleOption]


@dataclass(frozen=True)
class Pipeline:
    """Pre-aggregation stages, then the rule."""

    stages: tuple[Stage, ...]
    last: Stage

    @classmethod
    def of(cls, spec: TaskSpec) -> Pipeline:
        """The task's pipeline; raises InvalidTask if a rule, an option or the order does not fit."""
        rules = [find(name) for name in spec.stages]
        for rule in rules[:-1]:
            if rule.kind != "pre_aggregation":
                raise InvalidTask(f"rule {rule.name!r} can only stand last; stages in front of it prepare its rows")
        if any(not rule.needs_gram for rule in rules[1:-1]):
            raise InvalidTask(f"stages {[rule.name for rule in rules[:-1]]}: 'bucketing' comes first")
        if rules[-1].kind == "pre_aggregation":
            raise InvalidTask(f"{rules[-1].name!r} is a stage in front of a rule, and no rule follows it")
        stages = [Stage(rule, options) for rule, options in zip(rules, _options(spec, rules), strict=True)]
        return cls(tuple(stages[:-1]), stages[-1])

    @property
    def mixes_in_secret(self) -> bool:
        """Whether a stage's mixing depends on the updates, so that a row of the rule is nobody's in particular."""
        return any(stage.rule.giving != "public" for stage in self.stages)

    def opens_selection(self, spec: TaskSpec) -> bool:
        """Whether the rule's 0/1 weights themselves are opened; the rest of the selection is public then."""
        return spec.decisions == "public" and self.last.rule.giving == "selection" and not self.mixes_in_secret

    def normalises(self, spec: TaskSpec) -> bool:
        """Whether weights are divided by their sum in MPC, because nothing public says what the sum is.

        In the 32-bit ring those of a weighted task always are: as integers they would not fit.
        """
        return (spec.narrow and spec.weighted) or self.normalises_rows(spec)

    def normalises_rows(self, spec: TaskSpec) -> bool:
        """Whether the rule's own weights are, before example weights are multiplied in."""
        rule = self.last.rule
        if rule.giving == "selection":
            return rule.selected is None and not spec.weighted and not self.opens_selection(spec)
        return rule.giving == "fractions"

    @property
    def needs_gram(self) -> bool:
        """Whether the rule or a stage in front of it sees the rows' Gram matrix."""
        return self.last.rule.needs_gram or bool(self.stages)

    @property
    def norms_only(self) -> bool:
        """Whether nothing is asked of the rows but how long each is."""
        return self.last.rule.norms_only and not any(stage.rule.needs_gram for stage in self.stages)

    def with_buckets(self, rows: int, max_rows: int) -> Pipeline:
        """The same with bucketing in front if there are more rows than the rule may see. The mean sees none."""
        sees_rows = self.last.rule.needs_gram or self.last.rule.kind == "coordinate_wise" or self.stages
        if self.rows_after(rows) <= max_rows or not sees_rows:
            return self
        first = Stage(find(BUCKETING), {"size": -(-rows // max_rows)})
        return Pipeline((first, *(s for s in self.stages if s.rule.name != BUCKETING)), self.last)

    def rows_after(self, rows: int) -> int:
        """How many rows the rule sees of `rows` participants'."""
        for stage in self.stages:
            if stage.rule.rows_after is not None:
                rows = stage.rule.rows_after(rows, stage.options)
        return rows

    def selected(self, rows: int) -> int | None:
        """How many of the rule's rows are selected, where that is public."""
        rule = self.last.rule
        return None if rule.selected is None else rule.selected(self.rows_after(rows), self.last.options)

    def source_digest(self) -> bytes:
        """SHA-256 over the names and sources of all stages; the parties compare it."""
        digest = hashlib.sha256(b"triskele/v1/rules")
        for stage in (*self.stages, self.last):
            digest.update(f"{stage.rule.name}={stage.rule.source_digest};".encode())
        return digest.digest()


def _options(spec: TaskSpec, rules: list[Rule]) -> list[dict[str, RuleOption]]:
    given = spec.rule_options
    tables = {name: table for name, table in given.items() if isinstance(table, Mapping)}
    shared = {name: value for name, value in given.items() if not isinstance(value, Mapping)}
    names = [rule.name for rule in rules]
    for name in tables:
        if name not in names:
            raise InvalidTask(f"rule_options has a table {name!r}, and the task's rule is {names}")
    for name in shared:
        if not any(name in rule.options for rule in rules):
            known = ", ".join(f"{rule.name}: {', '.join(rule.options) or 'none'}" for rule in rules)
            raise InvalidTask(f"no stage of {names} has an option {name!r}; options: {known}")
    result = []
    for rule in rules:
        own = {k: v for k, v in shared.items() if k in rule.options} | dict(tables.get(rule.name, {}))
        rule.check_options(own)
        result.append(own)
    return result


def check_task(spec: TaskSpec) -> None:
    """Raise InvalidTask unless the task's pipeline exists, takes its options, fits its cost, and cannot wrap."""
    pipeline = Pipeline.of(spec)
    last = pipeline.last
    if (last.rule.reference == "root") != bool(spec.root):
        needs = "needs a root participant: name it as `root`" if not spec.root else "has no use for a root participant"
        raise InvalidTask(f"rule {last.rule.name!r} {needs}")
    if spec.max_participants > spec.max_rows * MAX_BUCKET_SIZE:
        raise InvalidTask(
            f"max_rows = {spec.max_rows} is too few for {spec.max_participants} participants: a bucket has at most "
            f"{MAX_BUCKET_SIZE}; raise max_rows to {-(-spec.max_participants // MAX_BUCKET_SIZE)} or more"
        )
    if spec.narrow:
        check_narrow(spec, pipeline)
    else:
        _check_headroom(spec, pipeline.with_buckets(spec.max_participants, spec.max_rows))
    _check_selection(spec, pipeline)
    _check_weighted(spec, pipeline)
    _check_covers(spec, pipeline)
    if spec.partial and last.rule.reference == "previous":
        raise InvalidTask(
            f"rule {spec.stages[-1]!r} starts from the previous aggregate, which in a task with model_dimension is of "
            "other entries of the model; leave model_dimension out, or take another rule"
        )
    if last.rule.kind == "coordinate_wise":
        _check_coordinate_wise(spec, pipeline.with_buckets(spec.max_participants, spec.max_rows))


def _check_headroom(spec: TaskSpec, pipeline: Pipeline) -> None:
    """Weights that are divided by their sum fit whatever the task's numbers; others add their bits."""
    if pipeline.normalises(spec):
        return  # VALUE_BITS + WEIGHT_BITS + MAX_SCALE_BITS = 62, and the sum of the scaled weights is checked
    spec.check_headroom(coefficient_bits(spec, pipeline), pipeline.rows_after(spec.max_participants))


def coefficient_bits(spec: TaskSpec, pipeline: Pipeline) -> int:
    """Bits that the stages and the rule add to a row's coefficient, beside its example weight."""
    secret_stages = sum(stage.rule.giving != "public" for stage in pipeline.stages)
    rows = pipeline.rows_after(spec.max_participants)
    bits = secret_stages * ceil_log2(rows) + MAX_DIVISOR_BITS * (len(pipeline.stages) - secret_stages)
    if pipeline.normalises(spec):
        return bits + WEIGHT_BITS
    return bits + (0 if pipeline.last.rule.scale_bits is None else SCALE_BITS)


def _check_selection(spec: TaskSpec, pipeline: Pipeline) -> None:
    """A selection whose size is public must be able to reach the minimum cohort."""
    selected = pipeline.selected(spec.max_participants)
    if selected is None or pipeline.mixes_in_secret:
        return
    rows = pipeline.rows_after(spec.max_participants)
    most = min(selected * -(-spec.max_participants // rows), spec.max_participants)
    if most < spec.min_accepted:
        raise InvalidTask(
            f"rule {spec.stages[-1]!r} selects {most} updates, below min_accepted = {spec.min_accepted}: every round "
            "would fail, so that no single update is opened; select more, lower min_accepted or put a stage such as "
            "'nnm' in front"
        )


def _check_weighted(spec: TaskSpec, pipeline: Pipeline) -> None:
    rule = pipeline.last.rule
    refuses = rule.kind == "coordinate_wise" or rule.reference == "previous"
    if spec.weighted and (refuses or (pipeline.mixes_in_secret and rule.scale_bits is not None)):
        raise InvalidTask(f"rule {list(spec.stages)} takes no example weights: set max_weight = 0")


def _check_covers(spec: TaskSpec, pipeline: Pipeline) -> None:
    """A row of weight 0 must leave the others as they are, or whoever sends it moves the aggregate unseen."""
    if spec.covers and (reason := shared_fate(spec, pipeline)):
        raise InvalidTask(f"covers = true does not go with rule {list(spec.stages)}: {reason}")


def shared_fate(spec: TaskSpec, pipeline: Pipeline) -> str:
    """Why one participant's update changes what becomes of another's under this pipeline; empty if it does not."""
    rule = pipeline.last.rule
    alone = rule.moves_alone is not None and rule.built_in and rule.moves_alone(pipeline.last.options)
    if not alone or pipeline.stages:
        return (
            "there one participant's update changes what becomes of others'; it does not under 'mean', and 'norm-clip' "
            "with a fixed bound"
        )
    if rule.needs_gram and spec.max_participants > spec.max_rows:
        return "more participants than max_rows are clipped in buckets, several at once"
    return ""


def _check_coordinate_wise(spec: TaskSpec, pipeline: Pipeline) -> None:
    rule, rows = pipeline.last.rule, pipeline.rows_after(spec.max_participants)
    each = rule.comparisons(rows, pipeline.last.options) if rule.comparisons else 0
    if each * spec.dimension > MAX_COMPARISONS:
        raise InvalidTask(
            f"rule {rule.name!r} would take {each} secret comparisons of {rows} rows for each of {spec.dimension} "
            f"coordinates, {each * spec.dimension} in all; at most {MAX_COMPARISONS} are run in a round. Use fewer "
            "participants, 'bucketing', a smaller model, or a rule of the Gram matrix such as 'flame'"
        )
