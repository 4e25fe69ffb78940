"""The receiver's HTTP side: an ASGI application for OTLP/HTTP, and what operating it takes."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import logging
import re
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from starlette.applications import Starlette
from starlette.routing import Route

from otel_letta.delivery.stats import Throttle
from otel_letta.otlp.batch import Batch
from otel_letta.serve.answers import JSON, PROTOBUF, RETRY_AFTER, Answer, Refusal, refused, success
from otel_letta.serve.codings import CodingError, TooLongError, UnknownCodingError, unpack
from otel_letta.serve.doors import Tokens, Verdict, comes_from_a_page, is_own_host
from otel_letta.serve.intake import Intake
from otel_letta.serve.metrics import Metrics

_logger = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

_SLASHES = re.compile(r"/{2,}")
_AT_ONCE = 2 * 2**20
"""Bytes of a body from which on it is decoded beside the loop, so that others need not wait for it. Below that it takes
milliseconds, and a change of threads as long."""
_RATIO = 8
"""How much longer a body is unpacked (recorded agents, zstd)."""
_THREADS = 8
"""Each may wait for another process, or for the disk."""


class Bounds(NamedTuple):
    """What one request, and all together, may take."""

    body: int = 64 * 2**20
    """Bytes, packed and unpacked: what opentelemetry-proto's specification recommends."""
    bodies: int = 256 * 2**20
    """Bytes of all that are being received or decoded; more are asked to come back."""
    patience: float = 30.0
    """Seconds without a piece of a body; up to twice as many may pass."""
    whole: float = 120.0
    """Seconds for a whole body."""


class Gone(Exception):
    """The sender has left in the middle of its request."""


class Receiver:
    """The endpoint of one signal.

    Args:
        signal: ``traces``, ``logs`` or ``metrics``; the last is answered unread.
        intake: takes in the others.
        doors: lets requests in.
        bounds: see there; `taken` counts for all signals together.
    """

    def __init__(self, signal: str, intake: Intake, doors: Doors, metrics: Metrics, space: Space) -> None:
        self._signal = signal
        self._intake = intake
        self._doors = doors
        self._metrics = metrics
        self._space = space
        self._threads = space.threads
        self._errors = Throttle(_logger)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        began = time.perf_counter()
        headers = _headers_of(scope)
        request = Request(scope, headers, receive)
        kind = _type_of(headers)
        try:
            answer = await self._answer(request, kind)
        except Refusal as refusal:
            answer = refused(refusal, kind or JSON)
        except Gone:
            return
        except asyncio.CancelledError:  # the end of the program; uvicorn would make a 500 of it
            answer = refused(Refusal(503, "this receiver is shutting down"), kind or JSON)
        except Exception as error:  # a 500 is dropped for good by those who keep to the specification
            self._errors.log(logging.ERROR, type(error).__name__, "unexpected %s in a request", type(error).__name__)
            _logger.debug("unexpected error", exc_info=True)
            answer = refused(Refusal(503, "this receiver had an error of its own"), kind or JSON)
        self._metrics.answered(self._signal, answer.status, request.size, time.perf_counter() - began)
        await send_answer(send, answer, close=request.must_close)

    async def _answer(self, request: Request, kind: str | None) -> Answer:
        if request.scope["method"] != "POST":
            raise Refusal(405, "only POST is understood here", allow="POST")
        self._doors.check(request.headers)
        if kind is None:
            raise Refusal(415, f"Content-Type has to be {PROTOBUF} or {JSON}")
        if self._intake.draining:
            raise Refusal(503, "this receiver is shutting down")
        with self._space.reserved() as reservation:
            body = await request.read(reservation)
            if self._signal == "metrics":
                return success(self._signal, kind)
            batch = await self._take(body, request.headers.get(b"content-encoding", b"").decode("latin-1"), kind)
            return success(self._signal, kind, len(batch.broken), "; ".join(batch.broken[:5]))

    async def _take(self, body: bytes, coding: str, kind: str) -> Batch:
        beside = functools.partial(asyncio.get_running_loop().run_in_executor, self._threads)
        if coding and body:
            work = functools.partial(self._unpacked, body, coding)
            body = work() if len(body) <= _AT_ONCE // _RATIO else await beside(work)
        if len(body) > _AT_ONCE:
            return await beside(self._intake.take, self._signal, kind == JSON, body)
        return await self._intake.take_soon(self._signal, kind == JSON, body, self._threads)

    def _unpacked(self, body: bytes, coding: str) -> bytes:
        try:
            return unpack(body, coding, self._space.bounds.body)
        except CodingError as error:
            raise Refusal(400, str(error)) from None
        except UnknownCodingError as error:
            raise Refusal(415, str(error)) from None
        except TooLongError:
            raise _too_long(self._space.bounds) from None


