"""What waits for one lane: the newest progress, every end, and when each is worth an LLM turn. No threads, no time."""

from __future__ import annotations

import dataclasses
import math

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from otel_letta.delivery.capacity import Capacity
from otel_letta.delivery.mailbox import MOST_BYTES, MOST_REPORTS, Mailbox
from otel_letta.delivery.parcel import Parcel, otid_of
from otel_letta.delivery.stats import Stats
from otel_letta.letta.transport import Lane
from otel_letta.report import ProgressReport
from tests.support.fake_transport import end, progress
from tests.support.memory import reachable

LANE = Lane("http://letta.test", "agent-1")
OTHER = Lane("http://letta.test", "agent-2")


class Box(Mailbox):
    """A mailbox with a capacity and statistics of its own, and reports that weigh 10 bytes."""

    def __init__(self, lane: Lane = LANE, *, interval: float = 60.0, capacity: Capacity | None = None) -> None:
        self.stats = Stats()
        self.capacity = capacity or Capacity(10_000)
        super().__init__(lane, interval, self.capacity, self.stats)

    def take_at(self, now: float, weight: int = 10) -> list[Parcel]:
        return self.take(now, lambda report: weight)

    def deliver(self, now: float) -> list[tuple[str, float]]:
        """Take, and tell that it arrived: task and progress of each."""
        parcels = self.take_at(now)
        self.mark_delivered(parcels, now)
        return [(parcel.report.task_id, parcel.report.progress) for parcel in parcels]


def contents(parcels: list[Parcel]) -> list[str]:
    return [parcel.report.content for parcel in parcels]


# -- conflation ---------------------------------------------------------------------------------------------------


def test_of_several_waiting_in_progress_reports_of_a_task_the_newest_is_sent() -> None:
    box = Box()
    for share in (0.0, 0.3, 0.6):
        box.put(progress("a", share), now=0)

    assert box.deliver(0) == [("a", 0.6)]
    assert box.stats.snapshot()["conflated"] == 2


def test_tasks_that_are_over_leave_nothing_behind_however_long_the_interval() -> None:
    box = Box(interval=86_400.0)
    box.put(progress("long", 0.1), now=0)
    box.deliver(0)
    box.put(progress("long", 0.3), now=0)  # due tomorrow, before all others

    def work(tasks: range) -> int:
        for n in tasks:
            box.put(progress(f"t{n}", 0.1), now=n)
            box.deliver(n)
            box.put(progress(f"t{n}", 0.3), now=n)
            box.put(end(f"t{n}"), now=n)
            assert box.deliver(n) == [(f"t{n}", 1.0)]
        return sum(1 for _ in reachable(box))

    first = work(range(1, 4_000))
    assert work(range(4_000, 12_000)) < first + 4_000  # an entry, a time and a number for each of some thousand


def test_an_end_replaces_the_waiting_progress_of_its_task_and_no_other() -> None:
    box = Box()
    box.put(progress("a"), now=0)
    box.put(progress("b"), now=0)
    box.put(end("a"), now=0)

    assert contents(box.take_at(0)) == ["a over", "b 0.0"]


def test_ends_are_never_replaced_not_even_by_another_end_of_the_same_task() -> None:
    box = Box()
    box.put(end("a", "first run"), now=0)
    box.put(end("a", "second run", run=2), now=0)

    assert contents(box.take_at(0)) == ["first run", "second run"]


def test_the_end_of_one_run_goes_before_the_start_of_the_next() -> None:
    box = Box()
    box.put(end("a"), now=0)
    box.put(progress("a", 0.0, "again", run=2), now=0)

    assert contents(box.take_at(0)) == ["a over", "again"]


# -- ids ----------------------------------------------------------------------------------------------------------


def test_the_id_of_an_end_is_the_same_from_every_process_and_attempt() -> None:
    assert otid_of(end("a"), LANE) == otid_of(end("a", "worded otherwise", failed=True), LANE)
    assert otid_of(end("a"), LANE) == "d1556084-b8a6-564e-9785-2b8dc62bbc85"  # of every release, too


