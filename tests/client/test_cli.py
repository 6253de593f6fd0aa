"""The command line: results on standard output, one line of error on standard error, documented exit codes."""

import io
import json
import subprocess
import sys
import threading
from importlib.metadata import EntryPoint

import numpy as np
import pytest
import typer
from rich.console import Console

from triskele import command_extras
from triskele.cli import main
from triskele.ids import PartyIndex
from triskele.progress_display import UploadBars, rounds_table, show_live
from triskele.transparency.logged_certificate import LoggedCertificate
from triskele.upload import UploadProgress
from triskele.views import Blame, RoundView
from triskele_proto.v1 import types_pb2

from .certificates import write_participant
from .transparency.rounds import party_keys


@pytest.fixture
def config(federation, authority, tmp_path):
    return str(write_participant(tmp_path / "alice", authority, "alice", federation.address))


@pytest.fixture
def update(tmp_path):
    path = tmp_path / "update.npz"
    np.savez(path, w=np.linspace(-1, 1, 1000, dtype=np.float32) / 40, b=np.zeros(500))
    return str(path)


class EndWhenUploaded(threading.Thread):
    """Ends round 1 by `end` as soon as all three parties hold an upload."""

    def __init__(self, federation, end) -> None:
        super().__init__()
        self.federation = federation
        self.end = end
        self.over = threading.Event()

    def run(self) -> None:
        while not self.over.wait(0.02):
            uploads = [list(party.uploads.values()) for party in self.federation.parties]
            if all(len(one) == 1 and one[0].complete for one in uploads):
                self.end()
                return

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        self.join()


def release(federation):
    federation.coordinator.release(1, federation.sum_of_uploads(), 1, decisions_public=True, accepted_slots=[0])


def test_progress_is_shown_on_a_terminal():
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    with UploadBars(console, shown=True) as bars:
        bars.update(UploadProgress(PartyIndex(0), 512, 1024))
        bars.update(UploadProgress(PartyIndex(1), 0, 0, complete=True))
    shown = console.file.getvalue()
    assert "0.5/1.0 kB" in shown
    assert "party 1" in shown


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_submit_writes_the_aggregate(*, federation, config, update, tmp_path, capsys, suffix):
    federation.coordinator.show(1, "OPEN")
    output = tmp_path / f"result{suffix}"
    with EndWhenUploaded(federation, lambda: release(federation)):
        code = main(["submit", "--config", config, "--task", "faces", update, "--output", str(output)])
    captured = capsys.readouterr()
    assert code == 0
    assert "round 1 RELEASED: this update was accepted" in captured.out
    if suffix == ".npz":
        with np.load(output) as result, np.load(update) as sent:
            assert set(result) == {"w", "b"}
            assert result["w"].dtype == np.float32
            assert np.abs(result["w"] - sent["w"]).max() < 4.0 * 2.0**-20


def test_submit_writes_the_certificate_with_its_place_in_the_log(federation, config, update, tmp_path):
    federation.coordinator.show(1, "OPEN")
    folder = tmp_path / "rounds" / "1"
    with EndWhenUploaded(federation, lambda: release(federation)):
        assert main(["submit", "--config", config, "--task", "faces", update, "--certificate", str(folder)]) == 0
    kept = LoggedCertificate.read(folder / "certificate.json", folder / "proof.json")
    assert kept.verified(party_keys()).round == 1


def test_submit_prints_json(federation, config, update, capsys):
    federation.coordinator.show(1, "OPEN")
    with EndWhenUploaded(federation, lambda: release(federation)):
        code = main(["submit", "--config", config, "--task", "faces", "--round", "1", "--json", update])
    captured = capsys.readouterr()
    assert code == 0
    assert captured.err == ""
    content = json.loads(captured.out)
    assert (content["round"], content["state"], content["accepted"], content["slot"]) == (1, "RELEASED", True, 0)
    assert content["task"] == federation.spec.digest.hex()
    assert content["weight_total"] == 1


