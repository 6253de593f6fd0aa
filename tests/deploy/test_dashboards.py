"""Rules, dashboards and runbooks say the same: every name they use exists, every alert is tested and explained."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
import yaml
from monitoring_files import BOARDS, EXAMPLE, GRAFANA, NAMES, ROOT, alerts, panels, queries, selectors
from observed_federation import program
from rendered_chart import of_kind, rendered

UNIT_TESTS = ROOT / "deploy" / "prometheus" / "alerts_test.yaml"
UNITS = {"short", "s", "bytes", "Bps", "reqps", "percentunit"}  # of Grafana's list; metrics.md gives units
SUFFIXES = ("_bucket", "_sum", "_count")


def documented() -> dict[str, set[str]]:
    """Metrics of docs/metrics.md with their labels."""
    rows = re.findall(r"\| `(triskele_\w+)` \| \w+ \| ([\w, –]+) \|", (ROOT / "docs/metrics.md").read_text("utf-8"))
    return {name: set(re.findall(r"\w+", labels)) for name, labels in rows}


def base_name(metric: str, known: dict[str, set[str]]) -> str:
    return next((metric.removesuffix(s) for s in SUFFIXES if metric.removesuffix(s) in known), metric)


@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "rules", "deploy/helm/triskele/files/alerts.yaml"),
        ("check", "config", str(EXAMPLE)),
        ("test", "rules", str(UNIT_TESTS)),
    ],
    ids=["rules", "configuration", "unit tests of the rules"],
)
def test_promtool_accepts(arguments: tuple[str, ...]) -> None:
    done = subprocess.run([program("promtool"), *arguments], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "FAILED" not in done.stdout + done.stderr


def test_every_alert_has_a_unit_test_in_which_it_fires_and_one_in_which_it_is_quiet() -> None:
    fired, quiet, silent = set(), set(), {}
    for case in yaml.safe_load(UNIT_TESTS.read_text("utf-8"))["tests"]:
        for check in case["alert_rule_test"]:
            expected = check["exp_alerts"]
            (fired if expected else quiet).add(check["alertname"])
            # Beside an alert that fires stands a member that must not: promtool compares the whole list.
            members = {re.search(r'instance="([^"]+)"', s["series"])[1] for s in case["input_series"]}
            silent[check["alertname"]] = members - {e["exp_labels"].get("instance") for e in expected}
    assert fired == set(alerts())
    assert {name for name in fired if name not in quiet and not silent[name]} == set()


def test_every_alert_says_how_bad_it_is_and_has_a_runbook_that_exists() -> None:
    page = (ROOT / "docs" / "runbooks.md").read_text("utf-8")
    anchors = {heading.lower() for heading in re.findall(r"^## (\w+)$", page, re.MULTILINE)}
    used = set()
    for name, rule in alerts().items():
        assert rule["labels"]["severity"] in ("warning", "critical"), name
        assert rule["annotations"]["summary"], name
        file, _, anchor = rule["annotations"]["runbook_url"].partition("#")
        assert file == "docs/runbooks.md"
        assert anchor in anchors, name
        assert name in page, name
        used.add(anchor)
    assert anchors == used
    for heading in re.findall(r"\]\(#(\w+)\)", page):
        assert heading in anchors


def test_runbooks_name_only_metrics_events_and_reasons_that_exist() -> None:
    page = (ROOT / "docs" / "runbooks.md").read_text("utf-8")
    assert set(re.findall(r"triskele_\w+", page)) - {"triskele_server"} <= set(documented())  # that is `python -m`
    code = "".join(path.read_text("utf-8") for top in ("server", "client") for path in (ROOT / top).rglob("*.py"))
    words = {word for word in re.findall(r"`([a-z]+(?:_[a-z]+)+)`", page) if not word.startswith("triskele_")}
    assert len(words) > 40
    assert {word for word in words if f'"{word}"' not in code and f"{word}:" not in code} == set()
    from triskele_server.metrics import coordinator

    explained = set(re.findall(r"`(\w+)`", page[page.index("| reason |") : page.index("## TriskelePartiesDisagree")]))
    assert explained >= coordinator.FAILURES


@pytest.mark.parametrize("name", NAMES)
def test_dashboard_files_are_what_the_program_writes(name: str) -> None:
    script = "import dashboards as d; print(*[d.text(x) for x in d.DASHBOARDS], sep='\\0', end='')"
    command = [sys.executable, "-B", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=GRAFANA)
    assert (GRAFANA / f"triskele-{name}.json").read_text("utf-8") in done.stdout.split("\0")


@pytest.mark.parametrize("name", NAMES)
def test_a_dashboard_is_one_that_grafana_imports(name: str) -> None:
    board = BOARDS[name]
    assert board["uid"] == f"triskele-{name}"
    assert board["schemaVersion"] >= 36
    assert len({b["uid"] for b in BOARDS.values()}) == len({b["title"] for b in BOARDS.values()}) == len(NAMES)
    variables = {v["name"]: v for v in board["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    numbers = [panel["id"] for panel in board["panels"]]
    assert len(set(numbers)) == len(numbers)
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        place = panel["gridPos"]
        cells = {(x, y) for x in range(place["x"], place["x"] + place["w"])
                 for y in range(place["y"], place["y"] + place["h"])}  # fmt: skip
        assert place["x"] + place["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells
    for panel in panels(name):
        assert panel["title"], panel
        assert panel["description"].endswith("."), panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"] in UNITS, panel["title"]
        assert panel["targets"], panel["title"]
        assert all(t["datasource"]["uid"] == "${datasource}" for t in [panel, *panel["targets"]])
        for target in panel["targets"]:
            assert set(re.findall(r"\$(\w+)", target["expr"])) <= {"instance", "__rate_interval"}
    assert len({panel["title"] for panel in panels(name)}) == len(panels(name))


def test_queries_and_legends_use_only_metrics_and_labels_that_the_page_lists() -> None:
    known = documented()
    for place, query in queries().items():
        for selector in selectors(query):
            metric, _, inside = selector.partition("{")
            if not metric.startswith("triskele_"):
                continue
            name = base_name(metric, known)
            assert name in known, f"{place}: {metric}"
            used = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", inside))
            assert used <= known[name] | {"instance", "job"}, f"{place}: {selector}"


def test_every_metric_stands_on_a_dashboard_or_in_an_alert() -> None:
    known = documented()
    used = {base_name(s.partition("{")[0], known) for query in queries().values() for s in selectors(query)}
    assert set(known) - used == set()


def test_the_chart_gives_members_the_jobs_and_names_that_rules_and_dashboards_use() -> None:
    jobs = {
        job["job_name"]: job["static_configs"] for job in yaml.safe_load(EXAMPLE.read_text("utf-8"))["scrape_configs"]
    }
    for member in ("coordinator", "party-0"):
        manifests = rendered("separate-clusters", member, "--set", "serviceMonitor.enabled=true")
        (monitor,) = of_kind(manifests, "ServiceMonitor")
        given = {r["targetLabel"]: r["replacement"] for r in monitor["spec"]["endpoints"][0]["relabelings"]}
        assert given["instance"] in {static["labels"]["instance"] for static in jobs[given["job"]]}


def test_the_chart_renders_the_rules_as_they_are() -> None:
    (rule,) = of_kind(
        rendered("separate-clusters", "party-0", "--set", "prometheusRule.enabled=true"), "PrometheusRule"
    )
    assert {r["alert"]: r for group in rule["spec"]["groups"] for r in group["rules"]} == alerts()
