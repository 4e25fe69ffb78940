"""The fence of the house that `docs/architecture.md` draws: who may import whom, and how long a file may be."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

HOUSE = Path(__file__).parents[1] / "otel_letta"
FILES = sorted(HOUSE.rglob("*.py"))

ORDER = (
    "cli",
    "serve",
    "integrations",
    "otel",
    "pipeline",
    "delivery",
    "tracking",
    "letta",
    "otlp",
    "store",
    "settings",
    "runtime",
)
"""The rooms from the roof down: a file imports from its own room and from those behind it, and from the ground."""
GROUND = (
    "report",
    "task_status",
    "answer",
    "instruction",
    "errors",
    "semconv",
    "text",
    "secret_forms",
    "ids",
    "recent",
)
FORBIDDEN = {
    "tracking": {"letta", "otlp", "store", "settings", "runtime"},
    "delivery": {"tracking", "otlp"},
    "otlp": {"store", "settings", "runtime"},
    "store": {"settings"},
    "letta": {"store"},
}
"""What stands below a room and is none of its business all the same."""
FROM_TRANSPORT_ALONE = "delivery"
"""It sees of `letta` nothing but the doorway, `transport.py`."""
LOADED_BY_ALL = ("otel_letta.runtime.imports",)
"""What the packages' public names are loaded with, wherever they stand."""

EXCEPTIONS: set[tuple[str, str]] = set()
LONGEST = 400
LONGER: set[str] = set()


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(HOUSE).with_suffix("").parts).removesuffix(".__init__")


def room_of(module: str) -> str:
    first = module.partition(".")[0]
    if first in GROUND or module in ("", "__init__"):
        return "ground"
    return {"reporter": "otel", "__main__": "cli"}.get(first, first)


def imports_of(path: Path) -> Iterator[tuple[int, str]]:
    """Lazy ones count too; those for type checkers as well."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            module = node.module or ""
            names = [f"{module}.{alias.name}" for alias in node.names]
            for each in {
                name if (HOUSE.parent / f"{name.replace('.', '/')}.py").is_file() else module for name in names
            }:
                yield node.lineno, each
        elif isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)


def may_import(importer: str, imported: str) -> bool:
    here, there = room_of(importer), room_of(imported)
    if here == there or there == "ground" or (importer, imported) in EXCEPTIONS:
        return True
    if importer in ("", "__init__"):
        return True  # the public names, from wherever they are
    if there == "testing":
        return here == "cli"
    if here in ("ground", "testing") or there in FORBIDDEN.get(here, ()):
        return False
    if here == FROM_TRANSPORT_ALONE and there == "letta":
        return imported == "letta.transport"
    return ORDER.index(here) < ORDER.index(there)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_file_imports_only_what_stands_below_it(path: Path) -> None:
    wrong = [
        f"line {line}: {module}"
        for line, module in imports_of(path)
        if module.partition(".")[0] == "otel_letta"
        and module not in LOADED_BY_ALL
        and not may_import(name_of(path), module.partition(".")[2])
    ]
    assert not wrong


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_file_is_short_enough_to_be_read_at_a_sitting(path: Path) -> None:
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert (lines > LONGEST) == (name_of(path) in LONGER), f"{lines} lines"


def test_every_exception_is_still_needed() -> None:
    used = {(name_of(path), module.partition(".")[2]) for path in FILES for _, module in imports_of(path)}
    assert used >= EXCEPTIONS
