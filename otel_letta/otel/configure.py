"""`configure()`: reporting in one call, and the handle that it returns.

The program's tracer provider gets a live processor, whenever it is set. Where there is none yet, one of ours stands in
until the program sets its own: OpenTelemetry would refuse that second one, and with it the program's own exporters. So
the stand-in is put in place without using up the one time that the API allows, its tracers ask at each span which
provider counts now, and the one that is set later gets the processor too.

The stand-in reads and writes ``_TRACER_PROVIDER`` and ``_TRACER_PROVIDER_SET_ONCE`` of `opentelemetry.trace` (API 1.x).
A release without them gets the provider in the ordinary way, and a later one is refused as usual.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

from otel_letta.errors import LettaConfigurationError
from otel_letta.otel.processor import LettaSpanProcessor
from otel_letta.otel.status import Status, status_of
from otel_letta.settings import Settings

if TYPE_CHECKING:
    from types import TracebackType

    from opentelemetry.metrics import MeterProvider
    from typing_extensions import Self, Unpack

    from otel_letta.answer import OnAnswer
    from otel_letta.letta.transport import Transport
    from otel_letta.settings import SettingsOptions
    from otel_letta.tracking.opt_in import TaskFilter

_logger = logging.getLogger(__name__)

MARK = "_otel_letta_live"
"""Attribute of a tracer provider: the live processor that it was given."""

lock = threading.RLock()
"""Held while a provider gets its processor."""


def configure(
    *,
    tracer_provider: trace.TracerProvider | None = None,
    transport: Transport | None = None,
    meter_provider: MeterProvider | None = None,
    task_filter: TaskFilter | None = None,
    on_answer: OnAnswer | None = None,
    **options: Unpack[SettingsOptions],
) -> Reporting:
    """Report the tasks of this program to a Letta agent, live.

    Call it once, at the start, before or after the program sets a tracer provider of its own::

        import otel_letta

        otel_letta.configure()  # LETTA_BASE_URL, LETTA_AGENT_ID… from the environment or a .env file

        with otel_letta.task("Refactor module", chat_id="chat-123") as t:
            for file in t.track(["a.py", "b.py"]):
                print("rewriting", file)

    Called again with the same settings it changes nothing and returns the same handle, so a notebook's cell may run
    twice. With other settings the new ones count from then on: what is open under the old ones ends as failed there.
    Without any keyword, after a call with some, it only returns the handle.

    Never raises because of a setting: one error is logged, the program goes on without reports, and
    `Reporting.status` says what is wrong.

    Args:
        tracer_provider: gets the live processor; default is the program's own (the global one), or a new one where
            there is none.
        transport: instead of the server that the settings name; for tests.
        meter_provider: for the metrics about itself, if ``OTEL_PYTHON_SDK_INTERNAL_METRICS_ENABLED`` is ``true``.
        task_filter: asked about each span; True, or a name, makes a task of one that would be none.
        on_answer: called with each report that the agent has, and what it answered to it, on a thread of its own; may
            be a coroutine function. Another call with the same settings and another one replaces it.
        options: the settings as keywords, such as ``agent_id``, ``base_url``, ``password``, ``delivery``; or a finished
            ``settings``.
    """
    keywords = cast("dict[str, Any]", options)
    own_parts = any(part is not None for part in (transport, meter_provider, task_filter))
    with lock:
        provider = tracer_provider or trace.get_tracer_provider()
        if isinstance(provider, trace.ProxyTracerProvider):
            provider = _stand_in()
        elif not hasattr(provider, "add_span_processor"):
            kind = type(provider).__name__
            problem = f"the tracer provider is {kind}, not one of the OpenTelemetry SDK: call configure() before it"
            _logger.error("no task is reported: %s, or pass tracer_provider=", problem)
            return Reporting(None, problem)
        known = getattr(provider, MARK, None)
        before = _handle_of(known) if isinstance(known, LettaSpanProcessor) and known.active else None
        same = None if own_parts else _the_same(before, keywords)
        if same is not None:
            same._processor_answers_to(on_answer)
            return same
        processor = LettaSpanProcessor(
            transport=transport,
            meter_provider=meter_provider,
            tracer_provider=tracer_provider,
            task_filter=task_filter,
            on_answer=on_answer,
            **options,
        )
        handle = _handle_of(processor)
        handle._by_default = not keywords and not own_parts
        _give(provider, processor, before)
        return handle


def configure_ahead() -> None:
    """Do what `configure` does for a program that may call it as well: of the same mistake it hears only once."""
    global _said
    reporting = configure()
    _said = None if reporting.active else reporting


_said: Reporting | None = None
"""What `configure_ahead` returned, if it does nothing, until the next call of `configure`."""


def _the_same(before: Reporting | None, keywords: dict[str, Any]) -> Reporting | None:
    """Return the handle that there is, if another call of `configure` wants nothing else, or makes the same mistake."""
    global _said
    said, _said = _said, None
    if before is not None:
        return before if before._fits(keywords) else None
    if said is None:
        return None
    try:
        Settings.from_options(dict(keywords), lenient=True)
    except LettaConfigurationError as error:
        return said if said.status().problems == (str(error),) else None
    return None


def _give(provider: Any, processor: LettaSpanProcessor, before: Reporting | None) -> None:
    """Add a processor that works to the provider, in place of an earlier one."""
    if processor.active:
        setattr(provider, MARK, processor)
        provider.add_span_processor(processor)
        if before is not None:
            _logger.info("configured anew: from now on the tasks of this program are reported by other settings")
            before.shutdown()
    elif before is not None:
        _logger.warning("the settings of the earlier call of configure() stay in force")


class Reporting:
    """The reporting that `configure` turned on. Also a context manager, which shuts it down at its end.

    Example::

        reporting = otel_letta.configure()
        ...
        print(reporting.status())
    """

    def __init__(self, processor: LettaSpanProcessor | None, problem: str = "") -> None:
        self._processor = processor
        self._problem = problem
        self._by_default = False
        """Made without keywords, so all settings come from the environment and the .env file."""

    @property
    def active(self) -> bool:
        """False if nothing is reported: a setting is missing or bad, or it was shut down."""
        return self._processor is not None and self._processor.active

    def status(self) -> Status:
        """Return whether reports get through, to which agent, how many, and what is wrong; asks no server."""
        return Status(problems=(self._problem,)) if self._processor is None else status_of(self._processor)

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Deliver what is known now, and wait for it; see `LettaSpanProcessor.force_flush`."""
        return self._processor is None or self._processor.force_flush(timeout_millis)

    def shutdown(self, timeout_millis: float | None = None) -> None:
        """Report open tasks as failed, deliver, and stop; quiet when called again.

        At the end of the program the tracer provider does this by itself.
        """
        if self._processor is not None:
            self._processor.shutdown(timeout_millis)

    def _processor_answers_to(self, on_answer: OnAnswer | None) -> None:
        if self._processor is not None:
            self._processor.answer_to(on_answer)

    def _fits(self, keywords: dict[str, Any]) -> bool:
        """Return whether another call of `configure` wants nothing else than what there is."""
        if not keywords and not self._by_default:
            return True
        try:
            settings, complaints = Settings.from_options(dict(keywords), lenient=True)
        except LettaConfigurationError:
            return False  # the new processor logs it
        return not complaints and self._processor is not None and settings == self._processor.settings

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.shutdown()

    def __repr__(self) -> str:
        inside = repr(self._processor)[1:-1] if self._processor is not None else f"does nothing: {self._problem}"
        return f"<Reporting: {inside}>"

    def _repr_mimebundle_(self, **_: object) -> dict[str, str]:
        return self.status()._repr_mimebundle_()


