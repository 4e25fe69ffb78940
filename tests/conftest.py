"""What holds for every test: nothing of the developer's own machine takes part, and `letta` is in memory."""

from __future__ import annotations

import gc
import os
import signal
import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

_ROOT = str(Path(__file__).parent.parent)
if _ROOT not in sys.path:  # `tests.support` is importable wherever pytest was started
    sys.path.insert(0, _ROOT)

from otel_letta.testing import InMemoryLetta  # noqa: E402
from tests.support.letta_harness import real_letta, real_letta_server, scripted_llm  # noqa: E402, F401 - fixtures

# How long an example takes says nothing on a machine with other things to do.
hypothesis.settings.register_profile("busy", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("busy")

_OURS = ("LETTA_", "OTEL_")
_PROXIES = {"HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"}


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No setting or proxy in the environment, and a working directory without a `.env` above it."""
    for name in list(os.environ):
        if name.startswith(_OURS) or name.upper() in _PROXIES:
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def nothing_recognised() -> Iterator[None]:
    """What a test learned of a server is forgotten: the system gives the same port to another test's, and most tests
    have an agent of the same name, to which nobody else sends."""
    yield
    flavour, runs = (sys.modules.get(f"otel_letta.{name}") for name in ("letta.flavour", "delivery.runs"))
    if flavour is not None:
        flavour._known.clear()
    if runs is not None:
        runs.contention._seen.clear()
        runs.outages._began.clear()
        runs.outages._going_on.clear()
        runs.waited_out._ids.clear()


@pytest.fixture(autouse=True)
def no_database_is_left_open(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Python 3.13 warns of a database that is collected before it was closed, and a warning fails a test: so that it is
    the test which left it open, and not whichever happens to run when the garbage collector does."""
    connect, made = sqlite3.connect, []

    def noted(*arguments: Any, **options: Any) -> sqlite3.Connection:
        made.append(1)
        return connect(*arguments, **options)

    monkeypatch.setattr(sqlite3, "connect", noted)
    yield
    if made and sys.version_info >= (3, 13):
        gc.collect()


@pytest.fixture(autouse=True, scope="session")
def hang_ups_end_programs() -> None:
    """SIGHUP ends a program that a test starts, also where `nohup` or a service started pytest."""
    if sys.platform != "win32" and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Programs that the test starts are reached by Ctrl-C, also where a shell started pytest in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def letta() -> Iterator[InMemoryLetta]:
    """A Letta server of the test's own. The real one is `real_letta`, for tests that are marked ``letta``."""
    with InMemoryLetta() as server:
        yield server


@pytest.fixture
def agent(letta: InMemoryLetta) -> str:
    """The id of an agent on `letta`."""
    return letta.create_agent()
