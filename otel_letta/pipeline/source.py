"""The doorway for what makes reports without being a span: integrations, receivers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from otel_letta.report import ProgressReport


class Source(Protocol):
    """A maker of reports beside the tracker of spans; see `Handle.add_source`.

    Every method but `claims` runs on one thread at a time, the pipeline's, as do the calls that `Handle.call` enqueues:
    a source needs no lock for what only these touch. A pipeline has one source of each type, whoever adds it. Sources
    outlive a fork: the child begins anew with `start`.
    """

    @property
    def open_tasks(self) -> int:
        """Number of tasks that are under way. Read by any thread."""

    def start(self, emit: Callable[[ProgressReport], None]) -> None:
        """Begin with nothing open: when the source is added, and in each forked child.

        Args:
            emit: takes each report, in order, and never waits.
        """

    def restore(self, report: ProgressReport) -> None:
        """Let a task wait on that waited in a process which is gone, if it is the source's.

        Args:
            report: the last one of a task that no span made. It may come again.
        """

    def tick(self, now_ns: int) -> int | None:
        """Do what is due after the calls.

        Args:
            now_ns: the wall clock, Unix nanoseconds.

        Returns:
            The Unix nanoseconds of the next call, if there is none for another reason before; None for never.
        """

    def shutdown(self) -> None:
        """Report what is still open as failed: the program ends."""

    def claims(self, conversation_id: str) -> bool:
        """Return whether this source speaks for a conversation, so that its spans are not reported as well."""
