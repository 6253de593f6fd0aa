"""The rules and dashboards of deploy/, and the queries in them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parent.parent.parent
RULES = ROOT / "deploy" / "helm" / "triskele" / "files" / "alerts.yaml"
EXAMPLE = ROOT / "deploy" / "prometheus" / "prometheus.yaml"
GRAFANA = ROOT / "deploy" / "grafana"
NAMES = ("overview", "party", "round", "security")
BOARDS = {name: json.loads((GRAFANA / f"triskele-{name}.json").read_text("utf-8")) for name in NAMES}


def rule_groups() -> list[dict[str, Any]]:
    """The groups of the rules file."""
    return list(yaml.safe_load(RULES.read_text("utf-8"))["groups"])


def alerts() -> dict[str, dict[str, Any]]:
    """Every alert by name."""
    return {rule["alert"]: rule for group in rule_groups() for rule in group["rules"]}


def selectors(query: str) -> list[str]:
    """The series that a query reads, each as a query of its own."""
    return [match[0] for match in re.finditer(r"\b(?:up|triskele_\w+|process_\w+)\b(?:\{[^}]*\})?", query)]


def panels(name: str) -> list[dict]:
    return [panel for panel in BOARDS[name]["panels"] if panel["type"] != "row"]


def queries() -> dict[str, str]:
    """Every query of every panel and alert, by where it stands."""
    found = {f"alert {name}": rule["expr"] for name, rule in alerts().items()}
    for name in NAMES:
        for panel in panels(name):
            found |= {f"{name}/{panel['title']}/{t['refId']}": t["expr"] for t in panel["targets"]}
    return found
