"""What a task may ask for: stages and their order, options, buckets, a root, defaults. The rest is refused."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from triskele.errors import InvalidTask
from triskele.ids import ParticipantId, TaskName
from triskele.task import HEADROOM_BITS, VALUE_BITS, TaskSpec
from triskele_server.config import BUILT_IN_RULES
from triskele_server.linear.sketch import CHECK_BUCKETS, GRAM_BUCKETS
from triskele_server.party import round as round_
from triskele_server.rules import bucketing, check_task, find, known
from triskele_server.rules.pipeline import MAX_BUCKET_SIZE, MAX_COMPARISONS, Pipeline
from triskele_server.rules.registry import SCALE_BITS, Rule

ROOT = ParticipantId("root")
STAGES = ("bucketing", "nnm")
RULES = tuple(name for name in BUILT_IN_RULES if name not in STAGES)


def _task(rule: str | tuple[str, ...] = "mean", dimension: int = 10, **options) -> TaskSpec:
    names = rule.split() if isinstance(rule, str) else rule
    root = ROOT if names[-1:] == ["fltrust"] else None
    return TaskSpec(TaskName("test"), dimension, 1.0, rule=tuple(names), **{"root": root, **options})


def _options(spec: TaskSpec) -> dict[str, dict]:
    pipeline = Pipeline.of(spec)
    return {stage.rule.name: stage.options for stage in (*pipeline.stages, pipeline.last)}


def test_the_rules_that_come_with_it_are_those_a_policy_allows():
    assert set(known()) == set(BUILT_IN_RULES)
    assert {name for name in known() if find(name).kind == "pre_aggregation"} == set(STAGES)
    assert all(find(name).built_in for name in known())


@pytest.mark.parametrize("name", RULES)
def test_every_rule_can_run_alone_and_behind_every_stage(name):
    enough = {"num_nodes_to_select": 2} if name == "multi-krum" else {}
    alone = _task(name, min_accepted=1 if name == "krum" else 2, rule_options=enough)
    for stages in ("", "bucketing ", "nnm ", "bucketing nnm "):
        check_task(_task(stages + name, min_accepted=alone.min_accepted, rule_options=enough))


# ---- options ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {"bucketing": {}, "nnm": {}, "multi-krum": {}}),
        ({"size": 3}, {"bucketing": {"size": 3}, "nnm": {}, "multi-krum": {}}),
        (
            {"num_malicious_nodes": 4},
            {"bucketing": {}, "nnm": {"num_malicious_nodes": 4}, "multi-krum": {"num_malicious_nodes": 4}},
        ),
        ({"nnm": {"num_malicious_nodes": 4}}, {"bucketing": {}, "nnm": {"num_malicious_nodes": 4}, "multi-krum": {}}),
        ({"nnm": {}}, {"bucketing": {}, "nnm": {}, "multi-krum": {}}),
        (
            {"num_malicious_nodes": 4, "num_nodes_to_select": 9, "multi-krum": {"num_malicious_nodes": 5}},
            {
                "bucketing": {},
                "nnm": {"num_malicious_nodes": 4},
                "multi-krum": {"num_malicious_nodes": 5, "num_nodes_to_select": 9},
            },
        ),
    ],
)
def test_a_flat_option_goes_to_every_stage_that_has_it_and_a_table_to_one(options, expected):
    assert _options(_task("bucketing nnm multi-krum", rule_options=options)) == expected


def test_an_integer_serves_where_a_number_is_asked_for():
    assert _options(_task("geometric-median", rule_options={"nu": 1}))["geometric-median"] == {"nu": 1}
    check_task(_task("centered-clip", rule_options={"tau": 0, "iterations": 3}))


@pytest.mark.parametrize(
    ("names", "options", "text"),
    [
        (
            "mean",
            {"num_malicious_nodes": 1},
            r"no stage of \['mean'\] has an option 'num_malicious_nodes'; .*mean: none",
        ),
        ("nnm krum", {"f": 1}, r"has an option 'f'; options: nnm: num_malicious_nodes, krum: num_malicious_nodes"),
        ("nnm krum", {"nu": 1}, "has an option 'nu'"),
        (
            "nnm krum",
            {"dnc": {"num_malicious_nodes": 1}},
            r"has a table 'dnc', and the task's rule is \['nnm', 'krum'\]",
        ),
        ("nnm krum", {"nnm": {"nu": 1}}, "rule 'nnm' has no option 'nu'; its options: num_malicious_nodes"),
        ("bucketing mean", {"mean": {"size": 1}}, "rule 'mean' has no option 'size'; its options: none"),
        ("nnm krum", {"krum": 1}, "has an option 'krum'"),
        ("multi-krum", {"num_nodes_to_select": 0}, "num_nodes_to_select = 0 is not an integer from 1"),
        ("multi-krum", {"num_malicious_nodes": -1}, "not an integer from 0"),
        ("multi-krum", {"num_malicious_nodes": 1.0}, "num_malicious_nodes = 1.0 is not an integer"),
        ("multi-krum", {"num_malicious_nodes": True}, "num_malicious_nodes = True is not an integer"),
        ("multi-krum", {"num_malicious_nodes": "1"}, "num_malicious_nodes = '1' is not an integer"),
        ("multi-krum", {"num_malicious_nodes": 1 << 31}, "not an integer"),
        ("multi-krum", {}, "selects 1 updates"),
        ("nnm mean", {"nnm": {"num_malicious_nodes": 0.5}}, "rule 'nnm': num_malicious_nodes = 0.5 is not an integer"),
        ("geometric-median", {"nu": -0.1}, "nu = -0.1 is not a number from 0"),
        ("geometric-median", {"nu": "0.1"}, "not a number"),
        ("geometric-median", {"nu": True}, "not a number"),
        ("geometric-median", {"nu": 2.0**31}, "not a number"),
        ("geometric-median", {"iterations": 0}, "not an integer from 1"),
        ("geometric-median", {"clip_norm": 1.0}, "has an option 'clip_norm'"),  # the round gives that
        ("bucketing mean", {"coin": 1}, "has an option 'coin'"),
        ("bucketing mean", {"size": 0}, "size = 0 is not an integer from 1"),
        ("bucketing mean", {"size": 9}, "size = 9 is above 8"),
        ("dnc", {"filter_fraction": -1.0}, "not a number from 0"),
    ],
)
def test_an_option_that_does_not_fit_is_refused_by_name(names, options, text):
    with pytest.raises(InvalidTask, match=text):
        check_task(_task(names, rule_options=options))


# ---- order --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "text"),
    [
        ("modus", "there is no rule 'modus'; known rules: .*flame"),
        ("nnm modus", "there is no rule 'modus'"),
        ("nnm", "'nnm' is a stage in front of a rule, and no rule follows it"),
        ("bucketing nnm", "'nnm' is a stage in front of a rule"),
        ("mean nnm", "rule 'mean' can only stand last"),
        ("median mean", "rule 'median' can only stand last"),
        ("flame flame", "names a stage twice"),
        ("nnm bucketing nnm mean", "names a stage twice"),
    ],
)
def test_stages_come_first_and_a_rule_last(names, text):
    with pytest.raises(InvalidTask, match=text):
        check_task(_task(names))


def test_buckets_are_drawn_before_any_stage_that_looks_at_the_rows():
    """A round gives rows in buckets to the stages, never the other way round."""
    check_task(_task("bucketing nnm mean"))
    with pytest.raises(InvalidTask, match="bucketing"):
        check_task(_task("nnm bucketing mean"))


def test_a_rule_that_starts_from_the_previous_aggregate_takes_no_part_of_a_model():
    """Each round moves other entries, so last round's would be taken for them."""
    check_task(_task("flame", model_dimension=10**9))
    with pytest.raises(InvalidTask, match="previous aggregate"):
        check_task(_task("centered-clip", model_dimension=10**9))


