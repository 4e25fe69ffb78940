"""`Settings`: everything that can be set, read and checked at one moment.

    settings = Settings.resolve(agent_id="agent-…")
    settings.warn_once(logging.getLogger("otel_letta"))
    headers = {"Authorization": f"Bearer {settings.token.reveal()}"} if settings.token else {}

Nobody vouches for the text that arrives here: a bad value ends in one line that names the variable, the value, its
source and what is allowed, and no secret is ever part of such a line.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Literal, NoReturn, TypedDict
from urllib.parse import urlsplit

from otel_letta.errors import LettaConfigurationError
from otel_letta.settings.kinds import Delivery, ServerKind
from otel_letta.settings.outbox import OutboxAddress, OutboxExit
from otel_letta.settings.secret import Secret, fingerprint
from otel_letta.settings.sources import (
    OPTIONS,
    REFUSED,
    absolute,
    described,
    dotenv_layer,
    environment_layer,
    escaped,
    is_disabled,
    keyword_layer,
    log_once,
    nearest_dotenv_layer,
    read,
    sealed,
    unknown,
    working_directory,
)
from otel_letta.settings.table import BY_NAME, VARIABLES, Table
from otel_letta.settings.urls import CLOUD_BASE_URL, DEFAULT_BASE_URL, is_loopback

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, eq=False)
class Settings(Table):
    """All settings, read and checked at one moment. Made by `Settings.resolve`::

        settings = Settings.resolve(agent_id="agent-…", delivery="board")
        processor, reporter = LettaSpanProcessor(settings=settings), LettaReporter(settings=settings)

    Two settings are equal when all their values are equal, wherever these came from. They cannot be pickled: another
    process resolves its own.
    """

    _sources: tuple[tuple[str, str], ...] = field(repr=False)
    _disabled: bool = field(repr=False)
    _searched: str = field(repr=False)
    """Path of the `.env` that was found by searching; empty if there was none, or its path was given."""
    # A closure, not its arguments: those may hold secrets, and asdict() would walk into them.
    _again: Callable[[], Settings] = field(repr=False)

    @classmethod
    def resolve(
        cls,
        *,
        environ: Mapping[str, str] | None = None,
        dotenv_path: str | os.PathLike[str] | None = None,
        require_agent: bool = True,
        **keywords: object,
    ) -> Settings:
        """Read the settings: keyword, else environment, else `.env`, else default.

        None as keyword, and an empty (or blank) text in environment or `.env`, count as not set. ``password=""`` and
        ``api_key=""`` mean that there is none, whatever the environment holds.

        Args:
            environ: read instead of ``os.environ``, and read again by `refresh`.
            dotenv_path: a `.env` file that must exist; without it the nearest one upward from the working directory
                is read, if there is one. ``${NAME}`` in it is replaced as python-dotenv does everywhere.
            require_agent: False lets `agent_id` be missing.
            **keywords: any `Variable.name` of `VARIABLES`.

        Raises:
            LettaConfigurationError: a value cannot be used, a keyword or file does not exist, or no agent is named.
        """
        # Rebound at once: from here on no frame of ours holds a secret in clear, should a traceback show variables.
        keywords = {name: sealed(name, value) for name, value in keywords.items()}
        for name in keywords:
            if name not in BY_NAME:
                raise unknown(name)
        explicit = None if dotenv_path is None else absolute(dotenv_path)
        return cls._read(environ, explicit, working_directory(), require_agent, keywords)

    @classmethod
    def _read(
        cls,
        environ: Mapping[str, str] | None,
        explicit: str | None,
        start: str | None,
        require_agent: bool,
        keywords: Mapping[str, object],
        complaints: dict[str, LettaConfigurationError] | None = None,
    ) -> Settings:
        named = keyword_layer(keywords), environment_layer(os.environ if environ is None else environ)
        dotenv = dotenv_layer(explicit) if explicit is not None else nearest_dotenv_layer(start, named)
        values, sources = read((*named, dotenv), complaints)
        settings = cls(
            **values,
            _sources=tuple(sources.items()),
            _disabled=is_disabled(os.environ if environ is None else environ),
            _searched=dotenv.source if dotenv.searched else "",
            _again=lambda: cls._read(environ, explicit, start, require_agent, keywords),
        )
        diverted = settings._diverted_secret()
        if diverted is not None:
            if complaints is None:
                raise diverted
            complaints.setdefault("base_url", diverted)
        if require_agent and not settings.agent_id:
            raise LettaConfigurationError(
                "No Letta agent is named", hint="set LETTA_AGENT_ID (or the keyword agent_id) to the agent's id"
            )
        return settings

    @classmethod
    def examine(
        cls, *, dotenv_path: str | os.PathLike[str] | None = None
    ) -> tuple[Settings, dict[str, LettaConfigurationError]]:
        """Read the settings as `resolve` does without keywords, and find everything that is wrong with them.

        Returns:
            The settings, with defaults in place of what cannot be used (`sources`: ``refused``), and the errors by
            setting. A missing agent is none of them.

        Raises:
            LettaConfigurationError: the file does not exist.
        """
        complaints: dict[str, LettaConfigurationError] = {}
        explicit = None if dotenv_path is None else absolute(dotenv_path)
        return cls._read(None, explicit, working_directory(), False, {}, complaints), complaints

    @classmethod
    def from_options(
        cls, options: dict[str, Any], *, lenient: bool = False
    ) -> tuple[Settings, tuple[LettaConfigurationError, ...]]:
        """Read the keywords that a component was given: a finished ``settings``, or those of `resolve`.

        Args:
            options: the keywords by name. Texts that may be secrets are sealed in place, nothing else changes.
            lenient: ignore options that do not exist instead of raising. Not where the address of the server is the
                default one: such an option may have been meant to name it, and reports and password would go astray.

        Returns:
            The settings, and a complaint about each option that was ignored. No complaint quotes a value.

        Raises:
            LettaConfigurationError: what `resolve` raises; or ``settings`` is not a `Settings`, or was given together
                with other options.
        """
        for name in options:
            options[name] = sealed(name, options[name])
        complaints = tuple(unknown(name) for name in options if name not in OPTIONS)
        if complaints and not lenient:
            raise complaints[0]
        others = {name: value for name, value in options.items() if name in OPTIONS and name != "settings"}
        settings = options.get("settings")
        if settings is None:
            settings = cls.resolve(**others)
        elif not isinstance(settings, Settings):
            raise LettaConfigurationError("settings are what Settings.resolve() gives")
        elif others:
            raise LettaConfigurationError(f"settings and {', '.join(sorted(others))} exclude each other")
        if complaints and settings.sources["base_url"] == "default":
            raise complaints[0]
        return settings, complaints

    def refresh(self) -> Settings:
        """Read the same keywords, environment and `.env` again: people rotate passwords while programs run.

        A new address is taken only from where the old one came from: a `.env` that appears later, or a variable that
        goes away, diverts nothing. Returns these settings when the new ones cannot be used; never raises.
        """
        try:
            # The search starts where the first one did. A program may have changed into a folder by now whose .env
            # is not its own (an agent's workspace), and the password must not go where that file sends it.
            fresh = self._again()
        except LettaConfigurationError as error:
            log_once(_logger, logging.DEBUG, f"Settings could not be read again, the old ones stay: {error}")
            return self
        before, now = self.sources["base_url"], fresh.sources["base_url"]
        return fresh if now == before else self._without(now, fresh)

    def _without(self, source: str, fresh: Settings) -> Settings:
        """Return fresh settings with these ones' values for all that comes from a source."""
        log_once(
            _logger,
            logging.WARNING,
            f"LETTA_BASE_URL {described(source)} is new and is not used before a restart: reports still go to "
            f"{self._host}, as LETTA_BASE_URL {described(self.sources['base_url'])} says",
        )
        kept = [name for name in BY_NAME if fresh.sources[name] == source]
        sources = {**fresh.sources, **{name: self.sources[name] for name in kept}}
        values = {name: getattr(self, name) for name in kept}
        return replace(fresh, **values, _sources=tuple(sources.items()), _searched=self._searched)

    @property
    def token(self) -> Secret | None:
        """The secret for the Authorization header: Letta Cloud prefers the API key, other servers the password."""
        return {"password": self.password, "api_key": self.api_key}.get(self.token_name or "")

    @property
    def token_name(self) -> str | None:
        """The setting that `token` comes from: ``password`` or ``api_key``; None where there is no token."""
        order = ("api_key", "password") if self.is_cloud else ("password", "api_key")
        return next((name for name in order if getattr(self, name) is not None), None)

    @property
    def is_cloud(self) -> bool:
        """True when the server is Letta Cloud, by its name."""
        return self._host == urlsplit(CLOUD_BASE_URL).hostname

    @property
    def is_loopback(self) -> bool:
        """True when the server is on this very machine by its address's form; no name is looked up."""
        return is_loopback(self._host)

    @property
    def _host(self) -> str:
        return urlsplit(self.base_url).hostname or ""

    @property
    def sources(self) -> Mapping[str, str]:
        """The source of each setting: ``keyword``, ``environment``, ``default``, or the path of the `.env` file."""
        return MappingProxyType(dict(self._sources))

    @property
    def disabled(self) -> bool:
        """True when ``OTEL_SDK_DISABLED`` was ``true`` in the environment (a `.env` cannot set it)."""
        return self._disabled

    def identity(self) -> tuple[Hashable, ...]:
        """Return a key that is equal for settings that may share a pipeline.

        It holds no secret, and is valid in this process and its forks.
        """
        values = (getattr(self, variable.name) for variable in VARIABLES)
        return (*(fingerprint(v) if isinstance(v, Secret) else v for v in values), self._disabled)

    def __eq__(self, other: object) -> bool:
        return self.identity() == other.identity() if isinstance(other, Settings) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.identity())

    def __copy__(self) -> Settings:
        return self

    def __deepcopy__(self, memo: object) -> Settings:
        return self

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("Settings cannot be pickled: resolve them again in the other process")

    def security_warnings(self) -> tuple[str, ...]:
        """Return what the owner of the secret should know before anything is sent, one line each."""
        return tuple(text for text in (self._default_host(), self._foreign_url(), self._plain_http()) if text)

    @property
    def _cargo(self) -> str:
        return "reports" if self.token_name is None else f"reports and {BY_NAME[self.token_name].env}"

    def _default_host(self) -> str:
        # A key that goes to Letta Cloud because nothing names another server goes where it belongs.
        if self.sources["base_url"] != "default" or self.base_url != DEFAULT_BASE_URL:
            return ""
        return (
            f"LETTA_BASE_URL is not set: {self._cargo} go to the default server {self._host}. "
            "Set LETTA_BASE_URL to your own Letta server if that is not it."
        )

    def _diverted_secret(self) -> LettaConfigurationError | None:
        """Return the error about a secret that would go where nobody but a file found by searching sends it."""
        name, source = self.token_name, self.sources["base_url"]
        if name is None or self.trust_dotenv or not self._searched or source != self._searched:
            return None
        if self.sources[name] == source or (name == "api_key" and self.is_cloud):  # which it belongs to in any case
            return None
        env = BY_NAME[name].env
        return LettaConfigurationError(
            f"{env} ({described(self.sources[name])}) does not go to {self._host}, which LETTA_BASE_URL in "
            f"{escaped(source)} names: that file was found by searching",
            hint=f"set LETTA_BASE_URL where {env} is set, or OTEL_LETTA_TRUST_DOTENV=true there if the file is yours",
        )

    def _foreign_url(self) -> str:
        name = self.token_name
        if name is None or self.sources["base_url"] in {"keyword", "environment", "default", REFUSED}:
            return ""
        if self.sources[name] not in {"keyword", "environment"}:
            return ""
        return (
            f"{BY_NAME[name].env} ({described(self.sources[name])}) goes to {self._host}, which LETTA_BASE_URL in "
            f"{escaped(self.sources['base_url'])} names. Set both in the same place if you trust it."
        )

    def _plain_http(self) -> str:
        scheme = urlsplit(self.base_url).scheme
        if scheme in {"https", "wss"} or self.is_loopback:
            return ""
        return (
            f"LETTA_BASE_URL is plain {scheme}: {self._cargo} travel readable to {self._host}. "
            f"Use {scheme}s outside of this machine."
        )

    def warn_once(self, logger: logging.Logger) -> None:
        """Log each of `security_warnings`, the first time in this process that it is true."""
        for text in self.security_warnings():
            log_once(logger, logging.WARNING, text)