def test_ends_of_other_tasks_runs_agents_and_servers_have_other_ids() -> None:
    ids = [
        otid_of(end("a"), LANE),
        otid_of(end("b"), LANE),
        otid_of(end("a", run=2), LANE),
        otid_of(end("a"), OTHER),
        otid_of(end("a"), Lane("http://elsewhere.test", "agent-1")),
    ]
    assert len(set(ids)) == len(ids)


def test_two_in_progress_reports_never_share_an_id() -> None:
    assert otid_of(progress("a"), LANE) != otid_of(progress("a"), LANE)


# -- pacing -------------------------------------------------------------------------------------------------------


def test_a_start_is_due_at_once() -> None:
    assert Box().put(progress("a"), now=7.0) == 7.0


def test_after_the_start_only_each_quarter_is_worth_a_turn() -> None:
    box = Box(interval=0)
    told = []
    for percent in range(100):
        box.put(progress("a", percent / 100), now=percent)
        told += box.deliver(percent)

    assert told == [("a", 0.0), ("a", 0.25), ("a", 0.5), ("a", 0.75)]


def test_a_task_that_first_shows_beyond_a_quarter_is_told_and_then_at_the_next_quarter() -> None:
    box = Box(interval=0)
    told = []
    for now, share in enumerate((0.6, 0.7, 0.8)):
        box.put(progress("a", share), now=now)
        told += box.deliver(now)

    assert told == [("a", 0.6), ("a", 0.8)]


def test_a_task_sends_at_most_one_in_progress_message_an_interval() -> None:
    box = Box(interval=60)
    box.put(progress("a", 0.0), now=0)
    box.deliver(0)

    assert box.put(progress("a", 0.3), now=10) == 60
    assert box.deliver(59.9) == []
    assert box.next_due(59.9) == 60
    assert box.deliver(60) == [("a", 0.3)]


def test_a_task_that_waits_for_a_person_waits_for_no_interval() -> None:
    box = Box(interval=60)
    box.put(progress("a"), now=0)
    box.deliver(0)
    box.put(progress("a", 0.3), now=1)
    asks = dataclasses.replace(progress("a", 0.3), waiting=True, content="waits for a person")
    assert box.put(asks, now=2) == 2
    assert contents(box.take_at(2)) == ["waits for a person"]


def test_a_question_that_came_while_another_report_was_on_its_way_waits_for_no_interval_either() -> None:
    box = Box(interval=60)
    box.put(progress("a", 0.3), now=0)
    on_its_way = box.take_at(0)
    box.put(progress("a", 0.3, "which?", waiting=True), now=1)
    box.mark_delivered(on_its_way, 2)
    assert box.next_due(2) == 2
    assert contents(box.take_at(2)) == ["which?"]
    assert box.stats.snapshot()["held"] == 0


def test_a_question_that_may_have_landed_is_kept_under_its_id_until_a_newer_one_takes_its_place() -> None:
    box = Box()
    asks = progress("a", 0.3, "which?", waiting=True)
    box.put(asks, now=0)
    (sent,) = box.take_at(0)
    sent.maybe_landed = True
    box.requeue([sent], progress=False, now=1)
    assert box.take_at(1) == [sent]
    box.requeue([sent], progress=False, now=2)
    box.put(progress("a", 0.3, "the third?", waiting=True), now=3)
    (newer,) = box.take_at(3)
    assert newer.otid not in ("", sent.otid)
    assert not newer.maybe_landed
    assert box.stats.snapshot()["dropped"] == {}


def test_what_waits_for_the_interval_is_replaced_by_what_is_newer() -> None:
    box = Box(interval=60)
    box.put(progress("a", 0.0), now=0)
    box.deliver(0)
    box.put(progress("a", 0.3), now=10)
    box.put(progress("a", 0.4), now=20)

    assert box.deliver(60) == [("a", 0.4)]


def test_the_interval_of_one_task_does_not_hold_another() -> None:
    box = Box(interval=60)
    box.put(progress("a"), now=0)
    box.deliver(0)

    assert box.put(progress("b"), now=1) == 1


