"""A real Prometheus that scrapes the processes of a local federation, and its HTTP API."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Self

import pytest
import yaml
from monitoring_files import EXAMPLE, ROOT, rule_groups

from triskele_server.local_federation import COORDINATOR, PARTY_NAMES, LocalFederation

CONSOLES = ROOT / "deploy" / "prometheus" / "consoles"
QUICK = "triskele-availability"  # the group whose alerts the tests do not wait minutes for

Series = tuple[dict[str, str], float]


def program(name: str) -> str:
    """Where prometheus or promtool is; skips the test where Debian's package is not installed."""
    found = shutil.which(name)
    if found is None:
        # `make test` asks for no root, and Debian has this program as a package only; .ci/run installs it first.
        pytest.skip(f"no {name} here: apt-get install prometheus (.ci/run does)")
    return found


def _free_port() -> int:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        return int(holder.getsockname()[1])


class Prometheus:
    """The example configuration with this federation's ports, a scrape per second, and quick availability alerts."""

    def __init__(self, folder: Path, federation: LocalFederation) -> None:
        folder.mkdir()
        self._folder = folder
        self.url = f"http://127.0.0.1:{_free_port()}"
        rules = {"groups": rule_groups()}
        for group in rules["groups"]:
            for rule in group["rules"] if group["name"] == QUICK else ():
                rule["for"] = "1s"
        (folder / "alerts.yaml").write_text(yaml.safe_dump(rules))
        config = yaml.safe_load(EXAMPLE.read_text("utf-8"))
        config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        config["rule_files"] = ["alerts.yaml"]
        ports = dict(zip(PARTY_NAMES, federation.ports.parties, strict=True)) | {
            COORDINATOR: federation.ports.coordinator
        }
        for job in config["scrape_configs"]:
            for target in job["static_configs"]:
                target["targets"] = [f"127.0.0.1:{ports[target['labels']['instance']].metrics}"]
        (folder / "prometheus.yaml").write_text(yaml.safe_dump(config))

    def __enter__(self) -> Self:
        self._log = (self._folder / "log").open("wb")
        address = self.url.removeprefix("http://")
        command = [
            program("prometheus"),
            f"--config.file={self._folder / 'prometheus.yaml'}",
            f"--storage.tsdb.path={self._folder / 'data'}",
            f"--web.listen-address={address}",
            f"--web.console.templates={CONSOLES}",
            f"--web.console.libraries={CONSOLES}",
        ]
        self._process = subprocess.Popen(command, stdout=self._log, stderr=self._log, stdin=subprocess.DEVNULL)
        wait_until(self._ready, 20, "Prometheus is ready")
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(20)
        self._log.close()

    def get(self, path: str) -> str:
        """A page, such as a console."""
        with urllib.request.urlopen(self.url + path, timeout=10) as reply:  # noqa: S310  our own http address
            return str(reply.read().decode())

    def query(self, expression: str) -> list[Series]:
        """An instant query: labels and value of each series; a scalar has no labels. Fails the test on an error."""
        encoded = urllib.parse.urlencode({"query": expression})
        try:
            data = json.loads(self.get(f"/api/v1/query?{encoded}"))["data"]
        except urllib.error.HTTPError as error:
            pytest.fail(f"{expression}: {error.read().decode()}")
        if data["resultType"] == "scalar":
            return [({}, float(data["result"][1]))]
        return [(series["metric"], float(series["value"][1])) for series in data["result"]]

    def firing(self) -> set[str]:
        """Names of the alerts that fire now."""
        return {labels["alertname"] for labels, _ in self.query('ALERTS{alertstate="firing"}')}

    def _ready(self) -> bool:
        try:
            return "Ready" in self.get("/-/ready")
        except OSError:
            assert self._process.poll() is None, (self._folder / "log").read_text()[-2000:]
            return False


def wait_until(condition: Callable[[], bool], seconds: float, what: str) -> float:
    """Poll; returns the seconds that it took and fails the test after `seconds`."""
    started = time.monotonic()
    while not condition():
        if time.monotonic() > started + seconds:
            pytest.fail(f"not within {seconds:g} s: {what}")
        time.sleep(0.2)
    return time.monotonic() - started
