"""What holds on either of Letta's servers, REST and App Server: the same tests, word for word, against the real ones.

What the library says about itself decides nothing. The oracles are what the server has stored, read with other
clients, and the next prompt that the agent's LLM gets.
"""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from otel_letta import (
    Answer,
    Instruction,
    LettaAgentNotFoundError,
    LettaAuthenticationError,
    LettaModelError,
    LettaReporter,
    ProgressReport,
)
from tests.support.either import At, Either, EitherAppServer, EitherRest
from tests.support.program import OtherProgram, Program, ends_in, options_for, program, told_in, until
from tests.support.relay import Relay
from tests.support.scripted_llm import ScriptedLLM

MESSAGES = {"delivery": "messages"}


@pytest.fixture(params=["rest", "app-server"])
def server(request: pytest.FixtureRequest) -> Either:
    if request.param == "rest":
        return EitherRest(request.getfixturevalue("letta"))
    return EitherAppServer(request.getfixturevalue("app_server"))


@pytest.fixture(params=["rest", "app-server"])
def guarded(request: pytest.FixtureRequest, scripted_llm: ScriptedLLM) -> Iterator[Either]:
    """A server that lets in only whoever knows its password."""
    if request.param == "rest":
        yield EitherRest(request.getfixturevalue("letta"))
        return
    from tests.support.app_server_client import AppServerClient
    from tests.support.app_server_harness import AppServerHarness

    process = request.getfixturevalue("app_server_with_token")
    scripted_llm.reset()
    yield EitherAppServer(AppServerHarness(process, scripted_llm, AppServerClient(process.url, token=process.token)))
    scripted_llm.reset()


def _send(reporter: LettaReporter, content: str, **more: Any) -> dict[str, Any]:
    ids = {"chat_id": "chat-123", "message_id": "msg-456"}
    return asyncio.run(reporter.send_progress_report(**{**ids, "content": content, **more}))


def _ends(server: Either, agent: str, conversation: str | None = None) -> list[str]:
    """Names of the tasks whose end is stored, every time that it is."""
    return [told["task"] for told in server.reports(agent, conversation) if told["status"] != "in_progress"]


def _parked(app: Program) -> str:
    return str(app.lane.get("parked") or "")


# -- what arrives ----------------------------------------------------------------------------------------------------


def test_start_progress_and_end_of_a_task_arrive_in_order(server: Either) -> None:
    agent = server.create_agent()

    with program(server, agent, **MESSAGES) as app:
        with app.tracer.start_as_current_span("Refactor module", attributes={"letta.chat.id": "chat-123"}) as span:
            assert app.flush()
            span.set_attribute("letta.task.progress", 0.5)
            assert app.flush()
            span.set_attribute("letta.task.result", "branch refactor-7")
        assert app.flush()

    told = server.reports(agent)
    assert [(t["status"], t["progress"]) for t in told] == [
        ("in_progress", "0%"),
        ("in_progress", "50%"),
        ("completed", "100%"),
    ]
    assert told[-1]["result"] == "branch refactor-7"
    assert server.llm.chat_calls == 3, "one turn of the agent for each"
    assert told_in(server.next_prompt(agent)) == told


def test_ends_of_eight_processes_at_once_are_all_in_the_next_prompt_once(server: Either) -> None:
    agent = server.create_agent()
    names = [f"process {n}" for n in range(8)]

    with ExitStack() as stack:
        apps = [
            stack.enter_context(OtherProgram(server, agent, name, OTEL_LETTA_DELIVERY="messages")) for name in names
        ]
        for app in apps:
            app.wait_until_ready()
        for app in apps:
            app.go()
        numbers = [app.stats() for app in apps]

    assert [n["dropped"].get("end not delivered before shutdown") for n in numbers] == [None] * 8
    assert sorted(ends_in(server.next_prompt(agent))) == names
    assert sorted(_ends(server, agent)) == names
    assert server.llm.in_flight_max == 1, "the processes took turns"


