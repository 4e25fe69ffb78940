"""The sockets below httpx, with a deadline for a whole request.

httpx bounds each single read, so a server that sends a byte now and then, or one interim answer after another, holds a
request for ever. Here every read, write and connect of a request ends at its deadline.
"""

from __future__ import annotations

import contextlib
import math
import ssl
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Any

import httpcore
import httpx

_SLICE = 65_536
"""Bytes that are written at once, so that a slow reader is noticed in between."""


class _Here(threading.local):
    until = math.inf
    """Seconds of `time.monotonic`: the deadline of this thread's request."""


_here = _Here()


@contextlib.contextmanager
def ends_at(moment: float) -> Iterator[None]:
    """Let this thread's requests inside end at that time of `time.monotonic`."""
    before, _here.until = _here.until, moment
    try:
        yield
    finally:
        _here.until = before


def keep_to_deadlines(client: httpx.Client) -> None:
    """Make a fresh client's connections, those through proxies too, end with their requests' deadlines."""
    # httpx has no public way to hand a network backend down to httpcore, which has one. Where the attributes go by
    # other names some day, its own bounds remain, and a test fails.
    mounted = getattr(client, "_mounts", {}).values()
    for transport in (getattr(client, "_transport", None), *mounted):
        pool = getattr(transport, "_pool", None)
        backend = getattr(pool, "_network_backend", None)
        if isinstance(backend, httpcore.NetworkBackend):
            setattr(pool, "_network_backend", _Backend(backend))  # noqa: B010 - nobody knows its type


def _left(seconds: float | None, late: type[httpcore.TimeoutException]) -> float | None:
    left = _here.until - time.monotonic()
    if left <= 0:
        raise late("the time for the whole request is over")
    if seconds is None:
        return left if math.isfinite(left) else None
    return min(seconds, left)


class _Backend(httpcore.NetworkBackend):
    def __init__(self, backend: httpcore.NetworkBackend) -> None:
        self._backend = backend

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        left = _left(timeout, httpcore.ConnectTimeout)
        return _Stream(self._backend.connect_tcp(host, port, left, local_address, socket_options))

    def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[Any] | None = None
    ) -> httpcore.NetworkStream:
        left = _left(timeout, httpcore.ConnectTimeout)
        return _Stream(self._backend.connect_unix_socket(path, left, socket_options))

    def sleep(self, seconds: float) -> None:
        self._backend.sleep(seconds)


class _Stream(httpcore.NetworkStream):
    def __init__(self, stream: httpcore.NetworkStream) -> None:
        self._stream = stream

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, _left(timeout, httpcore.ReadTimeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        for start in range(0, len(buffer), _SLICE):
            self._stream.write(buffer[start : start + _SLICE], _left(timeout, httpcore.WriteTimeout))

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        left = _left(timeout, httpcore.ConnectTimeout)
        return _Stream(self._stream.start_tls(ssl_context, server_hostname, left))

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)
