"""The programs that `otel-letta setup` knows: one record each, of options that the program's own source or help names.

A program without a setting for something in its file gets it by an environment variable, which nobody can write into a
file for it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

Settings: TypeAlias = "dict[tuple[str, ...], Any]"
"""Values by their place in a file: the names of the tables or objects around them, and their own. A value that is a
dict stands or falls as a whole."""

_HEADERS = "OTEL_EXPORTER_OTLP_HEADERS"


@dataclass(frozen=True)
class Target:
    """Where a program shall report to."""

    endpoint: str
    """Without a path."""
    token: str | None = None
    """What stands behind ``Bearer``: a token, or what a block that is only shown has in its place."""

    @property
    def bearer(self) -> str:
        return f"Bearer {self.token}"


@dataclass(frozen=True)
class Program:
    """A program: where its settings are, and which of them make it report."""

    name: str
    title: str
    checked: str
    """The release whose options these are."""
    settings: Callable[[Target], Settings] = lambda target: {}
    environment: Callable[[Target], dict[str, str]] = lambda target: {}
    file: str = ""
    """Below the folder; empty for a program that has no settings file for this."""
    folder_variable: str = ""
    """The variable that names the folder."""
    folder: str = ""
    """What it is otherwise, below the home folder."""
    notes: tuple[str, ...] = field(default=())
    """What its user should know."""

    def path(self, environ: Mapping[str, str] = os.environ) -> Path:
        """Return where its settings are, for the user of this process."""
        named = environ.get(self.folder_variable, "").strip()
        home = Path(environ.get("HOME") or Path.home())
        return (Path(named).expanduser() if named else home / self.folder) / self.file


def _claude_code(target: Target) -> Settings:
    variables = {
        "CLAUDE_CODE_ENABLE_TELEMETRY": "1",
        "CLAUDE_CODE_ENHANCED_TELEMETRY_BETA": "1",
        "OTEL_TRACES_EXPORTER": "otlp",
        "OTEL_LOGS_EXPORTER": "otlp",
        "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
        "OTEL_EXPORTER_OTLP_ENDPOINT": target.endpoint,
        "OTEL_TRACES_EXPORT_INTERVAL": "1000",
        "OTEL_LOGS_EXPORT_INTERVAL": "1000",
        "OTEL_LOG_USER_PROMPTS": "0",
        "OTEL_LOG_ASSISTANT_RESPONSES": "0",
        "OTEL_LOG_TOOL_DETAILS": "0",
        "OTEL_LOG_TOOL_CONTENT": "0",
        "OTEL_LOG_RAW_API_BODIES": "0",
    }
    return {("env", name): value for name, value in (variables | _headers(target)).items()}


def _codex(target: Target) -> Settings:
    # Its spans have no roles that anybody could read: hundreds a run, and nothing for us in them.
    exporter: dict[str, Any] = {"endpoint": f"{target.endpoint}/v1/logs", "protocol": "binary"}
    if target.token:
        exporter["headers"] = {"Authorization": target.bearer}
    return {("otel", "log_user_prompt"): False, ("otel", "exporter"): {"otlp-http": exporter}}


def _gemini(target: Target) -> Settings:
    values = {
        "enabled": True,
        "target": "local",
        "otlpEndpoint": target.endpoint,
        "otlpProtocol": "http",
        "logPrompts": False,
        "traces": False,  # spans come all the same; this adds prompts and outputs to them
    }
    return {("telemetry", name): value for name, value in values.items()}


def _qwen(target: Target) -> Settings:
    values = {
        "enabled": True,
        "target": "local",
        "otlpEndpoint": target.endpoint,
        "otlpProtocol": "http",
        "logPrompts": False,
        "includeSensitiveSpanAttributes": False,
    }
    return {("telemetry", name): value for name, value in values.items()}


def _copilot(target: Target) -> dict[str, str]:
    return {
        "OTEL_EXPORTER_OTLP_ENDPOINT": target.endpoint,
        "OTEL_BSP_SCHEDULE_DELAY": "1000",
        "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT": "false",
        **_headers(target),
    }


def _opencode(target: Target) -> dict[str, str]:
    return {"OTEL_EXPORTER_OTLP_ENDPOINT": target.endpoint, **_headers(target)}


def _headers(target: Target) -> dict[str, str]:
    # With a plain space: Claude Code 2.1.332 and opencode 1.18.33 send %20 as it stands, the others either (measured).
    return {_HEADERS: f"Authorization={target.bearer}"} if target.token else {}


PROGRAMS = {
    program.name: program
    for program in (
        Program(
            "claude-code",
            "Claude Code",
            "2.1.332",
            settings=_claude_code,
            file="settings.json",
            folder_variable="CLAUDE_CONFIG_DIR",
            folder=".claude",
        ),
        Program(
            "codex",
            "Codex",
            "0.171.0",
            settings=_codex,
            file="config.toml",
            folder_variable="CODEX_HOME",
            folder=".codex",
            notes=("Codex has tools' arguments and outputs in its logs, always; otel_letta does not read them.",),
        ),
        Program(
            "gemini",
            "Gemini CLI",
            "0.61.0",
            settings=_gemini,
            environment=_headers,
            file=".gemini/settings.json",
            folder_variable="GEMINI_CLI_HOME",
            notes=("Gemini CLI sends the prompt of -p as part of its command line; otel_letta does not read it.",),
        ),
        Program(
            "copilot",
            "Copilot CLI",
            "1.0.102",
            environment=_copilot,
            notes=("Copilot CLI has no settings file for this: it goes by the environment.",),
        ),
        Program(
            "qwen",
            "Qwen Code",
            "0.24.4",
            settings=_qwen,
            environment=_headers,
            file="settings.json",
            folder_variable="QWEN_HOME",
            folder=".qwen",
            notes=("Qwen Code has tools' arguments in its logs, always; otel_letta does not read them.",),
        ),
        Program(
            "opencode",
            "opencode",
            "1.18.33",
            settings=lambda target: {("experimental", "openTelemetry"): True},
            environment=_opencode,
            file="opencode/opencode.json",
            folder_variable="XDG_CONFIG_HOME",
            folder=".config",
            notes=("opencode has prompts and answers in its spans, always; otel_letta does not read them.",),
        ),
    )
}
