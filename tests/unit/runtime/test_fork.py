"""The registry of what a forked child makes anew, also where Python does not hear of the fork."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from otel_letta.runtime import fork


@pytest.fixture
def renewals(monkeypatch: pytest.MonkeyPatch) -> list[Callable[[], None]]:
    """The only renewals there are, in a process that seems to be another one than before."""
    made: list[Callable[[], None]] = []
    monkeypatch.setattr(fork, "_renewals", made)
    for name in ("_renewing", "_forked_at", "_late"):
        monkeypatch.setattr(fork, name, getattr(fork, name))
    monkeypatch.setattr(fork, "_turns", {})
    monkeypatch.setattr(fork, "_pid", -1)
    return made


def test_a_process_that_was_not_forked_renews_nothing(renewals: list[Callable[[], None]]) -> None:
    fork._pid = os.getpid()
    renewals.append(pytest.fail)
    assert not fork.check()


def test_a_fork_without_pythons_hooks_is_noticed_once(renewals: list[Callable[[], None]]) -> None:
    seen = []
    renewals.append(lambda: seen.append("renewed"))
    assert fork.check()
    assert not fork.check()
    assert seen == ["renewed"]
    assert fork.was_noticed_late()
    assert 0 < fork.forked_at() <= time.time_ns()


def test_a_renewal_may_check_again(renewals: list[Callable[[], None]]) -> None:
    seen = []
    renewals.append(lambda: seen.append(fork.check()))
    assert fork.check()
    assert seen == [False]


def test_pythons_own_fork_is_not_late(renewals: list[Callable[[], None]]) -> None:
    seen = []
    renewals.append(lambda: seen.append(fork.check()))
    fork._after_in_child()
    assert seen == [False]
    assert not fork.check() and not fork.was_noticed_late()


_FORK_BY_C = """
import ctypes, os
from otel_letta.runtime import fork

fork.check()
assert fork.here[0]
child = ctypes.PyDLL(None).fork()
if not child:
    unnoticed = not fork.here[0]
    noticed = fork.check() and bool(fork.here[0])
    os._exit(0 if unnoticed and noticed else 1)
assert os.waitpid(child, 0)[1] == 0
assert fork.here[0]
"""


@pytest.mark.skipif(sys.platform != "linux", reason="no memory is wiped at a fork elsewhere")
def test_a_fork_that_python_does_not_hear_of_shows_without_a_system_call() -> None:
    # In a program of its own: what other tests left in this process may not survive such a fork (gRPC's threads).
    subprocess.run([sys.executable, "-c", _FORK_BY_C], check=True, timeout=120)


def test_where_no_memory_is_wiped_the_process_id_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "other")
    here = fork._wiped_at_fork()
    assert here[0]
    monkeypatch.setattr(fork, "_pid", -1)
    assert not here[0]


def test_a_page_that_was_lost_without_a_fork_is_written_again() -> None:
    fork.here[0] = 0
    assert not fork.check()
    assert fork.here[0]
