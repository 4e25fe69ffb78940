"""The page at ``/``: the tasks, live. Its script, its data as JSON, and the way in for people."""

from __future__ import annotations

import asyncio
import functools
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from starlette.routing import Route

from otel_letta.delivery.desk import Desk
from otel_letta.serve import markup, session
from otel_letta.serve.answers import JSON, Refusal, refused
from otel_letta.serve.doors import Tokens, Verdict, comes_from_a_page, is_own_host
from otel_letta.serve.http import Bounds, Doors, Gone, Receive, Request, Scope, Send, Space, send_answer, until_gone
from otel_letta.serve.intake import Intake
from otel_letta.serve.siblings import Siblings

_HTML = "text/html; charset=utf-8"
_MOST_VIEWERS = 100
_TICK = 0.5
"""Seconds between two looks at what has changed."""
_KEEP_ALIVE = 15.0
"""Seconds after which something is sent all the same; proxies cut what is silent for a minute. And so often a viewer
whose token was taken away is noticed."""
_STALLED = 60.0
"""Seconds for a viewer to take what was sent."""
_FORM_BOUNDS = Bounds(body=8_192, bodies=1_000_000, patience=10.0, whole=20.0)
_MOST_COOKIE = 8_192
_POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src data:; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'"
)
_HEADERS = (
    (b"cache-control", b"no-store"),
    (b"content-security-policy", _POLICY.encode()),
    (b"referrer-policy", b"same-origin"),  # with no-referrer, a form of this page would have the origin "null"
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
)
_Headers = Mapping[bytes, bytes]


