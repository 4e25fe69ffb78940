"""Programs from npm whose work is an agent's, most of them to write code: one record each, and what runs one.

    python -m tests.support.programs.coding install                      # fill the cache, so that no test has to
    python -m tests.support.programs.coding run codex model_error        # print what is reported, keep what it sent

A program is set up by `otel-letta setup --write`, in a home folder of its own, and works in a network without a way
out.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from click.testing import CliRunner

from otel_letta.cli.setup.command import setup
from otel_letta.cli.setup.programs import PROGRAMS as SETUPS
from tests.support.programs.install import install
from tests.support.programs.model import MARKER, Call, Script, ScriptedModel
from tests.support.programs.sealed import cell
from tests.support.programs.sink import OtlpRecorder
from tests.support.waiting import until

__all__ = ["PROGRAMS", "TOKEN", "CodingProgram", "Run", "run"]

PROMPT = f"Read the notes ({MARKER}-prompt)."
TOKEN = "scripted-token"
_RUN_TIMEOUT = 300.0
_STARTED = "started"
"""A file that the tool makes which is going to be interrupted."""
_WORK = "$WORK"
_LONG = f"touch {_STARTED}; sleep 300"
_AGENTS = Path(__file__).parents[2] / "real" / "programs" / "agents"
_NONE: Mapping[str, str] = MappingProxyType({})
_NODE = {"NODE_NO_WARNINGS": "1"}


@dataclass(frozen=True)
class CodingProgram:
    """A program, and how it is made to follow a script."""

    name: str
    packages: tuple[str, ...]
    command: tuple[str, ...]
    """Without the folder that it is in."""
    environment: Callable[[str], dict[str, str]]
    """By the model's URL: what makes it ask this model and call nobody else."""
    task: str
    """What its tasks are called."""
    reading: Call
    shell: Callable[[str], Call]
    failing: Call
    setup: str = ""
    """Its name for `otel-letta setup`; one that it does not know gets the endpoint by the environment."""
    files: Callable[[str], dict[str, str]] = lambda url: {}
    """Likewise; below the home folder."""
    refusal: int = 400
    """The status at which it gives up: soon, but not before it has sent what it has."""
    sent_before_interrupt: str = ""
    """What has to be in the receiver before Ctrl-C, for a program that drops what it has not sent by then."""
    may_vanish: bool = False
    """It may be gone after Ctrl-C before it has sent the span of its turn."""
    scenarios: tuple[str, ...] = ("success", "tool_error", "model_error", "cancelled", "cancelled_in_tool")

    def script(self, scenario: str, work: Path = Path()) -> Script:
        echo = self.shell(f"echo {MARKER}-output")
        second = {"tool_error": self.failing, "cancelled_in_tool": self.shell(_LONG)}.get(scenario, echo)
        return Script(
            tuple(_placed(call, work) for call in (self.reading, second)),
            refuses_at=1 if scenario == "model_error" else None,
            refusal=self.refusal,
            holds_at=1 if scenario == "cancelled" else None,
        )


def _placed(call: Call, work: Path) -> Call:
    """Some want whole paths."""
    in_place = {
        name: value.replace(_WORK, str(work)) if isinstance(value, str) else value
        for name, value in call.arguments.items()
    }
    return Call(call.tool, in_place)


def _codex_files(url: str) -> dict[str, str]:
    # Measured with 0.171: with its plugins it asks api.github.com and chatgpt.com at every start, and its metrics go to
    # ab.chatgpt.com.
    config = f"""\
# The model of a test.
model = "scripted"
model_provider = "scripted"
check_for_update_on_startup = false

[model_providers.scripted]
name = "scripted"
base_url = "{url}/v1"
wire_api = "responses"
env_key = "SCRIPTED_KEY"
request_max_retries = 3
stream_max_retries = 0

[features]
plugins = false
remote_plugin = false
apps = false

[otel]
metrics_exporter = "none"
"""
    return {".codex/config.toml": config}


