"""Metrics about this package itself, in the names that OpenTelemetry's own exporters and processors use.

Off unless ``OTEL_PYTHON_SDK_INTERNAL_METRICS_ENABLED=true`` when a component is made; then this module is imported,
and not before. The names are of stability Development (semantic conventions for SDK metrics, checked November 2026),
which is why the SDK's own are behind the same switch.

=============================================  ======================================================================
metric                                         what is counted here
=============================================  ======================================================================
``otel.sdk.exporter.span.exported``            Spans of tasks and steps that `LettaSpanExporter` took over; spans that
                                               are of no interest are not counted. With ``error.type`` spans that it
                                               did not take over (``already_shutdown``, ``LettaConfigurationError``),
                                               and later, once more, task ends that it had taken over and delivery
                                               gave up (``refused_by_letta``, ``not_delivered_before_shutdown``).
``otel.sdk.exporter.span.inflight``            Reports that wait for Letta or are under way to it.
``otel.sdk.exporter.operation.duration``       Seconds of each request to Letta; a message's lasts the agent's whole
                                               turn. With ``error.type`` and, if Letta answered,
                                               ``http.response.status_code`` for requests that failed.
``otel.sdk.processor.span.processed``          Spans of tasks and steps that ended in `LettaSpanProcessor`; with
                                               ``error.type`` those that came after its shutdown or without settings.
=============================================  ======================================================================

Taken over is not delivered: `LettaSpanExporter.export` returns at once, and reports may reach Letta minutes later, with
several spans in one request, or on the board. So an exporter that works is seen in ``exported``, and a Letta that
does not in ``inflight``, ``operation.duration`` and the errors. A pipeline that several components share counts its
delivery once, under the component that came first: that may be a processor, and then ``otel.sdk.exporter.*`` carry
its name.

There is no ``otel.sdk.processor.span.queue.size``. A live processor has no queue of spans; and the SDK registers that
one as an observable instrument, of which the second to come is ignored, so that ours would silence its own.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from opentelemetry import metrics
from opentelemetry.sdk.trace import ReadableSpan

from otel_letta.delivery.stats import Stats
from otel_letta.errors import LettaConfigurationError, LettaError
from otel_letta.tracking.reading import Reading, may_declare

if TYPE_CHECKING:
    from otel_letta.letta.transport import Transport
    from otel_letta.settings import Settings

_logger = logging.getLogger(__name__)

_METER = "opentelemetry-sdk"
_ERROR_TYPE = "error.type"
_STATUS_CODE = "http.response.status_code"

_numbers: Counter[str] = Counter()


class SelfMetrics:
    """The metrics of one component. Its methods do not raise.

    Args:
        kind: the component's class name.
        settings: None if they are bad.
        meter_provider: default is the global one.
    """

    def __init__(self, kind: str, settings: Settings | None, meter_provider: metrics.MeterProvider | None) -> None:
        # The conventions want the type's full name for a component that is none of theirs.
        component = f"otel_letta.{kind}"
        number = _numbers[component]
        _numbers[component] += 1
        self._component: dict[str, Any] = {
            "otel.component.type": component,
            "otel.component.name": f"{component}/{number}",
        }
        self._exporter = self._component if settings is None else {**self._component, **_server(settings.base_url)}
        self._error = LettaConfigurationError.__name__ if settings is None else None
        # Not from the conventions' package: the oldest version that we take does not know them yet. Descriptions
        # and units are those of the newest, since instruments of one name have to agree in all of it.
        meter = (meter_provider or metrics.get_meter_provider()).get_meter(_METER)
        self._exported = meter.create_counter(
            "otel.sdk.exporter.span.exported",
            "{span}",
            "The number of spans for which the export has finished, either successful or failed.",
        )
        self._inflight = meter.create_up_down_counter(
            "otel.sdk.exporter.span.inflight",
            "{span}",
            "The number of spans which were passed to the exporter, but that have not been exported yet "
            "(neither successful, nor failed).",
        )
        self._duration = meter.create_histogram(
            "otel.sdk.exporter.operation.duration", "s", "The duration of exporting a batch of telemetry records."
        )
        self._processed = meter.create_counter(
            "otel.sdk.processor.span.processed",
            "{span}",
            "The number of spans for which the processing has finished, either successful or failed.",
        )
        self._lock = threading.RLock()
        self._lanes: Callable[[], Mapping[str, Mapping[str, Any]]] = dict
        self._known_waiting = 0

    def exported(self, spans: Sequence[ReadableSpan], error: str | None) -> None:
        """An exporter took these spans, or did not because of ``error``."""
        with _quietly():
            number = sum(map(_counts, spans))
            if number:
                self._exported.add(number, _with_error(self._exporter, error or self._error))

    def processed(self, span: ReadableSpan, error: str | None) -> None:
        """A processor saw the end of this span, or could make nothing of it because of ``error``."""
        try:  # not `_quietly`: every span of the program passes here
            if _counts(span):
                self._processed.add(1, _with_error(self._component, error or self._error))
        except Exception:
            _logger.debug("a metric was not recorded", exc_info=True)

    # -- delivery, which a pipeline does for all of its components --------------------------------------------------

    def timed(self, transport: Transport) -> Transport:
        """The transport, with its requests timed."""
        return _Timed(transport, self)

    def stats(self, lanes: Callable[[], Mapping[str, Mapping[str, Any]]]) -> Stats:
        """Return the counts of a pipeline, from its first report on. ``lanes``: what waits, as in `Desk.stats`."""
        self._lanes = lanes
        with self._lock:
            self._known_waiting = 0  # a forked child begins anew
        return _MeasuredStats(self)

    def request_done(self, seconds: float, error: BaseException | None) -> None:
        with _quietly():
            attributes = _with_error(self._exporter, None if error is None else type(error).__name__)
            if isinstance(error, LettaError) and error.status is not None:
                attributes = {**attributes, _STATUS_CODE: error.status}
            self._duration.record(seconds, attributes)

    def given_up(self, number: int, error: str) -> None:
        with _quietly():
            self._exported.add(number, _with_error(self._exporter, error))

    def count_waiting(self) -> None:
        """Reports came or went."""
        with _quietly():
            # Before the lock is taken, since it takes the pipeline's, under which we may be called.
            now = sum(lane["waiting"] + lane["in_flight"] for lane in self._lanes().values())
            with self._lock:
                more, self._known_waiting = now - self._known_waiting, now
            if more:
                self._inflight.add(more, self._exporter)


class _MeasuredStats(Stats):
    def __init__(self, measures: SelfMetrics) -> None:
        super().__init__()
        self._measures = measures

    def count(self, what: str, number: int = 1) -> None:
        super().count(what, number)
        if what in _MOVES:
            self._measures.count_waiting()

    def drop(self, reason: str, number: int = 1) -> None:
        super().drop(reason, number)
        if reason.startswith(_END):  # progress may go: there will be more of it
            self._measures.given_up(number, reason.removeprefix(_END).lower().replace(" ", "_"))
        self._measures.count_waiting()


_END = "end "
_MOVES = frozenset({"retries", "sent", "conflated", "held"})
"""Counts that go with a report's coming or going; what sets out, `_Timed` sees."""


