"""What docs/ says is so: its code runs, its commands and settings exist, and its messages are in the source.

The site itself is built by `mkdocs build --strict` in .ci/run. After a change of the settings,
`python -m tests.docs.test_docs` writes their table anew.
"""

from __future__ import annotations

import ast
import html
import importlib
import inspect
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from click.testing import CliRunner
from opentelemetry._logs import LogRecord

from otel_letta.cli.main import app
from otel_letta.settings import VARIABLES
from otel_letta.testing import InMemoryLetta
from tests.support.settings import documented

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = {str(path.relative_to(DOCS)): path.read_text(encoding="utf-8") for path in sorted(DOCS.rglob("*.md"))}
MOST_THAT_DO_NOT_RUN = 2

PROVIDER = """\
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

from otel_letta import LettaSpanProcessor

_provider = TracerProvider()
_provider.add_span_processor(LettaSpanProcessor())
trace.set_tracer_provider(_provider)
"""
"""What comes before a block that makes no provider of its own."""

APP = """\
from opentelemetry import trace

with trace.get_tracer("app").start_as_current_span("Import", attributes={"letta.chat.id": "chat-1"}):
    pass
"""
"""The `app.py` of the commands."""


@dataclass(frozen=True)
class Block:
    """A fenced block, and the comments right before it: `no-run: why`, `reports: name=status, …`,
    `agent says: …` (in its first turn)."""

    page: str
    line: int
    language: str
    code: str
    marks: dict[str, str] = field(hash=False)

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks() -> Iterator[Block]:
    fence = re.compile(r"((?:^<!-- [a-z -]+:[^\n]*-->\n)*)^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
    for page, text in PAGES.items():
        for found in fence.finditer(text):
            marks = dict(re.findall(r"<!-- ([a-z -]+): ?(.*?) ?-->", found[1]))
            yield Block(page, text[: found.start(2)].count("\n") + 1, found[2], found[3], marks)


BLOCKS = list(blocks())
PYTHON = [block for block in BLOCKS if block.language == "python"]
OURS = [block for block in PYTHON if "openhands" not in block.marks]
"""Blocks that need no more than we do; the others run in tests/real/openhands."""
COMMANDS = [
    (block, line.partition(" #")[0].strip())
    for block in BLOCKS
    if block.language == "sh"
    for line in block.code.splitlines()
    if line.strip()
]


def zero_code(mark: str) -> list[Block]:
    return [block for block in BLOCKS if block.marks.get("zero code") == mark]


@dataclass(frozen=True)
class Outcome:
    """How a program ended, and what its agent heard: `name=status` of each report."""

    code: int
    output: str
    heard: list[str]


class Runner:
    """Runs each block as a program of its own: in a folder with a `.env` that names an agent of its own."""

    def __init__(self, letta: InMemoryLetta, backend: str, folder: Path) -> None:
        self._letta, self._backend, self._folder = letta, backend, folder

    def __call__(self, block: Block) -> Outcome:
        folder = self._folder / re.sub(r"\W", "_", str(block))
        folder.mkdir()
        agent_id = self._letta.create_agent()
        if "agent says" in block.marks:
            self._letta.answer_next(block.marks["agent says"], agent_id=agent_id)
        (folder / ".env").write_text(
            f"LETTA_BASE_URL={self._letta.base_url}\nLETTA_AGENT_ID={agent_id}\nLETTA_PASSWORD=secret\n"
        )
        environment = {"LETTA_AGENT_ID": agent_id} if block.language == "yaml" else {}
        done = subprocess.run(
            self._command(block, folder),
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
            check=False,
            env={
                "PATH": os.pathsep.join([str(Path(sys.executable).parent), "/usr/bin", "/bin"]),
                "PYTHONDONTWRITEBYTECODE": "1",
                "OTEL_EXPORTER_OTLP_ENDPOINT": self._backend,
                "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
                "OTEL_EXPORTER_OTLP_TIMEOUT": "1",
                "OTEL_METRICS_EXPORTER": "none",
                "OTEL_LOGS_EXPORTER": "none",
                **environment,
            },
        )
        heard = [f"{report.get('task', '')}={report['status']}" for report in self._letta.reports(agent_id)]
        return Outcome(done.returncode, done.stdout, heard)

    def _command(self, block: Block, folder: Path) -> list[str]:
        if block.language == "yaml":
            (folder / "otel.yaml").write_text(block.code.replace("http://localhost:4318", self._backend))
            (block,) = zero_code("config")
        if block.language == "sh":
            (folder / "app.py").write_text(APP)
            return ["sh", "-c", block.code]
        if "\ndef test_" in block.code:
            (folder / "test_block.py").write_text(block.code)
            quick = ["-p", "no:cacheprovider", "-p", "no:hypothesispytest"]
            return [sys.executable, "-m", "pytest", "-q", *quick, "test_block.py"]
        whole = "TracerProvider" in block.code or "configure(" in block.code
        return [sys.executable, "-c", block.code if whole else PROVIDER + block.code]


@pytest.fixture(scope="module")
def outcomes(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[Block, Future[Outcome]]]:
    """The programs of all chosen tests run side by side, since most of their time is spent on starting."""
    chosen = [
        item.callspec.params["block"]
        for item in request.session.items
        if item.path == Path(__file__) and "outcomes" in item.fixturenames
    ]
    with (
        InMemoryLetta(password="secret") as letta,
        InMemoryLetta() as no_backend,  # takes no OTLP, but answers
        ThreadPoolExecutor(2) as pool,
    ):
        run = Runner(letta, no_backend.base_url, tmp_path_factory.mktemp("docs"))
        yield {block: pool.submit(run, block) for block in chosen}


# -- code ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [block for block in OURS if "no-run" not in block.marks], ids=str)
def test_a_python_block_runs_and_reports_what_it_says(block: Block, outcomes: dict[Block, Future[Outcome]]) -> None:
    outcome = outcomes[block].result()
    if "event_name" in block.code and "event_name" not in inspect.signature(LogRecord.__init__).parameters:
        pytest.skip("log records of this OpenTelemetry have no event name")
    assert outcome.code == 0, outcome.output
    if "reports" in block.marks:
        assert ", ".join(outcome.heard) == block.marks["reports"], outcome.output


def test_few_python_blocks_do_not_run_and_they_say_why() -> None:
    left_out = [block for block in PYTHON if "no-run" in block.marks]
    assert len(left_out) <= MOST_THAT_DO_NOT_RUN
    for block in left_out:
        assert block.marks["no-run"]
        compile(block.code, str(block), "exec")


def test_what_the_blocks_import_of_us_exists() -> None:
    for block in PYTHON:
        for node in ast.walk(ast.parse(block.code)):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("otel_letta"):
                module = importlib.import_module(node.module)
                assert all(hasattr(module, alias.name) for alias in node.names), str(block)


# -- commands --------------------------------------------------------------------------------------------------------


def test_the_commands_know_the_options_that_they_are_given(capsys: pytest.CaptureFixture[str]) -> None:
    seen = 0
    for block, command in COMMANDS:
        ours = re.search(r"(?:^|/)otel-letta ((?:setup |tasks )?[\w-]+)|-m (benchmarks)\b", command)
        if ours is None:
            continue
        seen += 1
        if ours[1]:
            done = CliRunner().invoke(app(), [*ours[1].split(), "--help"])
            assert done.exit_code == 0, (str(block), done.output)
            known = done.output
        else:
            with pytest.raises(SystemExit):
                importlib.import_module("benchmarks.__main__").main(["--help"])
            known = capsys.readouterr().out
        for option in re.findall(r"(?<= )--[\w-]+", command):
            assert re.search(rf"(?<![\w-]){option}(?![\w-])", known), (str(block), option)
    assert seen >= 6


@pytest.mark.parametrize("block", [*zero_code("exporter"), *zero_code("live")], ids=str)
def test_a_command_without_code_reports(block: Block, outcomes: dict[Block, Future[Outcome]]) -> None:
    outcome = outcomes[block].result()
    assert (outcome.code, outcome.heard) == (0, ["Import=completed"]), outcome.output


@pytest.mark.frameworks
@pytest.mark.parametrize("block", zero_code("yaml"), ids=str)
def test_a_yaml_file_reports(block: Block, outcomes: dict[Block, Future[Outcome]]) -> None:
    outcome = outcomes[block].result()
    told = [report for report in outcome.heard if not report.endswith("in_progress")]
    assert (outcome.code, told) == (0, ["Import=completed"]), outcome.output


# -- facts -----------------------------------------------------------------------------------------------------------


def settings_table() -> str:
    rows = documented(VARIABLES, "allowed", "help").replace("<", "&lt;")
    return f"| variable | default | allowed | meaning |\n| --- | --- | --- | --- |\n{rows}"


def test_the_table_of_settings_is_the_one_that_the_code_follows() -> None:
    page = PAGES["settings.md"]
    table = page.partition("<!-- settings -->\n")[2].partition("\n<!-- /settings -->")[0]
    assert table == settings_table(), "write it anew: python -m tests.docs.test_docs"


def test_no_page_names_a_variable_that_does_not_exist() -> None:
    known = {variable.env for variable in VARIABLES} | {
        "OTEL_LETTA_LIVE",
        "OTEL_LETTA_LOG_EVENTS",
        "OTEL_LETTA_SERVE_TOKEN",
        "OTEL_LETTA_TEST_CACHE",
        "OTEL_LETTA_TOKEN",
        "OTEL_LETTA_URL",
        "OTEL_LETTA_WEBHOOK_TOKEN",
    }
    for page, text in PAGES.items():
        assert set(re.findall(r"\b(?:OTEL_)?LETTA_[A-Z_]+\b", text)) <= known, page


def test_every_message_and_metric_that_the_pages_quote_is_one_of_ours() -> None:
    said = "\n".join(
        node.value
        for path in (ROOT / "otel_letta").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    )
    tables = [t for page in PAGES.values() for t in re.findall(r"<!-- said -->\n(.*?)<!-- /said -->", page, re.DOTALL)]
    cells = [row.split(" | ")[0] for table in tables for row in table.splitlines()[2:]]
    assert len(cells) > 20
    for cell in cells:
        for message in re.findall(r"`([^`]+)`", cell):
            assert html.unescape(message) in said, message


def test_every_page_is_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert sorted(re.findall(r": ([\w/-]+\.md)$", navigation, re.MULTILINE)) == sorted(PAGES)


def _write_the_table() -> None:
    path = DOCS / "settings.md"
    text = path.read_text(encoding="utf-8")
    new = f"<!-- settings -->\n{settings_table()}\n<!-- /settings -->"
    path.write_text(re.sub(r"<!-- settings -->.*<!-- /settings -->", lambda _: new, text, flags=re.DOTALL))


if __name__ == "__main__":
    _write_the_table()
