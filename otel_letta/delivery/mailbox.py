"""The reports that wait for one lane: of each task at most one in_progress report, the newest, and every end.

No threads and no clock of its own: the caller holds a lock and gives the time.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import math
import uuid
from collections import deque
from collections.abc import Callable, Iterable

from otel_letta.delivery.capacity import Capacity
from otel_letta.delivery.parcel import Parcel, otid_of
from otel_letta.delivery.stats import Stats
from otel_letta.letta.transport import Lane
from otel_letta.report import ProgressReport, TaskStatus

_logger = logging.getLogger(__name__)

MOST_REPORTS = 20
"""Reports in one request. Several messages of one request cost one turn (measured), but an LLM has to read them."""
MOST_BYTES = 16_000
"""Bytes of one request's messages together, unless a single one is longer."""

_MOST_STALE = 1_000
"""Entries of an agenda beyond those that wait, before it is cleared of what is over."""
_MILESTONES = (0.25, 0.5, 0.75)


class _Pace:
    """The last report of a task that its agent got as a message. Made when the first one goes out."""

    __slots__ = ("content", "milestone", "sent_at")

    def __init__(self) -> None:
        self.sent_at = -math.inf
        self.milestone = -1.0
        self.content: str | None = None


class Waiting:
    """The in_progress report of a task that waits, the newest."""

    __slots__ = ("due", "parcel")

    def __init__(self, parcel: Parcel, due: float) -> None:
        self.parcel = parcel
        self.due = due


