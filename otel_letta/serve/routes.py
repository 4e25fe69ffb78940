"""Several processes behind one address: what one program sends comes to one of them, whatever connection it takes.

A program sends its spans and its log events over connections of their own, and exporters open new ones. Whose a request
is, its first resource says: ``letta.agent.id``, or else what tells processes apart, as in `collector/scale-out.yaml`.
The process that got it hands it over on a Unix socket, and answers what it is answered: 200 means that it is in the
other one's spool. If that one is not there, senders are asked to come back: a task of which two processes have a part
each would end in the one and be lost in the other. Only if it stays away, whoever got the request takes it in himself.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import logging
import socket
import socketserver
import struct
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from otel_letta import semconv
from otel_letta.otlp.batch import Batch, UndecodableError
from otel_letta.otlp.first_resource import first_resource
from otel_letta.runtime.deadline import Deadline
from otel_letta.serve.answers import Refusal
from otel_letta.text import as_text

_logger = logging.getLogger(__name__)

Take = Callable[[str, bool, bytes], Batch]
AnswerTo = Callable[[Mapping[str, Any]], Mapping[str, Any]]
_PATIENCE = 30.0
"""Seconds for the other process's answer to a body."""
_RETURNS_IN = 20.0
"""Seconds in which a process that has ended is replaced. That takes two or three, and more on a busy machine."""
_LOOKS_EVERY = 0.05
"""Seconds between two looks for another process."""
_PATIENCE_WITH_ANSWERS = 5.0
"""Seconds for its answer to a question: an agent waits, and can ask again."""
_HEAD = struct.Struct("!IQ")
"""Lengths of what is said of a body, and of the body."""
_KEYS = (
    (semconv.AGENT_ID,),
    (semconv.SERVICE_NAME, "service.instance.id"),
    (semconv.SERVICE_NAME, "host.name", "process.pid"),
)


def place_of(resource: Mapping[str, Any], number: int) -> int | None:
    """Return which of so many processes a resource's requests are for; None if nothing tells it from others."""
    for names in _KEYS:
        values = [as_text(resource.get(name)) or "" for name in names]
        if all(values):
            digest = hashlib.blake2b("\0".join(values).encode("utf-8", "replace"), digest_size=8).digest()
            return int.from_bytes(digest, "big") % number
    return None


