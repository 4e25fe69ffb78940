"""A real Letta server on loopback, made from nothing, for tests that must not be fooled by a mock.

What a Letta server keeps, drops or answers can only be learnt from one, so the tests under ``tests/real/letta``
run against the real thing.  Getting there takes more than ``pip install letta``; for 0.16.8, because

* the newest versions of Letta's dependencies break it at import, so the ``uv.lock`` of its sdist decides;
* the database migrations are in the sdist too, and only there; the server does not run them;
* only PostgreSQL with pgvector will do.  The ``pgserver`` wheel carries both as plain binaries, no system
  package needed.  PostgreSQL refuses to run as root, so under root it runs as ``nobody``.

Installing (about 1 GB) happens once per machine and Python version, in ``$OTEL_LETTA_TEST_CACHE`` or
``~/.cache/otel-letta-tests``.  It needs PyPI and a Python 3.11 to 3.13.  Everything else happens in a run
folder and on ports of its own per server, so that test runs side by side do not meet.

    python -m tests.support.letta_server install    # fill the cache, so that the first test does not have to
    python -m tests.support.letta_server run        # a server to try things on by hand

A server that cannot be installed or started is a failure (RuntimeError), never a reason to skip.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import fcntl
import hashlib
import http.client
import json
import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeAlias

from tests.support.scripted_llm import ScriptedLLM

__all__ = ["EMBEDDING_HANDLE", "LETTA_VERSION", "MODEL_HANDLE", "LettaServer"]

LETTA_VERSION = "0.16.8"
PGSERVER_VERSION = "0.1.4"
UV_VERSION = "0.13.9"

MODEL_HANDLE = "openai-proxy/gpt-4o-mini"
"""With an OPENAI_BASE_URL that is not OpenAI's, Letta files the chat model under ``openai-proxy`` ..."""
EMBEDDING_HANDLE = "openai/text-embedding-3-small"
"""... but the embedding model under ``openai`` all the same."""

CACHE_VARIABLE = "OTEL_LETTA_TEST_CACHE"

_PYTHONS = ((3, 11), (3, 12), (3, 13))
_DATABASE = "letta"
_START_TIMEOUT = 180.0
_START_ATTEMPTS = 3

# Below the range from which Linux and macOS take the ports of outgoing connections: a port that is free when
# it is picked stays free while Letta takes its time to start, and while it is down before a restart.
_PORTS = range(20_000, 32_000)

# A developer's own settings must not reach the servers, nor may their keys.
_DROPPED_PREFIXES = ("LETTA_", "OPENAI_", "OTEL_", "PG", "PYTHON", "VIRTUAL_ENV", "DD_", "SENTRY_")
_DROPPED_SUFFIXES = ("_API_KEY", "_API_BASE", "_PROXY")

_Process: TypeAlias = "subprocess.Popen[bytes]"


