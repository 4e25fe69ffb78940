"""A program that works on tasks, with the OpenTelemetry SDK alone: what `compose.yaml` shows.

It stands for yours. `DEMO_TASKS` bounds it; without, it goes on until it is stopped.
"""

import itertools
import os
import random
import time

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Status, StatusCode

provider = TracerProvider()
provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))  # OTEL_EXPORTER_OTLP_ENDPOINT says where
tracer = provider.get_tracer("demo")

most = int(os.environ.get("DEMO_TASKS", "0"))
pause = float(os.environ.get("DEMO_PAUSE", "5"))

for number in range(1, most + 1) if most else itertools.count(1):
    # letta.task.* is what the agent is told; all other attributes go to the tracing backend alone.
    with tracer.start_as_current_span(f"Import {number}", attributes={"letta.task.id": f"import-{number}"}) as task:
        rows = random.randint(100, 900)  # noqa: S311
        with tracer.start_as_current_span("read rows", attributes={"prompt": "stays in the tracing backend"}):
            time.sleep(pause / 10)
        if number % 3 == 0:
            task.set_status(Status(StatusCode.ERROR, "ValueError: a row without an id"))
        else:
            task.set_attribute("letta.task.result", f"{rows} rows")
    time.sleep(pause)

provider.shutdown()
