"""FastAPI background jobs under gunicorn: two worker processes, one Letta agent.

    pip install fastapi gunicorn uvicorn-worker
    python examples/fastapi_jobs.py

starts gunicorn as one would by hand, gives it six jobs, and stops it. By hand, with LETTA_AGENT_ID set:

    cd examples && gunicorn -c gunicorn_conf.py fastapi_jobs:app
    curl -X POST 'http://127.0.0.1:8000/jobs?files=5&chat_id=chat-1'

Expect six tasks that complete, each told once, by whichever worker had it: requests of a host's processes to one
agent go one after another, and each worker with a task shows it on a board of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

from _stand_in import letta_agent
from fastapi import BackgroundTasks, FastAPI
from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider

from otel_letta import LettaSpanProcessor, task


@contextlib.asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    # The lifespan runs in each worker, after the fork, with or without --preload: that is the place to make
    # exporters, whose threads do not survive a fork, and the only one where they are shut down again before the
    # worker exits. (A LettaSpanProcessor that was made before the fork would work: it starts clean in the child.)
    provider = TracerProvider(resource=Resource.create({"service.name": "jobs"}))
    provider.add_span_processor(LettaSpanProcessor())
    trace.set_tracer_provider(provider)
    yield
    await asyncio.to_thread(provider.shutdown)


app = FastAPI(lifespan=lifespan)


@app.post("/jobs", status_code=202)
async def submit(files: int, chat_id: str, background: BackgroundTasks) -> dict[str, str | int]:
    job_id = str(uuid.uuid4())
    # Not asyncio.create_task: on SIGTERM the server waits for its background tasks, and nobody for those.
    background.add_task(convert, files, chat_id, job_id)
    return {"job_id": job_id, "worker": os.getpid()}


async def convert(files: int, chat_id: str, job_id: str) -> None:
    async with task(f"Convert {files} files", chat_id=chat_id, task_id=job_id) as t:
        for _ in t.track(range(files)):
            await asyncio.sleep(0.2)
        t.result(f"{files} files converted")


def demo() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:  # a free port, open before gunicorn is up
        port, fd = listener.getsockname()[1], listener.fileno()
        command = [sys.executable, "-m", "gunicorn", "-c", "gunicorn_conf.py", "--bind", f"fd://{fd}"]
        with subprocess.Popen([*command, "fastapi_jobs:app"], cwd=Path(__file__).parent, pass_fds=[fd]) as gunicorn:
            try:
                for number in range(1, 7):
                    time.sleep(0.3)  # the worker that is up first would take them all
                    job = f"http://127.0.0.1:{port}/jobs?files={number}&chat_id=chat-{number}"
                    print(urllib.request.urlopen(job, data=b"", timeout=30).read().decode())
            finally:
                gunicorn.terminate()  # it waits for the jobs


if __name__ == "__main__":
    with letta_agent():
        demo()
