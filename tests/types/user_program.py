"""A program of a user, as a type checker sees it: CI runs mypy and pyright over it, both strict.

A line with two marks is a mistake that both have to find: an unused mark is an error itself.
"""

import asyncio
from collections.abc import AsyncIterator

import otel_letta
from otel_letta import (
    Answer,
    Instruction,
    LettaReporter,
    LettaSpanExporter,
    LettaSpanProcessor,
    ProgressReport,
    Reporting,
    Settings,
    Status,
    TaskStatus,
    await_instruction,
    report_progress,
    task,
    track,
    wait_for_instruction,
)

reporting: Reporting = otel_letta.configure(agent_id="agent-1", delivery="board", board_interval=5, wake_on_wait=True)
otel_letta.configure(delivery="sometimes")  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
otel_letta.configure(agent="agent-1")  # type: ignore[call-arg] # pyright: ignore[reportCallIssue]

status: Status = reporting.status()
problems: tuple[str, ...] = status.problems
ok: bool = status.ok and reporting.active

processor = LettaSpanProcessor(base_url="http://localhost:8283", server="rest", wake_budget=10)
exporter = LettaSpanExporter(settings=Settings.resolve(agent_id="agent-1"))
delivered: bool = processor.force_flush() and exporter.force_flush(timeout_millis=100)

with task("Import", chat_id="chat-1") as t:
    for row in t.track([1, 2, 3]):
        t.progress(row / 3, "rows")
    t.result("3 rows")
    said: Instruction | None = wait_for_instruction(t, 60, question="which?")
    same: Instruction | None = wait_for_instruction(t.span, 0.5)
    wait_for_instruction(t)  # type: ignore[call-arg] # pyright: ignore[reportCallIssue]
    t.content(None)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]


@task("Add", chat_id="chat-2")
def add(first: int, second: int) -> int:
    report_progress(0.5)
    return first + second


@task
async def fetch(url: str) -> bytes:
    return url.encode()


async def ask() -> str:
    with task("Ask") as t:
        said = await await_instruction(t, 60, question="which?")
        return "" if said is None or said.action == "reject" else said.text


total: int = add(1, 2)
add("1", 2)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]

names: list[str] = [name.upper() for name in track(["a", "b"], "Names")]


async def rows() -> AsyncIterator[float]:
    yield 1.0


async def main() -> None:
    body: bytes = await fetch("http://example")
    async for row in track(rows(), "Rows", total=1):
        print(row + 1.0, body)
    async with LettaReporter(agent_id="agent-1") as reporter:
        answer = await reporter.send_progress_report("chat-1", "msg-1", "half", 0.5, "in_progress")
        await reporter.send_progress_report("chat-1", "msg-1", "done", 1.0, TaskStatus.COMPLETED)
        await reporter.send_progress_report("c", "m", "x", 1.0, "done")  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
        print(answer["stop_reason"])


def on_answer(report: ProgressReport, answer: Answer) -> None:
    asked: tuple[Instruction, ...] = answer.instructions
    total: int = answer.usage.get("total_tokens", 0)
    print(report.name, answer.text, answer.tools, [each.text for each in asked], total)


async def on_answer_async(report: ProgressReport, answer: Answer) -> None:
    print(report.name, answer.text)


def on_report(report: ProgressReport) -> None:
    print(report.name)


otel_letta.configure(on_answer=on_answer)
LettaSpanProcessor(agent_id="agent-1", on_answer=on_answer_async)
LettaSpanExporter(
    agent_id="agent-1", on_answer=lambda report, answer: print(report.name, answer.text), answer_spans=True
)
LettaReporter(agent_id="agent-1", on_answer=on_answer, answer_reasoning=True)
LettaReporter(agent_id="agent-1", on_answer=on_report)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]

report = ProgressReport(chat_id="chat-1", content="half", progress=0.5)
terminal: bool = report.status.is_terminal
asyncio.run(main())
