"""Beside other instrumentation, under gevent's monkey patching, and inside a running event loop."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry import trace
from opentelemetry.instrumentation.httpx import HTTPXClientInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from otel_letta import LettaReporter, LettaSpanExporter, LettaSpanProcessor
from otel_letta.testing import InMemoryLetta

TASK = {"letta.chat.id": "chat-1"}


@pytest.fixture
def options(letta: InMemoryLetta) -> dict[str, Any]:
    return {
        "base_url": letta.base_url,
        "agent_id": letta.create_agent(),
        "message_interval": 0,
        "poll_interval": 0.01,
        "shutdown_timeout": 2,
    }


class Traced:
    """A program whose httpx is instrumented, and every span that it makes."""

    def __init__(self) -> None:
        self.provider = TracerProvider(shutdown_on_exit=False)
        self._seen = InMemorySpanExporter()
        self.provider.add_span_processor(SimpleSpanProcessor(self._seen))
        self.tracer = self.provider.get_tracer("program")

    def spans(self) -> list[str]:
        return [span.name for span in self._seen.get_finished_spans()]


@pytest.fixture
def traced() -> Iterator[Traced]:
    traced = Traced()
    HTTPXClientInstrumentor().instrument(tracer_provider=traced.provider)
    yield traced
    HTTPXClientInstrumentor().uninstrument()
    traced.provider.shutdown()


# -- opentelemetry-instrumentation-httpx ----------------------------------------------------------------------------


def test_the_programs_own_requests_are_traced_as_ever(traced: Traced, letta: InMemoryLetta) -> None:
    """Without this the tests below would hold for an instrumentation that does nothing."""
    httpx.get(f"{letta.base_url}/v1/health/")
    assert traced.spans() == ["GET"]


@pytest.mark.parametrize("delivery", ["auto", "messages", "board"])
@pytest.mark.parametrize("kind", ["processor", "batch", "simple", "all of them"])
def test_reporting_makes_no_spans_of_its_own(
    traced: Traced, letta: InMemoryLetta, options: dict[str, Any], kind: str, delivery: str
) -> None:
    options["delivery"] = delivery
    exporter = LettaSpanExporter(**options)
    processor = LettaSpanProcessor(**options)
    if kind in ("processor", "all of them"):
        traced.provider.add_span_processor(processor)
    if kind in ("batch", "all of them"):
        traced.provider.add_span_processor(BatchSpanProcessor(exporter))
    if kind in ("simple", "all of them"):
        traced.provider.add_span_processor(SimpleSpanProcessor(exporter))
    with traced.tracer.start_as_current_span("task", attributes=TASK) as span:
        span.set_attribute("letta.task.progress", 0.5)
        assert processor.force_flush(60_000)  # on this thread, inside the span
        httpx.get(f"{letta.base_url}/v1/health/")
    traced.provider.shutdown()
    processor.shutdown()
    exporter.shutdown()
    assert traced.spans() == ["GET", "task"]
    told = letta.board(options["agent_id"]) if delivery == "board" else letta.reports(options["agent_id"])
    assert "completed" in str(told)


def test_a_client_that_was_there_before_the_instrumentation_makes_no_spans_either(
    letta: InMemoryLetta, options: dict[str, Any]
) -> None:
    traced = Traced()
    traced.provider.add_span_processor(processor := LettaSpanProcessor(**options, delivery="messages"))
    with traced.tracer.start_as_current_span("before", attributes=TASK):
        pass
    assert processor.force_flush(60_000)
    HTTPXClientInstrumentor().instrument(tracer_provider=traced.provider)
    try:
        with traced.tracer.start_as_current_span("after", attributes=TASK):
            pass
        assert processor.force_flush(60_000)
    finally:
        HTTPXClientInstrumentor().uninstrument()
    traced.provider.shutdown()
    assert traced.spans() == ["before", "after"]


def test_a_board_that_has_to_be_tried_again_makes_no_spans(
    traced: Traced, letta: InMemoryLetta, options: dict[str, Any]
) -> None:
    letta.fail_next(500, path=options["agent_id"], times=2)
    traced.provider.add_span_processor(processor := LettaSpanProcessor(**options))
    with traced.tracer.start_as_current_span("task", attributes=TASK):
        pass
    processor.force_flush(5_000)
    traced.provider.shutdown()
    letta.recover()
    assert traced.spans() == ["task"]


def test_the_reporter_makes_no_spans_of_its_own(traced: Traced, options: dict[str, Any]) -> None:
    async def main() -> None:
        async with LettaReporter(**options) as reporter:
            with traced.tracer.start_as_current_span("async"):
                await reporter.send_progress_report("chat-1", "msg-1", "half way", 0.5)

    asyncio.run(main())
    with LettaReporter(**options) as reporter, traced.tracer.start_as_current_span("sync"):
        reporter.send_progress_report_sync("chat-1", "msg-1", "done", 1.0, "completed")
    assert traced.spans() == ["async", "sync"]


def test_the_programs_own_context_is_as_it_was_after_a_flush(traced: Traced, options: dict[str, Any]) -> None:
    traced.provider.add_span_processor(processor := LettaSpanProcessor(**options))
    with traced.tracer.start_as_current_span("task", attributes=TASK) as span:
        processor.force_flush(5_000)
        assert trace.get_current_span() is span
    with traced.tracer.start_as_current_span("next", attributes=TASK):
        pass
    traced.provider.shutdown()
    assert traced.spans() == ["task", "next"]


# -- an event loop that runs already --------------------------------------------------------------------------------


def test_everything_works_inside_a_running_loop(letta: InMemoryLetta, options: dict[str, Any]) -> None:
    """As in a notebook: the loop runs, and cells call blocking code in it."""
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(processor := LettaSpanProcessor(**options, delivery="messages"))
    tracer = provider.get_tracer("notebook")

    async def cells() -> None:
        with tracer.start_as_current_span("cell", attributes=TASK) as span:
            span.set_attribute("letta.task.progress", 0.5)
            await asyncio.sleep(0)
        assert processor.force_flush(60_000)
        with LettaReporter(**options) as reporter:
            answer = reporter.send_progress_report_sync("chat-1", "msg-1", "said by hand", 0.5)
            assert answer["messages"]
            assert (await reporter.send_progress_report("chat-1", "msg-1", "awaited", 0.6))["messages"]

    asyncio.run(cells())
    provider.shutdown()
    contents = [r["content"] for r in letta.reports(options["agent_id"])]
    assert contents[-2:] == ["said by hand", "awaited"]
    assert any("Task completed" in content for content in contents)


def test_hooks_do_not_hold_up_the_loop(letta: InMemoryLetta, options: dict[str, Any]) -> None:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(LettaSpanProcessor(**options, delivery="messages"))
    tracer = provider.get_tracer("loop")
    agent = options["agent_id"]

    async def main() -> float:
        with tracer.start_as_current_span("first", attributes=TASK):
            while not letta.in_flight(agent):
                await asyncio.sleep(0.01)
        longest = 0.0
        for number in range(200):
            began = time.monotonic()
            with tracer.start_as_current_span(f"{number}", attributes=TASK) as span:
                span.set_attribute("letta.task.progress", 0.5)
            longest = max(longest, time.monotonic() - began)
            await asyncio.sleep(0)
        return longest

    with letta.hold(agent):
        assert asyncio.run(main()) < 1  # a turn is being held all the while
    provider.shutdown()


# -- gevent ---------------------------------------------------------------------------------------------------------

GEVENT = """
    from gevent import monkey
    monkey.patch_all()
    import gevent
    import httpx
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from otel_letta import LettaReporter, LettaSpanExporter, LettaSpanProcessor

    TASK = {"letta.chat.id": "chat-1"}
    provider = TracerProvider()
    processor = LettaSpanProcessor()
    provider.add_span_processor(processor)
    tracer = provider.get_tracer("gevent")
