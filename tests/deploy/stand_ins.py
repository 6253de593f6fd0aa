"""Stand for what the commands of docs/operations.md need and this machine has not: a cluster, a container engine.

    python stand_ins.py {kubectl|helm|docker} ARGUMENTS…

What helm and kubectl do without a cluster the real ones do, their options included. What the cluster would add is
compared with what has been created so far (in the file STAND_IN_STATE) and with the rendered manifests: namespaces,
secrets with every key that a pod reads, whose certificate is in them, releases, paths in containers. Exit code 1, with
the reason, for whatever would fail there.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import itertools
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import yaml
from cryptography import x509

STATE = "STAND_IN_STATE"
REAL = "STAND_IN_REAL"  # the folder of the real helm and kubectl
RENDERED = Path("build/rendered")

Manifest = dict[str, Any]


class Refused(Exception):
    """What the cluster, or the engine, would not do."""


@contextlib.contextmanager
def state() -> Iterator[dict[str, Any]]:
    """What there is by now; written back at the end."""
    file = Path(os.environ[STATE])
    found = json.loads(file.read_text()) if file.exists() else {}
    for part in ("namespaces", "secrets", "releases", "images"):
        found.setdefault(part, {})
    yield found
    file.write_text(json.dumps(found))


def real(*command: str, given: str | None = None) -> str:
    """What the real program prints; raises Refused with its words."""
    program = str(Path(os.environ[REAL]) / command[0])
    done = subprocess.run([program, *command[1:]], input=given, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise Refused(done.stderr.strip())
    return done.stdout


def option(arguments: Sequence[str], name: str) -> str:
    """The value of an option, or ""."""
    return next((after for before, after in itertools.pairwise(arguments) if before == name), "")


def without_namespace(arguments: Sequence[str]) -> list[str]:
    """The words of a command, whether `--namespace` stands before or among them."""
    kept, skip = [], False
    for word in arguments:
        if word == "--namespace" or skip:
            skip = not skip
            continue
        kept.append(word)
    return kept


# kubectl


def kubectl(arguments: list[str]) -> None:
    namespace = option(arguments, "--namespace") or "default"
    match without_namespace(arguments):
        case ["create", "secret", *_] if "--dry-run=client" in arguments:
            sys.stdout.write(real("kubectl", *arguments))
        case ["create", "namespace" | "secret", *_]:
            made = json.loads(real("kubectl", *arguments, "--dry-run=client", "--output=json", given=read_input()))
            create(made)
        case ["label", "namespace", name, *labels]:
            with state() as now:
                if name not in now["namespaces"]:
                    raise Refused(f'namespaces "{name}" not found')
                namespaced = json.dumps({"kind": "Namespace", "apiVersion": "v1", "metadata": {"name": name}})
                real("kubectl", "label", "--local", "--filename=-", *labels, given=namespaced)
        case ["apply", *_]:
            real("kubectl", *arguments, "--help")  # the options are read first
            for manifest in yaml.safe_load_all(read_input()):
                create(manifest, replace=True)
        case ["exec", target, "--", *command]:
            real("kubectl", "exec", "--help", "--namespace", namespace)
            in_container(namespace, target, command)
        case words:
            raise Refused(f"the stand-in does not know `kubectl {' '.join(words)}`")


def read_input() -> str:
    return "" if sys.stdin.isatty() else sys.stdin.read()


def create(made: Manifest, *, replace: bool = False) -> None:
    name = made["metadata"]["name"]
    with state() as now:
        if made["kind"] == "Namespace":
            if name in now["namespaces"]:
                raise Refused(f'namespaces "{name}" already exists')
            now["namespaces"][name] = True
            return
        namespace = made["metadata"].get("namespace", "default")
        if namespace not in now["namespaces"]:
            raise Refused(f'namespaces "{namespace}" not found')
        there = now["secrets"].setdefault(namespace, {})
        if (name in there) is not replace:
            raise Refused(f'secrets "{name}" {"already exists" if name in there else "not found"}')
        there[name] = made["data"]
        if not all(made["data"].values()):
            raise Refused(f'secrets "{name}" has an empty key')


def in_container(namespace: str, target: str, command: list[str]) -> None:
    """A command in a member's pod: the pod is rendered, and so are the paths that the command names."""
    kind, _, name = target.partition("/")
    workloads = {"deploy": "Deployment", "statefulset": "StatefulSet"}
    everything = [m for file in RENDERED.glob("*.yaml") for m in yaml.safe_load_all(file.read_text()) if m]
    pods = [
        m["spec"]["template"]["spec"]
        for m in everything
        if (m["kind"], m["metadata"]["name"], m["metadata"]["namespace"]) == (workloads.get(kind), name, namespace)
    ]
    if not pods:
        raise Refused(f'{target} not found in namespace "{namespace}"')
    (container,) = pods[0]["containers"]
    check_triskele(command)
    mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
    maps = {m["metadata"]["name"]: m["data"] for m in everything if m["kind"] == "ConfigMap"}
    volumes = {volume["name"]: volume for volume in pods[0]["volumes"]}
    for path in (PurePosixPath(word) for word in command if word.startswith("/")):
        mount = mounts.get(str(next((p for p in path.parents if str(p) in mounts), "")))
        if mount is None:
            raise Refused(f"{path} is in no volume of {target}: its file system is read-only")
        volume = volumes[mount["name"]]
        if "configMap" in volume and path.name not in maps[volume["configMap"]["name"]]:
            raise Refused(f"{path}: no such file in {target}")