class LettaServer:
    """One Letta server with a database of its own; its LLM is the test's :class:`ScriptedLLM`::

        server = LettaServer(llm)
        server.start()            # minutes the first time on a machine, later well under one
        server.stop_letta()       # the server goes away, its data and port stay ...
        server.start_letta()      # ... and it comes back
        server.stop()

    All processes end with the test process, however that ends: see :class:`_Guard`.  Not thread safe.
    """

    def __init__(self, llm: ScriptedLLM, password: str = "letta-test") -> None:
        self.llm = llm
        self.password = password
        self._port: int | None = None
        self._run: _RunFolder | None = None
        self._postgres: _Postgres | None = None
        self._letta: _Process | None = None
        self._installation: _Installation | None = None
        self._owner = os.getpid()

    def __enter__(self) -> LettaServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @staticmethod
    def install() -> Path:
        """Make sure that everything is in the cache, database template included; returns its folder."""
        return _install().root

    @property
    def base_url(self) -> str:
        if self._port is None:
            raise RuntimeError("the server has not been started")
        return f"http://127.0.0.1:{self._port}"

    @property
    def database(self) -> str:
        """The address of its PostgreSQL, as libpq reads it."""
        if self._postgres is None:
            raise RuntimeError("the server has not been started")
        return self._postgres.uri

    @property
    def pid(self) -> int | None:
        """The Letta process; None while it is stopped, or if it has died."""
        return self._letta.pid if self._letta is not None and self._letta.poll() is None else None

    def start(self) -> None:
        """Install what is missing, start PostgreSQL and Letta, and return once Letta answers.

        Raises RuntimeError, with the end of the log, if any of that fails; nothing is left running then.
        """
        if self._run is not None:
            raise RuntimeError("the server has been started already")
        self._installation = installation = _install()
        try:
            self._owner = os.getpid()
            atexit.register(self.stop)
            self._run = _RunFolder()
            self._postgres = _Postgres(installation, self._run)
            self._postgres.start(installation.template)
            self._port = _free_port()
            self._start_letta_on_some_port()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End every process and delete the run folder.  Harmless when nothing runs, and in a forked child."""
        if os.getpid() != self._owner:
            return
        atexit.unregister(self.stop)
        with contextlib.suppress(Exception):
            self.stop_letta(kill=True)
        if self._postgres is not None:
            self._postgres.stop()
            self._postgres = None
        if self._run is not None:
            self._run.close()
            self._run = None
        self._port = None

    def start_letta(self) -> None:
        """Start the Letta process (again): same port, same database."""
        if self._run is None or self._installation is None or self._postgres is None:
            raise RuntimeError("start() the server first")
        if self.pid is not None:
            raise RuntimeError("Letta is running already")
        self.stop_letta(kill=True)  # what a Letta that died by itself may have left
        port = int(self.base_url.rpartition(":")[2])
        if not _is_free(port):  # or another server's health would be taken for this one's
            raise RuntimeError(f"port {port}: address already in use")
        with self._run.log("letta").open("ab") as log:
            options = ("--host=127.0.0.1", f"--port={port}", "--secure")
            self._letta = _spawn(
                [self._installation.bin / "letta", "server", *options],
                cwd=self._run.path,  # Letta writes its OpenAPI document into the working folder
                env=self._letta_environment(),
                log=log,
            )
        self._run.guard.watch(self._letta)
        deadline = time.monotonic() + _START_TIMEOUT
        while not _healthy(port):
            if self._letta.poll() is not None:
                self._reap_letta()
                raise RuntimeError(f"Letta ended while starting; its log ends with\n{self.log_tail(60)}")
            if time.monotonic() > deadline:
                self.stop_letta(kill=True)
                tail = self.log_tail(60)
                raise RuntimeError(f"Letta not ready after {_START_TIMEOUT:g} s; its log ends with\n{tail}")
            time.sleep(0.1)

    def stop_letta(self, kill: bool = False) -> None:
        """End the Letta process only: politely, or (``kill``) with SIGKILL, as a crash would."""
        if self._letta is None:
            return
        _end(self._letta, signal.SIGKILL if kill else signal.SIGTERM, patience=10)
        self._reap_letta()

    def log_tail(self, n: int = 40) -> str:
        """The last ``n`` lines of Letta's log, all restarts included."""
        return _tail(self._run.log("letta"), n) if self._run else ""

    def _reap_letta(self) -> None:
        assert self._letta is not None
        if self._run is not None:
            self._run.guard.forget(self._letta)
        self._letta = None

    def _start_letta_on_some_port(self) -> None:
        """Another process may take a free port before Letta has it: then, and only then, try another one."""
        for attempt in range(1, _START_ATTEMPTS + 1):
            try:
                self.start_letta()
                return
            except RuntimeError as error:
                if attempt == _START_ATTEMPTS or "address already in use" not in str(error).lower():
                    raise
                self._port = _free_port()

    def _letta_environment(self) -> dict[str, str]:
        assert self._run is not None
        assert self._postgres is not None
        return _environment(
            HOME=str(self._run.home),
            LETTA_DIR=str(self._run.home / ".letta"),
            LETTA_SERVER_PASSWORD=self.password,
            # Keep connections: by default Letta opens a new one for each of some 15 sessions per message,
            # which is slow and has been seen to hang for a minute.  Pooled ones ask for TLS, hence sslmode.
            LETTA_PG_URI=self._postgres.uri + "?sslmode=disable",
            LETTA_DISABLE_SQLALCHEMY_POOLING="false",
            OPENAI_API_KEY="scripted",
            OPENAI_BASE_URL=self.llm.base_url,
            DD_TRACE_ENABLED="false",
            PYTHONUNBUFFERED="1",
        )


