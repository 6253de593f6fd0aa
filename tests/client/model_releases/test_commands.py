"""`triskele model …`: the way of a model from its publisher to a device, and what the exit codes say."""

import json
import subprocess
import sys

import numpy as np
import pytest

from triskele.array_files import read_arrays
from triskele.cli import main

from .rounds import Parties, certificate


@pytest.fixture
def run(capsys):
    def run_command(*arguments, code=0):
        assert main(["model", *map(str, arguments)]) == code
        shown = capsys.readouterr()
        assert bool(shown.err) == bool(code), shown.err
        return shown.err if code else shown.out

    return run_command


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """parties/, log/ with four rounds, m0.npz to m2.npz."""
    monkeypatch.chdir(tmp_path)
    parties = Parties(tmp_path / "parties")
    parties.log(tmp_path / "log", [certificate(n) for n in (1, 2, 3, 4)])
    for version in range(3):
        np.savez(tmp_path / f"m{version}.npz", w=np.full(3, float(version)))
    return tmp_path


def test_the_way_of_a_model(folder, run):
    assert "awaits" not in run("init", "models", "--keys", "keys", "--parties", "parties")
    run("publish", "models", "m0.npz", "--keys", "keys", "--version", "0")
    said = run(
        *("publish", "models", "m1.npz", "--keys", "keys", "--version", "1"),
        *("--certificate", "log/entry-0", "--certificate", "log/entry-1"),
    )
    assert "rounds 1, 2" in said
    (folder / "models" / "trust").rename(folder / "trust")
    said = run("pull", "--from", "models", "--trust", "trust", "--output", "model.npz")
    assert "version 1 (the newest) written to model.npz; 2 certificates checked" in said
    assert read_arrays(folder / "model.npz")["w"][0] == 1.0
    assert "in model.npz already" in run("pull", "--from", "models", "--trust", "trust", "--output", "model.npz")
    assert "version 0 (the newest is 1) verified" in run("verify", "m0.npz", "--trust", "trust")
    assert "none of the 2 versions" in run("verify", "m2.npz", "--trust", "trust", code=1)
    assert "version 1" in run("show", "models")


def test_every_report_is_had_as_json(folder, run):
    made = json.loads(run("init", "models", "--keys", "keys", "--parties", "parties", "--days", "2", "--json"))
    assert made["releases"] == made["awaited"] == []
    assert set(made["keys"]) == set(made["expires"]) == {"root", "targets", "snapshot", "timestamp"}
    run("publish", "models", "m0.npz", "--keys", "keys", "--version", "0", "--json")
    done = ("publish", "models", "m1.npz", "--keys", "keys", "--version", "1", "--certificate", "log/entry-2", "--json")
    release = json.loads(run(*done))["releases"][1]
    assert (release["version"], release["parent"]) == (
        1,
        json.loads(run("show", "models", "--json"))["releases"][0]["sha256"],
    )
    assert release["rounds"][0]["number"] == 3
    pulled = json.loads(run("pull", "--from", "models", "--trust", "models/trust", "--output", "m.npz", "--json"))
    assert pulled == {
        **release,
        "newest": 1,
        "certificates": 1,
        "valid_until": pulled["valid_until"],
        "output": "m.npz",
        "fetched": True,
    }
    verified = json.loads(run("verify", "m.npz", "--trust", "models/trust", "--from", "models", "--json"))
    assert verified["version"] == 1
    assert set(json.loads(run("key", "bob", "--role", "root", "--name", "bob", "--json"))) == {"private", "public"}
    assert json.loads(run("rotate", "models", "--keys", "keys", "--json"))["awaited"] == []
    assert json.loads(run("refresh", "models", "--keys", "keys", "--json"))["awaited"] == []


def test_two_people_sign(folder, run):
    run("key", "bob", "--role", "targets", "--name", "bob")
    run("key", "alice", "--role", "targets", "--name", "alice")
    (folder / "alice" / "targets-bob.pub").write_bytes((folder / "bob" / "targets-bob.pub").read_bytes())
    said = run("init", "models", "--keys", "alice", "--parties", "parties", "--targets-threshold", "2")
    assert "awaits 1 more signature of targets" in said
    run("sign", "models", "--keys", "bob")
    assert "awaits" not in run("sign", "models", "--keys", "alice")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("publish", "models", "m1.npz", "--keys", "keys", "--version", "2"), 2, "would leave a gap"),
        (("publish", "models", "m1.npz", "--keys", "keys", "--version", "0"), 2, "exists"),
        (("publish", "models", "m1.npz", "--keys", "keys", "--version", "1"), 1, "rounds that it came from"),
        (("publish", "models", "no.npz", "--keys", "keys", "--version", "1"), 2, "no.npz: cannot be read"),
        (("sign", "models", "--keys", "keys"), 2, "nothing awaits"),
        (("sign", "models", "--keys", "nowhere"), 2, "triskele model key"),
        (("refresh", "nowhere", "--keys", "keys"), 2, "triskele model init"),
        (("pull", "--from", "http://models.example", "--trust", "models/trust", "--output", "a.npz"), 2, "https"),
        (("pull", "--from", "https://127.0.0.1:1", "--trust", "models/trust", "--output", "a.npz"), 4, "reached"),
        (("pull", "--from", "models", "--trust", "nowhere", "--output", "a.npz"), 2, "root.json"),
        (("verify", "no.npz", "--trust", "models/trust"), 2, "cannot be read"),
        (
            ("pull", "--from", "models", "--trust", "models/trust", "--output", "a.npz", "--version", "7"),
            2,
            "no version 7",
        ),
    ],
)
def test_exit_codes_say_whose_doing_it_is(folder, run, arguments, code, words):
    run("init", "models", "--keys", "keys", "--parties", "parties")
    run("publish", "models", "m0.npz", "--keys", "keys", "--version", "0")
    assert words in run(*arguments, code=code)


def test_help_does_not_import_tuf_and_a_missing_one_is_told_how_to_install():
    program = """
import sys
from triskele.cli import main
assert main(["--help"]) == 0 and main(["model", "--help"]) == 0 and main(["model", "pull", "--help"]) == 0
assert not [name for name in sys.modules if name.split(".")[0] in ("tuf", "urllib3")]
sys.modules["tuf"] = None
sys.exit(main(["model", "pull", "--from", "a", "--trust", "b", "--output", "c.npz"]))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2, done.stderr
    assert "pip install 'triskele[models]'" in done.stderr
