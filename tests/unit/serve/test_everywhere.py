"""Whichever of several processes an agent asks, it is told of all tasks, and its instructions reach every one."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from otel_letta.instruction import Instruction
from otel_letta.otlp.batch import Batch
from otel_letta.serve.everywhere import AskingEverywhere
from otel_letta.serve.routes import Router
from otel_letta.testing import InMemoryLetta
from tests.support.otlp_sender import post, progress_of
from tests.support.waiting import until
from tests.unit.serve.test_asking import AGENT_ONE, AGENT_TWO, ANYBODY, PROGRAM, TWO, Desk, answer, block, refused
from tests.unit.serve.test_durable import program
from tests.unit.serve.test_program import _children

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no Unix sockets there")


class Process(Desk):
    """One of them."""

    def __init__(self, folder: Path, place: int) -> None:
        super().__init__()
        self.router = Router(folder, place, 2, lambda signal, is_json, body: Batch())
        self.router.listen()
        self.own, self.asking = self.asking, AskingEverywhere(self.asking, self.router)  # type: ignore[assignment]


@pytest.fixture
def two(tmp_path: Path) -> Iterator[tuple[Process, Process]]:
    made = Process(tmp_path, 0), Process(tmp_path, 1)
    yield made
    for each in made:
        each.router.close()


def test_the_tasks_of_all_are_listed_to_those_who_may_see_them(two: tuple[Process, Process]) -> None:
    one, other = two
    one.report("here")
    other.report("there", waiting=True)
    other.report("another's", agent_id=TWO)
    assert sorted(one.listed(AGENT_ONE)) == sorted(other.listed(AGENT_ONE)) == ["here", "there"]
    assert one.listed(AGENT_ONE)[0] == "there"  # it waits
    assert one.listed(AGENT_TWO) == ["another's"]
    assert sorted(one.listed(ANYBODY)) == ["another's", "here", "there"]
    assert "note" not in one.asking.list_tasks(ANYBODY)


def test_a_task_of_another_process_is_shown_with_its_steps(two: tuple[Process, Process]) -> None:
    one, other = two
    other.report("there", content="begins")
    other.report("there", content="goes on", progress=0.5)
    shown = one.asking.get_task(AGENT_ONE, "there")
    assert [step["line"] for step in shown["steps"]] == ["begins", "goes on"]
    assert shown == other.own.get_task(AGENT_ONE, "there")
    with refused(404, "no task of yours"):
        one.asking.get_task(AGENT_TWO, "there")
    with refused(404):
        one.asking.get_task(AGENT_ONE, "nowhere")


def test_of_a_task_that_two_know_the_newer_word_counts(two: tuple[Process, Process]) -> None:
    one, other = two
    for desk in two:
        desk.report("moved")
    other.report("moved", content="goes on there")
    assert one.asking.get_task(AGENT_ONE, "moved")["line"] == "goes on there"
    one.instruct("moved", "continue", "go")
    assert [kept["text"] for kept in other.own.get_task(AGENT_ONE, "moved")["instructions"]] == ["go"]


def test_an_instruction_reaches_the_program_whichever_processes_both_speak_with(two: tuple[Process, Process]) -> None:
    one, other = two
    other.report("there", waiting=True, content="May I?")
    said = one.instruct("there", "accept", "yes")
    assert (said["action"], said["to"]) == ("accept", "May I?")
    assert one.ask("there") == [("accept", "yes")]
    assert other.ask("there") == one.ask("there") == []  # each is taken once
    assert "asks for instructions" in one.instruct("there", "continue", "and then?")["message"]
    assert other.ask("there") == [("continue", "and then?")]
    assert one.ask("nowhere") is None


def test_what_the_process_of_the_task_refuses_is_refused(two: tuple[Process, Process]) -> None:
    one, other = two
    other.report("there")
    with refused(409, "does not wait for a yes or no"):
        one.instruct("there", "accept")
    with refused(403, "a sender's"):
        one.instruct("there", "continue", "go", asker=PROGRAM)
    with refused(400):
        one.instruct("there", "delete", "it")
    with refused(404):
        one.instruct("there", "continue", "go", asker=AGENT_TWO)
    with refused(403, "an agent's"), one.asking.asked_for(AGENT_ONE, "there"):
        pass
    assert other.ask("there") == []


def test_an_instruction_in_an_answer_reaches_a_task_of_another_process_and_once(two: tuple[Process, Process]) -> None:
    one, other = two
    reported = one.report("here")
    other.report("there")
    one.asking.take_answer(reported, answer(block("there", text="from the answer")))
    assert other.ask("there") == [("continue", "from the answer")]
    one.instruct("there", "continue", "from the call")
    call = Instruction(task_id="there", action="continue", text="from the call")
    one.asking.take_answer(reported, answer("", calls=(call,)))
    assert other.ask("there") == [("continue", "from the call")]
    one.asking.take_answer(reported, answer(block("there"), agent=TWO))
    assert other.ask("there") == []


def test_a_process_that_is_not_there_is_named_and_the_others_answer(two: tuple[Process, Process]) -> None:
    one, other = two
    one.report("here")
    other.router.close()
    one.router._forget(1)
    listed = one.asking.list_tasks(AGENT_ONE)
    assert [task["task_id"] for task in listed["tasks"]] == ["here"]
    assert "did not answer" in listed["note"]
    assert one.asking.get_task(AGENT_ONE, "here")["task_id"] == "here"
    one.instruct("here", "continue", "go")
    assert one.ask("here") == [("continue", "go")]


def test_with_real_processes_every_agent_sees_and_instructs_all_of_its_tasks(
    letta: InMemoryLetta, agent: str, tmp_path: Path
) -> None:
    with program(letta, agent, "--workers", "2", TMPDIR=str(tmp_path)) as running:
        assert until(lambda: len(_children(running.process.pid)) == 2, 60)
        assert until(lambda: len(list(tmp_path.glob("*/*.sock"))) == 2, 60)
        wanted = {f"task-{number}" for number in range(1, 9)}
        for number, task in enumerate(sorted(wanted), 1):
            assert post(running.port, "/v1/logs", progress_of(task, number)).status == 200
        base = f"http://127.0.0.1:{running.port}/api/tasks"

        def ask(path: str = "", **json: Any) -> Any:
            # Each time over a connection of its own: either process may take it.
            found = httpx.post(base + path, json=json, timeout=60) if json else httpx.get(base + path, timeout=60)
            assert found.status_code == 200, found.text
            return found.json()

        assert until(lambda: {task["task_id"] for task in ask()["tasks"]} == wanted, 60)
        for _ in range(6):
            listed = ask()
            assert {task["task_id"] for task in listed["tasks"]} == wanted
            assert "note" not in listed
        for task in wanted:
            assert ask(f"/{task}")["agent_id"] == agent
            ask(f"/{task}/instructions", action="continue", text=f"go on with {task}")
            (taken,) = ask(f"/{task}/instructions?wait=30")["instructions"]
            assert taken["text"] == f"go on with {task}"
            assert ask(f"/{task}/instructions")["instructions"] == []
            (kept,) = ask(f"/{task}")["instructions"]
            assert kept["state"] == "taken"
        assert running.stop() == 0
