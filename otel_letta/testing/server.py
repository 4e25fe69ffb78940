"""A Letta server in memory, to test an application that reports to a Letta agent. Not for production.

`InMemoryLetta` listens on 127.0.0.1 and answers over real HTTP, so the application under test runs unchanged, with
its own HTTP client, threads and time-outs. The agents' LLM is simulated: each turn answers ``ack 1``, ``ack 2``, …

    from otel_letta.testing import InMemoryLetta

    def test_the_agent_learns_that_the_import_is_done(monkeypatch):
        with InMemoryLetta(password="secret") as letta:
            agent = letta.create_agent("assistant")
            monkeypatch.setenv("LETTA_BASE_URL", letta.base_url)
            monkeypatch.setenv("LETTA_PASSWORD", "secret")
            monkeypatch.setenv("LETTA_AGENT_ID", agent)

            my_app.run_import()

            letta.wait_for_messages(agent, 1)
            assert letta.reports(agent)[-1]["status"] == "completed"
            assert letta.turns == 1  # what it would have cost: one LLM turn

What the agent answers, and what goes wrong:

    letta.answer_next("Use the second ledger.", calls=[("send_mail", {"to": "ops"})])
    letta.fail_next(503, headers={"Retry-After": "1"})       # the next request
    letta.drop_next(after_processing=True, path="/messages")  # the message lands, its answer does not
    letta.refuse(lambda content: "poison" in content)        # 400 for such messages, always
    letta.model_failure("429")                               # the server's LLM fails until recover()
    with letta.hold():                                       # turns that start now wait until the block ends
        ...
    letta.stop_listening(); ...; letta.resume_listening()    # connection refused in between, nothing forgotten

The behaviour follows Letta 0.16.8 as we measured it on a running server (PostgreSQL, no Redis, one worker), its
traps included: two messages sent to one agent at once both answer 200 and one of them is missing from the agent's
next prompt; a client that gives up does not stop its turn; a step that failed leaves nothing behind; block limits are
not enforced. It has the routes that otel_letta uses. What is not simulated: Redis, /messages/async, archival memory,
tools, the 409 of two clients that write one block at the same moment (script that with
``fail_next(409, path="/blocks/")``).

Nothing that a client sends is printed or logged.
"""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, get_args

from otel_letta.testing.api import Api
from otel_letta.testing.bodies import DROP, Answer
from otel_letta.testing.faults import Fault, Faults, Hold, ModelFailure, scripted_answer
from otel_letta.testing.http import HOST, Listener
from otel_letta.testing.reports import reports_in
from otel_letta.testing.script import Calls, Script, Scripted
from otel_letta.testing.world import UUID4, Agent, Context, ReceivedMessage, Request, World


