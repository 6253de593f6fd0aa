"""The canonical task: one text for one task, and nothing else is ever decoded."""

import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from triskele.errors import Forbidden, InvalidTask
from triskele.task import TaskSpec

NAMES = st.from_regex(r"[a-z0-9]([a-z0-9._-]{0,20}[a-z0-9])?", fullmatch=True)
VALUES = st.integers() | st.booleans() | st.text(max_size=8) | st.floats(allow_nan=False, allow_infinity=False)
OPTION_NAMES = st.text(min_size=1, max_size=8).filter(lambda name: name != "float")  # has a test of its own
FLAT = st.dictionaries(OPTION_NAMES, VALUES, max_size=3)
OPTIONS = st.dictionaries(OPTION_NAMES, VALUES | FLAT, max_size=4)
SPECS = st.builds(
    TaskSpec,
    name=NAMES,
    dimension=st.integers(1, 1 << 27),
    clip_norm=st.floats(1e-6, 1e6),
    rule=NAMES | st.lists(NAMES, max_size=3, unique=True).map(tuple),
    rule_options=OPTIONS,
    root=st.none() | NAMES,
    decisions=st.sampled_from(["public", "hidden"]),
    gram=st.sampled_from(["auto", "exact", "sketch"]),
    max_weight=st.integers(0, 1 << 20),
    max_participants=st.integers(8, 1024),
    max_rows=st.integers(2, 256),
    min_accepted=st.integers(2, 8),
    model_dimension=st.just(0) | st.integers((1 << 27) + 1, 1 << 31),
)
EXAMPLE = TaskSpec(
    "faces",
    10,
    1.5,
    rule=("nnm", "multi-krum"),
    rule_options={"num_malicious_nodes": 4, "x": 0.5, "nnm": {"num_malicious_nodes": 3, "y": 2.0}},
    root="alice",
).canonical()
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def decodes_or_is_refused(data: bytes) -> None:
    try:
        spec = TaskSpec.from_canonical(data)
    except InvalidTask:
        return
    assert spec.canonical() == data


@given(SPECS)
def test_canonical_task_comes_back(spec):
    restored = TaskSpec.from_canonical(spec.canonical())
    assert restored == spec
    assert restored.digest == spec.digest == hashlib.sha256(spec.canonical()).digest()


@given(SPECS, SPECS)
def test_different_tasks_have_different_digests(one, other):
    assert (one == other and one.rule_options == other.rule_options) or one.digest != other.digest


@given(st.binary(max_size=200))
def test_any_bytes_are_a_task_or_refused(data):
    decodes_or_is_refused(data)


@given(st.integers(0, len(EXAMPLE) - 1), st.binary(max_size=4), st.integers(0, 4))
def test_any_change_to_a_task_is_another_task_or_refused(place, inserted, removed):
    decodes_or_is_refused(EXAMPLE[:place] + inserted + EXAMPLE[place + removed :])


@given(st.sampled_from(sorted(json.loads(EXAMPLE))), JSON)
def test_any_value_in_any_field_is_a_task_or_refused(name, value):
    content = json.loads(EXAMPLE)
    content[name] = value
    decodes_or_is_refused(json.dumps(content, sort_keys=True, separators=(",", ":")).encode())


@pytest.mark.parametrize("name", ["dimension", "max_weight", "max_participants", "max_rows", "min_accepted"])
@pytest.mark.parametrize("value", [True, False, 3.0, "3", None, [3]])
def test_numbers_are_numbers(name, value):
    content = {**json.loads(EXAMPLE), name: value}
    with pytest.raises(InvalidTask):
        TaskSpec.from_canonical(json.dumps(content, sort_keys=True, separators=(",", ":")).encode())


@pytest.mark.parametrize(
    "change", [lambda d: d + b" ", lambda d: d.replace(b":", b": "), lambda d: b" " + d, lambda d: b""]
)
def test_other_forms_of_the_same_task_are_refused(change):
    with pytest.raises(InvalidTask):
        TaskSpec.from_canonical(change(EXAMPLE))


@pytest.mark.parametrize("clip_norm", [0, -1.0, float("nan"), float("inf"), 1e-320, 1e300])
def test_clip_that_cannot_scale_is_refused(clip_norm):
    with pytest.raises(InvalidTask, match="clip_norm"):
        TaskSpec("x", 1, clip_norm)