def test_a_report_during_a_users_turn_disturbs_neither(server: Either) -> None:
    agent = server.create_agent()

    with program(server, agent, **MESSAGES) as app, ThreadPoolExecutor(1) as pool:
        with server.llm.hold():
            answer = pool.submit(server.say, agent, "please book the train to Basel")
            server.llm.wait_for_calls(1)
            app.do("nightly backup")
            until(lambda: app.lane.get("in_flight"), "the report is on its way")
            assert not app.flush(seconds=0.5), "not delivered while the agent is busy"
            assert server.llm.chat_calls == 1, "the report did not go into the running turn"
        assert answer.result(30).startswith("ack")
        assert app.flush()

    prompt = server.next_prompt(agent)
    assert prompt.count("please book the train to Basel") == 1
    assert ends_in(prompt) == ["nightly backup"]


def test_the_board_costs_no_llm_call_and_is_in_the_next_prompt(server: Either) -> None:
    agent = server.create_agent()

    with program(server, agent, delivery="board") as app:
        with app.tracer.start_as_current_span("Index photos") as span:
            span.set_attribute("letta.task.progress", 0.4)
            assert app.flush()
            assert "[████░░░░░░] 40% Index photos" in server.board_text(agent)
            assert server.llm.chat_calls == 0
            assert "[████░░░░░░] 40% Index photos" in server.next_prompt(agent)
            span.set_attribute("letta.task.result", "1,000 photos indexed")
        assert app.flush()

    assert "In progress: none" in server.board_text(agent)
    prompt = server.next_prompt(agent)
    assert "1,000 photos indexed" in prompt
    assert server.llm.chat_calls == 2, "only our questions"
    assert server.reports(agent) == []


def test_by_default_progress_goes_on_the_board_and_the_end_is_a_message(server: Either) -> None:
    agent = server.create_agent()

    with program(server, agent) as app:
        with app.tracer.start_as_current_span("Index photos") as span:
            for tenths in range(1, 4):
                span.set_attribute("letta.task.progress", tenths / 10)
                assert app.flush()
            assert "30% Index photos" in server.board_text(agent)
            assert server.llm.chat_calls == 0
        assert app.flush()

    assert server.llm.chat_calls == 1
    assert [(t["task"], t["status"]) for t in server.reports(agent)] == [("Index photos", "completed")]
    assert "In progress: none" in server.board_text(agent)


def test_a_chat_id_that_names_a_conversation_leads_there_and_nowhere_else(server: Either) -> None:
    agent = server.create_agent()
    conversation = server.conversation(agent)

    with program(server, agent, **MESSAGES) as app:
        app.do("over there", **{"letta.chat.id": conversation})
        assert app.flush()

    assert _ends(server, agent, conversation) == ["over there"]
    assert ends_in(server.next_prompt(agent, conversation)) == ["over there"]
    assert "over there" not in server.next_prompt(agent)


def test_reports_for_a_conversation_that_does_not_exist_go_to_the_agents_default_one(
    server: Either, caplog: pytest.LogCaptureFixture
) -> None:
    agent = server.create_agent()

    with program(server, agent, **MESSAGES) as app:
        app.do("homeless", **{"letta.chat.id": server.unknown_conversation})
        assert app.flush()

    assert ends_in(server.next_prompt(agent)) == ["homeless"]
    assert "does not exist, or is another agent's: its reports go" in caplog.text


def test_a_reporters_call_gives_back_the_agents_answer(server: Either) -> None:
    agent = server.create_agent()

    with LettaReporter(**options_for(server, agent)) as reporter:
        answer = _send(reporter, "Processing task: 50% complete", progress=0.5)

    assert {"messages", "stop_reason", "usage"} <= set(answer)
    said = answer["messages"][-1]
    assert {"id", "message_type", "content"} <= set(said)
    assert said["message_type"] == "assistant_message"
    assert "ack " in str(said["content"])
    assert answer["usage"]["step_count"] == 1
    reason = answer["stop_reason"]
    assert (reason["stop_reason"] if server.kind == "rest" else reason) == "end_turn"
    if server.kind == "app-server":
        assert {"run_id", "turn_id", "conversation_id"} <= set(answer)
    assert server.llm.chat_calls == 1
    [told] = told_in(server.next_prompt(agent))
    assert (told["content"], told["chat_id"], told["progress"]) == ("Processing task: 50% complete", "chat-123", "50%")


# -- the agent's answer ----------------------------------------------------------------------------------------------


