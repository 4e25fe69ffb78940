"""Merging settings into a JSON or TOML file of somebody else: what is there stays, and stays where it is."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any

from otel_letta.cli.setup.programs import Settings


class CannotMerge(Exception):
    """The file is not one that can be merged into without a risk; the text says why."""


@dataclass(frozen=True)
class Merged:
    """A file's new text, and what became of each setting by its dotted name."""

    text: str
    added: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    """It had another value."""

    @property
    def is_new(self) -> bool:
        return bool(self.added or self.changed)


def merge(file: str, text: str, settings: Settings) -> Merged:
    """Merge settings into a file's text, by the ending of its name; an empty text is a file without settings.

    Raises:
        CannotMerge: the text cannot be read, or holds something else where a table of settings belongs.
    """
    read, write = _FORMATS[file.rpartition(".")[2]]
    if not text.strip():
        text = ""
    document, expected = read(text), _plain(read(text))
    added: list[str] = []
    changed: list[str] = []
    for place, value in settings.items():
        table = _table_of(document, place)
        name = ".".join(place)
        if place[-1] not in table:
            added.append(name)
        elif table[place[-1]] == value and isinstance(table[place[-1]], bool) == isinstance(value, bool):
            continue
        else:
            changed.append(name)
        table[place[-1]] = _inline(value) if file.endswith(".toml") else value
        _table_of(expected, place)[place[-1]] = value
    if not added and not changed:
        return Merged(text)
    merged = write(document, text)
    try:
        right = _plain(read(merged)) == expected
    except CannotMerge:
        right = False
    if not right:  # a table that is spread over several places, for one
        raise CannotMerge("it is written in a form that cannot be added to safely")
    return Merged(merged, added, changed)


def render(file: str, settings: Settings) -> str:
    """Return a file that has these settings and nothing else."""
    return merge(file, "", settings).text


def _table_of(document: MutableMapping[str, Any], place: tuple[str, ...]) -> MutableMapping[str, Any]:
    table = document
    for count, name in enumerate(place[:-1], 1):
        if name not in table:
            table[name] = {}
        table = table[name]
        if not isinstance(table, MutableMapping):
            raise CannotMerge(f"its {'.'.join(place[:count])!r} is something else than settings")
    return table


def _plain(document: MutableMapping[str, Any]) -> dict[str, Any]:
    """What a document says, apart from how it is written."""
    unwrap = getattr(document, "unwrap", None)
    return dict(unwrap() if unwrap else document)


def _read_json(text: str) -> dict[str, Any]:
    try:
        document = json.loads(text or "{}", object_pairs_hook=_without_doubles)
    except RecursionError:
        raise CannotMerge("it is no JSON that can be read") from None
    except ValueError as error:
        # Some of these programs also take comments, which a merge would lose.
        where = f" at line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise CannotMerge(f"it is not plain JSON{where}") from None
    if not isinstance(document, dict):
        raise CannotMerge("it is JSON, but no object")
    return document


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    if len(set(names)) < len(names):
        raise CannotMerge("it has a name twice in one object")
    return dict(pairs)


def _write_json(document: MutableMapping[str, Any], before: str) -> str:
    found = re.search(r"^([ \t]+)\"", before, re.MULTILINE)
    text = json.dumps(document, indent=found[1] if found else 2, ensure_ascii=False)
    return text + ("" if before and not before.endswith("\n") else "\n")


def _read_toml(text: str) -> MutableMapping[str, Any]:
    import tomlkit
    from tomlkit.exceptions import TOMLKitError

    try:
        return tomlkit.parse(text)
    except (TOMLKitError, ValueError, RecursionError) as error:
        line = getattr(error, "line", None)
        raise CannotMerge(f"it is not TOML{f' at line {line}' if line else ''}") from None


def _write_toml(document: MutableMapping[str, Any], before: str) -> str:
    import tomlkit

    return tomlkit.dumps(document)


def _inline(value: Any) -> Any:
    """A table within braces, which can follow any other value; with a heading of its own it could not."""
    if not isinstance(value, dict):
        return value
    import tomlkit

    table = tomlkit.inline_table()
    for name, inner in value.items():
        table[name] = _inline(inner)
    return table


_FORMATS: dict[
    str, tuple[Callable[[str], MutableMapping[str, Any]], Callable[[MutableMapping[str, Any], str], str]]
] = {"json": (_read_json, _write_json), "toml": (_read_toml, _write_toml)}