class Space:
    """The room that bodies share while they are received and decoded."""

    def __init__(self, bounds: Bounds) -> None:
        self.bounds = bounds
        self.threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="otel_letta-intake")
        self.used = 0

    @contextlib.contextmanager
    def reserved(self) -> Any:
        reservation = Reservation(self)
        try:
            yield reservation
        finally:
            self.used -= reservation.size


class Reservation:
    """One body's part of the room."""

    def __init__(self, space: Space) -> None:
        self._space = space
        self.bounds = space.bounds
        self.size = 0

    def grow(self, size: int) -> None:
        """Take more, up to a size."""
        more = max(size - self.size, 0)
        if self._space.used + more > self.bounds.bodies:
            raise Refusal(503, "this receiver has too much to do at the moment")
        self._space.used += more
        self.size += more


class Doors:
    """What every request has to pass.

    Args:
        tokens: empty for none.
        hosts: names besides addresses and ``localhost`` by which this receiver may be called where it has no token.
    """

    def __init__(self, tokens: Tokens, hosts: Collection[str] = ()) -> None:
        self.tokens = tokens
        self.hosts = frozenset(host.lower() for host in hosts)

    def check(self, headers: Mapping[bytes, bytes]) -> None:
        """Raise a Refusal for a request that may not come in."""
        if self.tokens:
            verdict = self.tokens.judge(headers.get(b"authorization", b"").decode("latin-1"))
            refuse_unless_known(verdict)
            if verdict is Verdict.AGENT:
                raise Refusal(403, "this token is an agent's: it opens nothing but /api/tasks and /mcp")
            return
        self.check_host(headers)

    def check_host(self, headers: Mapping[bytes, bytes]) -> None:
        """Raise a Refusal for a request that only a page of somebody else could send. For where no token is needed."""
        if not is_own_host(headers.get(b"host", b"").decode("latin-1"), self.hosts):
            raise Refusal(403, "this host name is not allowed: use the address, set a token, or --allow-host")
        if comes_from_a_page(headers, self.hosts):
            raise Refusal(403, "pages in a browser may not post here")


def refuse_unless_known(verdict: Verdict) -> None:
    """Raise a Refusal for a token that opens nothing, or not now."""
    if verdict is Verdict.LATER:
        raise Refusal(503, "the token may not be the newest, or the token file is being changed")
    if verdict is Verdict.UNKNOWN:
        raise Refusal(401, "a bearer token is needed: Authorization: Bearer ...")


class Request:
    """A request, as far as its body is concerned."""

    def __init__(self, scope: Scope, headers: Mapping[bytes, bytes], receive: Receive) -> None:
        self.scope = scope
        self.headers = headers
        self._receive = receive
        self.size = 0
        self._began = self._whole = False
        self._slow = False

    @property
    def must_close(self) -> bool:
        """True if nothing behind an unread body could be understood: the sender waits to be asked, or is slow."""
        return self._slow or (not self._began and b"expect" in self.headers)

    async def read(self, reservation: Reservation) -> bytes:
        """Read the whole body.

        Raises:
            Refusal, Gone: it is too long, or its sender is too slow or has left.
        """
        bounds = reservation.bounds
        announced = self.headers.get(b"content-length", b"")
        if announced.isdigit() and int(announced[:20]) > bounds.body:
            raise _too_long(bounds)
        self._began = True
        # One task for the whole body: to wait for each piece with a timeout takes longer than to take it.
        reading = asyncio.ensure_future(self._take_all(reservation))
        end = time.monotonic() + bounds.whole
        try:
            while True:
                before = self.size
                left = min(bounds.patience, end - time.monotonic())
                done, _ = await asyncio.wait([reading], timeout=max(left, 0.001))
                if done:
                    return reading.result()
                if self.size == before or time.monotonic() >= end:
                    self._slow = True
                    raise Refusal(503, "the body came too slowly")
        finally:
            reading.cancel()

    async def _take_all(self, reservation: Reservation) -> bytes:
        bounds = reservation.bounds
        parts: list[bytes] = []
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise Gone
            part = message.get("body", b"")
            if part:
                self.size += len(part)
                if self.size > bounds.body:
                    raise _too_long(bounds)
                reservation.grow(self.size)
                parts.append(part)
            if not message.get("more_body", False):
                return parts[0] if len(parts) == 1 else b"".join(parts)