"""


class Gevent:
    def __init__(self, letta: InMemoryLetta, folder: Path) -> None:
        self.letta, self._folder = letta, folder
        self.agent = letta.create_agent()

    def run(self, code: str) -> None:
        script = self._folder / "program.py"
        script.write_text(textwrap.dedent(GEVENT) + textwrap.dedent(code))
        settings = {
            "LETTA_BASE_URL": self.letta.base_url,
            "LETTA_AGENT_ID": self.agent,
            "OTEL_LETTA_DELIVERY": "messages",
            "OTEL_LETTA_POLL_INTERVAL": "0.02",
            "OTEL_LETTA_MESSAGE_INTERVAL": "0",
        }
        done = subprocess.run(
            [sys.executable, str(script)],
            env=os.environ | settings,
            cwd=self._folder,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")

    def ends(self) -> Counter[tuple[str, str]]:
        reports = self.letta.reports(self.agent)
        return Counter((r["task"], r["status"]) for r in reports if r["status"] != "in_progress")


@pytest.fixture
def gevent(letta: InMemoryLetta, tmp_path: Path) -> Gevent:
    return Gevent(letta, tmp_path)


def test_tasks_in_greenlets_are_told(gevent: Gevent) -> None:
    gevent.run(
        """
        def work(number):
            with tracer.start_as_current_span(f"task {number}", attributes=TASK) as span:
                gevent.sleep(0.01)
                span.set_attribute("letta.task.progress", 0.5)
                gevent.sleep(0.01)
                if number == 3:
                    raise ValueError("row 3")

        jobs = [gevent.spawn(work, number) for number in range(10)]
        gevent.get_hub().print_exception = lambda *args: None
        gevent.joinall(jobs)
        assert processor.force_flush(60_000)
        """
    )
    assert gevent.ends() == {(f"task {n}", "failed" if n == 3 else "completed"): 1 for n in range(10)}


def test_progress_is_told_while_a_greenlet_works(gevent: Gevent) -> None:
    gevent.run(
        """
        def sent():
            return processor.stats()["sent"]

        def until(predicate):
            with gevent.Timeout(10):
                while not predicate():
                    gevent.sleep(0.01)

        with tracer.start_as_current_span("task", attributes=TASK) as span:
            until(lambda: sent() == 1)
            span.set_attribute("letta.task.progress", 0.5)
            until(lambda: sent() == 2)
        """
    )
    assert gevent.ends() == {("task", "completed"): 1}


def test_a_killed_greenlets_task_failed(gevent: Gevent) -> None:
    gevent.run(
        """
        def work():
            with tracer.start_as_current_span("task", attributes=TASK):
                gevent.sleep(60)

        job = gevent.spawn(work)
        gevent.sleep(0.05)
        job.kill()
        """
    )
    assert gevent.ends() == {("task", "failed"): 1}


def test_exporter_and_reporter_work_under_gevent_too(gevent: Gevent) -> None:
    gevent.run(
        """
        import asyncio

        provider = TracerProvider()
        provider.add_span_processor(BatchSpanProcessor(LettaSpanExporter()))
        with provider.get_tracer("t").start_as_current_span("exported", attributes=TASK):
            pass
        with LettaReporter() as reporter:
            jobs = [
                gevent.spawn(reporter.send_progress_report_sync, "chat-1", f"msg-{n}", "hello", 0.5) for n in range(3)
            ]
            gevent.joinall(jobs, raise_error=True)
        """
    )
    assert gevent.ends() == {("exported", "completed"): 1}
    assert [r["content"] for r in gevent.letta.reports(gevent.agent)].count("hello") == 3


def test_no_thread_is_left_after_shutdown(options: dict[str, Any]) -> None:
    before = set(threading.enumerate())
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(LettaSpanProcessor(**options))
    with provider.get_tracer("t").start_as_current_span("task", attributes=TASK):
        pass
    provider.shutdown()
    for thread in set(threading.enumerate()) - before:
        if thread.name.startswith("otel_letta"):
            thread.join(5)
            assert not thread.is_alive()