class InMemoryLetta:
    """A Letta server on 127.0.0.1 for tests: see the module's docstring for how to use it.

    Every method may be called from any thread. The server listens inside its ``with`` block, or from `start` to
    `close`; what it knows outlives both, and stays readable after `close`.

    Args:
        password: what clients must send as ``Authorization: Bearer <password>``. None: none is asked for.
        port: 0 takes a free one. The port stays the same when the server stops listening and resumes.
        turn_seconds: how long each LLM turn takes.
        run_delay: seconds from when a turn reads the context until others can see that it runs.
    """

    _api_type = Api

    def __init__(
        self, password: str | None = None, *, port: int = 0, turn_seconds: float = 0.0, run_delay: float = 0.0
    ) -> None:
        self._world = World(password, turn_seconds, run_delay)
        self._faults = Faults()
        self._script = Script()
        self._listener = Listener(self._api_type(self._world, self._faults, self._script), port)
        self._lifecycle = threading.Lock()

    # lifecycle

    def __enter__(self) -> InMemoryLetta:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Listen. Does nothing when it does already; OSError when the port is taken."""
        with self._lifecycle:
            if self._listener.listening:
                return
            with self._world.changed:
                self._world.closed = False
            self._listener.start()

    def close(self) -> None:
        """Stop listening, cut every connection, abandon turns that are still running. May be called twice."""
        with self._lifecycle:
            with self._world.changed:
                self._world.closed = True
                self._world.changed.notify_all()
            self._listener.close()

    def stop_listening(self) -> None:
        """Refuse connections and cut the open ones, as if the network went away.

        The server itself goes on: a turn in progress ends and is stored, only its client gets no answer.
        """
        with self._lifecycle:
            self._listener.stop()

    def resume_listening(self) -> None:
        """Accept connections again, on the same port and with everything that was known."""
        self.start()

    # settings

    @property
    def base_url(self) -> str:
        """``http://127.0.0.1:PORT``, without a trailing slash; RuntimeError before the first `start`."""
        if not self._listener.port:
            raise RuntimeError("InMemoryLetta has no address yet: use it as a context manager, or call start()")
        return f"http://{HOST}:{self._listener.port}"

    @property
    def password(self) -> str | None:
        """What clients must send; set it to let a test rotate the password."""
        with self._world.changed:
            return self._world.password

    @password.setter
    def password(self, password: str | None) -> None:
        with self._world.changed:
            self._world.password = password

    @property
    def turn_seconds(self) -> float:
        """Seconds that each LLM turn takes; a turn in progress keeps the value it started to wait with."""
        with self._world.changed:
            return self._world.turn_seconds

    @turn_seconds.setter
    def turn_seconds(self, seconds: float) -> None:
        with self._world.changed:
            self._world.turn_seconds = seconds

    def create_agent(self, name: str = "agent", *, agent_id: str | None = None) -> str:
        """Create an agent with an empty memory. Returns its id, ``agent-<uuid4>``, which may be chosen."""
        if agent_id is not None and not re.fullmatch(f"agent-{UUID4}", agent_id):
            raise ValueError(f"not an id that Letta gives to agents (agent-<uuid4>): {agent_id!r}")
        with self._world.changed:
            if agent_id in self._world.agents:
                raise ValueError(f"agent {agent_id!r} exists already")
            return self._world.new_agent(name, agent_id).id

    def create_conversation(self, agent_id: str, summary: str | None = None) -> str:
        """Create a conversation with the agent. Returns its id, ``conv-<uuid4>``."""
        with self._world.changed:
            return self._world.new_conversation(self._world.known_agent(agent_id), summary).id

    def compact(self, agent_id: str, conversation_id: str | None = None, *, in_next_turn: bool = False) -> None:
        """Let a summary take the place of everything in the context, now or at the end of the next turn."""
        with self._world.changed:
            agent = self._world.known_agent(agent_id)
            context = self._context(agent, conversation_id)
            if in_next_turn:
                context.compacts = True
            else:
                context.compact(agent)

    def reset(self, agent_id: str, conversation_id: str | None = None) -> None:
        """Empty the context but for the system prompt. The history keeps all messages."""
        with self._world.changed:
            context = self._context(self._world.known_agent(agent_id), conversation_id)
            context.messages = context.messages[:1]

    def _context(self, agent: Agent, conversation_id: str | None) -> Context:
        if conversation_id is None:
            return agent.context
        conversation = self._world.conversations.get(conversation_id)
        if conversation is None or conversation.agent is not agent:
            raise LookupError(f"agent {agent.id!r} has no conversation {conversation_id!r}")
        return conversation.context

    # what agents answer

    def answer_next(
        self,
        text: str | None = None,
        *,
        calls: Calls = (),
        reasoning: str | None = None,
        agent_id: str | None = None,
        times: int | None = 1,
    ) -> None:
        """Let the next turns end with this answer instead of ``ack 1``. Several calls queue up.

        Args:
            text: of the assistant message; None: there is none.
            calls: tools that the agent calls before, each with its arguments. Nothing runs.
            reasoning: comes first.
            agent_id: whose turns; None: anybody's.
            times: how many turns, None for all.
        """
        if times is not None and times < 1:
            raise ValueError(f"times must be at least 1, or None for always, not {times}")
        with self._world.changed:
            self._script.answers.append(Scripted(text, tuple(calls), reasoning, agent_id, times))

    # what shall go wrong

    def fail_next(
        self,
        status: int,
        body: Any = None,
        *,
        headers: Mapping[str, str] | None = None,
        times: int | None = 1,
        method: str | None = None,
        path: str | None = None,
        after_processing: bool = False,
    ) -> None:
        """Answer the next requests with this status instead of serving them.

        Comes before the password check, as a proxy in front of the server would. Several calls queue up.

        Args:
            body: sent as JSON; str and bytes as they are; None for ``{"detail": "<the status in words>"}``.
            headers: sent too, ``{"Retry-After": "1"}`` for example; they may replace Content-Type.
            times: how many requests, None for all until `recover`.
            method: only requests with this method (upper case).
            path: only requests whose path, without the query, contains a match of this regular expression.
            after_processing: the request takes effect all the same, as behind a proxy that gave up waiting.
        """
        self._add_fault(scripted_answer(status, body, headers), times, method, path, after_processing)

    def drop_next(
        self,
        times: int | None = 1,
        after_processing: bool = False,
        path: str | None = None,
        *,
        method: str | None = None,
    ) -> None:
        """Close the connection of the next requests without an answer.

        With ``after_processing`` the request takes effect first: a message has then landed, and its client cannot
        know. The other arguments are those of `fail_next`.
        """
        self._add_fault(DROP, times, method, path, after_processing)

    def _add_fault(
        self, answer: Answer, times: int | None, method: str | None, path: str | None, after_processing: bool = False
    ) -> None:
        if times is not None and times < 1:
            raise ValueError(f"times must be at least 1, or None for always, not {times}")
        fault = Fault(answer, times, method, re.compile(path) if path is not None else None, after_processing)
        with self._world.changed:
            self._faults.scripted.append(fault)

    @contextlib.contextmanager
    def hold(self, agent_id: str | None = None, *, turns: int | None = None) -> Iterator[Callable[[], None]]:
        """Let turns wait inside the ``with`` block, those of one agent or of all; `HOLD_LIMIT` seconds at most.

        Args:
            agent_id: whose turns; None: everybody's.
            turns: how many, the next that begin; None: all.

        Yields a function that releases them earlier. A held turn has begun: it is an active run, it has taken its
        snapshot of the context, and it counts in `turns` and `prompts`.
        """
        token = object()

        def release() -> None:
            with self._world.changed:
                self._faults.holds.pop(token, None)
                self._world.changed.notify_all()

        with self._world.changed:
            self._faults.holds[token] = Hold(agent_id, turns)
        try:
            yield release
        finally:
            release()

    def refuse(self, predicate: Callable[[str], bool], status: int = 400, body: Any = None) -> None:
        """Refuse, until `recover`, every request with a message whose content the predicate accepts.

        The whole request is refused, before any LLM turn, so the good messages in it do not land either. The
        predicate runs while the server stands still: it must return at once. ``body`` as in `fail_next`; None
        is what Letta answers to content that it cannot use.
        """
        if body is None:
            body = {"detail": "Message content is empty or invalid"}
        with self._world.changed:
            self._faults.refusals.append((predicate, scripted_answer(status, body, None)))

    def model_failure(self, kind: ModelFailure = "500", times: int | None = None) -> None:
        """Let the server's LLM fail in the next ``times`` turns, or in all of them until `recover`.

        The turn counts, since its LLM calls cost money, but leaves no message in the history.
        """
        if kind not in get_args(ModelFailure):
            raise ValueError(f"unknown failure {kind!r}, expected one of {get_args(ModelFailure)}")
        if times is not None and times < 1:
            raise ValueError(f"times must be at least 1, or None for always, not {times}")
        with self._world.changed:
            self._faults.model, self._faults.model_left = kind, times

    def recover(self) -> None:
        """Forget all scripted failures, drops, refusals and model failures. Held turns stay held."""
        with self._world.changed:
            self._faults.clear()

    # what happened

    @property
    def requests(self) -> list[Request]:
        """All requests so far, in the order of their arrival."""
        with self._world.changed:
            return list(self._world.requests)

    @property
    def turns(self) -> int:
        """LLM turns that began, over all agents: what would have cost money."""
        with self._world.changed:
            return self._world.turns

    def in_flight(self, agent_id: str) -> int:
        """Count the turns of the agent that are being computed now, its conversations' included."""
        with self._world.changed:
            return self._world.known_agent(agent_id).in_flight

    def in_flight_max(self, agent_id: str) -> int:
        """Count the most turns that the agent ever had in flight at once, its conversations' included."""
        with self._world.changed:
            return self._world.known_agent(agent_id).in_flight_max

    def messages(self, agent_id: str) -> list[ReceivedMessage]:
        """Return what clients sent and the server stored, in the order of storing, conversations included.

        The agent's replies are not among them. A message here may be missing from the `context`.
        """
        with self._world.changed:
            return [
                ReceivedMessage(message.role, message.text, message.otid, message.conversation_id)
                for message in self._world.known_agent(agent_id).history
                if message.received
            ]

    def context(self, agent_id: str, conversation_id: str | None = None) -> list[str]:
        """Return what the agent's next prompt would hold before new messages: one text a message, oldest first.

        The first is the system prompt, with the memory blocks in it; replies (``ack 1``) are included.
        """
        with self._world.changed:
            agent = self._world.known_agent(agent_id)
            return agent.prompt(self._context(agent, conversation_id).messages)

    def prompts(self, agent_id: str) -> list[list[str]]:
        """Return what each turn of the agent was shown, in the order in which turns began, shaped like `context`."""
        with self._world.changed:
            return [list(prompt) for prompt in self._world.known_agent(agent_id).prompts]

    def board(self, agent_id: str, label: str = "task_progress") -> str | None:
        """Return the value of the agent's memory block with this label, None when it has no such block."""
        with self._world.changed:
            block = self._world.known_agent(agent_id).block(label)
            return block.value if block is not None else None

    def reports(self, agent_id: str) -> list[dict[str, Any]]:
        """Return the progress reports in the agent's stored messages, in order.

        Each is the attributes of one ``<task-progress>`` element by their names (all texts), plus ``"content"``
        and ``"result"`` (None when there is none), unescaped. Raises `xml.etree.ElementTree.ParseError` for an
        element that is not well-formed.
        """
        return reports_in(message.content for message in self.messages(agent_id) if message.role == "user")

    def wait_for(self, predicate: Callable[[], bool], timeout: float = 30.0) -> bool:
        """Wait until the predicate holds, for ``timeout`` seconds at most; returns whether it does.

        It is asked again after each change on the server, so it should be about what the server knows. It runs
        while the server stands still: it must return at once.
        """
        with self._world.changed:
            return self._world.changed.wait_for(predicate, timeout)

    def wait_for_messages(self, agent_id: str, n: int, timeout: float = 30.0) -> list[ReceivedMessage]:
        """Wait until at least ``n`` messages are stored and return them all; TimeoutError after ``timeout`` seconds."""
        if not self.wait_for(lambda: len(self.messages(agent_id)) >= n, timeout):
            raise TimeoutError(f"{len(self.messages(agent_id))} of {n} messages arrived within {timeout:g} s")
        return self.messages(agent_id)
