"""A receiver for the webhooks of OpenHands' agent-server.

An ASGI application, to be mounted anywhere or run by ``otel-letta openhands-webhooks``::

    OH_WEBHOOKS_0_BASE_URL=http://127.0.0.1:8284
    OH_WEBHOOKS_0_EVENT_BUFFER_SIZE=1
    OH_WEBHOOKS_0_FLUSH_DELAY=1

The agent-server posts events to ``/events/<conversation id>`` and a conversation's state to ``/conversations``
(measured with openhands-agent-server 1.58). Both may hold prompts, outputs and the configuration of the LLM with its
key: a few fields are read and the rest is forgotten, and nothing of a body is ever logged.
"""

from __future__ import annotations

import asyncio
import atexit
import hmac
import ipaddress
import json
import logging
import re
from collections.abc import Awaitable, Callable, Coroutine, MutableMapping
from functools import partial
from typing import TYPE_CHECKING, Any

from otel_letta.delivery.stats import Throttle
from otel_letta.integrations.openhands.events import ID_CAP, Event, EventKind, Origin, read_event
from otel_letta.integrations.openhands.share import Share
from otel_letta.letta.transport import Transport
from otel_letta.settings import Secret
from otel_letta.text import as_text, clean_line

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from otel_letta.settings import SettingsOptions

_logger = logging.getLogger(__name__)

MOST_BYTES = 8 * 2**20
"""Longest body that is read: the agent-server's batches have at most 5 MiB, unless one event alone is longer."""
_MOST_DISCARDED = 64 * 2**20
"""Longest body that is received and thrown away."""
_MOST_BODIES = 16
"""That are received at once; more are answered with 503, and the agent-server sends them again."""
_BODY_PATIENCE = 60.0
"""Seconds that a body may take: one whose sender fell silent would keep its place for ever."""
_MOST_EVENTS = 10_000
_CONVERSATION = re.compile(r"[0-9a-fA-F]{8}-?(?:[0-9a-fA-F]{4}-?){3}[0-9a-fA-F]{12}")

CHAT_TAG = "lettachat"
MESSAGE_TAG = "lettamessage"
NAME_TAG = "lettaname"
"""Tags of a conversation with the chat, message and name of its tasks. The agent-server allows only a-z and 0-9 in the
names of tags."""

_NOT_A_NEIGHBOUR = {b"origin", b"sec-fetch-site", b"forwarded", b"x-forwarded-for"}
"""Headers of a browser, where any page may post to this machine, and of a proxy, which sends for somebody else."""

