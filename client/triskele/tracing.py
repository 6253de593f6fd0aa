"""OpenTelemetry traces of rounds, where TRISKELE_TRACES asks for them: else nothing is imported and nothing done.

One round is one trace, across coordinator, parties, their workers, and participants that trace too. Its id and the id
of its root span derive from task and round, so every process finds the trace by itself, also after a restart, and what
a caller says of its own place (W3C `traceparent`) counts only within the trace of the round that it asks about: nobody
can put a span of ours into another trace, or keep it out of its own. Calls that are about no round leave no span.

Spans hold names, numbers and states that metrics and logs tell too: never a share, a key, a value, or an error's text.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

from triskele.errors import ConfigurationError

VARIABLE: Final = "TRISKELE_TRACES"
"""`otlp`; `folder:PATH`, where each process writes JSON lines; `global`, what the program has set up for itself."""

HEADER: Final = "traceparent"
_PARENT: Final = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}")

Metadata = tuple[tuple[str, str], ...]


class RoundTrace(NamedTuple):
    """The trace of one round."""

    task: bytes  # digest
    number: int

    @property
    def ids(self) -> tuple[int, int]:
        """Trace id and root span id; neither is 0."""
        digest = hashlib.sha256(b"triskele/v1/trace" + self.task + self.number.to_bytes(8, "big")).digest()
        return int.from_bytes(digest[:16], "big") or 1, int.from_bytes(digest[16:24], "big") or 1


class Traces:
    """What this process traces: nothing, until `configure` finds the variable. Safe to use from several threads."""

    def __init__(self) -> None:
        self._tracer: Any = None
        self._flush: Callable[[], object] = int

    def configure(self, process: str) -> None:
        """Trace from now on if the environment says so; the first call counts. `process`: such as "party-0".

        Raises ConfigurationError if the variable has another value, or the packages of the extra are missing.
        """
        told = os.environ.get(VARIABLE, "")
        if not told or self._tracer is not None:
            return
        try:
            if told == "global":
                from opentelemetry import trace  # noqa: PLC0415  costs nothing where nobody traces

                self._tracer = trace.get_tracer("triskele")
            else:
                self.use(_provider(told, process))
        except ModuleNotFoundError as error:
            raise ConfigurationError(
                f"{VARIABLE} is set, and {error.name} is not installed: pip install 'triskele[otel]'"
            ) from error

    def use(self, provider: Any) -> None:
        """Trace with an SDK's TracerProvider; None ends it."""
        self._tracer = None if provider is None else provider.get_tracer("triskele")
        self._flush = int if provider is None else provider.force_flush

    def flush(self) -> None:
        """Send what has not been sent yet; for a process that ends without Python's own end."""
        self._flush()

    @contextmanager
    def round(
        self, name: str, of: RoundTrace, parent: str = "", *, root: bool = False, **attributes: str | int
    ) -> Iterator[None]:
        """A span of the round's trace: below `parent` (a traceparent) if that is of this trace, else below the root.

        root: this span is the root itself. Only one in the federation may be it.
        """
        if self._tracer is None:
            yield
        else:
            with self._current(self._started(name, of, parent, root=root, attributes=attributes)):
                yield

    @contextmanager
    def span(self, name: str, **attributes: str | int) -> Iterator[None]:
        """A span below the current one; none where no round is traced."""
        if self._tracer is None or not self.parent():
            yield
        else:
            with self._current(self._tracer.start_span(name, attributes=_named(attributes))):
                yield

    def note(self, **attributes: str | int) -> None:
        """Add to the current span."""
        if self._tracer is not None:
            from opentelemetry import trace  # noqa: PLC0415  as above

            trace.get_current_span().set_attributes(_named(attributes))

    def steps(self) -> StepTrace:
        """The steps of the current span, from now on."""
        return StepTrace(self._tracer if self.parent() else None)

    def parent(self) -> str:
        """The current span as a traceparent, "" if there is none: for another process, or for a log line."""
        if self._tracer is None:
            return ""
        from opentelemetry import trace  # noqa: PLC0415  as above

        here = trace.get_current_span().get_span_context()
        return f"00-{here.trace_id:032x}-{here.span_id:016x}-{here.trace_flags & 1:02x}" if here.is_valid else ""

    def metadata(self) -> Metadata:
        """What a call adds to its metadata."""
        parent = self.parent()
        return ((HEADER, parent),) if parent else ()

    @contextmanager
    def serving(self, method: str, metadata: Any) -> Iterator[None]:
        """Around a call that is served, in a context of its own: a span if it turns out to be `about` a round."""
        if self._tracer is None:
            yield
            return
        call = _Call(method, str(next((value for key, value in metadata or () if key == HEADER), "")))
        _CALL.set(call)
        try:
            yield
        except BaseException as error:
            call.end(error)
            raise
        call.end(None)

    def about(self, of: RoundTrace) -> None:
        """The call that is served now is about this round: what it does from here on belongs to the round's trace."""
        call = _CALL.get()
        if self._tracer is None or call is None or call.span is not None:
            return
        from opentelemetry import context, trace  # noqa: PLC0415  as above

        span = self._started(call.method, of, call.parent, since=call.since, kind=trace.SpanKind.SERVER)
        call.span = span
        context.attach(trace.set_span_in_context(span))  # never detached: the context ends with the call

    def _started(
        self, name: str, of: RoundTrace, parent: str, *, root: bool = False, attributes: Any = None, **options: Any
    ) -> Any:
        from opentelemetry import context, trace  # noqa: PLC0415  as above

        trace_id, root_id = of.ids
        told = _PARENT.fullmatch(parent)
        above = int(told[2], 16) if told is not None and int(told[1], 16) == trace_id else root_id
        place = trace.SpanContext(trace_id, above or root_id, True, trace.TraceFlags(trace.TraceFlags.SAMPLED))
        inside = context.Context() if root else trace.set_span_in_context(trace.NonRecordingSpan(place))
        named = _named({"task": of.task[:8].hex(), "round": of.number, **(attributes or {})})
        token = _ROOT.set(of if root else None)
        try:
            return self._tracer.start_span(
                name, inside, attributes=named, start_time=options.pop("since", None), **options
            )
        finally:
            _ROOT.reset(token)

    @contextmanager
    def _current(self, span: Any) -> Iterator[None]:
        from opentelemetry import context, trace  # noqa: PLC0415  as above

        token = context.attach(trace.set_span_in_context(span))
        try:
            yield
        except BaseException as error:
            _end(span, error)
            raise
        else:
            _end(span, None)
        finally:
            context.detach(token)