def check_triskele(command: Sequence[str]) -> None:
    """A command of ours, with options that it has."""
    program, *words = command
    if program != "triskele":
        raise Refused(f"{program}: not in the image")
    shown = subprocess.run(
        ["triskele", words[0], "--help"],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"COLUMNS": "200"},
    ).stdout
    unknown = [word for word in words if word.startswith("--") and f" {word} " not in shown]
    if unknown:
        raise Refused(f"triskele {words[0]} has no {unknown}")


# helm


def helm(arguments: list[str]) -> None:
    match arguments:
        case ["install" | "upgrade" as what, name, *more]:
            namespace = option(arguments, "--namespace") or "default"
            release = json.loads(real("helm", "install", name, *more, "--dry-run=client", "--output=json"))
            manifests = [m for m in yaml.safe_load_all(release["manifest"]) if m]
            with state() as now:
                known = f"{namespace}/{name}" in now["releases"]
                if known is not (what == "upgrade"):
                    raise Refused(f"release {name} {'is installed already' if known else 'is not installed'}")
                if namespace not in now["namespaces"]:
                    raise Refused(f'namespaces "{namespace}" not found')
                check_secrets(manifests, now["secrets"].get(namespace, {}))
                tests = [hook["name"] for hook in release["hooks"] if "test" in hook["events"]]
                now["releases"][f"{namespace}/{name}"] = tests
        case ["test", name, *more]:
            real("helm", "test", "--help", *more)
            with state() as now:
                if not now["releases"].get(f"{option(more, '--namespace') or 'default'}/{name}"):
                    raise Refused(f"release {name} is not there, or has no test")
        case _:
            sys.stdout.write(real("helm", *arguments))


def check_secrets(manifests: list[Manifest], there: dict[str, dict[str, str]]) -> None:
    """Every secret that the pods read exists, with its keys; certificates are this member's."""
    by_cert_manager = {m["spec"]["secretName"] for m in manifests if m["kind"] == "Certificate"}
    for name, keys in secrets_read(manifests).items():
        if name in by_cert_manager:
            continue
        if missing := keys - set(there.get(name, {})):
            raise Refused(f'secret "{name}" has no {sorted(missing)}: the pod would not start')
        if "tls.crt" in keys:
            certificate = x509.load_pem_x509_certificate(base64.b64decode(there[name]["tls.crt"]))
            names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
            (uri,) = names.get_values_for_type(x509.UniformResourceIdentifier)
            if uri != identity(manifests):
                raise Refused(f'secret "{name}" holds the certificate of {uri}, the pod is {identity(manifests)}')


