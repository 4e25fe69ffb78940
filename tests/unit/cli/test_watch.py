"""`otel-letta watch`: from a receiver, from a board, and what it says where there is neither."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from rich.console import Console
from rich.text import Text

from otel_letta.cli.main import app
from otel_letta.cli.watch import command, picture
from otel_letta.cli.watch.places import Board, Trouble
from otel_letta.otel.processor import LettaSpanProcessor
from otel_letta.report import ProgressReport, TaskStatus
from otel_letta.serve.tasks import TaskList
from otel_letta.testing import InMemoryLetta
from tests.support.loopback import answering
from tests.support.otlp_sender import serving

HOSTILE = "[bold red]x[/]\x1b[2J\nsecond \u202eline"


def run(*arguments: str, **environ: str) -> Result:
    return CliRunner().invoke(app(), ["watch", *arguments], env={"COLUMNS": "140", **environ})


def report(task: str, **more: Any) -> ProgressReport:
    return ProgressReport(**{"task_id": task, "name": task, **more})


def document(*reports: ProgressReport, troubles: tuple[str, ...] = ()) -> dict[str, Any]:
    tasks = TaskList("agent-1")
    for each in reports:
        tasks.take(each)
    return {**tasks.show().to_dict(), "troubles": list(troubles), "now": 1_000.0, "note": ""}


def drawn(found: dict[str, Any], width: int = 140, height: int = 40) -> list[str]:
    console = Console(width=width, height=height, markup=False, emoji=False, highlight=False)
    with console.capture() as captured:
        console.print(picture.tasks(found, "http://here", width, height))
    return captured.get().splitlines()


SOME = (
    report("Import", content="3 of 9", progress=0.333),
    report("Deploy", content="needs your yes", waiting=True),
    report("Count", result="42 rows", status=TaskStatus.COMPLETED, duration=61.0),
    report("Break", error="ValueError: no", status=TaskStatus.FAILED),
)


@pytest.mark.parametrize("width", [80, 140])
def test_what_waits_comes_first_and_nothing_is_wider_than_the_terminal(width: int) -> None:
    lines = drawn(document(*SOME, troubles=("2 reports for a: HTTP 401",)), width)
    text = "\n".join(lines)
    places = [
        text.index(part) for part in ("HTTP 401", "Deploy", "needs your yes", "Import", "33%", "Break", "42 rows")
    ]
    assert places == sorted(places)
    assert max(map(len, lines)) <= width
    assert "1 waiting, 1 under way, 2 ended" in lines[0]


@pytest.mark.parametrize(("width", "height"), [(80, 24), (140, 24), (80, 10), (20, 5)])
def test_it_fits_the_terminal_and_counts_the_rest(width: int, height: int) -> None:
    reports = [report(f"t{number}") for number in range(100)]
    lines = drawn(document(*reports, *SOME), width, height)
    assert len(lines) <= height
    assert any("more" in line for line in lines)


def test_texts_are_neither_markup_nor_commands_to_the_terminal() -> None:
    text = "\n".join(drawn(document(report(HOSTILE, content=HOSTILE, chat_id=HOSTILE), troubles=(HOSTILE,)), 140))
    assert "[bold red]x[/]" in text
    assert not {"\x1b", "\u202e"} & set(text)


@pytest.mark.parametrize(
    "task", [{}, {"name": 3, "state": None, "progress": "x", "started": "y"}, {"progress": 1e300, "seconds": -1e300}, 7]
)
def test_a_document_of_another_version_is_drawn_as_far_as_it_can_be(task: Any) -> None:
    assert drawn({"waiting": [task], "working": [], "ended": [], "troubles": [None]})


def test_a_board_is_shown_as_it_stands() -> None:
    console = Console(width=80, markup=False)
    with console.capture() as captured:
        console.print(picture.boards([Board("tasks", ["In progress: 1", "[█░] 50% a: " + "x" * 200])], "agent-1", 20))
    assert "[█░] 50% a" in captured.get()
    assert max(map(len, captured.get().splitlines())) <= 80


# -- the command -------------------------------------------------------------------------------------------------------


def test_from_a_receiver(letta: InMemoryLetta, agent: str, tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text("# ours\nfirst\nsecond\n")
    with serving(letta.base_url, agent, token_file=tmp_path / "tokens") as service:
        for each in SOME:
            service.intake.tasks.take(each)
        url = f"http://127.0.0.1:{service.options.port}"
        refused = run(url)
        assert refused.exit_code == 1
        assert "needs a token" in refused.output
        for result in (
            run(f"{url}/", "--token-file", str(tmp_path / "tokens")),
            run(url, OTEL_LETTA_SERVE_TOKEN="second"),
        ):
            assert result.exit_code == 0
            assert "needs your yes" in result.output


def test_from_the_board_of_an_agent(letta: InMemoryLetta, agent: str) -> None:
    from opentelemetry.sdk.trace import TracerProvider

    processor = LettaSpanProcessor(base_url=letta.base_url, agent_id=agent, board_interval=0)
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(processor)
    environ = {"LETTA_BASE_URL": letta.base_url, "LETTA_AGENT_ID": agent}
    try:
        assert "no board of otel_letta" in run("--board", **environ).output
        with provider.get_tracer("t").start_as_current_span("a <b>", attributes={"letta.chat.id": "c"}):
            assert processor.force_flush(30_000)
            result = run("--board", **environ)
            assert result.exit_code == 0
            assert "In progress: 1" in result.output
            assert "a <b> (chat c)" in result.output
            other = run("--agent", letta.create_agent(), **environ)
            assert "no board of otel_letta" in other.output
    finally:
        provider.shutdown()


def test_where_no_receiver_runs_the_board_is_read(
    letta: InMemoryLetta, agent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("otel_letta.cli.watch.command._HERE", "http://127.0.0.1:9")
    result = run(LETTA_BASE_URL=letta.base_url, LETTA_AGENT_ID=agent)
    assert result.exit_code == 0
    assert f"Board of {agent}" in result.output


def test_where_there_is_neither_it_says_what_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("otel_letta.cli.watch.command._HERE", "http://127.0.0.1:9")
    result = run()
    assert result.exit_code == 1
    assert "Nothing listens on http://127.0.0.1:9" in result.output
    assert "no agent whose board" in result.output


@pytest.mark.parametrize(
    ("status", "body", "text"),
    [
        (404, b"", "no otel-letta serve"),
        (200, b"<html>", "no otel-letta serve"),
        (200, b"[]", "no otel-letta serve"),
        (200, json.dumps({"waiting": 1}).encode(), "no otel-letta serve"),
        (200, b"x" * 5_000_000, "too much"),
        (503, b"", "HTTP 503"),
    ],
)
def test_what_is_no_receiver_is_named(status: int, body: bytes, text: str) -> None:
    with answering(status, body) as url:
        result = run(url)
    assert result.exit_code == 1
    assert text in result.output


@pytest.mark.parametrize("url", ["nonsense", "ftp://x", "http://[", ""])
def test_a_bad_address_is_said_to_be_one(url: str) -> None:
    result = run(url or "http://")
    assert result.exit_code == 1
    assert "Traceback" not in result.output
    assert isinstance(result.exception, SystemExit)


def test_a_url_and_a_board_do_not_go_together() -> None:
    assert run("http://x", "--board").exit_code == 2


def test_what_cannot_be_read_for_a_while_stays_as_it_was_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    answers: list[Any] = [Text("as it was"), Trouble("gone for a moment"), Text("as it is now"), KeyboardInterrupt()]

    def draw(height: int) -> Text:
        answer = answers.pop(0)
        if isinstance(answer, BaseException):
            raise answer
        return answer

    file = StringIO()
    with pytest.raises(SystemExit) as ended:
        command._follow(draw, Console(file=file, force_terminal=True, width=80, height=10), 0.0)
    assert ended.value.code == 0
    frames = file.getvalue().split("as it was")
    assert "gone for a moment; trying again" in frames[1]
    assert "as it is now" in frames[2]
