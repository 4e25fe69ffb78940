"""An App Server on loopback that speaks as the real 0.34.12 was seen to, with faults on demand. No LLM, no disk."""

from __future__ import annotations

import http
import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.sync.server import ServerConnection, serve

Frame = dict[str, Any]

_mute = logging.Logger("scripted app server", level=logging.CRITICAL + 1)


class Held:
    """An input that the server has taken, and whose turn the test finishes."""

    def __init__(self, server: ScriptedAppServer, socket: ServerConnection, frame: Frame, run: str) -> None:
        self.server, self.socket, self.frame, self.run = server, socket, frame, run
        self.over = False

    @property
    def conversation(self) -> str:
        return str(self.frame["runtime"]["conversation_id"])

    @property
    def ids(self) -> list[str]:
        return [message["client_message_id"] for message in self.frame["payload"]["messages"]]

    def tell(self, kind: str, **body: Any) -> None:
        self.server.tell(self.socket, {"type": kind, "runtime": self.frame["runtime"], **body})

    def loop(self, status: str, **runs: list[str]) -> None:
        known = {name.replace("_", "-"): ids for name, ids in runs.items()}
        self.tell("update_loop_status", loop_status={"status": status, "client_message_ids_by_run_id": known})

    def begin(self) -> None:
        self.tell(
            "update_loop_status",
            loop_status={"status": "SENDING_API_REQUEST", "client_message_ids_by_run_id": {self.run: self.ids}},
        )

    def finish(self, stop_reason: str = "end_turn", error: str | None = None, **body: Any) -> None:
        self.over = True
        usage = {"message_type": "usage_statistics", "run_id": self.run, "prompt_tokens": 7, "total_tokens": 9}
        self.tell("stream_delta", delta=usage)
        consumers = [self.frame.get("terminal_consumer_id")]
        more = {} if error is None else {"error": error}
        self.tell(
            "turn_finished",
            turn_id=f"turn-{self.run}",
            stop_reason=stop_reason,
            **{"run_id": self.run, "terminal_consumer_ids": consumers, **more, **body},
        )
        # Not before: a question that is answered on another thread meanwhile would find nothing that runs.
        self.server.running.discard(self)


