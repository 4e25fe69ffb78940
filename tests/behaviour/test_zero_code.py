"""Reporting is turned on without touching code: by environment, by a YAML file, through OpenTelemetry's own tools.

The programs here run as processes of their own under the real ``opentelemetry-instrument``.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import logging
import os
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

from otel_letta import LettaSpanExporter, LettaSpanProcessor
from otel_letta.otel import zero_code
from otel_letta.otel.configure import MARK
from otel_letta.testing import InMemoryLetta
from tests.support.otlp_sink import OtlpSink

LIVE_LETTA = "    letta: {live: true}"
TASK = {"letta.task.id": "task-1", "letta.chat.id": "chat-1"}

SCRIPT = """
import sys
from opentelemetry import trace

with trace.get_tracer("script").start_as_current_span(
    "Refactor module", attributes={"letta.task.id": "task-1", "letta.chat.id": "chat-1"}
):
    print("open", flush=True)
    sys.stdin.readline()
print("done", flush=True)
"""

WEB_APP = """
import sys
import threading
from flask import Flask
from opentelemetry import trace
from werkzeug.serving import make_server

app = Flask("web app")
may_end = threading.Event()

@app.get("/work")
def work():
    with trace.get_tracer("web app").start_as_current_span(
        "Refactor module", attributes={"letta.task.id": "task-1", "letta.chat.id": "chat-1"}
    ):
        print("open", flush=True)
        may_end.wait(30)
    return "worked"

server = make_server("127.0.0.1", 0, app, threaded=True)
print(server.server_port, flush=True)
thread = threading.Thread(target=server.serve_forever)
thread.start()
sys.stdin.readline()
may_end.set()
sys.stdin.readline()
server.shutdown()
thread.join()
"""


# -- what takes part ------------------------------------------------------------------------------------------------


class Instrumented:
    """A program under ``opentelemetry-instrument``. Made by `World.run`."""

    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline().strip()
        assert line, f"the program said nothing: {self._process.communicate(timeout=30)}"
        return line

    def go_on(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def end(self) -> str:
        """Lets the program go on to its end, which has to be a good one. Returns what it wrote to stderr, but for
        what OpenTelemetry says of every YAML file."""
        _, errors = self._process.communicate("\n", timeout=30)
        assert self._process.returncode == 0, errors
        lines = errors.splitlines(keepends=True)
        return "".join(line for line in lines if not line.startswith("OTEL_CONFIG_FILE is set; ignoring"))

    def kill(self) -> None:
        self._process.kill()
        with contextlib.suppress(ValueError):  # it was read to its end already
            self._process.communicate()


class World:
    """A Letta, an OTLP backend, and programs that know of both by their environment."""

    def __init__(self, letta: InMemoryLetta, sink: OtlpSink, folder: Path) -> None:
        self.letta = letta
        self.sink = sink
        self.folder = folder
        self.agent = letta.create_agent()
        self._programs: list[Instrumented] = []

    @property
    def settings(self) -> dict[str, str]:
        return {
            "LETTA_BASE_URL": self.letta.base_url,
            "LETTA_AGENT_ID": self.agent,
            "OTEL_LETTA_DELIVERY": "messages",
            "OTEL_LETTA_MESSAGE_INTERVAL": "0",
        }

    def run(self, program: str, *, settings: bool = True, **environment: str) -> Instrumented:
        path = self.folder / "program.py"
        path.write_text(program)
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        instrument = Path(sys.executable).with_name("opentelemetry-instrument")
        started = Instrumented(
            [str(instrument), sys.executable, str(path)],
            {
                **inherited,
                **(self.settings if settings else {}),
                "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
                "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": self.sink.endpoint,
                "OTEL_METRICS_EXPORTER": "none",
                "OTEL_LOGS_EXPORTER": "none",
                **environment,
            },
        )
        self._programs.append(started)
        return started

    def yaml(self, exporter: str, instrumentation: str = "") -> str:
        """Writes an OTEL_CONFIG_FILE with the OTLP exporter and one more; returns its path."""
        path = self.folder / "otel.yaml"
        path.write_text(
            f"""\
