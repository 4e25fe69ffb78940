"""`otel-letta check`: the settings and where they came from, the server, the agent, and what a report would cost.

A secret goes to a server only after that server has said that it is one that takes reports. What the server says is
cleaned, and freed of our own secrets, before it is shown.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, TypeVar

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from otel_letta.errors import (
    LettaAgentNotFoundError,
    LettaAuthenticationError,
    LettaConfigurationError,
    LettaConnectionError,
    LettaError,
    LettaRateLimitError,
    LettaServerError,
    LettaTimeoutError,
    LettaUnsupportedError,
)
from otel_letta.letta.answers import rows
from otel_letta.letta.flavour import Flavour, ServerInfo, forget, recognise
from otel_letta.letta.redaction import redactor
from otel_letta.letta.select import SelectingTransport
from otel_letta.letta.transport import Block
from otel_letta.reporter import LettaReporter
from otel_letta.runtime.suppress import suppress_tracing
from otel_letta.settings import VARIABLES, Delivery, Secret, ServerKind, Settings
from otel_letta.text import clean_line

__all__ = ["check"]

_T = TypeVar("_T")

_READ_SECONDS = 10.0
"""Longest wait for an answer that costs the agent no turn."""
_TESTED = {Flavour.REST: "0.16.8", Flavour.APP_SERVER: "0.34.12"}
_NAME_CAP = 80
_ANSWER_CAP = 400
_CHAT = "otel-letta-check"
_AGENTS = 5
"""How many are named where the right one is not."""
_ENV = {"password": "LETTA_PASSWORD", "api_key": "LETTA_API_KEY"}


@click.command
@click.option("--send", is_flag=True, help="Send a test report. It wakes the agent and costs one turn of its LLM.")
@click.option("--env-file", type=click.Path(), metavar="PATH", help="Read this .env file instead of the nearest one.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
def check(send: bool, env_file: str | None, as_json: bool) -> None:
    """Say whether a report would reach your Letta agent, and what is wrong if not.

    Reads the settings as your program would from the present directory, asks the server, and sends nothing to the
    agent (but see --send). Exit code: 0 if a report would get through, else 1.
    """
    view: _View = _Json() if as_json else _Lines()
    with _warnings_to(view):
        _Examination(view, send).run(env_file)
    view.close()
    sys.exit(1 if view.problems else 0)


# -- what is looked at -----------------------------------------------------------------------------------------------


class _Stop(Exception):
    """A problem was told that makes the rest of the examination pointless."""


class _Examination:
    def __init__(self, view: _View, send: bool) -> None:
        self._view = view
        self._send = send

    def run(self, env_file: str | None) -> None:
        try:
            settings = self._settings(env_file)
            with suppress_tracing():  # no spans of these requests, should somebody have instrumented httpx
                self._server(settings)
        except _Stop:
            pass
        if self._view.problems and self._send:
            self._view.note("The test report was not sent.")

    def _settings(self, env_file: str | None) -> Settings:
        settings, errors = _read(env_file)
        bad = {_variable_of(error): error for error in errors}
        if settings is not None:
            self._view.settings(_rows_of(settings, {name for name in bad if name}))
        for error in errors:
            self._view.error(error)
        if settings is None:
            raise _Stop
        for warning in settings.security_warnings():
            self._view.warning(warning)
        if settings.disabled:
            self._view.problem(
                "OTEL_SDK_DISABLED=true: exporter and processor do nothing", "unset it where your program runs"
            )
        if not settings.agent_id:
            self._view.problem("No Letta agent is named", "set LETTA_AGENT_ID to the agent's id")
        if errors:
            raise _Stop  # the server that is asked might not be the one that is meant
        return settings

    def _server(self, settings: Settings) -> None:
        self._view.section("Server")
        bounded = dataclasses.replace(settings, read_timeout=min(settings.read_timeout, _READ_SECONDS))
        with _asking(bounded) as server:
            info = self._flavour(bounded, server)
            known = self._agent(bounded, server)
            if not known:
                raise _Stop
            board = self._board(bounded, server, info)
        self._cost(settings, board)
        if self._send and not self._view.problems:
            self._test_report(settings)

    def _flavour(self, settings: Settings, server: _Asking) -> ServerInfo:
        """Name what answers; stops unless it may take reports."""
        url = settings.base_url
        self._view.facts["server"] = {"flavour": "unknown", "version": None, "url": url}
        try:
            info = server.info()
        except LettaError as error:
            if settings.server is ServerKind.AUTO or isinstance(error, LettaConnectionError):
                self._view.error(error)
                raise _Stop from None
            self._view.note(f"{_words(error)[0]}; it is taken for what OTEL_LETTA_SERVER={settings.server} says.")
            info = ServerInfo(Flavour.REST if settings.server is ServerKind.REST else Flavour.APP_SERVER)
            self._view.facts["server"]["flavour"] = info.flavour.value
            return info
        named = {
            Flavour.REST: "Letta REST server",
            Flavour.APP_SERVER: "Letta App Server",
            Flavour.CLOUD: "Letta Cloud",
        }[info.flavour]
        self._view.facts["server"].update(flavour=info.flavour.value, version=info.version or None)
        if info.flavour is Flavour.REST and not info.version:
            self._view.note(f"{url} wants credentials before it says what it is: perhaps a proxy in front of Letta.")
        else:
            details = [f"protocol {info.protocol}"] if info.protocol is not None else []
            details += [f"{info.backend} backend"] if info.backend else []
            shown = f"{named} {info.version}".strip() + f" at {url}" + (f" ({', '.join(details)})" if details else "")
            self._view.good("server", shown)
        self._mismatch(settings, info, named)
        if info.flavour is Flavour.APP_SERVER:
            self._app_server(settings, info)
        elif settings.conversation is not None:
            self._view.note("OTEL_LETTA_CONVERSATION is for App Servers: here it changes nothing.")
        tested = _TESTED.get(info.flavour, "")
        if info.version and not f"{info.version}.".startswith(tested.rpartition(".")[0] + "."):
            self._view.note(f"otel_letta is tested with Letta {tested}.")
        return info

    def _mismatch(self, settings: Settings, info: ServerInfo, named: str) -> None:
        if settings.server is ServerKind.AUTO or not (info.version or info.flavour is Flavour.CLOUD):
            return  # it was asked, or did not say
        if (settings.server is ServerKind.REST) is (info.flavour is Flavour.APP_SERVER):
            self._view.problem(
                f"OTEL_LETTA_SERVER={settings.server}, and a {named} answers",
                "unset OTEL_LETTA_SERVER, or check LETTA_BASE_URL",
            )
            raise _Stop

    def _app_server(self, settings: Settings, info: ServerInfo) -> None:
        """What this one can do."""
        by_http = settings.server is ServerKind.APP_SERVER_HTTP
        self._view.facts["server"].update(
            protocol=info.protocol,
            backend=info.backend or None,
            openai_api=info.openai_api,
            capabilities=sorted(info.capabilities),
        )
        if by_http and info.openai_api is False:
            self._view.problem(
                "The App Server does not offer its OpenAI-compatible API",
                "start it with --openai-api, or unset OTEL_LETTA_SERVER",
            )
        elif by_http:
            self._view.good(None, "reports go over its OpenAI-compatible API")
        else:
            also = {
                True: "; its OpenAI-compatible API is on (OTEL_LETTA_SERVER=app-server-http would use that)",
                False: "; its OpenAI-compatible API is off",
                None: "",
            }[info.openai_api]
            self._view.good(None, f"reports go over its WebSocket{also}")
        if settings.conversation is not None:
            self._view.good(None, f"reports go to its conversation {settings.conversation!r}, made if there is none")
        if settings.max_steps is not None:
            self._view.note("OTEL_LETTA_MAX_STEPS has no effect on an App Server.")

    def _agent(self, settings: Settings, server: _Asking) -> bool:
        """Ask for the agent, which needs the token; False if none is named."""
        try:
            if settings.agent_id:
                found = self._described(settings, server.describe(settings.agent_id))
            else:
                others = self._others(settings, server.agents())
        except LettaAuthenticationError as error:
            self._refused(settings, error)
            raise _Stop from None
        except LettaAgentNotFoundError as error:
            self._accepted(settings)
            what, fix = _words(error)
            try:
                others = self._others(settings, server.agents())
            except LettaError:
                others = ""
            self._view.problem(what, f"{fix or 'check LETTA_AGENT_ID'}{'; ' if others else ''}{others}")
            raise _Stop from None
        except LettaError as error:
            self._view.error(error)
            raise _Stop from None
        self._accepted(settings)
        if not settings.agent_id:
            if others:
                self._view.note(others)
            return False
        self._view.facts["agent"] = {"id": settings.agent_id, **found}
        name, model = found["name"], found["model"]
        if settings.server is ServerKind.APP_SERVER_HTTP:
            self._view.note(f"agent {settings.agent_id}: this API cannot tell whether it exists; --send does.")
            return True
        self._view.good(
            "agent",
            (f'agent "{name}"' if name else f"agent {settings.agent_id}") + (f", model {model}" if model else ""),
        )
        return True

    def _described(self, settings: Settings, agent: dict[str, Any]) -> dict[str, str | None]:
        said = {key: agent.get(key) for key in ("name", "model")}
        return {key: self._said(settings, v, _NAME_CAP) if isinstance(v, str) else None for key, v in said.items()}

    def _refused(self, settings: Settings, error: LettaError) -> None:
        flavour = self._view.facts["server"].get("flavour")
        asked = self._asked_for
        # Measured: an App Server on loopback asks for none unless it was started with --ws-auth.
        which = "the token that the server was started with (--ws-auth)"
        name = settings.token_name
        status = f"HTTP {error.status}; " if error.status is not None else ""
        self._view.facts["server"]["credentials"] = "refused"
        if name is None:
            env = "LETTA_API_KEY" if flavour == Flavour.CLOUD.value else "LETTA_PASSWORD"
            self._view.problem(
                f"The server asks for a {asked}, and none is set" + (f" ({status[:-2]})" if status else ""),
                f"set {env}" + (f" to {which}" if asked == "token" else ""),
            )
            return
        env = _ENV[name]
        fix = f"check {env}"
        if flavour == Flavour.CLOUD.value and name == "password":
            fix += ": on Letta Cloud it is LETTA_API_KEY that counts"
        elif asked == "token":
            fix += f": it has to be {which}"
        self._view.problem(f"The server refuses {env} ({status}it came from {_place(settings.sources[name])})", fix)

    def _accepted(self, settings: Settings) -> None:
        name = settings.token_name
        self._view.facts["server"]["credentials"] = "accepted" if name else "none needed"
        if name is None:
            self._view.good(None, f"no {self._asked_for} needed")
        else:
            # An App Server that was started without a token takes any.
            also = ", or none is needed" if self._asked_for == "token" else ""
            self._view.good(None, f"{_ENV[name]} is accepted{also}")

    @property
    def _asked_for(self) -> str:
        return "token" if self._view.facts["server"].get("flavour") == Flavour.APP_SERVER.value else "password"

    def _others(self, settings: Settings, agents: list[dict[str, Any]]) -> str:
        """Which agents there are, to choose from."""
        shown = []
        for agent in agents:
            if isinstance(agent.get("id"), str):
                name = self._described(settings, agent)["name"]
                agent_id = self._said(settings, agent["id"], 200)
                shown.append(f"{agent_id} ({name})" if name else agent_id)
        return f"agents on this server: {', '.join(shown)}" if shown else ""

    def _board(self, settings: Settings, server: _Asking, info: ServerInfo) -> bool:
        """True if there will be one."""
        if settings.delivery is Delivery.MESSAGES:
            self._view.facts["board"] = None
            return False
        label = settings.board_label
        kind = "file" if info.flavour is Flavour.APP_SERVER else "block"
        try:
            blocks = server.blocks(settings.agent_id)
        except LettaUnsupportedError:
            why = f"This server has no memory {kind}s"
            if settings.server is ServerKind.APP_SERVER_HTTP:
                why = "The OpenAI-compatible API reaches no memory files"
            self._view.facts["board"] = {"possible": False, "label": None, "state": "unsupported"}
            if settings.delivery is Delivery.BOARD:
                self._view.problem(f"{why}, so no board", "set OTEL_LETTA_DELIVERY=messages")
            else:
                self._view.note(f"{why}: progress goes as messages instead.")
            return False
        except LettaError as error:
            self._view.error(error)
            return False
        mine = next((block for block in blocks if block.label == label), None)
        state = "new" if mine is None else "ours" if _is_ours(mine) else "foreign"
        self._view.facts["board"] = {"possible": True, "label": label, "state": state}
        if state == "foreign":
            self._view.good(None, f"board: possible; {kind} {label} is not otel_letta's, so {label}_2 or so is used")
        else:
            how = "it is there" if mine is not None else "made at the first report"
            shown = f"{label}.md" if kind == "file" else label
            self._view.good(None, f"board: memory {kind} {shown}, {how}")
        return True

    def _cost(self, settings: Settings, board: bool) -> None:
        self._view.section("Delivery")
        mode = settings.delivery
        if board and mode is Delivery.AUTO:
            how, most = "start and progress go on the board, the end is a message that wakes the agent", 1
        elif board:
            how, most = "everything goes on the board, the agent is never woken", 0
        elif mode is Delivery.BOARD:
            how, most = "nothing is reported without a board", 0
        else:
            pace = f"at most one in {settings.message_interval:g} s and task" if settings.message_interval else ""
            how, most = f"start, 25, 50 and 75 % as messages{f', {pace}' if pace else ''}, and the end", 5
        self._view.facts["delivery"] = {
            "mode": mode.value,
            "turns_per_task_at_most": most,
            "turns_per_hour_at_most": settings.wake_budget if most else 0,
        }
        self._view.plain(f"{mode}: {how}.")
        turns = {0: "no agent turn", 1: "1 agent turn"}.get(most, f"up to {most} agent turns")
        self._view.plain(f"One task costs {turns} (a turn is an LLM call over the agent's context).")
        if most:
            self._view.plain(f"All tasks of a process together: at most {settings.wake_budget} turns an hour.")

    def _test_report(self, settings: Settings) -> None:
        self._view.section("Test report")
        began = time.monotonic()
        try:
            with LettaReporter(settings=settings) as reporter, self._view.busy("The agent's turn …"):
                answer = reporter.send_progress_report_sync(
                    chat_id=_CHAT,
                    message_id=_CHAT,
                    content="Test report of 'otel-letta check --send': reports get through. No action is needed.",
                    progress=1.0,
                    status="completed",
                )
        except LettaError as error:
            self._view.facts["test_report"] = {"delivered": False}
            self._view.error(error)
            return
        took = time.monotonic() - began
        usage = answer.get("usage")
        usage = usage if isinstance(usage, dict) else {}
        steps, tokens = (_number(usage.get(name)) for name in ("step_count", "total_tokens"))
        said = self._said(settings, _assistant(answer), _ANSWER_CAP)
        self._view.facts["test_report"] = {
            "delivered": True,
            "seconds": round(took, 3),
            "turns": 1,
            "steps": steps,
            "tokens": tokens,
            "answer": said,
        }
        costs = ["1 agent turn"]
        costs += [f"{steps} LLM step{'' if steps == 1 else 's'}"] if steps is not None else []
        costs += [f"{tokens} tokens"] if tokens is not None else []
        self._view.good(None, f"delivered in {took:.1f} s; it cost {', '.join(costs)}")
        self._view.plain(f"The agent answers: {said}" if said else "The agent answers nothing.")

    def _said(self, settings: Settings, text: str, cap: int) -> str:
        """What a server said, fit for a terminal."""
        # Cleaned on both sides of the redaction: invisible characters inside a secret would hide it from the first.
        return clean_line(redactor(settings)(clean_line(text, cap * 4)), cap)


# -- settings --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Row:
    env: str
    value: str | None
    """None: not set."""
    source: str
    bad: bool


def _read(env_file: str | None) -> tuple[Settings | None, list[LettaConfigurationError]]:
    """The settings, and everything that is wrong with them: what cannot be used is replaced and read again."""
    errors: list[LettaConfigurationError] = []
    stand_ins: dict[str, Any] = {}
    while True:
        try:
            return Settings.resolve(dotenv_path=env_file, require_agent=False, **stand_ins), errors
        except LettaConfigurationError as error:
            errors.append(error)
            variable = next((v for v in VARIABLES if v.env == _variable_of(error)), None)
            if variable is None or variable.name in stand_ins:
                return None, errors
            stand_ins[variable.name] = {
                "agent_id": "-",
                "max_steps": 1,
                "trace_link": "http://localhost/{trace_id}",
            }.get(variable.name, "" if variable.secret else variable.default)


def _variable_of(error: LettaConfigurationError) -> str | None:
    """Every complaint about a value begins with its variable."""
    first = str(error).partition(" ")[0]
    return first if any(variable.env == first for variable in VARIABLES) else None


def _rows_of(settings: Settings, bad: set[str]) -> list[_Row]:
    table = []
    for variable in VARIABLES:
        value = getattr(settings, variable.name)
        if isinstance(value, Secret):
            shown: str | None = "***"
        elif value in (None, "", ()):
            shown = None
        elif isinstance(value, tuple):
            shown = ", ".join(value)
        elif isinstance(value, bool):
            shown = str(value).lower()  # as the environment spells it
        else:
            shown = f"{value:g}" if isinstance(value, float) else str(value)
            shown += f" {variable.unit}" if variable.unit else ""
        table.append(
            _Row(
                variable.env,
                None if shown is None else clean_line(shown, 600),
                settings.sources[variable.name],
                variable.env in bad,
            )
        )
    return table


def _place(source: str) -> str:
    return {"environment": "the environment", "default": "the defaults"}.get(source, clean_line(source, 500))


# -- asking the server -----------------------------------------------------------------------------------------------


class _Asking:
    """Requests that end in time. httpx bounds neither looking up a name nor an answer that comes in drops."""

    def __init__(self, settings: Settings) -> None:
        self._transport = SelectingTransport(settings)
        self._settings = settings

    def info(self) -> ServerInfo:
        """What the server says now, whatever another part of this process heard."""
        forget(self._settings.base_url)
        return self._within(lambda: recognise(self._settings))

    def describe(self, agent_id: str) -> dict[str, Any]:
        return self._within(lambda: self._transport.describe(agent_id))

    def agents(self) -> list[dict[str, Any]]:
        return self._within(lambda: self._transport.agents(_AGENTS))

    def blocks(self, agent_id: str) -> list[Block]:
        return self._within(lambda: self._transport.blocks(agent_id))

    def close(self) -> None:
        self._transport.close()

    def _within(self, call: Callable[[], _T]) -> _T:
        outcome: queue.SimpleQueue[tuple[bool, Any]] = queue.SimpleQueue()

        def work() -> None:
            try:
                with suppress_tracing():
                    outcome.put((True, call()))
            except Exception as error:  # noqa: BLE001 - raised again below
                outcome.put((False, error))

        threading.Thread(target=work, name="otel-letta check", daemon=True).start()
        try:
            done, value = outcome.get(timeout=_patience(self._settings))
        except queue.Empty:
            done, value = False, None
        if done:
            result: _T = value
            return result
        if value is None or (isinstance(value, LettaTimeoutError) and value.status is None):
            raise LettaTimeoutError(
                f"{self._settings.base_url} did not answer in time",
                hint="check LETTA_BASE_URL, and whether the server is overloaded or a firewall swallows the request",
            ) from None
        raise value


def _patience(settings: Settings) -> float:
    return min(settings.connect_timeout + settings.read_timeout, threading.TIMEOUT_MAX)


@contextmanager
def _asking(settings: Settings) -> Iterator[_Asking]:
    server = _Asking(settings)
    try:
        yield server
    finally:
        server.close()


def _is_ours(block: Block) -> bool:
    return isinstance(block.metadata.get("otel_letta"), dict)


def _assistant(answer: dict[str, Any]) -> str:
    """The last thing that the agent said, in Letta's form or in OpenAI's."""
    for choice in rows(answer.get("choices")):
        message = choice.get("message")
        content = message.get("content") if isinstance(message, dict) else None
        if isinstance(content, str):
            return content
    for message in reversed(rows(answer.get("messages"))):
        if message.get("message_type") == "assistant_message":
            content = message.get("content")
            if isinstance(content, str):
                return content
            return " ".join(part["text"] for part in rows(content) if isinstance(part.get("text"), str))
    return ""


def _number(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _words(error: LettaError) -> tuple[str, str]:
    """What is wrong, and how to fix it."""
    what = str(error)
    if error.hint:
        what = what.removesuffix(f" - {error.hint}")
    what = what.replace("dotenv_path", "--env-file", 1) if what.startswith("dotenv_path ") else what
    fix = error.hint
    if "WRONG_VERSION_NUMBER" in what or "record layer failure" in what:
        fix = "the server seems to speak plain http: write http:// in LETTA_BASE_URL"
    elif "CERTIFICATE_VERIFY_FAILED" in what:
        fix = "SSL_CERT_FILE can name the certificate of your own authority"
    elif not fix and isinstance(error, LettaRateLimitError):
        fix = "wait, and try again"
    elif not fix and isinstance(error, LettaServerError):
        fix = "see the log of the server, and try again"
    elif fix.startswith("allowed: "):
        fix = fix.replace("allowed:", "use", 1)
    return clean_line(what, 600), clean_line(fix, 600)


# -- showing it ------------------------------------------------------------------------------------------------------


@dataclass
class _View:
    """What was found. Subclasses show it, at once or at the end."""

    facts: dict[str, Any] = field(default_factory=dict)
    problems: list[dict[str, str]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def settings(self, rows: list[_Row]) -> None:
        self.facts["settings"] = {row.env: {"value": row.value, "source": row.source} for row in rows if not row.bad}

    def section(self, title: str) -> None: ...

    def good(self, key: str | None, text: str, **facts: Any) -> None:
        if key is not None:
            self.facts.setdefault(key, {}).update(facts)

    def plain(self, text: str) -> None: ...

    def note(self, text: str) -> None:
        self.notes.append(text)

    def warning(self, text: str) -> None:
        if text not in self.warnings:
            self.warnings.append(text)

    def problem(self, what: str, fix: str) -> None:
        self.problems.append({"problem": what, "fix": fix})

    def error(self, error: LettaError) -> None:
        self.problem(*_words(error))

    def busy(self, text: str) -> AbstractContextManager[object]:
        return nullcontext()

    def close(self) -> None: ...


class _Json(_View):
    def close(self) -> None:
        found = {
            "ok": not self.problems,
            **{
                name: self.facts.get(name)
                for name in ("settings", "server", "agent", "board", "delivery", "test_report")
            },
            "problems": self.problems,
            "warnings": self.warnings,
            "notes": self.notes,
        }
        click.echo(json.dumps(found, indent=2))


class _Lines(_View):
    def __init__(self) -> None:
        super().__init__()
        # No width where no terminal is: then a line is a line, for grep.
        self._console = Console(highlight=False, markup=False, emoji=False)
        if not self._console.is_terminal:
            self._console = Console(highlight=False, markup=False, emoji=False, width=10_000)
        unicode = (self._console.encoding or "").lower().startswith("utf")
        marks = ("✓", "✗", "!", "-") if unicode else ("ok", "NO", " !", " -")
        self._marks = dict(zip(("good", "bad", "warn", "note"), marks, strict=True))
        self._titled = False

    def settings(self, rows: list[_Row]) -> None:
        super().settings(rows)
        self._title("Settings")
        width = max(len(row.env) for row in rows)
        sources = dict.fromkeys(row.source for row in rows if not row.bad)
        for source in sorted(sources, key=lambda source: (source == "default", source != "environment")):
            heading = "the defaults" if source == "default" else _place(source)
            self._console.print(Text(f"  from {heading}"), style="dim" if source == "default" else "cyan")
            for row in rows:
                if row.source == source and not row.bad:
                    value = Text("not set", "dim") if row.value is None else Text(row.value)
                    lead = Text(f"    {row.env.ljust(width)}  ", "dim" if source == "default" else "")
                    self._row(lead, value)

    def section(self, title: str) -> None:
        self._title(title)

    def good(self, key: str | None, text: str, **facts: Any) -> None:
        super().good(key, text, **facts)
        self._row(self._mark("good", "green"), Text(text))

    def plain(self, text: str) -> None:
        self._row(Text(" " * len(self._mark("good", ""))), Text(text))

    def note(self, text: str) -> None:
        super().note(text)
        self._row(self._mark("note", "cyan"), Text(text))

    def warning(self, text: str) -> None:
        if text not in self.warnings:
            super().warning(text)
            self._row(self._mark("warn", "yellow"), Text(text, "yellow"))

    def problem(self, what: str, fix: str) -> None:
        super().problem(what, fix)
        line = Text(what, "red")
        if fix:
            line.append(". ", "red").append("Fix: ", "bold").append(fix)
        self._row(self._mark("bad", "bold red"), line)

    def busy(self, text: str) -> AbstractContextManager[object]:
        return self._console.status(Text(text)) if self._console.is_terminal else nullcontext()

    def close(self) -> None:
        self._console.print()
        if not self.problems:
            self._console.print(Text("A report would get through.", "bold green"))
        else:
            number = len(self.problems)
            things = "one thing is" if number == 1 else f"{number} things are"
            self._console.print(Text(f"A report would not get through: {things} wrong.", "bold red"))

    def _title(self, text: str) -> None:
        if self._titled:
            self._console.print()
        self._titled = True
        self._console.print(Text(text, "bold"))

    def _row(self, lead: Text, text: Text) -> None:
        """A line that goes on under its own text where the terminal is too narrow for it."""
        grid = Table.grid()
        grid.add_column(no_wrap=True)
        grid.add_column(overflow="fold")
        grid.add_row(lead, text)
        self._console.print(grid)

    def _mark(self, kind: str, style: str) -> Text:
        return Text.assemble("  ", (self._marks[kind], style), " ")


@contextmanager
def _warnings_to(view: _View) -> Iterator[None]:
    """What the package would log (a `.env` that cannot be read, for example) is told here instead."""

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.levelno >= logging.WARNING:
                view.warning(clean_line(record.getMessage(), 600))

    logger, handler = logging.getLogger("otel_letta"), Handler(logging.WARNING)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