def _too_long(bounds: Bounds) -> Refusal:
    return Refusal(413, f"the body is longer than {bounds.body} bytes, unpacked or not: send smaller batches")


def _headers_of(scope: Scope) -> dict[bytes, bytes]:
    """Return the headers by name. Codings may stand in several lines, and are one list then (RFC 9110, 5.3)."""
    headers: dict[bytes, bytes] = dict(scope["headers"])
    if b"content-encoding" in headers:
        headers[b"content-encoding"] = b",".join(
            value for name, value in scope["headers"] if name == b"content-encoding"
        )
    return headers


def _type_of(headers: Mapping[bytes, bytes]) -> str | None:
    kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower().decode("latin-1")
    return kind if kind in (JSON, PROTOBUF) else None


async def send_answer(send: Send, answer: Answer, *more: tuple[bytes, bytes], close: bool = False) -> None:
    """Send an answer, with the headers that its status asks for.

    Args:
        more: further headers.
        close: the connection ends with it.
    """
    headers = [
        (b"content-type", answer.type.encode()),
        (b"content-length", str(len(answer.body)).encode()),
        *more,
    ]
    if answer.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    elif answer.allow:
        headers.append((b"allow", answer.allow.encode()))
    elif answer.status == 415:
        headers.append((b"accept-encoding", b"gzip, zstd, deflate"))
    if answer.retry_after is not None:
        headers.append((b"retry-after", str(answer.retry_after).encode()))
    if close:
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": answer.body})


async def until_gone(receive: Receive) -> None:
    """Return when the sender has left. For a request whose body does not matter."""
    with contextlib.suppress(asyncio.CancelledError):
        while (await receive())["type"] != "http.disconnect":
            pass


class _Fixed:
    """An endpoint whose answer is made at once."""

    def __init__(self, make: Callable[[Scope], Answer]) -> None:
        self._make = make

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send_answer(send, self._make(scope))


class _Paths:
    """Takes paths as senders write them: with doubled slashes, or one at the end. Nothing is redirected, since the
    exporters of Java and Node do not repeat a POST elsewhere."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            path = scope["path"]
            if path.endswith("/") or "//" in path:
                scope = {**scope, "path": _SLASHES.sub("/", path).rstrip("/") or "/"}
        await self._inner(scope, receive, send)


def make_app(
    intake: Intake,
    doors: Doors,
    metrics: Metrics,
    bounds: Bounds,
    *,
    routes: Collection[Route] = (),
    lifespan: Any = None,
) -> Any:
    """Make the ASGI application.

    Args:
        routes: further ones.
        lifespan: see `Starlette`.
    """
    space = Space(bounds)
    intake.rest_only_if(lambda: space.used > 0)

    def ready(scope: Scope) -> Answer:
        trouble = "shutting down" if intake.draining else "cannot keep anything" if intake.troubled else ""
        body = json.dumps({"status": trouble or "ready"}).encode()
        return Answer(503 if trouble else 200, body, JSON, RETRY_AFTER if trouble else None)

    def measured(scope: Scope) -> Answer:
        try:
            doors.check(dict(scope["headers"]))
        except Refusal as refusal:
            return refused(refusal, JSON)
        written = metrics.write()
        if written is None:
            return refused(Refusal(404, "metrics need the package prometheus_client"), JSON)
        return Answer(200, *written)

    signals = [
        Route(f"/v1/{signal}", Receiver(signal, intake, doors, metrics, space), methods=None)
        for signal in ("traces", "logs", "metrics")
    ]
    app = Starlette(
        routes=[
            *signals,
            Route("/healthz", _Fixed(lambda scope: Answer(200, b'{"status": "alive"}', JSON)), methods=None),
            Route("/readyz", _Fixed(ready), methods=None),
            Route("/metrics", _Fixed(measured), methods=None),
            *routes,
        ],
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False
    app.router.default = _Fixed(_nothing_here)
    return _Paths(app)


def _nothing_here(scope: Scope) -> Answer:
    return refused(Refusal(404, "nothing is here"), _type_of(dict(scope["headers"])) or JSON)
