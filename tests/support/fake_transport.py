"""A Letta without a network, for tests of delivery: it stores, refuses, breaks and hangs as it is told."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from otel_letta.answer import Answer
from otel_letta.delivery.courier import Courier
from otel_letta.delivery.stats import Stats
from otel_letta.delivery.worker import Crew
from otel_letta.errors import LettaError
from otel_letta.ids import REST_CONVERSATION
from otel_letta.letta.replies import answer_of
from otel_letta.letta.transport import Block, Lane, Message, Posting, Run
from otel_letta.report import ProgressReport, TaskStatus
from otel_letta.runtime.deadline import Deadline
from otel_letta.settings import Settings

SERVER = "http://letta.test"
CONVERSATION = "conv-11111111-1111-4111-8111-111111111111"


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self, now: float = 1_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


class FakeTransport:
    """Implements `otel_letta.letta.transport.Transport`; every call is noted in ``calls``."""

    queues_messages = False

    def __init__(self, agent_id: str = "agent-1") -> None:
        self.agent_id = agent_id
        self.server = SERVER
        self.changed = threading.Condition()
        self.calls: list[str] = []
        self.requests: list[tuple[Lane, list[Message]]] = []
        """Every attempt to send, successful or not."""
        self.delivered: list[tuple[Lane, list[Message]]] = []
        self.stored: dict[str, str] = {}
        self.forgotten: set[str] = set()
        """otids that are stored, but not in the agent's context."""
        self.failures: list[LettaError] = []
        """What the next calls of `send` raise, one each."""
        self.always: LettaError | None = None
        self.refuses: Callable[[str], LettaError | None] = lambda content: None
        """Looks at each content of a request; an error refuses the whole request."""
        self.on_send: Callable[[Lane, Sequence[Message]], None] = lambda lane, messages: None
        """Runs inside `send`, on the sender's thread, without any lock."""
        self.answers: Callable[[Sequence[Message]], dict[str, Any]] = lambda messages: {"messages": []}
        """Makes what `send` returns."""
        self.kept: dict[str, dict[str, Any]] = {}
        """What `stored_answers` finds."""
        self.probe_error: LettaError | None = None
        self.runs: list[Run] = []
        self.on_reload: Callable[[], None] = lambda: None
        self.closed = 0
        self.ending = Deadline()

    # what a test looks at

    def texts(self) -> list[list[str]]:
        """The contents of each delivered request."""
        with self.changed:
            return [[message.content for message in messages] for _, messages in self.delivered]

    def wait_for(self, predicate: Callable[[], bool], timeout: float = 60.0) -> None:
        with self.changed:
            assert self.changed.wait_for(predicate, timeout), f"did not happen; calls: {self.calls}"

    def wait_for_requests(self, n: int) -> None:
        self.wait_for(lambda: len(self.requests) >= n)

    def wait_for_delivered(self, n: int) -> None:
        self.wait_for(lambda: sum(len(messages) for _, messages in self.delivered) >= n)

    def forget(self) -> None:
        """Forget what was delivered, for a test that delivers very much."""
        with self.changed:
            for each in (self.calls, self.requests, self.delivered, self.stored):
                each.clear()

    def _note(self, call: str) -> None:
        with self.changed:
            self.calls.append(call)
            self.changed.notify_all()

    # Transport

    def lane(self, agent_id: str | None, chat_id: str | None) -> Lane:
        conversation = chat_id if chat_id and REST_CONVERSATION.match(chat_id) else None
        return Lane(self.server, agent_id or self.agent_id, conversation)

    def send(
        self,
        lane: Lane,
        messages: Sequence[Message],
        *,
        until: Deadline | None = None,
        posting: Posting | None = None,
    ) -> dict[str, Any]:
        with self.changed:
            self.calls.append("send")
            self.requests.append((lane, list(messages)))
            failure = self.failures.pop(0) if self.failures else self.always
            self.changed.notify_all()
        posting = posting or Posting()
        posting.begin()
        posting.complete()
        self.on_send(lane, messages)
        if failure is not None:
            raise failure
        for message in messages:
            refusal = self.refuses(message.content)
            if refusal is not None:
                raise refusal
        with self.changed:
            self.delivered.append((lane, list(messages)))
            self.store(messages)
            self.changed.notify_all()
        return self.answers(messages)

    def store(self, messages: Sequence[Message]) -> None:
        """The server has these, whatever it answered."""
        for message in messages:
            self.stored[message.otid] = f"message-{len(self.stored)}"

    def active_runs(self, lane: Lane, *, lately: float | None = None, until: Deadline | None = None) -> list[Run]:
        self._note("active_runs")
        return list(self.runs)

    def landed(
        self, lane: Lane, otids: Sequence[str], *, age: float = 0.0, until: Deadline | None = None
    ) -> dict[str, str]:
        self._note("landed")
        return {otid: self.stored[otid] for otid in otids if otid in self.stored}

    def in_context(self, lane: Lane, message_ids: Sequence[str], *, until: Deadline | None = None) -> set[str]:
        self._note("in_context")
        hidden = {self.stored[otid] for otid in self.forgotten if otid in self.stored}
        return set(message_ids) - hidden

    def answer(self, lane: Lane, response: Mapping[str, Any]) -> Answer:
        return answer_of(lane.agent_id, response, reasoning=False)

    def stored_answers(
        self, lane: Lane, otids: Sequence[str], *, age: float = 0.0, until: Deadline | None = None
    ) -> dict[str, dict[str, Any]]:
        self._note("stored_answers")
        return {otid: self.kept[otid] for otid in otids if otid in self.kept}

    def probe(self, lane: Lane, *, until: Deadline | None = None) -> None:
        self._note("probe")
        if self.probe_error is not None:
            raise self.probe_error

    def reload(self) -> None:
        self._note("reload")
        self.on_reload()

    def blocks(self, agent_id: str, *, until: Deadline | None = None) -> list[Block]:
        raise AssertionError("the courier has no business with blocks")

    def create_block(
        self,
        agent_id: str,
        label: str,
        value: str,
        limit: int,
        description: str,
        metadata: dict[str, Any],
        *,
        until: Deadline | None = None,
    ) -> Block:
        raise AssertionError("the courier has no business with blocks")

    def write_block(self, block: Block, value: str, metadata: dict[str, Any], *, until: Deadline | None = None) -> None:
        raise AssertionError("the courier has no business with blocks")

    def close(self, *, until: Deadline | None = None) -> None:
        with self.changed:
            self.closed += 1
            self.changed.notify_all()


