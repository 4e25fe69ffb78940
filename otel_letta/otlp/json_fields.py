"""The fields of OTLP-JSON's objects, checked: BrokenError says what is there instead of what OTLP has in its place.

A field that is missing or null has its default value, as in protobuf.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import Any

from otel_letta.otlp.batch import LATEST, BrokenError, as_attribute

MOST_DEPTH = 20
"""Values in values that are read; the rest is left out."""


def object_in(holder: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = holder.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise BrokenError(f"{name} is not an object")
    return value


def objects_in(holder: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    value = holder.get(name)
    if value is None:
        return []
    if not isinstance(value, list):
        raise BrokenError(f"{name} is not a list of objects")
    for item in value:
        if type(item) is not dict:
            break
    else:
        return value
    found = [item for item in value if item is not None]
    if not all(isinstance(item, dict) for item in found):
        raise BrokenError(f"{name} is not a list of objects")
    return found


def text_in(holder: Mapping[str, Any], name: str) -> str:
    value = holder.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise BrokenError(f"{name} is not text")
    return value


def id_in(holder: Mapping[str, Any], name: str, digits: int) -> int:
    text = text_in(holder, name)
    if not text:
        return 0
    try:
        if len(text) != digits or not text.isascii() or not text.isalnum():
            raise ValueError
        return int(text, 16)
    except ValueError:
        raise BrokenError(f"{name} is not {digits} hexadecimal digits") from None


def integer_in(holder: Mapping[str, Any], name: str) -> int:
    value = holder.get(name, 0)
    if type(value) is int:  # bool is a kind of it, and no number here
        return value
    if isinstance(value, str) and len(value) <= 30:
        try:
            return int(value)
        except ValueError:
            pass
    elif isinstance(value, float) and value.is_integer():
        return int(value)
    elif value is None:
        return 0
    raise BrokenError(f"{name} is not a whole number")


def time_in(holder: Mapping[str, Any], name: str) -> int:
    value = integer_in(holder, name)
    if not 0 <= value < LATEST:
        raise BrokenError(f"{name} is no time")
    return value


def enum_in(holder: Mapping[str, Any], name: str, prefix: str, names: Mapping[str, int]) -> int:
    value = holder.get(name)
    if isinstance(value, str) and not value.lstrip("-").isdigit():
        return names.get(value.removeprefix(prefix), 0)
    return integer_in(holder, name)


def attributes_in(holder: Mapping[str, Any]) -> dict[str, Any]:
    found = {}
    for item in objects_in(holder, "attributes"):
        value = item.get("value")
        if value is None:
            continue
        key = item.get("key")
        if type(key) is str and type(value) is dict and len(value) == 1:  # as nearly all are, with text in it
            text = value.get("stringValue")
            if type(text) is str:
                found[key] = text
                continue
        found[text_in(item, "key")] = as_attribute(value_of(object_in(item, "value"), MOST_DEPTH))
    return found


def value_of(value: Mapping[str, Any], depth: int) -> Any:
    for kind, content in value.items():
        if kind == "intValue":
            return integer_in(value, kind)
        if kind == "doubleValue":
            return _double(content)
        if kind in ("stringValue", "boolValue"):
            return content if isinstance(content, (str, bool)) else None
        if kind == "bytesValue":
            return _bytes(content)
        if kind == "arrayValue" and depth and isinstance(content, dict):
            return tuple(value_of(item, depth - 1) for item in objects_in(content, "values"))
        if kind == "kvlistValue" and depth and isinstance(content, dict):
            return {
                text_in(pair, "key"): value_of(object_in(pair, "value"), depth - 1)
                for pair in objects_in(content, "values")
            }
    return None


def _double(content: object) -> float:
    # Infinities and NaN are text in protobuf's JSON mapping, in words that float() knows.
    if isinstance(content, (int, float, str)) and not isinstance(content, bool) and len(str(content)[:50]) < 50:
        try:
            return float(content)
        except (ValueError, OverflowError):
            pass
    raise BrokenError("doubleValue is not a number")


def _bytes(content: object) -> bytes:
    try:
        return base64.b64decode(content if isinstance(content, str) else "", validate=True)
    except (binascii.Error, ValueError):
        raise BrokenError("bytesValue is not base64") from None
