"""What `pip install` gives: the packages with their types, a client without torch, extras that are named."""

from __future__ import annotations

import json
import subprocess
import sys
from email.parser import Parser
from zipfile import ZipFile

import pytest

from .conftest import CHECKOUT, files_in

USER_SCRIPT = """
from triskele import Participant, SubmittedUpdate

async def main(update: dict[str, object]) -> None:
    async with Participant.from_config("participant.toml") as me:
        async for round in me.async_rounds("faces"):
            submitted: SubmittedUpdate = await round.async_submit(update, weight=3)
            reveal_type(submitted.accepted)
            reveal_type(round.number)
    me.rounds(3)
"""


def test_wheel_holds_the_three_packages_with_their_types_and_the_licence(wheel):
    names = files_in(wheel)
    packages = {name.split("/")[0] for name in names if ".dist-info" not in name}
    assert packages == {"triskele", "triskele_server", "triskele_proto"}
    assert {f"{package}/py.typed" for package in packages} <= names
    assert {f"triskele_proto/v1/{m}_pb2.pyi" for m in ("coordinator", "party", "control", "peer", "types")} <= names
    assert any(name.endswith("dist-info/licenses/LICENSE") for name in names)
    assert not [name for name in names if name.endswith((".pyc", ".nbi", ".nbc"))]
    assert not [name for name in names if any(p.startswith(("test", "conftest")) for p in name.split("/"))]


def test_wheel_holds_every_module_of_the_sources(wheel):
    roots = [CHECKOUT / part for part in ("client", "server", "proto")]
    sources = {p.relative_to(root).as_posix() for root in roots for p in root.glob("triskele*/**/*.py")}
    assert {name for name in files_in(wheel) if name.endswith(".py")} == sources


def test_metadata_names_pythons_and_extras_and_the_client_needs_no_framework(wheel):
    with ZipFile(wheel) as archive:
        (name,) = [n for n in archive.namelist() if n.endswith("dist-info/METADATA")]
        metadata = Parser().parsestr(archive.read(name).decode())
    pythons = {c.rsplit(" ", 1)[1] for c in metadata.get_all("Classifier") if c.startswith("Programming Language")}
    assert {"3.11", "3.12", "3.13"} <= pythons
    assert {"server", "demo", "torch", "sklearn"} <= set(metadata.get_all("Provides-Extra"))
    needed = [r for r in metadata.get_all("Requires-Dist") if "extra ==" not in r]
    assert not [r for r in needed if r.lower().startswith(("torch", "crypten", "numba", "flwr", "nvflare"))]
    documented = (CHECKOUT / "docs" / "install.md").read_text(encoding="utf-8")
    missing = [e for e in metadata.get_all("Provides-Extra") if f"`{e}`" not in documented]
    assert missing == []


@pytest.mark.parametrize("beside", ["installation", "flower", "nvflare"])
def test_client_imports_from_the_wheel_and_brings_no_framework_with_it(request, beside, tmp_path):
    installation = request.getfixturevalue(beside)
    script = (
        "import json, sys, triskele, triskele.cli; "
        "print(json.dumps([triskele.__file__, sorted({m.split('.')[0] for m in sys.modules})]))"
    )
    place, modules = json.loads(installation.run(f"python -c {json.dumps(script)}", tmp_path))
    assert place.startswith(str(installation.root))
    assert not {"torch", "crypten", "numba", "triskele_server", "flwr", "nvflare", "sklearn"} & set(modules)
    help_text = installation.run("triskele --help", tmp_path)
    assert "submit" in help_text
    assert "watch" in help_text


@pytest.fixture(scope="module")
def typed(installation, tmp_path_factory):
    """What mypy says of a user's script."""
    folder = tmp_path_factory.mktemp("typed")
    (folder / "loop.py").write_text(USER_SCRIPT, encoding="utf-8", newline="\n")
    command = [sys.executable, "-m", "mypy", "--strict", "--python-executable", str(installation.python), "loop.py"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=200, check=False)
    return done.stdout + done.stderr


def test_types_of_the_wheel_reach_a_users_type_checker(typed):
    assert 'Revealed type is "bool | None"' in typed
    assert "RoundNumber" in typed
    assert 'Argument 1 to "rounds" of "Participant" has incompatible type "int"' in typed
    assert "missing library stubs or py.typed" not in typed
    assert "Found 1 error" in typed
