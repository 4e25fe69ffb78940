"""Imports that wait: names of ours that load on first use, and actions for when a module of others has loaded."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from importlib.abc import Loader
    from importlib.machinery import ModuleSpec
    from typing import Protocol as Protocol
else:

    class Protocol:
        """An ordinary base class where the program runs. To make one of `typing.Protocol` takes as long as to import
        three modules of ours, and nobody but type checkers asks it anything."""


def names_on_demand(
    package: str, homes: Mapping[str, Sequence[str]]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Make the ``__getattr__`` and ``__dir__`` of a package whose public names load when they are first used.

    Args:
        package: its ``__name__``.
        homes: the public names by the module below it that has them.
    """
    home_of = {name: home for home, names in homes.items() for name in names}
    contents = vars(sys.modules[package])

    def get(name: str) -> Any:
        home = home_of.get(name)
        if home is None:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = contents[name] = getattr(importlib.import_module(f"{package}.{home}"), name)
        return value

    return get, lambda: sorted({*contents, *home_of})


def when_imported(name: str, then: Callable[[], object]) -> None:
    """Call ``then`` once, right after the module ``name`` has been imported. ``then`` must not raise."""
    if name in sys.modules:
        then()
    else:
        sys.meta_path.insert(0, _Watcher(name, then))


class _Watcher:
    """A finder of nothing, which puts a loader that notifies us around the one that the others find.

    Not derived from `importlib.abc`, whose import takes longer than all of this package's public names.
    """

    def __init__(self, name: str, then: Callable[[], object]) -> None:
        self._name = name
        self._then = then
        self._asking = False

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self._name or self._asking:
            return None
        from importlib.util import find_spec

        self._asking = True  # the other finders are asked through here again
        try:
            spec = find_spec(fullname)
        finally:
            self._asking = False
        if spec is not None and spec.loader is not None:
            spec.loader = cast("Loader", _Loader(spec.loader, self._done))
        return spec

    def _done(self) -> None:
        if self in sys.meta_path:
            sys.meta_path.remove(self)
            self._then()


class _Loader:
    def __init__(self, real: Loader, done: Callable[[], None]) -> None:
        self._real = real
        self._done = done

    def __getattr__(self, name: str) -> Any:
        # Whoever only asks for the spec may want what a loader can beside loading: sources, resources.
        return getattr(self._real, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._real.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        # From here on the module is its real loader's, as if nobody had been here.
        if module.__spec__ is not None:
            module.__spec__.loader = self._real
        module.__loader__ = self._real
        self._real.exec_module(module)
        self._done()
