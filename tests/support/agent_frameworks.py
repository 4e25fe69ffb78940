"""Agent frameworks from PyPI, each in an environment of its own, run against a scripted model on loopback.

What a framework's spans look like can only be learnt from the framework: recorded traces grow old, and none shows in
which order spans start, which attributes they have by then, and what a cancelled run leaves open. So the tests under
``tests/real/agents`` run real ones, with `LettaSpanProcessor` added as a user would add it, and read what an
`InMemoryLetta` received.

Installing (1.5 GB, most of it CrewAI's, some 5 minutes) happens once per machine, framework and list of versions, in
``$OTEL_LETTA_TEST_CACHE`` or ``~/.cache/otel-letta-tests``. It needs PyPI and a Python 3.12, 3.11 or 3.13; the runs
need no network.

    python -m tests.support.agent_frameworks install                      # fill the cache, so that no test has to
    python -m tests.support.agent_frameworks run langchain.openinference  # print what is told, and the spans

An environment that cannot be made is a failure (RuntimeError), never a reason to skip.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from otel_letta.testing import InMemoryLetta, Request
from tests.support.scripted_openai import ScriptedOpenAI

__all__ = ["INTEGRATIONS", "Integration", "Play", "install", "play"]

_COMMON = ("opentelemetry-sdk==1.45.2", "httpx==0.28.1", "python-dotenv")
_FRAMEWORKS: dict[str, tuple[str, ...]] = {
    "openai_agents": (
        "openai-agents==0.24.0",
        "openai==3.54.0",
        "opentelemetry-instrumentation-genai-openai==1.3b0",
        "opentelemetry-instrumentation-genai-openai-agents==1.3b0",
        "openinference-instrumentation-openai-agents==2.6.0",
    ),
    "pydantic_ai": ("pydantic-ai-slim[openai]==2.68.0", "openai==3.54.0"),
    "langchain": (
        "langchain==1.4.7",
        "langgraph==1.2.22",
        "langchain-openai==1.7.3",
        "openai==3.54.0",
        "opentelemetry-instrumentation-genai-langchain==1.3b0",
        "openinference-instrumentation-langchain==0.1.80",
    ),
    "smolagents": (
        "smolagents[openai]==1.26.0",
        "openai==3.54.0",
        "openinference-instrumentation-smolagents==0.1.43",
    ),
    "crewai": ("crewai==1.15.30", "openinference-instrumentation-crewai==1.1.21"),
    # No framework, but what Letta 0.16.8 speaks MCP with; it does not start with a newer pydantic.
    "mcp_client": ("mcp==1.12.4", "pydantic==2.11.7"),
    "uwsgi": ("uwsgi==2.0.31",),  # no agents, but a server with forks of its own; pip builds it with the C compiler
}
"""What is installed beside `_COMMON` and whatever these packages need."""

_PYTHONS = ((3, 12), (3, 11), (3, 13))
_ROOT = Path(__file__).parent.parent.parent
_PROGRAMS = _ROOT / "tests" / "real" / "agents" / "programs"
_INSTALL_TIMEOUT = 1_200.0
_RUN_TIMEOUT = 120.0
_HEARD_TIMEOUT = 30.0
_TURNS = (("Started",), ("Used tool search_docs",), ("Used tool send_report", "Tool send_report failed"))
"""What is told before the model is asked for the first, second, and last time."""

_TELLING = (
    "gen_ai.operation.name",
    "openinference.span.kind",
    "gen_ai.conversation.id",
    "session.id",
    "gen_ai.tool.name",
    "tool.name",
    "error.type",
)
"""Attributes that a story of the spans shows."""

_ALL = ("success", "tool_error_recovered", "tool_error_uncaught", "llm_error", "cancelled")


@dataclass(frozen=True)
class Integration:
    """A framework, what instruments it, and what can be asked of the two."""

    framework: str
    instrumentation: str
    scenarios: tuple[str, ...] = _ALL
    """Not all let a tool's error out, or can be cancelled."""
    chat: bool = True
    """The spans hold the conversation's id."""
    chat_from_the_start: bool = True
    """They do when the run starts."""
    known_from_the_start: bool = True
    """What its root says as it starts shows that it is an agent. Otherwise the first step does, and the start and that
    step are reported in the same moment: the later of the two may take the earlier one's place."""
    tools: int = 2
    """Calls of tools in a run without trouble."""
    records_content: bool = True
    """The spans hold prompts and answers."""
    reason_for_cancelled: str = "cancelled or timed out"

    @property
    def name(self) -> str:
        return f"{self.framework}.{self.instrumentation}"


