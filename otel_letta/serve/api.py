"""The tasks over HTTP: what agents may ask, and what the programs that do the tasks come for."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any
from urllib.parse import parse_qs, quote, unquote

from starlette.routing import Route

from otel_letta.delivery.stats import Throttle
from otel_letta.serve.answers import JSON, Answer, Refusal, refused
from otel_letta.serve.asking import Asker, Asking, asker_of
from otel_letta.serve.http import Bounds, Doors, Gone, Receive, Request, Scope, Send, Space, send_answer, until_gone
from otel_letta.serve.intake import Intake

_logger = logging.getLogger(__name__)

BOUNDS = Bounds(body=65_536, bodies=4_000_000, patience=10.0, whole=20.0)
_LONGEST_WAIT = 60.0
"""Seconds. Proxies cut what is silent for longer."""
_TICK = 0.2
"""Seconds between two looks at what has come."""
_MOST_ASKING = 300
"""Programs that wait at once; each takes one of the receiver's connections."""
_HEADERS = ((b"cache-control", b"no-store"), (b"x-content-type-options", b"nosniff"))


class Api:
    """The endpoints below ``/api/tasks``.

    Args:
        asking: answers.
        intake: is asked whether the program stops.
        doors: let requests in.
    """

    def __init__(self, asking: Asking, intake: Intake, doors: Doors) -> None:
        self._asking = asking
        self._intake = intake
        self._doors = doors
        self._space = Space(BOUNDS)
        self._waiting = 0
        self._errors = Throttle(_logger)

    def routes(self) -> list[Route]:
        """Return the routes for the application."""
        return [Route("/api/tasks", self, methods=None), Route("/api/tasks/{rest:path}", self, methods=None)]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, dict(scope["headers"]), receive)
        more: list[tuple[bytes, bytes]] = []
        try:
            work, allowed = self._find(scope)
            asker = asker_of(self._doors, request.headers)
            if scope["method"] not in work:
                more = [(b"allow", allowed)]
                raise Refusal(405, f"only {allowed.decode()} is understood here")
            answer = Answer(200, to_json(await work[scope["method"]](asker, request, receive)), JSON)
        except Refusal as refusal:
            answer = refused(refusal, JSON)
        except Gone:
            return
        except asyncio.CancelledError:  # the end of the program; uvicorn would make a 500 of it
            answer = refused(Refusal(503, "this receiver is shutting down"), JSON)
        except Exception as error:
            self._errors.log(logging.ERROR, type(error).__name__, "unexpected %s in a request", type(error).__name__)
            _logger.debug("unexpected error", exc_info=True)
            answer = refused(Refusal(503, "this receiver had an error of its own"), JSON)
        await send_answer(send, answer, *_HEADERS, *more, close=request.must_close)

    def _find(self, scope: Scope) -> tuple[dict[str, _Work], bytes]:
        """Return what can be done at a path, by method. An id of a task may hold anything, slashes too."""
        raw = scope.get("raw_path") or quote(scope["path"]).encode()
        _, _, *parts = (unquote(part) for part in raw.decode("latin-1").split("/") if part)
        if not parts:
            return {"GET": self._list}, b"GET"
        if len(parts) == 1:
            return {"GET": _for(parts[0], self._show)}, b"GET"
        if len(parts) == 2 and parts[1] == "instructions":
            return {"GET": _for(parts[0], self._take), "POST": _for(parts[0], self._instruct)}, b"GET, POST"
        raise Refusal(404, "nothing is here")

    async def _list(self, asker: Asker, request: Request, receive: Receive) -> Mapping[str, Any]:
        return self._asking.list_tasks(asker)

    async def _show(self, task_id: str, asker: Asker, request: Request, receive: Receive) -> Mapping[str, Any]:
        return self._asking.get_task(asker, task_id)

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
        return self._asking.instruct_task(asker, task_id, found.get("action"), found.get("text", ""))

    async def _take(self, task_id: str, asker: Asker, request: Request, receive: Receive) -> Mapping[str, Any]:
        until = time.monotonic() + _wait_in(request.scope)
        if self._waiting >= _MOST_ASKING:
            raise Refusal(503, "too many programs wait for instructions")
        self._waiting += 1
        gone = asyncio.ensure_future(until_gone(receive))
        try:
            with self._asking.asked_for(asker, task_id) as ask:
                while not gone.done():
                    taken = ask()
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
