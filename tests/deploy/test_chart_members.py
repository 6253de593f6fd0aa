"""Rendered members find and believe each other: by deploy/helm/check.py, by the servers' own configuration classes, and
by the certificates that `triskele provision` issues.
"""

from __future__ import annotations

import copy
import datetime
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography import x509
from rendered_chart import FEDERATIONS, HELM_FOLDER, MEMBERS, check_script, of_kind, rendered, rendered_text, template

from triskele.identity import Identity
from triskele.ids import PARTIES
from triskele_server.config import BUILT_IN_RULES, load_coordinator, load_party, load_tasks, party_identity
from triskele_server.coordinator.process import check_rules
from triskele_server.limits import ServerLimits
from triskele_server.rpc.certificates import Authority
from triskele_server.rpc.deny_list import DenyList

Members = dict[str, list[dict[str, Any]]]

both_federations = pytest.mark.parametrize("federation", FEDERATIONS)


def members_of(federation: str) -> Members:
    return {member: rendered(federation, member) for member in MEMBERS}


def findings(members: Members) -> list[str]:
    check = check_script()
    return check.findings([check.Member(manifests) for manifests in members.values()])


@both_federations
def test_sample_members_find_each_other(federation: str) -> None:
    assert findings(members_of(federation)) == []


def first(manifests: Sequence[dict[str, Any]], kind: str, suffix: str = "") -> dict[str, Any]:
    return next(m for m in of_kind(manifests, kind) if m["metadata"]["name"].endswith(suffix))


def configured(members: Members, member: str, old: str, new: str) -> None:
    data = first(members[member], "ConfigMap", member)["data"]
    (key,) = data
    assert old in data[key]
    data[key] = data[key].replace(old, new)


def rule_for(members: Members, member: str, direction: str, port: int) -> dict[str, Any]:
    rules = first(members[member], "NetworkPolicy")["spec"][direction]
    return next(rule for rule in rules if rule["ports"][0]["port"] == port)


def _another_peer_address(m: Members) -> None:
    configured(m, "party-1", "university.example:7003", "university.example:7004")


def _another_party_for_the_coordinator(m: Members) -> None:
    configured(m, "coordinator", "triskele.hospital.example:443", "triskele.clinic.example:443")


def _another_federation(m: Members) -> None:
    configured(m, "party-2", '"consortium.example"', '"consortium.test"')


def _another_coordinator(m: Members) -> None:
    configured(m, "party-2", 'coordinator = "main"', 'coordinator = "spare"')


def _service_on_another_port(m: Members) -> None:
    first(m["party-0"], "Service", "-peers")["spec"]["ports"][0]["port"] = 7004


def _service_of_other_pods(m: Members) -> None:
    first(m["party-0"], "Service", "-peers")["spec"]["selector"]["app.kubernetes.io/component"] = "party-1"


def _peer_service_leads_to_the_other_port(m: Members) -> None:
    first(m["party-0"], "Service", "-peers")["spec"]["ports"][0]["targetPort"] = "grpc"


def _route_on_another_listener(m: Members) -> None:
    first(m["party-1"], "TLSRoute", "-peers")["spec"]["parentRefs"][0]["port"] = 443


def _route_of_another_name(m: Members) -> None:
    first(m["party-1"], "TLSRoute")["spec"]["hostnames"] = ["triskele.hospital.example"]


def _ingress_of_another_name(m: Members) -> None:
    first(m["coordinator"], "Ingress")["spec"]["rules"][0]["host"] = "triskele.consortium.example"


def _certificate_of_another_party(m: Members) -> None:
    first(m["party-1"], "Certificate")["spec"]["uris"] = ["spiffe://consortium.example/party/2"]


def _certificate_without_the_name_clients_verify(m: Members) -> None:
    first(m["party-1"], "Certificate")["spec"]["dnsNames"] = ["triskele.hospital.example"]


def _certificate_for_clients_only(m: Members) -> None:
    first(m["party-1"], "Certificate")["spec"]["usages"].remove("server auth")


def _certificate_in_another_secret(m: Members) -> None:
    first(m["party-1"], "Certificate")["spec"]["secretName"] = "other"


def _probe_on_another_port(m: Members) -> None:
    configured(m, "party-0", "health_port = 7001", "health_port = 7005")


def _no_network_policy(m: Members) -> None:
    m["party-0"].remove(first(m["party-0"], "NetworkPolicy"))


