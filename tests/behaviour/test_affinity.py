"""What a load balancer in front of several receivers chooses a replica by: see `tests.support.affinity`."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from otel_letta import semconv
from tests.support.affinity import KEYS, RECORDINGS, SHIPPED, kept, moved
from tests.support.collector_keys import FOLDER

_LOGS = ("codex.success+logs", "gemini_cli.success+logs", "adk_go.approval+logs")
"""Recordings whose logs have no trace ids, or whose tasks go through several traces."""
_SUB_AGENTS = ("adk_go.subagent", "traces/openai_agents.genai.handoff")
_PAGE = Path(__file__).parents[2] / "docs" / "scale.md"


@pytest.mark.parametrize("name", _LOGS)
def test_the_shipped_key_keeps_a_program_s_spans_and_logs_together_and_a_trace_id_does_not(name: str) -> None:
    assert kept(name, KEYS[SHIPPED]).same
    assert not kept(name, KEYS["`traceID`"]).same


@pytest.mark.parametrize("name", _SUB_AGENTS)
def test_an_agent_id_keeps_a_trace_of_several_processes_together_and_a_service_s_name_does_not(name: str) -> None:
    change = moved(RECORDINGS[name], **{semconv.AGENT_ID: "agent-1"})
    assert change is not None
    assert kept(name, KEYS[SHIPPED], change).same
    assert not kept(name, KEYS["`service.name`"], change).same


def test_without_an_agent_id_such_a_trace_is_reported_in_parts_as_the_page_says() -> None:
    change = moved(RECORDINGS["adk_go.subagent"])
    assert change is not None
    found = kept("adk_go.subagent", KEYS[SHIPPED], change)
    assert not found.same
    assert found.ends


def test_at_random_nothing_keeps_together() -> None:
    assert not kept("codex.success+logs", KEYS["none: at random"]).same


def test_the_load_balancer_has_the_key_that_was_measured() -> None:
    balancer = yaml.safe_load((FOLDER / "scale-out.yaml").read_text("utf-8"))["exporters"]["load_balancing/letta"]
    assert balancer["routing_key"] == "attributes"
    assert [f"`{key}` of the resource (shipped)" for key in balancer["routing_attributes"]] == [SHIPPED]


def test_the_shipped_key_is_the_best_in_the_page_s_table() -> None:
    text = _PAGE.read_text("utf-8").partition("<!-- affinity: begin -->\n")[2].partition("<!-- affinity: end -->")[0]
    head, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines())
    assert head[2:] == list(KEYS)
    recorded, _, with_id = ([int(cell.split(" / ")[0]) for cell in row[1:]] for row in rows)
    for count, shipped, *others in (recorded, with_id):
        assert shipped == count >= max(others)
    assert 300 < recorded[0] <= len(RECORDINGS), "python -m tests.support.affinity"
