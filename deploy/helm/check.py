"""Do four rendered members fit together? `python deploy/helm/check.py rendered/*.yaml`

Reads what `helm template` printed for the coordinator and three parties, in any order, and compares names, addresses,
ports, identities and network policies. Prints one line per finding. Exit codes: 0 none, 1 some, 2 unreadable file.
"""

from __future__ import annotations

import argparse
import json
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

Manifest = Mapping[str, Any]
NAMESPACE_LABEL = "kubernetes.io/metadata.name"


class NotAMember(ValueError):
    """What was rendered is not one member of a federation."""


@dataclass(frozen=True)
class Member:
    """The manifests of one release."""

    manifests: Sequence[Manifest]

    def of_kind(self, *kinds: str) -> list[Manifest]:
        """All manifests of these kinds."""
        return [m for m in self.manifests if m["kind"] in kinds]

    @cached_property
    def config_map(self) -> Manifest:
        """The ConfigMap with the configuration file."""
        found = [m for m in self.of_kind("ConfigMap") if {"party.toml", "coordinator.toml"} & set(m["data"])]
        if len(found) != 1:
            raise NotAMember(f"{len(found)} ConfigMaps hold a party.toml or coordinator.toml; one member has one")
        return found[0]

    @cached_property
    def role(self) -> str:
        """ "party" or "coordinator"."""
        return "party" if "party.toml" in self.config_map["data"] else "coordinator"

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """The configuration that the process reads."""
        return tomllib.loads(self.config_map["data"][f"{self.role}.toml"])

    @property
    def label(self) -> str:
        """ "party-0", "party-1", "party-2" or "coordinator"."""
        return f"party-{self.config['index']}" if self.role == "party" else "coordinator"

    @property
    def name(self) -> str:
        """The name in the identity."""
        return str(self.config["index"]) if self.role == "party" else self.config["name"]

    @property
    def tls_name(self) -> str:
        """What clients ask for in the TLS handshake and verify."""
        return f"{self.role}-{self.name}.{self.config['federation']}.triskele"

    @property
    def namespace(self) -> str:
        """Where the member runs."""
        return str(self.config_map["metadata"]["namespace"])

    def declared(self, what: str) -> str:
        """What the member's own values say of it: "address", "peer-address" or "networks"."""
        return str(self.config_map["metadata"]["annotations"].get(f"triskele/{what}", ""))

    @cached_property
    def pod(self) -> Manifest:
        """The pod template."""
        return dict(self.of_kind("StatefulSet", "Deployment")[0]["spec"]["template"])

    @property
    def labels(self) -> Mapping[str, str]:
        """Labels of the pod."""
        return dict(self.pod["metadata"]["labels"])

    def container_port(self, target: str | int) -> int | None:
        """The number behind a service's targetPort."""
        ports = self.pod["spec"]["containers"][0]["ports"]
        return next((p["containerPort"] for p in ports if target in (p["name"], p["containerPort"])), None)

    def port(self, key: str) -> int:
        """The number in `listen` or `peer_listen` of the configuration."""
        return port_of(self.config[key])


def port_of(address: str) -> int:
    """The number at the end of host:port."""
    return int(address.rpartition(":")[2])


def read_member(path: Path) -> Member:
    """The manifests of a file; raises OSError, NotAMember."""
    try:
        manifests = [m for m in yaml.safe_load_all(path.read_text("utf-8")) if m]
        member = Member(manifests)
        _ = member.label, member.pod, member.namespace
    except (yaml.YAMLError, tomllib.TOMLDecodeError, KeyError, IndexError, TypeError, NotAMember) as error:
        raise NotAMember(f"{path} is not what `helm template` prints for one member: {error}") from error
    return member


def findings(members: Sequence[Member]) -> list[str]:
    """Everything that keeps these members from finding and believing each other."""
    by_label = {m.label: m for m in members}
    expected = {"coordinator", "party-0", "party-1", "party-2"}
    if set(by_label) != expected or len(members) != 4:
        return [f"a federation is {', '.join(sorted(expected))}; given: {', '.join(m.label for m in members)}"]
    checks: tuple[Callable[[Mapping[str, Member]], Iterator[str]], ...] = (
        _names,
        _addresses,
        _certificates,
        _probes,
        _network_policies,
    )
    return [finding for check in checks for finding in check(by_label)]


def _names(members: Mapping[str, Member]) -> Iterator[str]:
    coordinator = members["coordinator"]
    for label, member in members.items():
        own, theirs = member.config["federation"], coordinator.config["federation"]
        if own != theirs:
            yield f"{label}: federation {own!r}, the coordinator's is {theirs!r}"
        if member.role == "party" and member.config.get("coordinator", "main") != coordinator.name:
            yield f"{label} obeys coordinator {member.config.get('coordinator')!r}; its name is {coordinator.name!r}"


