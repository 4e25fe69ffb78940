"""What an attack on the first version found: each of these lost, doubled or misplaced something."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.trace import StatusCode

import otel_letta.delivery.worker as worker_module
from otel_letta import LettaSpanExporter, LettaSpanProcessor
from otel_letta.testing import InMemoryLetta
from tests.support.waiting import until

QUICK: dict[str, Any] = {"poll_interval": 0.02, "board_interval": 0.05, "message_interval": 0.0}


def live(letta: InMemoryLetta, agent: str, **options: Any) -> tuple[TracerProvider, LettaSpanProcessor]:
    provider = TracerProvider(shutdown_on_exit=False)
    processor = LettaSpanProcessor(**{"base_url": letta.base_url, "agent_id": agent, **QUICK, **options})
    provider.add_span_processor(processor)
    return provider, processor


def test_an_id_that_runs_again_after_a_restart_ends_again_even_if_the_answer_is_lost(letta: InMemoryLetta) -> None:
    """The second end must not be found in the first one's message when it is looked up after the silence."""
    agent = letta.create_agent()
    for run in (1, 2):
        provider, processor = live(letta, agent)
        if run == 2:
            letta.drop_next(method="POST", path="/messages")
        span = provider.get_tracer("t").start_span("Import", attributes={"letta.task.id": "nightly"})
        if run == 1:
            span.set_status(StatusCode.ERROR, "boom")
        span.end()
        assert processor.force_flush(60_000)
        provider.shutdown()
    assert [report["status"] for report in letta.reports(agent)] == ["failed", "completed"]