# ---- headroom -----------------------------------------------------------------------------------------------------


def _largest_weight(names: str, **options) -> int:
    """The largest max_weight that fits, by bisection."""
    low, high = 0, (1 << 32) - 1
    while low < high:
        middle = (low + high + 1) // 2
        try:
            check_task(_task(names, max_weight=middle, **options))
            low = middle
        except InvalidTask as error:
            assert "could wrap" in str(error)  # noqa: PT017  any other refusal would be a defect
            high = middle - 1
    return low


@pytest.mark.parametrize("participants", [2, 64, 256, 1024])
@pytest.mark.parametrize("max_rows", [128, 256])
def test_every_rule_runs_at_the_largest_round_without_weights(participants, max_rows):
    for names in (stages + name for name in RULES for stages in ("", "nnm ", "bucketing nnm ")):
        spec = _task(
            names,
            max_participants=participants,
            max_rows=max_rows,
            min_accepted=1 if names == "krum" else 2,
            rule_options={"num_nodes_to_select": 64} if "multi-krum" in names else {},
        )
        if (participants, max_rows) == (1024, 256) and names.endswith(("nnm norm-clip", "nnm centered-clip")):
            # 6 bits of buckets, 8 of neighbours, 20 of scale: two more than there are.
            with pytest.raises(InvalidTask, match="could wrap"):
                check_task(spec)
        else:
            check_task(spec)


