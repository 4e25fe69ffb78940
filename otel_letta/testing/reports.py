"""The progress reports in what an agent was sent."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any
from xml.etree import ElementTree

_REPORT = re.compile(
    r"""<task-progress(?:\s+[\w:.-]+=(?:"[^"]*"|'[^']*'))*\s*(?:/>|>.*?</task-progress\s*>)""", re.DOTALL
)


def reports_in(contents: Iterable[str]) -> list[dict[str, Any]]:
    """Return each as in `InMemoryLetta.reports`, in order."""
    return [_report(found.group()) for content in contents for found in _REPORT.finditer(content)]


def _report(element: str) -> dict[str, Any]:
    root = ElementTree.fromstring(element)  # noqa: S314 (sent on loopback by the application under test)
    return {**root.attrib, "content": (root.text or "").strip(), "result": root.findtext("result")}
