"""`triskele preflight`: everything that can be checked of a member before it takes part, each finding with a remedy."""

from __future__ import annotations

import datetime
import os
import shutil
import socket
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from triskele.config import ParticipantConfig, read_toml
from triskele.errors import ConfigurationError, TriskeleError
from triskele.identity import Identity
from triskele_server.config import (
    CoordinatorConfig,
    PartyConfig,
    PolicyTable,
    ScheduledTask,
    load_coordinator,
    load_party,
    load_tasks,
    party_identity,
)
from triskele_server.operations.certificates import check_pair
from triskele_server.operations.findings import Finding, fault, ok, warning
from triskele_server.operations.reach import Answer, Unreachable, ask, other_protocol
from triskele_server.rpc.deny_list import DenyList
from triskele_server.rpc.tls import TlsFiles

FREE_GIGABYTES: Final = 5.0  # a party keeps the heavy shares of a round: n * d * 8 / 3 * 2 bytes
SKEW_WARNING_SECONDS: Final = 5.0
SKEW_FAULT_SECONDS: Final = 300.0  # certificates are dated back by ten minutes, and rounds have deadlines
CRYPTEN: Final = "0.4.1"

Findings = Iterator[Finding]


def preflight(path: Path, now: datetime.datetime | None = None) -> list[Finding]:
    """Check the member that a coordinator.toml, party.toml or participant.toml describes."""
    now = now or datetime.datetime.now(datetime.UTC)
    try:
        content = read_toml(path)
        if "participant" in content:
            return list(_participant(ParticipantConfig.load(path), now))
        if "index" in content:
            return list(_party(load_party(path), now))
        return list(_coordinator(load_coordinator(path), now))
    except ConfigurationError as error:
        return [fault("configuration", str(error), "correct the file; docs/operations.md shows one")]


def _participant(config: ParticipantConfig, now: datetime.datetime) -> Findings:
    yield ok("configuration", f"participant {config.participant} of {config.federation}")
    files = TlsFiles(config.tls.certificate, config.tls.key, config.tls.authority)
    yield from check_pair("certificate", files, config.identity, now)
    signing = TlsFiles(config.signing.certificate, config.signing.key, config.tls.authority)
    yield from check_pair("signing key", signing, config.identity, now)
    server = Identity(config.federation, "coordinator", "main")
    yield from _reached("coordinator", config.coordinator, server, files, {})


def _party(config: PartyConfig, now: datetime.datetime) -> Findings:
    yield ok("configuration", f"party {config.index} of {config.federation}")
    yield from _server(config, config.identity, now, [config.listen, config.peer_listen])
    yield from _engine()
    yield from _rules(config.policy)
    answers: dict[str, Answer] = {}
    for index, address in config.peers.items():
        identity = party_identity(config.federation, index)
        yield from _reached(f"party {index}", address, identity, config.tls.files, answers)
    policies = {name: answer.description.policy for name, answer in answers.items()}
    yield from _same_rules({"this party": config.policy.model_dump(mode="json"), **policies})


def _coordinator(config: CoordinatorConfig, now: datetime.datetime) -> Findings:
    yield ok("configuration", f"coordinator {config.name} of {config.federation}")
    yield from _server(config, config.identity, now, [config.listen])
    yield from _database(config.database)
    tasks: tuple[ScheduledTask, ...] = ()
    try:
        tasks = load_tasks(config.tasks)
        yield ok("tasks", ", ".join(task.spec.name for task in tasks) or "none yet")
    except ConfigurationError as error:
        yield fault("tasks", str(error), "correct the task file: triskele task validate FILE")
    answers: dict[str, Answer] = {}
    for index, address in config.parties.items():
        identity = party_identity(config.federation, index)
        yield from _reached(f"party {index}", address, identity, config.tls.files, answers)
    policies = {name: answer.description.policy for name, answer in answers.items()}
    yield from _same_rules(policies)
    for task in tasks:
        yield from _accepted(task, policies)


def _server(
    config: PartyConfig | CoordinatorConfig, identity: Identity, now: datetime.datetime, addresses: Iterable[str]
) -> Findings:
    """What both kinds of servers need of their machine."""
    tls = config.tls
    yield from check_pair("certificate", tls.files, identity, now)
    if tls.denied is not None:
        try:
            DenyList(tls.denied)
        except ConfigurationError as error:
            yield fault("deny list", str(error), "correct the line, or take `denied` out of [tls]")
    yield from _data(config.data)
    if _is_itself(config.listen, identity, tls.files):
        yield ok("port", f"{config.listen}: this server already runs")
        return
    probes = config.probes
    numbers = [n for n in (probes.health_port, probes.metrics_port) if n is not None and n > 0]
    for address in (*addresses, *(f"{probes.host}:{number}" for number in numbers)):
        yield from _port(address)


def _data(folder: Path) -> Findings:
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if not os.access(existing, os.W_OK | os.X_OK):
        yield fault("data", f"{existing} cannot be written by this user", "give the server's user the folder")
        return
    free = shutil.disk_usage(existing).free / 1e9
    if free < FREE_GIGABYTES:
        yield warning(
            "disk",
            f"{free:.1f} GB are free where {folder} is",
            "make room: a party holds a round's shares, 16/3 bytes per participant and parameter; "
            f"{FREE_GIGABYTES:g} GB are the least to begin with",
        )
    else:
        yield ok("disk", f"{free:.0f} GB free")