_Scope = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
_Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class OpenHandsWebhooks:
    """An ASGI application that receives webhooks: ``app.mount("/openhands", OpenHandsWebhooks())``.

    Chat and message id are the tags ``lettachat`` and ``lettamessage`` of a conversation, or the ones given here.
    Without a token only programs of this machine are accepted: a request from elsewhere, and one with a browser's or a
    proxy's headers, is refused. A proxy that adds none makes every request seem local: set a token there.

    Args:
        token: required as ``Authorization: Bearer <token>``; a blank one is none.
        chat_id: for conversations without the tag.
        message_id: for conversations without the tag.
        transport: instead of Letta's REST API; for tests.
        options: `Settings` keywords. Bad or missing ones are logged as one error; webhooks are answered all the same.
    """

    def __init__(
        self,
        *,
        token: str | Secret | None = None,
        chat_id: str | None = None,
        message_id: str | None = None,
        transport: Transport | None = None,
        **options: Unpack[SettingsOptions],
    ) -> None:
        plain = token.reveal() if isinstance(token, Secret) else token or ""
        # Blanks around it come from files with a last line break; a header cannot carry them.
        self._token = Secret(plain.strip()) if plain.strip() else None
        self._origin = Origin.given(chat_id, message_id, is_default=True)
        self._share = Share(transport, dict(options))
        self._log = Throttle(_logger)
        self._bodies = 0
        atexit.register(self._share.close)  # an application that is mounted in another one gets no lifespan events

    @property
    def active(self) -> bool:
        """False if the settings are bad, or `close` was called."""
        return self._share.active

    def flush(self, timeout: float = 30.0) -> bool:
        """Deliver what is known now, within ``timeout`` seconds; True if everything was."""
        return self._share.flush(timeout)

    def close(self) -> None:
        """Report runs that are still open as failed, deliver, and stop. The program's end, and an ASGI server's, do it
        too."""
        atexit.unregister(self._share.close)
        self._share.close()

    def stats(self) -> dict[str, Any]:
        """Return numbers since the start; see `LettaSpanProcessor.stats`."""
        return self._share.stats()

    async def __call__(self, scope: _Scope, receive: _Receive, send: _Send) -> None:
        if scope["type"] == "lifespan":
            await self._follow_lifespan(receive, send)
        elif scope["type"] == "http":
            status = await self._answer(scope, receive)
            headers = [(b"content-type", b"application/json"), (b"content-length", b"2")]
            if status >= 400 and str(scope.get("http_version", "1.1")).startswith("1"):
                headers.append((b"connection", b"close"))  # what is left of the body is not read
            await send({"type": "http.response.start", "status": status, "headers": headers})
            await send({"type": "http.response.body", "body": b"{}"})
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close"})  # before it is accepted: refused

    async def _follow_lifespan(self, receive: _Receive, send: _Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                await send({"type": "lifespan.startup.complete"})
            elif message["type"] == "lifespan.shutdown":
                self.close()
                await send({"type": "lifespan.shutdown.complete"})
                return

    async def _answer(self, scope: _Scope, receive: _Receive) -> int:
        headers = {name.lower(): value for name, value in scope.get("headers", ())}
        refusal = self._refusal(scope, headers)
        if refusal:
            return refusal
        take = self._route(_path(scope))
        if take is None:
            return 404
        if scope["method"] != "POST":
            return 405
        if self._bodies >= _MOST_BODIES:
            return 503
        self._bodies += 1
        try:
            content = json.loads(await _in_time(_read(receive)))
        except _TooLong as error:
            # An error would make the agent-server send the same again for ever, and nothing after it.
            self._log.log(logging.WARNING, "long", "a webhook of more than %d bytes is ignored", MOST_BYTES)
            return 200 if error.was_read else 413
        except asyncio.TimeoutError:
            return 408
        except (_BrokenOff, json.JSONDecodeError, UnicodeDecodeError):
            return 400
        except (ValueError, RecursionError):
            # Sound JSON, as a model may have made it: nested too deep, or with a number of thousands of digits.
            self._log.log(logging.WARNING, "odd", "a webhook that is nested too deep is ignored")
            return 200
        finally:
            self._bodies -= 1
        take(content)
        return 200

    def _route(self, path: str) -> Callable[[object], None] | None:
        """Return what takes the body of a request to a path; None for an unknown path."""
        if path == "/conversations":
            return self._take_info
        conversation = path.removeprefix("/events/")
        if conversation != path and _CONVERSATION.fullmatch(conversation):
            return partial(self._take_events, conversation)
        return None

    def _refusal(self, scope: _Scope, headers: dict[bytes, bytes]) -> int:
        """Return the status that refuses a request, 0 if it is allowed."""
        if self._token is not None:
            sent = headers.get(b"authorization", b"")
            wanted = b"Bearer " + self._token.reveal().encode("utf-8", "replace")
            return 0 if hmac.compare_digest(sent, wanted) else 401
        client = scope.get("client")
        is_neighbour = client is not None and is_loopback(client[0]) and not _NOT_A_NEIGHBOUR & headers.keys()
        return 0 if is_neighbour else 403

    def _take_events(self, conversation: str, events: object) -> None:
        if not isinstance(events, list):
            return
        for raw in events[:_MOST_EVENTS]:
            try:
                event = read_event(raw) if isinstance(raw, dict) else None
            except Exception as error:  # noqa: BLE001 - one odd event must not cost the others
                self._share.swallow(error)
                continue
            if event is not None:
                self._share.report_event(_dashed(conversation), self._origin, event)

    def _take_info(self, info: object) -> None:
        if not isinstance(info, dict):
            return
        conversation = as_text(info.get("id")) or ""
        if not _CONVERSATION.fullmatch(conversation):
            return
        tags = info.get("tags")
        origin = Origin(_tag(tags, CHAT_TAG), _tag(tags, MESSAGE_TAG), _tag(tags, NAME_TAG))
        status = as_text(info.get("execution_status")) or ""
        self._share.report_event(_dashed(conversation), origin, Event(EventKind.STATUS, code=status[:40]))


class _TooLong(Exception):
    def __init__(self, *, was_read: bool) -> None:
        self.was_read = was_read


class _BrokenOff(Exception):
    pass


async def _read(receive: _Receive) -> bytearray:
    """Read the body. `_BrokenOff` if its sender went away; one that is too long is read to its end, if that is not too
    far."""
    body = bytearray()  # not a list: a body may come in parts of one byte
    size = 0
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise _BrokenOff
        part = message.get("body", b"")
        size += len(part)
        if size <= MOST_BYTES:
            body += part
        elif size > _MOST_DISCARDED:
            raise _TooLong(was_read=False)
        else:
            body.clear()
        if not message.get("more_body"):
            if size > MOST_BYTES:
                raise _TooLong(was_read=True)
            return body


def _in_time(reading: Coroutine[Any, Any, bytearray]) -> Awaitable[bytearray]:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return reading  # another event loop than asyncio's: its server has to end slow requests
    return asyncio.wait_for(reading, _BODY_PATIENCE)


def _path(scope: _Scope) -> str:
    """Return the path below the place where the application is mounted."""
    path, root = str(scope["path"]), str(scope.get("root_path", ""))
    return path.removeprefix(root) if root and path.startswith(root) else path


def _tag(tags: object, name: str) -> str | None:
    text = as_text(tags.get(name)) if isinstance(tags, dict) else None
    return clean_line(text, ID_CAP) or None if text else None


def _dashed(conversation: str) -> str:
    plain = conversation.replace("-", "").lower()
    return "-".join((plain[:8], plain[8:12], plain[12:16], plain[16:20], plain[20:]))


def is_loopback(host: str) -> bool:
    """Return whether only this machine can use an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