def test_the_agents_answer_comes_back_with_what_it_asks_for(server: Either) -> None:
    agent = server.create_agent()
    block = '<task-instruction task_id="import-7" action="continue">Use the second ledger.</task-instruction>'
    server.llm.say_next(f"Good.\n\n{block}")
    calls: list[tuple[ProgressReport, Answer]] = []

    with program(server, agent, "simple", on_answer=lambda *call: calls.append(call), **MESSAGES) as app:
        app.do("Import", **{"letta.task.id": "import-7"})
        assert app.flush()
        until(lambda: calls, "the answer came back")

    [(report, answer)] = calls
    assert (report.task_id, report.status) == ("import-7", "completed")
    assert answer.agent_id == agent
    assert answer.text == f"Good.\n\n{block}"
    assert answer.instructions == (Instruction(task_id="import-7", action="continue", text="Use the second ledger."),)
    assert answer.stop_reason == "end_turn"
    assert answer.run_id
    assert (answer.usage["prompt_tokens"], answer.usage["completion_tokens"]) == (10, 3)


def test_a_call_of_a_tool_is_in_the_answer_and_a_call_of_instruct_task_is_an_instruction(server: Either) -> None:
    name = "instruct_task" if isinstance(server, EitherRest) else "Bash"  # an App Server's agents have its own tools
    agent = server.create_agent_with_tool(name) if isinstance(server, EitherRest) else server.create_agent()
    arguments = {"task_id": "import-7", "action": "reject", "text": "Not that one."}
    server.llm.call_tool_next(name, json.dumps(arguments if name == "instruct_task" else {"command": "true"}))
    calls: list[tuple[ProgressReport, Answer]] = []

    with LettaReporter(on_answer=lambda *call: calls.append(call), **options_for(server, agent)) as reporter:
        raw = _send(reporter, "It waits for you.", progress=0.5)

    [(report, answer)] = calls
    assert report.content == "It waits for you."
    assert answer.tools == (name,)
    assert answer.text.startswith("ack"), "what it said after the call"
    assert answer.usage["step_count"] == 2
    asked_for = (Instruction(task_id="import-7", action="reject", text="Not that one."),)
    assert answer.instructions == (asked_for if name == "instruct_task" else ())
    assert [row["message_type"] for row in raw["messages"]][-1] == "assistant_message", "the caller's is Letta's own"


def test_a_turn_is_a_span_with_lettas_own_counts(server: Either) -> None:
    agent = server.create_agent()
    backend, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(backend))

    options = options_for(server, agent, answer_spans=True)
    span = provider.get_tracer("test").start_as_current_span("work")
    with LettaReporter(tracer_provider=provider, **options) as reporter, span as work:
        _send(reporter, "Half done", progress=0.5)

    [turn] = [span for span in backend.get_finished_spans() if span.name == "invoke_agent"]
    attributes = dict(turn.attributes or {})
    assert attributes["gen_ai.agent.id"] == agent
    assert (attributes["gen_ai.usage.input_tokens"], attributes["gen_ai.usage.output_tokens"]) == (10, 3)
    assert attributes["gen_ai.response.finish_reasons"] == ("end_turn",)
    assert attributes["letta.run.id"]
    assert [link.context.span_id for link in turn.links] == [work.get_span_context().span_id]


def test_an_answer_that_comes_too_late_is_looked_up(server: Either, caplog: pytest.LogCaptureFixture) -> None:
    agent = server.create_agent()
    caplog.set_level("DEBUG", logger="otel_letta")
    calls: list[tuple[ProgressReport, Answer]] = []
    server.llm.say_next("Use the second ledger.")
    more: dict[str, Any] = {"on_answer": lambda *call: calls.append(call), "read_timeout": 1.0, **MESSAGES}

    with program(server, agent, "batch", **more) as app:
        with server.llm.hold():
            app.do("slow to read")
            app.provider.force_flush()
            until(lambda: "the agent is busy" in caplog.text, "it gave up waiting, and looks whether the turn goes on")
        until(lambda: calls, "the answer was looked up", 60)

    [(report, answer)] = calls
    assert (report.name, report.status) == ("slow to read", "completed")
    assert answer.text == "Use the second ledger."
    assert server.llm.chat_calls == 1, "it was not sent again for its answer"


# -- what is wrong with the settings ---------------------------------------------------------------------------------


