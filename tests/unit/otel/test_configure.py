"""`configure()`: one call, before or after the program sets its provider, once or again."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.util._once import Once

import otel_letta
from otel_letta import Reporting, configure
from otel_letta.otel.configure import StandIn
from otel_letta.testing import InMemoryLetta

TASK = {"letta.chat.id": "chat-1"}


@pytest.fixture(autouse=True)
def no_provider(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As in a program that has just started: nobody has set a provider."""
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", None)
    monkeypatch.setattr(trace, "_TRACER_PROVIDER_SET_ONCE", Once())
    yield
    left = trace._TRACER_PROVIDER
    if isinstance(left, TracerProvider):
        left.shutdown()


@pytest.fixture
def options(letta: InMemoryLetta, agent: str) -> dict[str, Any]:
    return {"base_url": letta.base_url, "agent_id": agent, "delivery": "messages"}


def names(letta: InMemoryLetta, agent: str) -> list[str]:
    return [report["task"] for report in letta.reports(agent) if report["status"] == "completed"]


def work(name: str, tracer: trace.Tracer | None = None) -> None:
    with (tracer or trace.get_tracer("app")).start_as_current_span(name, attributes=TASK):
        pass


# -- where the provider comes from -------------------------------------------------------------------------------------


def test_without_a_provider_it_makes_one(letta: InMemoryLetta, agent: str, options: dict[str, Any]) -> None:
    reporting = configure(**options)
    work("Import")
    assert reporting.force_flush()
    assert names(letta, agent) == ["Import"]


def test_the_programs_own_provider_is_used(letta: InMemoryLetta, agent: str, options: dict[str, Any]) -> None:
    provider = TracerProvider()
    trace.set_tracer_provider(provider)
    reporting = configure(**options)
    assert trace.get_tracer_provider() is provider
    work("Import")
    assert reporting.force_flush()
    assert names(letta, agent) == ["Import"]


def test_a_given_provider_is_used_and_no_other(letta: InMemoryLetta, agent: str, options: dict[str, Any]) -> None:
    provider = TracerProvider(shutdown_on_exit=False)
    with configure(tracer_provider=provider, **options):
        work("Import", provider.get_tracer("app"))
        work("nobody's")
    assert names(letta, agent) == ["Import"]
    assert isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)


class Backend:
    """A provider as a program makes it, with a backend of its own."""

    def __init__(self) -> None:
        self.spans = InMemorySpanExporter()
        self.provider = TracerProvider(shutdown_on_exit=False)
        self.provider.add_span_processor(SimpleSpanProcessor(self.spans))

    def names(self) -> list[str]:
        return [span.name for span in self.spans.get_finished_spans()]