def _gemini_files(url: str) -> dict[str, str]:
    settings = {
        "general": {"enableAutoUpdate": False, "enableAutoUpdateNotification": False},
        "privacy": {"usageStatisticsEnabled": False},
        "security": {"auth": {"selectedType": "gemini-api-key"}},
    }
    return {".gemini/settings.json": json.dumps(settings)}


def _qwen_files(url: str) -> dict[str, str]:
    settings = {"general": {"enableAutoUpdate": False}, "privacy": {"usageStatisticsEnabled": False}}
    return {".qwen/settings.json": json.dumps(settings)}


def _opencode_files(url: str) -> dict[str, str]:
    provider = {
        "npm": "@ai-sdk/openai-compatible",
        "name": "scripted",
        "options": {"baseURL": f"{url}/v1", "apiKey": "scripted"},
        "models": {"scripted": {"name": "scripted"}},
    }
    return {".config/opencode/opencode.json": json.dumps({"autoupdate": False, "provider": {"scripted": provider}})}


PROGRAMS = {
    program.name: program
    for program in (
        CodingProgram(
            "claude_code",
            ("@anthropic-ai/claude-code@2.1.332",),
            ("claude", "-p", PROMPT, "--permission-mode", "acceptEdits", "--allowedTools", "Read,Bash"),
            environment=lambda url: {
                "ANTHROPIC_BASE_URL": url,
                "ANTHROPIC_API_KEY": "scripted",
                "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
                "DISABLE_AUTOUPDATER": "1",
            },
            task="claude-code",
            reading=Call("Read", {"file_path": "notes.txt"}),
            shell=lambda line: Call("Bash", {"command": line, "description": f"{MARKER}-description"}),
            failing=Call("Bash", {"command": f"echo {MARKER}-error >&2; exit 3", "description": "fail"}),
            setup="claude-code",
        ),
        CodingProgram(
            "codex",
            ("@openai/codex@0.171.0",),
            ("codex", "exec", "--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox", PROMPT),
            environment=lambda url: {"SCRIPTED_KEY": "scripted"},
            files=_codex_files,
            task="codex_exec",
            reading=Call("exec_command", {"cmd": "cat notes.txt"}),
            shell=lambda line: Call("exec_command", {"cmd": line}),
            failing=Call("view_image", {"path": f"{MARKER}-missing.png"}),
            setup="codex",
            # At 400 it ends at once, and drops the logs of its last second (measured with 0.171).
            refusal=500,
            sent_before_interrupt="codex.tool_result",
        ),
        CodingProgram(
            "gemini",
            ("@google/gemini-cli@0.61.0",),
            ("gemini", "-p", PROMPT, "--yolo", "-m", "gemini-2.5-pro"),
            environment=lambda url: {
                "GEMINI_API_KEY": "scripted",
                "GOOGLE_GEMINI_BASE_URL": url,
                "GEMINI_CLI_TRUST_WORKSPACE": "true",
                **_NODE,
            },
            files=_gemini_files,
            task="gemini-cli",
            reading=Call("read_file", {"file_path": "notes.txt"}),
            shell=lambda line: Call("run_shell_command", {"command": line}),
            failing=Call("read_file", {"file_path": f"{MARKER}-missing.txt"}),
            setup="gemini",
            # Not cancelled_in_tool: of an interrupted tool it sends nothing, so that the run looks like one that ended
            # with an answer (measured with 0.61).
            scenarios=("success", "tool_error", "model_error", "cancelled"),
        ),
        CodingProgram(
            "copilot",
            ("@github/copilot@1.0.102",),
            ("copilot", "-p", PROMPT, "--allow-all-tools", "--no-auto-update"),
            environment=lambda url: {
                "COPILOT_OFFLINE": "true",
                "COPILOT_PROVIDER_BASE_URL": f"{url}/v1",
                "COPILOT_PROVIDER_API_KEY": "scripted",
                "COPILOT_MODEL": "scripted",
            },
            task="github-copilot",
            reading=Call("view", {"path": "notes.txt"}),
            shell=lambda line: Call("bash", {"command": line, "description": f"{MARKER}-description"}),
            failing=Call("view", {"path": f"{MARKER}-missing.txt"}),
            setup="copilot",
            sent_before_interrupt="execute_tool view",
            may_vanish=True,
        ),
        CodingProgram(
            "qwen",
            ("@qwen-code/qwen-code@0.24.4",),
            ("qwen", "-p", PROMPT, "--yolo", "--auth-type", "openai"),
            environment=lambda url: {
                "OPENAI_API_KEY": "scripted",
                "OPENAI_BASE_URL": f"{url}/v1",
                "OPENAI_MODEL": "scripted",
                **_NODE,
            },
            files=_qwen_files,
            task="qwen-code",
            reading=Call("read_file", {"file_path": f"{_WORK}/notes.txt"}),
            shell=lambda line: Call("run_shell_command", {"command": line, "is_background": False}),
            failing=Call("read_file", {"file_path": f"{_WORK}/{MARKER}-missing.txt"}),
            setup="qwen",
            scenarios=("success", "tool_error", "cancelled"),  # it takes five times as long to start as the others
        ),
        CodingProgram(
            "opencode",
            ("opencode-ai@1.18.33",),
            ("opencode", "run", "--model", "scripted/scripted", PROMPT),
            # With all of this it still tries to look up one host, and does without (measured with 1.18); the other
            # programs here try nothing.
            environment=lambda url: {
                "OPENCODE_DISABLE_AUTOUPDATE": "1",
                "OPENCODE_DISABLE_MODELS_FETCH": "1",
                "OPENCODE_DISABLE_DEFAULT_PLUGINS": "1",
                "OPENCODE_DISABLE_LSP_DOWNLOAD": "1",
            },
            files=_opencode_files,
            task="opencode",
            reading=Call("read", {"filePath": "notes.txt"}),
            shell=lambda line: Call("bash", {"command": line, "description": f"{MARKER}-description"}),
            failing=Call("read", {"filePath": f"{MARKER}-missing.txt"}),
            setup="opencode",
            # Its end is not reported right yet: it drops its last batch when it exits (measured with 1.18).
            scenarios=(),
        ),
        CodingProgram(
            "ai_sdk",
            (
                "ai@6.0.325",
                "@ai-sdk/openai-compatible@2.0.92",
                "@opentelemetry/sdk-trace-node@2.12.1",
                "@opentelemetry/exporter-trace-otlp-proto@0.223.1",
                "zod@4.6.7",
            ),
            ("node", str(_AGENTS / "ai_sdk.mjs"), PROMPT),
            environment=lambda url: {"MODEL_URL": url, **_NODE},
            task="notes-reader",
            reading=Call("read_notes", {"file": "notes.txt"}),
            shell=lambda line: Call("run_shell", {"command": line}),
            failing=Call("read_notes", {"file": f"{MARKER}-missing.txt"}),
        ),
    )
}