def test_a_task_without_numbers_is_told_when_its_content_changes() -> None:
    box = Box(interval=60)
    box.put(progress("a", 0.0, "reading"), now=0)
    box.deliver(0)

    assert box.put(progress("a", 0.0, "reading"), now=100) == math.inf
    assert box.put(progress("a", 0.0, "writing"), now=100) == 100


def test_a_report_that_came_while_another_was_on_its_way_is_judged_by_what_the_agent_knows_then() -> None:
    box = Box(interval=60)
    box.put(progress("a", 0.0), now=0)
    box.deliver(0)
    box.put(progress("a", 0.25), now=100)
    on_its_way = box.take_at(100)
    box.put(progress("a", 0.3), now=110)  # a quarter more than what was told so far, which was 0 %
    box.mark_delivered(on_its_way, 130)

    assert box.take_at(130) == []
    assert box.next_due(130) is None

    box.put(progress("a", 0.5), now=140)
    assert box.deliver(140) == []
    assert box.deliver(190) == [("a", 0.5)]


def test_an_end_waits_for_no_interval() -> None:
    box = Box(interval=60)
    box.put(progress("a"), now=0)
    box.deliver(0)

    assert box.put(end("a"), now=1) == 1
    assert box.deliver(1) == [("a", 1.0)]


def test_nothing_is_due_by_itself_while_only_held_progress_waits() -> None:
    box = Box()
    box.put(progress("a", 0.0), now=0)
    box.deliver(0)
    box.put(progress("a", 0.1), now=1)

    assert box.next_due(1_000_000) is None
    assert box.waiting == 1


def test_nothing_is_remembered_of_a_task_whose_end_arrived_even_if_its_progress_was_on_its_way() -> None:
    box = Box()
    box.put(progress("a"), now=0)
    on_its_way = box.take_at(0)
    box.put(end("a"), now=1)
    box.mark_delivered(on_its_way, 2)
    box.deliver(2)

    assert not box._paces and not box._progress and box.capacity.ends == 0


def test_progress_that_arrives_after_its_end_was_only_counted_is_not_remembered() -> None:
    box = Box(capacity=Capacity(1))
    box.put(progress("a"), now=0)
    on_its_way = box.take_at(0)
    box.put(end("a"), now=1)
    box.put(end("b"), now=1)  # and of a's end a count is left
    box.mark_delivered(on_its_way, 2)
    box.deliver(2)

    assert not box._paces


# -- requests -----------------------------------------------------------------------------------------------------


def test_a_request_holds_ends_first_and_keeps_their_order() -> None:
    box = Box()
    box.put(progress("p"), now=0)
    for task in ("c", "a", "b"):
        box.put(end(task), now=0)

    assert contents(box.take_at(0)) == ["c over", "a over", "b over", "p 0.0"]


def test_a_request_holds_at_most_20_reports() -> None:
    box = Box()
    for number in range(15):
        box.put(end(f"e{number}"), now=0)
        box.put(progress(f"p{number}"), now=0)

    assert [len(box.take_at(0)) for _ in range(3)] == [20, 10, 0]
    assert MOST_REPORTS == 20


def test_a_request_holds_at_most_16_kb() -> None:
    box = Box()
    for number in range(5):
        box.put(end(f"e{number}"), now=0)

    assert [len(box.take_at(0, weight=7_000)) for _ in range(3)] == [2, 2, 1]
    assert MOST_BYTES == 16_000


def test_a_report_longer_than_that_goes_alone() -> None:
    box = Box()
    box.put(end("a"), now=0)
    box.put(progress("b"), now=0)

    assert contents(box.take_at(0, weight=50_000)) == ["a over"]
    assert contents(box.take_at(0, weight=50_000)) == ["b 0.0"]


# -- what could not be sent ---------------------------------------------------------------------------------------


def test_ends_that_could_not_be_sent_go_first_next_time_in_their_order() -> None:
    box = Box()
    for task in ("a", "b"):
        box.put(end(task), now=0)
    failed = box.take_at(0)
    box.put(end("c"), now=0)
    box.requeue(failed, progress=True, now=0)

    again = box.take_at(0)
    assert contents(again) == ["a over", "b over", "c over"]
    assert [p.otid for p in again[:2]] == [p.otid for p in failed]