def _policy_that_leaves_egress_open(m: Members) -> None:
    first(m["party-0"], "NetworkPolicy")["spec"]["policyTypes"] = ["Ingress"]


def _previous_party_is_kept_out(m: Members) -> None:
    rule_for(m, "party-0", "ingress", 7003)["from"] = [{"ipBlock": {"cidr": "203.0.113.16/28"}}]


def _everybody_may_pose_as_peer(m: Members) -> None:
    rule_for(m, "party-0", "ingress", 7003)["from"].append({"ipBlock": {"cidr": "0.0.0.0/0"}})


def _party_may_call_anybody(m: Members) -> None:
    first(m["party-0"], "NetworkPolicy")["spec"]["egress"].append(
        {"ports": [{"port": 443, "protocol": "TCP"}], "to": [{"ipBlock": {"cidr": "0.0.0.0/0"}}]}
    )


def _party_may_not_call_the_next(m: Members) -> None:
    first(m["party-0"], "NetworkPolicy")["spec"]["egress"].remove(rule_for(m, "party-0", "egress", 8443))


def _coordinator_may_not_call_party_2(m: Members) -> None:
    rule = first(m["coordinator"], "NetworkPolicy")["spec"]["egress"]
    rule[:] = [each for each in rule if {"ipBlock": {"cidr": "203.0.113.32/28"}} not in each["to"]]


def _party_0_twice(m: Members) -> None:
    m["party-1"] = copy.deepcopy(m["party-0"])


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (_another_peer_address, "party-1: peers.2"),
        (_another_party_for_the_coordinator, "coordinator: parties.1"),
        (_another_federation, "party-2: federation"),
        (_another_coordinator, "party-2 obeys"),
        (_service_on_another_port, "party-0: nothing"),
        (_service_of_other_pods, "party-0: nothing"),
        (_peer_service_leads_to_the_other_port, "leads to port 7000"),
        (_route_on_another_listener, "party-1: nothing"),
        (_route_of_another_name, "party-1: nothing"),
        (_ingress_of_another_name, "coordinator: nothing"),
        (_certificate_of_another_party, "party-1: the certificate is for"),
        (_certificate_without_the_name_clients_verify, "lacks the DNS name party-1.consortium.example.triskele"),
        (_certificate_for_clients_only, "server auth"),
        (_certificate_in_another_secret, "goes to other"),
        (_probe_on_another_port, "party-0: startupProbe"),
        (_no_network_policy, "party-0: no NetworkPolicy"),
        (_policy_that_leaves_egress_open, "party-0: no NetworkPolicy"),
        (_previous_party_is_kept_out, "keeps party-2 out of port 7003"),
        (_everybody_may_pose_as_peer, "is for party-2 alone"),
        (_party_may_call_anybody, "party-0: its network policy lets it call more"),
        (_party_may_not_call_the_next, "does not let it call party-1"),
        (_coordinator_may_not_call_party_2, "coordinator: its network policy does not let it call party-2"),
        (_party_0_twice, "a federation is"),
    ],
)
def test_a_fault_between_members_is_found_by_name(fault: Callable[[Members], None], told: str) -> None:
    members = members_of("separate-clusters")
    fault(members)
    assert any(told in finding for finding in findings(members)), findings(members)


def test_a_pod_of_another_namespace_is_no_peer() -> None:
    members = members_of("single-cluster")
    rule = rule_for(members, "party-0", "ingress", 7003)
    rule["from"][0]["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"] = "default"
    told = findings(members)
    assert any("keeps party-2 out" in finding for finding in told)
    assert any("is for party-2 alone" in finding for finding in told)


def test_check_command_reports_and_gives_exit_codes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = []
    for member in MEMBERS:
        files.append(tmp_path / f"{member}.yaml")
        files[-1].write_text(rendered_text("separate-clusters", member))
    main, names = check_script().main, [str(path) for path in files]
    assert main(names) == 0
    files[2].write_text(files[2].read_text().replace("party-2-peers.university", "party-2.university"))
    assert main([*names, "--json"]) == 1
    files[3].write_text("kind: Pod")
    assert main(names) == 2
    captured = capsys.readouterr()
    assert captured.out.startswith("The four members find each other.\n[")
    assert "party-2.yaml is not what `helm template` prints" in captured.err