@dataclass(frozen=True)
class Run:
    """What came of a run."""

    code: int
    output: str
    files: list[Path]
    """What it sent, as OTLP-JSON lines; spans first."""
    sent: str
    """Their text."""
    asked: list[tuple[str, str]]
    """What it asked the model: path and body."""
    refused: list[str]
    """What it sent that is no OTLP."""
    authorized: set[str]
    """The headers ``Authorization`` that it sent."""
    sealed: bool
    """It had no network but loopback."""


def run(
    program: CodingProgram, scenario: str, folder: Path, *, receiver: str = "", variables: Mapping[str, str] = _NONE
) -> Run:
    """Let a program play a scenario, and keep what it sends in a folder. RuntimeError if it does not get so far.

    ``receiver``: the URL of one that gets it too. ``variables``: more of the environment.
    """
    root = install(program.name, program.packages)
    home, work, otlp = folder / "home", folder / "work", folder / "otlp"
    for each in (home, work, otlp):
        each.mkdir(parents=True)
    (work / "notes.txt").write_text(f"some notes ({MARKER}-found)\n")
    with cell(2) as opened:
        to_model, to_sink = opened.listeners
        with (
            ScriptedModel(program.script(scenario, work), to_model) as model,
            OtlpRecorder(otlp, to_sink, receiver) as sink,
        ):
            for name, text in program.files(model.url).items():
                (home / name).parent.mkdir(parents=True, exist_ok=True)
                (home / name).write_text(text)
            environ = {
                "PATH": os.pathsep.join([str(root / "node_modules" / ".bin"), os.environ.get("PATH", "")]),
                "HOME": str(home),
                "TMPDIR": str(folder),
                "LANG": "C.UTF-8",
                **program.environment(model.url),
            }
            if program.setup:
                environ |= set_up(program.setup, sink.url, home)
            else:
                environ |= {"OTEL_EXPORTER_OTLP_ENDPOINT": sink.url, "PACKAGES": str(root)}
            process = opened.run(list(program.command), work, {**environ, **variables})
            if scenario.startswith("cancelled"):
                at_work = model.held.is_set if scenario == "cancelled" else (work / _STARTED).exists

                def so_far() -> bool:
                    return at_work() and program.sent_before_interrupt in sink.sent

                if not until(lambda: so_far() or process.poll() is not None, _RUN_TIMEOUT / 2) or not so_far():
                    raise RuntimeError(f"{program.name} did not get so far: {_end(process)}")
                os.killpg(process.pid, signal.SIGINT)
            output = _end(process)
            return Run(
                process.returncode,
                output,
                sink.files,
                sink.sent,
                model.asked,
                sink.refused,
                sink.authorized,
                opened.sealed,
            )


