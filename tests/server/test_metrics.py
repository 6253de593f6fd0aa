"""docs/metrics.md names every metric, and no label can grow with the federation."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from prometheus_client import REGISTRY, CollectorRegistry, Counter, Histogram

from triskele.identity import Identity
from triskele_server.metrics import coordinator, mpc, party, rpc
from triskele_server.metrics.exposition import Exposition, worker_counts
from triskele_server.metrics.member import MemberCollector
from triskele_server.metrics.mpc import StepMeter
from triskele_server.metrics.round_clock import RoundClock
from triskele_server.provision import provision
from triskele_server.round_state import RoundState
from triskele_server.rpc.tls import TlsFiles

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"
_ROW = re.compile(r"\| `(triskele_\w+)` \| (\w+) \| ([\w, –]+) \|")
LABELS = {"method", "code", "reason", "state", "step", "party", "stage", "kind", "outcome", "certificate", "task"}
OF_ONE_SERVER = {"role", "name", "version", "protocol"}


@pytest.fixture
def member(tmp_path) -> MemberCollector:
    folder = provision(tmp_path / "f", participants=1).directory / "party-0"
    kept = (("triskele_party_shares_bytes", "", tmp_path), ("triskele_coordinator_results_bytes", "", tmp_path))
    tls = TlsFiles(folder / "tls.crt", folder / "tls.key", folder / "ca.crt")
    return MemberCollector(Identity("demo", "party", "0"), tls, tmp_path, tmp_path / "party.db", kept)


def _declared() -> dict[str, tuple[str, tuple[str, ...]]]:
    """Names with types and labels of what the modules declare; a scrape would leave out what has no value yet."""
    found = {}
    for module in (coordinator, mpc, party, rpc):
        assert module.__doc__
    for metric in REGISTRY._collector_to_names:
        name = getattr(metric, "_name", "")
        if name.startswith("triskele_"):
            total = "_total" if metric._type == "counter" else ""
            found[name + total] = (metric._type, tuple(metric._labelnames))
    return found


def test_the_page_names_every_metric_with_its_type_and_labels_and_no_other(member):
    listed = {
        name: (kind, () if labels.strip() == "–" else tuple(label.strip() for label in labels.split(",")))
        for name, kind, labels in _ROW.findall(PAGE.read_text("utf-8"))
    }
    own = {family.name: (family.type, tuple(family.samples[0].labels)) for family in member.collect() if family.samples}
    assert listed == _declared() | own


def test_labels_are_of_bounded_kinds(member):
    for name, (_, labels) in _declared().items():
        assert set(labels) <= LABELS, name
        assert "task" not in labels or name in (
            "triskele_coordinator_poisoning_ratio",
            "triskele_coordinator_privacy_epsilon_spent",
        )
    for family in member.collect():
        assert {label for sample in family.samples for label in sample.labels} <= LABELS | OF_ONE_SERVER


def test_a_members_certificates_and_disk_are_read_at_every_scrape(member):
    def seen() -> dict[str, float]:
        return {s.name + str(s.labels.get("certificate", "")): s.value for f in member.collect() for s in f.samples}

    before = seen()
    assert before["triskele_certificate_expiry_timestamp_secondsown"] > before["triskele_clock_timestamp_seconds"]
    assert before["triskele_disk_free_bytes"] < before["triskele_disk_size_bytes"]
    member.tls.certificate.write_text("no certificate")
    (member.data / "party.db").write_bytes(bytes(1000))
    (member.data / "party.db-wal").write_bytes(bytes(200))
    after = seen()
    assert "triskele_certificate_expiry_timestamp_secondsown" not in after
    assert after["triskele_database_bytes"] == 1200
    assert after["triskele_party_shares_bytes"] > before["triskele_party_shares_bytes"]


def test_what_the_worker_counted_is_added_and_outlives_it():
    own, workers = CollectorRegistry(), CollectorRegistry()
    ours = Counter("triskele_things", "", ["step"], registry=own)
    theirs = Counter("triskele_things", "", ["step"], registry=workers)
    seconds = Histogram("triskele_wait_seconds", "", registry=workers, buckets=(1.0,))
    exposition = Exposition(own)

    def value(name: str, **labels: str) -> float | None:
        samples = [s for f in exposition.collect() for s in f.samples if s.name == name and s.labels == labels]
        assert len(samples) <= 1
        return samples[0].value if samples else None

    ours.labels("a").inc(2)
    theirs.labels("a").inc(3)
    seconds.observe(0.5)
    exposition.heard(tuple(workers.collect()))
    assert (value("triskele_things_total", step="a"), value("triskele_wait_seconds_count")) == (5, 1)
    theirs.labels("a").inc(1)
    exposition.heard(tuple(workers.collect()))
    assert value("triskele_things_total", step="a") == 6
    exposition.worker_ended()
    assert value("triskele_things_total", step="a") == 6
    again = CollectorRegistry()
    Counter("triskele_things", "", ["step"], registry=again).labels("a").inc(10)
    exposition.heard(tuple(again.collect()))
    assert value("triskele_things_total", step="a") == 16


def test_steps_are_counted_by_what_each_one_added():
    now = iter([0.0, 1.0, 4.0])
    meter = StepMeter(lambda: next(now))

    def of(step: str) -> dict[str, float]:
        return {
            s.name: s.value
            for f in worker_counts()
            for s in f.samples
            if s.labels == {"step": step} and not s.name.endswith("_created")
        }

    before = of("gram")
    meter.ended("check", 10, 1000)
    meter.ended("gram", 15, 1700)
    after = of("gram")
    changed = {name: after[name] - before[name] for name in after if after[name] != before[name]}
    assert changed == {
        "triskele_mpc_step_seconds_sum": 3.0,
        "triskele_mpc_step_seconds_count": 1.0,
        "triskele_mpc_communication_rounds_total": 5.0,
        "triskele_mpc_sent_bytes_total": 700.0,
    }


def test_a_rounds_clock_counts_each_state_once_and_forgets_ended_rounds():
    now = iter([0.0, 2.0, 2.5, 7.0, 8.0, 9.0])
    clock = RoundClock("triskele_test", lambda: next(now))
    for state in (RoundState.OPEN, RoundState.SEALED, RoundState.SEALED, RoundState.RELEASED):
        clock.enter("one", state)
    clock.resume("two", RoundState.SEALED)  # since before this process began: its time is not known
    clock.enter("two", RoundState.FAILED)
    read = REGISTRY.get_sample_value
    assert read("triskele_test_round_states_total", {"state": "SEALED"}) == 1
    assert read("triskele_test_round_phase_seconds_sum", {"state": "OPEN"}) == 2.0
    assert read("triskele_test_round_phase_seconds_count", {"state": "SEALED"}) == 1
    assert read("triskele_test_rounds", {"state": "SEALED"}) == 0
    for metric in (clock._entered, clock._held, clock._seconds):
        REGISTRY.unregister(metric)
