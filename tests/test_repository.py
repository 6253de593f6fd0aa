"""What the repository says of itself is true: generated stubs, the README's commands, the ledger in the docs."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from grpc_tools import protoc
from typer.testing import CliRunner

from triskele import cli
from triskele.task import TaskSpec
from triskele_server.party.filter import declared_openings

ROOT = Path(__file__).parent.parent
PROTO = ROOT / "proto"


def test_generated_stubs_are_those_of_the_proto_files(tmp_path: Path) -> None:
    sources = sorted(str(p.relative_to(PROTO)) for p in (PROTO / "triskele_proto" / "v1").glob("*.proto"))
    arguments = [f"--{kind}_out={tmp_path}" for kind in ("python", "pyi", "grpc_python")]
    assert protoc.main(["protoc", f"-I{PROTO}", *arguments, *sources]) == 0
    made = sorted(p.relative_to(tmp_path) for p in tmp_path.rglob("*_pb2*"))
    assert made == sorted(p.relative_to(PROTO) for p in PROTO.rglob("*_pb2*") if p.suffix in (".py", ".pyi"))
    for path in made:
        assert (PROTO / path).read_text() == (tmp_path / path).read_text(), f"{path}: run `make proto`"


def test_every_command_of_the_readme_exists_and_no_other() -> None:
    named = set(re.findall(r"^\| `triskele ([a-z]+)`", (ROOT / "README.md").read_text(), re.MULTILINE))
    shown = CliRunner().invoke(cli.app, ["--help"], env={"TERM": "dumb", "COLUMNS": "200"}).output
    listed = set(re.findall(r"^\W*(\w+) {2,}", shown.split("Commands")[1], re.MULTILINE))
    assert named == listed


@pytest.mark.parametrize(
    "line", [x for x in (ROOT / "docs/protocol.md").read_text().splitlines() if "aggregate[d] |" in x]
)
def test_the_ledger_in_the_docs_is_the_one_declared(line: str) -> None:
    rule, decisions, opened = (cell.strip() for cell in line.strip("|").split("|"))
    name = re.findall(r"`([a-z-]+)`", rule)[0]
    optional = "(weight_total,)" in opened
    names = re.findall(r"[a-z_]+", re.sub(r"\[\w\]", "", opened.replace("(weight_total,)", "weight_total,")))
    for weighted in (False, True) if optional else ("weighted" in rule,):
        expected = [n for n in names if weighted or n != "weight_total"]
        for chosen in ("public", "hidden") if decisions == "either" else (decisions,):
            spec = TaskSpec(name="t", dimension=5, clip_norm=1.0, rule=name, decisions=chosen, max_weight=10 * weighted)
            assert declared_openings(spec) == [*expected[:-1], "masked_aggregate"]
            spec = replace(spec, release="public")
            assert declared_openings(spec) == expected


def test_the_files_that_go_first_exist() -> None:
    source = (ROOT / "tests" / "conftest.py").read_text()
    named = re.findall(r'^    "([\w/]+\.py)",$', source, re.MULTILINE)
    assert len(named) > 10
    assert [name for name in named if not (ROOT / "tests" / name).exists()] == []
