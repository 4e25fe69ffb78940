"""What comes back to a task that waits: only what its own agent asks for, after it was asked, and each thing once."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from otel_letta.answer import Answer
from otel_letta.instruction import Instruction
from otel_letta.pipeline.instructions import Expected, Instructions
from otel_letta.report import ProgressReport, TaskStatus

AGENT = "agent-1"


def asks(sequence: int, task: str = "t-1", *, waiting: bool = True, **fields: Any) -> ProgressReport:
    return ProgressReport(task_id=task, sequence=sequence, waiting=waiting, **fields)


def ends(sequence: int, task: str = "t-1", **fields: Any) -> ProgressReport:
    return ProgressReport(task_id=task, sequence=sequence, status=TaskStatus.COMPLETED, **fields)


def answer(*texts: str, task: str = "t-1", agent: str = AGENT) -> Answer:
    said = tuple(Instruction(task_id=task, action="continue", text=text) for text in texts)
    return Answer(agent_id=agent, instructions=said)


class Seconds:
    now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Seconds:
    return Seconds()


@pytest.fixture
def instructions(clock: Seconds) -> Instructions:
    return Instructions(lambda given: None, clock=clock)


def expect(instructions: Instructions, question: str = "which?", after: int = 3, **options: Any) -> Expected:
    return instructions.expect(None, "t-1", question, (1, after), **options)


def now(expected: Expected) -> str | None:
    found = expected.wait(0)
    return None if found is None else found.text


# -- a task that waits until it is instructed --------------------------------------------------------------------------


def test_an_instruction_in_the_answer_to_the_question_is_given_once(instructions: Instructions) -> None:
    expected = expect(instructions)
    said = answer("the second")
    for _ in range(3):  # one turn answers several reports, and each brings its answer
        instructions.given(asks(4), said)
    assert [now(expected), now(expected)] == ["the second", None]


def test_one_that_was_looked_up_and_then_comes_in_its_answer_is_given_once(instructions: Instructions) -> None:
    expected = expect(instructions)
    said = answer("the second")
    expected.put(said.instructions, asks(4))
    instructions.given(asks(4), answer("the second"))
    assert [now(expected), now(expected)] == ["the second", None]
    instructions.given(asks(5), answer("the second"))  # the agent says it again
    assert now(expected) == "the second"


@pytest.mark.parametrize("question", ["which?", "and then?"])
def test_one_that_was_looked_up_and_never_comes_takes_nothing_from_a_later_answer(
    instructions: Instructions, question: str
) -> None:
    expected = expect(instructions)
    expected.put(answer("go on").instructions, asks(4))
    assert now(expected) == "go on"
    assert expect(instructions, question, after=5) is expected
    instructions.given(asks(6), answer("go on"))
    assert [now(expected), now(expected)] == ["go on", None]


def test_several_are_given_in_order(instructions: Instructions) -> None:
    expected = expect(instructions)
    instructions.given(asks(4), answer("one", "two"))
    assert [now(expected), now(expected), now(expected)] == ["one", "two", None]


def test_answers_are_asked_for_once_and_only_if_somebody_waits() -> None:
    subscribed: list[object] = []
    instructions = Instructions(subscribed.append)
    assert subscribed == []
    for _ in range(3):
        instructions.prepare()
    assert subscribed == [instructions.given]


@pytest.mark.parametrize(
    ("report", "said"),
    [
        (asks(3), answer("stale")),  # the answer to what was reported before the question
        (asks(4, waiting=False), answer("progress")),
        (asks(4, "t-2"), answer("another task's turn, before the question came")),
        (asks(4, agent_id="agent-2"), answer("another agent's task of this id", agent="agent-2")),
        (asks(4), answer("no such task", task="t-9")),
        (asks(4), answer()),
    ],
)
def test_nothing_else_counts(instructions: Instructions, report: ProgressReport, said: Answer) -> None:
    expected = expect(instructions)
    instructions.given(report, said)
    assert now(expected) is None


def test_the_agent_may_instruct_in_a_later_turn_about_anything(instructions: Instructions) -> None:
    expected = expect(instructions)
    instructions.given(asks(4), answer())
    instructions.given(asks(9, "t-2"), answer("later"))
    assert now(expected) == "later"


def test_another_agent_may_not_even_then(instructions: Instructions) -> None:
    expected = expect(instructions)
    instructions.given(asks(4), answer())
    instructions.given(asks(9, "t-2", agent_id="agent-2"), answer("mine now", agent="agent-2"))
    assert now(expected) is None


def test_in_one_turn_the_order_of_its_reports_does_not_matter(instructions: Instructions) -> None:
    expected, said = expect(instructions), answer("the second")
    for report in (asks(9, "t-2"), asks(4), asks(10, "t-3")):
        instructions.given(report, said)
    assert [now(expected), now(expected)] == ["the second", None]


def test_a_task_of_another_agent_is_expected_for_that_agent(instructions: Instructions) -> None:
    expected = instructions.expect("agent-2", "t-1", "", (1, 3))
    instructions.given(asks(4), answer("of the configured one"))
    instructions.given(asks(4, agent_id="agent-2"), answer("its own", agent="agent-2"))
    assert [now(expected), now(expected)] == ["its own", None]


def test_an_id_that_a_report_shows_shortened_is_known_by_that(instructions: Instructions) -> None:
    expected = instructions.expect(None, "t" * 300, "", (1, 3))
    instructions.given(asks(4, "t" * 300), answer("go", task="t" * 199 + "…"))
    assert now(expected) == "go"


# -- what comes too late -----------------------------------------------------------------------------------------------


def test_what_comes_too_late_is_kept_for_who_asks_the_same_again(instructions: Instructions) -> None:
    expected = expect(instructions)
    assert now(expected) is None
    instructions.leave(expected)
    instructions.given(asks(4), answer("late"))
    assert now(expect(instructions, after=6)) == "late"


def test_it_is_no_answer_to_another_question(instructions: Instructions) -> None:
    expected = expect(instructions, "which?")
    instructions.leave(expected)
    instructions.given(asks(4), answer("late"))
    another = expect(instructions, "and now?", after=6)
    instructions.given(asks(5), answer("later still"))  # the turn about the first question took that long
    assert now(another) is None
    instructions.given(asks(7), answer("now this"))
    assert now(another) == "now this"


def test_it_is_kept_for_an_hour(instructions: Instructions, clock: Seconds) -> None:
    instructions.leave(expect(instructions))
    clock.now += 3_601
    instructions.expect(None, "t-2", "", (1, 0))
    instructions.given(asks(4), answer("late"))
    assert now(expect(instructions, after=6)) is None


def test_what_is_kept_has_bounds(instructions: Instructions) -> None:
    expected = expect(instructions)
    for number in range(4, 1_000):
        instructions.given(asks(number), answer(f"say {number}"))
    assert len(iter_all(expected)) == 20
    for number in range(3_000):
        instructions.leave(instructions.expect(None, f"task {number}", "", (1, 0)))
    assert len(instructions._expected) <= 1_001


def iter_all(expected: Expected) -> list[str]:
    found = []
    while (text := now(expected)) is not None:
        found.append(text)
    return found


# -- where the first answer decides ------------------------------------------------------------------------------------


@pytest.mark.parametrize("report", [ends(4), asks(4)], ids=["its end", "it waits"])
def test_the_answer_to_its_end_or_wait_decides(instructions: Instructions, report: ProgressReport) -> None:
    expected = expect(instructions, first_answer=True)
    instructions.given(report, answer("more"))
    assert expected.wait(30) == Instruction(task_id="t-1", action="continue", text="more")
    assert expected.wait(30) is None  # at once


def test_an_answer_that_asks_for_nothing_ends_the_wait(instructions: Instructions) -> None:
    expected = expect(instructions, first_answer=True)
    instructions.given(ends(4), answer())
    assert expected.wait(60) is None


@pytest.mark.parametrize(
    ("report", "said"),
    [
        (asks(4, waiting=False), answer("in answer to progress")),
        (asks(9, "t-2"), answer("in answer to another task")),
        (ends(9, "t-2"), answer("in answer to another task's end")),
        (ends(3), answer("in answer to an end of earlier")),
    ],
)
def test_no_other_answer_counts_before_it_or_after_it(
    instructions: Instructions, report: ProgressReport, said: Answer
) -> None:
    expected = expect(instructions, first_answer=True)
    instructions.given(report, said)
    assert now(expected) is None
    instructions.given(ends(5), answer())
    instructions.given(report, said)
    assert now(expected) is None


def test_one_that_goes_on_after_a_wait_is_asked_about_anew(instructions: Instructions) -> None:
    expected = expect(instructions, first_answer=True)
    said = answer("yes", "and yes again")
    instructions.given(asks(4), said)
    assert now(expected) == "yes"
    again = expect(instructions, after=6, first_answer=True)
    instructions.given(asks(4), said)
    assert now(again) is None
    instructions.given(asks(7), answer("second yes"))
    assert now(again) == "second yes"


# -- threads -----------------------------------------------------------------------------------------------------------


def test_a_thread_that_waits_is_woken(instructions: Instructions) -> None:
    expected = expect(instructions)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(expected.wait, 60)
        instructions.given(asks(4), answer("go"))
        found = waiting.result(60)
    assert found is not None
    assert found.text == "go"


def test_an_event_loop_that_waits_is_woken_by_another_thread(instructions: Instructions) -> None:
    expected = expect(instructions)

    async def main() -> Instruction | None:
        waiting = asyncio.create_task(expected.wait_async(60))
        await asyncio.sleep(0)
        threading.Thread(target=instructions.given, args=(asks(4), answer("go"))).start()
        return await waiting

    found = asyncio.run(main())
    assert found is not None
    assert found.text == "go"


def test_a_coroutine_that_is_cancelled_takes_nothing(instructions: Instructions) -> None:
    expected = expect(instructions)

    async def main() -> None:
        waiting = asyncio.create_task(expected.wait_async(60))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        instructions.given(asks(4), answer("go"))

    asyncio.run(main())
    assert expected._listeners == []
    assert now(expected) == "go"


def test_each_instruction_is_given_to_one_of_many_threads(instructions: Instructions) -> None:
    expected = expect(instructions)
    with ThreadPoolExecutor(8) as pool:
        waiting = [pool.submit(expected.wait, 60) for _ in range(8)]
        for number in range(4, 12):
            instructions.given(asks(number), answer(f"say {number}"))
        found = [each.result(60) for each in waiting]
    assert sorted(each.text for each in found if each is not None) == sorted(f"say {n}" for n in range(4, 12))


@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_a_shutdown_lets_nobody_wait(instructions: Instructions, when: str) -> None:
    if when == "before":
        instructions.close()
        assert expect(instructions).wait(60) is None
        return
    expected = expect(instructions)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(expected.wait, 60)
        instructions.close()
        assert waiting.result(30) is None