class ScriptedAppServer:
    """Everything is a plain attribute that a test may set at any time; see `scripted_app_server`."""

    def __init__(self) -> None:
        self.url = ""
        self.changed = threading.Condition()
        self.token: str | None = None
        self.refusal: tuple[int, str, bytes] | None = None
        """Status, reason and body of the answer to a handshake."""
        self.info: Frame | None = None
        """What it says of itself over HTTP; None for nothing."""
        self.agents: dict[str, Frame] = {}
        self.conversations: dict[str, Frame] = {}
        self.messages: dict[tuple[str, str], list[Frame]] = {}
        """Agent and conversation → rows, the oldest first."""
        self.ledger: set[tuple[str, str]] = set()
        self.occupied: set[str] = set()
        """Conversations with a run that does not end."""
        self.files: dict[str, dict[str, str]] = {}
        self.commits: list[Frame] = []
        self.refuse_file: Callable[[str, str], str | None] = lambda path, content: None
        """Path and content → why the check refuses it."""
        self.on_input: Callable[[Held], None] = lambda held: held.finish()
        """What happens after an input was accepted, stored and begun."""
        self.accept: Callable[[Frame], Frame] = lambda frame: {"accepted": True, "disposition": "started"}
        self.answers: dict[str, Callable[[ServerConnection, Frame], None]] = {}
        """Type of a request → what to do instead of answering it."""
        self.noise: list[str | bytes] = []
        """Sent before each answer."""
        self.received: list[Frame] = []
        self.handshakes: list[str | None] = []
        """The Authorization header of each."""
        self.running: set[Held] = set()
        self.open = 0
        self.wedged: list[str] = []
        """Conversations whose turn was running when its only socket closed."""
        self._runs = 0

    # -- for tests ---------------------------------------------------------------------------------------------------

    def agent(self, name: str = "agent-local-1") -> str:
        self.agents[name] = {"id": name, "name": f"name of {name}", "model": "stub", "tools": [], "system": "x" * 9_000}
        return name

    def conversation(self, agent: str, title: str | None = None, created: str = "2026-01-01", **more: Any) -> str:
        name = f"local-conv-{len(self.conversations) + 1}"
        row = {"id": name, "agent_id": agent, "summary": title, "created_at": created, "archived": False, **more}
        self.conversations[name] = row
        return name

    def of(self, *kinds: str) -> list[Frame]:
        return [frame for frame in list(self.received) if frame.get("type") in kinds]

    def texts(self, agent: str, conversation: str = "default") -> list[str]:
        rows = self.messages.get((agent, conversation), [])
        return [row["content"][-1]["text"] for row in rows if row["message_type"] == "user_message"]

    def wait_for(self, condition: Callable[[], object], seconds: float = 10.0) -> None:
        with self.changed:
            assert self.changed.wait_for(condition, seconds), "the server did not see that in time"

    def tell(self, socket: ServerConnection, frame: Frame | str | bytes) -> None:
        with suppress(ConnectionClosed):
            socket.send(json.dumps(frame) if isinstance(frame, dict) else frame)

    # -- the protocol ------------------------------------------------------------------------------------------------

    def check(self, socket: ServerConnection, request: Request) -> Response | None:
        if self.info is not None and request.path != "/ws":
            known = request.path == "/app-server-info"
            body = json.dumps(self.info) if known else ""
            return socket.respond(http.HTTPStatus.OK if known else http.HTTPStatus.NOT_FOUND, body)
        given = request.headers.get("Authorization")
        self.handshakes.append(given)
        if self.refusal is not None:
            status, reason, body = self.refusal
            headers = socket.respond(http.HTTPStatus(status), "").headers
            del headers["Content-Length"]
            headers["Content-Length"] = str(len(body))
            return Response(status, reason, headers, body)
        if self.token is not None and given != f"Bearer {self.token}":
            why = "missing websocket bearer token" if given is None else "invalid websocket bearer token"
            return Response(401, why, socket.respond(http.HTTPStatus.UNAUTHORIZED, "").headers, b"")
        return None

    def serve(self, socket: ServerConnection) -> None:
        with self.changed:
            self.open += 1
            self.changed.notify_all()
        try:
            for text in socket:
                frame = json.loads(text)
                for noise in self.noise:
                    self.tell(socket, noise)
                self._answer(socket, frame)
                with self.changed:
                    self.received.append(frame)
                    self.changed.notify_all()
        except ConnectionClosed:
            pass
        finally:
            with self.changed:
                self.open -= 1
                left = {held for held in list(self.running) if held.socket is socket and not held.over}
                self.running -= left
                self.wedged += [held.conversation for held in left]
                self.changed.notify_all()

    def _answer(self, socket: ServerConnection, frame: Frame) -> None:
        kind = frame.get("type", "")
        if kind in self.answers:
            self.answers[kind](socket, frame)
            return
        known = getattr(self, f"_{kind}", None)
        if known is not None:
            self.tell(socket, {"type": "update_device_status", "padding": "x" * 13_000})
            known(socket, frame)

    def reply(self, socket: ServerConnection, frame: Frame, **body: Any) -> None:
        named = f"{frame['type']}_response"
        self.tell(socket, {"type": named, "request_id": frame["request_id"], "success": True, **body})

    def store(self, agent: str, conversation: str, text: str, otid: str) -> None:
        rows = self.messages.setdefault((agent, conversation), [])
        reminder = [] if rows else [{"type": "text", "text": "<system-reminder>"}]
        content = [*reminder, {"type": "text", "text": text}]
        rows.append({"id": f"ui-msg-{len(rows)}", "message_type": "user_message", "content": content, "otid": otid})

    def say(self, agent: str, conversation: str, text: str) -> None:
        rows = self.messages.setdefault((agent, conversation), [])
        rows.append({"id": f"ui-msg-{len(rows)}", "message_type": "assistant_message", "content": text})

    def _input(self, socket: ServerConnection, frame: Frame) -> None:
        agent, conversation = frame["runtime"]["agent_id"], frame["runtime"]["conversation_id"]
        accepted = self.accept(frame)
        answer = {"type": "input_accepted", "request_id": frame["request_id"], "runtime": frame["runtime"], **accepted}
        messages = frame["payload"]["messages"]
        key = (conversation, messages[0]["client_message_id"])
        self.tell(socket, answer)
        if not accepted["accepted"] or key in self.ledger:
            return
        self.ledger.add(key)
        self._runs += 1
        held = Held(self, socket, frame, f"local-run-{self._runs}")
        broken = None
        if agent not in self.agents:
            broken = f"Agent {agent} not found"
        elif conversation != "default" and conversation not in self.conversations:
            broken = f"Conversation {conversation} not found"
        elif conversation in self.occupied:
            broken = f"Conversation {conversation} already has an active run (local-run-0)"
        if broken is not None:
            ids = {"client_message_ids": held.ids}
            error = {"message_type": "loop_error", "message": broken, "is_terminal": True, **ids}
            held.tell("stream_delta", delta=error)
            held.finish("error", broken, run_id=None, terminal_consumer_ids=None)
            return
        for message in messages:
            self.store(agent, conversation, message["content"], message["otid"])
        self.running.add(held)
        held.begin()
        self.on_input(held)

    def _abort_message(self, socket: ServerConnection, frame: Frame) -> None:
        ours = [held for held in list(self.running) if held.frame["runtime"] == frame["runtime"]]
        self.reply(socket, frame, aborted=bool(ours))
        for held in ours:
            held.finish("cancelled")

    def _sync(self, socket: ServerConnection, frame: Frame) -> None:
        ours = [held for held in list(self.running) if held.frame["runtime"] == frame["runtime"]]
        status = "SENDING_API_REQUEST" if ours else "WAITING_ON_INPUT"
        runtime = {"runtime": frame["runtime"]}
        self.tell(socket, {"type": "update_loop_status", "loop_status": {"status": status}, **runtime})
        self.tell(socket, {"type": "update_queue", "queue": [], **runtime})
        self.reply(socket, frame, **runtime)

    def _runtime_start(self, socket: ServerConnection, frame: Frame) -> None:
        self.reply(socket, frame, runtime={"agent_id": frame["agent_id"], "conversation_id": frame["conversation_id"]})

    def _agent_retrieve(self, socket: ServerConnection, frame: Frame) -> None:
        agent = self.agents.get(frame["agent_id"])
        error = {} if agent else {"success": False, "error": f"Agent {frame['agent_id']} not found"}
        self.reply(socket, frame, agent=agent, **error)

    def _agent_list(self, socket: ServerConnection, frame: Frame) -> None:
        self.reply(socket, frame, agents=list(self.agents.values()))

    def _conversation_create(self, socket: ServerConnection, frame: Frame) -> None:
        body = frame["body"]
        name = self.conversation(body["agent_id"], body["summary"], f"2026-02-{len(self.conversations) + 1:02}")
        self.reply(socket, frame, conversation=self.conversations[name])

    def _conversation_retrieve(self, socket: ServerConnection, frame: Frame) -> None:
        found = self.conversations.get(frame["conversation_id"])
        error = {} if found else {"success": False, "error": f"Conversation {frame['conversation_id']} not found"}
        self.reply(socket, frame, conversation=found, **error)

    def _conversation_list(self, socket: ServerConnection, frame: Frame) -> None:
        query = frame["query"]
        part = query.get("summary_search", "").lower()
        mine = [row for row in self.conversations.values() if row["agent_id"] == query["agent_id"]]
        mine = [row for row in mine if part in (row["summary"] or "").lower()]
        newest_first = sorted(mine, key=lambda row: str(row["created_at"]), reverse=True)
        self.reply(socket, frame, conversations=newest_first[: query["limit"]])

    def _conversation_messages_list(self, socket: ServerConnection, frame: Frame) -> None:
        query, conversation = frame["query"], frame["conversation_id"]
        agent = query["agent_id"]
        if agent not in self.agents or (conversation != "default" and conversation not in self.conversations):
            missing = f"Conversation {conversation} not found"
            self.reply(socket, frame, success=False, messages=[], error=missing)
            return
        rows = self.messages.get((agent, conversation), [])
        if "before" in query:
            rows = rows[: [row["id"] for row in rows].index(query["before"])]
        page = rows[::-1][: query["limit"]]
        more = len(rows) > query["limit"]
        self.reply(socket, frame, messages=page, has_more=more, next_before=page[-1]["id"] if page else None)

    def _list_memory(self, socket: ServerConnection, frame: Frame) -> None:
        files = self.files.setdefault(frame["agent_id"], {"MEMORY.md": "# Memory\n"})
        entries = [
            {"relative_path": path, "content": content.rpartition("\n---\n")[2].strip(), "kind": "markdown"}
            for path, content in files.items()
        ]
        for start in range(0, max(len(entries), 1), 5):
            last = start + 5 >= len(entries)
            self.reply(socket, frame, entries=entries[start : start + 5], done=last, memfs_enabled=True)
            if not last:
                self.tell(socket, {"type": "update_device_status"})

    def _read_memory_file(self, socket: ServerConnection, frame: Frame) -> None:
        content = self.files.get(frame["agent_id"], {}).get(frame["path"])
        error = {} if content is not None else {"success": False, "error": "ENOENT: no such file or directory"}
        self.reply(socket, frame, content=content, **error)

    def _write_memory_file(self, socket: ServerConnection, frame: Frame) -> None:
        path, content = frame["path"], frame["content"]
        self.files.setdefault(frame["agent_id"], {})[path] = content
        self.tell(socket, {"type": "memory_updated", "affected_paths": [path]})
        why = self.refuse_file(path, content)
        if why is not None:
            self.reply(socket, frame, success=False, error=f"Command failed: git commit\n{why}")
            return
        self.commits.insert(0, {"sha": "e1c2", "message": frame["commit_message"]})
        self.reply(socket, frame, committed=True)

    def _delete_memory_file(self, socket: ServerConnection, frame: Frame) -> None:
        self.files.get(frame["agent_id"], {}).pop(frame["path"], None)
        self.reply(socket, frame, committed=False)

    def _memory_history(self, socket: ServerConnection, frame: Frame) -> None:
        self.reply(socket, frame, commits=self.commits[: frame.get("limit", 5)])


@contextmanager
def scripted_app_server() -> Iterator[ScriptedAppServer]:
    """Serves until the block ends."""
    script = ScriptedAppServer()
    with serve(script.serve, "127.0.0.1", 0, process_request=script.check, logger=_mute, open_timeout=1.0) as server:
        script.url = f"ws://127.0.0.1:{server.socket.getsockname()[1]}"
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield script
        finally:
            deadline = time.monotonic() + 5.0
            server.shutdown()
            thread.join(max(deadline - time.monotonic(), 0.0))