class StepTrace:
    """Spans, one after the other, of something that tells the end of each of its steps."""

    def __init__(self, tracer: Any) -> None:
        self._tracer = tracer
        self._since = time.time_ns()

    def ended(self, name: str, **attributes: str | int) -> None:
        """A step has ended; it began when the one before it ended."""
        if self._tracer is not None:
            now = time.time_ns()
            self._tracer.start_span(name, attributes=_named(attributes), start_time=self._since).end(now)
            self._since = now


@dataclass
class _Call:
    method: str
    parent: str
    since: int = field(default_factory=time.time_ns)
    span: Any = None

    def end(self, error: BaseException | None) -> None:
        if self.span is not None:
            _end(self.span, error)


def _end(span: Any, error: BaseException | None) -> None:
    """With the kind of an error; its text may quote data."""
    if error is not None and not isinstance(error, GeneratorExit):
        from opentelemetry.trace import StatusCode  # noqa: PLC0415  as above

        span.set_status(StatusCode.ERROR, type(error).__name__)
    span.end()


def _named(attributes: dict[str, str | int]) -> dict[str, str | int]:
    return {f"triskele.{name}": value for name, value in attributes.items()}


def _provider(told: str, process: str) -> Any:
    from opentelemetry.sdk.resources import Resource  # noqa: PLC0415  as above
    from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415  as above
    from opentelemetry.sdk.trace.export import (  # noqa: PLC0415  as above
        BatchSpanProcessor,
        ConsoleSpanExporter,
        SimpleSpanProcessor,
    )

    kind, _, folder = told.partition(":")
    service = f"triskele-{process.partition('-')[0]}"
    resource = Resource.create({"service.name": service, "service.instance.id": process})
    provider = TracerProvider(resource=resource, id_generator=round_ids())
    if told == "otlp":
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import (  # noqa: PLC0415  as above
            OTLPSpanExporter,
        )

        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    elif kind == "folder" and folder:
        file = Path(folder) / f"{process}.jsonl"
        try:
            file.touch(mode=0o600)
            out = file.open("a", encoding="utf-8")
        except OSError as error:
            raise ConfigurationError(f"{VARIABLE}: {folder} cannot be written ({error.strerror})") from error
        provider.add_span_processor(SimpleSpanProcessor(ConsoleSpanExporter(out=out, formatter=_line)))
    else:
        raise ConfigurationError(f"{VARIABLE} is {told!r}; it may be otlp, folder:PATH or global")
    return provider


def _line(span: Any) -> str:
    return str(span.to_json(indent=None)) + "\n"


def round_ids() -> Any:
    """The SDK's source of ids, but for the roots of rounds."""
    from opentelemetry.sdk.trace.id_generator import RandomIdGenerator  # noqa: PLC0415  as above

    class RoundIds(RandomIdGenerator):
        def generate_trace_id(self) -> int:
            root = _ROOT.get()
            return super().generate_trace_id() if root is None else root.ids[0]

        def generate_span_id(self) -> int:
            root = _ROOT.get()
            return super().generate_span_id() if root is None else root.ids[1]

        def is_trace_id_random(self) -> bool:
            return False

    return RoundIds()


_ROOT: Final[ContextVar[RoundTrace | None]] = ContextVar("triskele_root", default=None)
_CALL: Final[ContextVar[_Call | None]] = ContextVar("triskele_call", default=None)

TRACES: Final = Traces()
"""Of this process."""
