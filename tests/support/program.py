"""A program with OpenTelemetry that reports to a Letta agent, and what the agent was told of it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from xml.etree import ElementTree

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor

from otel_letta import LettaSpanExporter, LettaSpanProcessor

if TYPE_CHECKING:
    from otel_letta.settings import SettingsOptions
    from tests.support.letta_harness import LettaHarness

__all__ = ["Address", "OtherProgram", "Program", "ends_in", "options_for", "program", "told_in", "told_to", "until"]

_BLOCK = re.compile(r"<task-progress .*?</task-progress>", re.DOTALL)
_SCRIPT = Path(__file__).with_name("task_program.py")
_ROOT = Path(__file__).parent.parent.parent


class Address(Protocol):
    """What a program has to know of a server: each of the harnesses says it."""

    @property
    def base_url(self) -> str: ...

    @property
    def password(self) -> str | None: ...


Told = dict[str, str]
"""One report as the agent reads it: the block's attributes, ``content``, and ``result`` if there is one."""


def told_in(text: str) -> list[Told]:
    """The reports in a prompt or message, in order; a block that is not well-formed is an error."""
    found = []
    for block in _BLOCK.findall(text):
        element = ElementTree.fromstring(block)
        result = element.findtext("result")
        told = {**element.attrib, "content": element.text or ""}
        found.append(told if result is None else {**told, "result": result})
    return found


def ends_in(text: str) -> list[str]:
    """The names of the tasks whose end stands in the text, in order."""
    return [told["task"] for told in told_in(text) if told["status"] != "in_progress"]


def told_to(letta: LettaHarness, agent: str) -> list[Told]:
    """The reports that are stored for the agent, oldest first, read with the official client.

    Each is a message of its own in role user, and all of the message is the block.
    """
    found = []
    for message in letta.messages(agent):
        if message.message_type == "user_message" and isinstance(message.content, str):
            if _BLOCK.fullmatch(message.content):
                found += told_in(message.content)
            else:
                assert "task-progress" not in message.content, "a report is alone in its message"
    return found


def until(condition: Callable[[], Any], what: str, seconds: float = 120.0) -> None:
    """Return as soon as the condition holds; AssertionError, saying ``what`` did not happen, after ``seconds``."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.02)


def options_for(letta: Address, agent: str, **more: Any) -> SettingsOptions:
    """Settings for one agent, without the patience that suits people and not tests."""
    options: dict[str, Any] = {
        "base_url": letta.base_url,
        "agent_id": agent,
        "password": letta.password,
        "message_interval": 0.0,
        "board_interval": 0.0,
        "poll_interval": 0.02,
        "probe_interval": 0.2,
        "shutdown_timeout": 10.0,
    }
    return {**options, **more}  # type: ignore[typeddict-item]


class Program:
    """A TracerProvider with one or more of our components. Made by `program`."""

    def __init__(self, provider: TracerProvider, components: list[LettaSpanProcessor | LettaSpanExporter]) -> None:
        self.provider = provider
        self.components = components
        self.tracer = provider.get_tracer("tests")

    def flush(self, seconds: float = 30.0) -> bool:
        """Everything that is known reached Letta. The provider first: a batch processor holds spans back."""
        milliseconds = int(seconds * 1e3)
        flushed = [self.provider.force_flush(milliseconds)]
        flushed += [component.force_flush(milliseconds) for component in self.components]
        return all(flushed)

    def do(self, name: str, **attributes: Any) -> None:
        """A task that starts and ends well."""
        with self.tracer.start_as_current_span(name, attributes={"letta.task.name": name, **attributes}):
            pass

    @property
    def stats(self) -> dict[str, Any]:
        return self.components[0].stats()

    @property
    def lane(self) -> dict[str, Any]:
        """What is known of the only lane; empty before the first report."""
        lanes: list[dict[str, Any]] = list(self.stats["lanes"].values())
        assert len(lanes) <= 1
        return lanes[0] if lanes else {}


@contextlib.contextmanager
def program(letta: Address, agent: str, *ways: str, **more: Any) -> Iterator[Program]:
    """A program that reports to the agent, shut down at the end of the block.

    ``ways``: ``live`` (the processor, and the default), ``batch`` and ``simple`` (the exporter under the SDK's
    processor of that name).
    """
    options = options_for(letta, agent, **more)
    provider = TracerProvider(shutdown_on_exit=False)
    components: list[LettaSpanProcessor | LettaSpanExporter] = []
    for way in ways or ("live",):
        if way == "live":
            processor = LettaSpanProcessor(**options)
            provider.add_span_processor(processor)
            components.append(processor)
        else:
            exporter = LettaSpanExporter(**options)
            provider.add_span_processor({"batch": BatchSpanProcessor, "simple": SimpleSpanProcessor}[way](exporter))
            components.append(exporter)
    try:
        yield Program(provider, components)
    finally:
        provider.shutdown()


class OtherProgram:
    """`task_program.py` in a process of its own, with settings in its environment; for use in a ``with`` block."""

    def __init__(self, letta: Address, agent: str, *arguments: str, **environment: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(_SCRIPT), *arguments],
            env={
                **os.environ,
                "PYTHONPATH": str(_ROOT),
                "LETTA_BASE_URL": letta.base_url,
                "LETTA_AGENT_ID": agent,
                **({"LETTA_PASSWORD": letta.password} if letta.password is not None else {}),
                "OTEL_LETTA_SHUTDOWN_TIMEOUT": "60",
                **environment,
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        assert self._process.stdin is not None
        self._out, self._in = self._process.stdout, self._process.stdin

    def __enter__(self) -> OtherProgram:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        self._in.close()
        self._out.close()

    def wait_until_ready(self) -> None:
        assert self._out.readline().strip() == "ready"

    def go(self) -> None:
        self._in.write("go\n")
        self._in.flush()

    def stats(self) -> dict[str, Any]:
        """What the program says at its end."""
        line = self._out.readline()
        assert self._process.wait(60) == 0
        stats: dict[str, Any] = json.loads(line)
        return stats

    def wait_for_crash(self) -> None:
        assert self._process.wait(60) == 70

    def kill(self) -> None:
        """SIGKILL: no hook of the program's runs any more."""
        self._process.kill()
        self._process.wait()
