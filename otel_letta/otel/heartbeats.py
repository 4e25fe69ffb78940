"""`LettaHeartbeatProcessor`: live tasks for a receiver elsewhere, from programs that know no Letta."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
import weakref
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor

from otel_letta import semconv
from otel_letta.delivery.stats import Throttle
from otel_letta.letta.clients import Clients
from otel_letta.otlp.writing import logs_request, span_record
from otel_letta.runtime import fork, wake
from otel_letta.runtime.suppress import is_suppressed, suppress_tracing
from otel_letta.tracking.conventions import ASKED
from otel_letta.tracking.declared import is_progress_event
from otel_letta.tracking.reading import NOTED, SpanKey, attributes_of, key_of

if TYPE_CHECKING:
    from otel_letta.otel.fetching import FetchedInstructions

_logger = logging.getLogger(__name__)

_SCOPE = "otel_letta"
_PATH = "/v1/logs"
_LOCAL = "http://localhost:4318"
_POLL = 1.0
"""Seconds between two looks at open spans for what was set on them."""
_TIMEOUT = 10.0
_AT_ONCE = 500
"""Records in one request."""
_MOST_ENDS = 10_000
"""Ends that wait for a receiver that is away."""
_LONGEST_PAUSE = 30.0
_MORE = frozenset(
    {
        semconv.GEN_AI_AGENT_NAME,
        semconv.GEN_AI_WORKFLOW_NAME,
        semconv.GEN_AI_TOOL_NAME,
        semconv.GEN_AI_CONVERSATION,
        semconv.SESSION_ID,
        semconv.ERROR_TYPE,
        semconv.EXCEPTION_TYPE,
        semconv.EXCEPTION_MESSAGE,
        semconv.SERVICE_NAME,
        "service.namespace",
        "service.instance.id",
        semconv.HOST_NAME,
        "process.pid",
    }
)
_BARE_SPEAKING = frozenset({semconv.BARE_PROGRESS, semconv.BARE_DONE, semconv.BARE_CHAT_ID})
_BARE = {semconv.BARE_STATUS, semconv.BARE_CONTENT, semconv.BARE_MESSAGE_ID, *_BARE_SPEAKING}
_ALLOWED = NOTED | _MORE | {semconv.BARE_DONE, semconv.BARE_TOTAL}
"""Attributes that leave the program. Prompts, arguments and outputs are none of them."""


class LettaHeartbeatProcessor(SpanProcessor):
    """A processor that tells an OTLP receiver, such as ``otel-letta serve`` or a Collector before it, which tasks are
    under way and how they stand, and nothing to Letta: the program needs no address or password of Letta's::

        provider.add_span_processor(LettaHeartbeatProcessor())

    A span that is over reaches a receiver by any OTLP exporter; one that is open by this: log records with the span as
    it is, at its start, every ``interval`` seconds, when something is set on it, and at its end, in the format of
    OpenTelemetry's partial span processors. Only spans of tasks and agents are sent, and of those only the attributes
    that reports are made of.

    Args:
        endpoint: URL of the receiver; ``/v1/logs`` is added if it has no path. Default is
            OTEL_EXPORTER_OTLP_LOGS_ENDPOINT, OTEL_EXPORTER_OTLP_ENDPOINT, or port 4318 of this machine.
        headers: of the requests; default is OTEL_EXPORTER_OTLP_LOGS_HEADERS or OTEL_EXPORTER_OTLP_HEADERS.
        interval: seconds between two heartbeats of a span.
        client: an `httpx.Client`, for a proxy or certificates of your own. Without it, each request has one to itself,
            which is safer where several tasks wait for instructions.
    """

    def __init__(
        self,
        endpoint: str | None = None,
        headers: Mapping[str, str] | None = None,
        *,
        interval: float = 10.0,
        client: Any = None,
    ) -> None:
        self._url = _url(endpoint)
        self._headers = dict(headers) if headers is not None else _headers_of_environment()
        self._interval = interval
        self._client = client
        self._clients = Clients(_own_client)
        self._log = Throttle(_logger)
        self._begin()
        self._source: FetchedInstructions | None = None
        _instances.add(self)
        wake.on_change(self._changed)

    def _begin(self) -> None:
        """Begin, or begin anew in a forked child: the open spans are the parent's."""
        self._open: dict[SpanKey, weakref.ref[Span]] = {}
        self._sent: dict[SpanKey, tuple[float, dict[str, Any]]] = {}
        """When a span's last heartbeat went out, and the attributes that were in it, or a few less."""
        self._ends: dict[SpanKey, ReadableSpan] = {}
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()
        self._busy = threading.Lock()
        """Held by whoever sends."""
        self._bell = threading.Event()
        self._closed = False

    # -- hooks: neither raise nor wait ---------------------------------------------------------------------------------

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Take note of a span that starts."""
        try:
            if self._closed or is_suppressed():
                return
            self._open[key_of(span)] = weakref.ref(span)
            if self._thread is None:
                self._start_thread()
            if not NOTED.isdisjoint(span.attributes or ()):
                self._bell.set()
        except Exception:
            _logger.debug("unexpected error", exc_info=True)

    def on_end(self, span: ReadableSpan) -> None:
        """Take note of a span that ended."""
        try:
            key = key_of(span)
            if self._open.pop(key, None) is not None and (
                key in self._sent or not semconv.DECLARING.isdisjoint(span.attributes or ())
            ):
                if len(self._ends) < _MOST_ENDS:
                    self._ends[key] = span
                else:
                    self._log.log(logging.WARNING, "ends", "a receiver is away: ends of tasks are dropped")
                self._bell.set()
        except Exception:
            _logger.debug("unexpected error", exc_info=True)

    def sees(self, span: Span) -> bool:
        """Return whether it reports an open span, if that is a task's."""
        return not self._closed and key_of(span) in self._open

    def instructions(self) -> FetchedInstructions:
        """Return the way by which instructions for its tasks come back from the receiver."""
        if self._source is None:
            from otel_letta.otel.fetching import FetchedInstructions

            self._source = FetchedInstructions(self._url, self._headers, self._http)
        return self._source

    def _changed(self, span: object) -> None:
        if isinstance(span, Span) and key_of(span) in self._open:
            self._bell.set()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Send what is known now; True if the receiver took it within the time."""
        fork.check()
        return self._send_due(timeout_millis / 1e3)

    def shutdown(self) -> None:
        """Send what is known, and stop; quiet when called again. Takes a few seconds at most."""
        if not self._closed:
            self._send_due(5.0)
            self._closed = True
            self._bell.set()
            self._clients.use(_own_client)

    # -- sending -------------------------------------------------------------------------------------------------------

    def _start_thread(self) -> None:
        with self._starting:
            if self._thread is None:
                thread = threading.Thread(target=self._work, name="otel_letta heartbeats", daemon=True)
                try:
                    thread.start()
                except RuntimeError:  # at the interpreter's end; shutdown sends what is known
                    return
                self._thread = thread

    def _work(self) -> None:
        pause = _POLL
        while not self._closed:
            self._bell.wait(pause if self._open or self._ends else None)
            self._bell.clear()
            if self._closed:
                return
            try:
                taken = self._send_due(_TIMEOUT)
            except Exception as error:  # noqa: BLE001
                self._log.log(logging.ERROR, "send", "unexpected %s in heartbeats", type(error).__name__)
                taken = False
            if taken:
                pause = _POLL
            else:
                pause = min(pause * 2, _LONGEST_PAUSE)
                self._bell.clear()

    def _send_due(self, timeout: float) -> bool:
        """Send what is due; False if it could not be sent, and is due still."""
        if not self._busy.acquire(timeout=timeout):
            return False
        try:
            with suppress_tracing():
                return self._send(time.monotonic() + timeout)
        finally:
            self._busy.release()

    def _send(self, until: float) -> bool:
        ends = dict(self._ends)
        beats = self._due()
        everything = [*((key, span, "stop") for key, span in ends.items()), *beats]
        for start in range(0, len(everything), _AT_ONCE):
            part = everything[start : start + _AT_ONCE]
            now = time.time_ns()
            # Before the records are made: what is set from here on makes another heartbeat due.
            noted = {key: _noted(span) for key, span, event in part if event != "stop"}
            records = [self._record(span, event, now) for _, span, event in part]
            if not self._post(logs_request(part[0][1].resource, _SCOPE, records, _pick), until - time.monotonic()):
                return False
            for key, _, event in part:
                if event == "stop":
                    self._ends.pop(key, None)
                    self._sent.pop(key, None)
                else:
                    self._sent[key] = time.monotonic(), noted[key]
        return True

    def _record(self, span: ReadableSpan, event: str, now: int) -> dict[str, Any]:
        attributes = span.attributes or {}
        return span_record(
            span,
            event,
            now,
            _pick,
            lambda name, said: _pick_of_event(name, said, attributes),
            self._interval,
        )

    def _due(self) -> list[tuple[SpanKey, ReadableSpan, str]]:
        found: list[tuple[SpanKey, ReadableSpan, str]] = []
        now = time.monotonic()
        for key, reference in list(self._open.items()):
            span = reference()
            if span is None:  # nobody can end it any more: the receiver will miss its heartbeats
                self._open.pop(key, None)
                self._sent.pop(key, None)
                continue
            noted = _noted(span)
            if not noted:
                continue
            last = self._sent.get(key)
            if last is None or now - last[0] >= self._interval or noted != last[1]:
                found.append((key, span, "heartbeat"))
        return found

    def _post(self, body: bytes, timeout: float) -> bool:
        import httpx  # takes its time, and a program without tasks needs none

        headers = {**self._headers, "content-type": "application/json"}
        try:
            with self._http() as client:
                answer = client.post(self._url, content=body, headers=headers, timeout=max(min(timeout, _TIMEOUT), 0.1))
        except httpx.HTTPError as error:
            self._log.log(
                logging.WARNING, "away", "heartbeats to %s: %s (tried again)", self._url, type(error).__name__
            )
            return False
        if answer.status_code in (408, 429) or answer.status_code >= 500:
            self._log.log(
                logging.WARNING, "later", "heartbeats to %s: status %d (tried again)", self._url, answer.status_code
            )
            return False
        if not answer.is_success:
            self._log.log(
                logging.ERROR, "refused", "heartbeats to %s are refused: status %d", self._url, answer.status_code
            )
        return True

    def _http(self) -> AbstractContextManager[Any]:
        """Lend an `httpx.Client` for a request."""
        return self._clients.one() if self._client is None else contextlib.nullcontext(self._client)


def _own_client() -> Any:
    import httpx

    certificate = os.environ.get("OTEL_EXPORTER_OTLP_LOGS_CERTIFICATE")
    return httpx.Client(verify=certificate or os.environ.get("OTEL_EXPORTER_OTLP_CERTIFICATE") or True)


_instances: weakref.WeakSet[LettaHeartbeatProcessor] = weakref.WeakSet()
fork.in_child_each(_instances, LettaHeartbeatProcessor._begin)


def seeing(span: Span) -> LettaHeartbeatProcessor | None:
    """Return the processor of this process that reports an open span, if there is one."""
    return next((each for each in list(_instances) if each.sees(span)), None)


def _noted(span: ReadableSpan) -> dict[str, Any]:
    """Return the attributes that make a task of a span, or show an agent's work; empty for any other span."""
    return {name: value for name, value in attributes_of(span).items() if name in NOTED}