def _port(address: str) -> Findings:
    host, _, port = address.rpartition(":")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host.strip("[]"), int(port)))
        except OSError as error:
            yield fault(
                "port",
                f"{address} cannot be listened on ({error.strerror})",
                "stop what listens there, or take another",
            )
            return
    yield ok("port", f"{address} is free")


def _is_itself(address: str, identity: Identity, tls: TlsFiles) -> bool:
    """Whether the server that listens there presents this member's own certificate."""
    try:
        ask(address, identity, tls)
    except TriskeleError:
        return False
    return True


def _engine() -> Findings:
    """The MPC engine's packages, without importing them."""
    for package, wanted in (("torch", ""), ("crypten", CRYPTEN)):
        try:
            found = version(package)
        except PackageNotFoundError:
            command = (
                f"pip install --no-deps crypten=={CRYPTEN}" if package == "crypten" else "pip install triskele[server]"
            )
            yield fault("engine", f"{package} is not installed", command)
            continue
        if wanted and found != wanted:
            yield fault("engine", f"{package} is {found}", f"pip install --no-deps {package}=={wanted}")
        else:
            yield ok("engine", f"{package} {found}")


def _rules(policy: PolicyTable) -> Findings:
    from triskele_server.rules import find  # noqa: PLC0415  loads the rules' code

    wrong = []
    for name in (*policy.rules, *policy.rule_sources):
        try:
            rule = find(name)
        except TriskeleError as error:
            wrong.append(fault("policy", str(error), f"install it, or take {name!r} out of [policy]"))
            continue
        listed = policy.rule_sources.get(name)
        if listed is not None and listed != rule.source_digest:
            wrong.append(
                fault(
                    "policy",
                    f"the source of rule {name!r} here is {rule.source_digest}, [policy.rule_sources] says {listed}",
                    "install the version that all three parties agreed on, or agree on this one",
                )
            )
    yield from wrong or [ok("policy", f"{len(policy.rules) + len(policy.rule_sources)} rules, all installed")]


def _database(url: str) -> Findings:
    from triskele_server.coordinator.store import database_revision  # noqa: PLC0415  SQLAlchemy is slow to import

    if url.startswith("sqlite:///") and not Path(url.removeprefix("sqlite:///")).exists():
        yield ok("database", "will be made at the first start")
        return
    try:
        found, newest = database_revision(url)
    except ConfigurationError as error:
        yield fault("database", str(error), "start the database, or correct database_url")
        return
    at = "empty" if found is None else f"revision {found}"
    due = "" if found == newest else f"; the next start brings it to {newest}"
    yield ok("database", f"{url.split('://', 1)[0]}, {at}{due}")


def _reached(name: str, address: str, identity: Identity, tls: TlsFiles, answers: dict[str, Answer]) -> Findings:
    """Reachability, version and clock of one server; its answer goes into `answers`."""
    try:
        answer = ask(address, identity, tls)
    except Unreachable as error:
        yield fault(name, f"{address}: {error}", error.remedy)
        return
    except ConfigurationError:
        return  # told by the check of the certificate
    answers[name] = answer
    said = answer.description
    yield ok(name, f"{address}: version {said.version}, {2000 * answer.uncertain:.0f} ms")
    if (other := other_protocol(said)) is not None:
        yield fault(name, *other)
    elif said.version != version("triskele"):
        yield warning(name, f"it runs version {said.version}, this is {version('triskele')}", "upgrade the older one")
    ahead = abs(answer.ahead) - answer.uncertain
    if ahead > SKEW_WARNING_SECONDS:
        which = "ahead of" if answer.ahead > 0 else "behind"
        found = f"its clock is {abs(answer.ahead):.0f} s {which} this one"
        remedy = "run a time service (chrony, systemd-timesyncd) on both machines"
        yield (fault if ahead > SKEW_FAULT_SECONDS else warning)("clock", f"{name}: {found}", remedy)


def _same_rules(policies: Mapping[str, Mapping[str, Any]]) -> Findings:
    """Parties that pin other sources of a rule end every round that uses it."""
    named = {name: dict(policy.get("rule_sources", {})) for name, policy in policies.items() if policy}
    differing = False
    for rule in sorted({rule for sources in named.values() for rule in sources}):
        digests = {name: sources.get(rule, "nothing") for name, sources in named.items()}
        if len(set(digests.values())) > 1:
            differing = True
            told = ", ".join(f"{name}: {digest[:12]}" for name, digest in digests.items())
            yield fault(
                "policy",
                f"the parties pin different sources of rule {rule!r} ({told})",
                "agree on one [policy.rule_sources]",
            )
    if len(named) > 1 and not differing:
        yield ok("policy", "the parties pin the same sources of rules")


def _accepted(task: ScheduledTask, policies: Mapping[str, Mapping[str, Any]]) -> Findings:
    """Whether each party that answered would take the task."""
    from triskele_server.party.policy import check_task  # noqa: PLC0415  loads the rules' code

    refused = []
    for name, policy in policies.items():
        try:
            check_task(task.spec, PolicyTable.model_validate(policy))
        except ValidationError:
            refused.append(warning(name, "its policy cannot be read by this version", "upgrade the older one"))
        except TriskeleError as error:
            refused.append(fault(f"task {task.spec.name}", f"{name} would refuse it: {error}", "change one of the two"))
    yield from refused or [ok(f"task {task.spec.name}", f"{len(policies)} parties would take it")]


def worst(findings: Iterable[Finding]) -> str:
    """The worst outcome of all."""
    order = ("ok", "warning", "fault")
    return max((finding.outcome for finding in findings), key=order.index, default="ok")
