"""The three ways in which the original integration is used, through its import path and with its settings.

    python -m pytest tests/test_letta_integration.py        # from the root
    cd tests && python -m pytest test_letta_integration.py  # or from here

With a file ``tests/.env`` (copy ``tests/.env.example``) the reports go to the agent that it names. Without, they go to
the in-memory server of `otel_letta.testing`, and with ``-m letta`` to a real Letta that the suite starts.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from dotenv import dotenv_values
from openhands.runtime.plugins.agent_skills.letta_reporter import LettaReporter

from otel_letta import Settings
from otel_letta.testing import InMemoryLetta
from tests.support.program import Told, told_in

_ENV_FILE = Path(__file__).with_name(".env")

_SERVERS = (
    ["configured"]
    if _ENV_FILE.exists()
    else ["in memory", pytest.param("real", marks=pytest.mark.letta, id="real Letta")]
)


@pytest.fixture(params=_SERVERS, autouse=True)
def server(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The environment names a server and an agent, as it would for a program."""
    with _server(request) as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value or "")
        yield


@contextmanager
def _server(request: pytest.FixtureRequest) -> Iterator[dict[str, str | None]]:
    if request.param == "configured":
        yield dotenv_values(_ENV_FILE)
    elif request.param == "real":
        letta = request.getfixturevalue("real_letta")
        yield _environment(letta.base_url, letta.create_agent(), letta.password)
    else:
        with InMemoryLetta(password="secret") as letta:
            yield _environment(letta.base_url, letta.create_agent(), "secret")


def _environment(base_url: str, agent_id: str, password: str) -> dict[str, str | None]:
    return {"LETTA_BASE_URL": base_url, "LETTA_AGENT_ID": agent_id, "LETTA_PASSWORD": password}


@pytest.fixture
def chat_id() -> str:
    """One that no other run of these tests has used: the configured agent remembers those."""
    return f"chat-{uuid.uuid4().hex[:12]}"


def _told(chat_id: str) -> list[Told]:
    """What the agent has stored about the chat, oldest first, each with its one message."""
    settings = Settings.resolve()
    answer = httpx.get(
        f"{settings.base_url}/v1/agents/{settings.agent_id}/messages",
        params={"limit": "100"},  # the newest ones, oldest first
        headers={"Authorization": f"Bearer {settings.token.reveal()}"} if settings.token else {},
        timeout=30,
    )
    answer.raise_for_status()
    contents = [str(row["content"]) for row in answer.json() if row["message_type"] == "user_message"]
    return [told for content in contents if chat_id in content for told in told_in(content)]


def _is_answer(answer: Any) -> bool:
    return isinstance(answer, dict) and {"messages", "stop_reason", "usage"} <= set(answer)


def test_basic_usage(chat_id: str) -> None:
    async def main() -> dict[str, Any]:
        reporter = LettaReporter()
        return await reporter.send_progress_report(
            chat_id=chat_id,
            message_id="msg-456",
            content="Processing task: 50% complete",
            progress=0.5,
            status="in_progress",
        )

    assert _is_answer(asyncio.run(main()))
    [told] = _told(chat_id)
    assert (told["chat_id"], told["message_id"]) == (chat_id, "msg-456")
    assert (told["status"], told["progress"]) == ("in_progress", "50%")
    assert told["content"] == "Processing task: 50% complete"


def test_streaming_updates(chat_id: str) -> None:
    async def main() -> list[dict[str, Any]]:
        reporter = LettaReporter()
        answers = []
        for share in (0.0, 0.25, 0.5, 0.75):
            answers.append(
                await reporter.send_progress_report(
                    chat_id=chat_id,
                    message_id="msg-456",
                    content=f"Processing: {share:.0%}",
                    progress=share,
                    status="in_progress",
                )
            )
        answers.append(
            await reporter.send_progress_report(
                chat_id=chat_id,
                message_id="msg-456",
                content="Task completed successfully!",
                progress=1.0,
                status="completed",
            )
        )
        return answers

    answers = asyncio.run(main())

    assert len(answers) == 5
    assert all(_is_answer(answer) for answer in answers)
    assert [(told["status"], told["progress"]) for told in _told(chat_id)] == [
        ("in_progress", "0%"),
        ("in_progress", "25%"),
        ("in_progress", "50%"),
        ("in_progress", "75%"),
        ("completed", "100%"),
    ]


def test_error_handling(chat_id: str) -> None:
    async def main() -> dict[str, Any]:
        reporter = LettaReporter()
        try:
            raise RuntimeError("Something went wrong")
        except RuntimeError as error:
            return await reporter.send_progress_report(
                chat_id=chat_id,
                message_id="msg-456",
                content=f"Task failed: {error}",
                progress=0.0,
                status="failed",
            )

    assert _is_answer(asyncio.run(main()))
    [told] = _told(chat_id)
    assert (told["status"], told["progress"]) == ("failed", "0%")
    assert told["content"] == "Task failed: Something went wrong"


def test_a_reporter_of_its_own_for_each_set_of_reports_needs_no_closing(chat_id: str) -> None:
    # Warnings, such as that of an unclosed connection, are errors in this suite.
    async def main(content: str) -> None:
        await LettaReporter().send_progress_report(chat_id, "msg-456", content)

    for content in ("first", "second"):
        asyncio.run(main(content))

    assert [(told["content"], told["progress"]) for told in _told(chat_id)] == [("first", "0%"), ("second", "0%")]
