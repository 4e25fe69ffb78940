"""A memory of bounded size: the newest entries of a mapping."""

from __future__ import annotations

from typing import Any, Generic, TypeVar

_K = TypeVar("_K")
_V = TypeVar("_V")

_add = dict.setdefault
"""Sets what is not there, and takes half as long as the slot of ``[]=`` called by its name."""


class Recent(dict[_K, _V], Generic[_K, _V]):
    """The newest entries of a mapping: all are, until there are too many, and then the oldest eighth goes.

    Threads may share one, as they may a dictionary. An `OrderedDict` that lets go of one entry at a time takes twice as
    long for each, and a third more memory.
    """

    def __init__(self, most: int = 1_000) -> None:
        super().__init__()
        self._most = most

    def put(self, key: _K, value: _V) -> None:
        """Set an entry, and make it the newest."""
        size = len(self)
        _add(self, key, value)  # first, since nearly all are new, and each look takes a hash of the key
        if len(self) == size:
            self.pop(key, None)
            _add(self, key, value)
        elif size >= self._most:
            pop = self.pop
            for old in list(self)[: self._most // 8 or 1]:  # all at once: another thread may add some
                pop(old, None)

    # The bound holds whoever adds an entry.
    __setitem__ = put

    def setdefault(self, key: _K, default: Any = None) -> Any:
        """Return an entry, and add it if it is not there."""
        if key not in self:
            self.put(key, default)
        return self.get(key, default)  # others may have added so many that it is gone again

    def update(self, *others: Any) -> None:
        """Set the entries of mappings."""
        for other in others:
            for key in other:
                self.put(key, other[key])