class SettingsOptions(TypedDict, total=False):
    """The keywords that exporter, processor and reporter take: a finished ``settings``, or any of the others."""

    settings: Settings | None
    dotenv_path: str | os.PathLike[str] | None
    base_url: str | None
    agent_id: str | None
    password: str | Secret | None
    api_key: str | Secret | None
    trust_dotenv: bool | Literal["true", "false"] | None
    certificate: str | None
    client_certificate: str | None
    client_key: str | None
    server: ServerKind | Literal["auto", "rest", "app-server", "app-server-http"] | None
    conversation: str | None
    delivery: Delivery | Literal["auto", "messages", "board"] | None
    board_label: str | None
    board_interval: float | None
    message_interval: float | None
    poll_interval: float | None
    wake_budget: int | None
    connect_timeout: float | None
    read_timeout: float | None
    busy_timeout: float | None
    shutdown_timeout: float | None
    probe_interval: float | None
    max_pending_tasks: int | None
    outbox: OutboxAddress | str | os.PathLike[str] | None
    outbox_exit: OutboxExit | str | None
    outbox_fsync: bool | str | None
    outbox_max_size: int | None
    outbox_max_age: float | None
    content_cap: int | None
    max_steps: int | None
    trace_link: str | None
    agent_allow_list: Iterable[str] | str | None
    grace: float | None
    idle_timeout: float | None
    answer_timeout: float | None
    wake_after: float | None
    wake_on_wait: bool | Literal["true", "false"] | None
    wait_timeout: float | None
    content: Iterable[str] | str | None
    chat_id_attributes: Iterable[str] | str | None
    tasks: Iterable[str] | str | None
    control_flow: Iterable[str] | str | None
    answer_reasoning: bool | Literal["true", "false"] | None
    answer_spans: bool | Literal["true", "false"] | None
    baggage: bool | Literal["true", "false"] | None
