"""A real Letta App Server on loopback, for tests that must not be fooled by a mock.

The App Server is what ``pip install letta`` gives since 0.32: one wheel that carries its own Node and needs
nothing but ``git``, in which it keeps the agents' memory.  Installing it (280 MB) happens once per machine and
Python version, in ``$OTEL_LETTA_TEST_CACHE`` or ``~/.cache/otel-letta-tests``, beside the REST server of
:mod:`tests.support.letta_server`, from which the handling of processes, ports and the cache comes.

    python -m tests.support.app_server install    # fill the cache, so that the first test does not have to
    python -m tests.support.app_server run        # a server to try things on by hand

A server that cannot be installed or started is a failure (RuntimeError), never a reason to skip.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import http.client
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

from tests.support.letta_server import (
    _cache_folder,
    _end,
    _environment,
    _free_port,
    _is_free,
    _locked,
    _run,
    _RunFolder,
    _say,
    _spawn,
    _tail,
)
from tests.support.scripted_llm import ScriptedLLM

__all__ = ["APP_SERVER_VERSION", "AppServer"]

APP_SERVER_VERSION = "0.34.12"

_START_TIMEOUT = 60.0
_START_ATTEMPTS = 3

# Set by git for its hooks and aliases, by which tests may have been started: they would send the server's
# commits into the developer's repository.  XDG folders lie outside of the private HOME.
_DROPPED_PREFIXES = ("GIT_", "XDG_")

_Process: TypeAlias = "subprocess.Popen[bytes]"


class AppServer:
    """One App Server with a home folder of its own; its LLM is the test's :class:`ScriptedLLM`::

        with AppServer(llm, token="secret") as server:   # the token is optional
            server.url                                   # "ws://127.0.0.1:PORT"
            server.stop()                                # SIGTERM; or kill(): SIGKILL
            server.start()                               # back: same port, same agents

    ``close`` (or leaving the ``with`` block) ends it for good and deletes its state.  The process ends with the
    test process, however that ends.  Not thread safe.
    """

    def __init__(self, llm: ScriptedLLM, token: str | None = None) -> None:
        self.llm = llm
        self.token = token
        self._folder: _RunFolder | None = None
        self._program: Path | None = None
        self._port: int | None = None
        self._process: _Process | None = None
        self._owner = os.getpid()

    def __enter__(self) -> AppServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @staticmethod
    def install() -> Path:
        """Make sure that the server is in the cache; returns its program."""
        return _install()

    @property
    def url(self) -> str:
        """The address as a user writes it; the WebSocket itself is at ``/ws`` below it."""
        return f"ws://127.0.0.1:{self._known_port}"

    @property
    def http_url(self) -> str:
        return f"http://127.0.0.1:{self._known_port}"

    @property
    def model(self) -> str:
        """What an agent's ``model`` has to be to think with the scripted LLM."""
        return f"openai-compatible/{self.llm.model}"

    @property
    def pid(self) -> int | None:
        """The server process; None while it is stopped, or if it has died."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    def start(self) -> None:
        """Start the server, and return once it is ready; after :meth:`stop` or :meth:`kill` on the same state.

        The first time it is also installed, where that is missing, and told of the LLM.  Raises RuntimeError,
        with the end of the log, if any of that fails; nothing is left running then.
        """
        if self.pid is not None:
            raise RuntimeError("the server is running already")
        if self._folder is not None:
            self.kill()  # what a server that died by itself may have left
            self._start_process()
            return
        self._program = _install()
        self._owner = os.getpid()
        atexit.register(self.close)
        try:
            self._folder = _RunFolder()
            self._work.mkdir()
            self._connect_llm()
            self._start_on_some_port()
        except BaseException:
            self.close()
            raise

    def stop(self) -> None:
        """End the process as an administrator would (SIGTERM); its state and port stay."""
        self._end_process(signal.SIGTERM)

    def kill(self) -> None:
        """End the process as a crash would (SIGKILL); its state and port stay."""
        self._end_process(signal.SIGKILL)

    def restart(self) -> None:
        self.stop()
        self.start()

    def close(self) -> None:
        """End the process and delete all state.  Harmless when nothing runs, and in a forked child."""
        if os.getpid() != self._owner:
            return
        atexit.unregister(self.close)
        with contextlib.suppress(Exception):
            self.kill()
        if self._folder is not None:
            self._folder.close()
            self._folder = None
        self._port = None

    def log_tail(self, n: int = 40) -> str:
        """The last ``n`` lines that the server has printed, all restarts included."""
        return _tail(self._folder.log("app-server"), n) if self._folder else ""

    @property
    def home(self) -> Path:
        """The home folder of the server's user: what is in ``~/.letta`` there is what the server sees."""
        return Path(self._run_folder.home)

    @property
    def _known_port(self) -> int:
        if self._port is None:
            raise RuntimeError("the server has not been started")
        return self._port

    @property
    def _run_folder(self) -> _RunFolder:
        if self._folder is None:
            raise RuntimeError("start() the server first")
        return self._folder

    @property
    def _work(self) -> Path:
        """Where the agents' tools would work: not in the checkout from which the tests are run."""
        return self._run_folder.path / "work"

    def _connect_llm(self) -> None:
        """Store the scripted LLM as a model provider; the program checks it, so a wrong address fails here."""
        assert self._program is not None
        llm = ("--base-url", self.llm.base_url, "--api-key", "scripted")
        _run(
            [self._program, "connect", "openai-compatible", *llm, "--backend", "local"],
            log=self._run_folder.log("connect"),
            cwd=self._work,
            env=self._environment(),
            timeout=_START_TIMEOUT,
        )

    def _start_on_some_port(self) -> None:
        """Another process may take a free port before the server has it: then, and only then, try another."""
        for attempt in range(1, _START_ATTEMPTS + 1):
            self._port = _free_port()
            try:
                self._start_process()
                return
            except RuntimeError as error:
                taken = any(sign in str(error).lower() for sign in ("eaddrinuse", "address already in use"))
                if attempt == _START_ATTEMPTS or not taken:
                    raise

    def _start_process(self) -> None:
        assert self._program is not None
        folder, port = self._run_folder, self._known_port
        if not _is_free(port):  # or another server's readiness would be taken for this one's
            raise RuntimeError(f"port {port}: address already in use")
        options = ["--backend", "local", "--listen", self.url, "--openai-api"]
        if self.token is not None:
            token_file = folder.path / "token"
            token_file.touch(mode=0o600)
            token_file.write_text(self.token)
            options += ["--ws-auth", "capability-token", "--ws-token-file", str(token_file)]
        command: list[str | Path] = [self._program, "server", *options]
        with folder.log("app-server").open("ab") as log:
            self._process = _spawn(command, cwd=self._work, env=self._environment(), log=log)
        folder.guard.watch(self._process)
        deadline = time.monotonic() + _START_TIMEOUT
        while not _ready(port):
            if self._process.poll() is not None:
                self.kill()
                raise RuntimeError(f"the App Server ended while starting; its log ends with\n{self.log_tail(60)}")
            if time.monotonic() > deadline:
                self.kill()
                tail = self.log_tail(60)
                raise RuntimeError(f"App Server not ready after {_START_TIMEOUT:g} s; its log ends with\n{tail}")
            time.sleep(0.05)

    def _end_process(self, first: signal.Signals) -> None:
        if self._process is None:
            return
        _end(self._process, first, patience=10)
        self._run_folder.guard.forget(self._process)
        self._process = None

    def _environment(self) -> dict[str, str]:
        home = str(self._run_folder.home)
        env = _environment(HOME=home, LETTA_CODE_TELEM="0", DISABLE_AUTOUPDATER="1")
        return {name: value for name, value in env.items() if not name.startswith(_DROPPED_PREFIXES)}


