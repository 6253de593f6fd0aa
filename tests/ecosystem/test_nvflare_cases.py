"""What passes TriskeleFilter and TriskeleAggregator, case by case; the cases run where NVFLARE is (.venv-nvflare)."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv-nvflare" / "bin" / "python"
CASES = Path(__file__).with_name("nvflare_cases.py")
CASE_NAMES = [n.name for n in ast.parse(CASES.read_text()).body if getattr(n, "name", "").startswith("case_")]


@pytest.fixture(scope="module")
def cases() -> dict[str, str | None]:
    done = subprocess.run([str(PYTHON), str(CASES)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", CASE_NAMES)
def test_filter_and_aggregator(cases: dict[str, str | None], name: str) -> None:
    assert cases[name] is None, cases[name]


def test_without_nvflare_the_error_names_the_extra() -> None:
    code = "import sys; sys.modules['nvflare'] = None; import triskele.nvflare"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1].startswith("triskele.errors.ConfigurationError")
    assert "pip install 'triskele[nvflare]'" in done.stderr
