"""An agent's answer is read off whatever a server returns: never a crash, always of bounded size."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from otel_letta.instruction import Instruction
from otel_letta.letta.replies import answer_of

AGENT = "agent-1"


def said(*contents: Any, **more: Any) -> dict[str, Any]:
    return {"messages": [{"message_type": "assistant_message", "content": content} for content in contents], **more}


def call(name: Any, arguments: Any = "{}", kind: str = "tool_call_message", call_id: Any = None) -> dict[str, Any]:
    one = {"name": name, "arguments": arguments, "tool_call_id": call_id}
    return {"message_type": kind, "tool_call": one, "tool_calls": [one]}


# -- the forms, as they were measured --------------------------------------------------------------------------------


def test_a_turn_of_the_rest_server() -> None:
    arguments = json.dumps({"task_id": "t-1", "action": "continue", "text": "go on"})
    row = {"date": "2026-11-29T18:07:08+00:00", "otid": "o", "run_id": "run-1", "step_id": "step-1", "is_err": None}
    answer = answer_of(
        AGENT,
        {
            "messages": [
                {**row, "message_type": "reasoning_message", "reasoning": "Hm.", "source": "reasoner_model"},
                {**row, **call("instruct_task", arguments, call_id="call_1")},
                {**row, "message_type": "tool_return_message", "tool_return": "not said", "status": "success"},
                {**row, "message_type": "assistant_message", "content": "Go on, please."},
                {**row, "message_type": "assistant_message", "content": [{"type": "text", "text": "Bye."}]},
            ],
            "stop_reason": {"message_type": "stop_reason", "stop_reason": "end_turn"},
            "usage": {"message_type": "usage_statistics", "total_tokens": 26, "prompt_tokens": 20, "run_ids": None},
            "turns": None,
        },
        reasoning=True,
    )
    assert answer.agent_id == AGENT
    assert answer.text == "Go on, please.\n\nBye."
    assert answer.tools == ("instruct_task",)
    assert answer.instructions == (Instruction(task_id="t-1", action="continue", text="go on"),)
    assert (answer.run_id, answer.stop_reason) == ("run-1", "end_turn")
    assert dict(answer.usage) == {"total_tokens": 26, "prompt_tokens": 20}
    assert answer.reasoning == "Hm."


def test_a_turn_of_the_app_server() -> None:
    request = call("Bash", '{"command": "ls"}', "approval_request_message", "call_1")
    del request["tool_calls"]
    answer = answer_of(
        AGENT,
        {
            "messages": [
                request,
                {"message_type": "tool_return_message", "tool_call_id": "call_1", "tool_return": "hi"},
                {"message_type": "assistant_message", "content": [{"type": "text", "text": "Done."}]},
            ],
            "stop_reason": "end_turn",
            "usage": {"prompt_tokens": 20, "step_count": 2},
            "run_id": "local-run-3",
            "turn_id": "turn-1",
            "conversation_id": "default",
        },
        reasoning=False,
    )
    assert (answer.text, answer.tools, answer.run_id) == ("Done.", ("Bash",), "local-run-3")
    assert (answer.stop_reason, dict(answer.usage)) == ("end_turn", {"prompt_tokens": 20, "step_count": 2})


def test_a_turn_of_the_openai_api() -> None:
    choice = {"message": {"role": "assistant", "content": "Done."}, "finish_reason": "stop"}
    answer = answer_of(AGENT, {"choices": [choice], "usage": {"total_tokens": 3}}, reasoning=False)
    assert (answer.text, answer.stop_reason, dict(answer.usage)) == ("Done.", "stop", {"total_tokens": 3})


def test_a_call_that_comes_twice_counts_once() -> None:
    asked, made = call("mail", kind="approval_request_message", call_id="c1"), call("mail", call_id="c1")
    assert answer_of(AGENT, {"messages": [asked, made]}, reasoning=False).tools == ("mail",)
    assert answer_of(AGENT, {"messages": [call("mail"), call("mail")]}, reasoning=False).tools == ("mail", "mail")


def test_an_instruction_that_stands_in_block_and_call_is_one() -> None:
    block = '<task-instruction task_id="t" action="accept">fine</task-instruction>'
    arguments = {"task_id": "t", "action": "accept", "text": "fine"}
    response = {"messages": [*said(block)["messages"], call("instruct_task", arguments)]}
    answer = answer_of(AGENT, response, reasoning=False)
    assert answer.instructions == (Instruction(task_id="t", action="accept", text="fine"),)


# -- hostile answers -------------------------------------------------------------------------------------------------


def test_a_megabyte_is_cut_and_says_so() -> None:
    answer = answer_of(AGENT, said("x" * 1_000_000, "y" * 1_000_000), reasoning=False)
    assert len(answer.text) <= 100_000
    assert "shortened from 1000000 characters" in answer.text


def test_many_messages_together_are_no_longer_than_one() -> None:
    assert len(answer_of(AGENT, said(*["word " * 1_000] * 500), reasoning=False).text) <= 100_000


def test_nothing_invisible_and_no_terminal_sequence_comes_through() -> None:
    hostile = "a\x00\x07\x1b[31mb\x1b]0;title\x07\u202ec\u200b\U000e0041d\x9f\r\ne\ud800"
    row = {"message_type": "assistant_message", "content": hostile, "run_id": hostile}
    answer = answer_of(
        AGENT,
        {"messages": [row, call(hostile)], "stop_reason": hostile, "usage": {hostile: 1}},
        reasoning=False,
    )
    assert answer.text == "abcd\ne\ufffd"
    for text in (*answer.tools, answer.run_id, answer.stop_reason, *answer.usage):
        assert text == "abcd e\ufffd"


def test_hidden_characters_hide_no_instruction_from_the_reader() -> None:
    """What is obeyed is what stands in the text."""
    hidden = '<task-instruc\u200btion task_id="t" action="continue">go\u202e on</task-instruction>'
    answer = answer_of(AGENT, said(hidden), reasoning=False)
    assert answer.text == '<task-instruction task_id="t" action="continue">go on</task-instruction>'
    assert [each.text for each in answer.instructions] == ["go on"]


def test_a_block_in_a_block_is_none_and_many_are_bounded() -> None:
    one = '<task-instruction task_id="{}" action="continue">go</task-instruction>'
    nested = f'<task-instruction task_id="outer" action="continue">{one.format("inner")}</task-instruction>'
    assert [i.task_id for i in answer_of(AGENT, said(nested), reasoning=False).instructions] == []
    many = said(*["".join(one.format(f"{n}-{m}") for m in range(30)) for n in range(10)])
    assert len(answer_of(AGENT, many, reasoning=False).instructions) == 20


def test_nothing_else_is_an_instruction() -> None:
    """Neither what others said, nor what the agent thought, nor other tools' arguments."""
    block = '<task-instruction task_id="t" action="continue">go</task-instruction>'
    arguments = {"task_id": "t", "action": "continue", "text": "go"}
    rows = [
        {"message_type": "user_message", "content": block},
        {"message_type": "system_message", "content": block},
        {"message_type": "reasoning_message", "reasoning": block},
        {"message_type": "tool_return_message", "tool_return": block, "content": block},
        call("instruct_tasks", arguments),
        call("send_mail", {"body": block}),
        {"message_type": "tool_return_message", "tool_call": {"name": "instruct_task", "arguments": arguments}},
    ]
    answer = answer_of(AGENT, {"messages": rows, "instructions": [arguments]}, reasoning=True)
    assert answer.instructions == ()
    assert answer.text == ""