def test_a_wrong_password_is_named_as_the_cause(guarded: Either) -> None:
    agent = guarded.create_agent()

    options = options_for(At(guarded.base_url, "wrong-3141"), agent)
    with LettaReporter(**options) as reporter, pytest.raises(LettaAuthenticationError) as caught:
        _send(reporter, "hello")

    assert str(caught.value).startswith("Invalid credentials (HTTP 401)")
    assert "LETTA_PASSWORD" in str(caught.value)
    assert "wrong-3141" not in str(caught.value)
    assert guarded.heard(agent) == []


@pytest.mark.parametrize("delivery", ["messages", "auto"])
def test_an_end_that_met_a_wrong_password_arrives_once_the_right_one_is_in_the_env_file(
    guarded: Either, delivery: str
) -> None:
    agent = guarded.create_agent()
    env_file = Path(".env")
    env_file.write_text("LETTA_PASSWORD=the-old-one\n")

    with program(At(guarded.base_url, None), agent, delivery=delivery) as app:
        app.do("patient")
        until(lambda: "Invalid credentials" in _parked(app), "the lane is parked")
        assert guarded.heard(agent) == []

        env_file.write_text(f"LETTA_PASSWORD={guarded.password}\n")
        until(lambda: not _parked(app), "the lane is open again")
        assert app.flush()

    if delivery == "auto":
        assert "patient" in guarded.board_text(agent)
    assert _ends(guarded, agent) == ["patient"]
    assert ends_in(guarded.next_prompt(agent)) == ["patient"]


def test_an_unknown_agent_is_named_as_the_cause(server: Either) -> None:
    known, unknown = server.create_agent(), f"agent-{uuid.uuid4()}"

    with LettaReporter(**options_for(server, unknown)) as reporter, pytest.raises(LettaAgentNotFoundError) as caught:
        _send(reporter, "hello")
    with program(server, unknown, agent_allow_list=(known,), shutdown_timeout=1.0, **MESSAGES) as app:
        app.do("for nobody")
        app.do("for somebody", **{"letta.agent.id": known})
        until(lambda: any(lane["parked"] for lane in app.stats["lanes"].values()), "the unknown agent's lane is parked")
        until(lambda: _ends(server, known) == ["for somebody"], "the other agent hears its report")
        [reason] = [lane["parked"] for lane in app.stats["lanes"].values() if lane["parked"]]

    for words in (str(caught.value), reason):
        assert words.startswith("Letta agent not found")
        assert "LETTA_AGENT_ID" in words


# -- the server's LLM ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("failure", ["401", "400"])
def test_a_failing_llm_is_told_apart_from_our_own_mistakes(server: Either, failure: Any) -> None:
    agent = server.create_agent()

    with LettaReporter(**options_for(server, agent)) as reporter:
        server.llm.fail_with(failure)
        with pytest.raises(LettaModelError) as caught:
            _send(reporter, "bad luck")
        server.llm.recover()
        _send(reporter, "better")

    assert not isinstance(caught.value, LettaAuthenticationError)
    assert "Invalid credentials" not in str(caught.value)
    contents = [told["content"] for told in told_in(server.next_prompt(agent))]
    # The App Server keeps a message whose turn fails, the REST server forgets it.
    assert contents == (["better"] if server.kind == "rest" else ["bad luck", "better"])


def test_an_end_that_met_a_failing_llm_arrives_once(server: Either) -> None:
    agent = server.create_agent()
    server.llm.fail_with("401")

    with program(server, agent, **MESSAGES) as app:
        app.do("patient")
        until(lambda: app.stats["retries"] >= 1, "a try failed")
        server.llm.recover()
        assert app.flush()
        app.do("the next one")
        assert app.flush()

    assert _ends(server, agent) == ["patient", "the next one"]
    assert ends_in(server.next_prompt(agent)) == ["patient", "the next one"]


# -- answers that get lost -------------------------------------------------------------------------------------------


def test_an_end_whose_answer_comes_too_late_is_told_once(server: Either, caplog: pytest.LogCaptureFixture) -> None:
    agent = server.create_agent()
    caplog.set_level("DEBUG", logger="otel_letta")

    with program(server, agent, "batch", read_timeout=1.0, **MESSAGES) as app:
        with server.llm.hold():
            app.do("slow to read")
            app.provider.force_flush()
            until(lambda: "the agent is busy" in caplog.text, "it gave up waiting, and looks whether the turn goes on")
        assert app.flush()

    assert server.llm.chat_calls == 1
    assert _ends(server, agent) == ["slow to read"]
    assert ends_in(server.next_prompt(agent)) == ["slow to read"]


