"""`attach` beside the real Laminar, in programs of their own: tracing is set up once, when OpenHands is imported."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from otel_letta.testing import InMemoryLetta
from tests.real.openhands.scenarios import SCENARIOS
from tests.support.conversations import ends
from tests.support.openhands_llm import ScriptedModel, finish

PROGRAM = """
import json, logging, os, sys
model, base_url, folder = sys.argv[1:4]
logging.basicConfig(level=logging.ERROR)
from otel_letta.integrations import openhands
{steps}
import lmnr
from opentelemetry import trace
from openhands.sdk import LLM, Agent, Conversation
from otel_letta.otel.processor import LettaSpanProcessor
from pydantic import SecretStr

observer = openhands.callback(chat_id="chat-1", delivery="messages")
llm = LLM(model=model, base_url=base_url, api_key=SecretStr("x"), usage_id="agent", num_retries=0)
conversation = Conversation(agent=Agent(llm=llm, tools=[]), workspace=folder, callbacks=[observer], visualizer=None)
with openhands.reporting(conversation, observer):
    conversation.send_message("go")
    conversation.run()
from lmnr.opentelemetry_lib.tracing import TracerWrapper
wrapper = getattr(TracerWrapper, "instance", None)
known = wrapper._tracer_provider._active_span_processor._span_processors if wrapper is not None else ()
ours = [each for each in known if isinstance(each, LettaSpanProcessor)]
print(json.dumps({{
    "processors": len(ours),
    "root is open": bool(ours) and ours[0].stats()["open_spans"] >= 1,
    "claimed": bool(ours) and ours[0]._pipeline.claimed(str(conversation.id)),
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
    name = model.play("attach", [finish("done")])
    program = PROGRAM.format(steps="\n".join(steps))
    out, log = execute(program, letta, agent, [name, model.base_url, str(folder)], tracing=tracing)
    lines = [line for line in out.splitlines() if line.startswith('{"processors"')]
    return json.loads(lines[-1]), log


def execute(
    program: str, letta: InMemoryLetta, agent: str, arguments: list[str], *, tracing: bool = True
) -> tuple[str, str]:
    """What a program writes to its standard output and error, in an environment that traces or does not."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "LMNR_"))}
    environment |= {"LETTA_BASE_URL": letta.base_url, "LETTA_AGENT_ID": agent, "LMNR_INSTRUMENTS": ""}
    if tracing:  # to a server that takes no spans, but answers
        environment |= {
            "OTEL_EXPORTER_OTLP_ENDPOINT": letta.base_url,
            "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
        }
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program, *arguments],
        env=environment,
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3_000:]
    return done.stdout, done.stderr


ORDERS = pytest.mark.parametrize(
    "steps",
    [["import openhands.sdk as _", ATTACH], [ATTACH, "import openhands.sdk as _"]],
    ids=["after the import", "before the import"],
)


@ORDERS
def test_the_provider_is_found_and_the_callback_claims_the_conversation(
    steps: list[str], model: ScriptedModel, letta: InMemoryLetta, agent: str, tmp_path: Path
) -> None:
    seen, _ = run(steps, model, letta, agent, tmp_path, tracing=True)
    assert seen == {"processors": 1, "root is open": True, "claimed": True, "global": True}
    assert [(end["status"], end["result"]) for end in ends(letta, agent)] == [("completed", "done")]


def test_the_provider_is_found_where_the_program_has_one_of_its_own(
    model: ScriptedModel, letta: InMemoryLetta, agent: str, tmp_path: Path
) -> None:
    seen, _ = run([GLOBAL, ATTACH, "import openhands.sdk as _"], model, letta, agent, tmp_path, tracing=True)
    assert seen == {"processors": 1, "root is open": True, "claimed": True, "global": False}


@ORDERS
def test_tracing_that_is_off_is_logged_and_costs_nothing_else(
    steps: list[str], model: ScriptedModel, letta: InMemoryLetta, agent: str, tmp_path: Path
) -> None:
    seen, log = run(steps, model, letta, agent, tmp_path, tracing=False)
    assert seen["processors"] == 0
    assert "OpenHands' tracing is off" in log
    assert [(end["status"], end["result"]) for end in ends(letta, agent)] == [("completed", "done")]


# -- reports of the spans ---------------------------------------------------------------------------------------------

SCENES = """
import contextlib, json, sys
base_url, folder, scenes = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
from otel_letta.integrations import openhands
from otel_letta.delivery.desk import Desk
everything = []
put = Desk.put
Desk.put = lambda self, report: (everything.append(report), put(self, report))
options = {"delivery": "messages", "message_interval": 0, "wake_after": 0}
openhands.attach(**options)
from openhands.sdk import LLM, Agent, Conversation, Tool
from openhands.tools.file_editor import FileEditorTool
from openhands.tools.task_tracker import TaskTrackerTool
from openhands.tools.terminal import TerminalTool
from pydantic import SecretStr
import tests.real.openhands.explode
from otel_letta.otel.processor import LettaSpanProcessor
from lmnr.opentelemetry_lib.tracing import TracerWrapper

tools = [Tool(name=name) for name in (TerminalTool.name, FileEditorTool.name, TaskTrackerTool.name, "explode")]
ids = []
for scene in scenes:
    llm = LLM(model=scene["model"], base_url=base_url, api_key=SecretStr("x"), usage_id="agent", num_retries=0)
    observer = [openhands.callback(chat_id=scene["chat"], **options)] if scene["callback"] else []
    conversation = Conversation(
        agent=Agent(llm=llm, tools=tools), workspace=folder, callbacks=observer, visualizer=None,
        max_iteration_per_run=scene["most"],
        observability_metadata={"letta.chat_id": scene["chat"], "letta.message_id": "msg-456"},
    )
    for _ in range(scene["runs"]):
        conversation.send_message("Do it, and tell nobody that the word is xyzzy.")
        with contextlib.suppress(Exception):
            conversation.run()
    ids.append(str(conversation.id))
    conversation.close()
(processor,) = [
    each for each in TracerWrapper.instance._tracer_provider._active_span_processor._span_processors
    if isinstance(each, LettaSpanProcessor)
]
assert processor.force_flush()
assert openhands.flush(20)
open_tasks = processor.stats()["open_tasks"]
reports = [json.loads(report.to_json()) for report in everything]
print("REPORTS " + json.dumps({"ids": ids, "reports": reports, "open": open_tasks}))
"""


@dataclass(frozen=True)
class Expected:
    """Reports on the spans of a scenario."""

    tools: list[str] = field(default_factory=list)
    shares: tuple[float, ...] = (0.0,)
    end: str = ""
    """Part of the last content."""


UNFINISHED = "'OpenHands' failed: stopped before it was finished: paused, interrupted, stuck, or at a limit"
SPANS = {
    "success with a plan": Expected(
        ["task_tracker", "file_editor", "task_tracker", "terminal", "task_tracker"], (0.0, 0.5, 0.99, 1.0), "5 tools"
    ),
    "an end by text": Expected([], (0.0, 1.0), "; it ended with a message, which may be a question"),
    "LLM 500": Expected([], (0.0,), "'OpenHands' failed: InternalServerError: "),
    "LLM 401": Expected([], (0.0,), "'OpenHands' failed: "),
    "a tool error that is recovered from": Expected(["file_editor"], (0.0, 1.0), ", 1 tool, 1 problem"),
    "a tool that crashes until OpenHands is stuck": Expected(["explode"], (0.0,), UNFINISHED),
    "max iterations": Expected(["terminal", "terminal"], (0.0,), UNFINISHED),
}
AT_ONCE = "callback and spans at once"
TWICE = "two runs of one conversation"


@dataclass
class Received:
    conversation: str
    reports: list[dict[str, Any]]
    arrived: list[dict[str, Any]]
    """Those that Letta got."""
    everything: list[dict[str, Any]]
    open_tasks: int


@pytest.fixture(scope="module")
def received(model: ScriptedModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Received]]:
    """All scenarios, one after another in one program: importing OpenHands is what takes its time."""
    folder = tmp_path_factory.mktemp("work")
    scenes: list[dict[str, Any]] = [
        {
            "chat": scenario.name,
            "model": model.play(f"spans-{number}", scenario.steps(str(folder))),
            "most": scenario.max_iterations,
            "runs": 1,
            "callback": False,
        }
        for number, scenario in enumerate(SCENARIOS)
    ]
    twice = [*SCENARIOS[0].steps(str(folder)), finish("again")]
    for name, steps, runs in ((AT_ONCE, SCENARIOS[0].steps(str(folder)), 1), (TWICE, twice, 2)):
        script = model.play(name.replace(" ", "-"), steps)
        scenes.append({"chat": name, "model": script, "most": 50, "runs": runs, "callback": name == AT_ONCE})
    with InMemoryLetta() as letta:
        agent = letta.create_agent()
        out, _ = execute(SCENES, letta, agent, [model.base_url, str(folder), json.dumps(scenes)])
        (line,) = [line for line in out.splitlines() if line.startswith("REPORTS ")]
        answer = json.loads(line.removeprefix("REPORTS "))
        arrived = letta.reports(agent)
        yield {
            scene["chat"]: Received(
                conversation,
                [report for report in answer["reports"] if report["chat_id"] == scene["chat"]],
                [report for report in arrived if report["chat_id"] == scene["chat"]],
                answer["reports"],
                answer["open"],
            )
            for scene, conversation in zip(scenes, answer["ids"], strict=True)
        }


def used(reports: list[dict[str, Any]]) -> list[str]:
    found = [re.match(r"(?:Used tool|Tool) (\S+)", report["content"]) for report in reports]
    return [match[1] for match in found if match is not None]


@pytest.mark.parametrize("scenario", SCENARIOS, ids=str)
def test_spans_give_start_tools_plan_and_end(scenario: Any, received: dict[str, Received]) -> None:
    want, mine = SPANS[scenario.name], received[scenario.name]
    reports = mine.reports
    assert reports[0]["content"] == "Started 'OpenHands'"
    tools = used(reports)
    assert (list(dict.fromkeys(tools)) if tools.count("explode") > 1 else tools) == want.tools
    assert tuple(dict.fromkeys(report["progress"] for report in reports)) == want.shares
    assert [report["status"] for report in reports[:-1]] == ["in_progress"] * (len(reports) - 1)
    assert reports[-1]["status"] == scenario.status
    assert want.end in reports[-1]["content"]
    assert len({report["task_id"] for report in reports}) == 1
    assert {report["message_id"] for report in reports} == {"msg-456"}
    assert [report["status"] for report in mine.arrived if report["status"] != "in_progress"] == [scenario.status]


def test_two_runs_of_one_conversation_are_two_tasks(received: dict[str, Received]) -> None:
    ends = [report for report in received[TWICE].reports if report["status"] != "in_progress"]
    assert [end["status"] for end in ends] == ["completed", "completed"]
    assert len({end["task_id"] for end in ends}) == 2


def test_callback_and_spans_at_once_report_each_thing_once(received: dict[str, Received]) -> None:
    mine = received[AT_ONCE]
    assert {report["task_id"] for report in mine.reports} == {f"{mine.conversation}/1"}
    assert [report["result"] for report in mine.arrived if report["status"] != "in_progress"] == ["a.py prints 1."]
    assert {"create a.py", "run a.py"} <= {report["content"] for report in mine.reports}


def test_reports_of_spans_hold_no_content_and_leave_nothing_open(received: dict[str, Received]) -> None:
    mine = received[TWICE]
    spans = [report for report in mine.everything if report["task_id"] != f"{received[AT_ONCE].conversation}/1"]
    text = json.dumps(spans)
    for secret in ("xyzzy", "private", "a.py", "Which file"):
        assert secret not in text
    assert mine.open_tasks == 0
