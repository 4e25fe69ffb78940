"""`attach` beside the real Laminar, in programs of their own: tracing is set up once, when OpenHands is imported."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from otel_letta.testing import InMemoryLetta
from tests.support.openhands_llm import ScriptedModel, finish

PROGRAM = """
import json, logging, os, sys
model, base_url, folder = sys.argv[1:4]
logging.basicConfig(level=logging.ERROR)
from otel_letta import openhands
{steps}
import lmnr
from opentelemetry import trace
from openhands.sdk import LLM, Agent, Conversation
from otel_letta.processor import LettaSpanProcessor
from pydantic import SecretStr

told = openhands.callback(chat_id="chat-1", delivery="messages")
llm = LLM(model=model, base_url=base_url, api_key=SecretStr("x"), usage_id="agent", num_retries=0)
conversation = Conversation(agent=Agent(llm=llm, tools=[]), workspace=folder, callbacks=[told], visualizer=None)
with openhands.reporting(conversation, told):
    conversation.send_message("go")
    conversation.run()
from lmnr.opentelemetry_lib.tracing import TracerWrapper
wrapper = getattr(TracerWrapper, "instance", None)
known = wrapper._tracer_provider._active_span_processor._span_processors if wrapper is not None else ()
ours = [each for each in known if isinstance(each, LettaSpanProcessor)]
print(json.dumps({{
    "processors": len(ours),
    "root is open": bool(ours) and ours[0].stats()["open_spans"] >= 1,
    "claimed": bool(ours) and str(conversation.id) in ours[0]._hooked.claims,
    "global": wrapper is not None and trace.get_tracer_provider() is wrapper._tracer_provider,
}}))
conversation.close()
"""
ATTACH = "openhands.attach(delivery='messages')"
GLOBAL = (
    "from opentelemetry.sdk.trace import TracerProvider\n"
    "from opentelemetry import trace\n"
    "trace.set_tracer_provider(TracerProvider())"
)


def run(
    steps: list[str], model: ScriptedModel, letta: InMemoryLetta, agent: str, folder: Path, *, tracing: bool
) -> tuple[dict[str, object], str]:
    import os

    name = model.play("attach", [finish("done")])
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "LMNR_"))}
    environment |= {"LETTA_BASE_URL": letta.base_url, "LETTA_AGENT_ID": agent, "LMNR_INSTRUMENTS": ""}
    if tracing:  # to a server that takes no spans, but answers
        environment |= {
            "OTEL_EXPORTER_OTLP_ENDPOINT": letta.base_url,
            "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
        }
    program = PROGRAM.format(steps="\n".join(steps))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program, name, model.base_url, str(folder)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3_000:]
    lines = [line for line in done.stdout.splitlines() if line.startswith('{"processors"')]
    return json.loads(lines[-1]), done.stderr


ORDERS = pytest.mark.parametrize(
    "steps",
    [["import openhands.sdk as _", ATTACH], [ATTACH, "import openhands.sdk as _"]],
    ids=["after the import", "before the import"],
)


@pytest.fixture
def letta() -> InMemoryLetta:
    return InMemoryLetta()


@ORDERS
def test_the_provider_is_found_and_the_callback_speaks_for_the_conversation(
    steps: list[str], model: ScriptedModel, letta: InMemoryLetta, tmp_path: Path
) -> None:
    with letta:
        agent = letta.create_agent()
        seen, _ = run(steps, model, letta, agent, tmp_path, tracing=True)
        ends = [report["result"] for report in letta.reports(agent) if report["status"] == "completed"]
    assert seen == {"processors": 1, "root is open": True, "claimed": True, "global": True}
    assert ends == ["done"]


def test_the_provider_is_found_where_the_program_has_one_of_its_own(
    model: ScriptedModel, letta: InMemoryLetta, tmp_path: Path
) -> None:
    with letta:
        seen, _ = run(
            [GLOBAL, ATTACH, "import openhands.sdk as _"], model, letta, letta.create_agent(), tmp_path, tracing=True
        )
    assert seen == {"processors": 1, "root is open": True, "claimed": True, "global": False}


@ORDERS
def test_tracing_that_is_off_is_said_and_costs_nothing_else(
    steps: list[str], model: ScriptedModel, letta: InMemoryLetta, tmp_path: Path
) -> None:
    with letta:
        agent = letta.create_agent()
        seen, log = run(steps, model, letta, agent, tmp_path, tracing=False)
        ends = [report["result"] for report in letta.reports(agent) if report["status"] == "completed"]
    assert seen["processors"] == 0
    assert "OpenHands' tracing is off" in log
    assert ends == ["done"]
