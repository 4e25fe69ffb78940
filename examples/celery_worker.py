"""A Celery worker whose tasks are reported to the chat that asked for them.

    pip install celery
    python examples/celery_worker.py

runs a worker in this process, with a broker in memory. With a broker of yours (BROKER_URL) and LETTA_AGENT_ID set:

    cd examples && celery -A celery_worker worker

Expect two tasks that complete and one that fails, each with the chat and message id that its sender put into the
headers. The ids of Celery's tasks are the reports' task ids.
"""

from __future__ import annotations

import os
import time
from typing import Any

import celery
from _stand_in import letta_agent
from celery.contrib.testing.worker import start_worker
from celery.signals import worker_process_init, worker_process_shutdown
from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider

from otel_letta import LettaSpanProcessor, report_progress, task


class ReportedTask(celery.Task):
    """Each run is a task for the agent. A retry ends its run as failed, and the next run goes on with the same id."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        asked = self.request.headers or {}
        with task(
            self.name, task_id=self.request.id, chat_id=asked.get("chat_id"), message_id=asked.get("message_id")
        ) as t:
            result = self.run(*args, **kwargs)
            t.result(str(result))
            return result


app = celery.Celery(
    "reports", broker=os.environ.get("BROKER_URL", "memory://"), backend="cache+memory://", task_cls=ReportedTask
)


@worker_process_init.connect  # in each process of the pool, after its fork; threads and gevent pools: worker_init
def start_reporting(**_: Any) -> None:
    provider = TracerProvider(resource=Resource.create({"service.name": "celery"}))
    provider.add_span_processor(LettaSpanProcessor())
    trace.set_tracer_provider(provider)


@worker_process_shutdown.connect  # a prefork child ends without atexit, which would do this otherwise
def stop_reporting(**_: Any) -> None:
    trace.get_tracer_provider().shutdown()


@app.task(name="Sum up sales")
def sum_up(days: int) -> str:
    if days < 1:
        raise ValueError("no days to sum up")
    for day in range(1, days + 1):
        time.sleep(0.1)
        report_progress(day / days, f"day {day} of {days}")
    return f"sales of {days} days summed up"


def demo() -> None:
    app.conf.broker_transport_options = {"polling_interval": 0.1}  # of the broker in memory; default is a second
    with start_worker(app, perform_ping_check=False):
        sent = [
            sum_up.apply_async((days,), headers={"chat_id": f"chat-{days}", "message_id": f"msg-{days}"})
            for days in (7, 0, 3)
        ]
        for result in sent:
            print("Celery's result:", repr(result.get(timeout=30, propagate=False)))


if __name__ == "__main__":
    with letta_agent():
        demo()
        stop_reporting()
