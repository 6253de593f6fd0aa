"""The chart renders valid, hardened manifests for every sample, and refuses values that make no member."""

from __future__ import annotations

import copy
import shutil
import subprocess
import sys
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from rendered_chart import (
    CHART,
    FEDERATIONS,
    HELM_FOLDER,
    MEMBERS,
    helm,
    of_kind,
    pod_specs,
    rendered,
    rendered_text,
    template,
    values_of,
)

from triskele_server.at_rest import STORE_KEY

KUBERNETES = ("1.27", "1.37")  # Chart.yaml's kubeVersion, and the newest there is
BUILT_IN = {
    "ConfigMap", "Deployment", "Ingress", "NetworkPolicy", "PersistentVolumeClaim", "Pod", "PodDisruptionBudget",
    "Service", "ServiceAccount", "StatefulSet",
}  # fmt: skip
OF_EXTENSIONS = {"Certificate", "PrometheusRule", "ServiceMonitor", "TLSRoute"}

EVERY_MEMBER = [(federation, member) for federation in FEDERATIONS for member in MEMBERS]
ALIKE = [("single-cluster", "party-1"), ("single-cluster", "party-2")]  # party 0 with other names
every_member = pytest.mark.parametrize(("federation", "member"), EVERY_MEMBER)


@every_member
def test_helm_lint_has_nothing_to_say(federation: str, member: str) -> None:
    done = helm("lint", "--strict", str(CHART), *values_of(federation, member))
    assert done.returncode == 0, done.stdout


def test_every_sample_values_file_belongs_to_a_rendered_member() -> None:
    used = {Path(argument).name for pair in EVERY_MEMBER for argument in values_of(*pair) if argument.endswith(".yaml")}
    assert used == {path.name for path in HELM_FOLDER.glob("values*.yaml")}


@pytest.mark.parametrize("version", KUBERNETES)
@pytest.mark.parametrize(("federation", "member"), [pair for pair in EVERY_MEMBER if pair not in ALIKE])
def test_manifests_are_valid_for_kubernetes(federation: str, member: str, version: str) -> None:
    manifests = rendered(federation, member)
    assert {m["kind"] for m in manifests} <= BUILT_IN | OF_EXTENSIONS
    for manifest in of_kind(manifests, *BUILT_IN):
        kubernetes_validate.validate(manifest, version, strict=True)


def test_validation_would_see_a_misspelt_field() -> None:
    manifest = copy.deepcopy(of_kind(rendered("single-cluster", "party-0"), "StatefulSet")[0])
    manifest["spec"]["template"]["spec"]["containers"][0]["readynessProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(manifest, KUBERNETES[-1], strict=True)


@every_member
def test_no_pod_is_privileged_or_sees_its_node(federation: str, member: str) -> None:
    pods = list(pod_specs(rendered(federation, member)))
    assert len(pods) == 2
    for pod in pods:
        assert not {"hostNetwork", "hostPID", "hostIPC", "hostUsers", "shareProcessNamespace"} & set(pod)
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"].get("runAsUser", 1) != 0
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert {kind for volume in pod.get("volumes", []) for kind in set(volume) - {"name"}} <= {
            "configMap", "projected", "secret", "emptyDir", "persistentVolumeClaim",
        }  # fmt: skip
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "privileged": False,
                "runAsNonRoot": True,
                "capabilities": {"drop": ["ALL"]},
                "seccompProfile": {"type": "RuntimeDefault"},
            }
            assert set(container["resources"]["requests"]) >= {"cpu", "memory"}
            assert "memory" in container["resources"]["limits"]
            tag = container["image"].rpartition("/")[2].partition(":")[2]
            assert tag
            assert tag != "latest"
            assert not any("hostPort" in port for port in container.get("ports", []))


