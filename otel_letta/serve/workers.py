"""One process that receives, or several behind one address."""

from __future__ import annotations

import gc
import logging
import multiprocessing
import os
import signal
import socket
import tempfile
import threading
import time
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType

from otel_letta.serve.logs import log_as
from otel_letta.serve.server import Options, Service, listen, stop_on_signals
from otel_letta.serve.siblings import file_of
from otel_letta.settings import Settings

_logger = logging.getLogger(__name__)

_PAUSE = 1.0
"""Seconds before a process that ended by itself is replaced."""
_PATIENCE_AT_END = 60.0
"""Seconds that a process gets to stop: more than delivery and requests under way may take together."""
_METRICS_FOLDER = "PROMETHEUS_MULTIPROC_DIR"
_GARBAGE = 50_000, 2, 1
"""Thresholds of the garbage collector, instead of 700, 10 and 10. A request makes thousands of objects, which are gone
before the next one, or once the tracker has come to them: looks in the middle of that took up to half of the time of
taking one in, measured with 512 spans of tasks in each while some dozens waited for the tracker. At 50,000
everything together takes 8 % less time than at 10,000, and 7 MB more; 100,000 gain no more. The oldest are looked at a
third as often as by default."""


def run(options: Options, workers: int, form: str = "text") -> int:
    """Receive until SIGTERM or SIGINT. Returns the exit code: 0, also if something could not be delivered in time.

    Args:
        form: of the log, ``text`` or ``json``.

    Raises:
        LettaConfigurationError: the settings are bad.
        CannotListenError: the address cannot be had.
        StoreError, OSError, ValueError: spool, token file or certificate cannot be used.
    """
    log_as(form)
    settings = Settings.resolve()
    with listen(options.host, options.port) as listener:
        options = replace(options, port=listener.getsockname()[1])
        if workers == 1:
            return _receive(options, settings, listener)
        return _Supervisor(replace(options, shared=True), workers, listener, form).run()


def _receive(options: Options, settings: Settings, listener: socket.socket) -> int:
    # Before there is a service: from then on the outbox delivers, and what is in it is to be known before it is gone.
    gc.collect()
    gc.freeze()  # the modules: nothing of them ever becomes garbage
    gc.set_threshold(*_GARBAGE)
    service = Service(options, settings)
    stop_on_signals(service)
    _logger.info("%s", _greeting(options, service))
    if not service.run([listener]):
        _logger.warning("not every report was delivered before the end%s", _what_of_it(service))
    return 0


def _greeting(options: Options, service: Service) -> str:
    scheme = "https" if options.certificate else "http"
    host = f"[{options.host}]" if ":" in options.host else options.host
    parts = [f"OTLP is received on {scheme}://{host}:{options.port}"]
    if options.grpc_port is not None:
        parts.append(f"and by gRPC on port {options.grpc_port}")
    kept = f"what was answered with 200 is kept in {service.intake.spool.place}"
    if not service.intake.durable:
        kept = "what was received is in memory only, and lost with this process: set OTEL_LETTA_OUTBOX to keep it"
    return f"{' '.join(parts)}; {kept}"


def _what_of_it(service: Service) -> str:
    return ": the next start goes on with them" if service.intake.durable else ""


def _work(options: Options, listener: socket.socket, form: str) -> None:
    log_as(form)
    threading.Thread(target=_end_with_parent, name="otel_letta parent", daemon=True).start()
    raise SystemExit(_receive(options, Settings.resolve(), listener))


def _end_with_parent() -> None:
    """Stop when the parent is gone: it was killed, and nobody else would ever stop this process."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)


class _Supervisor:
    """A parent of processes that receive on one socket: replaces those that end, and ends with them."""

    def __init__(self, options: Options, workers: int, listener: socket.socket, form: str) -> None:
        self._stop = threading.Event()
        self._workers = workers
        # Not by fork: the parent may have threads, and a child's libraries may not like to have been used in it.
        self._context = multiprocessing.get_context("spawn")
        self._options = options
        self._listener = listener
        self._form = form
        self._processes: dict[BaseProcess, int] = {}

    def run(self) -> int:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._note)
        with tempfile.TemporaryDirectory(prefix="otel-letta-") as folder:
            os.environ.setdefault(_METRICS_FOLDER, folder)
            self._options = replace(self._options, siblings=Path(folder))
            for place in range(self._workers):
                self._start(place)
            while not self._stop.is_set():
                self._replace_ended()
                self._stop.wait(0.2)
            for process in self._processes:
                if process.pid is not None and process.is_alive():
                    process.terminate()
            for process in self._processes:
                process.join(_PATIENCE_AT_END)
                if process.is_alive():
                    _logger.error("a receiving process did not stop, and is killed")
                    process.kill()
        return 0

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._stop.set()

    def _start(self, place: int) -> None:
        options = replace(self._options, place=(place, self._workers))
        arguments = (options, self._listener, self._form)
        process = self._context.Process(target=_work, args=arguments, daemon=False)
        process.start()
        self._processes[process] = place

    def _replace_ended(self) -> None:
        for process in [process for process in self._processes if not process.is_alive()]:
            place = self._processes.pop(process)
            if self._options.siblings is not None and process.pid is not None:
                file_of(self._options.siblings, process.pid).unlink(missing_ok=True)
            _logger.error("a receiving process has ended by itself (%s): another one takes its place", process.exitcode)
            time.sleep(_PAUSE)
            if not self._stop.is_set():
                self._start(place)