def test_failed_round_is_exit_code_3(federation, config, update, capsys):
    federation.coordinator.show(1, "OPEN")
    blame = types_pb2.Blame(reason="coin_mismatch", who="party:2")
    with EndWhenUploaded(federation, lambda: federation.coordinator.show(1, "FAILED", blame=blame)):
        code = main(["submit", "--config", config, "--task", "faces", "--json", update])
    captured = capsys.readouterr()
    assert code == 3
    assert captured.err == "triskele: round ended: coin_mismatch (party:2)\n"
    assert captured.out == ""


def one_line(capsys) -> str:
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("triskele: ")
    assert captured.err.count("\n") == 1
    return captured.err


def test_unavailable_is_exit_code_4(federation, config, capsys, monkeypatch):
    federation.stop_coordinator()
    # the default policy would be patient for more than a minute
    monkeypatch.setattr("triskele.connection.RetryPolicy.call", lambda self, action: action())
    assert main(["rounds", "--config", config, "--task", "faces"]) == 4
    assert "coordinator" in one_line(capsys)


def test_another_ones_fault_is_exit_code_1(federation, config, capsys):
    federation.coordinator.show(1, "OPEN")
    federation.coordinator.rounds[1].state = "DREAMING"
    assert main(["rounds", "--config", config, "--task", "faces"]) == 1
    assert "DREAMING" in one_line(capsys)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["submit", "UPDATE", "--config", "CONFIG", "--task", "faces", "--weight", "3"], "weight"),
        (["submit", "nothing.npz", "--config", "CONFIG", "--task", "faces"], "nothing.npz"),
        (["submit", "UPDATE", "--config", "CONFIG", "--task", "faces", "--output", "a.txt"], "a.txt"),
        (["submit", "UPDATE", "--config", "CONFIG", "--task", "faces", "--round", "7"], "no round 7"),
        (["submit", "UPDATE", "--config", "CONFIG", "--task", "voices"], "voices"),
        (["submit", "UPDATE", "--config", "none.toml", "--task", "faces"], "none.toml"),
        (["submit", "UPDATE", "--task", "faces"], "--config"),
        (["submit", "UPDATE", "--config", "CONFIG", "--task", "faces", "--round", "one"], "--round"),
        (["submit", "--surprise"], "--surprise"),
    ],
)
def test_wrong_use_is_exit_code_2(*, federation, config, update, capsys, arguments, named):
    federation.coordinator.show(1, "OPEN")
    places = {"CONFIG": config, "UPDATE": update}
    assert main([places.get(argument, argument) for argument in arguments]) == 2
    assert named in one_line(capsys)


def test_watch_prints_one_json_line_per_change(federation, config, capsys):
    federation.coordinator.show(1, "FAILED", blame=types_pb2.Blame(reason="r", who="party:0", detail="d"))
    federation.coordinator.show(2, "RELEASED", openings=["valid[3]"], participants=["alice"])
    federation.coordinator.finish()
    assert main(["watch", "--config", config, "--task", "faces", "--json"]) == 0
    first, second = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert first["blame"] == {"reason": "r", "who": "party:0", "detail": "d"}
    assert (second["round"], second["openings"], second["participants"]) == (2, ["valid[3]"], ["alice"])


def test_watch_prints_one_line_per_change_for_people(federation, config, capsys):
    federation.coordinator.show(1, "FAILED", blame=types_pb2.Blame(reason="[red]r", who="party:0"), enrolled=3)
    federation.coordinator.finish()
    assert main(["watch", "--config", config, "--task", "faces"]) == 0
    assert "round 1 FAILED    enrolled 3, uploaded 0 of 2, [red]r (party:0)" in capsys.readouterr().out


def test_watch_keeps_a_table_on_a_terminal():
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    show_live(console, "faces", [RoundView(bytes(32), 1, "OPEN", uploaded=1), RoundView(bytes(32), 1, "SEALED")])
    shown = console.file.getvalue()
    assert "Rounds of faces" in shown
    assert shown.index("OPEN") < shown.index("SEALED")


