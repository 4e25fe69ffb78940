"""The outbox: when an end is durable, when it leaves, and what the next process does with what is left."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

from otel_letta import errors
from otel_letta.delivery.desk import Desk
from otel_letta.delivery.keeping import WINDOW
from otel_letta.delivery.outbox import Outbox
from otel_letta.delivery.records import LOST, read_lane
from otel_letta.delivery.stats import Stats
from otel_letta.letta.transport import Lane, Run
from otel_letta.report import ProgressReport
from otel_letta.runtime.deadline import Deadline
from otel_letta.store.choose import open_store
from otel_letta.store.model import StoreError
from tests.support.fake_transport import CONVERSATION, SERVER, FakeTransport, end, progress, settings
from tests.support.program import until

DOWN = errors.LettaConnectionError(hint="check LETTA_BASE_URL")
SILENCE = errors.LettaTimeoutError(may_have_landed=True)

Make = Callable[..., Desk]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "outbox.db"


@pytest.fixture
def make(letta: FakeTransport, path: Path) -> Iterator[Make]:
    made: list[Desk] = []

    def desk(transport: FakeTransport = letta, **options: Any) -> Desk:
        options = {"outbox": str(path), "wake_budget": 100_000, **options}
        made.append(Desk(settings(**options), transport, Stats()))
        return made[-1]

    yield desk
    letta.always = None
    for each in made:
        each.close(Deadline.after(0.0))


def outbox_of(desk: Desk) -> Outbox:
    assert desk.outbox is not None
    return desk.outbox


def started(desk: Desk) -> Desk:
    outbox_of(desk).start()
    assert outbox_of(desk).wait_ready(soon())
    return desk


def soon() -> Deadline:
    return Deadline.after(60.0)


def durable(desk: Desk) -> None:
    """Everything so far is in the database."""
    until(lambda: outbox_of(desk).place is not None, "all ends are written")
    outbox_of(desk).save()


def die(desk: Desk) -> None:
    """What is left of a process that ends this way is what it had written."""
    outbox = outbox_of(desk)
    with outbox._database:
        assert outbox._store is not None
        outbox._store.close()
    desk._crew.dismiss()
    with desk._crew.lock:
        outbox._closed = True


def leave_behind(letta: FakeTransport, make: Make, *ends: ProgressReport) -> None:
    """A process puts these while there is no server, and dies."""
    letta.always = DOWN
    desk = make()
    for each in ends:
        desk.put(each)
    durable(desk)
    die(desk)
    letta.always = None


def kept(path: Path) -> list[dict[str, Any]]:
    """The reports in the database, whoever they belong to."""
    store = open_store(str(path))
    store.open()
    found = [{**json.loads(entry.body), "posted": entry.posted} for entry, _ in store.all_entries()]
    store.close()
    return found


def under_way(path: Path) -> list[str]:
    store = open_store(str(path))
    store.open()
    found = [json.loads(standing.body)["task_id"] for standing, _ in store.all_standings()]
    store.close()
    return found


def names(letta: FakeTransport) -> list[str]:
    return [text.split('task="')[1].split('"')[0] for request in letta.texts() for text in request]


# -- ends ------------------------------------------------------------------------------------------------------------


def test_an_end_is_in_the_database_before_its_request_goes_out_and_gone_after_it_is_known_to_be_there(
    letta: FakeTransport, make: Make, path: Path
) -> None:
    seen: list[list[dict[str, Any]]] = []
    letta.on_send = lambda lane, messages: seen.append(kept(path))
    desk = make()
    desk.put(end("a"))
    assert desk.flush(soon())
    ((found,),) = seen
    assert found["task_id"] == "a"
    assert found["posted"] is not None
    desk.close(soon())
    assert kept(path) == []


def test_what_a_process_leaves_goes_out_with_the_next_one_in_order_and_before_its_own(
    letta: FakeTransport, make: Make, path: Path
) -> None:
    leave_behind(letta, make, *(end(f"a{number}") for number in range(5)))
    second = started(make())
    second.put(end("b"))
    assert second.flush(soon())
    assert names(letta) == ["a0", "a1", "a2", "a3", "a4", "b"]
    assert second._stats.snapshot()["dropped"] == {}


def test_an_end_that_was_posted_and_not_confirmed_is_looked_for_before_it_is_sent_again(
    letta: FakeTransport, make: Make
) -> None:
    letta.always = SILENCE
    first = make()
    letta.on_send = lambda lane, messages: letta.store(messages)  # it arrives, and nobody learns of it
    letta.runs = []
    first.put(end("a"))
    letta.wait_for_requests(1)
    die(first)
    sent = len(letta.requests)
    letta.always, letta.on_send = None, lambda lane, messages: None
    second = started(make())
    assert second.flush(soon())
    assert "landed" in letta.calls
    assert len(letta.requests) == sent
    assert second._stats.snapshot()["sent"] == 1


def test_an_end_whose_request_certainly_failed_counts_as_never_posted(
    letta: FakeTransport, make: Make, path: Path
) -> None:
    letta.always = DOWN
    desk = make()
    desk.put(end("a"))
    letta.wait_for_requests(1)
    until(lambda: kept(path) and kept(path)[0]["posted"] is None, "the mark is taken back")


def test_memory_holds_a_window_of_a_lane_and_the_rest_follows_in_order(letta: FakeTransport, make: Make) -> None:
    letta.always = DOWN
    desk = started(make())
    number = 5 * WINDOW
    for each in range(number):
        desk.put(end(f"t{each}"))
    durable(desk)
    assert len(outbox_of(desk)._keeping.kept) <= WINDOW
    letta.always = None
    with desk._crew.lock:
        for worker in desk._courier._lanes.values():
            worker.retry.succeeded()
            worker.wake()
    assert desk.flush(soon())
    assert names(letta) == [f"t{each}" for each in range(number)]
    assert desk._stats.snapshot()["dropped"] == {}


@pytest.mark.usefixtures("impatient")
def test_a_lane_that_is_stuck_keeps_no_other_from_its_ends(letta: FakeTransport, make: Make) -> None:
    desk = started(make())

    def turn(lane: Any, messages: Any) -> None:
        if lane.conversation_id is not None:
            raise DOWN

    letta.on_send = turn
    for each in range(3 * WINDOW):
        desk.put(end(f"stuck{each}", chat_id=CONVERSATION))
    for each in range(2 * WINDOW):
        desk.put(end(f"free{each}"))
    letta.wait_for(lambda: len(names(letta)) == 2 * WINDOW, 60.0)
    assert names(letta) == [f"free{each}" for each in range(2 * WINDOW)]
    letta.on_send = lambda lane, messages: None


def test_an_end_that_is_refused_leaves_the_outbox(letta: FakeTransport, make: Make, path: Path) -> None:
    letta.refuses = lambda text: errors.LettaRequestError(status=400)
    desk = make()
    desk.put(end("a"))
    desk.flush(soon())
    desk.close(soon())
    assert kept(path) == []


def test_an_end_is_not_sent_by_one_from_whom_it_was_taken(letta: FakeTransport, make: Make, path: Path) -> None:
    # A host that lost the database for minutes, say: others took it for dead.
    letta.always = DOWN
    desk = make()
    desk.put(end("a"))
    letta.wait_for_requests(1)
    durable(desk)
    thief = open_store(str(path))
    thief.open()
    with outbox_of(desk)._database:
        thief._database.write(  # type: ignore[attr-defined]
            lambda c: c.execute("UPDATE entries SET owner=?", (thief.owner,)),  # type: ignore[attr-defined]
            durable=True,
        )
    letta.always = None
    sent = len(letta.requests)
    with desk._crew.lock:
        for worker in desk._courier._lanes.values():
            worker.retry.succeeded()
            worker.wake()
    assert desk.flush(soon())
    assert len(letta.requests) == sent
    thief.close()


def test_an_end_that_is_too_old_is_given_up_and_counted(letta: FakeTransport, make: Make, path: Path) -> None:
    leave_behind(letta, make, end("a"))
    letta.always = DOWN
    second = started(make(outbox_max_age=0.001))
    outbox_of(second)._scan(soon())  # taken over at the start, and too old at the next check
    assert second._stats.snapshot()["dropped"] == {"end older than OTEL_LETTA_OUTBOX_MAX_AGE": 1}
    assert kept(path) == []


def test_the_ends_for_another_server_wait_for_a_process_that_knows_it(
    letta: FakeTransport, make: Make, path: Path
) -> None:
    leave_behind(letta, make, end("a"))
    other = FakeTransport()
    other.server = "http://other.test"
    second = started(make(other))
    assert second.flush(soon())
    assert other.requests == []
    assert [report["task_id"] for report in kept(path)] == ["a"]


def test_an_end_whose_conversation_is_gone_is_kept_for_the_agent_s_own_one(
    letta: FakeTransport, make: Make, path: Path
) -> None:
    def turn(lane: Lane, messages: Any) -> None:
        raise DOWN if lane.conversation_id is None else errors.LettaConversationNotFoundError(status=404)

    letta.on_send = turn
    desk = started(make())
    with desk._crew.lock:  # or it would be on its way before it is written
        desk.put(end("a", chat_id=CONVERSATION))
    letta.wait_for_requests(2)
    durable(desk)
    die(desk)
    store = open_store(str(path))
    store.open()
    (entry,) = [entry for entry, _ in store.all_entries()]
    store.close()
    assert read_lane(entry.lane) == Lane(SERVER, "agent-1")


def test_the_ends_of_another_default_agent_go_to_that_agent(letta: FakeTransport, make: Make) -> None:
    leave_behind(letta, make, end("a"))
    letta.agent_id = "agent-2"
    second = started(make(agent_id="agent-2"))
    assert second.flush(soon())
    assert [lane.agent_id for lane, _ in letta.delivered] == ["agent-1"]


def test_a_process_that_sends_no_messages_leaves_those_of_others_alone(
    letta: FakeTransport, make: Make, path: Path
) -> None:
    leave_behind(letta, make, end("a"))
    sent = len(letta.requests)
    second = make(delivery="board")
    assert second.outbox is None
    assert len(letta.requests) == sent
    assert [report["task_id"] for report in kept(path)] == ["a"]


# -- tasks under way ---------------------------------------------------------------------------------------------------


def traced(report: ProgressReport) -> ProgressReport:
    return replace(report, trace_id="0" * 31 + "1", span_id="0" * 15 + "2", timestamp=datetime.now(timezone.utc))


def test_a_task_whose_process_died_is_lost_and_the_agent_learns_it_once(
    letta: FakeTransport, make: Make, path: Path
) -> None:
    first = make()
    first.put(progress("a", 0.4, "half way"))
    until(lambda: under_way(path) == ["a"], "its standing is written")
    assert first.flush(soon())
    die(first)
    for _ in range(2):
        desk = started(make())
        assert desk.flush(soon())
        desk.close(soon())
    texts = [text for request in letta.texts() for text in request if 'status="failed"' in text]
    (text,) = texts
    assert f'error="{LOST}"' in text
    assert "half way" in text
    assert 'progress="40%"' in text


def test_a_task_that_ended_is_not_lost(letta: FakeTransport, make: Make, path: Path) -> None:
    first = make()
    first.put(progress("a", 0.4))
    until(lambda: under_way(path) == ["a"], "its standing is written")
    first.put(end("a"))
    assert first.flush(soon())
    durable(first)
    die(first)
    second = started(make())
    assert second.flush(soon())
    assert not [text for request in letta.texts() for text in request if "lost" in text]


def test_an_end_that_is_only_for_the_board_ends_the_standing_too(make: Make, path: Path) -> None:
    desk = started(make())
    desk.put(progress("a", 0.4))
    until(lambda: under_way(path) == ["a"], "its standing is written")
    desk.put(end("a", wakes=False))
    until(lambda: under_way(path) == [], "its standing goes")


def test_a_task_that_waits_is_not_lost_and_every_process_may_go_on_with_it(
    letta: FakeTransport, make: Make, path: Path
) -> None:
    letta.always = DOWN
    first = make()
    first.put(traced(progress("a", 0.4, "needs an approval", waiting=True)))
    until(lambda: under_way(path) == ["a"], "its standing is written")
    durable(first)
    die(first)
    letta.always = None
    second, third = started(make()), started(make())
    restored = [outbox_of(desk).estate.take_restored() for desk in (second, third)]
    assert [[report.task_id for report in reports] for reports in restored] == [["a"], ["a"]]
    assert second.flush(soon())
    assert third.flush(soon())
    # The notice that it waits was still owed: one of them delivers it.
    assert names(letta) == ["a"]
    # One goes on with it. The other gives it up when its patience ends, and is not believed.
    second.put(traced(progress("a", 0.6)))
    outbox_of(second).save()
    third.put(traced(end("a", failed=True)))
    assert third.flush(soon())
    second.put(traced(end("a")))
    assert second.flush(soon())
    ends = [text for request in letta.texts() for text in request if 'status="in_progress"' not in text]
    assert len(ends) == 1
    assert 'status="completed"' in ends[0]


def test_that_a_task_waits_is_told_once_whoever_goes_on_with_it(letta: FakeTransport, make: Make) -> None:
    first = make()
    first.put(traced(progress("a", 0.4, "needs an approval", waiting=True)))
    assert first.flush(soon())
    durable(first)
    die(first)
    second = started(make())
    assert [report.task_id for report in outbox_of(second).estate.take_restored()] == ["a"]
    assert second.flush(soon())
    assert names(letta) == ["a"]


# -- a database that cannot be used ------------------------------------------------------------------------------------


def test_without_a_database_ends_are_delivered_from_memory_after_one_error(
    letta: FakeTransport, make: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    desk = make(outbox=str(tmp_path / "file" / "outbox.db"))
    desk.put(end("a"))
    desk.put(end("b"))
    until(lambda: names(letta) == ["a", "b"], "they arrive")
    assert desk.flush(soon())
    assert [r.levelno for r in caplog.records if "outbox" in r.message] == [logging.ERROR]


@pytest.mark.parametrize("moment", ["before the first end", "in between"])
def test_a_database_that_comes_back_gets_what_memory_kept(
    letta: FakeTransport, make: Make, path: Path, moment: str, caplog: pytest.LogCaptureFixture
) -> None:
    letta.always = DOWN
    desk = make()
    outbox = outbox_of(desk)
    if moment == "in between":
        desk.put(end("a"))
        durable(desk)
    real = outbox._make_store
    broken = True

    def apply(changes: Any) -> Any:
        if broken:
            raise StoreError("the disk is full")
        return type(store).apply(store, changes)

    def store_that_breaks() -> Any:
        return store

    store = outbox._store or real()
    store.apply = apply  # type: ignore[method-assign]
    outbox._make_store = store_that_breaks
    desk.put(end("b"))
    until(lambda: outbox.usable is False, "the failure is noticed")
    desk.put(end("c"))
    assert outbox.place is None
    broken = False
    until(lambda: outbox.usable and outbox.place is not None, "it is used again")
    until(lambda: {"b", "c"} <= {report["task_id"] for report in kept(path)}, "memory's ends are written")
    assert len([r for r in caplog.records if "cannot be used" in r.message]) == 1


def test_a_file_that_was_replaced_gets_everything_again(letta: FakeTransport, make: Make, path: Path) -> None:
    letta.always = DOWN
    desk = make()
    desk.put(end("a"))
    letta.wait_for_requests(1)
    for each in path.parent.glob("outbox.db*"):
        if each.is_file():
            each.unlink()
    desk.put(end("b"))
    until(lambda: path.exists() and [r["task_id"] for r in kept(path)] == ["a", "b"], "both are in the new file")


def test_a_full_disk_is_survived(letta: FakeTransport, make: Make, caplog: pytest.LogCaptureFixture) -> None:
    desk = started(make())
    store: Any = outbox_of(desk)._store
    store._database.read(lambda c: c.execute("PRAGMA max_page_count=1").fetchone())
    letta.always = DOWN
    for each in range(300):
        desk.put(end(f"t{each}", "x" * 1_000))
    until(lambda: outbox_of(desk).usable is False, "the disk is full")
    for _ in range(3):  # it opens, and what waits does not fit into it
        outbox_of(desk)._open(soon())
        outbox_of(desk)._commit()
    letta.always = None
    with desk._crew.lock:
        desk._crew.circuits.bring_forward(desk._crew.clock())
        for worker in desk._courier._lanes.values():
            worker.wake()
    until(lambda: len(set(names(letta))) == 300, "memory delivers all")
    (complaint,) = [each for each in caplog.records if each.name.startswith("otel_letta.delivery.outbox")]
    assert "disk" in complaint.getMessage()


def test_more_ends_than_memory_may_hold_without_a_database_become_a_count(
    letta: FakeTransport, make: Make, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    letta.always = DOWN
    desk = make(outbox=str(tmp_path / "file" / "outbox.db"), max_pending_tasks=20)
    for each in range(100):
        desk.put(end(f"t{each}"))
    until(lambda: outbox_of(desk).usable is False, "it cannot be used")
    for each in range(100):
        desk.put(end(f"u{each}"))
    assert len(outbox_of(desk)._keeping.kept) <= 20


def test_an_end_whose_transaction_is_under_way_is_not_called_durable(letta: FakeTransport, make: Make) -> None:
    # Found by killing a program 120 times on a busy machine: one end was said to be safe, and was not.
    desk = started(make())
    store: Any = outbox_of(desk)._store
    began, go_on = threading.Event(), threading.Event()
    apply = store.apply

    def slow(changes: Any) -> Any:
        began.set()
        assert go_on.wait(60.0)
        return apply(changes)

    store.apply = slow
    desk.put(end("a"))
    assert began.wait(60.0)
    assert outbox_of(desk).place is None
    go_on.set()
    durable(desk)


# -- the exit ----------------------------------------------------------------------------------------------------------


def test_an_exit_that_leaves_the_ends_says_where_they_are_and_drops_none(
    letta: FakeTransport, make: Make, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    letta.always = DOWN
    desk = make(outbox_exit="leave")
    desk.put(end("a"))
    letta.wait_for_requests(1)
    until(lambda: not desk.stats()["lanes"]["agent-1 at http://letta.test"]["in_flight"], "the request is over")
    assert not desk.close(soon())
    assert desk._stats.snapshot()["dropped"] == {}
    assert outbox_of(desk).left == 1
    assert "stay in the outbox" in caplog.text
    assert [report["task_id"] for report in kept(path)] == ["a"]


def test_an_end_that_waited_for_the_agents_turn_counts_as_never_posted(
    letta: FakeTransport, make: Make, path: Path
) -> None:
    # As it is with a tool that the agent itself runs: its turn is over only after the exit.
    letta.runs = [Run("run-1", 0.0)]
    desk = make(outbox_exit="leave")
    desk.put(end("tool"))
    letta.wait_for(lambda: "active_runs" in letta.calls, 60.0)
    desk.close(Deadline.after(0.5))
    assert letta.requests == []
    store = open_store(str(path))
    store.open()
    ((entry, alive),) = store.all_entries()
    store.close()
    assert (entry.posted, alive) == (None, False)
    assert entry.note is not None
    letta.runs = []


def test_an_exit_without_enough_time_drops_nothing_that_is_durable(
    letta: FakeTransport, make: Make, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    letta.always = DOWN
    desk = make()
    desk.put(end("a"))
    letta.wait_for_requests(1)
    until(lambda: not desk.stats()["lanes"]["agent-1 at http://letta.test"]["in_flight"], "the request is over")
    assert not desk.close(Deadline.after(0.01))
    assert desk._stats.snapshot()["dropped"] == {}
    assert "'otel-letta outbox retry'" in caplog.text