class _Timed:
    """A transport whose requests that carry reports are timed; all else is the transport's own."""

    def __init__(self, transport: Any, measures: SelfMetrics) -> None:
        self._transport = transport
        self._measures = measures

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def send(self, *arguments: Any, **keywords: Any) -> Any:
        return self._time(self._transport.send, *arguments, **keywords)

    def create_block(self, *arguments: Any, **keywords: Any) -> Any:
        return self._time(self._transport.create_block, *arguments, **keywords)

    def write_block(self, *arguments: Any, **keywords: Any) -> Any:
        return self._time(self._transport.write_block, *arguments, **keywords)

    def _time(self, call: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
        self._measures.count_waiting()
        began = time.perf_counter()
        try:
            answer = call(*arguments, **keywords)
        except BaseException as error:
            self._measures.request_done(time.perf_counter() - began, error)
            raise
        self._measures.request_done(time.perf_counter() - began, None)
        return answer


def _counts(span: ReadableSpan) -> bool:
    """Return True for a span of a task or step; also a span of another kind may carry a ``status``."""
    if not may_declare(span.attributes or {}):
        return False
    reading = Reading.of(span)
    return reading.role is not None or reading.declaration is not None


def _server(url: str) -> dict[str, Any]:
    parts = urlsplit(url)
    return {
        "server.address": parts.hostname or "",
        "server.port": parts.port or (443 if parts.scheme == "https" else 80),
    }


def _with_error(attributes: dict[str, Any], error: str | None) -> dict[str, Any]:
    return attributes if error is None else {**attributes, _ERROR_TYPE: error}


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Metrics must not hurt what they measure."""
    try:
        yield
    except Exception:
        _logger.debug("a metric was not recorded", exc_info=True)
