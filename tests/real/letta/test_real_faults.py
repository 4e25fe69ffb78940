"""What goes wrong between a program and a real Letta, and that an end arrives all the same, and once."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.program import ends_in, program, told_to, until

if TYPE_CHECKING:
    from letta_client.types.agents import LettaResponse

    from tests.support.letta_harness import LettaHarness
    from tests.support.program import Program

MESSAGES = {"delivery": "messages"}


def _ends(letta: LettaHarness, agent: str) -> list[str]:
    """Names of the tasks whose end is stored, every time that it is."""
    return [told["task"] for told in told_to(letta, agent) if told["status"] != "in_progress"]


def _parked(app: Program) -> str:
    return str(app.lane.get("parked") or "")


# -- password and agent ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("delivery", ["messages", "auto"])
def test_an_end_that_met_a_wrong_password_arrives_once_the_password_is_right(
    letta: LettaHarness, delivery: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = letta.create_agent()
    monkeypatch.setenv("LETTA_PASSWORD", "the old one")

    with program(letta, agent, delivery=delivery, password=None) as app:
        app.do("patient")
        until(lambda: "Invalid credentials" in _parked(app), "the lane is parked")
        assert "LETTA_PASSWORD" in _parked(app)
        assert letta.llm.chat_calls == 0
        assert _ends(letta, agent) == []

        monkeypatch.setenv("LETTA_PASSWORD", letta.password)
        until(lambda: not _parked(app), "the lane is open again")
        assert app.flush()
        if delivery == "auto":
            assert "patient" in letta.block(agent, "task_progress").value

    assert _ends(letta, agent) == ["patient"]
    assert ends_in(letta.next_prompt(agent)) == ["patient"]


@pytest.mark.parametrize("unknown", [f"agent-{uuid.uuid4()}", "my-agent"], ids=["no such agent", "malformed id"])
def test_an_agent_that_the_server_does_not_know_parks_its_lane_and_only_that(
    letta: LettaHarness, unknown: str, caplog: pytest.LogCaptureFixture
) -> None:
    agent = letta.create_agent()

    with program(letta, unknown, agent_allow_list=(agent,), shutdown_timeout=1.0, **MESSAGES) as app:
        app.do("for nobody")
        app.do("for a known agent", **{"letta.agent.id": agent})
        until(lambda: any(lane["parked"] for lane in app.stats["lanes"].values()), "the unknown agent's lane is parked")
        until(lambda: _ends(letta, agent) == ["for a known agent"], "the other agent hears its report")
        reason = next(lane["parked"] for lane in app.stats["lanes"].values() if lane["parked"])

    assert reason.startswith("Letta agent not found")
    assert "LETTA_AGENT_ID" in reason
    assert "[{" not in caplog.text, "no Python repr"
    lines = [record for record in caplog.records if "Letta agent not found" in record.getMessage()]
    assert len([record for record in lines if record.levelname == "ERROR" and "next try" in record.getMessage()]) == 1


# -- the server's LLM ------------------------------------------------------------------------------------------------


def test_an_end_that_met_a_failing_llm_arrives_once_when_the_llm_is_back(letta: LettaHarness) -> None:
    agent = letta.create_agent()
    letta.llm.fail_with("500")

    with program(letta, agent, **MESSAGES) as app:
        app.do("patient")
        until(lambda: app.stats["retries"] >= 2, "two tries failed")
        assert app.lane["parked"] is None
        letta.llm.recover()
        assert app.flush()

    assert _ends(letta, agent) == ["patient"]
    assert ends_in(letta.next_prompt(agent)) == ["patient"]


def test_progress_is_not_tried_again_when_the_llm_fails(letta: LettaHarness) -> None:
    # Each try costs the server three LLM calls.
    agent = letta.create_agent()
    letta.llm.fail_with("500")

    with program(letta, agent, **MESSAGES) as app:
        span = app.tracer.start_span("Long job", attributes={"letta.task.progress": 0.1})
        until(lambda: app.stats["dropped"].get("in_progress refused") == 1, "the start was given up")
        letta.llm.recover()
        assert app.flush()
        assert told_to(letta, agent) == []
        span.end()
        assert app.flush()

    assert [told["status"] for told in told_to(letta, agent)] == ["completed"]


def test_a_refused_llm_key_is_not_taken_for_our_password(letta: LettaHarness) -> None:
    agent = letta.create_agent()
    letta.llm.fail_with("401")

    with program(letta, agent, **MESSAGES) as app:
        app.do("patient")
        until(lambda: _parked(app), "the lane is parked")
        reason = _parked(app)
        letta.llm.recover()
        until(lambda: not _parked(app), "the lane is open again")
        assert app.flush()

    assert "LLM" in reason
    assert "Invalid credentials" not in reason
    assert _ends(letta, agent) == ["patient"]


# -- the server goes away --------------------------------------------------------------------------------------------


def test_ends_arrive_once_when_a_server_that_died_in_the_middle_is_started_again(letta: LettaHarness) -> None:
    # The dead server's run stays "created" for ever. It was seen that nobody listened, so nobody waits for that run.
    agent = letta.create_agent()

    with program(letta, agent, **MESSAGES) as app:
        with letta.llm.hold():
            app.do("in the middle of it")
            until(lambda: "middle of it" in str(letta.llm.prompts) and app.lane["in_flight"], "the agent reads the end")
            letta.server.stop_letta(kill=True)
        until(lambda: app.stats["retries"] >= 1, "the answer is missed")
        app.do("nobody there")
        letta.server.start_letta()
        assert app.flush(seconds=90)

    assert sorted(_ends(letta, agent)) == ["in the middle of it", "nobody there"]
    assert sorted(ends_in(letta.next_prompt(agent))) == ["in the middle of it", "nobody there"]


# -- silence ---------------------------------------------------------------------------------------------------------


def test_an_end_whose_answer_comes_too_late_is_not_sent_twice(
    letta: LettaHarness, caplog: pytest.LogCaptureFixture
) -> None:
    agent = letta.create_agent()
    caplog.set_level("DEBUG", logger="otel_letta")

    with program(letta, agent, "batch", read_timeout=1.0, **MESSAGES) as app:
        with letta.llm.hold():
            app.do("slow to read")
            app.provider.force_flush()
            until(lambda: "did not answer within 1 s" in caplog.text, "the client gave up")
            until(lambda: "the agent is busy" in caplog.text, "it looks whether the turn goes on")
            assert not told_to(letta, agent)
        assert app.flush()
        assert app.stats["sent"] == 1
        assert app.lane["waiting"] == 0

    assert _ends(letta, agent) == ["slow to read"]
    assert letta.llm.chat_calls == 1
    assert ends_in(letta.next_prompt(agent)) == ["slow to read"]


def test_an_end_whose_turn_fails_after_its_client_gave_up_is_sent_again(
    letta: LettaHarness, caplog: pytest.LogCaptureFixture
) -> None:
    agent = letta.create_agent()
    caplog.set_level("DEBUG", logger="otel_letta")

    with program(letta, agent, "batch", read_timeout=1.0, **MESSAGES) as app:
        with letta.llm.hold() as release:
            app.do("slow to fail")
            app.provider.force_flush()
            until(lambda: "the agent is busy" in caplog.text, "the client gave up and looks")
            letta.llm.fail_with("400", times=1)
            release()
        assert app.flush()

    assert _ends(letta, agent) == ["slow to fail"]
    assert ends_in(letta.next_prompt(agent)) == ["slow to fail"]


# -- an agent that waits for a person --------------------------------------------------------------------------------


def _ask_for_approval(letta: LettaHarness, agent: str) -> tuple[str, str]:
    """Bring the agent to call a tool that its user has to approve; ids of the request and of the call."""
    tool: Any = {"name": "launch", "description": "Launch it.", "parameters": {"type": "object", "properties": {}}}
    letta.llm.call_tool_next("launch")
    response: LettaResponse = letta.say(agent, "launch it", client_tools=[tool])
    request = next(m for m in response.messages if m.message_type == "approval_request_message")
    call: Any = request.tool_call
    return request.id, call.tool_call_id


def test_an_end_waits_while_the_agent_waits_for_an_approval(letta: LettaHarness) -> None:
    agent = letta.create_agent()
    request, call = _ask_for_approval(letta, agent)

    with program(letta, agent, **MESSAGES) as app:
        app.do("patient")
        until(lambda: "waits for an approval" in _parked(app), "the lane is parked")
        denial: Any = {
            "type": "approval",
            "approval_request_id": request,
            "approvals": [{"type": "approval", "tool_call_id": call, "approve": False, "reason": "not today"}],
        }
        letta.client.agents.messages.create(agent, messages=[denial])
        until(lambda: not _parked(app), "the lane is open again")
        assert app.flush()

    assert _ends(letta, agent) == ["patient"]
    prompt = letta.next_prompt(agent)
    assert ends_in(prompt) == ["patient"]
    assert "not today" in prompt