file_format: "1.1"
tracer_provider:
  processors:
    - batch: {{exporter: {{otlp_http: {{endpoint: "{self.sink.endpoint}"}}}}}}
{exporter and f"    - batch: {{exporter: {{letta: {exporter}}}}}"}
{instrumentation and f"instrumentation/development:{chr(10)}  python:{chr(10)}{instrumentation}"}
"""
        )
        return str(path)

    def told(self) -> list[str]:
        """The statuses that the agent was told, in order."""
        return [report["status"] for report in self.letta.reports(self.agent)]

    def hears(self, status: str) -> bool:
        return self.letta.wait_for(lambda: status in self.told(), timeout=15)

    def close(self) -> None:
        for program in self._programs:
            program.kill()


@pytest.fixture
def world(letta: InMemoryLetta, tmp_path: Path) -> Iterator[World]:
    with OtlpSink() as sink:
        world = World(letta, sink, tmp_path)
        yield world
        world.close()


# -- OTEL_TRACES_EXPORTER -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["otlp,letta", "letta,otlp"])
def test_an_environment_variable_adds_letta_beside_otlp(world: World, order: str) -> None:
    errors = world.run(SCRIPT, OTEL_TRACES_EXPORTER=order).end()

    assert world.told() == ["completed"]
    assert world.sink.names == ["Refactor module"]
    assert errors == ""


@pytest.mark.parametrize("order", ["otlp,letta", "letta,otlp"])
def test_without_settings_the_program_and_its_other_exporter_work(world: World, order: str) -> None:
    errors = world.run(SCRIPT, settings=False, OTEL_TRACES_EXPORTER=order, OTEL_LETTA_LIVE="true").end()

    assert world.sink.names == ["Refactor module"]
    assert errors.splitlines() == [
        f"{name} does nothing: No Letta agent is named - set LETTA_AGENT_ID (or the keyword agent_id) to the agent's id"
        for name in ("LettaSpanExporter", "LettaSpanProcessor")
    ]


# -- OTEL_LETTA_LIVE ------------------------------------------------------------------------------------------------


@pytest.mark.frameworks
def test_a_web_app_reports_live_by_environment_alone(world: World) -> None:
    app = world.run(WEB_APP, OTEL_TRACES_EXPORTER="otlp,letta", OTEL_LETTA_LIVE="TRUE")
    port = app.line()
    answers: list[bytes] = []

    def ask() -> None:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/work") as answer:
            answers.append(answer.read())

    asking = threading.Thread(target=ask)
    asking.start()
    assert app.line() == "open"
    assert world.hears("in_progress"), "the task is told while the request is being served"
    app.go_on()
    asking.join(10)
    errors = app.end()

    assert answers == [b"worked"]
    assert world.told() == ["in_progress", "completed"], "exporter and live processor tell one end"
    assert world.sink.names == ["Refactor module", "GET /work"], "instrumented as without us"
    assert "Traceback" not in errors


def test_a_script_reports_live_by_environment_alone(world: World) -> None:
    script = world.run(SCRIPT, OTEL_TRACES_EXPORTER="none", OTEL_LETTA_LIVE="true")
    assert script.line() == "open"
    assert world.hears("in_progress")

    assert script.end() == ""
    assert world.told() == ["in_progress", "completed"]


def test_installed_alone_it_does_nothing(world: World) -> None:
    requests = len(world.letta.requests)
    errors = world.run(SCRIPT, OTEL_TRACES_EXPORTER="otlp").end()

    assert world.sink.names == ["Refactor module"]
    assert len(world.letta.requests) == requests
    assert errors == ""


# -- OTEL_CONFIG_FILE -----------------------------------------------------------------------------------------------


@pytest.mark.frameworks
def test_a_yaml_file_configures_the_exporter(world: World) -> None:
    config = world.yaml(f'{{base_url: "{world.letta.base_url}", agent_id: "${{THE_AGENT}}", delivery: messages}}')
    errors = world.run(SCRIPT, settings=False, OTEL_CONFIG_FILE=config, THE_AGENT=world.agent).end()

    assert world.told() == ["completed"]
    assert world.sink.names == ["Refactor module"]
    assert errors == ""


@pytest.mark.frameworks
def test_an_exporter_without_options_in_yaml_takes_the_environment(world: World) -> None:
    assert world.run(SCRIPT, OTEL_CONFIG_FILE=world.yaml("null")).end() == ""
    assert world.told() == ["completed"]


@pytest.mark.frameworks
def test_a_slip_in_yaml_is_a_warning_and_the_rest_holds(world: World) -> None:
    config = world.yaml(f"{{agent_id: {world.agent}, pasword: s3cret}}")
    errors = world.run(SCRIPT, OTEL_CONFIG_FILE=config).end()

    assert "LettaSpanExporter ignores an option: Unknown setting 'pasword' - did you mean password?" in errors
    assert "s3cret" not in errors
    assert world.told() == ["completed"]
    assert world.sink.names == ["Refactor module"]


@pytest.mark.frameworks
def test_a_bad_value_in_yaml_costs_only_our_reports(world: World) -> None:
    errors = world.run(SCRIPT, OTEL_CONFIG_FILE=world.yaml("{content_cap: many}")).end()

    assert errors.startswith("LettaSpanExporter does nothing: OTEL_LETTA_CONTENT_CAP (keyword content_cap) cannot be")
    assert len(errors.splitlines()) == 1
    assert world.told() == []
    assert world.sink.names == ["Refactor module"]


@pytest.mark.frameworks
def test_a_yaml_file_installs_the_live_processor(world: World) -> None:
    options = f'    letta: {{base_url: "{world.letta.base_url}", agent_id: "{world.agent}", delivery: messages}}'
    script = world.run(SCRIPT, settings=False, OTEL_CONFIG_FILE=world.yaml("", options))
    assert script.line() == "open"
    assert world.hears("in_progress")

    # opentelemetry-instrument instruments again what the file did, and would warn of that.
    assert script.end() == ""
    assert world.told() == ["in_progress", "completed"]
    assert world.sink.names == ["Refactor module"]


@pytest.mark.frameworks
def test_all_ways_at_once_tell_a_task_once(world: World) -> None:
    config = world.yaml("null", LIVE_LETTA)
    script = world.run(SCRIPT, OTEL_CONFIG_FILE=config, OTEL_LETTA_LIVE="true")
    assert script.line() == "open"
    assert world.hears("in_progress")

    assert script.end() == ""
    assert world.told() == ["in_progress", "completed"]


# -- the hooks by themselves ----------------------------------------------------------------------------------------


@pytest.fixture
def provider(monkeypatch: pytest.MonkeyPatch) -> Iterator[TracerProvider]:
    """The global provider."""
    provider = TracerProvider(shutdown_on_exit=False)
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)
    yield provider
    provider.shutdown()


@pytest.fixture
def instrumentor() -> Iterator[Any]:
    instrumentor = zero_code.LettaInstrumentor()
    assert not instrumentor.is_instrumented_by_opentelemetry
    yield instrumentor
    if instrumentor.is_instrumented_by_opentelemetry:
        instrumentor.uninstrument()


@pytest.fixture
def settings(letta: InMemoryLetta, monkeypatch: pytest.MonkeyPatch) -> str:
    agent = letta.create_agent()
    monkeypatch.setenv("LETTA_BASE_URL", letta.base_url)
    monkeypatch.setenv("LETTA_AGENT_ID", agent)
    return agent


def live_processors(provider: TracerProvider) -> list[LettaSpanProcessor]:
    """The ones that do something."""
    processors = provider._active_span_processor._span_processors
    return [processor for processor in processors if isinstance(processor, LettaSpanProcessor) and processor.active]


def test_the_entry_points_are_those_and_no_others() -> None:
    ours = {
        entry.group: entry
        for entry in importlib.metadata.distribution("otel-letta").entry_points
        if entry.group.startswith("opentelemetry")
    }
    # A distro or configurator of ours could hijack that of a program, merely by being installed.
    assert set(ours) == {
        "opentelemetry_traces_exporter",
        "opentelemetry_post_instrument",
        "opentelemetry_instrumentor",
        "opentelemetry_traces_sampler",
    }
    assert ours["opentelemetry_traces_exporter"].load() is LettaSpanExporter
    assert ours["opentelemetry_post_instrument"].load() is zero_code.post_instrument
    assert ours["opentelemetry_instrumentor"].load() is zero_code.LettaInstrumentor


def test_opentelemetry_instrumentation_is_not_needed() -> None:
    code = (
        "import sys; sys.modules['opentelemetry.instrumentation'] = None\n"
        "from otel_letta.otel import zero_code; zero_code.post_instrument(); zero_code.LettaSpanExporter"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.stderr.splitlines()[-1] == "AttributeError: module 'otel_letta.otel.zero_code' has no attribute " + (
        "'LettaSpanExporter'"
    )


@pytest.mark.parametrize("value", ["true", "True", " TRUE "])
def test_the_post_hook_adds_one_live_processor(
    value: str, provider: TracerProvider, settings: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_LETTA_LIVE", value)
    zero_code.post_instrument()
    zero_code.post_instrument()
    assert len(live_processors(provider)) == 1


@pytest.mark.parametrize("value", ["", "false", "FALSE", "1", "yes"])
def test_anything_but_true_is_off(
    value: str,
    provider: TracerProvider,
    settings: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("OTEL_LETTA_LIVE", value)
    zero_code.post_instrument()
    assert not live_processors(provider)
    complaints = ["OTEL_LETTA_LIVE is neither true nor false, so nothing is reported live"]
    assert caplog.messages == (complaints if value in {"1", "yes"} else [])


def test_a_provider_that_is_no_sdk_provider_is_said_in_one_line(
    settings: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(trace, "get_tracer_provider", trace.ProxyTracerProvider)
    monkeypatch.setenv("OTEL_LETTA_LIVE", "true")
    zero_code.post_instrument()
    assert caplog.messages == [
        "no task is reported live: the tracer provider is ProxyTracerProvider, not one of the OpenTelemetry SDK. "
        "Was the SDK set up, for example by opentelemetry-instrument?"
    ]


def test_a_hook_that_fails_does_not_take_the_program_along(
    settings: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(TracerProvider):
        def add_span_processor(self, span_processor: object) -> None:
            raise OSError("secret words")

    broken = Broken(shutdown_on_exit=False)
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: broken)
    monkeypatch.setenv("OTEL_LETTA_LIVE", "true")
    caplog.set_level(logging.INFO)
    zero_code.post_instrument()
    assert caplog.messages == ["no task is reported live: unexpected OSError"]


def test_an_instrumentor_without_options_and_switch_is_inert(
    provider: TracerProvider, instrumentor: Any, settings: str, caplog: pytest.LogCaptureFixture
) -> None:
    instrumentor.instrument()
    instrumentor.instrument(skip_dep_check=True)
    assert not instrumentor.is_instrumented_by_opentelemetry
    assert not hasattr(provider, MARK)
    assert not caplog.messages


def test_an_inert_instrumentor_can_still_be_given_options(
    provider: TracerProvider, instrumentor: Any, letta: InMemoryLetta
) -> None:
    instrumentor.instrument()
    instrumentor.instrument(base_url=letta.base_url, agent_id=letta.create_agent())
    assert len(live_processors(provider)) == 1


def test_live_false_wins_over_the_environment(
    provider: TracerProvider, instrumentor: Any, settings: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_LETTA_LIVE", "true")
    instrumentor.instrument(live=False)
    assert not live_processors(provider)


def test_instrumented_twice_and_hooked_there_is_one_live_processor(
    provider: TracerProvider,
    instrumentor: Any,
    settings: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("OTEL_LETTA_LIVE", "true")
    instrumentor.instrument(delivery="messages")
    instrumentor.instrument()
    zero_code.post_instrument()
    (processor,) = live_processors(provider)
    assert processor._pipeline is not None
    assert processor._pipeline.settings.delivery == "messages"
    assert not caplog.messages


def test_uninstrumented_it_is_quiet_and_can_be_instrumented_again(
    provider: TracerProvider, instrumentor: Any, settings: str
) -> None:
    instrumentor.instrument(live=True)
    (first,) = live_processors(provider)
    instrumentor.uninstrument()
    assert not live_processors(provider)
    with provider.get_tracer("test").start_as_current_span("task", attributes=TASK):
        pass
    instrumentor.instrument(live=True)
    (second,) = live_processors(provider)
    assert second is not first


def test_another_provider_can_be_named(instrumentor: Any, settings: str, provider: TracerProvider) -> None:
    other = TracerProvider(shutdown_on_exit=False)
    instrumentor.instrument(tracer_provider=other)
    assert len(live_processors(other)) == 1
    assert not live_processors(provider)
    other.shutdown()


def test_bad_settings_are_complained_of_once_and_nothing_is_added(
    provider: TracerProvider,
    instrumentor: Any,
    letta: InMemoryLetta,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("OTEL_LETTA_LIVE", "true")
    instrumentor.instrument()
    zero_code.post_instrument()
    assert len(caplog.messages) == 1
    assert "LETTA_AGENT_ID" in caplog.messages[0]
    assert not provider._active_span_processor._span_processors

    instrumentor.instrument(base_url=letta.base_url, agent_id=letta.create_agent())
    assert len(live_processors(provider)) == 1, "good options may follow"


def test_an_unknown_option_is_named_with_what_it_may_have_meant(
    letta: InMemoryLetta, caplog: pytest.LogCaptureFixture
) -> None:
    options: dict[str, Any] = {"base_url": letta.base_url, "agent_id": letta.create_agent(), "agent": "s3cret"}
    exporter = LettaSpanExporter(**options)
    assert exporter.active
    assert caplog.messages == ["LettaSpanExporter ignores an option: Unknown setting 'agent' - did you mean agent_id?"]
    exporter.shutdown()


def test_an_unknown_option_that_may_have_named_the_server_sends_nothing_to_the_default_one(
    caplog: pytest.LogCaptureFixture,
) -> None:
    options: dict[str, Any] = {"agent_id": "agent-1", "password": "s3cret", "url": "https://letta.example"}
    assert not LettaSpanExporter(**options).active
    (message,) = caplog.messages
    assert message.startswith("LettaSpanExporter does nothing: Unknown setting 'url' - ")


# -- Logfire --------------------------------------------------------------------------------------------------------


@pytest.mark.frameworks
@pytest.mark.filterwarnings("default")
def test_logfire_takes_the_live_processor(letta: InMemoryLetta) -> None:
    logfire = pytest.importorskip("logfire")
    agent = letta.create_agent()
    processor = LettaSpanProcessor(
        base_url=letta.base_url, agent_id=agent, delivery="messages", message_interval=0, poll_interval=0.02
    )
    logfire.configure(send_to_logfire=False, console=False, additional_span_processors=[processor])

    def told() -> list[tuple[str, str]]:
        return [(report["status"], report["task"]) for report in letta.reports(agent)]

    with logfire.span("Refactor module", **TASK) as span:
        assert letta.wait_for(lambda: bool(told()))
        span.set_attribute("letta.task.progress", 0.5)
        logfire.info("a log is a span without duration to Logfire, and no task")
        assert letta.wait_for(lambda: len(told()) == 2)
        with logfire.suppress_instrumentation(), logfire.span("suppressed", **{"letta.task.id": "task-2"}):
            pass
    logfire.shutdown()
    assert told() == [("in_progress", "Refactor module")] * 2 + [("completed", "Refactor module")]


@pytest.mark.frameworks
@pytest.mark.filterwarnings("default")
def test_the_post_hook_works_with_logfires_provider(
    letta: InMemoryLetta, settings: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    logfire = pytest.importorskip("logfire")
    logfire.configure(send_to_logfire=False, console=False)
    monkeypatch.setenv("OTEL_LETTA_LIVE", "true")
    zero_code.post_instrument()
    zero_code.post_instrument()
    with logfire.span("Refactor module", **TASK):
        pass
    logfire.shutdown()
    assert [report["status"] for report in letta.reports(settings)] == ["completed"]
