"""The tables of the pages about agents: which of the recorded runs are reported as they were.

They follow from ``expected.json`` and the list of what is still wrong. `python -m tests.support.recorded_agents` writes
both the list and the tables anew.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from tests.support.recorded_agents import CASES, EXPECTED, not_yet

__all__ = ["FAMILIES", "PAGES", "page_with_table", "table", "write_tables"]

DOCS = Path(__file__).parents[2] / "docs"
PAGES = {"coding agents": DOCS / "uses" / "coding-agents.md", "frameworks": DOCS / "uses" / "frameworks.md"}

FAMILIES = {
    "coding agents": {
        "claude_code": "Claude Code 2.1.332",
        "claude_code_2_1_197": "Claude Code 2.1.197",
        "codex": "Codex 0.171",
        "copilot_cli": "Copilot CLI 1.0.102",
        "gemini_cli": "Gemini CLI 0.61",
        "opencode": "opencode 1.18, `run`",
        "opencode_serve": "opencode 1.18, `serve`",
    },
    "frameworks": {
        "ai_sdk_agent_js": "AI SDK 7, its agent (JS)",
        "ai_sdk_js": "AI SDK 7 (JS)",
        "ai_sdk_stream_js": "AI SDK 7, streams (JS)",
        "ai_sdk_v5": "AI SDK 5 (JS)",
        "langchain_js_oi": "LangChain.js, OpenInference",
        "openai_agents_js_oi": "OpenAI Agents JS, OpenInference",
        "voltagent_js": "VoltAgent 2 (JS)",
        "adk_go": "Google ADK 2 (Go)",
        "genkit_go": "Genkit 1.4 (Go)",
        "eino_react": "Eino 0.7 (Go)",
        "openai_go_bare": "OpenAI, OpenInference (Go)",
        "openllmetry_go": "OpenAI, OpenLLMetry (Go)",
        "rig": "rig 0.44 (Rust)",
        "adk_rs": "adk-rust 2.3 (Rust)",
        "adk_java": "Google ADK 1.8 (Java)",
        "spring_ai": "Spring AI 2.0",
        "spring_ai_11": "Spring AI 1.1",
        "spring_ai_agent": "Spring AI, Java agent alone",
        "spring_ai_alibaba": "Spring AI Alibaba 1.1",
        "lc4j_oi": "LangChain4j 1.19, OpenInference",
        "lc4j_oimodel": "LangChain4j, its model listener",
        "lc4j_obs": "LangChain4j, Micrometer",
        "lc4j_agent": "LangChain4j, Java agent alone",
        "quarkus_lc4j": "Quarkus LangChain4j 1.10",
        "openai_java": "OpenAI, Java agent",
        "koog_java": "Koog (Java)",
    },
}
_COLUMNS = ("completed", "failed", "stopped", "waits", "no task", "with logs")


def table(kind: str) -> str:
    """Render the table of a page, without its last line break."""
    rows = [(title, _cells(family)) for family, title in FAMILIES[kind].items()]
    columns = [column for column in _COLUMNS if any(column in cells for _, cells in rows)]
    lines = [f"| recorded | {' | '.join(columns)} |", f"| {' | '.join(['---'] * (len(columns) + 1))} |"]
    lines += [f"| {title} | {' | '.join(cells.get(column, '–') for column in columns)} |" for title, cells in rows]
    return "\n".join(lines)


def _cells(family: str) -> dict[str, str]:
    names = [name for name in EXPECTED if name.rpartition(".")[0] == family and EXPECTED[name].get("knowable", True)]
    runs: dict[str, list[str]] = defaultdict(list)
    for name in names:
        runs[_kind(name)].append(name)
        if f"{name}+logs" in CASES:
            runs["with logs"].append(f"{name}+logs")
    return {column: _share(found) for column, found in runs.items()}


def _kind(name: str) -> str:
    expected = EXPECTED[name]
    verdict = expected["verdict"]
    if "in_progress" in verdict:
        return "waits"
    if not expected["tasks"]:
        return "no task"
    if any(word in verdict for word in ("cancel", "stopped", "lost")):
        return "stopped"
    return "failed" if "failed" in expected["ends"] else "completed"


def _share(names: Iterable[str]) -> str:
    names, wrong = list(names), not_yet()
    right = sum(name not in wrong for name in names)
    return "no" if not right else "yes" if right == len(names) else f"{right} of {len(names)}"


def page_with_table(kind: str) -> tuple[str, str]:
    """Return a page as it is, and as it is with its table made anew."""
    text = PAGES[kind].read_text("utf-8")
    new = f"<!-- recorded: {kind} -->\n{table(kind)}\n<!-- /recorded -->"
    return text, re.sub(rf"<!-- recorded: {kind} -->.*?<!-- /recorded -->", lambda _: new, text, flags=re.DOTALL)


def write_tables() -> None:
    for kind, path in PAGES.items():
        path.write_text(page_with_table(kind)[1], "utf-8")