def test_an_end_that_was_refused_alone_lets_the_others_pass() -> None:
    box = Box()
    for task in ("poison", "b"):
        box.put(end(task), now=0)
    parcels = box.take_at(0)
    parcels[0].refusals = 1
    box.requeue(parcels, progress=True, now=0)

    assert contents(box.take_at(0)) == ["b over"]
    assert contents(box.take_at(0)) == ["poison over"]  # alone again: it may be refused for what it says


def test_progress_that_could_not_be_sent_is_sent_again() -> None:
    box = Box()
    box.put(progress("a", 0.3), now=0)
    box.requeue(box.take_at(0), progress=True, now=5)

    assert box.next_due(5) == 5
    assert box.deliver(5) == [("a", 0.3)]


@pytest.mark.parametrize("newer", [progress("a", 0.4), end("a")])
def test_progress_that_could_not_be_sent_never_overtakes_something_newer(newer: ProgressReport) -> None:
    box = Box()
    box.put(progress("a", 0.3), now=0)
    failed = box.take_at(0)
    box.put(newer, now=1)
    box.requeue(failed, progress=True, now=2)

    assert contents(box.take_at(2)) == [newer.content]
    assert box.take_at(1e9) == []


def test_progress_is_given_up_where_a_second_try_would_cost_too_much() -> None:
    box = Box()
    box.put(progress("a"), now=0)
    box.requeue(box.take_at(0), progress=False, now=0)

    assert box.waiting == 0
    assert box.stats.snapshot()["dropped"] == {"in_progress refused": 1}


# -- bounds -------------------------------------------------------------------------------------------------------


def test_past_the_limit_the_oldest_progress_goes_first() -> None:
    box = Box(capacity=Capacity(3))
    for task in ("a", "b", "c", "d"):
        box.put(progress(task), now=0)

    assert contents(box.take_at(0)) == ["b 0.0", "c 0.0", "d 0.0"]
    assert box.stats.snapshot()["dropped"] == {"in_progress over the limit of waiting reports": 1}


def test_an_end_makes_room_by_dropping_progress_of_any_lane() -> None:
    capacity = Capacity(2)
    busy, other = Box(capacity=capacity), Box(OTHER, capacity=capacity)
    other.put(progress("x"), now=0)
    busy.put(end("a"), now=0)
    busy.put(end("b"), now=0)

    assert other.waiting == 0
    assert contents(busy.take_at(0)) == ["a over", "b over"]


def test_if_only_ends_are_left_the_oldest_collapse_into_a_count_that_is_told_first() -> None:
    box = Box(capacity=Capacity(2))
    for number in range(5):
        box.put(end(f"e{number}", failed=number == 0), now=0)

    assert box.ends_waiting == 5
    parcels = box.take_at(0)
    assert [parcel.losses for parcel in parcels] == [(2, 1), None, None]
    assert contents(parcels)[1:] == ["e3 over", "e4 over"]
    assert box.stats.snapshot()["dropped"] == {"end collapsed into a count": 3}
    assert box.ends_waiting == 0


def test_the_oldest_end_of_any_lane_makes_room_so_that_the_bound_holds_for_ever_new_ones() -> None:
    capacity = Capacity(3)
    boxes = [Box(Lane(LANE.server, LANE.agent_id, f"conv-{number}"), capacity=capacity) for number in range(10)]
    for number, box in enumerate(boxes):
        box.put(end(f"e{number}"), now=number)

    assert capacity.ends == 3
    assert [box.ends_uncounted for box in boxes] == [0] * 7 + [1] * 3
    assert [box.ends_waiting for box in boxes] == [1] * 10


def test_a_count_that_could_not_be_sent_is_kept_and_grows() -> None:
    box = Box(capacity=Capacity(1))
    box.put(end("a"), now=0)
    box.put(end("b"), now=0)
    box.requeue(box.take_at(0), progress=True, now=0)  # the count of a, and b
    assert box.ends_waiting == 2
    box.put(end("c"), now=0)
    box.put(end("d"), now=0)

    assert box.ends_waiting == 4
    parcels = box.take_at(0)
    assert [parcel.losses for parcel in parcels] == [(2, 0), None, None]
    assert contents(parcels)[1:] == ["c over", "d over"]
    assert box.stats.snapshot()["dropped"] == {"end collapsed into a count": 2}