def test_programs_with_temporary_folders_of_their_own_do_not_share_a_block(
    letta: InMemoryLetta, tmp_path: Path
) -> None:
    """Containers and services with a private /tmp have one host name and cannot see each other's locks."""
    agent = letta.create_agent()
    code = """
import sys
from opentelemetry.sdk.trace import TracerProvider
from otel_letta import LettaSpanProcessor
provider = TracerProvider(shutdown_on_exit=False)
processor = LettaSpanProcessor(delivery="board")
provider.add_span_processor(processor)
span = provider.get_tracer("t").start_span(sys.argv[1], attributes={"letta.chat.id": "c"})
assert processor.force_flush(60_000)
print("written", flush=True)
sys.stdin.read()
"""
    programs = []
    for name in ("first", "second"):
        folder = tmp_path / name
        folder.mkdir()
        program = subprocess.Popen(
            [sys.executable, "-c", code, name],
            env={"TMPDIR": str(folder), "LETTA_BASE_URL": letta.base_url, "LETTA_AGENT_ID": agent, "PATH": ""},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert program.stdout is not None
        assert program.stdout.readline() == "written\n"
        programs.append(program)
    boards = [letta.board(agent), letta.board(agent, "task_progress_2")]
    for program in programs:
        program.communicate(timeout=30)
    assert ["first" in (boards[0] or ""), "second" in (boards[1] or "")] == [True, True]


def test_an_exported_task_that_outlives_its_plain_parent_does_not_wait_for_it(letta: InMemoryLetta) -> None:
    agent = letta.create_agent()
    provider = TracerProvider(shutdown_on_exit=False)
    exporter = LettaSpanExporter(base_url=letta.base_url, agent_id=agent)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = provider.get_tracer("t")
    request = tracer.start_span("GET /jobs")
    job = tracer.start_span("Job", context=trace.set_span_in_context(request), attributes={"letta.task.name": "Job"})
    request.end()
    job.end()
    assert exporter.force_flush(60_000)
    assert [report["task"] for report in letta.reports(agent)] == ["Job"]
    provider.shutdown()


def test_a_task_that_outlives_its_providers_shutdown_keeps_its_own_verdict(letta: InMemoryLetta) -> None:
    agent = letta.create_agent()
    first, _ = live(letta, agent)
    second, other = live(letta, agent)
    span = first.get_tracer("t").start_span("long", attributes={"letta.chat.id": "c"})
    first.shutdown()
    span.end()
    assert other.force_flush(60_000)
    assert [report["status"] for report in letta.reports(agent)] == ["completed"]
    second.shutdown()


def test_one_providers_slow_shutdown_leaves_a_later_one_its_time(
    letta: InMemoryLetta, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("otel_letta.pipeline.pipeline._ONE_EXIT", 0.0)
    agent = letta.create_agent()
    first, _ = live(letta, agent, shutdown_timeout=1)
    second, processor = live(letta, agent, shutdown_timeout=1)
    with letta.hold(agent):
        first.get_tracer("t").start_span("slow", attributes={"letta.chat.id": "c"}).end()
        letta.wait_for(lambda: letta.in_flight(agent) == 1)
        first.shutdown()  # takes all of its second
    letta.turn_seconds = 0.2
    second.get_tracer("t").start_span("later", attributes={"letta.chat.id": "c"}).end()
    second.shutdown()
    assert processor.stats()["dropped"] == {}
    assert [report["task"] for report in letta.reports(agent)] == ["slow", "later"]


def test_the_board_follows_a_corrected_agent_id(tmp_path: Path) -> None:
    with InMemoryLetta(password="right") as letta:
        agent = letta.create_agent()
        settings = tmp_path / "settings.env"

        def write(agent_id: str) -> None:
            settings.write_text(f"LETTA_BASE_URL={letta.base_url}\nLETTA_AGENT_ID={agent_id}\nLETTA_PASSWORD=right\n")

        write("agent-11111111-1111-4111-8111-111111111111")
        provider = TracerProvider(shutdown_on_exit=False)
        processor = LettaSpanProcessor(dotenv_path=settings, probe_interval=0.1, **QUICK)
        provider.add_span_processor(processor)
        span = provider.get_tracer("t").start_span("Job", attributes={"letta.chat.id": "c"})
        letta.wait_for(lambda: any("11111111" in request.path for request in letta.requests))
        write(agent)
        assert letta.wait_for(lambda: "Job" in (letta.board(agent) or ""))
        span.end()
        assert processor.force_flush(60_000)
        provider.shutdown()


def test_a_start_that_waits_in_another_conversation_is_not_told_after_the_end(letta: InMemoryLetta) -> None:
    agent = letta.create_agent()
    conversation = letta.create_conversation(agent)
    provider, processor = live(letta, agent, delivery="messages")
    tracer = provider.get_tracer("t")
    with letta.hold(agent):
        other = tracer.start_span("other", attributes={"letta.chat.id": "z"})
        letta.wait_for(lambda: letta.in_flight(agent) == 1)
        span = tracer.start_span("Job", attributes={"letta.task.name": "Job"})
        assert until(lambda: processor.stats()["open_tasks"] == 2, 60)  # its start is read, and waits for the held lane
        span.set_attribute("letta.chat.id", conversation)
        span.end()
        assert until(lambda: processor.stats()["open_tasks"] == 1, 60)
    other.end()
    assert processor.force_flush(60_000)
    provider.shutdown()
    told = [(m.conversation_id, 'task="Job"' in m.content, "started" in m.content) for m in letta.messages(agent)]
    assert (conversation, True) in [entry[:2] for entry in told]
    assert (None, True) not in [entry[:2] for entry in told]


def test_conversations_that_are_over_are_forgotten(letta: InMemoryLetta, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_module, "_IDLE_SECONDS", 0.05)
    agent = letta.create_agent()
    provider, processor = live(letta, agent, wake_budget=1_000)
    tracer = provider.get_tracer("t")
    for _ in range(5):
        tracer.start_span("A", attributes={"letta.chat.id": letta.create_conversation(agent)}).end()
    assert processor.force_flush(60_000)
    courier = processor._handle.pipeline.desk._courier  # type: ignore[union-attr]
    with courier.lock:
        while courier._lanes:
            assert courier.crew.settled.wait(10)
    provider.shutdown()


def test_naming_the_configured_agent_is_the_same_as_naming_none(letta: InMemoryLetta) -> None:
    agent = letta.create_agent()
    provider, processor = live(letta, agent)
    tracer = provider.get_tracer("t")
    outer = tracer.start_span("outer", attributes={"letta.task.id": "one", "letta.agent.id": agent})
    inner = tracer.start_span("inner", attributes={"letta.task.id": "one"})
    inner.end()
    outer.end()
    assert processor.force_flush(60_000)
    assert len(letta.reports(agent)) == 1
    provider.shutdown()
