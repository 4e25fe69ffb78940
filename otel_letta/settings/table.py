"""The table of settings: one row each, from which parsing, error messages, displays and documentation come.

A new setting is a row here and a keyword in `SettingsOptions`.
"""

# ruff: noqa: RUF009 - the calls make fields of the dataclass, as dataclasses.field() does

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple, TypeVar, cast

from otel_letta.settings.kinds import (
    AGENT_ID,
    PATH,
    AgentIds,
    ContentFields,
    Delivery,
    Kind,
    Names,
    Number,
    OneOf,
    SecretText,
    ServerKind,
    Switch,
    TaskPatterns,
    Text,
    Title,
    Whole,
)
from otel_letta.settings.outbox import OutboxAddress, OutboxExit, OutboxKind
from otel_letta.settings.secret import Secret
from otel_letta.settings.urls import DEFAULT_BASE_URL, ServerUrl, TraceLink

T = TypeVar("T")
D = TypeVar("D")


def _setting(env: str, kind: Kind[T], default: D, help: str, unit: str = "") -> T | D:  # noqa: A002
    """Make a row. Type checkers see the type of its values, so that a field cannot have another one than its kind."""
    metadata = {"env": env, "default": default, "unit": unit, "help": help, "kind": kind}
    return cast("T | D", field(metadata=metadata))