# -- the cache ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Installation:
    """Folders of one finished installation."""

    root: Path

    @property
    def venv(self) -> Path:
        return self.root / "venv"

    @property
    def bin(self) -> Path:
        return self.venv / "bin"

    @property
    def source(self) -> Path:
        """What is used of the sdist: the migrations and the lock."""
        return self.root / f"letta-{LETTA_VERSION}"

    @property
    def template(self) -> Path:
        """A migrated, cleanly stopped PostgreSQL data folder."""
        return self.root / "pgdata-template"

    @property
    def marker(self) -> Path:
        """Written last: without it, or with another recipe in it, the folder is scrap."""
        return self.root / "INSTALLED"

    @property
    def site_packages(self) -> Path:
        return next(self.venv.glob("lib/python3.*/site-packages"))


def _cache_folder() -> Path:
    return Path(os.environ.get(CACHE_VARIABLE) or Path.home() / ".cache" / "otel-letta-tests").expanduser()


def _install() -> _Installation:
    """The installation for this machine's Python, made if it is missing or half-finished."""
    python, version = _find_python()
    root = _cache_folder().resolve() / f"letta-{LETTA_VERSION}-py{version}"
    installation = _Installation(root)
    try:
        root.mkdir(parents=True, exist_ok=True)
        # Beside the folder, not in it: the folder may have to be deleted while the lock is held.
        with _locked(root.with_name(root.name + ".lock")) as lock:
            if not _is_installed(installation):
                _install_packages(installation, python, lock)
            if not installation.template.exists():
                _make_template(installation)
    except OSError as error:
        raise RuntimeError(f"cannot install Letta into {root}: {error}") from error
    return installation


def _recipe() -> str:
    """A fingerprint of what would be installed; a changed pin makes old folders scrap."""
    pins = {"letta": LETTA_VERSION, "pgserver": PGSERVER_VERSION, "layout": 1}
    return hashlib.sha256(json.dumps(pins).encode()).hexdigest()


def _is_installed(installation: _Installation) -> bool:
    python = installation.bin / "python"  # a link, dead if the Python it was made from has been removed
    return installation.marker.exists() and installation.marker.read_text() == _recipe() and python.exists()