def _addresses(members: Mapping[str, Member]) -> Iterator[str]:
    for index in "012":
        party = members[f"party-{index}"]
        for label, member in members.items():
            if member is party:
                continue
            table, what = ("peers", "peer-address") if member.role == "party" else ("parties", "address")
            dialled, own = member.config[table][index], party.declared(what)
            if dialled != own:
                yield f"{label}: {table}.{index} is {dialled}, but {party.label} is reached at {own}"
        before = members[f"party-{(int(index) + 2) % 3}"]
        if (relay_to := party.config.get("relay_to")) not in (None, before.declared("address")):
            reached = before.declared("address")
            yield f"{party.label}: relay_to is {relay_to}, but {before.label} is reached at {reached}"
        yield from _served(party, party.declared("address"), "listen")
        yield from _served(party, party.declared("peer-address"), "peer_listen")
    advertised = members["coordinator"].config.get("advertised", {})
    for index, address in advertised.items():
        yield from _served(members[f"party-{index}"], address, "listen")
    yield from _served(members["coordinator"], members["coordinator"].declared("address"), "listen")


def _served(member: Member, address: str, key: str) -> Iterator[str]:
    """Something in the member's manifests must take connections to `address` to the port that the process has."""
    host, port = address.rpartition(":")[0], port_of(address)
    inside = host.split(".")[2:3] == ["svc"]
    targets = _inside(member, host, port) if inside else _outside(member, host, port)
    if not targets:
        yield f"{member.label}: nothing in its manifests answers at {address}"
    elif member.port(key) not in targets:
        yield f"{member.label}: {address} leads to port {targets.pop()}, but {key} is {member.config[key]}"


def _target(member: Member, service: Manifest, port: int | str) -> int | None:
    """The container's port behind a service's port, if the service selects the pod."""
    if not service["spec"]["selector"].items() <= member.labels.items():
        return None
    ports = [p["targetPort"] for p in service["spec"]["ports"] if port in (p["port"], p["name"])]
    return member.container_port(ports[0]) if ports else None


def _inside(member: Member, host: str, port: int) -> set[int]:
    name, namespace = host.split(".")[:2]
    services = [
        s
        for s in member.of_kind("Service")
        if s["metadata"]["name"] == name and s["metadata"]["namespace"] == namespace
    ]
    return {t for s in services if (t := _target(member, s, port))}


def _outside(member: Member, host: str, port: int) -> set[int]:
    """Through a load balancer (of that DNS name, if it states one), a TLSRoute or an ingress that passes TLS on."""
    services = {s["metadata"]["name"]: s for s in member.of_kind("Service")}
    found: set[int | None] = set()
    for service in services.values():
        stated = service["metadata"].get("annotations", {}).get("external-dns.alpha.kubernetes.io/hostname", host)
        if service["spec"]["type"] == "LoadBalancer" and stated == host:
            found.add(_target(member, service, port))
    for route in member.of_kind("TLSRoute"):
        spec = route["spec"]
        if member.tls_name in spec["hostnames"] and port in [ref.get("port") for ref in spec["parentRefs"]]:
            backend = spec["rules"][0]["backendRefs"][0]
            found.add(_target(member, services[backend["name"]], backend["port"]))
    for ingress in member.of_kind("Ingress"):
        for rule in ingress["spec"]["rules"]:
            backend = rule["http"]["paths"][0]["backend"]["service"]
            if port == 443 and rule["host"] == member.tls_name:
                found.add(_target(member, services[backend["name"]], backend["port"]["name"]))
    return {target for target in found if target is not None}


def _certificates(members: Mapping[str, Member]) -> Iterator[str]:
    """Certificates of cert-manager; those of `triskele provision` are right by construction."""
    for label, member in members.items():
        volume = next(v for v in member.pod["spec"]["volumes"] if v["name"] == "tls")
        mounted = [s["secret"]["name"] for s in volume["projected"]["sources"] if "secret" in s]
        for certificate in member.of_kind("Certificate"):
            spec, spiffe = certificate["spec"], f"spiffe://{member.config['federation']}/{member.role}/{member.name}"
            if spec["uris"] != [spiffe]:
                yield f"{label}: the certificate is for {spec['uris']}, the process is {spiffe}"
            if member.tls_name not in spec["dnsNames"]:
                yield f"{label}: the certificate lacks the DNS name {member.tls_name}, which clients verify"
            if not {"client auth", "server auth"} <= set(spec["usages"]):
                yield f"{label}: the certificate must be usable for client auth and server auth"
            if spec["secretName"] not in mounted:
                yield f"{label}: the certificate goes to {spec['secretName']}, the pod mounts {mounted}"


def _probes(members: Mapping[str, Member]) -> Iterator[str]:
    for label, member in members.items():
        probes, container = member.config["probes"], member.pod["spec"]["containers"][0]
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            if container[probe]["grpc"]["port"] != probes["health_port"]:
                yield f"{label}: {probe} asks another port than health_port {probes['health_port']}"
        if member.container_port("metrics") != probes["metrics_port"]:
            yield f"{label}: metrics are scraped at another port than metrics_port {probes['metrics_port']}"


