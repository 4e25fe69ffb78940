"""A memory of bounded size: the newest entries of a mapping."""

from __future__ import annotations

from collections import OrderedDict
from typing import Generic, TypeVar

_K = TypeVar("_K")
_V = TypeVar("_V")


_set = OrderedDict.__setitem__


class Recent(OrderedDict[_K, _V], Generic[_K, _V]):
    """The newest entries of a mapping."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self._most = most

    def __setitem__(self, key: _K, value: _V) -> None:
        # The bound holds whoever adds an entry: `setdefault` and `update` end here, too.
        _set(self, key, value)
        if len(self) > self._most:
            self.popitem(last=False)

    def put(self, key: _K, value: _V) -> None:
        """Set an entry, and make it the newest."""
        before = len(self)
        _set(self, key, value)
        if len(self) == before:
            self.move_to_end(key)
        elif before >= self._most:
            self.popitem(last=False)