# Its instances have no fields that anybody sets: `Settings` brings the constructor.
@dataclass(init=False, repr=False, eq=False, frozen=True, kw_only=True)
class Table:
    """The settings by name: variable, kind, default and description of each."""

    base_url: str = _setting("LETTA_BASE_URL", ServerUrl(), DEFAULT_BASE_URL, "Address of the Letta server.")
    """Scheme, host, port and path prefix, without a slash, ``/v1`` or a WebSocket's ``/ws`` at the end."""
    agent_id: str = _setting("LETTA_AGENT_ID", AGENT_ID, "", "Agent that gets the reports (required).")
    """Empty only after ``resolve(require_agent=False)``."""
    password: Secret | None = _setting(
        "LETTA_PASSWORD",
        SecretText(),
        None,
        "Password of a self-hosted server, or token of an App Server, if it has one.",
    )
    api_key: Secret | None = _setting(
        "LETTA_API_KEY",
        SecretText(),
        None,
        "API key of Letta Cloud; another server gets it where there is no password.",
    )
    trust_dotenv: bool = _setting(
        "OTEL_LETTA_TRUST_DOTENV",
        Switch(),
        # Whoever can write a file into a folder, or into one above it, would otherwise choose where a password goes.
        False,
        "Let a .env that was found by searching name the server that secrets from elsewhere go to. Not read from it.",
    )
    certificate: str | None = _setting(
        "OTEL_LETTA_CERTIFICATE",
        PATH,
        None,
        "File with the certificates (PEM) that the server's is checked against; unset: SSL_CERT_FILE, or public ones.",
    )
    client_certificate: str | None = _setting(
        "OTEL_LETTA_CLIENT_CERTIFICATE", PATH, None, "File with the certificate (PEM) that is shown to the server."
    )
    client_key: str | None = _setting(
        "OTEL_LETTA_CLIENT_KEY", PATH, None, "File with its private key (PEM), where that is a file of its own."
    )
    server: ServerKind = _setting(
        "OTEL_LETTA_SERVER",
        OneOf(ServerKind),
        ServerKind.AUTO,
        "Kind of the server. auto: it is asked once; app-server: over its WebSocket; app-server-http: over its "
        "OpenAI-compatible API, for short-lived processes.",
    )
    conversation: str | None = _setting(
        "OTEL_LETTA_CONVERSATION",
        Title(100),
        None,
        "Title of a conversation of its own for reports, on an App Server; unset: the agent's default one.",
    )
    delivery: Delivery = _setting(
        "OTEL_LETTA_DELIVERY",
        OneOf(Delivery),
        Delivery.AUTO,
        "auto: progress to the board, ends as messages; messages: no board; board: no LLM call ever.",
    )
    board_label: str = _setting(
        "OTEL_LETTA_BOARD_LABEL",
        Text(50, form=r"[A-Za-z0-9_-]+", allowed="1 to 50 letters (a-z, A-Z), digits, _ and -"),
        "task_progress",
        "Label of the memory block that shows the live tasks.",
    )
    board_interval: float = _setting(
        "OTEL_LETTA_BOARD_INTERVAL", Number("seconds"), 15.0, "Shortest time between two board writes.", "s"
    )
    message_interval: float = _setting(
        "OTEL_LETTA_MESSAGE_INTERVAL",
        Number("seconds"),
        60.0,
        "A task sends at most one in_progress message in this time.",
        "s",
    )
    poll_interval: float = _setting(
        "OTEL_LETTA_POLL_INTERVAL", Number("seconds", 0.01, 60), 0.25, "How often open spans are read.", "s"
    )
    wake_budget: int = _setting(
        "OTEL_LETTA_WAKE_BUDGET",
        Whole("agent turns"),
        60,
        "Turns that reports of one process may cost an agent; past it, ends wait and go together.",
        "turns per hour",
    )
    connect_timeout: float = _setting(
        "OTEL_LETTA_CONNECT_TIMEOUT", Number("seconds", above=True), 5.0, "Longest wait for a connection.", "s"
    )
    read_timeout: float = _setting(
        "OTEL_LETTA_READ_TIMEOUT",
        Number("seconds", above=True),
        600.0,
        "Longest wait for an answer: a message's lasts the agent's whole turn.",
        "s",
    )
    busy_timeout: float = _setting(
        "OTEL_LETTA_BUSY_TIMEOUT",
        Number("seconds", above=True),
        120.0,
        "Longest wait for a turn of the agent that somebody else started.",
        "s",
    )
    shutdown_timeout: float = _setting(
        "OTEL_LETTA_SHUTDOWN_TIMEOUT", Number("seconds", above=True), 5.0, "Time that the exit gives to delivery.", "s"
    )
    probe_interval: float = _setting(
        "OTEL_LETTA_PROBE_INTERVAL", Number("seconds"), 60.0, "How often a parked lane is tried.", "s"
    )
    max_pending_tasks: int = _setting(
        "OTEL_LETTA_MAX_PENDING_TASKS", Whole("tasks"), 10_000, "Tasks that may wait to be reported.", "tasks"
    )
    outbox: OutboxAddress | None = _setting(
        "OTEL_LETTA_OUTBOX",
        OutboxKind(),
        None,
        "File, or postgresql://… database, that keeps what is not delivered yet, beyond the process; unset: none.",
    )
    outbox_exit: OutboxExit = _setting(
        "OTEL_LETTA_OUTBOX_EXIT",
        OneOf(OutboxExit),
        OutboxExit.DELIVER,
        "deliver: the exit waits for delivery as long as it may; leave: the next process delivers what the outbox "
        "holds; detach: a process that goes on does.",
    )
    outbox_fsync: bool = _setting(
        "OTEL_LETTA_OUTBOX_FSYNC",
        Switch(),
        True,
        "The disk confirms each end and each request; false: a power failure may cost the last seconds.",
    )
    outbox_max_size: int = _setting(
        "OTEL_LETTA_OUTBOX_MAX_SIZE",
        Whole("megabytes", 1, 1_000_000),
        200,
        "Most that the outbox may hold; what comes on top is kept in memory.",
        "MB",
    )
    outbox_max_age: float = _setting(
        "OTEL_LETTA_OUTBOX_MAX_AGE",
        Number("seconds", above=True),
        7 * 86_400.0,
        "An end that could not be delivered for this long is given up.",
        "s",
    )
    content_cap: int = _setting(
        "OTEL_LETTA_CONTENT_CAP",
        Whole("characters", 100, 10_000),
        2_000,
        "Longest text of a report; the rest is cut.",
        "characters",
    )
    max_steps: int | None = _setting(
        "OTEL_LETTA_MAX_STEPS",
        Whole("steps"),  # not 0: Letta 0.16.8 answers 200 to that and drops the message
        None,
        "Steps that the agent may take on a report; unset: the server's default.",
        "steps",
    )
    trace_link: str | None = _setting(
        "OTEL_LETTA_TRACE_LINK",
        TraceLink(),
        None,
        "Link to the trace, for the agent: https://jaeger.example/trace/{trace_id}",
    )
    """Template with ``{trace_id}`` and perhaps ``{span_id}``, no other braces."""
    agent_allow_list: tuple[str, ...] = _setting(
        "OTEL_LETTA_AGENT_ALLOW_LIST", AgentIds(), (), "Other agents that a span may name in letta.agent.id."
    )
    grace: float = _setting(
        "OTEL_LETTA_GRACE",
        Number("seconds"),
        2.0,
        "How long an agent's task waits for late spans after its root has ended.",
        "s",
    )
    idle_timeout: float = _setting(
        "OTEL_LETTA_IDLE_TIMEOUT",
        Number("seconds", above=True),
        # A span arrives when it has ended, and clients of LLMs wait up to ten minutes for an answer.
        900.0,
        "After this long without a span an agent's task is quiet, or ends by what failed last; after eight times it is "
        "lost.",
        "s",
    )
    answer_timeout: float = _setting(
        "OTEL_LETTA_ANSWER_TIMEOUT",
        Number("seconds", above=True),
        # Clients of LLMs wait up to half a minute before they try again (Gemini CLI 0.61, measured).
        60.0,
        "A turn that only logs tell of is over this long after the last answer, or trouble with the model.",
        "s",
    )
    wake_after: float = _setting(
        "OTEL_LETTA_WAKE_AFTER",
        Number("seconds"),
        60.0,
        "Inferred tasks wake the agent if they failed or took longer; else they only stand on the board.",
        "s",
    )
    wake_on_wait: bool = _setting(
        "OTEL_LETTA_WAKE_ON_WAIT",
        Switch(),
        True,
        "A task that waits for a person wakes the agent; false: it only stands on the board.",
    )
    wait_timeout: float = _setting(
        "OTEL_LETTA_WAIT_TIMEOUT",
        Number("seconds", above=True),
        86_400.0,
        "A task that waits for a person is lost after this long.",
        "s",
    )
    content: tuple[str, ...] = _setting(
        "OTEL_LETTA_CONTENT",
        ContentFields(),
        (),
        "What reports take from agents' spans: names (default), full, or some of arguments, results, prompt, answer, "
        "errors.",
    )
    """Fields beside names; see `otel_letta.tracking.conventions`."""
    chat_id_attributes: tuple[str, ...] = _setting(
        "OTEL_LETTA_CHAT_ID_ATTRIBUTES",
        Names("attribute names"),
        (),
        "Further attributes of agents' spans that hold the chat id, after those of the conventions.",
    )
    tasks: tuple[tuple[str, str], ...] = _setting(
        "OTEL_LETTA_TASKS",
        TaskPatterns(),
        (),
        "Other spans that are tasks: scope:PATTERN, name:PATTERN, with * and ?, separated by commas. service:PATTERN: "
        "calls of models that only a conversation's id joins are tasks without a tool too.",
    )
    """``scope``, ``name`` or ``service``, and a pattern."""
    control_flow: tuple[str, ...] = _setting(
        "OTEL_LETTA_CONTROL_FLOW",
        Names("full names of exceptions, module.Name"),
        (),
        "Exceptions by which a framework steers its tasks: what they end has ended on purpose, and did not fail.",
    )
    answer_reasoning: bool = _setting(
        "OTEL_LETTA_ANSWER_REASONING",
        Switch(),
        False,
        "Give on_answer the agent's reasoning too.",
    )
    answer_spans: bool = _setting(
        "OTEL_LETTA_ANSWER_SPANS",
        Switch(),
        False,
        "Make a span of each of the agent's turns that a report costs, linked to the task's.",
    )
    baggage: bool = _setting(
        "OTEL_LETTA_BAGGAGE",
        Switch(),
        # Whoever can send a request can send baggage, so it may choose the chat only where that is wanted.
        False,
        "Take letta.chat.id and letta.message.id from inbound baggage, where a span has none (live only).",
    )


