"""The harness itself: what the other tests in this folder take for granted about the server and its LLM."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from letta_client import APIStatusError

from tests.support.letta_server import LETTA_VERSION

if TYPE_CHECKING:
    from tests.support.letta_harness import LettaHarness
    from tests.support.scripted_llm import Failure


def _get(letta: LettaHarness, path: str, **params: str | int | bool) -> Any:
    headers = {"Authorization": f"Bearer {letta.password}"}
    answer = httpx.get(letta.base_url + path, params=params, headers=headers, timeout=30)
    return answer.raise_for_status().json()


def _active_runs(letta: LettaHarness, agent_id: str) -> list[dict[str, Any]]:
    runs: list[dict[str, Any]] = _get(letta, "/v1/runs/", agent_id=agent_id, active=True)
    return runs


def _texts(letta: LettaHarness, agent_id: str) -> list[object]:
    return [getattr(message, "content", None) for message in letta.messages(agent_id)]


def test_the_server_is_the_pinned_letta(letta: LettaHarness) -> None:
    health = httpx.get(f"{letta.base_url}/v1/health/", timeout=30)

    assert health.json() == {"version": LETTA_VERSION, "status": "ok"}
    assert LETTA_VERSION == "0.16.8"


def test_a_wrong_password_is_refused(letta: LettaHarness) -> None:
    answer = httpx.get(f"{letta.base_url}/v1/agents/", headers={"Authorization": "Bearer wrong"}, timeout=30)

    assert answer.status_code == 401
    assert answer.json() == {"detail": "Unauthorized"}


def test_what_a_user_says_is_stored_and_in_the_next_prompt(letta: LettaHarness) -> None:
    agent = letta.create_agent()

    reply = letta.say(agent, "the kettle is on")

    assert reply.messages[-1].message_type == "assistant_message"
    assert "the kettle is on" in _texts(letta, agent)
    assert "the kettle is on" in letta.next_prompt(agent)
    assert letta.llm.chat_calls == 2, "one LLM call per message"


def test_agents_do_not_see_each_other(letta: LettaHarness) -> None:
    first, second = letta.create_agent(), letta.create_agent()

    letta.say(first, "only for the first")

    assert "only for the first" not in letta.next_prompt(second)


def test_the_whole_history_is_listed_oldest_first(letta: LettaHarness) -> None:
    agent = letta.create_agent()
    said = [f"remark {i}" for i in range(130)]  # more than a page
    for start in range(0, len(said), 65):
        batch: Any = [{"role": "user", "content": text} for text in said[start : start + 65]]
        letta.client.agents.messages.create(agent, messages=batch)

    assert [text for text in _texts(letta, agent) if str(text).startswith("remark")] == said


@pytest.mark.parametrize(
    ("failure", "status", "word"),
    [
        ("500", 500, "llm_error"),
        ("503", 500, "llm_error"),
        ("drop", 500, "llm_error"),
        ("429", 429, "llm_rate_limit"),
        ("401", 401, "llm_authentication"),
        ("400", 400, "llm_bad_request"),
        ("context", 400, "CONTEXT_WINDOW_EXCEEDED"),
    ],
)
def test_a_failed_turn_leaves_nothing_and_the_llm_recovers(
    letta: LettaHarness, failure: Failure, status: int, word: str
) -> None:
    agent = letta.create_agent()
    letta.llm.fail_with(failure)

    with pytest.raises(APIStatusError, match=word) as refusal:
        letta.say(agent, "lost on the way")
    letta.llm.recover()
    letta.say(agent, "arrived")

    assert refusal.value.status_code == status
    prompt = letta.next_prompt(agent)
    assert "arrived" in prompt
    assert "lost on the way" not in prompt
    assert "lost on the way" not in _texts(letta, agent)


def test_letta_itself_tries_again_when_its_llm_fails_once(letta: LettaHarness) -> None:
    agent = letta.create_agent()
    letta.llm.fail_with("503", times=1)

    letta.say(agent, "through at the second try")

    assert letta.llm.chat_calls == 2


def test_a_held_turn_shows_as_an_active_run(letta: LettaHarness) -> None:
    agent = letta.create_agent()
    assert _active_runs(letta, agent) == []

    with ThreadPoolExecutor(1) as pool:
        with letta.llm.hold():
            turn: Future[object] = pool.submit(letta.say, agent, "take your time")
            letta.llm.wait_for_calls(1)
            during = _active_runs(letta, agent)
            assert letta.llm.in_flight == 1
            assert not turn.done()
        turn.result(30)

    assert [(run["agent_id"], run["status"]) for run in during] == [(agent, "created")]
    assert _active_runs(letta, agent) == []
    assert letta.llm.in_flight == 0
    assert letta.llm.in_flight_max == 1


def test_a_held_turn_can_be_released_early(letta: LettaHarness) -> None:
    agent = letta.create_agent()
    with ThreadPoolExecutor(1) as pool, letta.llm.hold() as release:
        turn = pool.submit(letta.say, agent, "wait for it")
        letta.llm.wait_for_calls(1)
        release()
        turn.result(30)


def test_a_block_is_read_back_and_stands_in_the_prompt(letta: LettaHarness) -> None:
    agent = letta.create_agent(memory_blocks=[{"label": "board", "value": "3 of 10 done"}])

    assert letta.block(agent, "board").value == "3 of 10 done"
    assert "3 of 10 done" in letta.next_prompt(agent)


@pytest.mark.parametrize("kill", [False, True], ids=["stopped", "killed"])
def test_a_restarted_server_still_knows_its_agents(letta: LettaHarness, kill: bool) -> None:
    agent = letta.create_agent()
    letta.say(agent, "remember me")
    address = letta.base_url

    letta.server.stop_letta(kill=kill)
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{address}/v1/health/", timeout=5)
    letta.server.start_letta()

    assert letta.base_url == address
    assert "remember me" in letta.next_prompt(agent)


def test_waiting_for_a_call_that_never_comes_ends(letta: LettaHarness) -> None:
    with pytest.raises(TimeoutError, match="0 of 1"):
        letta.llm.wait_for_calls(1, timeout=0.01)
