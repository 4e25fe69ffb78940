"""The other side of the wire, each in a process of its own, so that a figure holds the client's cost alone.

`stand_in` is `otel_letta.testing.InMemoryLetta`, `otlp_sink` takes OTLP/HTTP and throws it away. Both are driven
through a `multiprocessing` manager, whose calls block without using the caller's CPU.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.managers import BaseManager
from typing import Any

from otel_letta.testing import InMemoryLetta

__all__ = ["PASSWORD", "OtlpSink", "StandIn", "otlp_sink", "silent_server", "stand_in"]

PASSWORD = "benchmark"


class StandIn:
    """Runs in the server's process."""

    def __init__(self, turn_seconds: float = 0.0) -> None:
        self._letta = InMemoryLetta(password=PASSWORD, turn_seconds=turn_seconds)
        self._letta.start()
        self._turns = contextlib.ExitStack()

    def base_url(self) -> str:
        return self._letta.base_url

    def create_agent(self) -> str:
        return self._letta.create_agent()

    def begin_long_turns(self) -> None:
        """Turns that start from now on last until `end_long_turns`."""
        self._turns.enter_context(self._letta.hold())

    def end_long_turns(self) -> None:
        self._turns.close()

    def wait_for_request(self, method: str, needle: str, timeout: float = 10.0) -> float:
        """When (`time.monotonic`, one clock for all processes of a machine) such a request arrived; waits for it.

        Only the newest requests are searched, so that asking does not get slower with each one.
        """
        found: list[float] = []

        def arrived() -> bool:
            newest = self._letta.requests[-20:]
            found[:] = [r.time for r in newest if r.method == method and needle in json.dumps(r.body)]
            return bool(found)

        if not self._letta.wait_for(arrived, timeout):
            raise TimeoutError(f"no {method} with {needle!r} within {timeout:g} s")
        return found[0]

    def ends(self, agent: str) -> dict[str, int]:
        """How many reports of each status the agent was told, each task and status counted once."""
        told = {(r.get("task_id"), r["status"]) for r in self._letta.reports(agent)}
        statuses = [status for _, status in told]
        return {status: statuses.count(status) for status in set(statuses)}

    def board(self, agent: str) -> str:
        return self._letta.context(agent)[0]

    def counts(self, agent: str) -> dict[str, int]:
        """HTTP requests for one agent: what a turn costs, and what costs none."""
        mine = [r for r in self._letta.requests if agent in r.path or agent in r.query.values()]
        posts = sum(r.method == "POST" and r.path.endswith("/messages") for r in mine)
        return {"turns": posts, "looks": len(mine) - posts}


class OtlpSink:
    """Runs in the server's process: answers 200 to every POST, over kept connections, and keeps nothing."""

    def __init__(self) -> None:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _Swallow)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/v1/traces"


class _Swallow(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        pass


class _Manager(BaseManager):
    pass


_Manager.register("StandIn", StandIn)
_Manager.register("OtlpSink", OtlpSink)


@contextlib.contextmanager
def _manager() -> Iterator[Any]:
    manager = _Manager(ctx=multiprocessing.get_context("spawn"))
    manager.start()
    try:
        yield manager
    finally:
        manager.shutdown()


@contextlib.contextmanager
def stand_in(turn_seconds: float = 0.0) -> Iterator[Any]:
    """A proxy of a `StandIn` in a process of its own."""
    with _manager() as manager:
        yield manager.StandIn(turn_seconds)


@contextlib.contextmanager
def otlp_sink() -> Iterator[str]:
    """The endpoint of an `OtlpSink` in a process of its own."""
    with _manager() as manager:
        sink = manager.OtlpSink()
        yield sink.endpoint()


@contextlib.contextmanager
def silent_server() -> Iterator[str]:
    """A server that hangs: it accepts connections, in the kernel, and never reads or answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
