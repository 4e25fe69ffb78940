"""Answers of OTLP/HTTP, in the type of the request: success, partial success, and ``google.rpc.Status``."""

from __future__ import annotations

import json
from typing import NamedTuple

from otel_letta.text import clean_line

JSON, PROTOBUF = "application/json", "application/x-protobuf"
RETRY_AFTER = 5
"""Seconds after which a sender may try again."""
_LONGEST_TEXT = 300

_CODES = {400: 3, 401: 16, 403: 7, 404: 5, 405: 12, 409: 9, 413: 8, 415: 3, 503: 14}
"""From HTTP's status to that of gRPC (google.rpc.Code)."""
_REJECTED = {"traces": "rejectedSpans", "logs": "rejectedLogRecords"}


class Answer(NamedTuple):
    """A whole answer to a request."""

    status: int
    body: bytes
    type: str
    retry_after: int | None = None
    allow: str = ""
    """The methods that would be understood."""


class Refusal(Exception):
    """A request that is not taken in. The text is for the sender's log.

    Args:
        status: HTTP's.
        allow: the methods that would be understood, with 405.
    """

    def __init__(self, status: int, text: str, *, allow: str = "") -> None:
        super().__init__(text)
        self.allow = allow
        self.status = status
        self.text = clean_line(text, _LONGEST_TEXT)

    @property
    def code(self) -> int:
        """The status in gRPC's numbers."""
        return _CODES.get(self.status, 2)


def success(signal: str, kind: str, rejected: int = 0, why: str = "") -> Answer:
    """Answer a request that was taken in.

    Args:
        signal: ``traces``, ``logs`` or ``metrics``.
        kind: the type of the request.
        rejected: what of it can never be accepted, however often it is sent.
        why: for the sender's log.
    """
    if kind == JSON:
        partial = {_REJECTED[signal]: str(rejected), "errorMessage": clean_line(why, _LONGEST_TEXT)} if rejected else {}
        return Answer(200, json.dumps({"partialSuccess": partial} if partial else {}).encode(), JSON)
    return Answer(200, partial_success(rejected, why), PROTOBUF)


def partial_success(rejected: int, why: str) -> bytes:
    """Write an ``Export…ServiceResponse``: the three signals have the same numbers of fields."""
    if not rejected:
        return b""
    inner = b"\x08" + _varint(rejected) + _text(2, clean_line(why, _LONGEST_TEXT))
    return b"\x0a" + _varint(len(inner)) + inner


def refused(refusal: Refusal, kind: str) -> Answer:
    """Answer a request that was not taken in."""
    retry = RETRY_AFTER if refusal.status == 503 else None
    if kind == PROTOBUF:
        return Answer(refusal.status, status_of(refusal), PROTOBUF, retry, refusal.allow)
    body = json.dumps({"code": refusal.code, "message": refusal.text}).encode()
    return Answer(refusal.status, body, JSON, retry, refusal.allow)


def status_of(refusal: Refusal) -> bytes:
    """Write a ``google.rpc.Status``."""
    return b"\x08" + _varint(refusal.code) + _text(2, refusal.text)


def retry_info() -> bytes:
    """Write the detail of a ``google.rpc.Status`` that says when to come again. HTTP has a header for that."""
    delay = b"\x08" + _varint(RETRY_AFTER)  # a google.protobuf.Duration of whole seconds
    info = b"\x0a" + _varint(len(delay)) + delay
    detail = _text(1, "type.googleapis.com/google.rpc.RetryInfo") + b"\x12" + _varint(len(info)) + info
    return b"\x1a" + _varint(len(detail)) + detail


def _text(field: int, text: str) -> bytes:
    raw = text.encode("utf-8", "replace")
    return _varint(field << 3 | 2) + _varint(len(raw)) + raw


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)
