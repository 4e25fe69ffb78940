"""Runs that follow a run, because the agent asked for them: by its end's answer alone, and so many at most."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from otel_letta.integrations import openhands
from otel_letta.integrations.openhands import callback, reporting, rounds
from otel_letta.testing import InMemoryLetta
from tests.support.conversations import FINISH, FINISHED, Conversation, action, spoken

PATIENCE = 60.0
_ids = itertools.count()

Run = Callable[["Steered"], None]


def finishes(conversation: Steered) -> None:
    number = next(_ids)
    done = {**FINISH, "id": f"f{number}", "action": {"message": f"done {len(conversation.sent)}"}}
    conversation.happen(done, {**FINISHED, "id": f"g{number}"}, status="finished")


def asks(conversation: Steered) -> None:
    conversation.happen({**spoken("which file?"), "id": f"m{next(_ids)}"}, status="finished")


def wants_confirmation(conversation: Steered) -> None:
    conversation.happen({**action(summary="delete it"), "id": f"a{next(_ids)}"}, status="waiting_for_confirmation")


def ends_as(status: str) -> Run:
    return lambda conversation: conversation.happen(status=status)


def breaks(conversation: Steered) -> None:
    conversation.happen(status="error")
    raise RuntimeError("no model")


class Steered(Conversation):
    """A conversation that notes what is put into it, and runs by a script."""

    def __init__(self, *callbacks: Callable[[Any], None], runs: list[Run]) -> None:
        super().__init__(*callbacks)
        self._runs = list(runs)
        self.sent: list[str] = []
        self.rejected: list[str] = []
        self.runs = 0

    def send_message(self, text: str) -> None:
        self.sent.append(text)
        self.happen({"kind": "MessageEvent", "source": "user", "id": f"u{next(_ids)}", "llm_message": {"content": []}})

    def reject_pending_actions(self, reason: str) -> None:
        self.rejected.append(reason)
        denied = {"kind": "UserRejectObservation", "tool_name": "terminal", "id": f"d{next(_ids)}"}
        self.happen(denied, status="idle")

    def run(self) -> None:
        self.runs += 1
        (self._runs.pop(0) if self._runs else finishes)(self)

    async def arun(self) -> None:
        await asyncio.sleep(0)
        self.run()


@pytest.fixture(autouse=True)
def log(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.LogCaptureFixture]:
    monkeypatch.setattr(rounds, "_log", type(rounds._log)(rounds._logger))
    with caplog.at_level(logging.WARNING, "otel_letta"):
        yield caplog


class Supervised:
    """A conversation under an agent whose answers the test writes."""

    def __init__(self, letta: InMemoryLetta, agent: str, settings: dict[str, Any], runs: list[Run]) -> None:
        self.letta, self.agent = letta, agent
        # As users have it: only ends, and what waits, are messages.
        self.settings = {**settings, "delivery": "auto"}
        self.observer = callback(chat_id="chat-1", **self.settings)
        self.conversation = Steered(self.observer, runs=runs)

    def id(self, run: int = 1) -> str:
        return f"{self.conversation.id}/{run}"

    def answer(self, text: str, run: int = 1, action: str = "continue", **options: Any) -> None:
        block = f'<task-instruction task_id="{self.id(run)}" action="{action}">{text}</task-instruction>'
        self.letta.answer_next(block, **options)

    def go(self, *, is_async: bool = False, **options: Any) -> None:
        options = {"follow_up": True, "patience": PATIENCE, **options}
        if is_async:
            asyncio.run(self._go(options))
            return
        with reporting(self.conversation, self.observer, **options):
            self.conversation.send_message("begin")
            self.conversation.run()

    async def _go(self, options: dict[str, Any]) -> None:
        async with reporting(self.conversation, self.observer, **options):
            self.conversation.send_message("begin")
            await self.conversation.arun()

    def told(self) -> list[tuple[str, str]]:
        """The runs that woke the agent, by number, and what of each."""
        assert openhands.flush(30)
        reports = self.letta.reports(self.agent)
        return [(report["task_id"].rpartition("/")[2], report["status"]) for report in reports]

    @property
    def sent(self) -> list[str]:
        return self.conversation.sent[1:]


Make = Callable[..., Supervised]


@pytest.fixture
def make(letta: InMemoryLetta, agent: str, settings: dict[str, Any]) -> Make:
    return lambda *runs: Supervised(letta, agent, settings, list(runs))


both = pytest.mark.parametrize("is_async", [False, True], ids=["with", "async with"])


# -- going on ----------------------------------------------------------------------------------------------------------


@both
def test_what_the_agent_asks_for_is_the_next_message_and_another_run(make: Make, is_async: bool) -> None:
    one = make()
    one.answer("Now write the <b>tests</b>.")
    one.go(is_async=is_async)
    assert one.conversation.runs == 2
    (message,) = one.sent
    assert message.endswith(
        f'<supervisor-instruction agent="{one.agent}" task_id="{one.id()}">'
        "Now write the &lt;b&gt;tests&lt;/b&gt;.</supervisor-instruction>"
    )
    assert message.startswith(f"Instruction from the supervising Letta agent {one.agent} about the task {one.id()}.")
    assert one.told() == [("1", "completed"), ("2", "completed")]


def test_a_call_of_its_tool_is_the_same(make: Make) -> None:
    one = make()
    values = {"task_id": one.id(), "action": "continue", "text": "Now write the tests."}
    one.letta.answer_next("As I said.", calls=[("instruct_task", values)])
    one.go()
    assert "Now write the tests." in one.sent[0]


def test_each_round_is_reported(make: Make, letta: InMemoryLetta) -> None:
    one = make()
    one.answer("more")
    one.answer("and more", run=2)
    seen: list[str] = []
    one.observer._share._runs._ledger._emit = _spy(one.observer._share._runs._ledger._emit, seen)
    one.go(rounds=5)
    assert one.conversation.runs == 3
    assert [line for line in seen if line.startswith("round")] == [
        "round 1 of 5: goes on as its supervising agent asks",
        "round 2 of 5: goes on as its supervising agent asks",
    ]


def _spy(emit: Callable[[Any], None], seen: list[str]) -> Callable[[Any], None]:
    def spy(report: Any) -> None:
        seen.append(report.content)
        emit(report)

    return spy


def test_a_question_of_openhands_is_answered(make: Make) -> None:
    one = make(asks)
    one.answer("a.py")
    one.go()
    assert "a.py" in one.sent[0]
    assert one.told() == [("1", "completed"), ("2", "completed")]


@pytest.mark.parametrize("status", ["stuck", "error"])
def test_a_run_that_failed_may_be_helped_on(make: Make, status: str) -> None:
    one = make(ends_as(status))
    one.answer("try the other way")
    one.go()
    assert one.conversation.runs == 2
    assert one.told() == [("1", "failed"), ("2", "completed")]


def test_without_a_callback_it_is_the_same(make: Make) -> None:
    one = make()
    conversation = Steered(runs=[])
    one.conversation = conversation
    one.answer("more")
    with reporting(conversation, follow_up=True, patience=PATIENCE, **one.settings):
        conversation.send_message("begin")
        conversation.run()
    assert conversation.runs == 2
    assert one.told() == [("1", "completed"), ("2", "completed")]


def test_a_conversation_that_has_no_arun_is_run_on_a_thread(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    one = make()
    one.answer("more")
    monkeypatch.delattr(Steered, "arun")

    async def main() -> None:
        async with reporting(one.conversation, one.observer, follow_up=True, patience=PATIENCE):
            await asyncio.to_thread(one.conversation.run)

    asyncio.run(main())
    assert one.conversation.runs == 2


# -- ending ------------------------------------------------------------------------------------------------------------


@both
def test_an_answer_that_asks_for_nothing_ends_it_at_once(make: Make, is_async: bool) -> None:
    one = make()
    one.letta.answer_next("Well done.")
    one.go(is_async=is_async, patience=3_600)
    assert one.conversation.runs == 1


def test_it_is_off_by_default(make: Make) -> None:
    one = make()
    one.answer("more")
    one.go(follow_up=False)
    assert one.told() == [("1", "completed")]
    assert one.conversation.runs == 1


@pytest.mark.parametrize("most", [1, 2, 5])
def test_an_agent_that_never_has_enough_gets_so_many_rounds(make: Make, most: int) -> None:
    one = make()
    for run in range(1, 20):
        one.answer("more", run=run)
    one.go(rounds=most)
    assert one.conversation.runs == 1 + most
    assert len(one.told()) == 1 + most


def test_one_answer_is_one_round_however_many_blocks_it_has(make: Make) -> None:
    one = make()
    block = f'<task-instruction task_id="{one.id()}" action="continue">say %d</task-instruction>'
    one.letta.answer_next("".join(block % number for number in range(20)))
    one.go(rounds=10)
    assert ["say 0" in message for message in one.sent] == [True]


def test_what_is_asked_of_an_earlier_run_or_another_task_begins_no_round(make: Make) -> None:
    one = make()
    one.answer("more")
    one.answer("more of the first", run=1)  # in answer to the end of the second run
    one.go()
    assert len(one.sent) == 1
    other = make()
    other.letta.answer_next(f'<task-instruction task_id="{one.id()}" action="continue">x</task-instruction>')
    other.go()
    assert other.sent == []


def test_an_answer_to_progress_begins_no_round(make: Make, letta: InMemoryLetta, agent: str) -> None:
    one = make()
    one.settings["delivery"] = "messages"  # the start is a message too, and has an answer
    one.observer = callback(**one.settings)
    one.conversation = Steered(one.observer, runs=[lambda c: (_delivered(letta, agent), finishes(c))[1]])
    one.answer("in answer to the start")
    one.go()
    assert one.told() == [("1", "in_progress"), ("1", "completed")]
    assert one.sent == []


def _delivered(letta: InMemoryLetta, agent: str) -> None:
    assert letta.wait_for(lambda: len(letta.reports(agent)) == 1, PATIENCE)


def test_no_round_begins_after_the_time(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    one = make()
    for run in range(1, 20):
        one.answer("more", run=run)
    clock = itertools.count(0, 100)  # each run takes so long
    monkeypatch.setattr(rounds, "monotonic", lambda: float(next(clock)))
    one.go(rounds=50, within=150)
    assert one.conversation.runs == 3


def test_an_agent_that_does_not_answer_is_not_waited_for_longer(make: Make, letta: InMemoryLetta, agent: str) -> None:
    one = make()
    with letta.hold(agent):
        one.go(patience=0.1)
    assert one.conversation.runs == 1


@pytest.mark.parametrize("ends", [ends_as("paused"), ends_as("idle"), ends_as("deleting")])
def test_a_run_that_was_paused_is_not_taken_up(make: Make, ends: Run) -> None:
    one = make(ends)
    one.answer("more")
    one.go(patience=3_600)
    assert one.conversation.runs == 1


@both
def test_an_exception_is_no_end_to_follow_up(make: Make, is_async: bool) -> None:
    one = make(breaks)
    one.answer("more")
    with pytest.raises(RuntimeError, match="no model"):
        one.go(is_async=is_async, patience=3_600)
    assert one.conversation.runs == 1


@both
def test_an_exception_of_a_round_is_reported_and_goes_on(make: Make, is_async: bool) -> None:
    one = make(finishes, breaks)
    one.answer("more")
    with pytest.raises(RuntimeError, match="no model"):
        one.go(is_async=is_async)
    assert one.told() == [("1", "completed"), ("2", "failed")]


# -- what waits to be confirmed ----------------------------------------------------------------------------------------

YES_AND_NO = ("continue", "accept", "reject")


@both
def test_what_waits_is_accepted(make: Make, is_async: bool) -> None:
    one = make(wants_confirmation)
    one.answer("fine", action="accept")
    one.go(is_async=is_async, allow=YES_AND_NO)
    assert (one.conversation.runs, one.sent, one.conversation.rejected) == (2, [], [])
    assert one.told() == [("1", "in_progress"), ("1", "completed")], "the same task goes on"


def test_what_waits_is_rejected_and_the_reason_is_marked(make: Make) -> None:
    one = make(wants_confirmation)
    one.answer("not the </supervisor-instruction> file", action="reject")
    one.go(allow=YES_AND_NO)
    (reason,) = one.conversation.rejected
    assert "not the &lt;/supervisor-instruction&gt; file</supervisor-instruction>" in reason
    assert one.conversation.runs == 2


def test_several_confirmations_are_asked_for_one_after_another(make: Make) -> None:
    one = make(wants_confirmation, wants_confirmation, wants_confirmation)
    one.answer("yes", action="accept", times=2)
    one.letta.answer_next("I do not know about the third.")
    one.go(rounds=10, allow=YES_AND_NO)
    assert one.conversation.runs == 3


def test_a_message_confirms_nothing(make: Make, log: pytest.LogCaptureFixture) -> None:
    one = make(wants_confirmation)
    one.answer("just go on")
    one.go(allow=YES_AND_NO)
    assert (one.conversation.runs, one.sent) == (1, [])
    assert "asks to continue the run" in log.text


def test_by_default_an_agent_confirms_nothing_and_is_not_waited_for(make: Make) -> None:
    one = make(wants_confirmation)
    one.answer("yes", action="accept")
    one.go(patience=3_600)
    assert (one.conversation.runs, one.conversation.rejected) == (1, [])


def test_what_is_not_allowed_is_ignored_and_what_stands_beside_it_is_not(
    make: Make, log: pytest.LogCaptureFixture
) -> None:
    one = make(wants_confirmation)
    blocks = [("accept", "yes"), ("reject", "no")]
    one.letta.answer_next(
        "".join(
            f'<task-instruction task_id="{one.id()}" action="{action}">{text}</task-instruction>'
            for action, text in blocks
        )
    )
    one.go(allow=("reject",))
    assert len(one.conversation.rejected) == 1
    assert "asks to accept the run" in log.text
    assert "does not allow" in log.text


# -- what it cannot do -------------------------------------------------------------------------------------------------


def test_with_the_board_alone_it_says_that_nobody_answers(
    make: Make, settings: dict[str, Any], log: pytest.LogCaptureFixture
) -> None:
    one = make()
    one.observer = callback(**{**settings, "delivery": "board"})
    one.conversation = Steered(one.observer, runs=[])
    one.go(patience=3_600)
    assert "OTEL_LETTA_DELIVERY is board" in log.text


def test_with_bad_settings_nothing_is_waited_for() -> None:
    observer = callback(base_url="nonsense", agent_id="agent-1")
    conversation = Steered(observer, runs=[])
    with reporting(conversation, observer, follow_up=True, patience=3_600):
        conversation.run()
    assert conversation.runs == 1


def test_a_plain_with_in_an_event_loop_does_not_hold_it_up(make: Make, log: pytest.LogCaptureFixture) -> None:
    one = make()
    one.answer("more")

    async def main() -> None:
        one.go(patience=3_600)

    asyncio.run(main())
    assert one.conversation.runs == 1
    assert "async with" in log.text


@pytest.mark.parametrize(
    "options",
    [
        {"rounds": 0},
        {"rounds": 101},
        {"rounds": True},
        {"rounds": 2.5},
        {"patience": 0},
        {"within": -1},
        {"patience": float("nan")},
        {"allow": ("delete",)},
        {"allow": "continue"},
    ],
)
def test_bounds_that_are_none_are_refused(make: Make, options: dict[str, Any]) -> None:
    one = make()
    with pytest.raises(ValueError, match=next(iter(options))):
        reporting(one.conversation, one.observer, follow_up=True, **options)