def set_up(name: str, endpoint: str, home: Path) -> dict[str, str]:
    """Do as a user would, and return what goes into the environment."""
    token = home.parent / "token"
    token.write_text(f"{TOKEN}\n")
    arguments = [name, "--endpoint", endpoint, "--token-file", str(token), *(["--write"] if SETUPS[name].file else [])]
    done = CliRunner().invoke(setup, arguments, env={"HOME": str(home)})
    if done.exit_code:
        raise RuntimeError(f"otel-letta setup {name}: {done.output}")
    lines = [line for line in done.stdout.splitlines() if line.startswith("export ")]
    shell = subprocess.run(
        ["sh", "-c", "\n".join([*lines, "env -0"])],
        capture_output=True,
        text=True,
        check=True,
        env={"PATH": os.defpath},
    )
    names = {line.removeprefix("export ").partition("=")[0] for line in lines}
    variables = (variable.partition("=") for variable in shell.stdout.split("\0"))
    return {name: value for name, _, value in variables if name in names}


def _end(process: subprocess.Popen[str]) -> str:
    """Wait for its end, and return what it wrote."""
    try:
        return "".join(process.communicate(timeout=_RUN_TIMEOUT))
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        return "it did not end; " + "".join(process.communicate())


def _main() -> None:
    from tests.support.recorded_agents import play

    parser = argparse.ArgumentParser(prog="python -m tests.support.programs.coding")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("install", help="install all of them")
    one = commands.add_parser("run", help="run one and print what is reported")
    one.add_argument("name", choices=PROGRAMS)
    one.add_argument("scenario")
    arguments = parser.parse_args()
    if arguments.command == "install":
        for program in PROGRAMS.values():
            print(install(program.name, program.packages))
        return
    folder = Path(tempfile.mkdtemp(prefix="otel-letta-"))
    ran = run(PROGRAMS[arguments.name], arguments.scenario, folder)
    print(f"exit {ran.code}, sealed {ran.sealed}\n{ran.output}\n{play(ran.files).shown}\n{folder}")


if __name__ == "__main__":
    _main()
