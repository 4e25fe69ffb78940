"""`reporting` around runs of a stand-in for OpenHands' conversation: a real pipeline, Letta in memory."""

from __future__ import annotations

import asyncio
import sys
import threading
import uuid
from types import SimpleNamespace
from typing import Any

import pytest

from otel_letta.integrations import openhands
from otel_letta.integrations.openhands import callback, reporting
from otel_letta.testing import InMemoryLetta
from tests.support.conversations import ASKED, FINISH, FINISHED, Conversation, ends


def test_reporting_with_a_callback_reports_each_thing_once(
    letta: InMemoryLetta, agent: str, settings: dict[str, Any]
) -> None:
    observer = callback(chat_id="chat-1", **settings)
    conversation = Conversation(observer)
    with reporting(conversation, observer) as same:
        assert same is observer
        conversation.happen({"kind": "SystemPromptEvent"}, ASKED)
        assert openhands.flush(10)  # else the end may overtake the start
        conversation.run()
    (end,) = ends(letta, agent)
    assert (end["task_id"], end["result"], end["chat_id"]) == (f"{conversation.id}/1", "all done", "chat-1")
    assert [report["content"] for report in letta.reports(agent)].count("Task started") == 1


def test_reporting_without_a_callback_reads_what_happened_when_it_is_over(
    letta: InMemoryLetta, agent: str, settings: dict[str, Any]
) -> None:
    conversation = Conversation()
    conversation.happen(ASKED)
    with reporting(conversation, chat_id="chat-1", **settings):
        conversation.run()
    (end,) = ends(letta, agent)
    assert (end["status"], end["result"], end["chat_id"]) == ("completed", "all done", "chat-1")


def test_reporting_beside_a_callback_that_it_does_not_know_of(
    letta: InMemoryLetta, agent: str, settings: dict[str, Any]
) -> None:
    observer = callback(chat_id="chat-1", **settings)
    conversation = Conversation(observer)
    observer.bind(conversation)
    with reporting(conversation, **settings):
        conversation.happen(ASKED)
        conversation.run()
    assert [end["chat_id"] for end in ends(letta, agent)] == ["chat-1"]


def test_an_exception_goes_on_and_is_reported(letta: InMemoryLetta, agent: str, settings: dict[str, Any]) -> None:
    class ConversationRunError(RuntimeError):
        pass

    with pytest.raises(ConversationRunError), reporting(Conversation(), **settings):
        raise ConversationRunError("Conversation run failed for id=…, see /root") from TimeoutError("no answer")
    assert [end["error"] for end in ends(letta, agent)] == ["TimeoutError: no answer"]


@pytest.mark.parametrize(
    ("error", "reason"), [(KeyboardInterrupt(), "interrupted (Ctrl-C)"), (asyncio.CancelledError(), "cancelled")]
)
def test_an_abort_goes_on_and_is_reported(
    letta: InMemoryLetta, agent: str, settings: dict[str, Any], error: BaseException, reason: str
) -> None:
    with pytest.raises(type(error)), reporting(Conversation(), **settings):
        raise error
    assert [end["error"].startswith(reason) for end in ends(letta, agent)] == [True]


@pytest.mark.parametrize(("status", "reported"), [("finished", "completed"), ("running", "failed")])
def test_a_program_that_exits_with_success_is_judged_by_the_status(
    letta: InMemoryLetta, agent: str, settings: dict[str, Any], status: str, reported: str
) -> None:
    conversation = Conversation()
    with pytest.raises(SystemExit), reporting(conversation, **settings):
        conversation.state.execution_status = status
        sys.exit(0)
    assert [end["status"] for end in ends(letta, agent)] == [reported]


def test_a_run_reported_before_its_conversation_was_known_is_no_second_task(
    letta: InMemoryLetta, agent: str, settings: dict[str, Any]
) -> None:
    """A remote conversation delivers events on a thread of its own, where nothing gives the conversation."""
    observer = callback(**settings)
    conversation = Conversation(observer)
    conversation.happen(ASKED)
    for status in ("paused", "finished"):
        with reporting(conversation, observer):
            conversation.happen(status=status)
    (end,) = ends(letta, agent)
    assert end["status"] == "completed"
    assert observer.stats()["open_tasks"] == 0
    other = Conversation(observer)
    with reporting(other, observer):
        other.run()
    assert ends(letta, agent)[-1]["task_id"] == f"{other.id}/1"


def test_a_conversation_whose_server_died_has_its_end_all_the_same(
    letta: InMemoryLetta, agent: str, settings: dict[str, Any]
) -> None:
    class Remote:
        id = uuid.uuid4()
        server: Any = SimpleNamespace(execution_status="running", events=[])

        @property
        def state(self) -> Any:
            if self.server is None:
                raise OSError("no answer")
            return self.server

    conversation = Remote()
    with pytest.raises(ConnectionError), reporting(conversation, **settings):
        conversation.server = None
        raise ConnectionError("server gone")
    assert [end["error"] for end in ends(letta, agent)] == ["ConnectionError: server gone"]


def test_reporting_works_around_arun(letta: InMemoryLetta, agent: str, settings: dict[str, Any]) -> None:
    async def main() -> None:
        conversation = Conversation()
        async with reporting(conversation, **settings):
            conversation.run()

    asyncio.run(main())
    assert [end["status"] for end in ends(letta, agent)] == ["completed"]


def test_reporting_on_something_else_neither_raises_nor_hides_what_does(settings: dict[str, Any]) -> None:
    class Odd:
        @property
        def state(self) -> object:
            raise OSError("gone")

    with reporting(Odd(), **settings):
        pass
    with pytest.raises(ZeroDivisionError), reporting(None, **settings):
        raise ZeroDivisionError


def test_a_callback_and_ids_exclude_each_other(settings: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match="already"):
        reporting(Conversation(), callback(**settings), chat_id="chat-2")


def test_conversations_side_by_side_are_kept_apart(letta: InMemoryLetta, agent: str, settings: dict[str, Any]) -> None:
    def work(n: int) -> None:
        observer = callback(chat_id=f"chat-{n}", **settings)
        conversation = Conversation(observer)
        with reporting(conversation, observer):
            conversation.happen({**ASKED, "id": f"asked-{n}"}, {**FINISH, "action": {"message": f"answer {n}"}})
            conversation.happen(FINISHED, status="finished")

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted((end["chat_id"], end["result"]) for end in ends(letta, agent)) == [
        (f"chat-{n}", f"answer {n}") for n in range(8)
    ]