def test_a_server_that_is_killed_costs_no_end_and_doubles_none(server: Either) -> None:
    # One end is stored, and its answer was lost on the way; the other one's turn has just begun.
    first, second = server.create_agent(), server.create_agent()
    settings = {**MESSAGES, "shutdown_timeout": 30.0}

    with (
        Relay(server.base_url) as relay,
        program(At(relay.base_url, server.password), first, "batch", **settings) as deaf,
        program(server, second, "batch", **settings) as app,
    ):
        with server.llm.hold(about="answered in vain"):
            deaf.do("answered in vain")
            server.llm.wait_for_calls(1)
            relay.lose_answers()
        until(lambda: _ends(server, first), "the end is stored")
        server.llm.wait_until_idle()
        with server.llm.hold(about="in the middle"):
            app.do("in the middle of it")
            server.llm.wait_for_calls(2)
            server.kill()
        until(lambda: deaf.stats["retries"] and app.stats["retries"], "both answers are missed")
        server.start()
        # The end of a program does not wait for the time of the next try.
        deaf.provider.shutdown()
        app.provider.shutdown()
        assert "end not delivered before shutdown" not in {**deaf.stats["dropped"], **app.stats["dropped"]}

    assert _ends(server, first) == ends_in(server.next_prompt(first)) == ["answered in vain"]
    if isinstance(server, EitherAppServer):
        # It takes up the turn that it died in, and stores the message of that a second time, itself.
        assert len(server.ids_of(second)) == 1
        assert set(ends_in(server.next_prompt(second))) == {"in the middle of it"}
    else:
        assert _ends(server, second) == ends_in(server.next_prompt(second)) == ["in the middle of it"]


# -- programs that end in the middle ---------------------------------------------------------------------------------


def test_a_program_that_ends_in_the_middle_of_a_turn_leaves_the_conversation_usable(server: Either) -> None:
    agent = server.create_agent()

    settings = {"OTEL_LETTA_DELIVERY": "messages", "OTEL_LETTA_SHUTDOWN_TIMEOUT": "4"}

    with server.llm.hold(about="last words"), OtherProgram(server, agent, "last words", **settings) as app:
        app.wait_until_ready()
        app.go()
        server.llm.wait_for_calls(1)
        began = time.monotonic()
        app.stats()
        took = time.monotonic() - began
    server.llm.wait_until_idle()

    assert took < 5.5, "four seconds for delivery, and some for Python to end"
    assert server.say(agent, "is anybody there?").startswith("ack")
    with program(server, agent, busy_timeout=3.0, **MESSAGES) as app:
        app.do("next program")
        assert app.flush()
    prompt = server.next_prompt(agent)
    assert "is anybody there?" in prompt
    assert ends_in(prompt)[-1] == "next program"


def test_after_a_program_was_killed_in_the_middle_of_a_turn_the_next_report_arrives(
    server: Either, caplog: pytest.LogCaptureFixture, request: pytest.FixtureRequest
) -> None:
    agent = server.create_agent()
    request.addfinalizer(server.unblock)
    with server.llm.hold(), OtherProgram(server, agent, "cut short", OTEL_LETTA_DELIVERY="messages") as victim:
        victim.wait_until_ready()
        victim.go()
        server.llm.wait_for_calls(1)
        victim.kill()
        server.heard(agent)  # by its answer the server has seen that the connection is gone
    server.llm.wait_until_idle()

    with program(server, agent, busy_timeout=2.0, **MESSAGES) as app:
        app.do("next program")
        assert app.flush()
        app.do("and the one after")
        assert app.flush()

    if isinstance(server, EitherAppServer):
        [detour] = server.app_server.conversations(agent)
        assert "conversation default is blocked by a turn that does not end" in caplog.text
        assert detour["id"] in caplog.text
        assert "may arrive twice" in caplog.text
        assert server.reports(agent)[-1]["task"] == "cut short"
        prompt = server.next_prompt(agent, detour["id"])
    else:
        prompt = server.next_prompt(agent)
    assert [name for name in ends_in(prompt) if name != "cut short"] == ["next program", "and the one after"]
