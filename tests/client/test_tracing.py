"""A round's spans find their trace by themselves, nobody moves them to another, and who does not trace pays nothing."""

from __future__ import annotations

import contextvars
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from triskele.errors import ConfigurationError
from triskele.tracing import HEADER, VARIABLE, RoundTrace, Traces, round_ids

export = pytest.importorskip("opentelemetry.sdk.trace.export", reason="the extra otel is not installed")

ROUND = RoundTrace(bytes(range(32)), 7)
TRACE, ROOT = ROUND.ids
OTHER = RoundTrace(ROUND.task, 8).ids[0]


@pytest.fixture
def traced() -> Iterator[tuple[Traces, Any]]:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    kept = InMemorySpanExporter()
    provider = TracerProvider(id_generator=round_ids())
    provider.add_span_processor(export.SimpleSpanProcessor(kept))
    traces = Traces()
    traces.use(provider)
    yield traces, kept
    provider.shutdown()


def serve(traces: Traces, metadata: Any, handler: Callable[[], object]) -> None:
    """A call in a context of its own, as gRPC serves it."""

    def run() -> None:
        with traces.serving("/method", metadata):
            handler()

    contextvars.copy_context().run(run)


def test_root_has_the_rounds_own_ids_and_what_is_below_it_finds_them(traced: tuple[Traces, Any]) -> None:
    traces, kept = traced
    with traces.round("round", ROUND, root=True), traces.span("phase"):
        pass
    with traces.round("elsewhere", ROUND):
        pass
    phase, root, elsewhere = kept.get_finished_spans()
    assert (root.context.trace_id, root.context.span_id, root.parent) == (TRACE, ROOT, None)
    assert phase.parent.span_id == elsewhere.parent.span_id == ROOT
    assert {s.context.trace_id for s in (phase, elsewhere)} == {TRACE}
    assert len({s.context.span_id for s in (phase, root, elsewhere)}) == 3


def test_the_place_that_one_process_tells_is_the_parent_in_the_next(traced: tuple[Traces, Any]) -> None:
    traces, kept = traced
    with traces.round("caller", ROUND):
        told = traces.metadata()

    def handler() -> None:
        traces.about(ROUND)
        with traces.span("inside"):
            assert traces.parent().split("-")[1] == f"{TRACE:032x}"

    serve(traces, [("other", "x"), *told], handler)
    caller, inside, served = kept.get_finished_spans()
    assert served.parent.span_id == caller.context.span_id
    assert inside.parent.span_id == served.context.span_id


@pytest.mark.parametrize(
    "told",
    [
        f"00-{OTHER:032x}-00000000000000aa-01",  # another round's trace
        f"00-{TRACE:032x}-0000000000000000-01",
        f"00-{TRACE:032x}-00000000000000AA-01",
        f"01-{TRACE:032x}-00000000000000aa-01-more",
        "no place at all",
        "",
    ],
)
def test_a_place_that_is_not_in_the_rounds_trace_is_passed_over(traced: tuple[Traces, Any], told: str) -> None:
    traces, kept = traced
    serve(traces, [(HEADER, told)], lambda: traces.about(ROUND))
    (served,) = kept.get_finished_spans()
    assert (served.context.trace_id, served.parent.span_id) == (TRACE, ROOT)


def test_a_caller_that_says_its_trace_is_not_recorded_does_not_hide_the_call(traced: tuple[Traces, Any]) -> None:
    traces, kept = traced
    serve(traces, [(HEADER, f"00-{TRACE:032x}-00000000000000aa-00")], lambda: traces.about(ROUND))
    assert [s.parent.span_id for s in kept.get_finished_spans()] == [0xAA]


def test_a_call_about_no_round_and_a_span_outside_a_round_leave_nothing(traced: tuple[Traces, Any]) -> None:
    traces, kept = traced
    serve(traces, [(HEADER, f"00-{TRACE:032x}-00000000000000aa-01")], lambda: None)
    with traces.span("alone"):
        assert traces.metadata() == ()
    traces.steps().ended("step")
    assert kept.get_finished_spans() == ()


def test_an_error_is_told_by_its_kind_never_by_its_text(traced: tuple[Traces, Any]) -> None:
    traces, kept = traced
    with pytest.raises(ValueError, match="secret"), traces.round("round", ROUND):
        raise ValueError("secret 123456")
    (span,) = kept.get_finished_spans()
    assert (span.status.description, span.events) == ("ValueError", ())
    assert "secret" not in span.to_json()


@pytest.mark.parametrize("value", ["on", "folder:", "folder:/no/such/folder", "otlp:http://x"])
def test_a_variable_of_another_form_is_refused(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv(VARIABLE, value)
    with pytest.raises(ConfigurationError, match=VARIABLE):
        Traces().configure("party-0")


def test_without_the_extra_the_variable_is_refused_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "otlp")
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.resources", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'triskele\[otel\]'"):
        Traces().configure("party-0")


def test_who_does_not_trace_imports_nothing_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    code = (
        "import sys; from triskele.tracing import TRACES, RoundTrace as R; import triskele; TRACES.configure('x')\n"
        "with TRACES.round('r', R(b'', 1), root=True), TRACES.span('s'), TRACES.serving('m', []):\n"
        "    TRACES.about(R(b'', 1)); TRACES.note(a=1); TRACES.steps().ended('x'); TRACES.metadata(); TRACES.flush()\n"
        "print([m for m in sys.modules if m.startswith('opentelemetry')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