def secrets_read(manifests: list[Manifest]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    pods = [m["spec"]["template"]["spec"] for m in manifests if m["kind"] in ("StatefulSet", "Deployment")]
    for pod in pods:
        for volume in pod["volumes"]:
            sources = volume.get("projected", {}).get("sources", [volume])
            for secret in (source["secret"] for source in sources if "secret" in source):
                name = secret.get("name") or secret["secretName"]
                found.setdefault(name, set()).update(item["key"] for item in secret["items"])
        for variable in (v for c in pod["containers"] for v in c.get("env", [])):
            reference = variable.get("valueFrom", {}).get("secretKeyRef")
            if reference:
                found.setdefault(reference["name"], set()).add(reference["key"])
    return found


def identity(manifests: list[Manifest]) -> str:
    """Of the member, from the configuration that it reads."""
    data = next(m["data"] for m in manifests if {"party.toml", "coordinator.toml"} & set(m.get("data", {})))
    role = "party" if "party.toml" in data else "coordinator"
    config = tomllib.loads(data[f"{role}.toml"])
    return f"spiffe://{config['federation']}/{role}/{config.get('index', config.get('name', 'main'))}"


# docker


def docker(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="docker", exit_on_error=True)
    commands = parser.add_subparsers(dest="command", required=True)
    build = commands.add_parser("build")
    build.add_argument("--file", type=Path, required=True)
    build.add_argument("--tag", required=True)
    build.add_argument("--build-arg", action="append", default=[])
    build.add_argument("context", type=Path)
    commands.add_parser("push").add_argument("image")
    run = commands.add_parser("run")
    for flag in ("--detach", "--read-only"):
        run.add_argument(flag, action="store_true")
    for name in ("--network", "--user", "--tmpfs", "--cap-drop"):
        run.add_argument(name)
    run.add_argument("--volume", action="append", default=[])
    run.add_argument("image")
    run.add_argument("words", nargs=argparse.REMAINDER)
    given = parser.parse_args(arguments)
    with state() as now:
        if given.command == "build":
            built(given)
            now["images"][given.tag] = True
        elif given.image not in now["images"]:
            raise Refused(f"{given.image} does not exist locally")
        elif given.command == "run":
            started(given)


def built(given: argparse.Namespace) -> None:
    text = given.file.read_text()
    names = set(re.findall(r"^ARG (\w+)", text, re.MULTILINE))
    unknown = [each for each in given.build_arg if each.partition("=")[0] not in names]
    copied = [word for line in re.findall(r"^COPY (?!--from)(.+)$", text, re.MULTILINE) for word in line.split()[:-1]]
    missing = [name for name in copied if not (given.context / name).exists()]
    if unknown or missing:
        raise Refused(f"not in the Dockerfile: {unknown}; not in the context: {missing}")


def started(given: argparse.Namespace) -> None:
    """The process would find its configuration, its keys and a folder to write to, and nothing else is writable."""
    from triskele_server.config import load_coordinator, load_party  # slow to import

    volumes = [volume.split(":") for volume in given.volume]
    outside = {inside: Path(host).resolve() for host, inside, *_ in volumes}
    writable = {inside for _, inside, *mode in volumes if mode != ["ro"]}
    check_triskele(["triskele", *given.words])
    path = PurePosixPath(option(given.words, "--config"))
    file = outside[str(path.parent)] / path.name  # the folder of a member is mounted as it is
    config = (load_party if given.words[0] == "party" else load_coordinator)(file)
    data = str(path.parent / config.data.relative_to(file.parent))
    if data not in writable or not outside[data].is_dir() or outside[data] != config.data:
        raise Refused(f"{data} is no writable folder of the container")
    for needed in (config.tls.certificate, config.tls.key, config.tls.authority):
        if not needed.is_file():
            raise Refused(f"{needed} does not exist")
    if given.network != "host" and config.listen.startswith("127."):
        raise Refused(f"nobody outside the container reaches {config.listen}")


if __name__ == "__main__":
    try:
        {"kubectl": kubectl, "helm": helm, "docker": docker}[sys.argv[1]](sys.argv[2:])
    except Refused as error:
        sys.exit(f"error: {error}")
