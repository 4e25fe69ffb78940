"""The tasks over HTTP: what agents may ask, and what the programs that do the tasks come for."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, TypeVar
from urllib.parse import parse_qs, quote, unquote

from starlette.routing import Route

from otel_letta.serve.answers import JSON, Answer, Refusal
from otel_letta.serve.asking import Asker, Asking, asker_of
from otel_letta.serve.endpoint import Endpoint
from otel_letta.serve.everywhere import AskingEverywhere
from otel_letta.serve.http import Bounds, Doors, Gone, Receive, Request, Scope, Send, Space, until_gone
from otel_letta.serve.intake import Intake

BOUNDS = Bounds(body=65_536, bodies=4_000_000, patience=10.0, whole=20.0)
_LONGEST_WAIT = 60.0
"""Seconds. Proxies cut what is silent for longer."""
_TICK = 0.2
"""Seconds between two looks at what has come."""
_MOST_ASKING = 300
"""Programs that wait at once; each takes one of the receiver's connections."""


_T = TypeVar("_T")


class Api:
    """The endpoints below ``/api/tasks``.

    Args:
        asking: answers.
        intake: is asked whether the program stops.
        doors: let requests in.
    """

    def __init__(self, asking: Asking | AskingEverywhere, intake: Intake, doors: Doors) -> None:
        self._asking = asking
        self._intake = intake
        self._doors = doors
        self._space = Space(BOUNDS)
        self._waiting = 0

    def routes(self) -> list[Route]:
        """Return the routes for the application."""
        endpoint = Endpoint(self._serve)
        return [Route(path, endpoint, methods=None) for path in ("/api/tasks", "/api/tasks/{rest:path}")]

    async def _serve(self, request: Request, receive: Receive, send: Send) -> Answer:
        work = self._find(request.scope)
        asker = asker_of(self._doors, request.headers)
        method = request.scope["method"]
        if method not in work:
            allowed = ", ".join(work)
            raise Refusal(405, f"only {allowed} is understood here", allow=allowed)
        return Answer(200, to_json(await work[method](asker, request, receive)), JSON)

    def _find(self, scope: Scope) -> dict[str, _Work]:
        """Return what can be done at a path, by method. An id of a task may hold anything, slashes too."""
        raw = (scope.get("raw_path") or quote(scope["path"]).encode()).partition(b"?")[0]
        _, _, *parts = (unquote(part) for part in raw.decode("latin-1").split("/") if part)
        if not parts:
            return {"GET": self._list}
        if len(parts) == 1:
            return {"GET": _for(parts[0], self._show)}
        if len(parts) == 2 and parts[1] == "instructions":
            return {"GET": _for(parts[0], self._take), "POST": _for(parts[0], self._instruct)}
        raise Refusal(404, "nothing is here")

    async def _list(self, asker: Asker, request: Request, receive: Receive) -> Mapping[str, Any]:
        return await self._asked(functools.partial(self._asking.list_tasks, asker))

    async def _show(self, task_id: str, asker: Asker, request: Request, receive: Receive) -> Mapping[str, Any]:
        return await self._asked(functools.partial(self._asking.get_task, asker, task_id))

    async def _asked(self, work: Callable[[], _T]) -> _T:
        if not self._asking.may_wait:
            return work()
        return await asyncio.get_running_loop().run_in_executor(self._space.threads, work)

    async def _instruct(self, task_id: str, asker: Asker, request: Request, receive: Receive) -> Mapping[str, Any]:
        if request.headers.get(b"content-type", b"").partition(b";")[0].strip().lower() != JSON.encode():
            raise Refusal(415, f"Content-Type has to be {JSON}")
        if self._intake.draining:
            raise Refusal(503, "this receiver is shutting down")
        with self._space.reserved() as reservation:
            body = await request.read(reservation)
        try:
            found = json.loads(body)
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise Refusal(400, 'the body has to be a JSON object: {"action": "continue", "text": "..."}')
        work = functools.partial(self._asking.instruct_task, asker, task_id, found.get("action"), found.get("text", ""))
        return await asyncio.get_running_loop().run_in_executor(self._space.threads, work)  # it may be kept on disk

    async def _take(self, task_id: str, asker: Asker, request: Request, receive: Receive) -> Mapping[str, Any]:
        until = time.monotonic() + _wait_in(request.scope)
        if self._waiting >= _MOST_ASKING:
            raise Refusal(503, "too many programs wait for instructions")
        self._waiting += 1
        gone = asyncio.ensure_future(until_gone(receive))
        try:
            with self._asking.asked_for(asker, task_id) as ask:
                while not gone.done():
                    taken = await self._asked(ask)
                    if taken or time.monotonic() >= until or self._intake.draining:
                        if taken is None:
                            raise Refusal(404, "no task with this id has been reported here so far")
                        return {"instructions": taken}
                    await asyncio.wait([gone], timeout=_TICK)
            raise Gone
        finally:
            self._waiting -= 1
            gone.cancel()


_Work = Callable[[Asker, Request, Receive], Awaitable[Mapping[str, Any]]]


def _for(task_id: str, serve: Callable[[str, Asker, Request, Receive], Awaitable[Mapping[str, Any]]]) -> _Work:
    return lambda asker, request, receive: serve(task_id, asker, request, receive)


def _wait_in(scope: Scope) -> float:
    """Return how many seconds the sender wants to wait."""
    given = parse_qs(scope["query_string"].decode("latin-1")).get("wait", ["0"])[-1]
    try:
        wait = float(given)
    except ValueError:
        wait = math.nan
    if not wait >= 0:
        raise Refusal(400, "wait has to be a number of seconds")
    return min(wait, _LONGEST_WAIT)


def to_json(found: Mapping[str, Any]) -> bytes:
    """Write what an agent will read. No text of a task can look like a block in it: see `otel_letta.instruction`."""
    text = json.dumps(found, allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026").encode()


class NoMcp:
    """In place of `otel_letta.serve.mcp.Mcp` where the SDK is not installed."""

    def routes(self) -> list[Route]:
        """Return the routes for the application."""
        return [Route("/mcp", Endpoint(self._serve), methods=None)]

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Enter while requests may come."""
        yield

    async def _serve(self, request: Request, receive: Receive, send: Send) -> None:
        raise Refusal(404, "MCP needs another package in the receiver's environment: pip install 'otel-letta[mcp]'")
