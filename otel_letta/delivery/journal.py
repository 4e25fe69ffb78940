"""The seam between delivery and what outlives the process: `outbox.py` fills it, and without an outbox nothing does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from otel_letta.errors import LettaError
from otel_letta.letta.transport import Lane
from otel_letta.report import ProgressReport
from otel_letta.runtime.deadline import Deadline

if TYPE_CHECKING:
    from otel_letta.delivery.parcel import Parcel


class LaneLock(Protocol):
    """A lane's exclusive lock between hosts. Not reentrant."""

    def acquire(self, until: Deadline) -> bool:
        """Wait for the lock. Return False if it was time to give up before. Where it cannot be had at all: True."""

    def release(self) -> None:
        """Give the lock back; quiet if it is not held."""


class Journal(Protocol):
    """What remembers reports beyond the process. None of its methods raises.

    A report is known by its identity as an object: whoever makes a new one of it makes an unknown one. Those marked
    *lock held* are called with the crew's lock, and neither wait nor do I/O.
    """

    def note(self, report: ProgressReport) -> None:
        """Note where a task stands; called with every report, whether it becomes a message or not."""

    def put(self, report: ProgressReport, lane: Lane, maybe_landed: bool = False) -> bool:
        """Keep a report that was accepted for a lane, until `settled`. Lock held.

        Args:
            maybe_landed: another process may have sent it.

        Returns:
            False if it is not to be queued now: the journal hands it over later, when those before it are gone.
        """

    def moved(self, reports: Sequence[ProgressReport], lane: Lane) -> None:
        """Note that reports go to another lane now. Lock held."""

    def posting(self, parcels: Sequence[Parcel]) -> list[Parcel]:
        """Make the reports durable, and note that a request with them goes out; called right before it. May block.

        Returns:
            Those that are to be sent: another process may have taken some over meanwhile.
        """

    def settled(self, reports: Sequence[ProgressReport], note: str | None = None) -> None:
        """Forget reports that are known to be in the agent's context, or given up for good. Lock held.

        Args:
            note: why they were given up; None if they were delivered.
        """

    def failed(self, parcels: Sequence[Parcel], error: LettaError) -> None:
        """Note why parcels that stay could not be delivered, and whether they may have been. Lock held."""

    def lock_of(self, lane: Lane) -> LaneLock | None:
        """Return the lock that keeps other hosts out of the lane; None if there is none."""

    @property
    def place(self) -> str | None:
        """Where every end that was put is durable now, so that nobody has to wait for it; None for nowhere."""


class NoJournal:
    """The journal of those who have no outbox: remembers nothing."""

    def note(self, report: ProgressReport) -> None:
        pass

    def put(self, report: ProgressReport, lane: Lane, maybe_landed: bool = False) -> bool:
        return True

    def moved(self, reports: Sequence[ProgressReport], lane: Lane) -> None:
        pass

    def posting(self, parcels: Sequence[Parcel]) -> list[Parcel]:
        return list(parcels)

    def settled(self, reports: Sequence[ProgressReport], note: str | None = None) -> None:
        pass

    def failed(self, parcels: Sequence[Parcel], error: LettaError) -> None:
        pass

    def lock_of(self, lane: Lane) -> LaneLock | None:
        return None

    @property
    def place(self) -> str | None:
        return None


Accept = Callable[[ProgressReport, Lane, bool], None]
"""Takes back what a journal kept: the report, its lane, and whether an attempt to send it may have landed."""