def _install_packages(installation: _Installation, python: str, file_lock: int) -> None:
    root = installation.root
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    log = root / "install.log"
    _say(f"installing Letta {LETTA_VERSION} into {root} (once; about 1 GB), log: {log}")

    def run(*command: str | Path, cwd: Path = root) -> str:
        # With the lock: should this process be killed, it is held until the installer has ended as well.
        return _run(command, log=log, cwd=cwd, timeout=1800, pass_fds=(file_lock,))

    pip = (installation.bin / "python", "-m", "pip", "--disable-pip-version-check")
    uv = (installation.bin / "uv", "--no-config", "--no-progress", "--no-python-downloads")
    run(python, "-m", "venv", installation.venv)
    run(*pip, "install", "--quiet", f"uv=={UV_VERSION}")
    run(*pip, "download", "--quiet", "--no-deps", "--no-binary", "letta", f"letta=={LETTA_VERSION}")
    _unpack_sdist(root / f"letta-{LETTA_VERSION}.tar.gz", root)

    extras = ("--extra", "server", "--extra", "postgres", "--extra", "redis")
    options = ("--frozen", "--no-dev", "--no-emit-project", "--no-hashes", "--no-annotate", "--no-header")
    locked = run(*uv, "export", "--quiet", *options, *extras, cwd=installation.source).splitlines()
    # psycopg2 wants a compiler; psycopg2-binary, locked as well, is the same module ready-made.
    requirements = [line for line in locked if not line.startswith("psycopg2==")]
    requirements += [f"letta=={LETTA_VERSION}", f"pgserver=={PGSERVER_VERSION}"]
    lock = root / "requirements.txt"
    lock.write_text("\n".join(requirements) + "\n")
    try:
        run(*uv, "pip", "install", "--python", installation.venv, "--no-deps", "--requirements", lock)
    except RuntimeError:
        # uv takes seconds where pip takes minutes, but it does not read pip's configuration (mirrors, say).
        run(*pip, "install", "--quiet", "--no-deps", "--requirement", lock)
    # Now rather than in the first server's start, which has a time limit.
    folders = [installation.site_packages / name for name in ("letta", "sqlalchemy", "openai", "google")]
    run(installation.bin / "python", "-m", "compileall", "-q", "-j0", *folders)
    installation.marker.write_text(_recipe())


def _unpack_sdist(archive: Path, into: Path) -> None:
    """Unpack what is needed of the sdist, and nothing outside of its folder."""
    top = f"letta-{LETTA_VERSION}/"
    wanted = tuple(top + name for name in ("alembic/", "alembic.ini", "pyproject.toml", "uv.lock"))
    with tarfile.open(archive) as tar:
        for member in tar:
            safe = member.isfile() and ".." not in Path(member.name).parts
            content = tar.extractfile(member) if safe and member.name.startswith(wanted) else None
            if content is None:
                continue
            target = into / member.name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content.read())
    if not (into / top / "alembic.ini").is_file():
        raise RuntimeError(f"{archive} has no migrations in it")


def _make_template(installation: _Installation) -> None:
    """Create and migrate a database once; servers start from copies, some 15 s earlier."""
    _say("preparing the database template")
    run_folder = _RunFolder()
    postgres = None
    try:
        postgres = _Postgres(installation, run_folder)
        postgres.start(template=None)
        log = run_folder.log("alembic")
        env = _environment(
            HOME=str(run_folder.home),
            LETTA_DIR=str(run_folder.home / ".letta"),
            LETTA_PG_URI=postgres.uri,  # without sslmode: the migrations' driver does not know that parameter
        )
        migrate = (installation.bin / "alembic", "upgrade", "head")
        _run(migrate, log=log, cwd=installation.source, env=env, timeout=600)
        postgres.stop()  # cleanly, so that copies start without a recovery
        partial = installation.template.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(postgres.data, partial)
        partial.rename(installation.template)
    finally:
        if postgres is not None:
            postgres.stop()
        run_folder.close()


def _find_python() -> tuple[str, str]:
    """A Python that Letta runs on, as (path, "3.x"); the one that runs the tests, if it will do."""
    candidates = {f"{major}.{minor}": shutil.which(f"python{major}.{minor}") for major, minor in _PYTHONS}
    own = f"{sys.version_info[0]}.{sys.version_info[1]}"
    if own in candidates:
        candidates = {own: sys.executable, **{v: path for v, path in candidates.items() if v != own}}
    for version, path in candidates.items():
        if path and _makes_venvs(path):
            return path, version
    raise RuntimeError(
        f"Letta {LETTA_VERSION} needs Python {', '.join(sorted(candidates))} with venv and ensurepip "
        f"(Debian: python3-venv). These tests run on {own}, and PATH has no other that will do: install one."
    )


