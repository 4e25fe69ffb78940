"""The room for reports that wait, which all mailboxes of one desk share."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from otel_letta.delivery.mailbox import Mailbox, Waiting


class Capacity:
    """The number of reports that wait in all mailboxes together, and the in_progress ones from the oldest on.

    Args:
        most: reports that may wait.
        on_collapse: called with a mailbox of which an end became a mere count, for want of room.
    """

    def __init__(self, most: int, on_collapse: Callable[[Mailbox], None] = lambda box: None) -> None:
        self.most = most
        self.on_collapse = on_collapse
        self.ends = 0
        self.boxes: dict[Mailbox, None] = {}
        """Mailboxes with ends, from the one on that has had some for the longest time."""
        self.progress: OrderedDict[Waiting, Mailbox] = OrderedDict()

    @property
    def full(self) -> bool:
        return self.ends + len(self.progress) >= self.most
