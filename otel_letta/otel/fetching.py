"""Instructions from `otel-letta serve`, for the tasks that a program reports through it: fetched by a long poll."""

from __future__ import annotations

import json
import logging
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from opentelemetry.sdk.trace import Span

from otel_letta import semconv
from otel_letta.delivery.stats import Throttle
from otel_letta.instruction import Instruction, instruction_from, shown_id
from otel_letta.pipeline.instructions import Instructions
from otel_letta.runtime import fork
from otel_letta.runtime.suppress import suppress_tracing
from otel_letta.text import as_text, clean_error
from otel_letta.tracking.reading import key_of
from otel_letta.tracking.tasks import automatic_id

if TYPE_CHECKING:
    from otel_letta.pipeline.instructions import Expected

_logger = logging.getLogger(__name__)

_WAIT = 25.0
"""Seconds that the server may keep a request: less than proxies allow."""
_MARGIN = 10.0
"""Seconds that its answer may take beyond that."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 10.0
_MOST_BYTES = 1_000_000


class FetchedInstructions:
    """The source of a program's instructions where a `LettaHeartbeatProcessor` reports its tasks.

    Args:
        url: to which the heartbeats go.
        headers: of the requests.
        client: lends an `httpx.Client` for one of them.
    """

    def __init__(self, url: str, headers: Mapping[str, str], client: Callable[[], AbstractContextManager[Any]]) -> None:
        self._base = url.partition("/v1/logs")[0]
        self._headers = {**headers, "accept": "application/json"}
        self._client = client
        self._log = Throttle(_logger)
        self._instructions = Instructions(lambda given: None)
        self._lock = threading.Lock()
        self._leaving: dict[Expected, list[threading.Event]] = {}
        """One for each call that waits: two may wait for the same."""
        _all.add(self)

    def renew(self) -> None:
        """Begin with nobody who waits, in a forked child."""
        self._instructions.renew()
        self._lock = threading.Lock()
        self._leaving = {}

    def expect(self, span: Span, question: str, seconds: float) -> Future[Expected | None]:
        """Ask the server for instructions, on a thread of its own, until `leave`, for so many seconds at most."""
        import httpx  # noqa: F401 - not on the thread

        # The name by which the server knows the task, if it is one of its own and not a step of another.
        task_id = as_text((span.attributes or {}).get(semconv.TASK_ID)) or automatic_id(key_of(span))
        expected = self._instructions.expect(None, task_id, question, (0, 0))
        left = threading.Event()
        with self._lock:
            self._leaving.setdefault(expected, []).append(left)
        until = time.monotonic() + seconds
        threading.Thread(
            target=self._fetch, args=(task_id, expected, left, until), name="otel_letta instructions", daemon=True
        ).start()
        future: Future[Expected | None] = Future()
        future.set_result(expected)
        return future

    def look(self, expected: Expected) -> None:
        """Do nothing: a request that brings no answer is sent again by itself."""

    def leave(self, expected: Expected) -> None:
        """Fetch no more; what a request brings that is under way is kept for the next wait."""
        with self._lock:
            waiting = self._leaving.get(expected)
            if waiting:
                waiting.pop().set()
            if not waiting:
                self._leaving.pop(expected, None)
                self._instructions.leave(expected)

    # -- on the thread -------------------------------------------------------------------------------------------------

    def _fetch(self, task_id: str, expected: Expected, left: threading.Event, until: float) -> None:
        pause = _FIRST_PAUSE
        with suppress_tracing():
            while not left.is_set() and (rest := until - time.monotonic()) > 0:
                try:
                    found = self._get(task_id, min(rest, _WAIT))
                except _RefusedError as refusal:
                    self._log.log(logging.ERROR, "refused", "no instructions from %s: %s", self._base, refusal)
                    self._instructions.leave(expected, forget=True)
                    expected.close()
                    return
                except Exception as error:  # noqa: BLE001 - of a network, or a server's odd answer
                    cause = type(error).__name__
                    self._log.log(logging.WARNING, "away", "instructions from %s: %s (tried again)", self._base, cause)
                    found = None
                if found:
                    expected.put(found)
                if found is None:  # away, or it does not know the task yet
                    left.wait(min(pause, rest))
                    pause = min(pause * 2, _LONGEST_PAUSE)
                else:
                    pause = _FIRST_PAUSE

    def _get(self, task_id: str, wait: float) -> list[Instruction] | None:
        """Ask once; None if it has to be asked again later."""
        url = f"{self._base}/api/tasks/{quote(task_id, safe='')}/instructions"
        with self._client() as client:
            answer = client.get(url, params={"wait": f"{wait:.1f}"}, headers=self._headers, timeout=wait + _MARGIN)
        if answer.status_code in (404, 408, 429) or answer.status_code >= 500:
            return None
        if answer.status_code != 200:
            raise _RefusedError(f"status {answer.status_code}")
        return _read(answer.content, task_id)


_all: weakref.WeakSet[FetchedInstructions] = weakref.WeakSet()
fork.in_child_each(_all, FetchedInstructions.renew)


class _RefusedError(Exception):
    pass


def _read(body: bytes, task_id: str) -> list[Instruction]:
    try:
        if len(body) > _MOST_BYTES:
            raise ValueError("too long")
        rows = json.loads(body)["instructions"]
        values = [{"task_id": shown_id(task_id), "action": row["action"], "text": row.get("text")} for row in rows]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise _RefusedError(f"this is not otel-letta serve ({clean_error(type(error).__name__)})") from None
    return [found for found in map(instruction_from, values) if found is not None]
