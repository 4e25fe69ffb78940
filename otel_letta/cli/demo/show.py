"""The show itself: the tasks run on threads, the picture and Ctrl-C on the main thread."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections import deque
from types import FrameType

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from rich.console import Console

from otel_letta.cli.demo.picture import Moment, picture_for
from otel_letta.cli.demo.receivers import Receiver
from otel_letta.cli.demo.tasks import Spans, Work
from otel_letta.otel.processor import LettaSpanProcessor

_FRAME = 0.1
_AFTER_CTRL_C = 5.0
"""Seconds in which the agent may still get the reports that its tasks were interrupted."""
_FLUSH_MILLIS = 8_000
_FAREWELL_MILLIS = 500


class Show:
    def __init__(self, receiver: Receiver, seconds: float, log_lines: deque[str]) -> None:
        self._receiver = receiver
        self._log_lines = log_lines
        self._console = Console(highlight=False, markup=False, emoji=False)
        self._spans = Spans()
        # Nothing that the environment says about sampling or resources shall change the demo.
        self._provider = TracerProvider(
            sampler=ALWAYS_ON, resource=Resource({"service.name": "otel-letta demo"}), shutdown_on_exit=False
        )
        self._processor = LettaSpanProcessor(settings=receiver.settings, transport=receiver.transport)
        self._provider.add_span_processor(self._spans)
        self._provider.add_span_processor(self._processor)
        self._work = Work(self._provider.get_tracer("otel-letta demo"), seconds)
        self._began = time.monotonic()
        self._over = threading.Event()
        self._delivered = False

    def run(self) -> int:
        """Show the tasks until everything is delivered or Ctrl-C; returns the exit code."""
        with _CtrlC() as ctrl_c:
            picture = picture_for(self._console, self._receiver)
            picture.begin()
            threading.Thread(target=self._direct, daemon=True).start()
            until = math.inf
            with picture.shown():
                over = False
                while not over and time.monotonic() < until:
                    over = self._over.wait(_FRAME)
                    if ctrl_c.pressed and not self._work.stop.is_set():
                        # The tasks end as failed; the agent gets that too, and it is shown.
                        until = time.monotonic() + _AFTER_CTRL_C
                        self._work.stop.set()
                    picture.frame(self._moment())
            moment = self._moment()
            if not self._delivered:
                self._processor.shutdown(_FAREWELL_MILLIS)  # flushing has had its chance
            self._provider.shutdown()
            picture.end(moment, delivered=self._delivered, interrupted=ctrl_c.pressed)
            return 130 if ctrl_c.pressed else 0 if self._delivered else 1

    def _direct(self) -> None:
        try:
            self._work.run()
            self._delivered = self._flushed()
        finally:
            self._over.set()

    def _flushed(self) -> bool:
        """Wait for the deliveries as long as one is on its way: a turn of a real agent may take a while."""
        until = time.monotonic() + self._receiver.patience
        while not self._processor.force_flush(_FLUSH_MILLIS):
            lanes = self._processor.stats().get("lanes", {}).values()
            if time.monotonic() >= until or not any(lane["in_flight"] for lane in lanes):
                return False
        return True

    def _moment(self) -> Moment:
        received = self._receiver.received(self._processor.stats())
        return Moment(time.monotonic() - self._began, self._spans.tasks(), received, tuple(self._log_lines))


class _CtrlC:
    """The first Ctrl-C inside the block as a flag, so that none can come at an unlucky moment; the second interrupts.

    An exception would come up wherever the main thread is: between two frames, or inside the farewell.
    """

    def __init__(self) -> None:
        self.pressed = False
        self._watching = False

    def __enter__(self) -> _CtrlC:
        # Where it is ignored, as in a shell's background job, it stays so. Other threads may set no handler.
        self._watching = (
            threading.current_thread() is threading.main_thread()
            and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        )
        if self._watching:
            signal.signal(signal.SIGINT, self._press)
        return self

    def __exit__(self, *_: object) -> None:
        if self._watching:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def _press(self, number: int, frame: FrameType | None) -> None:
        if self.pressed:
            signal.default_int_handler(number, frame)
        self.pressed = True
