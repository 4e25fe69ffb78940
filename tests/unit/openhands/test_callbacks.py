"""The callback, without OpenHands: recorded events, a real pipeline, Letta in memory."""

from __future__ import annotations

import time
import uuid
from types import ModuleType
from typing import Any

import pytest

from otel_letta.integrations import openhands
from otel_letta.integrations.openhands import callback, reporting
from otel_letta.testing import InMemoryLetta
from tests.support.conversations import ASKED, FINISH, FINISHED, Conversation, ends, recorded


def test_a_run_is_reported_from_start_to_end(letta: InMemoryLetta, agent: str, settings: dict[str, Any]) -> None:
    observer = callback(chat_id="chat-123", message_id="msg-456", name="Write hello.py", **settings)
    events = [line["event"] for line in recorded("ok") if "event" in line]
    for event in events[:2]:
        observer(event)
    assert openhands.flush(10)
    for event in events[2:]:
        observer(event)
    (end,) = ends(letta, agent)
    assert end["result"] == "hello.py prints hello 0, 1 and 2."
    assert (end["chat_id"], end["message_id"], end["task"]) == ("chat-123", "msg-456", "Write hello.py")
    assert letta.reports(agent)[0]["content"] == "Task started"


def test_a_callback_neither_raises_nor_waits_whatever_comes(settings: dict[str, Any], letta: InMemoryLetta) -> None:
    class Hostile:
        def __getattr__(self, name: str) -> object:
            raise RuntimeError("mine")

    observer = callback(**settings)
    with letta.hold():
        began = time.monotonic()
        for event in (Hostile(), object(), None, ASKED, FINISH, FINISHED):
            observer(event)
        assert time.monotonic() - began < 0.5


def test_a_callback_without_valid_settings_does_nothing(caplog: pytest.LogCaptureFixture) -> None:
    observer = callback(chat_id="chat-1")
    observer(ASKED)
    with reporting(Conversation(), observer):
        pass
    assert not observer.active
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert "LETTA_AGENT_ID" in caplog.text


def test_ids_need_not_be_text(letta: InMemoryLetta, agent: str, settings: dict[str, Any]) -> None:
    chat: Any = uuid.uuid4()
    number: Any = 7
    thing: Any = object()
    callback(chat_id=chat, message_id=number, name=thing, **settings)(ASKED)
    assert openhands.flush(10)
    (report,) = letta.reports(agent)
    assert (report["chat_id"], report["message_id"], report["task"]) == (str(chat), "7", "OpenHands")


def test_the_conversation_that_calls_is_found_on_the_stack(
    letta: InMemoryLetta, agent: str, settings: dict[str, Any]
) -> None:
    there = ModuleType("openhands.sdk.conversation.impl.local_conversation")
    source = (
        "class LocalConversation:\n"
        "    def __init__(self, id, callback):\n        self.id, self.callback = id, callback\n"
        "    def run(self): ...\n"
        "    def send_message(self, event):\n        (lambda e: self.callback(e))(event)\n"
    )
    exec(compile(source, "local_conversation.py", "exec"), there.__dict__)
    known = uuid.uuid4()
    observer = callback(**settings)
    conversation = there.LocalConversation(known, observer)
    conversation.send_message({"kind": "SystemPromptEvent"})
    conversation.send_message(ASKED)
    conversation.send_message(FINISH)
    conversation.send_message(FINISHED)
    assert ends(letta, agent)[0]["task_id"] == f"{known}/1"
    assert str(known) in repr(observer)


def test_threads_that_ask_at_once_get_one_id(settings: dict[str, Any]) -> None:
    observer = callback(**settings)
    assert observer.conversation_id() == observer.conversation_id()
