"""An endpoint for programs: what it cannot answer is refused as JSON, and never with 500."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from otel_letta.delivery.stats import Throttle
from otel_letta.serve.answers import JSON, Answer, Refusal, refused
from otel_letta.serve.http import Gone, Receive, Request, Scope, Send, send_answer

_logger = logging.getLogger(__name__)

_HEADERS = ((b"cache-control", b"no-store"), (b"x-content-type-options", b"nosniff"))


class Endpoint:
    """An endpoint of the ASGI application.

    Args:
        serve: returns the answer, or None after it has sent one itself. May raise anything.
    """

    def __init__(self, serve: Callable[[Request, Receive, Send], Awaitable[Answer | None]]) -> None:
        self._serve = serve
        self._errors = Throttle(_logger)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, dict(scope["headers"]), receive)
        began = False

        async def send_on(message: MutableMapping[str, Any]) -> None:
            nonlocal began
            began = True
            await send(message)

        answer: Answer | None
        try:
            answer = await self._serve(request, receive, send_on)
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
        if answer is not None and not began:
            await send_answer(send, answer, *_HEADERS, close=request.must_close)
