"""The documentation site: it builds without a warning, every link in it leads somewhere, and what it says is true."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import MISSING, dataclass, field, fields
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit
from xml.etree import ElementTree

import pytest
from pydantic import BaseModel
from pydantic_core import PydanticUndefined
from typer.testing import CliRunner

from triskele import cli
from triskele.config import FrameworkServerConfig, ParticipantConfig
from triskele.task import TaskSpec
from triskele_server.config import CoordinatorConfig, PartyConfig, Schedule
from triskele_server.operations.status import OperatorConfig
from triskele_server.round_state import TRANSITIONS

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
OURS = [DOCS / "index.md", DOCS / "faq.md", *(p for part in ("tutorial", "how-to") for p in (DOCS / part).glob("*.md"))]


@dataclass
class Page(HTMLParser):
    """What of a page can be pointed at, and what it points at."""

    path: Path
    ids: set[str] = field(default_factory=set)
    links: list[str] = field(default_factory=list)
    loaded: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self.feed(self.path.read_text("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value for name, value in attrs if value is not None}
        self.ids |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        if "src" in given or (tag == "link" and "href" in given):
            self.loaded.append(given.get("src") or given["href"])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr.strip() == ""
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    return {path: Page(path) for path in site.rglob("*.html")}


def test_every_link_and_anchor_inside_the_site_leads_somewhere(site, pages):
    broken = []
    for path, page in pages.items():
        for target in [*page.links, *page.loaded]:
            parts = urlsplit(target)
            if parts.scheme or path.name == "404.html":  # its links begin at the server's root
                continue
            found = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            found = found / "index.html" if found.is_dir() else found
            anchor = unquote(parts.fragment)
            if not found.is_file() or (anchor and found in pages and anchor not in pages[found].ids):
                broken.append(f"{path.relative_to(site)}: {target}")
    assert broken == []
    assert sum(len(page.links) for page in pages.values()) > 1000


def test_the_site_fetches_nothing_from_elsewhere(site, pages):
    outside = [(p, target) for p, page in pages.items() for target in page.loaded if urlsplit(target).netloc]
    assert outside == []
    styles = "".join(path.read_text("utf-8") for path in site.rglob("*.css"))
    assert re.findall(r"(?:@import|url\()\s*[\"']?https?:", styles) == []


def test_the_site_names_no_place_of_this_machine(site):
    places = {str(ROOT), sys.prefix, str(Path.home() / ".")} - {"/"}
    texts = [path for path in site.rglob("*") if path.suffix in {".html", ".json", ".xml", ".js", ".svg", ".py"}]
    assert [(path, place) for path in texts for place in places if place + "/" in path.read_text("utf-8")] == []


def _help(*command: str) -> str:
    environment = {"TERM": "dumb", "COLUMNS": "200"}
    return CliRunner().invoke(cli.app, [*command, "--help"], env=environment).output


def _listed(text: str) -> list[str]:
    after = text.split("─ Commands ")
    return re.findall(r"^│ ([a-z-]+) {2,}", after[1], re.MULTILINE) if len(after) > 1 else []


def _commands(*command: str) -> Iterator[tuple[str, ...]]:
    for name in _listed(_help(*command)):
        yield (*command, name)
        yield from _commands(*command, name)


def _options(text: str) -> set[str]:
    return set(re.findall(r"^│ \*? *(--[a-z-]+)", text, re.MULTILINE)) - {"--help"}


def test_the_reference_of_commands_says_what_help_says(site):
    text = (site / "reference" / "cli" / "index.html").read_text("utf-8")
    sections = dict(re.findall(r'<h[23] id="(triskele[\w-]*)">(.*?)(?=<h[23] id=|</article>)', text, re.DOTALL))
    commands = list(_commands())
    assert len(commands) > 12
    assert set(sections) == {"-".join(("triskele", *command)) for command in commands}
    for command in commands:
        section = sections["-".join(("triskele", *command))]
        assert set(re.findall(r"<td><code>(--[a-z-]+)</code>", section)) == _options(_help(*command)), command


def test_commands_in_the_pages_exist_with_their_options():
    known = {command: _options(_help(*command)) for command in _commands()}
    seen = 0
    for path in OURS:
        for line in re.findall(r"^(?: {4}|`*)triskele ([^`#\n]+)", path.read_text("utf-8"), re.MULTILINE):
            words = line.split()
            command = max((c for c in known if tuple(words[: len(c)]) == c), key=len, default=None)
            assert command, f"{path.name}: triskele {line}"
            assert {w for w in words if w.startswith("--")} <= known[command], f"{path.name}: triskele {line}"
            seen += 1
    assert seen > 8


@pytest.mark.parametrize("page", ["operations.md", "runbooks.md", "metrics.md", "install.md", "faq.md"])
def test_commands_in_the_text_of_a_page_exist_with_their_options(page):
    """Between backticks; blocks have tests of their own."""
    text = re.sub(r"^```.*?^```$", "", (DOCS / page).read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    spans = [span.split() for span in re.findall(r"`((?:make|python|triskele) [^`\n]+)`", text)]
    assert spans
    known = {command: _options(_help(*command)) for command in _commands()}
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    for program, *words in spans:
        command = max((c for c in known if tuple(words[: len(c)]) == c), key=len, default=())
        if program == "make":
            assert words[0] in targets, words
        elif program == "python":
            assert words[0] in ("-c", "-m") or (ROOT / words[0]).is_file(), words
        else:
            assert command, words
            assert {w for w in words if w.startswith("--")} <= known[command], words


def _keys(model: type[BaseModel], prefix: str = "") -> dict[str, Any]:
    """Every key with its default, tables flattened; `limits` has a page of its own."""
    found: dict[str, Any] = {}
    for name, info in model.model_fields.items():
        kind = info.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            found |= _keys(kind, f"{prefix}{name}.")
        else:
            found[prefix + name] = info.get_default(call_default_factory=True)
    return found


def _task_keys() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for item in fields(TaskSpec):
        made = item.default_factory() if item.default_factory is not MISSING else item.default
        found[item.name] = PydanticUndefined if made is MISSING else made
    del found["ring_bits"], found["fraction_bits"]  # follow from what a file asks for
    found["ring"] = "auto"
    return found | _keys(Schedule, "schedule.")


def _written(default: Any) -> str:
    if default is PydanticUndefined:
        return "required"
    if default is None:
        return "none"
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"  # as TOML has it
    text = {str: f'"{default}"', tuple: str(list(default)).replace("'", '"') if isinstance(default, tuple) else ""}
    return f"`{text.get(type(default), default)}`"


@pytest.mark.parametrize(
    ("heading", "keys"),
    [
        ("participant.toml", _keys(ParticipantConfig)),
        ("operator.toml", _keys(OperatorConfig)),
        ("reader.toml, forwarder.toml", _keys(FrameworkServerConfig)),
        ("party.toml", _keys(PartyConfig)),
        ("coordinator.toml", _keys(CoordinatorConfig)),
        ("Task files", _task_keys()),
    ],
)
def test_every_key_of_a_configuration_file_is_described_with_its_default(heading, keys):
    text = (DOCS / "reference" / "configuration.md").read_text("utf-8")
    section = text.split(f"## {heading}\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (`[^|]+`) \| ([^|]+) \|", section, re.MULTILINE)
    described = {key: default.strip() for names, default in rows for key in re.findall(r"`([^`]+)`", names)}
    in_words = {"limits": "see there", "policy.rules": "all built in"}
    assert described == {key: in_words.get(key) or _written(default) for key, default in keys.items()}


def test_exit_codes_are_those_of_the_command_line():
    text = (DOCS / "reference" / "errors.md").read_text("utf-8")
    codes = {int(code) for code in re.findall(r"^\| (\d+) \|", text, re.MULTILINE)}
    assert codes == {value for name, value in vars(cli).items() if name.startswith("EXIT_")}


def test_figures_are_well_formed_and_the_states_are_those_of_the_table():
    for path in (DOCS / "figures").glob("*.svg"):
        ElementTree.fromstring(path.read_text("utf-8"))  # noqa: S314  our own files
    shown = set(re.findall(r">([A-Za-z]+)[<:]", (DOCS / "figures" / "states.svg").read_text("utf-8")))
    states = {state.value for before, _ in TRANSITIONS for state in (before, *TRANSITIONS.values())}
    assert shown == states | {event.value for _, event in TRANSITIONS}


def test_figures_of_the_explanation_are_those_that_were_measured():
    table = (DOCS / "explanation" / "index.md").read_text("utf-8").split("## What it costs")[1]
    measured = {
        name: (whole, filtering, rounds)
        for name, whole, filtering, rounds in re.findall(
            r"^\| `([a-z-]+)` \| ([\d.]+) \| ([\d.]+) \| (\d+) \|", (DOCS / "rules.md").read_text("utf-8"), re.MULTILINE
        )
    }
    wanted = zip(*(measured[name] for name in ("norm-clip", "multi-krum", "flame", "fltrust")), strict=True)
    assert all(", ".join(figures) in table for figures in wanted)
    readme = (ROOT / "README.md").read_text("utf-8").replace("\n", " ")
    for rule, seconds in re.findall(r"([\d.]+) s with `(\w+)`", table):
        assert f"{rule} s with `{seconds}`" in readme


def _blocks(language: str) -> list[Any]:
    fence = re.compile(rf"```(?:{language}|{{\.{language}}})\n(.*?)```", re.DOTALL)  # {.python}: a file is put in
    blocks = [
        pytest.param(path, block, id=f"{path.parent.name}/{path.name}-{i}")
        for path in OURS
        for i, block in enumerate(fence.findall(path.read_text("utf-8")))
    ]
    assert blocks
    return blocks


@pytest.mark.parametrize(("path", "block"), _blocks("python"))
def test_python_in_a_page_is_a_tested_file_or_imports_what_there_is(path, block):
    included = re.fullmatch(r'--8<-- "(.+)"\n', block)
    if included:
        assert (ROOT / included.group(1)).is_file()
        return
    assert path.parent.name != "tutorial", "a tutorial shows files that the tests run"
    for statement in ast.walk(ast.parse(block)):
        if isinstance(statement, ast.ImportFrom) and (statement.module or "").startswith("triskele"):
            place = ROOT / "client" / (statement.module or "").replace(".", "/")
            source = (place / "__init__.py" if place.is_dir() else place.with_suffix(".py")).read_text("utf-8")
            assert all(re.search(rf"\b{alias.name}\b", source) for alias in statement.names)


@pytest.mark.parametrize(("path", "block"), _blocks("toml"))
def test_toml_in_a_page_has_keys_of_a_task(path, block):
    content = tomllib.loads(block)
    options: dict[str, Any] = {"name": "t", "dimension": 10, "clip_norm": 1.0, **content}
    assert TaskSpec(**options)


def test_the_tutorial_has_under_five_commands():
    text = (DOCS / "tutorial" / "index.md").read_text("utf-8")
    commands = [line for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]
    assert len(commands) == 4
    assert [c.split()[-1] for c in commands if c.startswith("python")] == ["federation.py", "first_update.py"]


@pytest.mark.parametrize("readme", [False, True])
def test_who_is_told_to_install_triskele_is_told_of_the_wheel(readme):
    """It is not on PyPI, so that `pip install triskele` finds nothing, or one day somebody else's."""
    paths = (ROOT / "examples").glob("*/README.md") if readme else DOCS.rglob("*.md")
    told = {path: text for path in paths if re.search(r"pip install '?triskele\b", text := path.read_text("utf-8"))}
    assert len(told) > 3
    assert [path for path, text in told.items() if "install.md#the-client" not in text and ".whl[" not in text] == []