def test_the_commands_of_the_manual_render_validate_and_compare(tmp_path: Path) -> None:
    manual = (HELM_FOLDER.parent.parent / "docs" / "operations.md").read_text()
    (script,) = [block for block in re.findall(r"```sh\n(.*?)```", manual, re.DOTALL) if "check.py" in block]
    (tmp_path / "deploy").symlink_to(HELM_FOLDER.parent)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = dict(os.environ) | {"PATH": path}
    done = subprocess.run(
        ["sh", "-ec", script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "The four members find each other.\n"


@both_federations
def test_rendered_configuration_is_what_the_servers_read(federation: str, tmp_path: Path) -> None:
    members = members_of(federation)
    name = "consortium.example" if federation == "separate-clusters" else "trial"
    for member, manifests in members.items():
        (tmp_path / member).mkdir()
        for config in of_kind(manifests, "ConfigMap"):
            for file, text in config["data"].items():
                (tmp_path / member / file).write_text(text)
        assert DenyList(tmp_path / member / "denied.txt")
    for index in PARTIES:
        party = load_party(tmp_path / f"party-{index}" / "party.toml")
        assert party.identity == party_identity(name, index)
        assert set(party.peers) == set(PARTIES) - {index}
        assert party.policy.rules
    coordinator = load_coordinator(tmp_path / "coordinator" / "coordinator.toml")
    assert coordinator.identity == Identity(name, "coordinator", "main")
    folder = tmp_path / "tasks"
    folder.mkdir()
    for file in (tmp_path / "coordinator").glob("*.toml"):
        if file.name != "coordinator.toml":
            file.rename(folder / file.name)
    tasks = load_tasks(folder)
    check_rules(tasks)
    assert len(tasks) == 1


def test_every_setting_of_the_chart_reaches_the_configuration(tmp_path: Path) -> None:
    policy = {
        "min_accepted": 12345678,
        "rules": ["flame", 'odd "name" <&>'],
        "rule_sources": {"my-rule": "ab" * 32},
        "decisions": ["hidden"],
        "releases": ["participants"],
        "readers": True,
        "max_dimension": 268435456,
        "max_participants": 12345678,
        "min_noise_multiplier": 0.75,
        "max_epsilon": 8.0,
        "max_delta": 1e-07,
    }
    more = {"party": {"policy": policy, "sealingSecret": "sealing"}, "coordinator": {"name": "spare"}}
    (tmp_path / "more.yaml").write_text(yaml.safe_dump(more))
    manifests = rendered("separate-clusters", "party-2", "--values", str(tmp_path / "more.yaml"))
    (tmp_path / "party.toml").write_text(first(manifests, "ConfigMap", "party-2")["data"]["party.toml"])
    party = load_party(tmp_path / "party.toml")
    assert party.policy.model_dump(mode="json") == policy
    assert party.coordinator == "spare"
    assert party.sealing_key == Path("/etc/triskele/sealing/sealing.key")
    text = (HELM_FOLDER / "triskele" / "values.schema.json").read_text()
    assert all(f'"{field}"' in text for field in type(party.policy).model_fields)
    assert "flame" in BUILT_IN_RULES

    addresses = {str(i): f"public-{i}.example:443" for i in range(3)}
    (tmp_path / "more.yaml").write_text(yaml.safe_dump({"coordinator": {"advertised": addresses}}))
    manifests = rendered("separate-clusters", "coordinator", "--values", str(tmp_path / "more.yaml"))
    (tmp_path / "c.toml").write_text(first(manifests, "ConfigMap", "coordinator")["data"]["coordinator.toml"])
    coordinator = load_coordinator(tmp_path / "c.toml")
    assert coordinator.party_addresses == {int(i): address for i, address in addresses.items()}
    assert coordinator.database.startswith("postgresql+psycopg://triskele@db.consortium.internal:5432/triskele?")


@pytest.mark.parametrize("member", ["coordinator", "party-0"])
def test_every_limit_of_the_servers_can_be_set(member: str, tmp_path: Path) -> None:
    limits = {field.name: 1.5 if field.name.endswith("_seconds") else 10_000_001 for field in fields(ServerLimits)}
    (tmp_path / "more.yaml").write_text(yaml.safe_dump({"limits": limits}))
    manifests = rendered("separate-clusters", member, "--values", str(tmp_path / "more.yaml"))
    (text,) = first(manifests, "ConfigMap", member)["data"].values()
    (tmp_path / "member.toml").write_text(text)
    load = load_coordinator if member == "coordinator" else load_party
    assert asdict(load(tmp_path / "member.toml").limits) == limits
    assert "10000001" in text


def test_cert_manager_is_asked_for_what_provision_issues() -> None:
    identity = party_identity("consortium.example", PARTIES[1])
    issued = Authority("consortium.example", datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)).tls(identity)
    certificate = x509.load_pem_x509_certificate(issued.certificate)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    asked = first(rendered("separate-clusters", "party-1"), "Certificate")["spec"]
    assert asked["uris"] == names.get_values_for_type(x509.UniformResourceIdentifier)
    assert asked["dnsNames"] == names.get_values_for_type(x509.DNSName)
    (common_name,) = certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
    assert asked["commonName"] == common_name.value
    assert asked["privateKey"]["size"] == certificate.public_key().curve.key_size


def test_an_authority_of_its_own_replaces_the_one_of_the_issuer() -> None:
    arguments = ("--set", "tls.authorityConfigMap=federation-authority")
    pod = first(rendered("separate-clusters", "party-1", *arguments), "StatefulSet")["spec"]["template"]["spec"]
    volume = next(v for v in pod["volumes"] if v["name"] == "tls")
    items = {
        s[kind]["name"]: [i["path"] for i in s[kind]["items"]] for s in volume["projected"]["sources"] for kind in s
    }
    assert items == {"triskele-party-1-tls": ["tls.crt", "tls.key"], "federation-authority": ["ca.crt"]}


def test_the_gateway_example_passes_tls_through_to_the_routes_of_party_1() -> None:
    gateway = yaml.safe_load((HELM_FOLDER / "examples" / "gateway.yaml").read_text())
    listeners = {each["name"]: each for each in gateway["spec"]["listeners"]}
    routes = of_kind(rendered("separate-clusters", "party-1"), "TLSRoute")
    assert len(routes) == len(listeners) == 2
    for route in routes:
        (parent,) = route["spec"]["parentRefs"]
        listener = listeners[parent["sectionName"]]
        assert (parent["name"], parent["namespace"]) == ("triskele", gateway["metadata"]["namespace"])
        assert (listener["port"], listener["tls"]["mode"]) == (parent["port"], "Passthrough")
        assert [listener["hostname"]] == route["spec"]["hostnames"]


@pytest.mark.parametrize("member", ["coordinator", "party-2"])
def test_traces_go_to_the_collector_that_the_values_name_and_otherwise_nowhere(member: str, tmp_path: Path) -> None:
    def told(*more: str) -> tuple[dict[str, str], list[Any]]:
        manifests = rendered("separate-clusters", member, *more)
        kind = "Deployment" if member == "coordinator" else "StatefulSet"
        (pod,) = first(manifests, kind)["spec"]["template"]["spec"]["containers"]
        return {e["name"]: e.get("value", "") for e in pod.get("env", [])}, first(manifests, "NetworkPolicy")["spec"][
            "egress"
        ]

    peer = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "tracing"}}}
    values = {"tracing": {"endpoint": "http://collector.tracing:4318", "collector": [peer]}}
    (tmp_path / "values.yaml").write_text(yaml.safe_dump(values))
    without, with_ = told(), told("--values", str(tmp_path / "values.yaml"))
    assert not {"TRISKELE_TRACES", "OTEL_EXPORTER_OTLP_ENDPOINT"} & set(without[0])
    added = {"TRISKELE_TRACES": "otlp", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector.tracing:4318"}
    assert with_[0] == without[0] | added
    assert with_[1] == [*without[1], {"ports": [{"port": 4318, "protocol": "TCP"}], "to": [peer]}]


def test_nothing_but_its_database_and_the_parties_is_called_by_the_coordinator() -> None:
    egress = first(rendered("separate-clusters", "coordinator"), "NetworkPolicy")["spec"]["egress"]
    called = {(rule["ports"][0]["port"], each["ipBlock"]["cidr"]) for rule in egress[1:] for each in rule["to"]}
    assert called == {
        (7000, "203.0.113.0/28"), (443, "203.0.113.16/28"), (7000, "203.0.113.32/28"), (5432, "10.20.0.0/24"),
    }  # fmt: skip
    done = template("coordinator", "--values", str(HELM_FOLDER / "values-single-cluster.yaml"), "--set",
                    "role=coordinator", "--set", "coordinator.database.url=postgresql://db/triskele")  # fmt: skip
    assert "coordinator.database: give `networks` or `namespace`" in done.stderr
