"""What an object keeps alive."""

from __future__ import annotations

import gc
import sqlite3
import types
from collections.abc import Iterator
from typing import Any

_SHARED = (
    *(type, types.ModuleType, types.FunctionType, types.BuiltinFunctionType, types.CodeType),
    *(types.FrameType, types.TracebackType),
)
"""These lead to everything there is."""


def reachable(top: object, *without: object) -> Iterator[Any]:
    """Yield the object and all that it keeps alive, each once, but for what it keeps only through ``without``."""
    seen, todo = {id(top), *map(id, without)}, [top]
    while todo:
        each = todo.pop()
        yield each
        if isinstance(each, sqlite3.Connection):
            continue  # up to two hundred weak references to cursors that are gone: they go together, now and then
        for found in gc.get_referents(each):
            # By the type: some objects lie about their class.
            if id(found) not in seen and not issubclass(type(found), _SHARED):
                seen.add(id(found))
                todo.append(found)