def _makes_venvs(python: str) -> bool:
    """Being on PATH is not enough: pyenv has stand-ins there for other versions, Debian packs venv apart."""
    probe = [python, "-c", "import venv, ensurepip"]
    return subprocess.run(probe, capture_output=True).returncode == 0


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[int]:
    """Hold a lock between processes, and yield its file descriptor; the system lets go of it if they die."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _say(f"waiting for another test run that holds {path}")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()


# -- one run -----------------------------------------------------------------------------------------------


class _RunFolder:
    """A temporary folder for one server: its data, logs and the guard over its processes."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="otel-letta-"))
        self.path.chmod(0o711)  # `nobody` has to get through to its data
        self.home = self.path / "home"
        self.home.mkdir()
        self.guard = _Guard(self.path)

    def log(self, name: str) -> Path:
        return self.path / f"{name}.log"

    def close(self) -> None:
        self.guard.close()
        shutil.rmtree(self.path, ignore_errors=True)


class _Guard:
    """Ends the servers when the test process is gone, be it by SIGKILL, where no ``atexit`` or fixture runs.

    A helper process reads the leaders of process groups from a pipe.  The pipe ends with the test process,
    and then the helper kills every group that it was not told to forget, and removes the run folder.
    """

    _PROGRAM = """\
import os, shutil, signal, sys
watched = set()
for line in sys.stdin:
    word, _, pid = line.partition(" ")
    (watched.add if word == "watch" else watched.discard)(int(pid))
for pid in watched:
    try:
        os.killpg(pid, signal.SIGKILL)
    except OSError:
        pass
shutil.rmtree(sys.argv[1], ignore_errors=True)
"""

    def __init__(self, folder: Path) -> None:
        self._lock = threading.Lock()
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-c", self._PROGRAM, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            text=True,
            bufsize=1,
            cwd="/",
            start_new_session=True,  # out of reach of Ctrl-C and of whoever kills the tests' process group
        )

    def watch(self, process: _Process) -> None:
        self._tell(f"watch {process.pid}\n")

    def forget(self, process: _Process) -> None:
        self._tell(f"forget {process.pid}\n")

    def close(self) -> None:
        with self._lock:
            assert self._process.stdin is not None
            with contextlib.suppress(OSError):
                self._process.stdin.close()
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                # On a busy machine it may still be deleting. Left to the garbage collector it would be a
                # ResourceWarning in whichever test runs then; the folder is deleted by its owner, too.
                self._process.kill()
                self._process.wait()

    def _tell(self, line: str) -> None:
        with self._lock, contextlib.suppress(OSError, ValueError):
            assert self._process.stdin is not None
            self._process.stdin.write(line)
            self._process.stdin.flush()


