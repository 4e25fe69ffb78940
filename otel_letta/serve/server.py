"""The process of a receiver: its sockets, signals, life and end."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import signal
import socket
import ssl
import sys
import threading
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn

from otel_letta.letta.transport import Transport
from otel_letta.pipeline.sharing import join
from otel_letta.runtime.deadline import Deadline
from otel_letta.serve.api import Api, NoMcp
from otel_letta.serve.asking import SEVERAL, Asking
from otel_letta.serve.connections import BoundedProtocol
from otel_letta.serve.doors import Tokens
from otel_letta.serve.everywhere import AskingEverywhere
from otel_letta.serve.http import Bounds, Doors, make_app
from otel_letta.serve.intake import Intake
from otel_letta.serve.markup import troubles_of
from otel_letta.serve.metrics import Metrics
from otel_letta.serve.page import Page
from otel_letta.serve.routes import Router
from otel_letta.serve.siblings import EVERY, Siblings
from otel_letta.serve.spool import MemorySpool, OwnSpool, SharedSpool
from otel_letta.settings import Settings
from otel_letta.store.choose import open_spool
from otel_letta.store.model import StoreError

_logger = logging.getLogger(__name__)

_KEEP_ALIVE = 120
"""Seconds. Go's clients keep an idle connection for 90, and lose a request on one that is closed first."""
_PATIENCE_WITH_OTHERS = 10.0
"""Seconds that the first of several processes waits for the others before it takes requests."""
_PATIENCE_WITH_REQUESTS = 3
"""Seconds that requests under way get when the program stops."""
_BACKLOG = 1_024


class CannotListenError(Exception):
    """The address cannot be had. The text says why, and what to do."""


@dataclass(slots=True)
class Options:
    """How a receiver listens."""

    host: str = "127.0.0.1"
    port: int = 4318
    grpc_port: int | None = None
    tokens: tuple[str, ...] = ()
    token_file: Path | None = None
    hosts: tuple[str, ...] = ()
    certificate: Path | None = None
    key: Path | None = None
    shared: bool = False
    """Other processes listen on the same address."""
    siblings: Path | None = None
    """A folder for what they show one another and hand over."""
    place: tuple[int, int] = (0, 1)
    """Of this process among them, and how many they are."""
    spool: Path | None = None
    """Where bodies are kept; None is beside the outbox, and without an outbox nowhere."""
    bounds: Bounds = field(default_factory=Bounds)
    take_over: float = 60.0
    """Seconds between two looks for what receivers that are gone have left."""