@pytest.mark.parametrize("max_rows", [128, 256])
def test_the_largest_example_weight_of_a_large_round(max_rows):
    """62 bits hold an entry (21), the weight, the scale (20), the rows and what the stages multiply in."""
    large = {"max_participants": 1024, "max_rows": max_rows, "rule_options": {}}
    rows_bits = int(math.log2(max_rows))
    assert _largest_weight("mean", **large) == 2 ** (62 - 21 - 10) - 1
    assert _largest_weight("norm-clip", **large) == 2 ** (62 - 21 - 20 - 6 - rows_bits) - 1
    assert _largest_weight("flame", **large) == 2 ** (62 - 21 - 20 - 6 - rows_bits) - 1
    assert _largest_weight("dnc", **large) == 2 ** (62 - 21 - 6 - rows_bits) - 1
    assert _largest_weight("nnm mean", **large) == 2 ** (62 - 21 - 6 - 2 * rows_bits) - 1
    # Normalised weights take the same room whatever the example weights are; an update and 1024 weights must fit.
    for name in ("geometric-median", "fltrust", "foolsgold", "nnm geometric-median"):
        assert _largest_weight(name, **large) == 2 ** (62 - 21 - 10) - 1


@pytest.mark.parametrize("names", ["mean", "norm-clip", "flame", "dnc", "nnm mean", "nnm dnc", "bucketing norm-clip"])
@pytest.mark.parametrize("participants", [5, 64, 100, 1024])
def test_no_aggregate_of_the_largest_weight_that_is_let_through_can_wrap(names, participants):
    """Every row at full weight in one coordinate: the words add up below 2^62."""
    options = {"max_participants": participants, "max_rows": 128}
    weight = _largest_weight(names, **options)
    pipeline = Pipeline.of(_task(names)).with_buckets(participants, 128)
    rows = pipeline.rows_after(participants)
    size = -(-participants // rows)
    remainder = participants - size * (participants // size)
    divisor = math.lcm(size, remainder or size) if rows < participants else 1
    mixed = rows if pipeline.mixes_in_secret else 1
    scale = 1 if pipeline.last.rule.scale_bits is None else 1 << SCALE_BITS
    assert 1.1 * 2**20 * weight * scale * rows * divisor * mixed < 2**HEADROOM_BITS
    assert weight * 2 ** (VALUE_BITS + 22) * rows * scale > 2 ** (HEADROOM_BITS - 18)  # and no needless refusal


def test_a_task_that_could_wrap_is_refused_with_its_numbers():
    """512 participants in 128 buckets: 32 bits of example weight, 20 of scale, 6 of what buckets multiply in."""
    text = r"could wrap: 21 bits of value \+ 58 bits of weight \+ 7 bits for 128 rows = 86 > 62; .*\(now 4294967295\)"
    with pytest.raises(InvalidTask, match=text):
        check_task(_task("norm-clip", max_weight=(1 << 32) - 1, max_participants=512))
    check_task(_task("mean", max_weight=(1 << 32) - 1, max_participants=512))


# ---- a root -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", ["fltrust", "nnm fltrust", "bucketing fltrust"])
def test_fltrust_needs_a_root_participant(names):
    with pytest.raises(InvalidTask, match="rule 'fltrust' needs a root participant: name it as `root`"):
        check_task(_task(names, root=None))
    check_task(_task(names, root=ROOT))


@pytest.mark.parametrize("name", [name for name in RULES if name != "fltrust"])
def test_no_other_rule_has_use_for_one(name):
    with pytest.raises(InvalidTask, match=f"rule '{name}' has no use for a root participant"):
        check_task(_task(name, root=ROOT))


def test_a_task_without_a_rule_gets_the_one_that_holds_up_best():
    assert _task(()).stages == ("flame",)
    assert _task((), root=ROOT).stages == ("fltrust",)
    for spec in (_task(()), _task((), root=ROOT)):
        check_task(spec)
        assert TaskSpec.from_canonical(spec.canonical()) == spec


# ---- the minimum cohort -------------------------------------------------------------------------------------------


def test_krum_alone_is_refused_because_it_opens_one_update():
    with pytest.raises(InvalidTask, match=r"selects 1 updates, below min_accepted = 2.*such as 'nnm' in front"):
        check_task(_task("krum"))
    check_task(_task("krum", min_accepted=1))
    check_task(_task("nnm krum"))


@pytest.mark.parametrize(("size", "allowed"), [(2, False), (3, True)])
def test_krum_of_buckets_needs_buckets_of_the_minimum(size, allowed):
    spec = _task("bucketing krum", min_accepted=3, rule_options={"size": size})
    if allowed:
        check_task(spec)
    else:
        with pytest.raises(InvalidTask, match="selects 2 updates, below min_accepted = 3"):
            check_task(spec)


@pytest.mark.parametrize(
    ("names", "options", "text"),
    [
        ("multi-krum", {"num_nodes_to_select": 9}, "selects 9 updates, below min_accepted = 10"),
        ("dnc", {"num_malicious_nodes": 11}, "selects 9 updates"),
        ("dnc", {"num_malicious_nodes": 50}, "selects 1 updates"),
        ("dnc", {"num_malicious_nodes": 5, "filter_fraction": 2.3}, "selects 9 updates"),
    ],
)
def test_a_selection_that_can_never_reach_the_minimum_is_refused(names, options, text):
    with pytest.raises(InvalidTask, match=text):
        check_task(_task(names, max_participants=20, min_accepted=10, rule_options=options))


# ---- buckets ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 3, 7, 8, 9, 64, 127])
@pytest.mark.parametrize("size", range(1, MAX_BUCKET_SIZE + 1))
def test_buckets_hold_every_row_once_and_average_it(n, size):
    mixing = bucketing.bucketing(n, coin=b"c" * 32, size=size)
    members = mixing.matrix > 0
    assert mixing.matrix.shape == (-(-n // size), n)
    assert (members.sum(0) == 1).all()
    assert members.sum(1)[:-1].tolist() == [size] * (len(members) - 1)
    assert (mixing.matrix.sum(1) == mixing.divisor).all()
    assert mixing.divisor == math.lcm(*members.sum(1).tolist()) < 64
    assert find("bucketing").rows_after(n, {"size": size}) == len(members)


def test_buckets_are_drawn_from_the_coin():
    drawn = {bytes([k]): bucketing.bucketing(20, coin=bytes([k]) * 32).matrix for k in range(30)}
    again = bucketing.bucketing(20, coin=b"\1" * 32).matrix
    assert (again == drawn[b"\1"]).all()
    assert len({matrix.tobytes() for matrix in drawn.values()}) == 30
    together = np.array([(matrix[:, 0] * matrix[:, 1]).sum() > 0 for matrix in drawn.values()])
    assert 0 < together.sum() < 15  # rows 0 and 1 meet in one of nineteen draws


def _buckets(size: int) -> tuple[str, dict[str, int]]:
    return "bucketing", {"size": size}


@pytest.mark.parametrize(
    ("names", "n", "max_rows", "stages", "rows"),
    [
        ("flame", 128, 128, [], 128),
        ("flame", 129, 128, [_buckets(2)], 65),
        ("flame", 256, 128, [_buckets(2)], 128),
        ("flame", 257, 128, [_buckets(3)], 86),
        ("median", 300, 64, [_buckets(5)], 60),
        ("mean", 1024, 128, [], 1024),
        ("norm-clip", 1024, 128, [_buckets(8)], 128),
        ("bucketing mean", 10, 128, [("bucketing", {})], 5),
        ("bucketing mean", 300, 128, [_buckets(3)], 100),
        ("bucketing nnm flame", 300, 128, [_buckets(3), ("nnm", {})], 100),
        ("nnm flame", 300, 128, [_buckets(3), ("nnm", {})], 100),
    ],
)
def test_more_rows_than_the_rule_may_see_are_averaged_in_buckets(names, n, max_rows, stages, rows):
    pipeline = Pipeline.of(_task(names)).with_buckets(n, max_rows)
    assert [(s.rule.name, s.options) for s in pipeline.stages] == stages
    assert pipeline.rows_after(n) == rows


def test_a_bucket_size_that_is_large_enough_is_kept():
    pipeline = Pipeline.of(_task("bucketing flame", rule_options={"size": 8})).with_buckets(300, 128)
    assert pipeline.stages[0].options == {"size": 8}


def test_more_participants_than_buckets_can_hold_are_refused():
    check_task(_task("flame", max_participants=512, max_rows=64))
    with pytest.raises(
        InvalidTask, match=r"max_rows = 64 is too few for 513 participants.*raise max_rows to 65 or more"
    ):
        check_task(_task("flame", max_participants=513, max_rows=64))


# ---- coordinate-wise rules ------------------------------------------------------------------------------------------


def test_a_coordinate_wise_rule_beyond_its_budget_is_refused_with_the_cost():
    """20 rows: 190 pairs, and 60 comparisons of ranks."""
    most = MAX_COMPARISONS // 250
    check_task(_task("median", most, max_participants=20))
    with pytest.raises(
        InvalidTask,
        match=rf"'median' would take 250 secret comparisons of 20 rows for each of {most + 1} coordinates, "
        rf"{250 * (most + 1)} in all; at most {MAX_COMPARISONS} are run.*'bucketing'.*'flame'",
    ):
        check_task(_task("median", most + 1, max_participants=20))
    check_task(_task("bucketing median", most + 1, max_participants=20))  # ten rows: 75 comparisons
    check_task(_task("flame", 1 << 20, max_participants=20))
    with pytest.raises(InvalidTask, match="'trimmed-mean' would take"):
        check_task(_task("nnm trimmed-mean", most + 1, max_participants=20))


def test_the_budget_counts_the_buckets_of_a_large_round():
    each = 128 * 127 // 2 + 3 * 128
    check_task(_task("median", MAX_COMPARISONS // each, max_participants=1024))
    with pytest.raises(InvalidTask, match=f"would take {each} secret comparisons of 128 rows"):
        check_task(_task("median", MAX_COMPARISONS // each + 1, max_participants=1024))


# ---- the canonical form -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spec",
    [
        _task("bucketing nnm geometric-median", rule_options={"nu": 0.25, "nnm": {"num_malicious_nodes": 3}}),
        _task("fltrust", max_rows=64),
        _task("centered-clip", rule_options={"tau": 1e-3, "centered-clip": {"iterations": 2, "tau": 2.0}}),
        _task("mean", rule_options={"mean": {}}),
        _task("nnm krum", rule_options={"nnm": {"num_malicious_nodes": 3}}, max_weight=9, decisions="hidden"),
    ],
    ids=lambda spec: " ".join(spec.stages),
)
def test_stages_options_and_root_come_back_from_the_canonical_form(spec):
    back = TaskSpec.from_canonical(spec.canonical())
    assert (back, back.stages, back.root, back.digest) == (spec, spec.stages, spec.root, spec.digest)
    assert _options(back) == _options(spec)


def test_every_part_of_a_pipeline_is_part_of_the_digest():
    spec = _task("nnm geometric-median", rule_options={"nu": 0.25})
    others = [
        replace(spec, rule=("geometric-median",)),
        replace(spec, rule=("geometric-median", "nnm")),
        replace(spec, rule_options={"nu": 1}),
        replace(spec, rule_options={"nu": 1.0}),
        replace(spec, rule_options={"geometric-median": {"nu": 0.25}}),
        replace(spec, rule_options={"nu": 0.25, "nnm": {}}),
        replace(spec, root=ROOT),
        replace(spec, max_rows=64),
    ]
    assert len({other.digest for other in [spec, *others]}) == len(others) + 1


def test_a_name_alone_and_a_list_of_one_are_the_same_task():
    alone = TaskSpec(TaskName("test"), 10, 1.0, rule="mean")
    assert alone == _task(("mean",))
    assert alone.digest == _task(("mean",)).digest


# ---- anything at all ----------------------------------------------------------------------------------------------

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
NAMES = st.sampled_from([*BUILT_IN_RULES, "modus", "", "A"])
OPTION_NAMES = st.sampled_from(
    [
        "num_malicious_nodes",
        "num_nodes_to_select",
        "size",
        "nu",
        "tau",
        "iterations",
        "filter_fraction",
        "float",
        "coin",
    ]
)
OPTION_VALUES = st.integers(-1, 9) | st.floats(0, 3) | SCALARS
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
SOME_OPTIONS = st.dictionaries(OPTION_NAMES, OPTION_VALUES, max_size=3)
RULE = NAMES | st.lists(NAMES, max_size=4) | JSON
RULE_OPTIONS = (
    SOME_OPTIONS | st.dictionaries(OPTION_NAMES | NAMES, OPTION_VALUES | SOME_OPTIONS | JSON, max_size=3) | JSON
)


def _task_or_none(rule, options, **more) -> TaskSpec | None:
    try:
        return TaskSpec(TaskName("test"), 10, 1.0, rule=rule, rule_options=options, **more)
    except InvalidTask:
        return None


@settings(deadline=None, max_examples=300)
@given(RULE, RULE_OPTIONS, st.none() | st.just(ROOT), st.integers(1, 3), st.integers(0, 1 << 32))
@example("mean", {"float": "0x1.0p+0"}, None, 2, 0)
@example("mean", {"mean": {"float": "0x1.0p+0"}}, None, 2, 0)
@example(["nnm", "bucketing", "mean"], {}, None, 2, 0)
@example(5, {}, None, 2, 0)
@example(["mean", 5], {}, None, 2, 0)
@example("mean", [], None, 2, 0)
@example("mean", None, None, 2, 0)
def test_any_rule_and_options_are_a_task_that_can_be_checked_or_refused(rule, options, root, minimum, max_weight):
    spec = _task_or_none(rule, options, root=root, min_accepted=minimum, max_weight=max_weight)
    if spec is None:
        return
    assert TaskSpec.from_canonical(spec.canonical()) == spec
    try:
        check_task(spec)
    except InvalidTask:
        return
    pipeline = Pipeline.of(spec)
    for n in (2, 3, 128):
        assert 1 <= pipeline.with_buckets(n, spec.max_rows).rows_after(n) <= spec.max_rows
    for stage in (*pipeline.stages, pipeline.last):
        assert isinstance(stage.rule, Rule)
        assert stage.options.keys() <= stage.rule.options.keys()


@pytest.mark.parametrize(
    ("names", "alone", "buckets"),
    [
        ("norm-clip", True, CHECK_BUCKETS),
        ("bucketing norm-clip", True, CHECK_BUCKETS),
        ("nnm norm-clip", False, GRAM_BUCKETS),
        ("flame", False, GRAM_BUCKETS),
        ("bucketing flame", False, GRAM_BUCKETS),
        ("mean", False, CHECK_BUCKETS),
        ("bucketing mean", False, CHECK_BUCKETS),
    ],
)
def test_what_is_asked_for_decides_how_fine_the_sketch_is(names, alone, buckets):
    spec = _task(names, dimension=1_000_000)
    assert Pipeline.of(spec).norms_only is alone
    assert round_._buckets(spec, Pipeline.of(spec), 50) == buckets