class WithBlocks(FakeTransport):
    """A server with memory blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.boards: dict[str, str] = {}
        """Agent → what its board shows."""
        self.board_error: LettaError | None = None

    def blocks(self, agent_id: str, *, until: Deadline | None = None) -> list[Block]:
        self._note("blocks")
        if self.board_error is not None:
            raise self.board_error
        return []

    def create_block(
        self,
        agent_id: str,
        label: str,
        value: str,
        limit: int,
        description: str,
        metadata: dict[str, Any],
        *,
        until: Deadline | None = None,
    ) -> Block:
        return Block(agent_id, label, value, limit, metadata)

    def write_block(self, block: Block, value: str, metadata: dict[str, Any], *, until: Deadline | None = None) -> None:
        with self.changed:
            self.boards[block.id] = value
            self.changed.notify_all()


def settings(**options: Any) -> Settings:
    """Settings from nothing but the arguments."""
    options = {"base_url": SERVER, "agent_id": "agent-1", "delivery": "messages", **options}
    return Settings.resolve(environ={}, **options)


def progress(task: str = "task", share: float = 0.0, content: str = "", **fields: Any) -> ProgressReport:
    return ProgressReport(task_id=task, name=task, progress=share, content=content or f"{task} {share}", **fields)


def end(task: str = "task", content: str = "", *, failed: bool = False, **fields: Any) -> ProgressReport:
    status = TaskStatus.FAILED if failed else TaskStatus.COMPLETED
    share = 0.5 if failed else 1.0
    return ProgressReport(
        task_id=task, name=task, progress=share, status=status, content=content or f"{task} over", **fields
    )


def make_courier(transport: Any, *, clock: Callable[[], float] = time.monotonic, **options: Any) -> Courier:
    return Courier(transport, settings(**options), Stats(), Crew(clock))


def flush(courier: Courier, seconds: float) -> bool:
    """Wait for the lanes, as the desk does."""
    return courier.crew.flush(courier.workers, Deadline.after(seconds))


def begin_closing(courier: Courier) -> None:
    courier.begin_closing(Deadline.after(5.0))


def finish(courier: Courier) -> None:
    courier.crew.dismiss()
    courier.finish()


def nudge(courier: Courier) -> None:
    """Let sleeping lanes look at the clock again: a test moved it."""
    with courier.lock:
        for worker in courier._lanes.values():
            worker.wake()
        courier.crew.settled.notify_all()
