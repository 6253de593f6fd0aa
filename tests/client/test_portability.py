"""The client runs on Windows too: nothing in its source needs POSIX, by reading it and by taking POSIX away."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import triskele

from .certificates import write_participant

SOURCE = Path(triskele.__file__).parent
FILES = sorted(SOURCE.rglob("*.py"))

# Modules and names that Windows' Python does not have, or that do something else there.
MODULES = {"crypt", "fcntl", "grp", "posix", "pty", "pwd", "readline", "resource", "syslog", "termios", "tty"}
OS_NAMES = {
    *("fork", "forkpty", "register_at_fork", "wait", "wait3", "wait4", "waitid", "posix_spawn", "killpg", "kill"),
    *("fchmod", "fchown", "chown", "lchown", "chmod", "chroot", "umask", "mkfifo", "mknod", "link", "symlink"),
    *("getuid", "geteuid", "getgid", "getegid", "getgroups", "getpgid", "getsid", "setsid", "setuid", "setgid"),
    *("getloadavg", "nice", "openpty", "pipe2", "sched_getaffinity", "sched_setaffinity", "sendfile", "sync"),
    *("fdatasync", "fpathconf", "pathconf", "pread", "pwrite", "statvfs", "sysconf", "uname", "ttyname"),
    *(
        "getrandom",
        "memfd_create",
        "openat",
        "rename",
        "set_blocking",
    ),  # rename fails on Windows where replace does not
}
SIGNALS = {"SIGKILL", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGCHLD", "SIGALRM", "alarm", "setitimer", "pause"}
SOCKETS = {"AF_UNIX", "SO_REUSEPORT", "socketpair", "sendmsg", "recvmsg"}
FORBIDDEN = {
    "os": OS_NAMES,
    "signal": SIGNALS,
    "socket": SOCKETS,
    "asyncio": {"add_signal_handler", "open_unix_connection"},
}
POSIX_PATHS = ("/tmp", "/dev/", "/proc/", "/etc/", "/var/", "~/")  # noqa: S108  what is looked for
FORBIDDEN_METHODS = {"chmod", "hardlink_to", "symlink_to", "owner", "group", "is_mount", "rename", "add_signal_handler"}


def problems(tree: ast.AST) -> list[str]:
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [f"{node.lineno}: import {n.name}" for n in node.names if n.name.split(".")[0] in MODULES]
            found += [f"{node.lineno}: import {n.name}" for n in node.names if n.name == "multiprocessing"]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            top = (node.module or "").split(".")[0]
            if top in MODULES or top == "multiprocessing":
                found.append(f"{node.lineno}: from {node.module}")
            bad = {
                n.name for n in node.names if n.name in FORBIDDEN.get(top, ()) or (top == "os" and n.name[:2] == "O_")
            }
            found += [f"{node.lineno}: {top}.{name}" for name in sorted(bad)]
        elif isinstance(node, ast.Attribute):
            base = node.value.id if isinstance(node.value, ast.Name) else None
            if node.attr in FORBIDDEN.get(base or "", ()) or (base == "os" and node.attr.startswith("O_")):
                found.append(f"{node.lineno}: {base}.{node.attr}")
        elif isinstance(node, ast.Call):
            found += called(node)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith(POSIX_PATHS):
            found.append(f"{node.lineno}: path {node.value!r}")
    return found


def called(node: ast.Call) -> list[str]:
    """Text files without an encoding (Windows would take its code page), and methods that are not there."""
    function = node.func
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    keywords = {keyword.arg for keyword in node.keywords}
    found = []
    if isinstance(function, ast.Attribute) and name in FORBIDDEN_METHODS:
        found.append(f"{node.lineno}: .{name}()")
    if name in ("read_text", "write_text") and "encoding" not in keywords and not (name == "read_text" and node.args):
        found.append(f"{node.lineno}: .{name}() without encoding")
    if name == "write_text" and "newline" not in keywords:
        found.append(f"{node.lineno}: .write_text() without newline")
    if name == "open" and "encoding" not in keywords:
        modes = [a.value for a in [*node.args, *(k.value for k in node.keywords)] if isinstance(a, ast.Constant)]
        writes_members = any(isinstance(m, str) and m == "w" for m in modes) and "force_zip64" in keywords
        if not writes_members and not any(isinstance(m, str) and "b" in m for m in modes):
            found.append(f"{node.lineno}: open() as text without encoding")
    if any(k.arg in ("preexec_fn", "start_new_session", "process_group") for k in node.keywords):
        found.append(f"{node.lineno}: a child made the POSIX way")
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.relative_to(SOURCE).as_posix())
def test_source_uses_nothing_that_windows_does_not_have(file):
    assert problems(ast.parse(file.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    "line",
    [
        "import fcntl",
        "from resource import getrlimit",
        "import multiprocessing",
        "import os; os.fork()",
        "import os; os.open('a', os.O_RDONLY)",
        "from os import O_CLOEXEC",
        "import os; os.fchmod(3, 0o600)",
        "import signal; signal.SIGKILL",
        "import socket; socket.AF_UNIX",
        "open('a')",
        "open('a', 'w')",
        "path.read_text()",
        "path.write_text('a', encoding='utf-8')",
        "path.chmod(0o600)",
        "path.rename(other)",
        "directory = '/tmp/updates'",
        "subprocess.run(command, preexec_fn=f)",
    ],
)
def test_the_check_finds(line):
    assert problems(ast.parse(line))


def test_names_of_the_source_files_differ_in_more_than_their_case():
    reserved = {"aux", "con", "nul", "prn", *(f"{d}{i}" for d in ("com", "lpt") for i in range(1, 10))}
    names = [path.relative_to(SOURCE).as_posix().lower() for path in FILES]
    assert len(set(names)) == len(names)
    assert not {path.stem.lower() for path in FILES} & reserved


def test_every_module_but_those_of_frameworks_imports_without_posix_names():
    """Dependencies are imported first: they look after themselves. Then POSIX is taken away, then the client comes."""
    frameworks = {"flower", "nvflare", "torch", "__main__"}
    modules = [".".join(("triskele", *p.relative_to(SOURCE).with_suffix("").parts)) for p in FILES]
    wanted = [m.removesuffix(".__init__") for m in modules if not frameworks & set(m.split("."))]
    assert "triskele.upload" in wanted
    program = f"""