class Mailbox:
    """One lane's waiting reports and their pacing.

    Args:
        interval: seconds between two in_progress messages of one task.
        capacity: shared by all mailboxes.
    """

    def __init__(self, lane: Lane, interval: float, capacity: Capacity, stats: Stats) -> None:
        self.lane = lane
        self._interval = interval
        self._capacity = capacity
        self._stats = stats
        self._ends: deque[Parcel] = deque()
        self._progress: dict[str, Waiting] = {}
        self._paces: dict[str, _Pace] = {}
        self._agenda: list[tuple[float, int, str]] = []
        self._tick = itertools.count()
        self._lost = (0, 0)

    # -- in ----------------------------------------------------------------------------------------------------------

    def put(self, report: ProgressReport, now: float, *, maybe_landed: bool = False) -> float:
        """Take a report. Return when it is due (monotonic seconds; infinity: only if something newer makes it so)."""
        if report.status.is_terminal:
            if self._forget_progress(report.key):
                self._conflated(report.task_id, "its end came")
            self._paces.pop(report.key, None)
            if self._capacity.full:
                self._make_room()
            self._ends.append(Parcel(report, maybe_landed=maybe_landed))
            self._count_ends(1)
            return now
        waiting = self._progress.get(report.key)
        if report.waiting and self._forget_progress(report.key):
            self._conflated(report.task_id, f"#{report.sequence} came")  # somebody has to act: it waits for no interval
        elif waiting is not None:
            self._conflated(report.task_id, f"#{report.sequence} came")
            waiting.parcel = Parcel(report)
            if waiting.due is not math.inf:
                return waiting.due
            self._forget_progress(report.key)
        due = self._due(report, now)
        if self._capacity.full and not self._drop_oldest_progress():
            self._dropped(report.task_id, "in_progress over the limit of waiting reports")
            return math.inf
        self._enter_progress(report.key, Parcel(report), due)
        return due

    def requeue(self, parcels: Iterable[Parcel], *, progress: bool, now: float) -> None:
        """Return what could not be sent: ends to the front; in_progress only if nothing newer waits.

        An end that was refused alone goes to the back: what is behind it must not wait for it. ``progress``: also what
        need not arrive.
        """
        parcels = list(parcels)
        ends = [parcel for parcel in parcels if parcel.is_end]
        self._ends.extendleft(reversed([parcel for parcel in ends if not parcel.refusals]))
        self._ends.extend(parcel for parcel in ends if parcel.refusals)
        self._count_ends(len(ends))
        ended = {parcel.report.key for parcel in self._ends}
        for parcel in [each for each in parcels if not each.is_end]:
            task = parcel.report.key
            if not (progress or parcel.must_arrive):
                self._dropped(task, "in_progress refused")
            elif parcel.withdrawn or task in self._progress or task in ended:
                self._conflated(task, "there is a newer one")
            elif self._capacity.full:
                self._dropped(task, "in_progress over the limit of waiting reports")
            else:
                self._enter_progress(task, parcel, now)

    def _enter_progress(self, task: str, parcel: Parcel, due: float) -> None:
        waiting = self._progress[task] = Waiting(parcel, due)
        self._capacity.progress[waiting] = self
        if due is not math.inf:
            self._schedule(task, due)

    def _due(self, report: ProgressReport, now: float) -> float:
        """Return when an in_progress report is worth an LLM turn: at the start, at each quarter, and never more often
        than the interval. Of a task that gives no number, new content counts instead. A question waits for nothing."""
        pace = self._paces.get(report.key)
        if pace is None or report.waiting:
            return now
        if _milestone(report.progress) > pace.milestone or (report.progress == 0.0 and report.content != pace.content):
            return max(now, pace.sent_at + self._interval)
        return math.inf

    def _make_room(self) -> None:
        """Drop the oldest in_progress for an end; if only ends are left, turn the oldest of any lane into a count."""
        if not self._drop_oldest_progress() and self._capacity.boxes:
            next(iter(self._capacity.boxes))._collapse_oldest()

    def _collapse_oldest(self) -> None:
        oldest = self._ends.popleft()
        self._count_ends(-1)
        self._count_lost(oldest)
        if oldest.losses is None:
            self._dropped(oldest.report.task_id, "end collapsed into a count")
            self._capacity.on_collapse(self)

    def _count_ends(self, number: int) -> None:
        """Note that so many more ends wait here now."""
        self._capacity.ends += number
        if self._ends:
            self._capacity.boxes.setdefault(self)
        else:
            self._capacity.boxes.pop(self, None)

    def _drop_oldest_progress(self) -> bool:
        oldest = next(iter(self._capacity.progress.items()), None)
        if oldest is None:
            return False
        waiting, box = oldest
        task = waiting.parcel.report.key
        box._forget_progress(task)
        box._next_entry()  # its own is the next one, most often, and holds a text
        self._dropped(task, "in_progress over the limit of waiting reports")
        return True

    def _count_lost(self, parcel: Parcel) -> None:
        completed, failed = self._lost
        if parcel.losses is not None:
            self._lost = (completed + parcel.losses[0], failed + parcel.losses[1])
        elif parcel.report.status is TaskStatus.FAILED:
            self._lost = (completed, failed + 1)
        else:
            self._lost = (completed + 1, failed)

    def _conflated(self, task: str, why: str) -> None:
        self._stats.count("conflated")
        _logger.debug("in_progress report of %s replaced: %s", task, why)

    def _dropped(self, task: str, why: str) -> None:
        self._stats.drop(why)
        _logger.debug("report of %s dropped: %s", task, why)

    def _forget_progress(self, task: str) -> bool:
        waiting = self._progress.pop(task, None)
        if waiting is None:
            return False
        del self._capacity.progress[waiting]
        return True

    # -- out ---------------------------------------------------------------------------------------------------------

    def take(self, now: float, weigh: Callable[[ProgressReport], int], most: int = MOST_REPORTS) -> list[Parcel]:
        """Take out what goes into the next request: ends in order, then due in_progress reports.

        An end that was refused alone goes alone again. ``weigh`` gives the bytes of a report as it will be sent;
        ``most`` is how many reports there may be.
        """
        parcels: list[Parcel] = []
        room = MOST_BYTES
        if any(self._lost):
            parcels.append(self._summary())
            room -= 500
        while self._ends and len(parcels) < most:
            alone = bool(self._ends[0].refusals)
            weight = weigh(self._ends[0].report)
            if parcels and (weight > room or alone):
                return parcels
            room -= weight
            parcels.append(self._addressed(self._ends.popleft()))
            self._count_ends(-1)
            if alone:
                return parcels
        while len(parcels) < most:
            entry = self._next_entry()
            if entry is None or entry[0] > now:
                break
            task = entry[2]
            parcel = self._progress[task].parcel
            weight = weigh(parcel.report)
            if parcels and weight > room:
                break
            room -= weight
            heapq.heappop(self._agenda)
            self._forget_progress(task)
            self._paces.setdefault(task, _Pace())
            parcels.append(self._addressed(parcel))
        return parcels

    def _addressed(self, parcel: Parcel) -> Parcel:
        parcel.otid = parcel.otid or otid_of(parcel.report, self.lane)
        return parcel

    def _summary(self) -> Parcel:
        losses, self._lost = self._lost, (0, 0)
        report = ProgressReport(status=TaskStatus.FAILED, name="lost reports", task_id=f"lost-{uuid.uuid4()}")
        return Parcel(report, str(uuid.uuid4()), losses=losses)

    def _schedule(self, task: str, due: float) -> None:
        heapq.heappush(self._agenda, (due, next(self._tick), task))
        # A task that has ended leaves its entry behind until that is due: an interval can be hours.
        if len(self._agenda) > 2 * len(self._progress) + _MOST_STALE:
            self._agenda = [entry for entry in self._agenda if self._is_valid(entry)]
            heapq.heapify(self._agenda)

    def _is_valid(self, entry: tuple[float, int, str]) -> bool:
        """Return False for what was replaced, sent or dropped since."""
        waiting = self._progress.get(entry[2])
        return waiting is not None and waiting.due == entry[0]

    def _next_entry(self) -> tuple[float, int, str] | None:
        """Clear the agenda of what is over, as far as the next entry that is not; return that."""
        while self._agenda and not self._is_valid(self._agenda[0]):
            heapq.heappop(self._agenda)
        return self._agenda[0] if self._agenda else None

    def mark_delivered(self, parcels: Iterable[Parcel], now: float) -> None:
        """Note that these reports reached the agent, or never will."""
        for parcel in parcels:
            task = parcel.report.key
            pace = self._paces.get(task)
            if parcel.is_end or pace is None:
                continue  # the task ended, or went to another lane, while this was on its way
            pace.sent_at = now
            pace.milestone = _milestone(parcel.report.progress)
            pace.content = parcel.report.content
            waiting = self._progress.get(task)
            if waiting is not None:
                # It came while this one was on its way, and was judged by what the agent knew before.
                waiting.due = self._due(waiting.parcel.report, now)
                if waiting.due is math.inf:
                    self._stats.count("held")
                    _logger.debug("report %s #%d held after all", task, waiting.parcel.report.sequence)
                else:
                    self._schedule(task, waiting.due)

    def next_due(self, now: float) -> float | None:
        """Return when something is due: now or later in monotonic seconds; None when nothing will be by itself."""
        if self._ends or any(self._lost):
            return now
        entry = self._next_entry()
        return None if entry is None else entry[0]

    def take_all(self) -> list[Parcel]:
        """Take out everything, due or not: the lane's reports have to go elsewhere."""
        parcels = [self._summary()] if any(self._lost) else []
        parcels += self._ends
        parcels += [Parcel(waiting.parcel.report) for waiting in self._progress.values()]
        number = len(self._ends)
        self._ends.clear()
        self._count_ends(-number)
        self.drop_progress()
        return parcels

    def take_losses(self) -> Parcel | None:
        """Take out the count of lost ends, if it is all that waits here."""
        return self._summary() if any(self._lost) and not self._ends and not self._progress else None

    def adopt(self, parcel: Parcel, now: float) -> float:
        """Take over what waited for another lane. Return when it is due."""
        if parcel.losses is None:
            return self.put(parcel.report, now, maybe_landed=parcel.maybe_landed)
        self._count_lost(parcel)
        return now

    def asks(self, task: str) -> bool:
        """Return whether what waits here of a task says that it waits for somebody."""
        return task in self._progress and self._progress[task].parcel.report.waiting

    def forget(self, task: str, why: str) -> None:
        """Drop what waits of a task of which nothing more comes here."""
        self._paces.pop(task, None)
        if self._forget_progress(task):
            self._conflated(task, why)

    @property
    def idle(self) -> bool:
        """True if nothing waits, and no task under way was reported here."""
        return not self.waiting and not self._paces

    def drop_progress(self) -> int:
        """Give up all in_progress reports. Return their number."""
        number = len(self._progress)
        for task in list(self._progress):
            self._forget_progress(task)
        self._agenda.clear()
        return number

    @property
    def ends_waiting(self) -> int:
        return sum(self._lost) + sum(sum(p.losses) if p.losses else 1 for p in self._ends)

    @property
    def ends_uncounted(self) -> int:
        """Ends that wait as such: those that became a mere count were counted as dropped then."""
        return sum(1 for parcel in self._ends if parcel.losses is None)

    @property
    def waiting(self) -> int:
        return self.ends_waiting + len(self._progress)


def _milestone(progress: float) -> float:
    return max((m for m in _MILESTONES if progress >= m), default=0.0)