@pytest.mark.parametrize("max_rows", [1, 257, 0, -1])
def test_rows_that_no_rule_can_see_are_refused(max_rows):
    with pytest.raises(InvalidTask, match=f"max_rows {max_rows} is not in 2 to 256"):
        TaskSpec("x", 1, 1.0, max_rows=max_rows)


def test_none_of_the_rules_names_is_the_default():
    """A task may name none; its canonical form says which rule that is, so that all agree on it."""
    assert TaskSpec("x", 1, 1.0).stages == TaskSpec("x", 1, 1.0, rule=()).stages == ("flame",)
    assert TaskSpec("x", 1, 1.0, root="alice").stages == ("fltrust",)
    assert TaskSpec("x", 1, 1.0, rule="mean").stages == ("mean",)
    assert b'"rule":["flame"]' in TaskSpec("x", 1, 1.0).canonical()


@pytest.mark.parametrize("rule", ["Mean", "", "a b", ("mean", ""), ("mean", "mean"), ("nnm", "mean", "nnm")])
def test_what_are_no_names_of_stages_is_refused(rule):
    with pytest.raises(InvalidTask):
        TaskSpec("x", 1, 1.0, rule=rule)


@pytest.mark.parametrize("root", ["", "Alice", "a b", "a/b", "-a"])
def test_a_root_is_a_participants_name(root):
    with pytest.raises(InvalidTask, match="root participant"):
        TaskSpec("x", 1, 1.0, root=root)


@pytest.mark.parametrize(
    "options",
    [
        {"nu": None},
        {"nu": [1]},
        {"nu": float("nan")},
        {"nu": float("inf")},
        {"nnm": {"nu": None}},
        {"nnm": {"nu": float("nan")}},
        {"nnm": {"nu": {}}},
        {"nnm": {"nu": {"deeper": 1}}},
    ],
)
def test_options_are_numbers_texts_and_truths_at_most_one_table_deep(options):
    with pytest.raises(InvalidTask, match="rule option"):
        TaskSpec("x", 1, 1.0, rule_options=options)


def test_options_cannot_change_after_the_digest_was_taken():
    given = {"nu": 0.5, "nnm": {"num_malicious_nodes": 3}}
    spec = TaskSpec("x", 1, 1.0, rule_options=given)
    before = spec.canonical()
    given["nu"] = given["nnm"]["num_malicious_nodes"] = 9
    assert spec.canonical() == before
    for options in (spec.rule_options, spec.rule_options["nnm"]):
        with pytest.raises(TypeError):
            options["nu"] = 1


@pytest.mark.parametrize("name", ["float", "nu"])
@pytest.mark.parametrize("text", ["0x1.0000000000000p+0", "1.0", "", "x"])
def test_a_text_is_never_taken_for_a_number(name, text):
    """In the canonical form a number with a point is a table of its own; a text that looks so may be refused."""
    number = TaskSpec("x", 1, 1.0, rule_options={"nu": 1.0})
    for options in ({name: text}, {"nu": {name: text}}):
        try:
            spec = TaskSpec("x", 1, 1.0, rule_options=options)
        except InvalidTask:
            continue
        assert spec.digest != number.digest
        assert TaskSpec.from_canonical(spec.canonical()).rule_options == spec.rule_options


def test_task_over_the_size_limit_is_refused_unread():
    with pytest.raises(InvalidTask, match="limit"):
        TaskSpec.from_canonical(b"[" * 70_000)


def test_deep_nesting_is_refused():
    with pytest.raises(InvalidTask):
        TaskSpec.from_canonical(b"[" * 60_000)


def test_a_group_is_a_set_of_names():
    one, other = (TaskSpec("faces", 10, 1.0, participants=names) for names in (("bob", "alice"), ["alice", "bob"]))
    assert one.digest == other.digest != TaskSpec("faces", 10, 1.0).digest
    assert one.participants == ("alice", "bob")
    one.check_takes_part("alice")
    with pytest.raises(Forbidden, match="'carol' is not one of them"):
        one.check_takes_part("carol")
    TaskSpec("faces", 10, 1.0).check_takes_part("carol")


@pytest.mark.parametrize(
    "wrong",
    [
        {"participants": "alice"},
        {"participants": ("alice", "alice")},
        {"participants": ("alice", "Bob")},
        {"participants": ("alice", 3)},
        {"participants": ("alice",)},  # fewer than the minimum cohort
        {"participants": ("alice", "bob"), "root": "carol"},
    ],
)
def test_a_group_that_cannot_run_the_task_is_refused(wrong):
    with pytest.raises(InvalidTask):
        TaskSpec("faces", 10, 1.0, **wrong)
