"""Content codings of a body, unpacked within a bound: a few kilobytes may otherwise become gigabytes."""

from __future__ import annotations

import zlib
from typing import Any

_GZIP, _DEFLATE = 31, 47
"""zlib's window bits: for gzip alone, and for whichever header there is."""
_WINDOW = 1 << 23
"""Bytes of memory that a sender may ask for: as many as RFC 9659 allows it."""
_SIP = 512
"""Bytes that are unpacked at once, where one step cannot be bounded by itself: at most 16 MiB can come out of them."""


class CodingError(ValueError):
    """The body is not what its ``Content-Encoding`` says. The text quotes nothing of it."""


class TooLongError(ValueError):
    """It is longer than it may be, unpacked or not."""


class UnknownCodingError(ValueError):
    """Nobody here unpacks that."""


def unpack(body: bytes, coding: str, most: int) -> bytes:
    """Unpack a body.

    Args:
        coding: the value of ``Content-Encoding``; empty for none.
        most: bytes that it may have afterwards.

    Raises:
        CodingError, TooLongError, UnknownCodingError: see there.
    """
    for one in reversed([part.strip().lower() for part in coding.split(",") if part.strip()]):
        if one in ("gzip", "x-gzip"):
            body = _inflate(body, _GZIP, most)
        elif one == "deflate":
            body = _inflate(body, _DEFLATE, most)
        elif one == "zstd":
            body = _unpack_zstd(body, most)
        elif one != "identity":
            raise UnknownCodingError("Content-Encoding: gzip, zstd, deflate and none are understood")
    if len(body) > most:
        raise TooLongError
    return body


def _inflate(body: bytes, window: int, most: int) -> bytes:
    parts, size, rest = [], 0, body
    while True:  # a body may have several members, one behind the other
        unpacker = zlib.decompressobj(window)
        try:
            while not unpacker.eof:
                part = unpacker.decompress(rest, most - size + 1)
                size += len(part)
                if size > most:
                    raise TooLongError
                parts.append(part)
                rest = unpacker.unconsumed_tail
                if not part and not rest:
                    break
        except zlib.error:
            raise CodingError("the body is not compressed as its Content-Encoding says") from None
        if not unpacker.eof:
            raise CodingError("the compressed body is cut off")
        rest = unpacker.unused_data
        if not rest.strip(b"\0"):  # padding, as gzip itself allows it
            return parts[0] if len(parts) == 1 else b"".join(parts)


def _unpack_zstd(body: bytes, most: int) -> bytes:
    try:
        import zstandard
    except ImportError:
        raise UnknownCodingError("Content-Encoding: zstd needs the package zstandard here") from None
    unpackers = zstandard.ZstdDecompressor(max_window_size=_WINDOW)
    parts, size, rest = [], 0, body
    while rest:  # one frame behind the other
        unpacker: Any = unpackers.decompressobj()
        fed = 0
        try:
            while not unpacker.eof and fed < len(rest):
                part = unpacker.decompress(rest[fed : fed + _SIP])
                fed += _SIP
                size += len(part)
                if size > most:
                    raise TooLongError
                parts.append(part)
        except zstandard.ZstdError:
            raise CodingError("the body is not compressed as its Content-Encoding says") from None
        if not unpacker.eof:
            raise CodingError("the compressed body is cut off")
        rest = unpacker.unused_data + rest[fed:]
    return b"".join(parts)
