"""The body of an answer, read up to a bound: its bytes on the wire as well as what these unpack to."""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Iterator

import httpx

LARGEST = 8 * 2**20
"""Bytes of an answer that are read at most. A page of a hundred messages, or an agent with its tools, is a tenth of
it; and Python's objects for hostile JSON take twenty times the room of its text."""
LARGEST_REFUSAL = 65_536
"""Bytes that are read of an answer that is no success: only its first words are shown."""
ENCODINGS = "gzip, deflate"
"""For the header ``Accept-Encoding``: what `unpacked` can read in pieces. httpx would unpack a piece of any size."""
_UNPACKED_AT_ONCE = 2**20
_OF_THE_WIRE = frozenset({"content-encoding", "content-length", "transfer-encoding"})

Unpack = Callable[[bytes], Iterator[bytes]]


class TooLargeError(Exception):
    """A success came with a body past the bound. `status` is its own."""

    def __init__(self, status: int, most: int) -> None:
        super().__init__(f"an answer of more than {most / 2**20:.0f} MB")
        self.status = status


def whole(streamed: httpx.Response, most: int = LARGEST) -> httpx.Response:
    """Read an answer to its end, unpacked.

    Of a refusal, the beginning is returned where it is longer than `LARGEST_REFUSAL`.

    Raises:
        TooLargeError: a success is longer than ``most`` bytes.
        httpx.DecodingError: it is packed in another way than it says, or than it was asked to be.
    """
    bound = most if streamed.is_success else min(most, LARGEST_REFUSAL)
    body, complete = _read(streamed, bound, give_up=None)
    if not complete and streamed.is_success:
        raise TooLargeError(streamed.status_code, most)
    return _of(streamed, body)


def beginning(streamed: httpx.Response, most: int, give_up: float) -> httpx.Response:
    """Read so many bytes of an answer, unpacked, until that time of `time.monotonic`; the rest is left."""
    return _of(streamed, _read(streamed, most, give_up)[0])


def _of(streamed: httpx.Response, body: bytes) -> httpx.Response:
    headers = [(name, value) for name, value in streamed.headers.multi_items() if name.lower() not in _OF_THE_WIRE]
    return httpx.Response(streamed.status_code, headers=headers, content=body, request=streamed.request)


def _read(streamed: httpx.Response, most: int, give_up: float | None) -> tuple[bytes, bool]:
    """Return at most so many bytes, and whether these are all."""
    unpack = _unpacker(streamed.headers.get("content-encoding", ""))
    body = bytearray()
    for packed in streamed.iter_raw():
        for part in unpack(packed):
            body += part
            if len(body) > most:
                return bytes(body[:most]), False
        if give_up is not None and time.monotonic() > give_up:
            return bytes(body), False
    return bytes(body), True


def _unpacker(encoding: str) -> Unpack:
    encoding = encoding.strip().lower()
    if encoding in ("", "identity"):
        return lambda packed: iter((packed,))
    if encoding in ("gzip", "x-gzip"):
        return _inflating(zlib.MAX_WBITS | 16)
    if encoding == "deflate":
        return _inflating(zlib.MAX_WBITS)
    raise httpx.DecodingError("it is packed in a way that was not asked for")


def _inflating(form: int) -> Unpack:
    inflater = zlib.decompressobj(form)

    def unpack(packed: bytes) -> Iterator[bytes]:
        try:
            while packed:
                yield inflater.decompress(packed, _UNPACKED_AT_ONCE)
                packed = inflater.unconsumed_tail
        except zlib.error:
            raise httpx.DecodingError("it cannot be unpacked") from None

    return unpack