def _network_policies(members: Mapping[str, Member]) -> Iterator[str]:
    for label, member in members.items():
        if not any(_selects(p, member) for p in member.of_kind("NetworkPolicy")):
            yield f"{label}: no NetworkPolicy selects its pod (networkPolicy.enabled)"
            return
    coordinator = members["coordinator"]
    for index in range(3):
        party = members[f"party-{index}"]
        previous, following = members[f"party-{(index + 2) % 3}"], members[f"party-{(index + 1) % 3}"]
        yield from _let_in(party, party.port("listen"), coordinator, alone=False)
        yield from _let_in(party, party.port("listen"), following, alone=False)
        yield from _let_in(party, party.port("peer_listen"), previous, alone=True)
        called = {
            following.label: (following, following.declared("peer-address")),
            previous.label: (previous, previous.declared("address")),
        }
        yield from _let_out(party, called)
    called = {m.label: (m, m.declared("address")) for m in members.values() if m.role == "party"}
    yield from _let_out(coordinator, called)


def _selects(policy: Manifest, member: Member) -> bool:
    wanted = policy["spec"]["podSelector"].get("matchLabels", {})
    return bool(wanted.items() <= member.labels.items()) and set(policy["spec"]["policyTypes"]) == {"Ingress", "Egress"}


def _rules(member: Member, direction: str, port: int) -> list[Manifest]:
    """What the member's policies allow at a port: NetworkPolicyPeers; [] if nothing."""
    side = "from" if direction == "ingress" else "to"
    return [
        peer
        for policy in member.of_kind("NetworkPolicy")
        if _selects(policy, member)
        for rule in policy["spec"][direction]
        if port in [p["port"] for p in rule["ports"]]
        for peer in rule.get(side, [{}])
    ]


def _is(peer: Manifest, member: Member) -> bool:
    """Whether a NetworkPolicyPeer stands for a member: one of its networks, or its pods in its namespace."""
    if "ipBlock" in peer:
        return peer["ipBlock"]["cidr"] in member.declared("networks").split()
    namespace = peer.get("namespaceSelector", {}).get("matchLabels", {}).get(NAMESPACE_LABEL)
    wanted = peer.get("podSelector", {}).get("matchLabels", {})
    return namespace == member.namespace and bool(wanted) and bool(wanted.items() <= member.labels.items())


def _covers(peers: Sequence[Manifest], member: Member) -> bool:
    """Whether all of a member's networks, or its pods, are among the peers."""
    listed = {p["ipBlock"]["cidr"] for p in peers if "ipBlock" in p}
    networks = set(member.declared("networks").split())
    everywhere = {"0.0.0.0/0", "::/0"} & listed
    by_pod = any(_is(p, member) for p in peers if "ipBlock" not in p)
    return bool(everywhere) or by_pod or bool(networks and networks <= listed)


def _let_in(member: Member, port: int, caller: Member, *, alone: bool) -> Iterator[str]:
    peers = _rules(member, "ingress", port)
    if not _covers(peers, caller):
        yield f"{member.label}: its network policy keeps {caller.label} out of port {port}"
    gateways = bool(member.of_kind("TLSRoute"))
    strangers = [p for p in peers if not _is(p, caller) and not (gateways and "ipBlock" not in p)]
    if alone and strangers:
        yield f"{member.label}: port {port} is for {caller.label} alone, but its network policy lets in {strangers}"


def _let_out(member: Member, called: Mapping[str, tuple[Member, str]]) -> Iterator[str]:
    """A party may call the other two and resolve names, and nothing else; the coordinator must reach the parties."""
    for label, (other, address) in called.items():
        if not _covers(_rules(member, "egress", port_of(address)), other):
            yield f"{member.label}: its network policy does not let it call {label} at {address}"
    if member.role != "party":
        return
    allowed = {port_of(address) for _, address in called.values()}
    for policy in member.of_kind("NetworkPolicy"):
        for rule in policy["spec"]["egress"]:
            names = all(p["port"] in (53, 5353) for p in rule["ports"])
            known = all(any(_is(peer, other) for other, _ in called.values()) for peer in rule.get("to", [{}]))
            if not names and not (known and {p["port"] for p in rule["ports"]} <= allowed):
                yield f"{member.label}: its network policy lets it call more than names and {', '.join(called)}: {rule}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs=4, type=Path, help="what helm template printed, a file per member")
    parser.add_argument("--json", action="store_true", help="print the findings as a JSON list")
    given = parser.parse_args(arguments)
    try:
        found = findings([read_member(path) for path in given.files])
    except (OSError, NotAMember) as error:
        print(error, file=sys.stderr)
        return 2
    if given.json:
        print(json.dumps(found, indent=2))
    else:
        print("\n".join(found) if found else "The four members find each other.")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
