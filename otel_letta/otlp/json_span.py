"""Spans in JSON that are written as nearly all are: checked by the parser, and looked at as far as somebody asks.

What is written otherwise (enums by name, lists and maps as values, NaN as text) is no `JsonSpan` and gets read the
slow way, which also knows what is wrong with it.
"""

# ruff: noqa: N815, UP007, UP045 - fields have OTLP's names, and their types are evaluated, also by Python 3.10

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Optional, Union

import msgspec
from opentelemetry.sdk.trace import Event
from opentelemetry.trace import Link, SpanContext, SpanKind, Status

from otel_letta.otlp.batch import LATEST
from otel_letta.otlp.received import SAMPLED, UNSET, ReceivedSpan, kind_of, status_of

_Integer = Union[int, Annotated[str, msgspec.Meta(pattern="^-?[0-9]{1,18}$")]]
_Time = Union[Annotated[int, msgspec.Meta(ge=0)], Annotated[str, msgspec.Meta(pattern="^[0-9]{1,19}$")]]
TraceText = Annotated[str, msgspec.Meta(min_length=32, max_length=32)]
SpanText = Annotated[str, msgspec.Meta(min_length=16, max_length=16)]
ParentText = Annotated[str, msgspec.Meta(max_length=16)]
"""Ids of spans, by their length; a pattern would take ten times as long to look at."""
_TraceId = Annotated[str, msgspec.Meta(pattern="^[0-9a-fA-F]{32}$")]
_SpanId = Annotated[str, msgspec.Meta(pattern="^[0-9a-fA-F]{16}$")]


class _Value(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    stringValue: Optional[str] = None
    intValue: Optional[_Integer] = None
    boolValue: Optional[bool] = None
    doubleValue: Optional[float] = None


class _Pair(msgspec.Struct, gc=False):
    key: str
    value: _Value


class _Event(msgspec.Struct, gc=False):
    name: str = ""
    timeUnixNano: _Time = 0
    attributes: Optional[list[_Pair]] = None


class _Link(msgspec.Struct, gc=False):
    traceId: _TraceId
    spanId: _SpanId


class _Status(msgspec.Struct, gc=False):
    code: int = 0
    message: Optional[str] = None


class WholeSpan(msgspec.Struct, gc=False):
    traceId: TraceText
    spanId: SpanText
    parentSpanId: Optional[ParentText] = None
    flags: Optional[int] = None
    startTimeUnixNano: Union[str, int] = 0
    endTimeUnixNano: Union[str, int] = 0
    name: str = ""
    kind: int = 0
    attributes: Optional[list[_Pair]] = None
    events: Optional[list[_Event]] = None
    links: Optional[list[_Link]] = None
    status: Optional[_Status] = None


parse = msgspec.json.Decoder(WholeSpan).decode
"""Raises msgspec.MsgspecError for a span that is written otherwise."""


class JsonSpan(ReceivedSpan):
    """A span in JSON. Arguments as `ReceivedSpan`; ``raw`` is something that `parse` takes."""

    __slots__ = ()

    _parse = staticmethod(parse)

    @property
    def name(self) -> str:
        name: str = self._parsed.name
        return name

    @property
    def kind(self) -> SpanKind:
        return kind_of(self._parsed.kind)

    @property
    def status(self) -> Status:
        status = self._parsed.status
        return UNSET if status is None else status_of(status.code, status.message)

    @property
    def attributes(self) -> dict[str, Any]:
        if self._values is None:
            self._values = _attributes(self._parsed.attributes)
        values: dict[str, Any] = self._values
        return values

    @property
    def events(self) -> Sequence[Event]:
        return tuple(
            Event(event.name, _attributes(event.attributes), min(int(event.timeUnixNano), LATEST - 1))
            for event in self._parsed.events or ()
        )

    @property
    def links(self) -> Sequence[Link]:
        found = ((int(link.traceId, 16), int(link.spanId, 16)) for link in self._parsed.links or ())
        return tuple(Link(SpanContext(*ids, True, SAMPLED)) for ids in found if all(ids))

    @property
    def dropped_attributes(self) -> int:
        return 0


def _attributes(pairs: list[_Pair] | None) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for pair in pairs or ():
        value = pair.value
        if value.stringValue is not None:
            found[pair.key] = value.stringValue
        elif value.intValue is not None:
            found[pair.key] = int(value.intValue)
        elif value.boolValue is not None:
            found[pair.key] = value.boolValue
        else:
            found[pair.key] = value.doubleValue
    return found