class Page:
    """The endpoints for people.

    Args:
        intake: has the tasks.
        desk: knows what waits for Letta.
        doors: the tokens are the same as those of senders.
        siblings: know the tasks of other processes that receive on the same address; None without such.
    """

    def __init__(self, intake: Intake, desk: Desk, doors: Doors, siblings: Siblings | None = None) -> None:
        self._intake = intake
        self._desk = desk
        self._doors = doors
        self._siblings = siblings
        self._space = Space(_FORM_BOUNDS)
        self._viewers = 0
        self._seen: tuple[object, str] = (None, "")

    def routes(self) -> list[Route]:
        """Return the routes for the application."""
        static = Path(__file__).with_name("static")
        files = {"page.css": "text/css; charset=utf-8", "page.js": "text/javascript; charset=utf-8"}
        plain = [_route(f"/{name}", _file(static / name, kind), "GET", "HEAD") for name, kind in files.items()]
        return [
            _route("/", self._index, "GET", "HEAD"),
            _route("/login", self._login, "POST"),
            _route("/logout", self._logout, "POST"),
            _route("/events", self._events, "GET"),
            _route("/tasks.json", self._json, "GET", "HEAD"),
            *plain,
        ]

    # -- endpoints -----------------------------------------------------------------------------------------------------

    async def _index(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers: _Headers = dict(scope["headers"])
        token = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[-1].strip()
        if token and self._doors.tokens:
            await self._exchange(token, scope, send)  # at once: an address stays in histories
            return
        # A link from anywhere may lead here, as long as the name is ours.
        if not self._doors.tokens and not self._is_own(headers):
            await _send(send, 403, markup.problem("This host name is not allowed: use the address, or --allow-host."))
        elif not self._may_see(scope, headers):
            await _send(send, 401, markup.sign_in())
        else:
            await _send(send, 200, markup.page(self._view(), signed_in=bool(self._doors.tokens)))

    async def _login(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers: _Headers = dict(scope["headers"])
        if comes_from_a_page(headers, self._doors.hosts | _own_name(headers)):
            await _send(send, 403, markup.sign_in("That form was not of this page."))
            return
        try:
            with self._space.reserved() as reservation:
                body = await Request(scope, headers, receive).read(reservation)
        except Refusal as refusal:
            await _send(send, refusal.status, markup.sign_in(refusal.text))
            return
        except Gone:
            return
        token = parse_qs(body.decode("utf-8", "replace")).get("token", [""])[-1].strip()
        await self._exchange(token, scope, send)

    async def _exchange(self, token: str, scope: Scope, send: Send) -> None:
        """Give a cookie for a token."""
        verdict = self._doors.tokens.judge(f"Bearer {token}") if self._doors.tokens else Verdict.UNKNOWN
        if verdict is Verdict.WELCOME:
            await _redirect(send, _cookie(scope, session.cookie_of(token, time.time()), session.LASTS))
        elif verdict is Verdict.LATER:
            await _send(send, 503, markup.sign_in("The tokens are being changed: try again soon, or use the new one."))
        else:
            await _send(send, 401, markup.sign_in("That is none of this receiver's tokens."))

    async def _logout(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers: _Headers = dict(scope["headers"])
        if comes_from_a_page(headers, self._doors.hosts | _own_name(headers)):
            await _send(send, 403, markup.sign_in("That form was not of this page."))
        else:
            await _redirect(send, _cookie(scope, "", 0))

    async def _json(self, scope: Scope, receive: Receive, send: Send) -> None:
        if (refusal := self._refuse_data(scope)) is not None:
            await _refuse(send, refusal)
            return
        view = self._view()
        found = {**view.tasks.to_dict(), "troubles": view.troubles, "now": view.now, "note": view.note}
        await _send(send, 200, json.dumps(found, allow_nan=False), JSON)

    async def _events(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = self._refuse_data(scope)
        if refusal is None and self._viewers >= _MOST_VIEWERS:
            refusal = Refusal(503, "too many are watching")
        if refusal is not None:
            await _refuse(send, refusal)
            return
        self._viewers += 1
        gone = asyncio.ensure_future(until_gone(receive))
        try:
            await self._stream(scope, gone, send)
        except (asyncio.CancelledError, asyncio.TimeoutError, OSError):
            return  # the program ends, or nobody takes it any more
        finally:
            self._viewers -= 1
            gone.cancel()

    async def _stream(self, scope: Scope, gone: asyncio.Future[None], send: Send) -> None:
        kinds = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"x-accel-buffering", b"no")]
        await send({"type": "http.response.start", "status": 200, "headers": [*kinds, *_HEADERS]})
        shown: object = None
        until = 0.0
        while not gone.done() and not self._intake.draining:
            now = time.monotonic()
            state, text = self._current()
            if state != shown:
                shown, part = state, f"retry: 2000\ndata: {text}\n\n"
            elif now < until:
                await asyncio.wait([gone], timeout=_TICK)
                continue
            elif self._refuse_data(scope) is not None:
                break
            else:
                part = ":\n\n"
            until = now + _KEEP_ALIVE
            body = {"type": "http.response.body", "body": part.encode("utf-8", "replace"), "more_body": True}
            await asyncio.wait_for(send(body), _STALLED)
            await asyncio.wait([gone], timeout=_TICK)
        await send({"type": "http.response.body", "body": b""})

    # -- what they show ------------------------------------------------------------------------------------------------

    def _view(self) -> markup.View:
        tasks = self._intake.tasks if self._siblings is None else self._siblings
        return markup.View(tasks.show(), self._troubles(), time.time())

    def _troubles(self) -> list[str]:
        return markup.troubles_of(self._desk.stats()) if self._siblings is None else self._siblings.troubles()

    def _current(self) -> tuple[object, str]:
        """Return what changes of the page, and what it is known again by. Written once for all viewers."""
        tasks = self._intake.tasks if self._siblings is None else self._siblings
        state = (tasks.revision, self._troubles())
        if self._seen[0] != state:
            self._seen = state, markup.fragment(self._view())
        return self._seen

    # -- who may -------------------------------------------------------------------------------------------------------

    def _may_see(self, scope: Scope, headers: _Headers) -> bool:
        tokens = self._doors.tokens
        if not tokens or _has_cookie(scope, headers, tokens):
            return True
        return tokens.judge(headers.get(b"authorization", b"").decode("latin-1")) is Verdict.WELCOME

    def _refuse_data(self, scope: Scope) -> Refusal | None:
        headers: _Headers = dict(scope["headers"])
        if self._doors.tokens and _has_cookie(scope, headers, self._doors.tokens):
            return None
        try:
            self._doors.check(headers)
        except Refusal as refusal:
            return refusal
        return None

    def _is_own(self, headers: _Headers) -> bool:
        return is_own_host(headers.get(b"host", b"").decode("latin-1"), self._doors.hosts)


class _Endpoint:
    """An endpoint for some methods; for others nothing is at its path."""

    def __init__(self, serve: Callable[[Scope, Receive, Send], Any], methods: tuple[str, ...]) -> None:
        self._serve = serve
        self._methods = methods

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] in self._methods:
            await self._serve(scope, receive, send)
        else:
            await _refuse(send, Refusal(404, "nothing is here"))


def _route(path: str, serve: Callable[[Scope, Receive, Send], Any], *methods: str) -> Route:
    return Route(path, _Endpoint(serve, methods), methods=None)


def _file(path: Path, kind: str) -> Callable[[Scope, Receive, Send], Any]:
    read = functools.lru_cache(maxsize=1)(lambda: path.read_text(encoding="utf-8"))

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        await _send(send, 200, read(), kind)

    return serve


def _has_cookie(scope: Scope, headers: _Headers, tokens: Tokens) -> bool:
    header = headers.get(b"cookie", b"")[:_MOST_COOKIE]
    value = session.value_in(header, session.name_for(_port(scope)))
    return bool(value) and session.is_good(value, tokens, time.time())


def _own_name(headers: _Headers) -> frozenset[str]:
    """Return the name by which a browser calls this receiver: with a token, it may be any."""
    host = headers.get(b"host", b"").decode("latin-1").lower()
    return frozenset({host.rpartition(":")[0] if ":" in host else host})


def _port(scope: Scope) -> int:
    server = scope.get("server")
    return int(server[1]) if server and server[1] else 0


def _cookie(scope: Scope, value: str, seconds: int) -> str:
    # Lax, not Strict: with that a link from elsewhere would lead to the form, signed in or not.
    secure = "; Secure" if scope.get("scheme") == "https" else ""
    name = session.name_for(_port(scope))
    return f"{name}={value}; Path=/; Max-Age={seconds}; HttpOnly; SameSite=Lax{secure}"


async def _refuse(send: Send, refusal: Refusal) -> None:
    await send_answer(send, refused(refusal, JSON), *_HEADERS)


async def _redirect(send: Send, cookie: str) -> None:
    await _send(send, 303, "", _HTML, (b"location", b"./"), (b"set-cookie", cookie.encode("latin-1")))


async def _send(send: Send, status: int, text: str, kind: str = _HTML, *more: tuple[bytes, bytes]) -> None:
    body = text.encode("utf-8", "replace")
    headers = [(b"content-type", kind.encode()), (b"content-length", str(len(body)).encode()), *_HEADERS, *more]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
