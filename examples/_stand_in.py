"""Where the examples report to: your Letta agent if LETTA_AGENT_ID is set, else a stand-in that they start themselves.

Not needed in a program of your own: there the environment or a `.env` file names the server and the agent.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from otel_letta import Settings
from otel_letta.testing import InMemoryLetta


@contextlib.contextmanager
def letta_agent(*answers: str) -> Iterator[None]:
    """An agent to report to; what the stand-in's agent heard is printed at the end.

    Args:
        answers: what the stand-in's agent says in its first turns. An agent of yours decides for itself.
    """
    asked = Settings.resolve(require_agent=False)
    if asked.agent_id:
        print(f"Reporting to agent {asked.agent_id} at {asked.base_url}\n", flush=True)
        yield
        return
    with InMemoryLetta() as letta:
        agent_id = letta.create_agent("example")
        for answer in answers:
            letta.answer_next(answer)
        # In the environment, so that processes that the example starts find it too.
        os.environ.update(LETTA_BASE_URL=letta.base_url, LETTA_AGENT_ID=agent_id, OTEL_LETTA_BOARD_INTERVAL="0.5")
        print(f"No LETTA_AGENT_ID is set: reporting to a stand-in for Letta at {letta.base_url}\n", flush=True)
        yield
        print("\nWhat the agent sees in its memory (writing there wakes nobody):\n")
        for label in ("task_progress", "task_progress_2"):  # each process that reports at the time has its own
            if board := letta.board(agent_id, label):
                print(board, end="\n\n")
        print(f"What woke it, in {letta.turns} turn(s) of its LLM:\n")
        for message in letta.messages(agent_id):
            print(message.content, end="\n\n")


@contextlib.contextmanager
def language_model(*turns: dict[str, object]) -> Iterator[None]:
    """A model for OpenHands: yours if LLM_MODEL is set, else one that calls these tools, one in each of its turns.

    Args:
        turns: each has ``tool``, its name, and the tool's arguments.
    """
    if os.environ.get("LLM_MODEL"):
        yield
        return
    left = list(turns)

    class Model(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            arguments = dict(left.pop(0))
            function = {"name": arguments.pop("tool"), "arguments": json.dumps(arguments)}
            call = {"id": f"call-{len(left)}", "type": "function", "function": function}
            message = {"role": "assistant", "content": None, "tool_calls": [call]}
            choice = {"index": 0, "message": message, "finish_reason": "tool_calls"}
            body = {"id": call["id"], "object": "chat.completion", "created": 0, "model": "scripted"}
            usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
            answer = json.dumps({**body, "choices": [choice], "usage": usage}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Model) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        os.environ.update(
            LLM_MODEL="openai/scripted", LLM_BASE_URL=f"http://127.0.0.1:{server.server_port}", LLM_API_KEY="unused"
        )
        try:
            yield
        finally:
            server.shutdown()


@contextlib.contextmanager
def tracing_backend() -> Iterator[None]:
    """A backend for OTLP/HTTP: yours if OTEL_EXPORTER_OTLP_ENDPOINT is set, else one that prints what it receives."""
    if os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT"):
        yield
        return
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    class Backend(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.end_headers()
            for group in ExportTraceServiceRequest.FromString(body).resource_spans:
                for span in (span for scope in group.scope_spans for span in scope.spans):
                    milliseconds = (span.end_time_unix_nano - span.start_time_unix_nano) / 1e6
                    print(f"The backend received: trace {span.trace_id.hex()}, {milliseconds:4.0f} ms, {span.name}")

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Backend) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = f"http://127.0.0.1:{server.server_port}"
        try:
            yield
        finally:
            server.shutdown()
