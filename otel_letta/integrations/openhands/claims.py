"""Conversations that are reported by a callback, and not by their spans as well."""

from __future__ import annotations

import contextlib


class Claims:
    """The conversations whose spans are not reported, because their callback reports more. Bounded.

    Any thread may call it: each change is one step of a dict.
    """

    def __init__(self, most: int = 10_000) -> None:
        self._ids: dict[str, None] = {}
        self._most = most

    def add(self, conversation_id: str) -> None:
        """Claim a conversation; the oldest claim goes when there are too many."""
        self._ids[plain_id(conversation_id)] = None
        if len(self._ids) > self._most:
            with contextlib.suppress(RuntimeError, StopIteration):  # another thread was in between: the next one will
                self._ids.pop(next(iter(self._ids)), None)

    def __contains__(self, conversation_id: str) -> bool:
        return plain_id(conversation_id) in self._ids


def plain_id(conversation_id: str) -> str:
    """Return an id in the one form that is compared: OpenHands writes its UUIDs with dashes in spans and without them
    in the addresses of webhooks."""
    return conversation_id.replace("-", "").lower()
