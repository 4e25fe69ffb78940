"""One share a set of settings: its life until the program's end, and beside a processor."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from typing import Any

import pytest

from otel_letta import LettaSpanProcessor, Settings
from otel_letta.integrations import openhands
from otel_letta.integrations.openhands import callback, reporting, share
from otel_letta.testing import InMemoryLetta
from tests.support.conversations import ASKED, FINISH, FINISHED, Conversation, ends


def test_callbacks_with_the_same_settings_share_one_pipeline(settings: dict[str, Any]) -> None:
    callback(**settings)(ASKED)
    assert callback(**settings).stats()["reports"] == callback(**settings).stats()["reports"]
    assert len(share._shares) == 1
    callback(**{**settings, "delivery": "board"})
    assert len(share._shares) == 2


def test_finished_settings_are_taken_and_exclude_others(
    settings: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    finished = Settings.resolve(**settings)
    assert callback(settings=finished).active
    assert callback(settings=finished).stats() == callback(**settings).stats()
    assert len(share._shares) == 1
    assert not callback(settings=finished, delivery="board").active
    assert "exclude each other" in caplog.text


def test_settings_of_another_kind_are_one_error_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    wrong: Any = {"base_url": "http://127.0.0.1:1"}
    assert not callback(settings=wrong).active
    assert [record.levelname for record in caplog.records] == ["ERROR"]


def test_what_is_open_at_shutdown_has_failed(letta: InMemoryLetta, agent: str, settings: dict[str, Any]) -> None:
    observer = callback(**settings)
    observer(ASKED)
    openhands.shutdown()
    openhands.shutdown()
    (end,) = [report for report in letta.reports(agent) if report["status"] == "failed"]
    assert end["error"] == "the program shut down while the task was still open"
    observer(FINISH)
    assert not observer.active


def test_a_processor_that_leaves_does_not_end_a_callback_s_task(
    letta: InMemoryLetta, agent: str, settings: dict[str, Any]
) -> None:
    observer = callback(**settings)
    processor = LettaSpanProcessor(**settings)
    observer(ASKED)
    processor.shutdown()
    observer(FINISH)
    observer(FINISHED)
    assert [end["status"] for end in ends(letta, agent)] == ["completed"]


def test_a_program_that_just_ends_has_delivered(letta: InMemoryLetta, agent: str) -> None:
    program = f"""
        from otel_letta.integrations.openhands import callback
        observer = callback(base_url={letta.base_url!r}, agent_id={agent!r})
        observer({ASKED!r}); observer({FINISH!r}); observer({FINISHED!r})
        callback(base_url={letta.base_url!r}, agent_id={agent!r})({ASKED!r})
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(program)], timeout=60, check=True)
    assert sorted(report["status"] for report in letta.reports(agent)) == ["completed", "failed"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_reports_its_own_tasks_and_not_its_parent_s(letta: InMemoryLetta, agent: str) -> None:
    program = f"""
        import os
        from otel_letta.integrations import openhands
        settings = dict(base_url={letta.base_url!r}, agent_id={agent!r}, delivery="messages", message_interval=0)
        mine = openhands.callback(chat_id="parent", **settings)
        mine({ASKED!r})
        child = os.fork()
        if child == 0:
            own = openhands.callback(chat_id="child", **settings)
            for event in ({ASKED!r}, {FINISH!r}, {FINISHED!r}):
                own(event)
            openhands.shutdown()
            os._exit(0)
        os.waitpid(child, 0)
        mine({FINISH!r}); mine({FINISHED!r})
    """
    subprocess.run([sys.executable, "-W", "ignore", "-c", textwrap.dedent(program)], timeout=60, check=True)
    over = [report for report in letta.reports(agent) if report["status"] != "in_progress"]
    assert sorted((report["chat_id"], report["status"]) for report in over) == [
        ("child", "completed"),
        ("parent", "completed"),
    ]


def test_a_callback_speaks_for_its_conversation_where_the_settings_are_the_same(settings: dict[str, Any]) -> None:
    conversation = Conversation()
    processor = LettaSpanProcessor(**settings)
    elsewhere = LettaSpanProcessor(**{**settings, "delivery": "board"})
    try:
        with reporting(conversation, callback(**settings)):
            assert processor._pipeline is not None
            assert elsewhere._pipeline is not None
            assert processor._pipeline.claimed(str(conversation.id))
            assert not elsewhere._pipeline.claimed(str(conversation.id))
    finally:
        processor.shutdown()
        elsewhere.shutdown()
