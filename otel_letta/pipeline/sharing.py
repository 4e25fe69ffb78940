"""The sharing of pipelines: components configured alike have one, so that a span seen by both is reported once."""

from __future__ import annotations

import contextlib
import importlib
import logging
import sys
import threading
import weakref
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any, TypeVar

from otel_letta.pipeline.pipeline import Pipeline
from otel_letta.runtime import fork, wake

if TYPE_CHECKING:
    from otel_letta.answer import OnAnswer
    from otel_letta.delivery.answers import OnTurn
    from otel_letta.letta.transport import Transport
    from otel_letta.pipeline.measured import Metrics
    from otel_letta.pipeline.source import Source
    from otel_letta.settings import Settings
    from otel_letta.tracking.opt_in import TaskFilter

_logger = logging.getLogger(__name__)

_S = TypeVar("_S", bound="Source")


class Handle:
    """One component's share in a pipeline. Made by `join`.

    Attributes:
        pipeline: the shared one.
        live: True for a component that sees spans start: without any other, its leaving ends the open tasks.
        closed: True after `close`.
    """

    def __init__(self, pipeline: Pipeline, shares: set[Handle], *, live: bool) -> None:
        self.pipeline = pipeline
        self.live = live
        self.closed = False
        self._shares = shares
        self._at_close: dict[Callable[[], None], None] = {}
        shares.add(self)

    def add_source(self, source: _S) -> _S:
        """Add a source of reports; return the one of its type that the pipeline has already, if there is one."""
        return self.pipeline.add_source(source)

    def call(self, function: Callable[..., None], *arguments: Any) -> None:
        """Have the pipeline's thread call a source's method; nothing happens once the pipeline is closed."""
        self.pipeline.call(function, *arguments)

    def on_answer(self, callback: OnAnswer) -> Callable[[], None]:
        """Have the callback called with each report of the pipeline that the agent answers, and its answer.

        On a thread of its own, until this share is closed, or the function that is returned is called. All of the
        pipeline's reports, whichever component's spans they are of; a callback that several shares add is called once.
        """
        return self._until_closed(self.pipeline.callbacks.add(callback))

    def on_turn(self, callback: OnTurn) -> Callable[[], None]:
        """Have the callback called with each request that carries reports; else as `on_answer`."""
        return self._until_closed(self.pipeline.callbacks.add_turn(callback))

    def _until_closed(self, take_back: Callable[[], object]) -> Callable[[], None]:
        def remove() -> None:
            self._at_close.pop(remove, None)
            take_back()

        self._at_close[remove] = None
        return remove

    def close(self, timeout: float, *, end_tasks: bool = True) -> bool:
        """Leave the pipeline, which the last one closes; quiet when called again.

        Args:
            timeout: seconds that delivery may take.
            end_tasks: open tasks fail if nobody is left who sees spans start; see `Pipeline.close`.

        Returns:
            True if everything was delivered.
        """
        fork.check()
        if self.closed:
            return True
        self.closed = True
        with _lock:
            self._shares.discard(self)
            others = list(self._shares)
            if not others:
                for key, (pipeline, _) in list(_registry.items()):
                    if pipeline is self.pipeline:
                        del _registry[key]
        if not others:
            return self.pipeline.close(timeout, end_tasks=end_tasks)
        delivered = self.pipeline.leave(
            timeout, end_tasks=end_tasks and self.live and not any(other.live for other in others)
        )
        for remove in list(self._at_close):
            remove()
        return delivered


_lock = threading.RLock()
_registry: dict[tuple[Hashable, ...], tuple[Pipeline, set[Handle]]] = {}
_all: weakref.WeakSet[Pipeline] = weakref.WeakSet()


def join(
    settings: Settings,
    transport: Transport | None,
    *,
    live: bool,
    metrics: Metrics | None = None,
    task_filter: TaskFilter | None = None,
) -> Handle:
    """Return a share in the pipeline for these settings, which is made if there is none.

    Two components are alike if their settings are; a transport of one's own makes a pipeline of one's own, shared
    with whoever brings the same one; so does a filter.

    Args:
        settings: valid ones, with an agent.
        transport: None is the server that the settings name.
        live: whether the component sees spans start.
        metrics: measure the pipeline, if it is made here.
        task_filter: makes tasks of spans that would be none.
    """
    fork.check()
    key = (settings.identity(), *(id(thing) if thing is not None else None for thing in (transport, task_filter)))
    with _lock:
        if key not in _registry:
            if transport is None:
                from otel_letta.letta.select import SelectingTransport  # imports httpx, which takes its time

                _import_early()
                transport = SelectingTransport(settings)
            settings.warn_once(_logger)
            pipeline = Pipeline(settings, transport, metrics, task_filter)
            _registry[key] = pipeline, set()
            _all.add(pipeline)
            wake.on_change(pipeline.watcher.read_soon)
        pipeline, shares = _registry[key]
        return Handle(pipeline, shares, live=live)


def _import_early() -> None:
    """Do now what a first request would do on our threads: httpx, Python and OpenSSL set much up only on demand.

    A fork in the middle of that leaves its locks locked in the child for ever, where every later use of it hangs. It
    was seen with imports, OpenSSL's initialisation and the search for the temporary directory (which has our locks).
    """
    import tempfile

    tempfile.gettempdir()
    ours = ("otel_letta.letta.network", "otel_letta.letta.tls", "otel_letta.secret_forms")
    for name in (*ours, "hashlib", "httpcore", "certifi", "encodings.idna", "importlib.resources", "ssl"):
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    if "ssl" in sys.modules:
        sys.modules["ssl"].SSLContext(sys.modules["ssl"].PROTOCOL_TLS_CLIENT)


def _after_fork_in_child() -> None:
    global _lock
    _lock = threading.RLock()
    for pipeline in list(_all):
        pipeline.after_fork_in_child()


fork.in_child(_after_fork_in_child)
