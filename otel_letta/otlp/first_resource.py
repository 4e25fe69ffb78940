"""The first resource of a request, without a look at anything else in it."""

from __future__ import annotations

from typing import Any

import msgspec
from google.protobuf.message import DecodeError  # type: ignore[import-untyped, unused-ignore]

from otel_letta.otlp.batch import BrokenError, UndecodableError
from otel_letta.otlp.glances import RequestGlance
from otel_letta.otlp.json import resource_of
from otel_letta.otlp.proto import attributes_of


class _Group(msgspec.Struct):
    resource: Any = None


class _Traces(msgspec.Struct):
    resourceSpans: list[_Group] = []  # noqa: N815 - OTLP's name


class _Logs(msgspec.Struct):
    resourceLogs: list[_Group] = []  # noqa: N815


_traces, _logs = msgspec.json.Decoder(_Traces).decode, msgspec.json.Decoder(_Logs).decode


def first_resource(body: bytes, is_json: bool, signal: str) -> dict[str, Any]:
    """Return its attributes; empty if there is none.

    Raises:
        UndecodableError: it cannot be had so. That says nothing of the request.
    """
    try:
        if is_json:
            groups = _traces(body).resourceSpans if signal == "traces" else _logs(body).resourceLogs
            return dict(resource_of({"resource": groups[0].resource}).attributes) if groups else {}
        request = RequestGlance.FromString(body)
        return attributes_of(request.groups[0].resource.attributes) if request.groups else {}
    except (msgspec.MsgspecError, BrokenError, DecodeError, RecursionError):
        raise UndecodableError("no request with a resource") from None
