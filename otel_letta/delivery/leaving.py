"""The end of a program: what becomes of what is not delivered then, and what is said of it."""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Collection
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from otel_letta.delivery.lane import LaneWorker
    from otel_letta.letta.transport import Lane

_logger = logging.getLogger(__name__)

_NO_TIME = "no time left; OTEL_LETTA_SHUTDOWN_TIMEOUT allows more"


class Fate(NamedTuple):
    """What becomes of a lane's reports as the program ends."""

    lost: int
    """Ends that do not reach the agent from this process."""
    unconfirmed: int
    """Reports that went out, and were not answered yet."""
    why: str
    """The cause of the loss, for people."""


def give_up(worker: LaneWorker) -> Fate:
    """See to it that nothing more of the lane goes out, and return what is not delivered. Lock held."""
    attempt = worker.attempt
    # A request that has not gone out must not do so later, when its reports are said to be lost.
    unsent = attempt.posting.abandon()
    lost = unconfirmed = 0
    for parcel in worker.in_flight:
        gone = unsent or parcel.otid not in attempt.otids or parcel.otid in attempt.missing
        if not gone:
            unconfirmed += 1
        elif parcel.is_end and parcel.losses is None:
            lost += 1
    why: object = attempt.waits_for if lost and unsent else worker.last_error or worker.parked or _NO_TIME
    lost += worker.mailbox.ends_uncounted
    return Fate(lost, unconfirmed, str(why))


def log_undelivered(fates: Collection[tuple[Lane, Fate]], place: str | None, *, wanted: bool) -> None:
    """Write one line for each cause, however many lanes there are.

    Args:
        fates: of each lane.
        place: where the ends that were not delivered are kept; None for nowhere.
        wanted: they were to stay there.
    """
    lanes: defaultdict[str, list[Lane]] = defaultdict(list)
    ends: Counter[str] = Counter()
    for lane, fate in fates:
        if fate.lost:
            why = "as OTEL_LETTA_OUTBOX_EXIT wants" if place and wanted and fate.why == _NO_TIME else fate.why
            lanes[why].append(lane)
            ends[why] += fate.lost
    unconfirmed = [(lane, fate.unconfirmed) for lane, fate in fates if fate.unconfirmed]
    if unconfirmed:
        _logger.warning(
            "%s: shut down while the agent was still answering %d report(s); it has them, unconfirmed",
            _together([lane for lane, _ in unconfirmed]),
            sum(number for _, number in unconfirmed),
        )
    for why, number in ends.items():
        if place is None:
            _logger.error("%s: %d task end(s) not delivered before shutdown: %s", _together(lanes[why]), number, why)
        else:
            _logger.log(
                logging.INFO if wanted else logging.WARNING,
                "%s: %d task end(s) stay in the outbox %s (%s): the next process of it, or 'otel-letta outbox retry', "
                "delivers them",
                _together(lanes[why]),
                number,
                place,
                why,
            )


def _together(lanes: list[Lane]) -> str:
    return str(lanes[0]) if len(lanes) == 1 else f"{lanes[0].server}, {len(lanes)} conversations"