class Variable(NamedTuple):
    """One setting: the keyword `name`, the variable `env`, and what both may hold."""

    name: str
    env: str
    default: object
    unit: str
    help: str
    kind: Kind[object]

    def parse(self, value: object) -> object:
        """Turn text, or a keyword's value, into the setting; raises ValueError."""
        return self.kind.parse(value)

    def show(self, value: object) -> str:
        """Write the setting for a reader, with its unit: ``15 s``, ``***`` for a secret, empty where there is none."""
        text = self.write(value)
        return f"{text} {self.unit}" if text and self.unit else text

    def write(self, value: object) -> str:
        """Write the setting as the environment would hold it: ``15``; a secret as ``***``, none as an empty text."""
        return "" if value in (None, (), "") else self.kind.write(value)

    @property
    def secret(self) -> bool:
        """True when the value is shown nowhere."""
        return isinstance(self.kind, SecretText)

    @property
    def allowed(self) -> str:
        """What the value may be, for a reader."""
        return self.kind.allowed


VARIABLES = tuple(Variable(name=row.name, **cast("dict[str, Any]", row.metadata)) for row in fields(Table))
"""All settings, in the order of the documentation."""
BY_NAME = {variable.name: variable for variable in VARIABLES}
OTHER_VARIABLES = frozenset(
    {
        "OTEL_LETTA_LIVE",
        "OTEL_LETTA_LOG_EVENTS",
        "OTEL_LETTA_SERVE_TOKEN",
        "OTEL_LETTA_SPOOL",
        "OTEL_LETTA_TEST_CACHE",
        "OTEL_LETTA_TEST_ORDERS",
        "OTEL_LETTA_WEBHOOK_TOKEN",
    }
)
"""Variables of ours that are read from the environment alone, where they are needed, and are no settings."""
