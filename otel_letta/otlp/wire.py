"""Protobuf's wire format, as far as it takes to leave one unreadable span out of a request.

A parser refuses a whole request for one text that is not UTF-8. Spans and log records stand at the same place in their
requests: the repeated field 2 of the repeated field 2 of the repeated field 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

_TO_PARTS = (1, 2, 2)
"""Numbers of the fields on the way from a request to its spans or log records."""
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_LONGEST_VARINT = 10


def salvage(body: bytes, is_readable: Callable[[bytes], bool]) -> tuple[bytes, int]:
    """Leave out of a request the spans or log records that cannot be read.

    Args:
        is_readable: is given the bytes of one.

    Returns:
        What is left, and how many were left out. Bytes that are not protobuf at all come back as they are, for the
        parser to refuse.
    """
    try:
        return _without(body, _TO_PARTS, is_readable)
    except ValueError:
        return body, 0


def _without(message: bytes, path: tuple[int, ...], is_readable: Callable[[bytes], bool]) -> tuple[bytes, int]:
    number, *deeper = path
    kept, lost = [], 0
    for field, raw, content in _fields(message):
        if field != number or content is None:
            kept.append(raw)
        elif deeper:
            inner, missing = _without(content, tuple(deeper), is_readable)
            kept.append(_varint(field << 3 | _BYTES) + _varint(len(inner)) + inner if missing else raw)
            lost += missing
        elif is_readable(content):
            kept.append(raw)
        else:
            lost += 1
    return b"".join(kept), lost


def _fields(message: bytes) -> Iterator[tuple[int, bytes, bytes | None]]:
    """Yield the number of each field, the field as it stands there, and the content of those that have a length."""
    at = 0
    while at < len(message):
        start = at
        tag, at = _read_varint(message, at)
        kind, content = tag & 7, None
        if kind == _VARINT:
            _, at = _read_varint(message, at)
        elif kind in (_FIXED64, _FIXED32):
            at += 8 if kind == _FIXED64 else 4
        elif kind == _BYTES:
            length, at = _read_varint(message, at)
            content = message[at : at + length]
            at += length
        else:
            raise ValueError("a group, or nothing at all")
        if at > len(message):
            raise ValueError("cut off")
        yield tag >> 3, message[start:at], content


def _read_varint(message: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(_LONGEST_VARINT):
        if at + shift >= len(message):
            break
        byte = message[at + shift]
        value |= (byte & 0x7F) << (7 * shift)
        if byte < 0x80:
            return value, at + shift + 1
    raise ValueError("no number")


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)
