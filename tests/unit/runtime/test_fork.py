"""The registry of what a forked child makes anew, also where Python does not hear of the fork."""

from __future__ import annotations

import os
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
    monkeypatch.setattr(fork, "pid", -1)
    return made


def test_a_process_that_was_not_forked_renews_nothing(renewals: list[Callable[[], None]]) -> None:
    fork.pid = os.getpid()
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
