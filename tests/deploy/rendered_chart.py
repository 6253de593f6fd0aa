"""Rendering the chart with its own sample values, and reading what comes out."""

from __future__ import annotations

import copy
import functools
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parent.parent.parent
HELM_FOLDER = ROOT / "deploy" / "helm"
CHART = HELM_FOLDER / "triskele"
MEMBERS = ("coordinator", "party-0", "party-1", "party-2")
FEDERATIONS = ("separate-clusters", "single-cluster")

Manifest = dict[str, Any]


def helm(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run helm; the caller looks at the return code."""
    binary = Path(sys.executable).parent / "helm"
    found = str(binary) if binary.exists() else shutil.which("helm")
    if found is None:
        pytest.fail("no helm binary: run `make setup`")
    environment = {"PATH": os.environ["PATH"], "HOME": "/nonexistent"}
    return subprocess.run([found, *arguments], capture_output=True, text=True, check=False, env=environment)


def values_of(federation: str, member: str) -> list[str]:
    """The arguments that a member of a sample federation is installed with."""
    if federation == "separate-clusters":
        names = ("values-federation.yaml", f"values-{member}.yaml")
        return [argument for name in names for argument in ("--values", str(HELM_FOLDER / name))]
    role, _, index = member.partition("-")
    arguments = ["--values", str(HELM_FOLDER / "values-single-cluster.yaml"), "--set", f"role={role}"]
    return [*arguments, "--set", f"party.index={index}"] if index else arguments


def template(member: str, *arguments: str, chart: Path = CHART) -> subprocess.CompletedProcess[str]:
    """`helm template` of a release in the namespace of its own name."""
    name = f"triskele-{member}"
    return helm("template", name, str(chart), "--namespace", name, *arguments)


@functools.cache
def rendered_text(federation: str, member: str, *more: str) -> str:
    """What `helm template` prints; fails the test if it does not."""
    done = template(member, *values_of(federation, member), *more)
    assert done.returncode == 0, done.stderr
    return done.stdout


def rendered(federation: str, member: str, *more: str) -> list[Manifest]:
    """The manifests of a member, each time anew."""
    return copy.deepcopy(_parsed(rendered_text(federation, member, *more)))


@functools.cache
def _parsed(text: str) -> list[Manifest]:
    return [m for m in yaml.safe_load_all(text) if m]


def of_kind(manifests: Sequence[Manifest], *kinds: str) -> list[Manifest]:
    return [m for m in manifests if m["kind"] in kinds]


def pod_specs(manifests: Sequence[Manifest]) -> Iterator[Manifest]:
    """Specs of every pod: workloads and helm's test."""
    for manifest in manifests:
        if manifest["kind"] == "Pod":
            yield manifest["spec"]
        elif "template" in manifest["spec"] if "spec" in manifest else False:
            yield manifest["spec"]["template"]["spec"]


@functools.cache
def check_script() -> ModuleType:
    """deploy/helm/check.py as a module."""
    spec = importlib.util.spec_from_file_location("helm_check", HELM_FOLDER / "check.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["helm_check"] = module
    spec.loader.exec_module(module)
    return module