def _pick(attributes: Mapping[str, Any]) -> Mapping[str, Any]:
    found = {name: value for name, value in attributes.items() if name in _ALLOWED}
    if _BARE_SPEAKING.isdisjoint(found) or not ASKED.isdisjoint(found):
        # Words like "content" are ours only beside a progress or a chat: elsewhere they are anybody's, a prompt's too.
        return {name: value for name, value in found.items() if name not in _BARE}
    return found


def _pick_of_event(name: str, attributes: Mapping[str, Any], span: Mapping[str, Any]) -> Mapping[str, Any]:
    if name != semconv.EXCEPTION_EVENT and not is_progress_event(name, attributes, span):
        return {}
    return {name: value for name, value in attributes.items() if name in _ALLOWED}


def _url(endpoint: str | None) -> str:
    whole = os.environ.get("OTEL_EXPORTER_OTLP_LOGS_ENDPOINT", "").strip()
    if endpoint is None and whole:
        return whole
    base = (endpoint or os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT", "").strip() or _LOCAL).rstrip("/")
    return base if base.endswith(_PATH) else base + _PATH


def _headers_of_environment() -> dict[str, str]:
    text = os.environ.get("OTEL_EXPORTER_OTLP_LOGS_HEADERS") or os.environ.get("OTEL_EXPORTER_OTLP_HEADERS", "")
    pairs = (part.partition("=") for part in text.split(",") if "=" in part)
    return {name.strip().lower(): unquote(value.strip()) for name, _, value in pairs}
