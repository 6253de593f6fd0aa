"""The order of the test files: with two workers (`--dist loadfile`) the long ones go first, so both end together."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).parent
LONGEST_FIRST = (  # by seconds; `pytest --durations 40` shows when it needs another order
    "examples/test_examples.py",
    "e2e/test_federation.py",
    "simulation/test_fault_simulation.py",
    "server/party/test_attempts.py",
    "server/coordinator/test_coordinator_process.py",
    "server/test_demo.py",
    "e2e/test_operators_day.py",
    "deploy/test_pid_one.py",
    "deploy/test_operations_page.py",
    "examples/test_wheel.py",
    "deploy/test_prometheus.py",
    "e2e/test_commands.py",
    "docs/test_code.py",
    "fuzz/test_open_ports.py",
    "client/with_server/test_several_tasks.py",
    "fuzz/test_no_leak.py",
    "oracle/test_simulate_against_oracles.py",
    "simulation/test_planted_bugs.py",
    "server/party/test_lying_party.py",
    "server/party/test_upload_limits.py",
    "server/party/test_party_process.py",
    "server/coordinator/test_database_outage.py",
    "server/party/test_round_view.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A file's own tests keep their order."""
    places = {ROOT / name: place for place, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: places.get(item.path, len(places)))
