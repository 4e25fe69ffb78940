"""One `Transport` for an address of any flavour, which asks the server what it is when that is first needed."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Concatenate, ParamSpec, TypeVar, cast

from otel_letta.errors import LettaDependencyError, LettaServerError
from otel_letta.ids import APP_SERVER_CONVERSATION, REST_CONVERSATION
from otel_letta.letta.configured import Configured
from otel_letta.letta.flavour import Flavour, ServerInfo, forget, recognise
from otel_letta.letta.rest import RestTransport
from otel_letta.letta.transport import Transport
from otel_letta.runtime import fork
from otel_letta.runtime.deadline import Deadline
from otel_letta.runtime.imports import Protocol
from otel_letta.settings import ServerKind, Settings

_logger = logging.getLogger(__name__)

_P = ParamSpec("_P")
_T = TypeVar("_T")


class _Delegate(Transport, Protocol):
    """A transport to one flavour of server."""

    def use(self, settings: Settings) -> None:
        """See `Configured.use`."""


def _forwarded(
    method: Callable[Concatenate[Transport, _P], _T],
) -> Callable[Concatenate[SelectingTransport, _P], _T]:
    """Make the method of the same name and signature that hands its call to the transport that fits the server."""
    name = method.__name__

    def call(self: SelectingTransport, /, *arguments: _P.args, **keywords: _P.kwargs) -> _T:
        with self._fitting(cast("Deadline | None", keywords.get("until"))) as transport:
            answer: _T = getattr(transport, name)(*arguments, **keywords)
        return answer

    return call


class SelectingTransport(Configured):
    """A transport that hands every call to the one that fits the server. Making one asks nobody anything.

    ``OTEL_LETTA_SERVER`` decides where it is set. Else the server is asked (`recognise`) at the first call that
    needs it, at the next one if that failed, and again when its answers do not fit what it was taken for.
    """

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._lock = threading.Lock()
        self._info: ServerInfo | None = _fixed(settings)
        self._delegate: _Delegate | None = None
        self._doubtful = False
        _instances.add(self)

    def _is_conversation(self, chat_id: str) -> bool:
        # Before it is known which server this is, the ids of any.
        if self._settings.server is ServerKind.APP_SERVER_HTTP:
            return False  # that API can address no conversation but its own
        info = self._info
        # An App Server whose agents live in Letta Cloud may use the Cloud's ids.
        rest = info is None or info.flavour is not Flavour.APP_SERVER or info.backend not in ("", "local")
        app_server = info is None or info.flavour is Flavour.APP_SERVER
        return bool(
            (rest and REST_CONVERSATION.match(chat_id)) or (app_server and APP_SERVER_CONVERSATION.match(chat_id))
        )

    send = _forwarded(Transport.send)
    active_runs = _forwarded(Transport.active_runs)
    landed = _forwarded(Transport.landed)
    stored_answers = _forwarded(Transport.stored_answers)
    in_context = _forwarded(Transport.in_context)
    probe = _forwarded(Transport.probe)
    describe = _forwarded(Transport.describe)
    agents = _forwarded(Transport.agents)
    blocks = _forwarded(Transport.blocks)
    create_block = _forwarded(Transport.create_block)
    write_block = _forwarded(Transport.write_block)

    # -- life ----------------------------------------------------------------------------------------------------

    def use(self, settings: Settings) -> None:
        stale: _Delegate | None = None
        with self._lock:
            before, self._settings = self._settings, settings
            moved = (settings.base_url, settings.server) != (before.base_url, before.server)
            if moved or (settings.identity() != before.identity() and self._is_guess()):
                self._info, self._doubtful = _fixed(settings), False
                stale, self._delegate = self._delegate, None
            delegate = self._delegate
        if stale is not None:
            _logger.info("Letta settings changed: using the new ones")
            stale.close()
        if delegate is not None:
            delegate.use(settings)

    def _is_guess(self) -> bool:
        """Return True if the server did not say what it is, for want of the right token: with a new one it may."""
        info = self._info
        asked = self._settings.server is ServerKind.AUTO and not self._settings.is_cloud
        return asked and info is not None and not info.version

    @property
    def queues_messages(self) -> bool:
        """True if the server is known to queue what arrives while the agent is busy."""
        delegate = self._delegate
        return delegate is not None and delegate.queues_messages

    def close(self, *, until: Deadline | None = None) -> None:
        with self._lock:
            delegate = self._delegate
        if delegate is not None:
            delegate.close(until=until)

    # -- the choice ----------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _fitting(self, until: Deadline | None) -> Iterator[Transport]:
        transport = self._chosen(until)
        try:
            yield transport
        except LettaServerError as error:
            # Answers that only a person could explain: perhaps the address belongs to another kind of server now.
            if type(error) is LettaServerError and error.parks and self._settings.server is ServerKind.AUTO:
                self._doubtful = True
            raise

    def _chosen(self, until: Deadline | None) -> _Delegate:
        with self._lock:
            settings, info, delegate, doubtful = self._settings, self._info, self._delegate, self._doubtful
        if delegate is not None and not doubtful:
            return delegate
        if doubtful:
            forget(settings.base_url)
        if info is None or doubtful:
            info = recognise(settings, until=until)
        stale: _Delegate | None = None
        with self._lock:
            if self._settings is not settings:
                pass  # somebody read new ones meanwhile: the next call asks for them
            elif self._delegate is None or (self._info is not None and self._info.flavour is not info.flavour):
                stale, self._delegate = self._delegate, _transport_for(settings, info, self.ending)
                self._info, self._doubtful = info, False
            else:
                self._doubtful = False
            chosen = self._delegate
        if stale is not None:
            _logger.warning("%s is another kind of server now: %s", settings.base_url, info.flavour)
            stale.close()
        return chosen if chosen is not None else self._chosen(until)


def _after_fork_in_child(transport: SelectingTransport) -> None:
    transport._lock = threading.Lock()
    transport.ending.renew()  # it was the parent's


_instances: weakref.WeakSet[SelectingTransport] = weakref.WeakSet()
# A thread that makes a delegate may be in the middle of an import, whose lock a child could never take.
fork.hold_for(_instances, lambda transport: transport._lock)
fork.in_child_each(_instances, _after_fork_in_child)


def _fixed(settings: Settings) -> ServerInfo | None:
    """Return what the setting names; None if the server is to be asked."""
    if settings.server is ServerKind.AUTO:
        return None
    return ServerInfo(Flavour.REST if settings.server is ServerKind.REST else Flavour.APP_SERVER)


def _transport_for(settings: Settings, info: ServerInfo, ending: Deadline) -> _Delegate:
    if info.flavour is not Flavour.APP_SERVER:
        return RestTransport(settings)
    if settings.server is ServerKind.APP_SERVER_HTTP:
        from otel_letta.letta.app_server.openai_api import AppServerHttpTransport

        return AppServerHttpTransport(settings, info)
    if importlib.util.find_spec("websockets") is None:
        raise LettaDependencyError(
            f"An App Server answers at {settings.base_url}, and the library websockets is not installed",
            hint="pip install 'otel-letta[app-server]'",
        )
    from otel_letta.letta.app_server.transport import AppServerTransport

    return AppServerTransport(settings, info, ending=ending)
