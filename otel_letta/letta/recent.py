"""A memory of bounded size."""

from __future__ import annotations

from collections import OrderedDict
from typing import TypeVar

_K = TypeVar("_K")
_V = TypeVar("_V")

_MOST = 1_000


class Recent(OrderedDict[_K, _V]):
    """A dictionary that keeps the thousand entries that were made last."""

    def __setitem__(self, key: _K, value: _V) -> None:
        super().__setitem__(key, value)
        while len(self) > _MOST:
            self.popitem(last=False)