INTEGRATIONS = {
    integration.name: integration
    for integration in (
        # Its spans hear of the conversation with the first answer of the model.
        Integration("openai_agents", "genai", chat_from_the_start=False),
        Integration(
            "openai_agents", "openinference", chat=False, reason_for_cancelled="stopped: it ended without an answer"
        ),
        Integration("pydantic_ai", "builtin"),
        Integration("langchain", "genai", chat_from_the_start=False),
        Integration("langchain", "openinference", known_from_the_start=False),
        # The tool `final_answer` is the only way out. Interrupting ends the run after the step under way; its span is
        # then left open, as after an error of the model.
        Integration(
            "smolagents",
            "openinference",
            ("success", "tool_error_recovered", "llm_error", "cancelled"),
            chat=False,
            tools=3,
            reason_for_cancelled="",
        ),
        Integration("crewai", "openinference", ("success", "tool_error_recovered", "llm_error"), chat=False),
    )
}


# -- environments ------------------------------------------------------------------------------------------------------


def install(framework: str) -> Path:
    """The Python of the framework's environment, which is made if it is missing, half-finished or of other versions."""
    python = _find_python()
    recipe = json.dumps([python, _FRAMEWORKS[framework], _COMMON])
    root = _cache_folder() / f"agents-{framework}"
    marker = root / "INSTALLED"
    installed = root / "venv" / "bin" / "python"
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        # Beside the folder, which may have to be deleted while the lock is held.
        with _locked(root.with_name(root.name + ".lock")) as lock:
            digest = hashlib.sha256(recipe.encode()).hexdigest()
            if not (marker.exists() and marker.read_text() == digest and installed.exists()):
                shutil.rmtree(root, ignore_errors=True)
                root.mkdir()
                _say(f"installing {_FRAMEWORKS[framework][0]} into {root} (once)")
                _make_environment(python, root, framework, lock)
                marker.write_text(digest)
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or ""
        raise RuntimeError(f"cannot install {framework} into {root}: {error}\n{said[-4000:]}") from error
    return installed


