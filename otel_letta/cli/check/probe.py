"""The examination: settings first, then the server that they name, its agent, the board, and a report if wanted.

A secret goes to a server only after that server has named itself as one that takes reports. A server's texts are
cleaned, and freed of our own secrets, before they are kept.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Collection, Iterator
from contextlib import closing, contextmanager
from typing import Any

from otel_letta.cli.check.asking import Asking, cleaned
from otel_letta.cli.check.findings import Findings, Row, explained, place
from otel_letta.cli.check.outbox import examine_outbox
from otel_letta.cli.check.report import send_test_report
from otel_letta.errors import (
    LettaAgentNotFoundError,
    LettaAuthenticationError,
    LettaConfigurationError,
    LettaConnectionError,
    LettaError,
    LettaUnsupportedError,
)
from otel_letta.letta.flavour import Flavour, ServerInfo
from otel_letta.letta.transport import Block
from otel_letta.runtime.suppress import suppress_tracing
from otel_letta.settings import VARIABLES, Delivery, ServerKind, Settings
from otel_letta.text import clean_line

_READ_SECONDS = 10.0
"""Longest wait for an answer that costs the agent no turn."""
_TESTED = {Flavour.REST: "0.16.8", Flavour.APP_SERVER: "0.34.12"}
_NAMES = {Flavour.REST: "Letta REST server", Flavour.APP_SERVER: "Letta App Server", Flavour.CLOUD: "Letta Cloud"}
_NAME_CAP = 80
_ENV = {variable.name: variable.env for variable in VARIABLES}


def probe(findings: Findings, env_file: str | None, *, send: bool) -> None:
    """Find out whether a report would reach the agent.

    Args:
        findings: takes everything that is found.
        env_file: read instead of the nearest `.env`.
        send: also send a test report, which costs the agent one turn, if nothing is wrong by then.
    """
    with _warnings_to(findings):
        settings = _examine_settings(findings, env_file)
        if settings is not None:
            examine_outbox(findings, settings)
            with suppress_tracing():  # no spans of these requests, should somebody have instrumented httpx
                _examine_server(findings, settings, send)
        if findings.problems and send:
            findings.note("The test report was not sent.")


@contextmanager
def _warnings_to(findings: Findings) -> Iterator[None]:
    """Inside, a warning that the package logs (a `.env` that cannot be read, for example) is a finding."""

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.levelno >= logging.WARNING:
                findings.warning(clean_line(record.getMessage(), 600))

    logger, handler = logging.getLogger("otel_letta"), Handler(logging.WARNING)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


# -- settings --------------------------------------------------------------------------------------------------------


def _examine_settings(findings: Findings, env_file: str | None) -> Settings | None:
    """Return the settings if the server that they name is the one that is meant."""
    try:
        settings, errors = Settings.examine(dotenv_path=env_file)
    except LettaConfigurationError as error:
        findings.error(error)
        return None
    findings.settings(_rows_of(settings, errors.keys()))
    for each in errors.values():
        findings.error(each)
    for warning in settings.security_warnings():
        findings.warning(warning)
    if settings.disabled:
        findings.problem(
            "OTEL_SDK_DISABLED=true: exporter and processor do nothing", "unset it where your program runs"
        )
    if not settings.agent_id and "agent_id" not in errors:
        findings.problem("No Letta agent is named", "set LETTA_AGENT_ID to the agent's id")
    return None if errors else settings


def _rows_of(settings: Settings, unusable: Collection[str]) -> tuple[Row, ...]:
    return tuple(
        Row(
            variable.env,
            clean_line(variable.show(getattr(settings, variable.name)), 600) or None,
            settings.sources[variable.name],
        )
        for variable in VARIABLES
        if variable.name not in unusable
    )


# -- the server ------------------------------------------------------------------------------------------------------


def _examine_server(findings: Findings, settings: Settings, send: bool) -> None:
    findings.section("Server")
    bounded = dataclasses.replace(settings, read_timeout=min(settings.read_timeout, _READ_SECONDS))
    with closing(Asking(bounded)) as server:
        info = _flavour(findings, bounded, server)
        if info is None or not _Agent(findings, bounded, server, info).examine():
            return
        board = _board(findings, bounded, server, info)
    _cost(findings, settings, board)
    if send and not findings.problems:
        send_test_report(findings, settings)


def _flavour(findings: Findings, settings: Settings, server: Asking) -> ServerInfo | None:
    """Name what answers; None unless it may take reports."""
    url = settings.base_url
    facts = findings.facts["server"] = {"flavour": "unknown", "version": None, "url": url}
    try:
        info = server.info()
    except LettaError as error:
        if settings.server is ServerKind.AUTO or isinstance(error, LettaConnectionError):
            findings.error(error)
            return None
        findings.note(f"{explained(error)[0]}; it is taken for what OTEL_LETTA_SERVER={settings.server} says.")
        info = ServerInfo(Flavour.REST if settings.server is ServerKind.REST else Flavour.APP_SERVER)
        facts["flavour"] = info.flavour.value
        return info
    facts.update(flavour=info.flavour.value, version=info.version or None)
    name = _NAMES[info.flavour]
    if info.flavour is Flavour.REST and not info.version:
        findings.note(f"{url} wants credentials before it says what it is: perhaps a proxy in front of Letta.")
    else:
        details = [f"protocol {info.protocol}"] if info.protocol is not None else []
        details += [f"{info.backend} backend"] if info.backend else []
        findings.good(f"{name} {info.version}".strip() + f" at {url}" + (f" ({', '.join(details)})" if details else ""))
    if _is_another_kind(settings, info):
        findings.problem(
            f"OTEL_LETTA_SERVER={settings.server}, and a {name} answers",
            "unset OTEL_LETTA_SERVER, or check LETTA_BASE_URL",
        )
        return None
    if info.flavour is Flavour.APP_SERVER:
        _app_server(findings, settings, info)
    elif settings.conversation is not None:
        findings.note("OTEL_LETTA_CONVERSATION is for App Servers: here it changes nothing.")
    tested = _TESTED.get(info.flavour, "")
    if info.version and not f"{info.version}.".startswith(tested.rpartition(".")[0] + "."):
        findings.note(f"otel_letta is tested with Letta {tested}.")
    return info


def _is_another_kind(settings: Settings, info: ServerInfo) -> bool:
    if settings.server is ServerKind.AUTO or not (info.version or info.flavour is Flavour.CLOUD):
        return False  # it was asked, or did not answer that
    return (settings.server is ServerKind.REST) is (info.flavour is Flavour.APP_SERVER)


def _app_server(findings: Findings, settings: Settings, info: ServerInfo) -> None:
    """Find out what this one can do."""
    findings.facts["server"].update(
        protocol=info.protocol,
        backend=info.backend or None,
        openai_api=info.openai_api,
        capabilities=sorted(info.capabilities),
    )
    by_http = settings.server is ServerKind.APP_SERVER_HTTP
    if by_http and info.openai_api is False:
        findings.problem(
            "The App Server does not offer its OpenAI-compatible API",
            "start it with --openai-api, or unset OTEL_LETTA_SERVER",
        )
    elif by_http:
        findings.good("reports go over its OpenAI-compatible API")
    else:
        also = {
            True: "; its OpenAI-compatible API is on (OTEL_LETTA_SERVER=app-server-http would use that)",
            False: "; its OpenAI-compatible API is off",
            None: "",
        }[info.openai_api]
        findings.good(f"reports go over its WebSocket{also}")
    if settings.conversation is not None:
        findings.good(f"reports go to its conversation {settings.conversation!r}, made if there is none")
    if settings.max_steps is not None:
        findings.note("OTEL_LETTA_MAX_STEPS has no effect on an App Server.")


# -- the agent, and who may ask for it -------------------------------------------------------------------------------


class _Agent:
    """Asks for the agent, which needs the token."""

    def __init__(self, findings: Findings, settings: Settings, server: Asking, info: ServerInfo) -> None:
        self._findings = findings
        self._settings = settings
        self._server = server
        self._flavour = info.flavour
        self._credentials = "token" if info.flavour is Flavour.APP_SERVER else "password"

    def examine(self) -> bool:
        """Return whether a report has an agent to go to."""
        findings, settings = self._findings, self._settings
        try:
            if settings.agent_id:
                found = self._described(self._server.describe(settings.agent_id))
            else:
                others = self._others()
        except LettaAuthenticationError as error:
            self._refused(error)
            return False
        except LettaAgentNotFoundError as error:
            self._accepted()
            what, fix = explained(error)
            try:
                others = self._others()
            except LettaError:
                others = ""
            findings.problem(what, f"{fix or 'check LETTA_AGENT_ID'}{'; ' if others else ''}{others}")
            return False
        except LettaError as error:
            findings.error(error)
            return False
        self._accepted()
        if not settings.agent_id:
            if others:
                findings.note(others)
            return False
        findings.facts["agent"] = {"id": settings.agent_id, **found}
        if settings.server is ServerKind.APP_SERVER_HTTP:
            findings.note(f"agent {settings.agent_id}: this API cannot tell whether it exists; --send does.")
        else:
            name, model = found["name"], found["model"]
            shown = f'agent "{name}"' if name else f"agent {settings.agent_id}"
            findings.good(shown + (f", model {model}" if model else ""))
        return True

    def _described(self, row: dict[str, Any]) -> dict[str, str | None]:
        texts = {key: row.get(key) for key in ("name", "model")}
        return {
            key: cleaned(self._settings, text, _NAME_CAP) if isinstance(text, str) else None
            for key, text in texts.items()
        }

    def _others(self) -> str:
        """Return which agents there are, to choose from."""
        shown = []
        for row in self._server.agents():
            if isinstance(row.get("id"), str):
                name = self._described(row)["name"]
                agent_id = cleaned(self._settings, row["id"], 200)
                shown.append(f"{agent_id} ({name})" if name else agent_id)
        return f"agents on this server: {', '.join(shown)}" if shown else ""

    def _accepted(self) -> None:
        name = self._settings.token_name
        self._findings.facts["server"]["credentials"] = "accepted" if name else "none needed"
        if name is None:
            self._findings.good(f"no {self._credentials} needed")
        else:
            # An App Server that was started without a token takes any.
            also = ", or none is needed" if self._credentials == "token" else ""
            self._findings.good(f"{_ENV[name]} is accepted{also}")

    def _refused(self, error: LettaError) -> None:
        self._findings.facts["server"]["credentials"] = "refused"
        name = self._settings.token_name
        is_token, is_cloud = self._credentials == "token", self._flavour is Flavour.CLOUD
        # Measured: an App Server on loopback asks for none unless it was started with --ws-auth.
        which = "the token that the server was started with (--ws-auth)"
        status = f"HTTP {error.status}" if error.status is not None else ""
        if name is None:
            what = f"The server asks for a {self._credentials}, and none is set" + (f" ({status})" if status else "")
            fix = f"set {_ENV['api_key' if is_cloud else 'password']}" + (f" to {which}" if is_token else "")
        else:
            came_from = f"it came from {place(self._settings.sources[name])}"
            what = f"The server refuses {_ENV[name]} ({'; '.join(filter(None, (status, came_from)))})"
            fix = f"check {_ENV[name]}"
            if is_cloud and name == "password":
                fix += ": on Letta Cloud it is LETTA_API_KEY that counts"
            elif is_token:
                fix += f": it has to be {which}"
        self._findings.problem(what, fix)


# -- the board, and what reports cost --------------------------------------------------------------------------------


def _board(findings: Findings, settings: Settings, server: Asking, info: ServerInfo) -> bool:
    """Return whether there will be one."""
    if settings.delivery is Delivery.MESSAGES:
        return False
    label = settings.board_label
    kind = "file" if info.flavour is Flavour.APP_SERVER else "block"
    try:
        blocks = server.blocks(settings.agent_id)
    except LettaUnsupportedError:
        why = f"This server has no memory {kind}s"
        if settings.server is ServerKind.APP_SERVER_HTTP:
            why = "The OpenAI-compatible API reaches no memory files"
        findings.facts["board"] = {"possible": False, "label": None, "state": "unsupported"}
        if settings.delivery is Delivery.BOARD:
            findings.problem(f"{why}, so no board", "set OTEL_LETTA_DELIVERY=messages")
        else:
            findings.note(f"{why}: progress goes as messages instead.")
        return False
    except LettaError as error:
        findings.error(error)
        return False
    known = next((block for block in blocks if block.label == label), None)
    state = "new" if known is None else "ours" if _is_ours(known) else "foreign"
    findings.facts["board"] = {"possible": True, "label": label, "state": state}
    if state == "foreign":
        findings.good(f"board: possible; {kind} {label} is not otel_letta's, so {label}_2 or so is used")
    else:
        how = "it is there" if known is not None else "made at the first report"
        findings.good(f"board: memory {kind} {f'{label}.md' if kind == 'file' else label}, {how}")
    return True


def _is_ours(block: Block) -> bool:
    return isinstance(block.metadata.get("otel_letta"), dict)


def _cost(findings: Findings, settings: Settings, board: bool) -> None:
    findings.section("Delivery")
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
    findings.facts["delivery"] = {
        "mode": mode.value,
        "turns_per_task_at_most": most,
        "turns_per_hour_at_most": settings.wake_budget if most else 0,
    }
    findings.plain(f"{mode}: {how}.")
    turns = {0: "no agent turn", 1: "1 agent turn"}.get(most, f"up to {most} agent turns")
    findings.plain(f"One task costs {turns} (a turn is an LLM call over the agent's context).")
    if most:
        findings.plain(f"All tasks of a process together: at most {settings.wake_budget} turns an hour.")
