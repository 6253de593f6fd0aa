"""docs/limits.md says of every limit what the code says: name, default, unit, and what happens beyond it.

The tables are printed by `python tests/server/test_limits_page.py`.
"""

from __future__ import annotations

import ast
import inspect
import io
import re
import tokenize
from dataclasses import fields
from pathlib import Path

import pytest

from triskele.errors import ConfigurationError
from triskele.limits import Limits
from triskele_server.config import load_party
from triskele_server.limits import ServerLimits
from triskele_server.provision import PortPlan, provision

PAGE = Path(__file__).parents[2] / "docs" / "limits.md"


def _docstrings(kind: type) -> dict[str, str]:
    """The text below each field."""
    (body,) = ast.parse(inspect.getsource(kind)).body
    assert isinstance(body, ast.ClassDef)
    found = {}
    for field, text in zip(body.body, body.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
            found[ast.unparse(field.target)] = inspect.cleandoc(str(text.value.value)).replace("\n", " ")
    return found


def _comments(kind: type) -> dict[str, str]:
    """The comment behind each field."""
    source = inspect.getsource(kind)
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    by_line = {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}
    lines = source.splitlines()
    return {lines[line - 1].split(":")[0].strip(): text for line, text in by_line.items()}


def _default(name: str, value: float) -> str:
    if "bytes" in name:
        for power, unit in ((30, "GiB"), (20, "MiB"), (10, "KiB")):
            if value % (1 << power) == 0:
                return f"{int(value) >> power} {unit}"
    return f"{value:g}" if isinstance(value, float) else str(value)


def rows(kind: type, texts: dict[str, str]) -> list[str]:
    return [f"| `{f.name}` | {_default(f.name, f.default)} | {texts[f.name]} |" for f in fields(kind)]


def _all_rows() -> list[str]:
    return [*rows(ServerLimits, _docstrings(ServerLimits)), *rows(Limits, _comments(Limits))]


def test_page_lists_every_limit_as_the_code_has_it() -> None:
    shown = [line for line in PAGE.read_text("utf-8").splitlines() if re.match(r"\| `[a-z_]+` \| [0-9]", line)]
    assert shown == _all_rows()


def test_every_server_limit_is_set_in_the_configuration_file_and_a_wrong_one_is_named(tmp_path: Path) -> None:
    made = provision(tmp_path / "f", participants=1, ports=PortPlan.from_base(7000))
    path, text = made.parties[0], made.parties[0].read_text("utf-8")
    table = "\n".join(f"{field.name} = {field.default + 1}" for field in fields(ServerLimits))
    path.write_text(f"{text}\n[limits]\n{table}\n", "utf-8")
    loaded = load_party(path).limits
    assert all(getattr(loaded, field.name) == field.default + 1 for field in fields(ServerLimits))
    for wrong in ("calls_per_minute = 0", "upload_seconds = inf", "no_such_limit = 1", "connections = 'many'"):
        path.write_text(f"{text}\n[limits]\n{wrong}\n", "utf-8")
        with pytest.raises(ConfigurationError, match=rf"limits\.{wrong.split()[0]}"):
            load_party(path)


if __name__ == "__main__":
    print("\n".join(_all_rows()))