def test_many_calls_names_and_counts_are_bounded() -> None:
    answer = answer_of(
        AGENT,
        {
            "messages": [call("n" * 10_000)] * 1_000,
            "usage": {f"count {n}": n for n in range(1_000)},
            "run_id": "r" * 10_000,
        },
        reasoning=False,
    )
    assert len(answer.tools) == 100
    assert max(map(len, answer.tools)) <= 100
    assert len(answer.usage) == 30
    assert answer.run_id is not None
    assert len(answer.run_id) <= 100


@pytest.mark.parametrize(
    "arguments",
    ["", "{", "[1]", "null", '"text"', "[" * 200_000, '{"task_id": 7, "action": "continue", "text": "x"}', None, 7],
    ids=repr,
)
def test_arguments_that_are_none_are_no_instruction(arguments: Any) -> None:
    answer = answer_of(AGENT, {"messages": [call("instruct_task", arguments)]}, reasoning=False)
    assert (answer.tools, answer.instructions) == (("instruct_task",), ())


@pytest.mark.parametrize("number", [-1, 2**60, 1.5, True, "7", None, float("inf")])
def test_what_is_no_count_is_none(number: Any) -> None:
    assert dict(answer_of(AGENT, {"usage": {"total_tokens": number}}, reasoning=False).usage) == {}


_NAMES = st.sampled_from(
    [
        "messages",
        "message_type",
        "content",
        "tool_call",
        "tool_calls",
        "name",
        "arguments",
        "stop_reason",
        "usage",
        "run_id",
        "choices",
        "message",
        "reasoning",
        "text",
        "function",
        "tool_call_id",
        "assistant_message",
        "tool_call_message",
        "approval_request_message",
        "reasoning_message",
        "instruct_task",
        "total_tokens",
    ]
)
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | _NAMES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_NAMES, inner, max_size=6),
    max_leaves=20,
)


@example({"messages": [{"message_type": []}]})
@given(st.dictionaries(_NAMES, _JSON, max_size=8))
def test_nothing_that_a_server_may_return_breaks_it_or_is_changed(response: dict[str, Any]) -> None:
    before = repr(response)
    answer = answer_of(AGENT, response, reasoning=True)
    assert len(answer.text) <= 100_000
    assert answer.text.isprintable() or "\n" in answer.text
    assert all(type(number) is int for number in answer.usage.values())
    assert repr(response) == before
