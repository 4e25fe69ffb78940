"""What an exception means for a task that is no error of its own."""

from __future__ import annotations

import asyncio
import concurrent.futures
import sys
from typing import Any

import pytest

from otel_letta.runtime.aborts import Flow, abort_reason, flow_of, is_cancellation


def raised(module: str, name: str, base: type[BaseException] = BaseException) -> BaseException:
    """An exception of a package that is not installed here."""
    made: BaseException = type(name, (base,), {"__module__": module})()
    return made


@pytest.mark.parametrize(
    "error",
    [
        asyncio.CancelledError(),
        raised("trio", "Cancelled"),
        raised("trio._core._exceptions", "Cancelled"),
        raised("curio.errors", "TaskCancelled"),
        raised("greenlet", "GreenletExit"),
        raised("somebody", "Stopped", asyncio.CancelledError),
    ],
)
def test_cancellation_by_any_library_is_told_alike(error: BaseException) -> None:
    assert abort_reason(error) == "cancelled or timed out"


def test_gevents_own_is_one() -> None:
    gevent = pytest.importorskip("gevent")
    assert abort_reason(gevent.GreenletExit()) == "cancelled or timed out"


def test_an_exception_may_be_a_cancellation_too() -> None:
    assert is_cancellation(concurrent.futures.CancelledError())
    assert not is_cancellation(ValueError())
    assert not is_cancellation(None)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="no groups")
def test_a_group_is_cancelled_if_all_of_it_is() -> None:
    group: Any = BaseExceptionGroup  # noqa: F821
    assert is_cancellation(group("", [asyncio.CancelledError(), group("", [raised("trio", "Cancelled")])]))
    assert not is_cancellation(group("", [asyncio.CancelledError(), ValueError()]))


@pytest.mark.parametrize(
    ("error", "flow"),
    [
        (raised("celery.exceptions", "Retry", Exception), Flow.RETRY),
        (raised("celery.exceptions", "Ignore", Exception), Flow.IGNORED),
        (raised("airflow.exceptions", "TaskDeferred"), Flow.WAITING),
        (raised("langgraph.errors", "GraphInterrupt", Exception), Flow.WAITING),
        (raised("temporalio.workflow", "ContinueAsNewError"), Flow.HANDED_OVER),
        (raised("mine", "Retry", Exception), None),
        (ValueError(), None),
        (None, None),
    ],
)
def test_what_steers_a_framework_is_no_failure(error: BaseException | None, flow: Flow | None) -> None:
    assert flow_of(error) is flow
    if flow is not None:
        assert abort_reason(error) is None