class Router:
    """One process's part: hands over what is for others, and takes in what they hand over once it listens.

    Args:
        folder: of the sockets.
        place: this process's, counted from 0.
        number: of processes.
        take: takes a body in here.

    ``answer`` answers the others' questions, see `AskingEverywhere`.
    """

    def __init__(self, folder: Path, place: int, number: int, take: Take) -> None:
        self._folder = folder
        self._place = place
        self._number = number
        self._lock = threading.Lock()
        self._idle: dict[int, list[socket.socket]] = {}
        """Connections to the others that nobody uses just now."""
        self._away_since: dict[int, float] = {}
        """When the others that are not there were found to be gone, in monotonic seconds."""
        self._take = take
        self._server: _Server | None = None
        self.others = [other for other in range(number) if other != place]
        self.answer: AnswerTo = _too_early

    def listen(self) -> None:
        """Take in what the others hand over, from now on. Not before what this process's predecessor has left: an end
        would overtake what came before it."""
        path = _socket_of(self._folder, self._place)
        path.unlink(missing_ok=True)  # of the process whose place this one has taken
        self._server = _Server(str(path), self._take, lambda question: self.answer(question))
        threading.Thread(target=self._server.serve_forever, args=(0.1,), name="otel_letta routes", daemon=True).start()

    def wait_for_others(self, until: Deadline) -> None:
        """Wait until all others listen: when they start together, the first one would have to send senders away."""
        waiting = self.others
        while waiting := [place for place in waiting if not self._is_there(place)]:
            if until.wait(_LOOKS_EVERY):
                return

    def _is_there(self, place: int) -> bool:
        try:
            connection = self._connection(place)
        except OSError:
            return False
        self._give_back(place, connection)
        return True

    def route(self, signal: str, is_json: bool, body: bytes) -> Callable[[], Batch | None] | None:
        """Return what hands a body over to the process that it is for, None if that is this one.

        It blocks, returns None if the other one stays away, and raises a Refusal if it may be back soon, or gave one.
        """
        try:
            resource = first_resource(body, is_json, signal)
        except UndecodableError:
            return None
        place = place_of(resource, self._number)
        if place is None or place == self._place:
            return None
        return functools.partial(self._hand_over, place, signal, is_json, body)

    def _hand_over(self, place: int, signal: str, is_json: bool, body: bytes) -> Batch | None:
        try:
            said = self._exchange(place, {"signal": signal, "json": is_json}, body, _PATIENCE)
        except TimeoutError:
            raise Refusal(503, "this receiver has too much to do at the moment") from None
        if said is None:
            if time.monotonic() - self._away_since.setdefault(place, time.monotonic()) < _RETURNS_IN:
                raise Refusal(503, "a process of this receiver is being replaced")
            return None
        if said["status"] != 200:
            raise Refusal(said["status"], said["text"])
        return Batch(broken=said["broken"])

    def ask(self, place: int, question: Mapping[str, Any]) -> dict[str, Any] | None:
        """Ask another process something. None if it does not answer, or not in time."""
        try:
            said = self._exchange(place, {"question": question}, b"", _PATIENCE_WITH_ANSWERS)
        except TimeoutError:
            return None
        return None if said is None else said["answer"]

    def close(self) -> None:
        """Take nothing over any more."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            _socket_of(self._folder, self._place).unlink(missing_ok=True)
        for place in range(self._number):
            self._forget(place)

    def _exchange(self, place: int, said: Mapping[str, Any], body: bytes, patience: float) -> dict[str, Any] | None:
        """Say something to another process, and return what it says to that. None if it is not there."""
        for _ in range(2):
            try:
                connection = self._connection(place)
                try:
                    connection.settimeout(patience)
                    _send(connection, said, body)
                    answer, _ = _receive(connection)
                except BaseException:
                    connection.close()
                    raise
            except TimeoutError:
                raise
            except (OSError, EOFError):
                self._forget(place)  # they may all be to a process that is gone
            else:
                self._give_back(place, connection)
                return answer
        _logger.debug("the process at place %d is not there", place)
        return None

    def _connection(self, place: int) -> socket.socket:
        with self._lock:
            idle = self._idle.get(place)
            if idle:
                return idle.pop()
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.settimeout(_PATIENCE)
            connection.connect(str(_socket_of(self._folder, place)))
        except BaseException:
            connection.close()
            raise
        return connection

    def _give_back(self, place: int, connection: socket.socket) -> None:
        """Keep a connection for the next exchange with a process, which is there."""
        with self._lock:
            self._idle.setdefault(place, []).append(connection)
            self._away_since.pop(place, None)

    def _forget(self, place: int) -> None:
        with self._lock:
            idle = self._idle.pop(place, [])
        for connection in idle:
            connection.close()


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, path: str, take: Take, answer: AnswerTo) -> None:
        self.take = take
        self.answer = answer
        super().__init__(path, _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        _logger.debug("an error in what another process handed over", exc_info=True)


class _Handler(socketserver.BaseRequestHandler):
    server: _Server

    def handle(self) -> None:
        with contextlib.suppress(OSError, EOFError):
            while True:
                said, body = _receive(self.request)
                _send(self.request, self._answer(said, body), b"")

    def _answer(self, said: dict[str, Any], body: bytes) -> dict[str, Any]:
        try:
            if "question" in said:
                return {"status": 200, "answer": self.server.answer(said["question"])}
            batch = self.server.take(said["signal"], said["json"], body)
        except Refusal as refusal:
            return {"status": refusal.status, "text": refusal.text}
        except Exception:
            _logger.debug("unexpected error", exc_info=True)
            return {"status": 503, "text": "this receiver had an error of its own", "answer": None}
        return {"status": 200, "broken": batch.broken}


def _socket_of(folder: Path, place: int) -> Path:
    return folder / f"{place}.sock"


def _too_early(question: Mapping[str, Any]) -> Mapping[str, Any]:
    raise RuntimeError("nobody answers yet")


def _send(connection: socket.socket, said: Mapping[str, Any], body: bytes) -> None:
    head = json.dumps(said).encode()
    connection.sendall(_HEAD.pack(len(head), len(body)) + head)
    if body:
        connection.sendall(body)


def _receive(connection: socket.socket) -> tuple[dict[str, Any], bytes]:
    head, size = _HEAD.unpack(_exactly(connection, _HEAD.size))
    said: dict[str, Any] = json.loads(_exactly(connection, head))
    return said, _exactly(connection, size)


def _exactly(connection: socket.socket, size: int) -> bytes:
    found = bytearray(size)
    view, at = memoryview(found), 0
    while at < size:
        got = connection.recv_into(view[at:])
        if not got:
            raise EOFError
        at += got
    return bytes(found)
