"""A rule of another package: found by its entry point, run by `simulate`, allowed by the digest of its source."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from importlib import invalidate_caches
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from triskele.errors import Forbidden, InvalidTask
from triskele.ids import TaskName
from triskele.task import TaskSpec
from triskele_server.cli import commands
from triskele_server.config import PolicyTable
from triskele_server.party.policy import check_task as check_policy
from triskele_server.rules import Pipeline, check_task, find, known, registry
from triskele_server.simulate import simulate

DOCS = (Path(__file__).parents[3] / "docs" / "rules.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", DOCS, re.DOTALL)
SHORTEST = next(block for block in BLOCKS if '@rule("shortest"' in block)
TRIAL = next(block for block in BLOCKS if 'rule="shortest"' in block)
MODULE = "rules_of_another_package"
STAGE = '''
from triskele_server.rules import Mixing, pre_aggregation

@pre_aggregation("halves")
def halves(gram):
    """Each row twice, as halves."""
    return Mixing((gram * 0).lt(0) + 1, gram.size(0))
'''
PAIRS = '''
import numpy as np
from triskele_server.rules import Mixing, pre_aggregation

@pre_aggregation("pairs", giving="public", needs_gram=False, rows_after=lambda rows, options: rows // 2)
def pairs(rows, *, coin):
    """Rows 2 i and 2 i + 1 averaged."""
    assert len(coin) == 32
    return Mixing(np.repeat(np.eye(rows // 2, dtype=np.int64), 2, axis=1), 2)
'''


@pytest.fixture
def install(tmp_path, monkeypatch):
    """`install(source, *names)` puts a package with such entry points on the path; it is gone after the test."""
    before = dict(registry._RULES)
    monkeypatch.syspath_prepend(tmp_path)

    def put(source: str, *names: str, module: str = MODULE) -> Path:
        sys.modules.pop(module, None)
        path = tmp_path / f"{module}.py"
        path.write_text(source, encoding="utf-8")
        folder = tmp_path / f"{module}-1.0.dist-info"
        folder.mkdir(exist_ok=True)
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n", encoding="utf-8")
        lines = "".join(f"{name} = {module}\n" for name in names)
        (folder / "entry_points.txt").write_text(f"[triskele.rules]\n{lines}", encoding="utf-8")
        invalidate_caches()
        return path

    yield put
    registry._RULES.clear()
    registry._RULES.update(before)
    sys.modules.pop(MODULE, None)


def _task(*names: str, **options) -> TaskSpec:
    return TaskSpec(TaskName("test"), 10, 1.0, rule=names, **options)


def _forget() -> None:
    """As if the process had been started anew."""
    for name in known():
        if not find(name).built_in:
            del registry._RULES[name]
    sys.modules.pop(MODULE, None)


# ---- found and run --------------------------------------------------------------------------------------------------


def test_the_rule_of_the_documentation_is_found_by_its_entry_point(install):
    assert "shortest" not in known()
    install(SHORTEST, "shortest")
    assert "shortest" in known()
    check_task(_task("shortest", rule_options={"count": 3}))
    rule = find("shortest")
    assert (rule.built_in, rule.options, rule.kind) == (False, {"count": 2}, "rule")
    assert find("shortest") is rule


def test_the_trial_of_the_documentation_runs(install):
    install(SHORTEST, "shortest")
    exec(TRIAL, {})  # noqa: S102  what a reader is told to run


def test_an_installed_rule_runs_behind_stages_and_gives_what_it_says(install):
    install(SHORTEST, "shortest")
    updates = np.random.default_rng(1).normal(size=(9, 20)) * np.linspace(1, 5, 9)[:, None]
    outcome = simulate(updates, rule="shortest", rule_options={"count": 4}, min_accepted=4)
    assert outcome.accepted.tolist() == [True] * 4 + [False] * 5
    assert np.abs(outcome.aggregate - updates[:4].mean(0)).max() < 2.0**-16
    mixed = simulate(updates, rule=["nnm", "shortest"], rule_options={"count": 4, "num_malicious_nodes": 3})
    assert mixed.openings == [("valid", (9,)), ("enough_accepted", ()), ("accepted", (9,)), ("aggregate", (20,))]


def test_an_installed_stage_runs_in_front_of_a_rule(install):
    install(STAGE, "halves")
    updates = np.random.default_rng(1).normal(size=(5, 20))
    outcome = simulate(updates, rule=["halves", "multi-krum"], rule_options={"num_nodes_to_select": 2})
    assert np.abs(outcome.aggregate - updates.mean(0)).max() < 2.0**-16


def test_an_installed_public_stage_gets_the_number_of_rows_and_the_coin(install):
    install(PAIRS, "pairs")
    updates = np.random.default_rng(1).normal(size=(6, 20))
    outcome = simulate(updates, rule=["pairs", "multi-krum"], rule_options={"num_nodes_to_select": 1})
    pairs = updates.reshape(3, 2, 20).mean(1)
    assert np.abs(outcome.aggregate - pairs).max(1).min() < 2.0**-16
    assert int(outcome.accepted.sum()) == 2


def test_options_of_an_installed_rule_are_checked_like_any_other(install):
    install(SHORTEST, "shortest")
    for options, text in (({"count": 1}, "count = 1 is not an integer from 2"), ({"size": 2}, "has an option 'size'")):
        with pytest.raises(InvalidTask, match=text):
            check_task(_task("shortest", rule_options=options))
    with pytest.raises(InvalidTask, match="selects 2 updates, below min_accepted = 3"):
        check_task(_task("shortest", min_accepted=3))


def test_a_rule_can_be_tried_where_it_has_no_file():
    """As in a notebook or at a prompt: there is no source to take a digest of."""
    script = f"{SHORTEST}\n{TRIAL}\nprint(result.accepted.sum())\n"
    ran = subprocess.run([sys.executable, "-"], input=script, capture_output=True, text=True, check=False, timeout=120)
    assert ran.stdout == "5\n", ran.stderr


# ---- the digest of its source ------------------------------------------------------------------------------------


def test_the_digest_is_that_of_the_modules_file_and_changes_with_it(install):
    path = install(SHORTEST, "shortest")
    first = find("shortest").source_digest
    assert first == hashlib.sha256(path.read_bytes()).hexdigest()
    task_digest = Pipeline.of(_task("shortest")).source_digest()
    _forget()
    install(SHORTEST + "\n# one comment more\n", "shortest")
    assert find("shortest").source_digest == hashlib.sha256(path.read_bytes()).hexdigest() != first
    assert Pipeline.of(_task("shortest")).source_digest() != task_digest


def test_the_parties_compare_the_sources_of_all_stages(install):
    install(SHORTEST, "shortest")
    digests = {Pipeline.of(_task(*names)).source_digest() for names in (("shortest",), ("nnm", "shortest"), ("mean",))}
    assert len(digests) == 3


def _allowing(**policy) -> PolicyTable:
    return PolicyTable(**policy)


@pytest.mark.parametrize("names", [("shortest",), ("nnm", "shortest")])
def test_a_party_refuses_an_installed_rule_whose_source_its_policy_does_not_list(install, names):
    install(SHORTEST, "shortest")
    digest = find("shortest").source_digest
    with pytest.raises(Forbidden, match="policy, rules: 'shortest' is not among"):
        check_policy(_task(*names), _allowing())
    refusing = [
        _allowing(rules=("nnm", "shortest")),  # by name alone
        _allowing(rule_sources={"shortest": digest[:-1] + "x"}),
        _allowing(rule_sources={"shortest": digest.upper()}),
        _allowing(rule_sources={"shortest": ""}),
    ]
    for policy in refusing:
        with pytest.raises(Forbidden, match=f"rule_sources: 'shortest' .* has the digest {digest}.*`triskele rules`"):
            check_policy(_task(*names), policy)
    check_policy(_task(*names), _allowing(rule_sources={"shortest": digest}))


def test_a_party_that_lists_another_version_refuses_the_new_one(install):
    install(SHORTEST, "shortest")
    policy = _allowing(rule_sources={"shortest": find("shortest").source_digest})
    check_policy(_task("shortest"), policy)
    _forget()
    install(SHORTEST.replace("count: int = 2", "count: int = 3"), "shortest")
    with pytest.raises(Forbidden, match="rule_sources"):
        check_policy(_task("shortest"), policy)


def test_a_party_that_has_not_installed_it_says_so():
    with pytest.raises(InvalidTask, match="there is no rule 'shortest'"):
        check_policy(_task("shortest"), _allowing(rule_sources={"shortest": "0" * 64}))


def test_the_command_prints_the_digest_that_a_policy_lists(install):
    install(SHORTEST, "shortest")
    plain = CliRunner().invoke(commands(), ["rules"])
    assert find("shortest").source_digest in plain.output
    listed = json.loads(CliRunner().invoke(commands(), ["rules", "--json"]).output)
    assert {r["name"] for r in listed if not r["built_in"]} == {"shortest"}
    assert next(r for r in listed if r["name"] == "shortest")["source_digest"] == find("shortest").source_digest


# ---- packages that are broken, or in the way ------------------------------------------------------------------------


BROKEN = {
    "an exception": "raise ZeroDivisionError('at import')",
    "a syntax error": "def broken(:",
    "a missing package": "import a_package_that_nobody_has",
    "an exception after the rule": SHORTEST + "\nraise ZeroDivisionError('at import')\n",
    "the end of the process": "import sys\nsys.exit(3)",
}


@pytest.mark.parametrize("broken", BROKEN)
def test_a_module_that_raises_on_import_is_refused_by_name_every_time(install, broken):
    install(BROKEN[broken], "shortest")
    for _ in range(2):
        with pytest.raises(InvalidTask, match=rf"rule 'shortest' \({MODULE}\) does not load: \w+"):
            check_task(_task("shortest"))
    check_task(_task("mean"))  # nothing else suffers
    assert "shortest" in known()


def test_a_module_that_does_not_register_the_name_is_refused(install):
    install(SHORTEST, "longest")
    with pytest.raises(InvalidTask, match="there is no rule 'longest'"):
        check_task(_task("longest"))


@pytest.mark.parametrize(
    ("source", "text"),
    [
        (SHORTEST.replace('minimum={"count": 2}', "minimum=None"), "`minimum` must name its keyword-only options"),
        (SHORTEST.replace("selected=_count", "scale_bits=16"), "scale_bits must be in 0 to 15"),
    ],
)
def test_a_rule_that_declares_itself_wrongly_is_refused(install, source, text):
    install(source, "shortest")
    with pytest.raises(InvalidTask, match=rf"rule 'shortest' \({MODULE}\) does not load: InvalidTask: .*{text}"):
        check_task(_task("shortest"))


def test_a_built_in_name_cannot_be_taken(install):
    install(SHORTEST.replace('"shortest"', '"mean"'), "mean", "other")
    built_in = find("mean")
    assert built_in.built_in
    assert MODULE not in sys.modules
    with pytest.raises(
        InvalidTask, match=r"rule 'other' .* does not load: InvalidTask: rule 'mean' is registered twice"
    ):
        find("other")
    assert find("mean") is built_in


def test_two_packages_with_one_name_are_not_told_apart_by_chance(install):
    install(SHORTEST, "shortest")
    install(SHORTEST + "\n# of somebody else\n", "shortest", module="rules_of_a_third_package")
    for _ in range(2):
        with pytest.raises(InvalidTask, match="shortest"):
            find("shortest")