class _Postgres:
    """PostgreSQL from the pgserver wheel on a free port, TCP on loopback only."""

    # Data of a test need not survive a power cut.  No Unix socket: a folder for it, whose owner and length of
    # path PostgreSQL is particular about, would be trouble for nothing.
    _SETTINGS: Mapping[str, str] = {
        "listen_addresses": "127.0.0.1",
        "unix_socket_directories": "",
        "max_connections": "300",
        "fsync": "off",
        "synchronous_commit": "off",
        "full_page_writes": "off",
    }

    def __init__(self, installation: _Installation, run_folder: _RunFolder) -> None:
        self._run = run_folder
        self._process: _Process | None = None
        self._port = 0
        self._user = pwd.getpwnam("nobody") if os.getuid() == 0 else None
        self.data = run_folder.path / "pgdata"
        self._bin = self._programs(installation) / "bin"

    @property
    def uri(self) -> str:
        return f"postgresql://letta:letta@127.0.0.1:{self._port}/{_DATABASE}"

    def start(self, template: Path | None) -> None:
        """Start from a copy of ``template``, or with an empty database that has the vector extension."""
        if template is None:
            self.data.mkdir()
            self._own()
            # The only way in is loopback, for as long as the tests run: no passwords.
            access = ("--username=letta", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync")
            self._run_program("initdb", f"--pgdata={self.data}", *access)
        else:
            shutil.copytree(template, self.data)
            self._own()
        for attempt in range(1, _START_ATTEMPTS + 1):
            self._port = _free_port()
            try:
                self._start_server()
                break
            except RuntimeError as error:
                if attempt == _START_ATTEMPTS or "address already in use" not in str(error).lower():
                    raise
        if template is None:
            self._sql("postgres", f"create database {_DATABASE}")
            self._sql(_DATABASE, "create extension vector")

    def stop(self) -> None:
        if self._process is None:
            return
        _end(self._process, signal.SIGINT, patience=20)  # SIGINT: end all sessions, then shut down cleanly
        self._run.guard.forget(self._process)
        self._process = None

    def _programs(self, installation: _Installation) -> Path:
        """The PostgreSQL tree; under root a copy, as ``nobody`` cannot look into a cache in root's home."""
        packages = installation.site_packages
        if self._user is None:
            return packages / "pgserver" / "pginstall"
        copy = self._run.path / "postgres"
        # The programs look for their libraries relative to themselves: keep the wheel's layout.
        unused = shutil.ignore_patterns("include", "doc", "man", "*.a")
        shutil.copytree(packages / "pgserver" / "pginstall", copy / "pgserver" / "pginstall", ignore=unused)
        if (packages / "pgserver.libs").is_dir():
            shutil.copytree(packages / "pgserver.libs", copy / "pgserver.libs")
        return copy / "pgserver" / "pginstall"

    def _own(self) -> None:
        """Give the data folder to the user that the server runs as, with the mode on which it insists."""
        self.data.chmod(0o700)
        if self._user is not None:
            for path in (self.data, *self.data.rglob("*")):
                os.chown(path, self._user.pw_uid, self._user.pw_gid)

    def _identity(self) -> dict[str, Any]:
        if self._user is None:
            return {}
        return {"user": self._user.pw_uid, "group": self._user.pw_gid, "extra_groups": ()}

    def _start_server(self) -> None:
        settings = [f"--{name}={value}" for name, value in self._SETTINGS.items()]
        log_file = self._run.log("postgres")
        with log_file.open("wb") as log:
            self._process = _spawn(
                [self._bin / "postgres", "-D", self.data, f"--port={self._port}", *settings],
                cwd=Path("/"),
                env=_environment(HOME="/"),
                log=log,
                **self._identity(),
            )
        self._run.guard.watch(self._process)
        deadline = time.monotonic() + 60
        while not self._accepts():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise RuntimeError(f"PostgreSQL did not start; its log ends with\n{_tail(log_file, 40)}")
            time.sleep(0.05)

    def _accepts(self) -> bool:
        probe = (self._bin / "pg_isready", "--quiet", "--host=127.0.0.1", f"--port={self._port}")
        return subprocess.run(probe, env=_environment(), capture_output=True).returncode == 0

    def _sql(self, database: str, statement: str) -> None:
        where = ("--host=127.0.0.1", f"--port={self._port}", "--username=letta", f"--dbname={database}")
        self._run_program("psql", "--quiet", "--no-psqlrc", *where, f"--command={statement}")

    def _run_program(self, name: str, *arguments: str) -> None:
        env = _environment(HOME="/")
        log = self._run.log(name)
        _run([self._bin / name, *arguments], log=log, cwd=Path("/"), env=env, timeout=120, **self._identity())


# -- processes ---------------------------------------------------------------------------------------------


def _environment(**extra: str) -> dict[str, str]:
    """This process's environment without what would steer a server elsewhere, plus ``extra``.

    A proxy that nobody listens on keeps the servers' traffic on loopback: Letta tries to fetch language data
    when it starts, which now fails at once.
    """
    env = {
        name: value
        for name, value in os.environ.items()
        if not name.upper().startswith(_DROPPED_PREFIXES) and not name.upper().endswith(_DROPPED_SUFFIXES)
    }
    nowhere = "http://127.0.0.1:9"
    env.update(HTTP_PROXY=nowhere, HTTPS_PROXY=nowhere, http_proxy=nowhere, https_proxy=nowhere)
    env.update(NO_PROXY="127.0.0.1,localhost", no_proxy="127.0.0.1,localhost")
    return {**env, **extra}


def _spawn(
    command: Sequence[str | Path], *, cwd: Path, env: Mapping[str, str], log: IO[bytes], **options: Any
) -> _Process:
    """Start a server in a session, and so a process group, of its own."""
    try:
        return subprocess.Popen(
            list(command),
            cwd=cwd,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            **options,
        )
    except OSError as error:
        raise RuntimeError(f"cannot run {command[0]}: {error}") from error


def _end(process: _Process, first: signal.Signals, patience: float) -> None:
    """Signal a server; if it has not ended ``patience`` seconds later, kill its whole group."""
    with contextlib.suppress(ProcessLookupError):
        if first is signal.SIGKILL:
            os.killpg(process.pid, first)
        else:
            process.send_signal(first)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(patience)
    # Also after a polite end: workers that outlived their parent would keep the port.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(patience)


def _run(
    command: Sequence[str | Path],
    *,
    log: Path,
    cwd: Path,
    timeout: float,
    env: Mapping[str, str] | None = None,
    **options: Any,
) -> str:
    """Run a program to its end and return what it printed; RuntimeError, with the log's end, if it fails."""
    words = [str(word) for word in command]
    with log.open("ab") as errors:
        errors.write(f"$ {' '.join(words)}\n".encode())
        errors.flush()
        try:
            done = subprocess.run(
                words,
                cwd=cwd,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                timeout=timeout,
                text=True,
                **options,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            said = _tail(log, 40)
            raise RuntimeError(f"{words[0]} did not run: {error}; {log} ends with\n{said}") from error
    output = str(done.stdout)
    if done.returncode:
        said = f"{_tail(log, 40)}\n{output[-2000:]}"
        raise RuntimeError(f"{words[0]} failed with {done.returncode}; {log} ends with\n{said}")
    return output


def _free_port() -> int:
    for port in random.sample(_PORTS, 200):
        if _is_free(port):
            return port
    raise RuntimeError(f"no free port between {_PORTS.start} and {_PORTS.stop}")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        # As servers do it: connections of a predecessor that linger must not count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def _healthy(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/v1/health/")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _tail(path: Path, n: int) -> str:
    if not path.exists():
        return ""
    return "\n".join(path.read_text(errors="replace").splitlines()[-n:])


def _say(text: str) -> None:
    print(f"[letta_server] {text}", file=sys.stderr, flush=True)


# -- by hand -----------------------------------------------------------------------------------------------


def _call(server: LettaServer, method: str, path: str, body: object = None) -> Any:
    connection = http.client.HTTPConnection(server.base_url.removeprefix("http://"), timeout=60)
    headers = {"Authorization": f"Bearer {server.password}", "Content-Type": "application/json"}
    connection.request(method, path, json.dumps(body), headers)
    response = connection.getresponse()
    text = response.read().decode()
    connection.close()
    if response.status != 200:
        raise RuntimeError(f"{method} {path}: {response.status} {text}")
    return json.loads(text)


def _run_until_interrupted() -> None:
    with ScriptedLLM() as llm, LettaServer(llm) as server:
        body = {"name": "by-hand", "model": MODEL_HANDLE, "embedding": EMBEDDING_HANDLE}
        agent = _call(server, "POST", "/v1/agents/", {**body, "include_base_tools": False})
        print(f"LETTA_BASE_URL={server.base_url}")
        print(f"LETTA_PASSWORD={server.password}")
        print(f"LETTA_AGENT_ID={agent['id']}")
        print("Ctrl-C ends it.", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            signal.pause()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.support.letta_server")
    parser.add_argument("command", choices=("install", "run"))
    # `kill` and supervisors end a program with SIGTERM: clean up as for Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        if parser.parse_args(arguments).command == "install":
            print(LettaServer.install())
        else:
            _run_until_interrupted()
    except RuntimeError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
