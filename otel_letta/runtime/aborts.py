"""The exceptions that are no errors or that OpenTelemetry does not record, and what they mean for a task.

They are known by the package and the name of their class, or of one that it is derived from: nothing is imported.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
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
    STEERED = "ended on purpose"

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
    ("airflow", "TaskAwaitingInput"): Flow.WAITING,
    ("airflow", "AirflowSkipException"): Flow.SKIPPED,
    ("airflow", "DagRunTriggerException"): Flow.HANDED_OVER,
    ("prefect", "Pause"): Flow.WAITING,
    ("temporalio", "ContinueAsNewError"): Flow.HANDED_OVER,
    ("temporalio", "_CompleteAsyncError"): Flow.WAITING,
    ("temporalio", "_ActivityDoBackoffError"): Flow.RETRY,
    ("temporalio", "_WorkflowBeingEvictedError"): Flow.HANDED_OVER,
    ("langgraph", "GraphInterrupt"): Flow.WAITING,
    ("langgraph", "ParentCommand"): Flow.HANDED_OVER,
    ("pydantic_ai", "CallDeferred"): Flow.WAITING,
    ("pydantic_ai", "ApprovalRequired"): Flow.WAITING,
}
"""Read in the sources of celery 5.7.0, dramatiq 2.2.1, prefect 3.9.1, temporalio 1.35.0, and apache-airflow-core 3.3.2
with its task SDK 1.3.2. What they raise to stop work is not here: dramatiq's Shutdown and TimeLimitExceeded, Airflow's
AirflowTaskTerminated and AirflowTaskTimeout, prefect's Abort and TerminationSignal."""

_more: set[str] = set()
"""Further ones, ``module.Name``, that a setting names."""


def add_flows(names: Iterable[str]) -> None:
    """Let further exceptions, ``module.Name``, count as control flow: what they end has ended on purpose."""
    _more.update(names)


def flow_of(error: BaseException | None) -> Flow | None:
    """Return what a framework wants with an exception that steers it; None for any other."""
    if error is None:
        return None
    found = next((_FLOWS[name] for name in _names(error) if name in _FLOWS), None)
    if found is None and _more:
        kinds = type.mro(type(error))
        named = any(f"{as_text(kind.__module__)}.{as_text(kind.__qualname__)}" in _more for kind in kinds)
        found = Flow.STEERED if named else None
    return found


def flow_named(kind: str) -> Flow | None:
    """Return what a framework wants with an exception that is known by its type's full name alone."""
    package, name = kind.partition(".")[0], kind.rpartition(".")[2]
    return _FLOWS.get((package, name)) or (Flow.STEERED if kind in _more else None)


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