import importlib, os, signal, socket, sys
wanted = {wanted!r}
for name in wanted:
    importlib.import_module(name)
for name in [n for n in sys.modules if n.split(".")[0] == "triskele"]:
    del sys.modules[name]
for name in {sorted(OS_NAMES)!r} + [n for n in dir(os) if n.startswith("O_")]:
    if hasattr(os, name):
        delattr(os, name)
for module, names in ((signal, {sorted(SIGNALS)!r}), (socket, {sorted(SOCKETS)!r})):
    for name in names:
        if hasattr(module, name):
            delattr(module, name)
for name in {sorted(MODULES)!r}:
    sys.modules[name] = None
sys.platform = "win32"
for name in wanted:
    importlib.import_module(name)
import numpy as np
from triskele.encoding import encode
from triskele.keystream import KeyStream
assert len(encode(np.ones(10), clip_norm=4.0, rounding=KeyStream(bytes(16)))) == 10
print("imported", len(wanted))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["imported", str(len(wanted))]


def test_configuration_with_windows_newlines_and_spaces_in_its_path_is_read(federation, authority, tmp_path):
    folder = tmp_path / "Program Files é"
    folder.mkdir()
    config = write_participant(folder / "alice", authority, "alice", federation.address)
    text = config.read_bytes().replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
    config.write_bytes(text)
    federation.coordinator.show(1, "OPEN")
    with triskele.Participant.from_config(config) as me:
        assert [view.name for view in me.tasks()] == ["faces"]