@every_member
def test_a_member_is_one_pod_with_probes_on_the_health_port_and_two_writable_folders(
    federation: str, member: str
) -> None:
    manifests = rendered(federation, member)
    (workload,) = of_kind(manifests, "StatefulSet", "Deployment")
    assert workload["spec"]["replicas"] == 1
    assert (workload["kind"], workload["spec"].get("strategy")) == (
        ("Deployment", {"type": "Recreate"}) if member == "coordinator" else ("StatefulSet", None)
    )
    pod = workload["spec"]["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] > 15
    (container,) = pod["containers"]
    health = next(p["containerPort"] for p in container["ports"] if p["name"] == "grpc-health")
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["grpc"] == {"port": health}
    writable = {mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")}
    assert writable == {"/tmp", "/var/lib/triskele"}  # noqa: S108 - the pod's
    assert of_kind(manifests, "PodDisruptionBudget")
    assert pod["topologySpreadConstraints"]


@every_member
def test_no_secret_is_rendered_and_keys_and_passwords_are_references(federation: str, member: str) -> None:
    text = rendered_text(federation, member)
    manifests = rendered(federation, member)
    assert not of_kind(manifests, "Secret")
    assert "PRIVATE KEY" not in text
    variables = [v for pod in pod_specs(manifests) for c in pod["containers"] for v in c.get("env", [])]
    assert all(set(variable) == {"name", "valueFrom"} for variable in variables)
    expected = {("separate-clusters", "coordinator"): ["PGPASSWORD"], ("separate-clusters", "party-0"): [STORE_KEY]}
    assert [variable["name"] for variable in variables] == expected.get((federation, member), [])


def test_the_single_cluster_sample_says_that_it_is_not_the_threat_model() -> None:
    assert "THIS IS NOT THE THREAT MODEL" in (HELM_FOLDER / "values-single-cluster.yaml").read_text()


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ("role=router", "role"),
        ("party.index=3", "index"),
        ("party.index=null", "index"),
        ("federation.name=No_Domain", "name"),
        ("party.policy.min_acepted=3", "min_acepted"),
        ("party.policy.min_accepted=1", "min_accepted"),
        ("replicas=2", "replicas"),
        ("image.tag=latest", "tag"),
        ("terminationGracePeriodSeconds=10", "terminationGracePeriodSeconds"),
        ("user.runAsUser=0", "runAsUser"),
        ("denyList=everybody", "denyList"),
        ("federation.parties.1.peerAddress=", "federation.parties.1.peerAddress"),
        ("federation.parties.1.namespace=", "federation.parties.1"),
        ("federation.parties.1.address=nowhere", "address"),
        ("coordinator.database.url=postgresql://triskele:secret@db/triskele", "url"),
        ("coordinator.database.url=postgresql://db/triskele?password=secret", "url"),
        ("tls.certManager.enabled=true", "issuerRef"),
        ("gateway.enabled=true", "parentRef"),
        ("prometheusRule.enabled=true", "alerts.yaml"),
        ("tracing.endpoint=http://collector:4318", "tracing.collector"),
        ("tracing.endpoint=http://me:secret@collector:4318", "endpoint"),
    ],
)
def test_values_that_make_no_member_are_refused_by_name(change: str, complaint: str, tmp_path: Path) -> None:
    chart = tmp_path / "triskele"
    shutil.copytree(CHART, chart)
    (chart / "files" / "alerts.yaml").unlink(missing_ok=True)
    done = template("party-0", *values_of("single-cluster", "party-0"), "--set", change, chart=chart)
    assert done.returncode != 0
    assert complaint in done.stderr


def test_a_digest_wins_over_the_tag() -> None:
    digest = "sha256:" + "0" * 64
    for pod in pod_specs(rendered("separate-clusters", "party-0", "--set", f"image.digest={digest}")):
        assert pod["containers"][0]["image"] == f"registry.example/triskele@{digest}"


def test_alerts_of_the_chart_and_of_the_values_are_rendered_as_they_are(tmp_path: Path) -> None:
    chart = tmp_path / "triskele"
    shutil.copytree(CHART, chart)
    summary = "{{ $labels.instance }} is down"
    rules = [{"alert": "Down", "expr": "up == 0", "annotations": {"summary": summary}}]
    (chart / "files" / "alerts.yaml").write_text(yaml.safe_dump({"groups": [{"name": "ours", "rules": rules}]}))
    theirs = tmp_path / "values.yaml"
    groups = [{"name": "theirs", "rules": rules}]
    theirs.write_text(yaml.safe_dump({"prometheusRule": {"enabled": True, "groups": groups}}))
    done = template("party-0", *values_of("single-cluster", "party-0"), "--values", str(theirs), chart=chart)
    (rule,) = of_kind([m for m in yaml.safe_load_all(done.stdout) if m], "PrometheusRule")
    assert rule["spec"]["groups"] == [{"name": "ours", "rules": rules}, *groups]


def test_service_monitor_scrapes_the_metrics_port_of_this_release() -> None:
    manifests = rendered("separate-clusters", "party-0")
    (monitor,) = of_kind(manifests, "ServiceMonitor")
    wanted = monitor["spec"]["selector"]["matchLabels"].items()
    (service,) = [s for s in of_kind(manifests, "Service") if wanted <= s["metadata"]["labels"].items()]
    assert monitor["spec"]["endpoints"][0]["port"] in [port["name"] for port in service["spec"]["ports"]]


def test_a_new_task_restarts_the_coordinator_and_a_new_denial_restarts_nobody(tmp_path: Path) -> None:
    def annotations(change: str) -> dict[str, str]:
        (workload,) = of_kind(rendered("single-cluster", "coordinator", *change.split()), "Deployment")
        return workload["spec"]["template"]["metadata"]["annotations"]

    before = annotations("")
    assert annotations("--set denyList=serial:5F") == before
    assert annotations("--set coordinator.tasks.other=name='other'") != before


def test_the_test_pod_asks_the_health_port() -> None:
    (pod,) = of_kind(rendered("single-cluster", "party-1"), "Pod")
    (container,) = pod["spec"]["containers"]
    assert pod["metadata"]["annotations"]["helm.sh/hook"] == "test"
    services = of_kind(rendered("single-cluster", "party-1"), "Service")
    assert container["args"][0] in {
        f"{s['metadata']['name']}:{p['port']}" for s in services for p in s["spec"]["ports"]
    }
    probe = [sys.executable, *container["command"][1:]]
    done = subprocess.run([*probe, "127.0.0.1:1", "0.5"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "127.0.0.1:1: UNAVAILABLE\n")
