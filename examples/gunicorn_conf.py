"""gunicorn's side of fastapi_jobs.py: `gunicorn -c gunicorn_conf.py fastapi_jobs:app`.

On SIGTERM a worker waits 20 s for its jobs, cancels the rest (their tasks are told as failed, "cancelled or timed
out"), delivers for 5 s at most, and exits. gunicorn kills it after 30 s, and a killed process reports nothing, so keep
graceful_timeout above the sum of both.
"""

from typing import Any, ClassVar

from uvicorn_worker import UvicornWorker


class Worker(UvicornWorker):
    CONFIG_KWARGS: ClassVar[dict[str, Any]] = {**UvicornWorker.CONFIG_KWARGS, "timeout_graceful_shutdown": 20}


bind = "127.0.0.1:8000"
workers = 2
worker_class = Worker
graceful_timeout = 30