def _handle_of(processor: LettaSpanProcessor) -> Reporting:
    handle: Reporting = processor.__dict__.setdefault("_reporting", Reporting(processor))
    return handle


# -- the provider that stands in until the program sets its own --------------------------------------------------------


class StandIn(TracerProvider):
    """A provider of ours. Its tracers make their spans with the program's own provider, once there is one."""

    successor: trace.TracerProvider | None = None

    def get_tracer(self, *arguments: Any, **keywords: Any) -> trace.Tracer:
        """Return a tracer that asks at each span which provider counts."""
        if self.successor is not None:
            return self.successor.get_tracer(*arguments, **keywords)
        return _Tracer(self, super().get_tracer, arguments, keywords)

    def adopt(self, successor: trace.TracerProvider) -> None:
        """Give the program's own provider the live processor, and leave new spans to it."""
        processor = getattr(self, MARK, None)
        if isinstance(processor, LettaSpanProcessor) and processor.active:
            add = getattr(successor, "add_span_processor", None)
            if add is None:
                kind = type(successor).__name__
                _logger.error("no task is reported any more: the new tracer provider, %s, is none of the SDK", kind)
            elif getattr(successor, MARK, None) is None:
                setattr(successor, MARK, processor)
                add(processor)
        self.successor = successor


class _Tracer(trace.ProxyTracer):
    """A tracer that finds its real one at each span, as the API's own does while no provider is set."""

    def __init__(
        self, provider: StandIn, ours: Callable[..., trace.Tracer], arguments: Any, keywords: dict[str, Any]
    ) -> None:
        self._provider = provider
        self._ours = ours(*arguments, **keywords)
        self._arguments = arguments
        self._keywords = keywords
        self._theirs: trace.Tracer | None = None

    @property
    def _tracer(self) -> trace.Tracer:
        if self._provider.successor is None:
            return self._ours
        if self._theirs is None:
            self._theirs = self._provider.successor.get_tracer(*self._arguments, **self._keywords)
        return self._theirs

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "_ours" not in self.__dict__:
            raise AttributeError(name)
        return getattr(self._tracer, name)


class _Once:
    """OpenTelemetry's own guard that a provider is set once, which notifies us of that one time."""

    def __init__(self, guard: Any, stand_in: StandIn) -> None:
        self._guard = guard
        self._stand_in = stand_in

    def do_once(self, function: Callable[[], None]) -> bool:
        did: bool = self._guard.do_once(function)
        provider = getattr(trace, "_TRACER_PROVIDER", None)
        if did and provider is not None and provider is not self._stand_in:
            try:
                with lock:
                    self._stand_in.adopt(provider)
            except Exception as error:
                # It is the program that sets its provider here: whatever we do wrong is not its business.
                _logger.error("the program's own tracer provider is not reported: unexpected %s", type(error).__name__)
                _logger.debug("unexpected error", exc_info=True)
        return did


def _stand_in() -> TracerProvider:
    provider = StandIn()
    guard = getattr(trace, "_TRACER_PROVIDER_SET_ONCE", None)
    if hasattr(guard, "do_once") and hasattr(trace, "_TRACER_PROVIDER"):
        trace._TRACER_PROVIDER_SET_ONCE = _Once(guard, provider)  # type: ignore[assignment]
        trace._TRACER_PROVIDER = provider
    else:
        trace.set_tracer_provider(provider)
    return provider