def _make_environment(python: str, root: Path, framework: str, lock: int) -> None:
    def run(*command: str) -> None:
        # With the lock: should this process be killed, it is held until pip has ended as well.
        subprocess.run(
            command,
            cwd=root,
            check=True,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=_INSTALL_TIMEOUT,
            pass_fds=(lock,),
        )

    run(python, "-m", "venv", str(root / "venv"))
    pip = (str(root / "venv" / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "install", "--quiet")
    run(*pip, "--upgrade", "pip")
    run(*pip, *_FRAMEWORKS[framework], *_COMMON)


def _cache_folder() -> Path:
    chosen = os.environ.get("OTEL_LETTA_TEST_CACHE") or Path.home() / ".cache" / "otel-letta-tests"
    return Path(chosen).expanduser().resolve()


def _find_python() -> str:
    """The first of `_PYTHONS` that is there; being on PATH is not enough, pyenv has stand-ins there for others."""
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    for major, minor in _PYTHONS:
        version = f"{major}.{minor}"
        found = [shutil.which(f"python{version}"), *sorted(map(str, pyenv.glob(f"versions/{version}.*/bin/python")))]
        if sys.version_info[:2] == (major, minor):
            found.insert(0, sys.executable)
        for path in found:
            probe = f"import sys, venv, ensurepip; sys.exit(sys.version_info[:2] != {(major, minor)})"
            if path and subprocess.run([path, "-c", probe], capture_output=True).returncode == 0:
                return path
    raise RuntimeError("the agent frameworks need a Python 3.12, 3.11 or 3.13 with venv (Debian: python3-venv)")


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[int]:
    """Hold a lock between processes, and yield its file descriptor; the system lets go of it if they die."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()


def _say(text: str) -> None:
    print(f"[agent frameworks] {text}", file=sys.stderr, flush=True)


# -- runs --------------------------------------------------------------------------------------------------------------


@dataclass
class Play:
    """What came of all scenarios of an integration."""

    integration: Integration
    outcomes: dict[str, dict[str, str]]
    """How each run ended for its caller: outcome (answered, raised, cancelled), answer or error."""
    reports: list[dict[str, Any]]
    """What the Letta agent was told, oldest first: see `InMemoryLetta.reports`."""
    live: dict[str, list[dict[str, Any]]]
    """By scenario: what had been told of all tasks when the model was asked for the last time."""
    requests: list[Request] = field(repr=False)
    """All that was sent to the Letta server."""
    asked: list[str] = field(repr=False)
    """All that the model was asked."""
    spans: list[dict[str, Any]] = field(repr=False)
    """What the framework did with its spans: starts and ends, in order."""

    def story(self, scenario: str = "") -> str:
        """For the message of a failed test."""
        traces = {span["trace"] for span in self.spans if scenario in json.dumps(span)}
        spans = [_line(span) for span in self.spans if span["trace"] in traces]
        told = [f"{r['status']:11} {r['task']} ({r.get('chat_id')}): {r['content']}" for r in self.reports]
        return "\n".join(["", "told:", *told, "spans:", *spans])


def _line(span: dict[str, Any]) -> str:
    said = {name: value for name, value in span["attributes"].items() if name in _TELLING}
    description = (span["description"] or "").partition("\n")[0][:200]
    parent = (span["parent"] or "-")[:6]
    return (
        f"{span['what']:5} {span['span'][:6]} below {parent:6} {span['name']!r} {span['status']} {description} {said}"
    )


def play(integration: Integration) -> Play:
    """Run all its scenarios in one process, one after another. RuntimeError if that breaks off."""
    python = install(integration.framework)
    with tempfile.TemporaryDirectory(prefix="otel-letta-") as folder, InMemoryLetta() as letta:
        agent = letta.create_agent()
        live: dict[str, list[dict[str, Any]]] = {}

        def think(scenario: str, turn: int) -> None:
            """The model takes its time: until the Letta agent heard what came before, if it ever does."""
            words = _TURNS[min(turn, len(_TURNS) - 1)]
            others = {f"reporter_{other}" for other in integration.scenarios if other != scenario}

            def heard() -> bool:
                told = letta.reports(agent)
                return any(report["content"].startswith(words) for report in told if report["task"] not in others)

            if turn or integration.known_from_the_start:
                letta.wait_for(heard, _HEARD_TIMEOUT)
            live[scenario] = letta.reports(agent)

        with ScriptedOpenAI(think) as model:
            spans = Path(folder) / "spans.jsonl"
            environment = _environment(folder, letta, agent, model) | {"SPANS": str(spans)}
            program = str(_PROGRAMS / f"run_{integration.framework}.py")
            done = subprocess.run(
                [str(python), program, integration.instrumentation, *integration.scenarios],
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=_RUN_TIMEOUT,
            )
            outcomes = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"scenario"')]
            if done.returncode or len(outcomes) != len(integration.scenarios):
                said = f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
                raise RuntimeError(f"{integration.name} broke off with {done.returncode}:\n{said}")
            return Play(
                integration=integration,
                outcomes={outcome.pop("scenario"): outcome for outcome in outcomes},
                reports=letta.reports(agent),
                live=live,
                requests=letta.requests,
                asked=model.asked,
                spans=[json.loads(line) for line in spans.read_text().splitlines()],
            )


def _environment(folder: str, letta: InMemoryLetta, agent: str, model: ScriptedOpenAI) -> dict[str, str]:
    """Nothing of a developer's own settings, no network but loopback, and reports at once."""
    nowhere = "http://127.0.0.1:9"
    return {
        "PATH": os.environ.get("PATH", ""),
        "HOME": folder,
        "LANG": "C.UTF-8",
        "PYTHONPATH": str(_ROOT),
        "PYTHONDONTWRITEBYTECODE": "1",
        **dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy"), nowhere),
        **dict.fromkeys(("NO_PROXY", "no_proxy"), "127.0.0.1,localhost"),
        "OPENAI_BASE_URL": model.base_url,
        "OPENAI_API_KEY": "scripted",
        "LETTA_BASE_URL": letta.base_url,
        "LETTA_AGENT_ID": agent,
        "OTEL_LETTA_DELIVERY": "messages",
        "OTEL_LETTA_WAKE_AFTER": "0",
        "OTEL_LETTA_MESSAGE_INTERVAL": "0",
        "OTEL_LETTA_POLL_INTERVAL": "0.05",
        "OTEL_LETTA_GRACE": "0.5",
        "OTEL_LETTA_SHUTDOWN_TIMEOUT": "20",
        # Content in as many spans as possible, so that there is something to keep silent about.
        "OTEL_SEMCONV_STABILITY_OPT_IN": "gen_ai_latest_experimental",
        "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT": "SPAN_ONLY",
        # What would otherwise call home.
        "CREWAI_DISABLE_TELEMETRY": "true",
        "CREWAI_TRACING_ENABLED": "false",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "LANGSMITH_TRACING": "false",
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }


def _main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.support.agent_frameworks", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("install", help="make all environments")
    commands.add_parser("run", help="run one and print what is told").add_argument("name", choices=INTEGRATIONS)
    arguments = parser.parse_args()
    if arguments.command == "install":
        for framework in _FRAMEWORKS:
            print(install(framework))
    else:
        played = play(INTEGRATIONS[arguments.name])
        print(json.dumps(played.outcomes, indent=1), played.story())


if __name__ == "__main__":
    _main()