def test_a_table_of_rounds_cuts_nothing_on_80_columns():
    console = Console(file=io.StringIO(), width=80)
    blame = Blame("party_fault", "party:1", "the digest of the input set differs")
    console.print(rounds_table("faces", [RoundView(bytes(32), 112, "FAILED", uploaded=20, quorum=20, blame=blame)]))
    shown = console.file.getvalue()
    assert "enrolled  uploaded  quorum  accepted  invalid  reason" in shown
    assert " ".join(shown.split()).endswith("party_fault (party:1): the digest of the input set differs")


def test_rounds_lists_what_was_opened(federation, config, capsys):
    federation.coordinator.show(1, "EXPIRED")
    federation.coordinator.show(2, "OPEN", enrolled=1)
    assert main(["rounds", "--config", config, "--task", "faces", "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["task"] == "faces"
    assert [(view["round"], view["state"]) for view in content["rounds"]] == [(1, "EXPIRED"), (2, "OPEN")]
    assert main(["rounds", "--config", config, "--task", "faces"]) == 0
    assert "EXPIRED" in capsys.readouterr().out


def extra_commands() -> typer.Typer:
    app = typer.Typer()

    @app.command()
    def hello(name: str) -> None:
        print(f"hello {name}")

    @app.command()
    def rounds() -> None:
        print("not the client's")

    group = typer.Typer()

    @group.command()
    def show() -> None:
        raise typer.Exit(7)

    app.add_typer(group, name="task")
    return app


def use_extras(monkeypatch, *values):
    points = [EntryPoint(f"extra{number}", value, command_extras.GROUP) for number, value in enumerate(values)]
    monkeypatch.setattr(command_extras, "entry_points", lambda group: points if group == command_extras.GROUP else [])


def test_commands_of_an_extra_join_in(monkeypatch, capsys):
    use_extras(monkeypatch, f"{__name__}:extra_commands")
    assert main(["hello", "world"]) == 0
    assert capsys.readouterr().out == "hello world\n"
    assert main(["task", "show"]) == 7
    assert main(["--help"]) == 0
    listed = capsys.readouterr().out
    assert "hello" in listed
    assert "submit" in listed


def test_an_extra_cannot_replace_a_command_of_the_client(monkeypatch, capsys):
    use_extras(monkeypatch, f"{__name__}:extra_commands")
    assert main(["rounds"]) == 2
    assert "--config" in one_line(capsys)


@pytest.mark.parametrize("value", ["not_installed_anywhere:commands", f"{__name__}:no_such_name", f"{__name__}:pytest"])
def test_extra_that_does_not_load_breaks_nothing_and_names_the_remedy(monkeypatch, capsys, value):
    use_extras(monkeypatch, value, f"{__name__}:extra_commands")
    assert main(["hello", "world"]) == 0
    assert capsys.readouterr().out == "hello world\n"
    assert main(["party"]) == 2
    assert "pip install 'triskele[extra0]'" in one_line(capsys)
    assert main(["--help"]) == 0


def test_unknown_command_without_broken_extras_is_wrong_use(monkeypatch, capsys):
    use_extras(monkeypatch)
    assert main(["party"]) == 2
    assert "party" in one_line(capsys)


@pytest.mark.parametrize(
    "program",
    [
        "from triskele import Participant",
        "import triskele.cli; triskele.cli.main(['rounds', '--config', 'none.toml', '--task', 'x'])",
        "import triskele.cli; triskele.cli.main(['submit', '--help'])",
    ],
)
def test_client_never_imports_the_server_or_its_libraries(program):
    check = (
        f"{program}\nimport sys\n"
        "forbidden = {'torch', 'crypten', 'numba', 'triskele_server', 'sqlalchemy'} & set(sys.modules)\n"
        "sys.exit(f'imported: {forbidden}' if forbidden else 0)"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
