"""Coverage-guided fuzzing of every target: `python -m tests.fuzz.atheris_run [--seconds 30] [target ...]`.

Each target runs in a process of its own, for so long; libFuzzer keeps what reaches new code in build/fuzz/<target>. A
finding is an exception that is not ours: its input is kept in build/fuzz/findings, and the status is 1.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

BUILD = Path("build") / "fuzz"
_DONE = re.compile(r"Done (\d+) runs in (\d+) second")


def main() -> int:
    """Run the targets one after another and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=30, help="for each target")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # the child's own option
    parser.add_argument("--scratch", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("targets", nargs="*", help="names of targets; without any, all")
    given, rest = parser.parse_known_args()
    if given.one:
        return _child(given.one, given.scratch, Path(given.targets[0]), rest)
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        names = given.targets or _names(Path(folder))
        for name in names:
            failed += _parent(name, Path(folder), given.seconds)
    print(f"{len(names)} targets, {failed} with findings")
    return 1 if failed else 0


def _names(folder: Path) -> list[str]:
    from .material import Material
    from .targets import targets

    return [target.name for target in targets(Material.write(folder / "names"), folder / "scratch")]


def _parent(name: str, folder: Path, seconds: int) -> bool:
    corpus, findings = BUILD / name, BUILD / "findings"
    for path in (corpus, findings):
        path.mkdir(parents=True, exist_ok=True)
    scratch = folder / name.replace(".", "-")
    prefix = f"-artifact_prefix={findings}/{name}-"
    command = [sys.executable, "-m", "tests.fuzz.atheris_run", "--one", name, "--scratch", str(scratch), str(corpus)]
    options = [f"-max_total_time={seconds}", "-max_len=8192", "-timeout=20", "-rss_limit_mb=3000", prefix]
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=False, errors="replace")
    shutil.rmtree(scratch, ignore_errors=True)
    counted = _DONE.search(done.stderr)
    runs = counted[1] if counted else "?"
    print(f"{name:28} {runs:>10} executions  {'ok' if done.returncode == 0 else 'FINDING'}", flush=True)
    if done.returncode:
        print("\n".join((done.stdout + done.stderr).splitlines()[-40:]))
    return done.returncode != 0


def _child(name: str, scratch: Path, corpus: Path, options: list[str]) -> int:
    import atheris

    with atheris.instrument_imports(include=["triskele", "triskele_server"]):
        from .material import Material
        from .targets import check, targets

    scratch.mkdir()
    found = {t.name: t for t in targets(Material.write(scratch / "federation"), scratch / "files")}
    target = found[name]
    for number, example in enumerate(target.examples):
        (corpus / f"example-{number}").write_bytes(example)
    atheris.Setup([sys.argv[0], str(corpus), *options], lambda data: check(target, bytes(data)) and None)
    atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