def test_progress_that_comes_when_only_ends_wait_and_nothing_fits_is_dropped() -> None:
    box = Box(capacity=Capacity(1))
    box.put(end("a"), now=0)

    assert box.put(progress("b"), now=0) == math.inf
    assert contents(box.take_at(0)) == ["a over"]


def test_everything_can_be_handed_over_to_another_lane() -> None:
    capacity = Capacity(3)
    here, there = Box(capacity=capacity), Box(OTHER, capacity=capacity)
    for task in "abcd":
        here.put(end(task), now=0)
    for parcel in here.take_all():
        there.adopt(parcel, 0)

    assert here.waiting == 0 and capacity.ends == 3
    parcels = there.take_at(0)
    assert [parcel.losses for parcel in parcels] == [(1, 0), None, None, None]


# -- all of it together -------------------------------------------------------------------------------------------


class Mailroom(RuleBasedStateMachine):
    """Any order of puts, sends and failures. A model remembers what each task said and what the agent was told."""

    tasks = st.sampled_from(["a", "b", "c"])

    def __init__(self) -> None:
        super().__init__()
        self.box = Box(interval=60)
        self.now = 0.0
        self.runs = dict.fromkeys("abc", 1)
        self.sequence = 0
        self.on_its_way: list[Parcel] = []
        self.told: list[ProgressReport] = []
        self.told_at: dict[tuple[str, int], float] = {}
        self.ends: list[tuple[str, int]] = []

    def fields(self, task: str) -> dict[str, int]:
        self.sequence += 1
        return {"sequence": self.sequence, "run": self.runs[task]}

    @rule(task=tasks, share=st.sampled_from([0.0, 0.1, 0.25, 0.4, 0.5, 0.8]))
    def report_progress(self, task: str, share: float) -> None:
        self.box.put(progress(task, share, **self.fields(task)), self.now)

    @rule(task=tasks)
    def report_end(self, task: str) -> None:
        self.box.put(end(task, **self.fields(task)), self.now)
        self.ends.append((task, self.runs[task]))
        self.runs[task] += 1

    @rule(seconds=st.sampled_from([1.0, 30.0, 61.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @precondition(lambda self: not self.on_its_way)
    @rule()
    def send(self) -> None:
        self.on_its_way = self.box.take_at(self.now)

    @precondition(lambda self: self.on_its_way)
    @rule()
    def arrive(self) -> None:
        for parcel in self.on_its_way:
            key = (parcel.report.task_id, parcel.report.run)
            if not parcel.is_end:
                assert self.now - self.told_at.get(key, -math.inf) >= 60
                self.told_at[key] = self.now
            self.told.append(parcel.report)
        self.box.mark_delivered(self.on_its_way, self.now)
        self.on_its_way = []

    @precondition(lambda self: self.on_its_way)
    @rule(progress=st.booleans())
    def fail(self, progress: bool) -> None:
        self.box.requeue(self.on_its_way, progress=progress, now=self.now)
        self.on_its_way = []

    @invariant()
    def reports_of_a_task_arrive_in_order(self) -> None:
        for task in "abc":
            numbers = [report.sequence for report in self.told if report.task_id == task]
            assert numbers == sorted(set(numbers))

    @invariant()
    def capacity_is_counted_right(self) -> None:
        assert self.box.capacity.ends == len(self.box._ends)
        assert set(self.box.capacity.progress) == set(self.box._progress.values())

    def teardown(self) -> None:
        if self.on_its_way:
            self.fail(progress=True)
        while self.box.next_due(self.now) is not None:
            self.now = max(self.now, self.box.next_due(self.now) or 0.0)
            self.send()
            self.arrive()
            self.now += 61
        arrived = [(report.task_id, report.run) for report in self.told if report.status.is_terminal]
        assert sorted(arrived) == sorted(self.ends)  # every end, each once


Mailroom.TestCase.settings = hypothesis_settings(max_examples=150, stateful_step_count=30)
test_any_order_of_events = Mailroom.TestCase
