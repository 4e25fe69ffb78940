"""A loop that states how far it came, as a progress bar does."""

from __future__ import annotations

import operator
import time
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from otel_letta.otel.helpers import TaskSpan

_T = TypeVar("_T")

_TRACK_SECONDS = 0.1
"""A tracked loop states its progress at most this often, so that a tight one costs next to nothing."""


class Track(Generic[_T]):
    """What `TaskSpan.track` gives: iterate over it once."""

    def __init__(self, task: TaskSpan, items: Iterable[_T] | AsyncIterable[_T], total: int | None) -> None:
        self._task = task
        self._items = items
        self._total = operator.length_hint(items, 0) or None if total is None else total
        self._done = 0
        self._reported_at = 0.0

    def __repr__(self) -> str:
        return f"<Track {self._done}/{'?' if self._total is None else self._total} of {self._task!r}>"

    def _repr_mimebundle_(self, **_: object) -> dict[str, str]:
        return self._task._repr_mimebundle_()

    def __len__(self) -> int:
        if self._total is None:
            raise TypeError("the number of items is not known")
        return self._total

    def __iter__(self) -> Iterator[_T]:
        if not isinstance(self._items, Iterable):
            raise TypeError("these items are asynchronous: use 'async for'")
        for item in self._items:
            yield item
            self._step()
        self._report()

    async def __aiter__(self) -> AsyncIterator[_T]:
        if isinstance(self._items, AsyncIterable):
            async for item in self._items:
                yield item
                self._step()
        else:
            for item in self._items:
                yield item
                self._step()
        self._report()

    def _step(self) -> None:
        self._done += 1
        now = time.monotonic()
        if now - self._reported_at >= _TRACK_SECONDS:
            self._reported_at = now
            self._report()

    def _report(self) -> None:
        total = self._total
        if total:
            # An iterable may give more than it promised; a task is never more than done.
            self._task.progress(min(self._done / total, 1.0), f"{self._done}/{total}")
        else:
            self._task.content(f"{self._done} done")
