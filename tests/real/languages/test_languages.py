"""Programs in other languages, with the SDK of each, report by way of ``otel-letta serve``::

    python -m pytest -m languages

They are those of `examples/languages`, built as the README there says. They need Node.js, Go, and a JDK with Maven; the
first run fetches their dependencies, whose versions are pinned, from the registries.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from otel_letta.testing import InMemoryLetta
from tests.support.languages import BLOCKS, LANGUAGES, Example, build
from tests.support.waiting import until
from tests.unit.serve.test_durable import Program, program

pytestmark = pytest.mark.languages

PATIENCE = 120.0


@pytest.fixture(scope="module", params=LANGUAGES)
def example(request: pytest.FixtureRequest) -> Example:
    return build(request.param)


@pytest.fixture
def receiver(letta: InMemoryLetta, agent: str) -> Iterator[Program]:
    """A receiver that reports to `agent`."""
    with program(letta, agent, OTEL_LETTA_BOARD_INTERVAL="0.1") as running:
        yield running


@contextmanager
def started(example: Example, receiver: Program, *files: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [*example.command, *map(str, files)],
        cwd=example.folder,
        env={**os.environ, "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{receiver.port}"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def end_of(letta: InMemoryLetta, agent: str) -> dict[str, Any]:
    """Return the report of the end, when it has come; there is no other one."""
    assert until(lambda: letta.reports(agent), PATIENCE)
    (report,) = letta.reports(agent)
    return report


def test_every_example_is_in_the_readme() -> None:
    assert sorted(BLOCKS) == LANGUAGES


def test_progress_comes_while_the_program_works_and_the_result_with_its_end(
    example: Example, receiver: Program, letta: InMemoryLetta, agent: str, tmp_path: Path
) -> None:
    january, february, march = (tmp_path / f"{name}.csv" for name in ("january", "february", "march"))
    january.write_text("1\n2\n")
    march.write_text("3\n")
    os.mkfifo(february)  # the program waits in it until the test has seen what it wants to see
    with started(example, receiver, january, february, march) as process:
        assert until(lambda: "file 2 of 3" in (letta.board(agent) or "") or process.poll() is not None, PATIENCE)
        board = letta.board(agent) or ""
        assert process.poll() is None, process.communicate()
        assert "In progress: 1" in board
        assert "33% Import files (chat chat-123)" in board
        assert not letta.reports(agent)
        february.write_text("4\n5\n6\n")
        output, _ = process.communicate(timeout=PATIENCE)
    assert (process.returncode, output) == (0, "")
    end = end_of(letta, agent)
    told = [end[word] for word in ("task", "status", "chat_id", "message_id", "progress", "result", "service")]
    assert told == ["Import files", "completed", "chat-123", "msg-456", "100%", "6 rows", "importer"]
    assert until(lambda: "In progress: none" in (letta.board(agent) or ""), PATIENCE)


def test_a_failure_is_reported_with_its_reason(
    example: Example, receiver: Program, letta: InMemoryLetta, agent: str, tmp_path: Path
) -> None:
    (tmp_path / "january.csv").write_text("1\n2\n")
    with started(example, receiver, tmp_path / "january.csv", tmp_path / "missing.csv") as process:
        output, _ = process.communicate(timeout=PATIENCE)
    assert (process.returncode, output) == (1, "")
    end = end_of(letta, agent)
    assert [end[word] for word in ("task", "status", "chat_id")] == ["Import files", "failed", "chat-123"]
    assert end["result"] is None
    assert "missing.csv" in end["error"], end
    # Its last span and events left at once, by two requests: whichever came first, no task is left.
    receiver.process.terminate()
    _, said = receiver.process.communicate(timeout=PATIENCE)
    assert "open at shutdown" not in said
    assert letta.reports(agent) == [end]
