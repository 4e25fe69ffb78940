"""A report that is on its way, and the id that its server knows it by."""

from __future__ import annotations

import uuid

from otel_letta.letta.transport import Lane
from otel_letta.report import ProgressReport

_NAMESPACE = uuid.UUID("470e995e-8266-5e75-9cf8-84a45aed967c")
"""uuid5 of this project's page on PyPI. Written out, since computing it imports OpenSSL."""


class Parcel:
    """A report that is on its way."""

    __slots__ = ("losses", "maybe_landed", "otid", "refusals", "report", "sent_at", "successes_then", "withdrawn")

    def __init__(
        self,
        report: ProgressReport,
        otid: str = "",
        maybe_landed: bool = False,
        losses: tuple[int, int] | None = None,
    ) -> None:
        self.report = report
        self.otid = otid
        """Empty until it is taken out to be sent for the first time: most of what waits is dropped or replaced."""
        self.maybe_landed = maybe_landed
        """An attempt to send it got no answer: find out whether it landed before sending it again."""
        self.sent_at: float | None = None
        """When it was sent for the first time, in monotonic seconds."""
        self.refusals = 0
        """Number of times it was refused while it was the only one in its request."""
        self.successes_then = 0
        """The lane's deliveries when this was refused for the first time."""
        self.withdrawn = False
        """What it says does not hold any more: it is not sent again."""
        self.losses = losses
        """Completed and failed ends that this parcel stands for, if it is the summary of ends that were collapsed."""

    @property
    def is_end(self) -> bool:
        return self.report.status.is_terminal

    @property
    def must_arrive(self) -> bool:
        """True for an end, and for a task that waits for somebody: nothing newer comes in its place."""
        return self.report.status.is_terminal or self.report.waiting


def otid_of(report: ProgressReport, lane: Lane) -> str:
    """Make the client's id of a message. An end has the same one from every process and attempt that might send it."""
    if not report.status.is_terminal:
        return str(uuid.uuid4())
    parts = [lane.server, lane.agent_id, report.identity, "terminal"]
    if report.key != report.task_id:
        # An explicit id may come again in another process or after a restart, where runs are counted from 1 again:
        # that end must not be taken for the first run's.
        parts.append(report.key)
    if report.run > 1 and report.identity == report.task_id:
        # A task that ran again under its explicit id ends again: that is another message.
        parts.append(str(report.run))
    return str(uuid.uuid5(_NAMESPACE, "\n".join(parts)))
