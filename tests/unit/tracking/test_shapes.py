"""Shapes: what the names of attributes say is asked once, whatever their values, and never kept without a bound."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanContext

from otel_letta.tracking import Reading
from otel_letta.tracking.conventions import CONVENTIONS, Role
from otel_letta.tracking.conventions.facts import AgentFacts, read_facts
from otel_letta.tracking.conventions.shapes import Names


@pytest.fixture
def names() -> Names:
    return Names(CONVENTIONS)


def test_spans_with_the_same_names_share_a_shape(names: Names) -> None:
    first = names.shape_of({"gen_ai.operation.name": "chat", "gen_ai.request.model": "a"})
    assert names.shape_of({"gen_ai.operation.name": "execute_tool", "gen_ai.request.model": "b"}) is first
    assert names.shape_of({"gen_ai.operation.name": "chat"}) is not first


def test_names_stand_in_the_order_in_which_conventions_are_asked(names: Names) -> None:
    attributes = {"tool.name": "late", "session.id": "given", "gen_ai.tool.name": "early", "letta.chat.id": "chosen"}
    shape = names.shape_of(attributes)
    assert shape.names[Role.TOOL].index("gen_ai.tool.name") < shape.names[Role.TOOL].index("tool.name")
    assert [name for _, name in shape.chats] == ["letta.chat.id", "session.id"]
    assert shape.chats[0][0] < names.rank_of_resource < shape.chats[1][0]


def test_a_span_of_no_convention_is_asked_by_none(names: Names) -> None:
    shape = names.shape_of({"http.request.method": "GET"})
    assert shape.deciding == () and shape.refining == () and not shape.declares


class Text(str):
    """A text with code of its own."""


@pytest.mark.parametrize(
    "attributes",
    [
        {f"gen_ai.prompt.{number}": "" for number in range(65)},
        {"gen_ai.prompt." + "x" * 5_000: ""},
        {Text("gen_ai.operation.name"): "chat"},
        {7: "", "gen_ai.operation.name": "chat"},
    ],
    ids=["many", "long", "subclass", "number"],
)
def test_names_that_would_cost_memory_are_not_kept(names: Names, attributes: dict[Any, Any]) -> None:
    shape = names.shape_of(attributes)
    assert names.shape_of(attributes) is not shape
    assert names.shape_of(attributes).deciding == shape.deciding


def test_ever_new_names_do_not_pile_up(names: Names) -> None:
    for number in range(2_000):
        names.shape_of({f"app.{number}": 1})
    assert len(names._shapes) <= 512


def test_what_a_reading_takes_over_is_read_like_its_own() -> None:
    span = ReadableSpan(
        "step", SpanContext(1, 2, is_remote=False), attributes={"gen_ai.operation.name": "execute_tool"}
    )
    reading = Reading.of(span)
    reading.carry({"gen_ai.tool.name": "search", "gen_ai.tool.call.id": "call-7"})
    facts = AgentFacts(Role.TOOL)
    read_facts(facts, reading)
    assert (facts.name, facts.named, facts.call_id) == ("search", True, "call-7")


def test_no_more_of_a_name_is_remembered_than_is_read() -> None:
    """It may hold a megabyte, and hundreds of names are remembered."""
    text = "x" * 1_000_000
    span = ReadableSpan("step", SpanContext(1, 2, is_remote=False), attributes={"gen_ai.tool.name": text})
    known = sys.getrefcount(text)
    read_facts(AgentFacts(Role.TOOL), Reading.of(span))
    assert sys.getrefcount(text) == known
