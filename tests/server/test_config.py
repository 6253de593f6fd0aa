"""Configuration files: what is wrong is named by file and key, before anything starts."""

from __future__ import annotations

import subprocess
import sys

import pytest

from triskele.errors import ConfigurationError
from triskele_server.config import load_coordinator, load_party, load_task, load_tasks
from triskele_server.provision import provision


@pytest.fixture
def made(tmp_path):
    return provision(tmp_path / "f", participants=1)


def _change(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ("index = 1", "index = 3", "index"),
        ('federation = "demo"', 'federation = "De mo"', "federation"),
        ('listen = "127.0.0.1:7020"', 'listen = "127.0.0.1"', "listen"),
        ('listen = "127.0.0.1:7020"', 'listen = "127.0.0.1:70200"', "listen"),
        ('listen = "127.0.0.1:7020"', "", "listen"),
        ('data = "data"', 'data = "data"\nsurprise = 1', "surprise"),
        ('0 = "127.0.0.1:7013"\n', "", "peers"),
        ('0 = "127.0.0.1:7013"', '1 = "127.0.0.1:7013"', "peers"),
        ("min_accepted = 2", "min_accepted = 1", "policy.min_accepted"),
        ("min_accepted = 2", 'decisions = ["secret"]', "policy.decisions"),
        ('key = "tls.key"', "", "tls.key"),
        ("[tls]", "[tls", "is not TOML"),
    ],
)
def test_party_file_that_is_wrong_is_named_with_its_key(made, old, new, key):
    path = made.parties[1]
    _change(path, old, new)
    with pytest.raises(ConfigurationError) as caught:
        load_party(path)
    assert str(path) in str(caught.value)
    assert key in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ('2 = "127.0.0.1:7030"\n', "", "parties"),
        ("[tls]", '[advertised]\n0 = "a:1"\n\n[tls]', "advertised"),
        ('tasks = "tasks"', "tasks = 3", "tasks"),
    ],
)
def test_coordinator_file_that_is_wrong_is_named_with_its_key(made, old, new, key):
    _change(made.coordinator, old, new)
    with pytest.raises(ConfigurationError) as caught:
        load_coordinator(made.coordinator)
    assert str(made.coordinator) in str(caught.value)
    assert key in str(caught.value)


def test_value_of_a_wrong_setting_is_not_repeated(made):
    _change(made.coordinator, 'data = "data"', 'data = "data"\ndatabase_url = ["postgresql://u:hunter2@db"]')
    with pytest.raises(ConfigurationError) as caught:
        load_coordinator(made.coordinator)
    assert "database_url" in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_paths_are_relative_to_the_file_and_defaults_are_filled_in(made):
    coordinator = load_coordinator(made.coordinator)
    assert coordinator.data == made.coordinator.parent / "data"
    assert coordinator.tls.files.key == made.coordinator.parent / "tls.key"
    assert coordinator.database == f"sqlite:///{made.coordinator.parent / 'data' / 'coordinator.db'}"
    _change(made.coordinator, 'data = "data"', 'data = "/var/t"\ndatabase_url = "postgresql://db"')
    assert str(load_coordinator(made.coordinator).data) == "/var/t"
    assert load_coordinator(made.coordinator).database == "postgresql://db"


def test_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigurationError, match=r"party\.toml: cannot be read"):
        load_party(tmp_path / "party.toml")


TASK = """
name = "face"
dimension = 10
clip_norm = 1
max_participants = 8

[schedule]
rounds = 2
quorum = 3
"""


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("dimension = 10", "dimension = 0", "dimension 0"),
        ("dimension = 10", 'dimension = "ten"', "task.toml"),
        ("dimension = 10", "", "dimension"),
        ("clip_norm = 1", "clip_norm = 1\ncolour = 3", "colour"),
        ("quorum = 3", "quorum = 9", "schedule.quorum"),
        ("quorum = 3", "quorum = 1", "schedule.quorum"),
        ("quorum = 3", "", "schedule.quorum"),
        ("rounds = 2", "rounds = 0", "schedule.rounds"),
        ("rounds = 2", "rounds = 2\ngrace_seconds = -1", "schedule.grace_seconds"),
        ("rounds = 2", "rounds = 2\ndeadline_seconds = inf", "schedule.deadline_seconds"),
    ],
)
def test_task_file_that_is_wrong_is_named_with_its_key(tmp_path, old, new, message):
    path = tmp_path / "task.toml"
    path.write_text(TASK)
    assert load_task(path).schedule.deadline_seconds == 600.0
    _change(path, old, new)
    with pytest.raises(ConfigurationError) as caught:
        load_task(path)
    assert str(path) in str(caught.value)
    assert message in str(caught.value)


def test_two_files_of_one_task_are_refused(tmp_path):
    (tmp_path / "a.toml").write_text(TASK)
    (tmp_path / "b.toml").write_text(TASK.replace("10", "11"))
    with pytest.raises(ConfigurationError, match=r"b\.toml: name"):
        load_tasks(tmp_path)


def test_missing_folder_of_tasks_is_refused(tmp_path):
    with pytest.raises(ConfigurationError, match="does not exist"):
        load_tasks(tmp_path / "tasks")


@pytest.mark.parametrize("module", ["triskele_server.cli", "triskele_server.config", "triskele_server.provision"])
def test_neither_the_command_line_nor_provisioning_loads_torch(module):
    code = f"import sys, {module}; sys.exit(sorted({{'torch', 'crypten', 'numba'}} & set(sys.modules)) or 0)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
