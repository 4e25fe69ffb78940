"""Settings from nothing but what a test gives, a value for every one of them, and the tables of the documentation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

from otel_letta.errors import LettaConfigurationError
from otel_letta.settings import VARIABLES, Settings, Variable

AGENT = "agent-1"
PASSWORD = "hunter2-correct-horse"
BY_NAME = {variable.name: variable for variable in VARIABLES}
SHOWN = {
    "base_url": ("https://Letta.example/v1", "https://letta.example"),
    "agent_id": ("agent-7", "agent-7"),
    "password": (PASSWORD, "***"),
    "api_key": (PASSWORD, "***"),
    "trust_dotenv": ("true", "true"),
    "certificate": ("/etc/ssl/letta.pem", "/etc/ssl/letta.pem"),
    "client_certificate": ("me.pem", "me.pem"),
    "client_key": ("me.key", "me.key"),
    "server": ("App-Server", "app-server"),
    "conversation": ("Task progress", "Task progress"),
    "delivery": ("board", "board"),
    "board_label": ("mine", "mine"),
    "board_interval": ("7.5", "7.5 s"),
    "message_interval": ("0", "0 s"),
    "poll_interval": ("1e0", "1 s"),
    "wake_budget": ("7", "7 turns per hour"),
    "connect_timeout": ("0.125", "0.125 s"),
    "read_timeout": ("2592000", "2592000 s"),
    "busy_timeout": ("1234567.5", "1234567.5 s"),
    "shutdown_timeout": ("1", "1 s"),
    "probe_interval": ("30", "30 s"),
    "max_pending_tasks": ("+1000000", "1000000 tasks"),
    "outbox": ("/var/lib/app/outbox.db", "/var/lib/app/outbox.db"),
    "outbox_exit": ("Leave", "leave"),
    "outbox_fsync": ("False", "false"),
    "outbox_max_size": ("5", "5 MB"),
    "outbox_max_age": ("3600", "3600 s"),
    "content_cap": ("500", "500 characters"),
    "max_steps": ("3", "3 steps"),
    "trace_link": ("https://jaeger.example/{trace_id}", "https://jaeger.example/{trace_id}"),
    "agent_allow_list": ("agent-1,agent-2,,", "agent-1, agent-2"),
    "grace": ("0.5", "0.5 s"),
    "idle_timeout": ("60", "60 s"),
    "answer_timeout": ("45", "45 s"),
    "wake_after": ("0", "0 s"),
    "wake_on_wait": ("False", "false"),
    "wait_timeout": ("3600", "3600 s"),
    "content": ("Errors,arguments", "arguments, errors"),
    "chat_id_attributes": ("session.id,thread", "session.id, thread"),
    "tasks": ("name:nightly *, scope:celery*,service:bot", "name:nightly *, scope:celery*, service:bot"),
    "control_flow": ("shop.Later,shop.errors.Skip", "shop.Later, shop.errors.Skip"),
    "answer_reasoning": ("true", "true"),
    "answer_spans": ("true", "true"),
    "baggage": ("TRUE", "true"),
}
"""A text for each variable that means something else than the default, and how the setting is shown."""


def resolve(environ: Mapping[str, str] | None = None, /, **keywords: Any) -> Settings:
    """Return the settings of an agent."""
    return Settings.resolve(environ={"LETTA_AGENT_ID": AGENT, **(environ or {})}, **keywords)


def complaint(environ: Mapping[str, str] | None = None, /, **keywords: Any) -> str:
    """Return the error about settings that cannot be used: one line."""
    with pytest.raises(LettaConfigurationError) as raised:
        resolve(environ, **keywords)
    message = str(raised.value)
    assert len(message.splitlines()) == 1
    assert message.isprintable()
    return message


def write_dotenv(folder: Path, text: str) -> Path:
    """Write the `.env` of a folder, and return its path."""
    path = folder / ".env"
    path.write_text(text, encoding="utf-8")
    return path


def documented(variables: Iterable[Variable], *columns: str) -> str:
    """Return the rows of the table that the documentation has, with these attributes of each variable at the end."""
    rows = []
    for variable in variables:
        cells = [f"`{variable.env}`", variable.show(variable.default), *(getattr(variable, each) for each in columns)]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)
