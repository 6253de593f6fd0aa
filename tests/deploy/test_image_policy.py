"""What the Dockerfile promises: pinned, hashed, not root, nothing that compiles or installs in the final stage."""

from __future__ import annotations

import re
import tomllib

import pytest
from dockerfile import DOCKERFILE, ROOT, environment, exec_form, instructions, of
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

LOCKS = {path.name: path for path in DOCKERFILE.parent.glob("*.lock")}
PIN = re.compile(r"^([A-Za-z0-9._-]+)==(\S+) \\$")


def pins(lock: str) -> dict[str, str]:
    """Package → version of a lock; every one must have a hash."""
    text = LOCKS[lock].read_text()
    found = {}
    for block in re.split(r"\n(?=\S)", text.strip()):
        name, *hashes = block.splitlines()
        match = PIN.match(name)
        assert match, name
        assert hashes
        assert all(re.match(r"^    --hash=sha256:[0-9a-f]{64}( \\)?$", line) for line in hashes)
        found[canonicalize_name(match[1])] = match[2]
    return found


def test_the_base_image_is_one_argument_with_an_exact_version() -> None:
    arguments = [i.text for i in instructions() if i.name == "ARG" and not i.stage]
    assert len(arguments) == 1
    assert re.fullmatch(r"PYTHON_IMAGE=[a-z0-9./-]+:3\.\d+\.\d+-slim-[a-z]+(@sha256:[0-9a-f]{64})?", arguments[0])
    assert {text.split(" AS ")[0] for text in of("FROM")} == {"${PYTHON_IMAGE}"}
    assert "latest" not in DOCKERFILE.read_text()


def test_the_process_is_not_root_and_is_the_command_itself() -> None:
    last = instructions()[-8:]
    assert [i.text for i in instructions() if i.name == "USER"] == ["10001:10001"]
    assert not any(i.name in ("RUN", "COPY", "ADD") for i in last[[i.name for i in last].index("USER") :])
    assert exec_form("ENTRYPOINT") == ["/opt/triskele/bin/triskele"]
    assert of("STOPSIGNAL") == ["SIGTERM"]


def test_the_final_stage_installs_nothing_and_gets_the_environment_only() -> None:
    (run,) = of("RUN", "final")
    assert "pip uninstall" in run
    assert not re.search(r"apt-get|apk |curl|wget|gcc|build-essential|pip install", run)
    assert of("COPY", "final") == ["--from=build /opt/triskele /opt/triskele"]
    assert not of("ADD")


def test_every_install_takes_recorded_hashes_and_wheels_only() -> None:
    installs = [c for run in of("RUN", "build") for c in run.split(" && ") if re.search(r"pip .*install", c)]
    assert len(installs) == 3
    for command in installs:
        assert "--no-deps" in command
        assert "--no-index wheel/" in command or {"--require-hashes", "--only-binary"} <= set(command.split())


def test_what_is_written_while_it_runs_goes_to_data_and_temporary_folders() -> None:
    values = environment("final")
    assert all(values[name].startswith("/tmp") for name in ("HOME", "TMPDIR", "NUMBA_CACHE_DIR"))  # noqa: S108 - the image's
    assert values["PYTHONDONTWRITEBYTECODE"] == "1"
    assert values["PATH"].startswith("/opt/triskele/bin:")


def test_labels_name_the_licence_the_version_and_the_revision() -> None:
    labels = of("LABEL")[0]
    for name in ("title", "description", "licenses", "version", "revision"):
        assert f"org.opencontainers.image.{name}=" in labels
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert f"VERSION={project['version']}" in of("ARG", "final")
    assert f'licenses="{project["license"]}"' in labels


def test_the_context_holds_what_is_copied_and_no_more() -> None:
    ignore = (DOCKERFILE.parent / "Dockerfile.dockerignore").read_text().splitlines()
    copied = {name for text in of("COPY", "build") for name in text.split()[:-1]}
    allowed = {line[1:] for line in ignore if line.startswith("!")}
    assert ignore[0] == "*"
    assert {name for name in copied if not name.endswith(".lock")} == allowed - {"deploy/docker/*.lock"}
    for name in copied:
        assert (ROOT / name).exists()


@pytest.mark.parametrize("extra", [None, "server", "otel"])
def test_the_lock_holds_what_the_project_declares(extra: str | None) -> None:
    """Fails after a change of pyproject.toml or constraints.txt until `make lock` has run."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = project["dependencies"] if extra is None else project["optional-dependencies"][extra]
    locked = pins("requirements.lock")
    for line in declared:
        requirement = Requirement(line)
        name = canonicalize_name(requirement.name)
        assert name in locked, f"{name}: run `make lock`"
        assert requirement.specifier.contains(locked[name], prereleases=True), f"{line}: run `make lock`"


def test_the_locks_and_the_constraints_name_the_same_versions() -> None:
    constrained = {
        canonicalize_name(name): version
        for name, _, version in (line.partition("==") for line in (ROOT / "constraints.txt").read_text().splitlines())
        if version
    }
    for lock in LOCKS:
        for name, version in pins(lock).items():
            assert version.removesuffix("+cpu") == constrained.get(name, version), f"{name}: run `make lock`"
    missing = pins("requirements.lock").keys() - constrained.keys() - {"setuptools"}
    assert not missing
    assert pins("requirements.lock")["torch"].endswith("+cpu")
    assert set(pins("crypten.lock")) == {"crypten"}
