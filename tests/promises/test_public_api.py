"""The public names, and what importing them costs."""

from __future__ import annotations

import subprocess
import sys

import pytest

import otel_letta


@pytest.mark.parametrize("name", otel_letta.__all__)
def test_every_public_name_exists_and_says_what_it_is(name: str) -> None:
    assert getattr(otel_letta, name).__doc__
    assert name in dir(otel_letta)


def test_the_names_of_the_type_checker_are_those_of_the_program() -> None:

    assert {name for names in otel_letta._HOMES.values() for name in names} == set(otel_letta.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        otel_letta.no_such_name  # noqa: B018


@pytest.mark.parametrize(
    ("statement", "unloaded"),
    [
        ("import otel_letta", ("opentelemetry", "httpx", "dotenv", "asyncio")),
        ("from otel_letta import LettaSpanProcessor, LettaSpanExporter", ("httpx", "rich", "click", "http.server")),
        (
            "from otel_letta import LettaSpanProcessor, LettaReporter",
            ("otel_letta.settings", "otel_letta.delivery.desk", "otel_letta.letta", "asyncio", "hashlib"),
        ),
        ("from otel_letta import task", ("opentelemetry.sdk", "httpx")),
    ],
)
def test_nothing_is_loaded_before_it_is_needed(statement: str, unloaded: tuple[str, ...]) -> None:
    # What the SDK brings is its own: 1.30 imports asyncio.
    uses_sdk = not any(name.startswith("opentelemetry") for name in unloaded)
    before = "import opentelemetry.sdk.trace; " if uses_sdk else ""
    names = f"[name for name in {unloaded!r} if name in set(sys.modules) - before]"
    code = f"import sys; {before}before = set(sys.modules)\n{statement}\nprint({names})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


_HARD_WORK = """
import sys
from opentelemetry.sdk.trace import TracerProvider
from otel_letta import LettaSpanProcessor

provider = TracerProvider(shutdown_on_exit=False)
processor = LettaSpanProcessor(base_url="http://127.0.0.1:9", agent_id="agent-1", shutdown_timeout=1)
provider.add_span_processor(processor)
before = set(sys.modules)
tracer = provider.get_tracer("program")
with tracer.start_as_current_span("a", attributes={"gen_ai.operation.name": "invoke_agent"}):
    with tracer.start_as_current_span("c", attributes={"gen_ai.operation.name": "chat"}) as span:
        span.set_attribute("gen_ai.response.finish_reasons", ("stop",))
try:
    with tracer.start_as_current_span("t", attributes={"letta.task.name": "t"}) as span:
        span.set_attribute("letta.task.progress", 0.5)
        processor.force_flush(100)
        raise ValueError
except ValueError:
    pass
provider.shutdown()
print(sorted(set(sys.modules) - before))
"""


def test_nothing_is_imported_once_the_processor_is_made() -> None:
    """An import on a thread of ours would hold its lock for ever in a child that is forked in the middle of it."""
    done = subprocess.run([sys.executable, "-c", _HARD_WORK], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "[]"


_ANSWERED = """
import sys
from opentelemetry.sdk.trace import TracerProvider
from otel_letta import LettaReporter, LettaSpanProcessor
from otel_letta.testing import InMemoryLetta

answers = []

async def on_answer(report, answer):
    answers.append(answer)
    raise ValueError("password=hunter2")

with InMemoryLetta() as letta:
    options = {"base_url": letta.base_url, "agent_id": letta.create_agent(), "on_answer": on_answer}
    provider = TracerProvider(shutdown_on_exit=False)
    processor = LettaSpanProcessor(**options, answer_spans=True)
    provider.add_span_processor(processor)
    with LettaReporter(**options):
        before = set(sys.modules)
        letta.answer_next("Good.", calls=[("instruct_task", {"task_id": "t", "action": "accept"})])
        with provider.get_tracer("program").start_as_current_span("t", attributes={"letta.task.name": "t"}):
            pass
        provider.shutdown()
assert answers
print(sorted(name for name in set(sys.modules) - before if name.startswith(("otel_letta", "asyncio", "opentelemetry"))))
"""


def test_nothing_of_ours_is_imported_on_the_thread_of_answers() -> None:
    done = subprocess.run([sys.executable, "-c", _ANSWERED], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "[]"