def listen(host: str, port: int) -> socket.socket:
    """Bind an address.

    Raises:
        CannotListenError: it is taken, or is none of this machine's.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except OSError as error:
        raise CannotListenError(f"{host} is no address of this machine: {error.strerror or error}") from None
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        if sys.platform != "win32":  # there it would let two programs have one port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise CannotListenError(_why_not(host, port, error)) from None
    listener.set_inheritable(True)
    return listener


def _why_not(host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return (
            f"Port {port} on {host} is taken, perhaps by an OpenTelemetry Collector. Choose another one with --port, "
            "and let programs, or the Collector's otlp_http exporter, send to that."
        )
    if error.errno == errno.EACCES:
        return f"Port {port} on {host} needs more rights than this user has: choose one above 1023 with --port."
    return f"{host}:{port} cannot be listened on: {error.strerror or error}"


class Service:
    """A receiver: HTTP, gRPC if wanted, and the pipeline behind them.

    Args:
        options: how it listens.
        settings: valid ones, with an agent.
        transport: instead of the server that the settings name; for tests.

    Raises:
        CannotListenError: the port of OTLP/gRPC cannot be had.
        StoreError, OSError, ValueError: spool, token file or certificate cannot be used.
    """

    def __init__(self, options: Options, settings: Settings, transport: Transport | None = None) -> None:
        self.options = options
        self._settings = settings
        tokens = Tokens(options.tokens, options.token_file)
        self.doors = Doors(tokens, options.hosts)
        self.metrics = Metrics(self._observe)
        self._own = _spool_of(options, settings)
        handle = join(settings, transport, live=True)
        self.pipeline = handle.pipeline
        self.intake = Intake(handle, MemorySpool() if self._own is None else self._own.spool, self.metrics)
        self.delivered = True
        self._closed = False
        self._rpc: Any = None
        self._siblings: Siblings | None = None
        self._router: Router | None = None
        try:
            desk = self.pipeline.desk
            self._siblings = (
                Siblings(options.siblings, self.intake.tasks, lambda: troubles_of(desk.stats()))
                if options.siblings is not None
                else None
            )
            if options.siblings is not None and options.place[1] > 1 and hasattr(socket, "AF_UNIX"):
                self._router = Router(options.siblings, *options.place, self.intake.take_here)
                self.intake.route = self._router.route
            page = Page(self.intake, desk, self.doors, self._siblings)
            self.asking = self._make_asking()
            handle.on_answer(self.asking.take_answer)
            self._mcp = _make_mcp(self.asking, self.intake, self.doors)
            routes = [*page.routes(), *Api(self.asking, self.intake, self.doors).routes(), *self._mcp.routes()]
            app = make_app(
                self.intake, self.doors, self.metrics, options.bounds, routes=routes, lifespan=self._lifespan
            )
            self.server = _Server(self._config(app), self.intake)
            self._rpc = self._make_rpc()
        except BaseException:
            self._close(0.0)
            raise

    def _make_asking(self) -> Asking | AskingEverywhere:
        note = SEVERAL if self.options.shared and self._router is None else ""
        own = Asking(self.intake.tasks, self.intake.instructions, self._settings, note=note)
        return own if self._router is None else AskingEverywhere(own, self._router)

    @property
    def rpc_port(self) -> int | None:
        """The port of OTLP/gRPC, if that is spoken."""
        return None if self._rpc is None else int(self._rpc.port)

    def _make_rpc(self) -> Any:
        if self.options.grpc_port is None:
            return None
        try:
            from otel_letta.serve.rpc import RpcServer
        except ImportError:
            raise CannotListenError("--grpc-port needs another package: pip install 'otel-letta[grpc]'") from None
        try:
            return RpcServer(self.options, self.intake, self.doors, self.metrics, shared=self.options.shared)
        except RuntimeError:
            raise CannotListenError(
                f"Port {self.options.grpc_port} on {self.options.host} is taken: choose another one with --grpc-port"
            ) from None

    def _config(self, app: Any) -> uvicorn.Config:
        config = uvicorn.Config(
            app,
            http=BoundedProtocol,
            ws="none",
            loop=_loop(),
            lifespan="on",
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=_KEEP_ALIVE,
            timeout_graceful_shutdown=_PATIENCE_WITH_REQUESTS,
            ssl_certfile=self.options.certificate,
            ssl_keyfile=self.options.key,
            ssl_version=ssl.PROTOCOL_TLS_SERVER,
        )
        try:
            config.load()  # now: a bad certificate is told before anything listens
        except ssl.SSLError as error:
            why = error.reason or "no PEM, or not the key of that certificate"
            raise ValueError(f"{self.options.certificate} and {self.options.key} cannot be used: {why}") from None
        if config.ssl is not None:
            config.ssl.minimum_version = ssl.TLSVersion.TLSv1_2
        return config

    def run(self, sockets: Sequence[socket.socket]) -> bool:
        """Receive until a signal, or `stop`; True if everything was delivered at the end."""
        try:
            self.server.run(sockets=list(sockets))
        finally:
            # Older releases (0.30, measured) leave without any of this if they were told to stop before they ran.
            for each in sockets:
                each.close()
            self._close(self._settings.shutdown_timeout)
        return self.delivered

    def stop(self) -> None:
        """Have `run` return, from another thread."""
        self.intake.draining = True
        self.server.should_exit = True

    @contextlib.asynccontextmanager
    async def _lifespan(self, app: Any) -> AsyncIterator[None]:
        loop = asyncio.get_running_loop()
        replayed = await loop.run_in_executor(None, self._replay)
        if replayed:
            _logger.info("%d requests that had not settled were taken up again", replayed)
        if self._router is not None:
            self._router.listen()
            others = Deadline.after(_PATIENCE_WITH_OTHERS, lambda: self.server.should_exit)
            await loop.run_in_executor(None, self._router.wait_for_others, others)
        if self._rpc is not None:
            self._rpc.start()
        beside = [asyncio.ensure_future(each) for each in (self._take_over(), self._publish())]
        try:
            async with self._mcp.running():
                yield
        finally:
            for each in beside:
                each.cancel()
            timeout = self._settings.shutdown_timeout
            await loop.run_in_executor(None, self._close, timeout)

    def _replay(self) -> int:
        if self._own is not None:
            self._own.take_over()
        return self.intake.replay()

    async def _take_over(self) -> None:
        """Go on, from time to time, with what others have left that are gone and do not come back."""
        own, loop = self._own, asyncio.get_running_loop()
        while own is not None:
            await asyncio.sleep(self.options.take_over)
            try:
                ids = await loop.run_in_executor(None, own.take_over)
                if ids:
                    _logger.info("%d requests that another process had left were taken up", len(ids))
                    await loop.run_in_executor(None, self.intake.replay, frozenset(ids))
            except (StoreError, OSError) as error:
                _logger.warning("what others left cannot be looked for at the moment: %s", error)

    async def _publish(self) -> None:
        """Let the other processes show this one's tasks."""
        siblings, loop = self._siblings, asyncio.get_running_loop()
        while siblings is not None:
            await loop.run_in_executor(None, siblings.publish)
            await asyncio.sleep(EVERY)

    def _close(self, timeout: float) -> None:
        if self._closed:
            return
        self._closed = True
        if self._rpc is not None:
            self._rpc.stop()
        if self._router is not None:
            self._router.close()
        self.delivered = self.intake.close(timeout)
        if self._siblings is not None:
            self._siblings.leave()
        if self._own is not None:
            self._own.close()

    def _observe(self) -> dict[str, float]:
        bodies, size = self.intake.spool.size()
        stats = self.pipeline.stats()
        return {
            "spooled_requests": bodies,
            "spooled_bytes": size,
            "open_tasks": stats["open_tasks"],
            "open_spans": stats["open_spans"],
            "reports": stats["reports"],
            "sent_reports": stats["sent"],
            "dropped_reports": sum(stats["dropped"].values()),
            "lanes": len(stats["lanes"]),
        }