def test_a_provider_that_is_set_afterwards_reports_too_and_keeps_its_backend(
    letta: InMemoryLetta, agent: str, options: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    reporting = configure(**options)
    backend = Backend()
    trace.set_tracer_provider(backend.provider)
    assert trace.get_tracer_provider() is backend.provider
    work("Import")
    assert reporting.force_flush()
    assert backend.names() == ["Import"]
    assert names(letta, agent) == ["Import"]
    assert "Overriding" not in caplog.text


@pytest.mark.parametrize("used_before", [False, True])
def test_tracers_that_modules_made_before_go_over_to_it(
    used_before: bool, letta: InMemoryLetta, agent: str, options: dict[str, Any]
) -> None:
    first = trace.get_tracer("before configure()")
    reporting = configure(**options)
    second = trace.get_tracer("before the provider")
    stand_in = trace.get_tracer_provider()
    decorated = second.start_as_current_span("decorated", attributes=TASK)(lambda: None)
    if used_before:
        work("early", second)
    backend = Backend()
    trace.set_tracer_provider(backend.provider)
    work("first", first)
    work("second", second)
    work("third", stand_in.get_tracer("through the old provider"))
    decorated()
    assert reporting.force_flush()
    assert backend.names() == ["first", "second", "third", "decorated"]
    assert names(letta, agent) == [*(["early"] if used_before else []), "first", "second", "third", "decorated"]


def test_the_program_can_set_its_provider_only_once_as_ever(
    options: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    configure(**options)
    trace.set_tracer_provider(own := TracerProvider(shutdown_on_exit=False))
    trace.set_tracer_provider(TracerProvider(shutdown_on_exit=False))
    assert trace.get_tracer_provider() is own
    assert "Overriding of current TracerProvider is not allowed" in caplog.text


def test_the_stand_in_has_what_tracers_of_the_sdk_have(options: dict[str, Any]) -> None:
    configure(**options)
    tracer: Any = trace.get_tracer("app")
    assert tracer.resource.attributes["service.name"]
    with pytest.raises(AttributeError):
        tracer.no_such_thing  # noqa: B018


def test_without_the_apis_private_names_a_provider_is_set_in_the_ordinary_way(
    letta: InMemoryLetta, agent: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    was_set: list[Any] = []
    monkeypatch.setattr(trace, "_TRACER_PROVIDER_SET_ONCE", None)
    monkeypatch.setattr(trace, "set_tracer_provider", was_set.append)
    reporting = configure(**options)
    (provider,) = was_set
    assert isinstance(provider, StandIn)
    work("Import", provider.get_tracer("app"))
    assert reporting.force_flush()
    assert names(letta, agent) == ["Import"]


def test_a_provider_of_another_kind_is_one_error(caplog: pytest.LogCaptureFixture, options: dict[str, Any]) -> None:
    trace.set_tracer_provider(trace.NoOpTracerProvider())
    reporting = configure(**options)
    assert not reporting.active
    (record,) = caplog.records
    assert "NoOpTracerProvider" in record.getMessage()
    assert "NoOpTracerProvider" in str(reporting.status())
    assert reporting.force_flush()
    reporting.shutdown()


# -- again -------------------------------------------------------------------------------------------------------------


def test_called_twice_it_changes_nothing(letta: InMemoryLetta, agent: str, options: dict[str, Any]) -> None:
    first, second = configure(**options), configure(**options)
    assert first is second
    assert configure() is first
    work("Import")
    assert first.force_flush()
    assert names(letta, agent) == ["Import"]


def test_before_and_after_the_provider_is_set_it_is_one(
    options: dict[str, Any], letta: InMemoryLetta, agent: str
) -> None:
    first = configure(**options)
    trace.set_tracer_provider(TracerProvider())
    assert configure(**options) is first
    work("Import")
    assert first.force_flush()
    assert names(letta, agent) == ["Import"]


def test_with_other_settings_the_new_ones_count(letta: InMemoryLetta, agent: str, options: dict[str, Any]) -> None:
    other = letta.create_agent()
    first = configure(**options)
    second = configure(**{**options, "agent_id": other})
    assert not first.active
    work("Import")
    assert second.force_flush()
    assert (names(letta, agent), names(letta, other)) == ([], ["Import"])


def test_a_mistake_in_a_later_call_leaves_the_earlier_settings_in_force(
    letta: InMemoryLetta, agent: str, options: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    first = configure(**options)
    wrong = configure(**{**options, "delivery": "sometimes"})
    assert not wrong.active
    assert "OTEL_LETTA_DELIVERY" in str(wrong.status())
    work("Import")
    assert first.force_flush()
    assert names(letta, agent) == ["Import"]
    assert "the earlier call of configure() stay in force" in caplog.text


def test_after_the_env_file_was_mended_it_works(
    letta: InMemoryLetta, agent: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / ".env"
    file.write_text(f"LETTA_BASE_URL={letta.base_url}\n")
    assert not configure().active
    assert "No Letta agent is named" in caplog.text
    file.write_text(f"LETTA_BASE_URL={letta.base_url}\nLETTA_AGENT_ID={agent}\n")
    reporting = configure()
    work("Import")
    assert reporting.force_flush()
    other = letta.create_agent()
    file.write_text(f"LETTA_BASE_URL={letta.base_url}\nLETTA_AGENT_ID={other}\n")
    assert configure() is not reporting
    work("Export")
    assert configure().force_flush()
    assert (names(letta, agent), names(letta, other)) == (["Import"], ["Export"])


def test_after_its_shutdown_it_can_be_called_again(letta: InMemoryLetta, agent: str, options: dict[str, Any]) -> None:
    with configure(**options) as first:
        work("Import")
    second = configure(**options)
    assert (first.active, second.active) == (False, True)
    work("Export")
    assert second.force_flush()
    assert names(letta, agent) == ["Import", "Export"]


def test_what_is_open_at_a_shutdown_fails(letta: InMemoryLetta, agent: str, options: dict[str, Any]) -> None:
    reporting = configure(**options)
    span = trace.get_tracer("app").start_span("Import", attributes=TASK)
    assert reporting.force_flush()
    reporting.shutdown()
    span.end()
    assert [r["status"] for r in letta.reports(agent)] == ["in_progress", "failed"]


def test_the_six_lines_are_a_whole_program(letta: InMemoryLetta, agent: str, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text(f"LETTA_BASE_URL={letta.base_url}\nLETTA_AGENT_ID={agent}\n")
    program = (
        "import otel_letta\notel_letta.configure()\nwith otel_letta.task('Import') as t:\n    t.result('3 rows')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env={}, capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    (report,) = letta.reports(agent)
    assert (report["task"], report["status"], report["result"]) == ("Import", "completed", "3 rows")


# -- the handle --------------------------------------------------------------------------------------------------------


def test_its_status_says_where_reports_go_and_how_many(
    letta: InMemoryLetta, agent: str, options: dict[str, Any]
) -> None:
    reporting = configure(**options)
    before = reporting.status()
    assert before.ok
    assert "no task yet, in 0 ended spans" in str(before)
    work("Import")
    assert reporting.force_flush()
    status = reporting.status()
    assert status.open_tasks == 0
    assert (status.agent_id, status.base_url, status.delivery) == (agent, letta.base_url, "messages")
    # The start may have been replaced by the end before it was sent.
    assert (status.reports, status.waiting, status.messages) == (2, 0, letta.turns)
    assert status.turns == letta.turns
    assert status.to_dict()["ok"] is True
    assert f"reports to {agent} at {letta.base_url} (messages)" in str(status)
    assert reporting._repr_mimebundle_() == {"text/plain": str(reporting.status())}
    reporting.shutdown()
    assert "was shut down" in str(reporting.status())


def test_its_status_knows_what_has_just_ended(options: dict[str, Any]) -> None:
    reporting = configure(**{**options, "poll_interval": 60})
    span = trace.get_tracer("app").start_span("Import", attributes=TASK)
    assert reporting.status().open_tasks == 1
    span.end()
    status = reporting.status()
    assert (status.open_tasks, status.reports) == (0, 2)


def test_its_status_says_what_keeps_reports_from_getting_through(letta: InMemoryLetta, options: dict[str, Any]) -> None:
    reporting = configure(**{**options, "agent_id": "agent-00000000-0000-4000-8000-000000000000"})
    work("Import")
    assert not reporting.force_flush()
    status = reporting.status()
    assert not status.ok
    assert status.active
    assert any("agent" in problem.lower() for problem in status.problems), status


def test_reprs_name_the_agent_the_server_and_the_mode(
    letta: InMemoryLetta, agent: str, options: dict[str, Any]
) -> None:
    reporting = configure(**options)
    with trace.get_tracer("app").start_as_current_span("Import", attributes=TASK):
        assert reporting.force_flush()
        shown = f"LettaSpanProcessor {agent} at {letta.base_url}, messages, 1 open"
        assert repr(reporting._processor) == f"<{shown}>"
        assert repr(reporting) == f"<Reporting: {shown}>"
    reporting.shutdown()
    assert repr(reporting._processor) == f"<LettaSpanProcessor {agent} at {letta.base_url}, shut down>"
    exporter = otel_letta.LettaSpanExporter()
    assert repr(exporter).startswith("<LettaSpanExporter, does nothing: No Letta agent is named")
    assert repr(Reporting(None, "why")) == "<Reporting: does nothing: why>"


def test_no_repr_and_no_status_shows_a_secret(letta: InMemoryLetta, agent: str, options: dict[str, Any]) -> None:
    reporting = configure(**options, password="hunter2-correct-horse")
    shown = repr(reporting) + repr(reporting._processor) + str(reporting.status()) + repr(reporting.status().to_dict())
    assert "hunter2" not in shown


# -- it works, in one line ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("delivery", "how"), [("messages", "as a message"), ("board", "on the board task_progress")])
def test_the_first_report_is_one_line_at_info(
    delivery: str, how: str, letta: InMemoryLetta, caplog: pytest.LogCaptureFixture
) -> None:
    agent = letta.create_agent("builder")
    caplog.set_level(logging.INFO, "otel_letta")
    with configure(base_url=letta.base_url, agent_id=agent, delivery=delivery, board_interval=0):  # type: ignore[arg-type]
        work("Import")
        work("Export")
    lines = [record.getMessage() for record in caplog.records if record.getMessage().startswith("it works")]
    assert lines == [
        f'it works: {letta.base_url} took the first report, {how}, for the agent "builder" ({agent}) '
        f"(delivery: {delivery})"
    ]
