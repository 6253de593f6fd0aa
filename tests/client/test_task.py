"""The canonical task: one text for one task, and nothing else is ever decoded."""

import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from triskele.errors import InvalidTask
from triskele.task import TaskSpec

OPTIONS = st.dictionaries(
    st.text(min_size=1, max_size=8),
    st.one_of(st.integers(), st.booleans(), st.text(max_size=8), st.floats(allow_nan=False, allow_infinity=False)),
    max_size=4,
)
SPECS = st.builds(
    TaskSpec,
    name=st.from_regex(r"[a-z0-9]([a-z0-9._-]{0,20}[a-z0-9])?", fullmatch=True),
    dimension=st.integers(1, 1 << 27),
    clip_norm=st.floats(1e-6, 1e6),
    rule=st.sampled_from(["mean", "multi-krum"]),
    rule_options=OPTIONS,
    decisions=st.sampled_from(["public", "hidden"]),
    gram=st.sampled_from(["auto", "exact", "sketch"]),
    max_weight=st.integers(0, 1 << 20),
    max_participants=st.integers(8, 1024),
    min_accepted=st.integers(2, 8),
)
EXAMPLE = TaskSpec("faces", 10, 1.5, rule="multi-krum", rule_options={"num_malicious_nodes": 4, "x": 0.5}).canonical()
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


@pytest.mark.parametrize("name", ["dimension", "max_weight", "max_participants", "min_accepted"])
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


def test_task_over_the_size_limit_is_refused_unread():
    with pytest.raises(InvalidTask, match="limit"):
        TaskSpec.from_canonical(b"[" * 70_000)


def test_deep_nesting_is_refused():
    with pytest.raises(InvalidTask):
        TaskSpec.from_canonical(b"[" * 60_000)