def _install() -> Path:
    """The program in the cache, installed if it is missing or half-finished."""
    if shutil.which("git") is None:
        raise RuntimeError("the App Server keeps its agents' memory in git, which is not on PATH: install it")
    python = f"py{sys.version_info[0]}.{sys.version_info[1]}"
    root = _cache_folder().resolve() / f"letta-app-server-{APP_SERVER_VERSION}-{python}"
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        # Beside the folder, not in it: the folder may have to be deleted while the lock is held.
        with _locked(root.with_name(root.name + ".lock")) as lock:
            if not _is_installed(root):
                _install_package(root, lock)
    except OSError as error:
        raise RuntimeError(f"cannot install the App Server into {root}: {error}") from error
    return _program_in(root)


def _program_in(root: Path) -> Path:
    return root / "venv" / "bin" / "letta"


def _marker_in(root: Path) -> Path:
    """Written last: a folder without it is what an installation that broke off has left."""
    return root / "INSTALLED"


def _is_installed(root: Path) -> bool:
    python = root / "venv" / "bin" / "python"  # a link, dead if the Python it was made from has been removed
    return _marker_in(root).exists() and python.exists() and _program_in(root).exists()


def _install_package(root: Path, file_lock: int) -> None:
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    log = root / "install.log"
    _say(f"installing the Letta App Server {APP_SERVER_VERSION} into {root} (once; 280 MB), log: {log}")
    python = root / "venv" / "bin" / "python"
    pip = (python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet")
    for command in (
        (sys.executable, "-m", "venv", root / "venv"),
        (*pip, f"letta=={APP_SERVER_VERSION}"),
    ):
        # With the lock: should this process be killed, it is held until the installer has ended as well.
        _run(command, log=log, cwd=root, timeout=1800, pass_fds=(file_lock,))
    _marker_in(root).touch()


def _ready(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


# -- by hand -----------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.support.app_server")
    parser.add_argument("command", choices=("install", "run"))
    parser.add_argument("--token", help="run: let in only who knows this token")
    options = parser.parse_args(arguments)
    # `kill` and supervisors end a program with SIGTERM: clean up as for Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        if options.command == "install":
            print(AppServer.install())
            return
        with ScriptedLLM() as llm, AppServer(llm, token=options.token) as server:
            print(f"{server.url} (also {server.http_url}), model {server.model}; Ctrl-C ends it", flush=True)
            signal.pause()
    except RuntimeError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