class _Server(uvicorn.Server):
    """uvicorn's, which answers "later" from the moment on in which it is told to stop."""

    def __init__(self, config: uvicorn.Config, intake: Intake) -> None:
        super().__init__(config)
        self._intake = intake

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._intake.draining = True
        super().handle_exit(sig, frame)


def _make_mcp(asking: Asking | AskingEverywhere, intake: Intake, doors: Doors) -> Any:
    try:
        from otel_letta.serve.mcp import Mcp
    except ImportError as error:
        if (error.name or "").partition(".")[0] not in {"mcp", "mcp_types"}:
            raise
        return NoMcp()  # it is not there, or of a release before 2.0
    return Mcp(asking, intake, doors)


def _spool_of(options: Options, settings: Settings) -> OwnSpool | SharedSpool | None:
    """Return the spool that was named, or the one beside the outbox, or in its database; None without either.

    Raises:
        OSError, StoreError: it cannot be had.
    """
    path, address = options.spool, settings.outbox
    most = settings.outbox_max_size * 1_000_000
    if path is None and address is not None:
        if address.is_postgresql:
            from otel_letta.store.postgres_spool import PostgresSpool  # its driver is another package

            spool = PostgresSpool(address.reveal(), address.shown, fsync=settings.outbox_fsync, most_bytes=most)
            return SharedSpool(spool)
        path = Path(f"{address.reveal()}.spool")
    if path is None:
        return None
    return OwnSpool(path, lambda file: open_spool(file, fsync=settings.outbox_fsync, most_bytes=most))


def _loop() -> Any:
    try:
        import uvloop  # type: ignore[import-not-found, unused-ignore]  # noqa: F401 - the user's, if it is there
    except ImportError:
        return "asyncio"
    return "uvloop"


def stop_on_signals(service: Service) -> None:
    """Have SIGTERM and SIGINT stop a service from now on, and do no more.

    uvicorn handles them itself while it runs. It raises them again at its end, and the process would die of what it was
    asked to do; and one that comes before it runs must not be lost.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        service.stop()

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, stop)
