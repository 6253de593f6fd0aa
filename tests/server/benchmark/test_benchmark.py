"""`triskele bench`: what it sends, what it reads from logs, what it fits; and a plaintext round over real gRPC."""

from __future__ import annotations

import json
from io import StringIO

import numpy as np
import pytest
from bench.rounds import DEFAULT_RULES, of_the_rule
from rich.console import Console

from triskele.errors import InvalidTask
from triskele_server.benchmark.clients import take_part
from triskele_server.benchmark.measure import Comparison, Measured, Process, _plain_server
from triskele_server.benchmark.plain import PlainServer
from triskele_server.benchmark.report import show
from triskele_server.benchmark.scene import CLIP_NORM, RoundTimes, Scene, Updates, rule_options
from triskele_server.benchmark.steps import Step, read_steps
from triskele_server.benchmark.sweep import LEAST_DIMENSION, growth, sizes
from triskele_server.config import load_coordinator
from triskele_server.provision import PortPlan, provision
from triskele_server.rules import check_task

RULES = ("mean", "norm-clip", "flame", "fltrust", "multi-krum", "nnm+multi-krum", "bucketing+median")


def _times(wall: float, upload: float, n: int = 6) -> RoundTimes:
    return RoundTimes(100.0, (100.0 + upload,) * n, (100.0 + wall,) * n, 1.0, 10.0, 1.0)


def _comparison(n: int, d: int, *, filtering: float = 0.5) -> Comparison:
    """A round whose data path takes n·d / 1e6 seconds and n / 10 more, half of it the upload."""
    upload = n * d / 2e6 + n / 20
    ends = np.cumsum([upload, 0, 0, upload / 2, 0.1, 0.1, filtering, upload / 2]) + 100.0
    names = ("seal", "coin", "sketch", "check", "gram", "filter", "combine")
    steps = {name: Step(end, 1, 8) for name, end in zip(names, ends[1:], strict=True)}
    secure = Measured(_times(ends[-1] - 100.0, upload), {"party-0": Process(4.0, 1.0)}, 16 * n * d)
    before, after = (
        Measured(_times(n * d / 4e6 * drift, n * d / 4e6), {"server": Process(drift, 1.0)}, 4 * n * d)
        for drift in (0.5, 1.5)
    )
    return Comparison(Scene(n, d, "norm-clip"), secure, (before, after), steps)


@pytest.mark.parametrize("rule", RULES)
def test_every_scene_is_a_task_that_a_party_would_run(rule):
    check_task(Scene(100, 1000, rule).task().spec)


def test_a_scene_is_in_the_ring_that_was_asked_for():
    asked = {ring: Scene(100, 1_000_000, "norm-clip", ring=ring).task().spec.ring_bits for ring in ("auto", 32, 64)}
    assert asked == {"auto": 32, 32: 32, 64: 64}
    assert Scene(100, 1000, "bucketing+median").task().spec.ring_bits == 64
    for rule, ring in (("bucketing+median", 32), ("norm-clip", "16")):
        with pytest.raises(InvalidTask):
            Scene(100, 1000, rule, ring=ring).task()


def test_only_rules_that_expect_attackers_are_told_how_many():
    assert rule_options("norm-clip", 100) == {}
    assert rule_options("multi-krum", 100) == {"num_malicious_nodes": 20, "num_nodes_to_select": 60}


def test_updates_are_as_long_as_the_clip_norm_and_differ():
    updates = Updates(10_000)
    rows = np.array([updates.row(i) for i in range(10)])
    assert np.allclose(np.linalg.norm(rows, axis=1), CLIP_NORM, rtol=0.05)
    cosines = rows @ rows.T
    honest = [i for i in range(10) if i % 5 != 4]
    assert np.allclose(cosines[np.ix_(honest, honest)], 0.5 + 0.5 * np.eye(8), atol=0.1)
    assert np.all(cosines[4, honest] < -0.4)
    assert updates.likeness(rows[honest].mean(axis=0)) > 0.9 > updates.likeness(rows[4])


def test_phases_add_up_to_the_wall():
    measured = _comparison(12, 50_000)
    assert sum(measured.phases.values()) == pytest.approx(measured.secure.times.wall)
    assert measured.phases["filter"] == pytest.approx(0.5)
    assert measured.cpu_ratio == 4.0
    assert measured.plain_wall == pytest.approx(12 * 50_000 / 4e6)
    assert measured.ratio == pytest.approx(measured.secure.times.wall / measured.plain_wall)


def test_steps_are_read_from_the_round_after_the_offset(tmp_path):
    def line(second: int, step: str, rounds: int, sent: int) -> str:
        told = {"event": "step", "step": step, "rounds": rounds, "bytes_sent": sent}
        return json.dumps({**told, "timestamp": f"2026-01-01T00:00:{second:02d}.000000Z"}) + "\n"

    logs = {}
    for party in range(3):
        path = tmp_path / f"party-{party}.log"
        path.write_text(line(1, "seal", 9, 9))
        offset = path.stat().st_size
        path.write_text(path.read_text() + line(10 + party, "seal", 4, 100) + line(20, "filter", 50 + party, 300))
        logs[path] = offset
    found = read_steps(logs)
    assert (found["seal"].rounds, found["seal"].bytes_sent) == (4, 100)
    assert (found["filter"].rounds, found["filter"].bytes_sent) == (48, 200)
    assert found["filter"].ended - found["seal"].ended == pytest.approx(8.0)


def test_a_sweep_finds_the_exponents_it_was_given():
    measured = [_comparison(s.participants, s.dimension) for s in sizes(Scene(48, 100_000, "norm-clip"))]
    found = growth(measured)
    assert found.exponent == pytest.approx(1.0, abs=0.01)
    assert found.plain_exponent == pytest.approx(1.0, abs=0.01)
    assert 0.1 < found.whole_exponent < 0.9
    assert found.filter_spread == pytest.approx({12: 1.0, 24: 1.0, 48: 1.0})
    slower = [_comparison(12, LEAST_DIMENSION), _comparison(12, 1000), _comparison(12, 4000, filtering=1.5)]
    assert growth(slower).filter_spread[12] == pytest.approx(3.0)


def test_a_sweeps_table_is_not_cut_on_80_columns():
    console = Console(width=80, record=True, file=StringIO())
    show(console, [_comparison(n, d) for n in (50, 100) for d in (500_000, 1_000_000)], None, {})
    assert "…" not in console.export_text()


def test_a_plaintext_round_gives_everybody_the_mean(tmp_path):
    n, d = 6, 300_000
    made = provision(tmp_path / "federation", participants=n, ports=PortPlan.free())
    config = load_coordinator(made.coordinator)
    given = PlainServer(config.tls.files, config.federation, n, d, tmp_path / "log")
    paths = list(made.participants.values())
    with _plain_server(given) as (_, port, pipe):
        times = take_part(paths, dimension=d, task="", address=f"127.0.0.1:{port}")
        pipe.send(None)
        received = pipe.recv()
    updates = Updates(d)
    assert times.likeness == pytest.approx(updates.likeness(np.mean([updates.row(i) for i in range(n)], axis=0)))
    assert len(times.done) == len(times.uploaded) == n
    assert 4 * n * d < received < 4.01 * n * d


@pytest.mark.parametrize("rule", DEFAULT_RULES.split(","))
def test_the_messages_of_every_rule_can_be_traced(rule):
    transports, _ = of_the_rule(rule, 6, 0.0)
    assert all(transport.depth > 0 and transport.traffic.bytes_sent > 0 for transport in transports)
