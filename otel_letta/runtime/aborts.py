"""The exceptions that are no errors or that OpenTelemetry does not record, and what they mean for a task.

They are known by the package and the name of their class, or of one that it is derived from: nothing is imported.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Final

from otel_letta.text import as_text


class Flow(Enum):
    """What a framework wants when it raises an exception that is no error. The values are for people."""

    RETRY = "will be tried again"
    WAITING = "waits"
    HANDED_OVER = "goes on elsewhere"
    SKIPPED = "was skipped"
    IGNORED = "was ignored"
    REJECTED = "was rejected"

    @property
    def goes_on(self) -> bool:
        """True if the task is not over."""
        return self in (Flow.RETRY, Flow.WAITING, Flow.HANDED_OVER)


_CANCELLATIONS: Final = frozenset(
    {
        ("asyncio", "CancelledError"),
        ("concurrent", "CancelledError"),
        ("trio", "Cancelled"),
        ("curio", "CancelledError"),
        ("curio", "TaskCancelled"),
        ("greenlet", "GreenletExit"),  # gevent's and eventlet's too
        ("gevent", "GreenletExit"),
        ("huey", "CancelExecution"),
        ("temporalio", "CancelledError"),
        ("dramatiq_abort", "Abort"),
    }
)
"""Package and class. anyio raises those of asyncio or trio."""

_FLOWS: Final[Mapping[tuple[str, str], Flow]] = {
    ("celery", "Retry"): Flow.RETRY,
    ("celery", "Ignore"): Flow.IGNORED,
    ("celery", "Reject"): Flow.REJECTED,
    ("dramatiq", "Retry"): Flow.RETRY,
    ("arq", "Retry"): Flow.RETRY,
    ("huey", "RetryTask"): Flow.RETRY,
    ("procrastinate", "JobRetry"): Flow.RETRY,
    ("airflow", "AirflowRescheduleException"): Flow.WAITING,
    ("airflow", "TaskDeferred"): Flow.WAITING,
    ("airflow", "AirflowSkipException"): Flow.SKIPPED,
    ("prefect", "Pause"): Flow.WAITING,
    ("temporalio", "ContinueAsNewError"): Flow.HANDED_OVER,
    ("temporalio", "_CompleteAsyncError"): Flow.WAITING,
    ("langgraph", "GraphInterrupt"): Flow.WAITING,
    ("langgraph", "ParentCommand"): Flow.HANDED_OVER,
    ("pydantic_ai", "CallDeferred"): Flow.WAITING,
    ("pydantic_ai", "ApprovalRequired"): Flow.WAITING,
}


def flow_of(error: BaseException | None) -> Flow | None:
    """Return what a framework wants with an exception that steers it; None for any other."""
    if error is None:
        return None
    return next((_FLOWS[name] for name in _names(error) if name in _FLOWS), None)


def is_cancellation(error: BaseException | None) -> bool:
    """Return True for the exception by which some async library cancels work, or for a group of nothing else."""
    if error is None:
        return False
    leaves = getattr(error, "exceptions", None) if type(error).__name__.endswith("ExceptionGroup") else None
    if type(leaves) is tuple and leaves:
        return all(map(is_cancellation, leaves))
    return any(name in _CANCELLATIONS for name in _names(error))


def _names(error: BaseException) -> list[tuple[str, str]]:
    kinds = type.mro(type(error))
    return [((as_text(kind.__module__) or "").partition(".")[0], as_text(kind.__name__) or "") for kind in kinds]


def abort_reason(error: BaseException | None) -> str | None:
    """Why a span that this exception passed through has failed although OpenTelemetry leaves it UNSET.

    None for an ordinary `Exception`, which OpenTelemetry records itself, and for what is no failure: a generator
    that is closed early, a program that exits with success, and what steers a framework. A cancelled
    task and one that ran into a timeout look alike.
    """
    if error is None or isinstance(error, (Exception, GeneratorExit)) or flow_of(error) is not None:
        return None
    if isinstance(error, SystemExit):
        code = error.code
        if code is None or (isinstance(code, int) and not code):
            return None
        # The code may be any object, and its own text anything.
        shown = as_text(code) if isinstance(code, int) else None
        return f"the program exited with code {shown}" if shown else "the program exited"
    if is_cancellation(error):
        return "cancelled or timed out"
    if isinstance(error, KeyboardInterrupt):
        return "interrupted (Ctrl-C)"
    return f"stopped by {type(error).__name__}"
