"""The lives of OpenHands' runs: how each begins, halts, goes on and ends, and what is due at some time."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from datetime import datetime

from otel_letta.integrations.openhands.claims import Claims, plain_id
from otel_letta.integrations.openhands.conversations import SERVICE, Conversation, Run, Wait
from otel_letta.integrations.openhands.events import ID_CAP, Origin
from otel_letta.recent import Recent
from otel_letta.report import ProgressReport, TaskStatus
from otel_letta.text import clean_line
from otel_letta.tracking import wording
from otel_letta.tracking.ledger import Ledger, seconds_between

_MOST_CONVERSATIONS = 1_000
_REMEMBERED_EVENTS = 20_000
"""Ids of known events: webhooks deliver a batch again when its answer got lost."""
_PATIENCE = 40 * 10**9
"""Nanoseconds that a run that seems to have failed waits for the event with the reason, or for its late finish:
OpenHands sends it at once, but an agent-server may keep it back for 30 s, the default of its webhooks."""
_ANSWER = "answer its question"


class Lives:
    """What `Runs` does to runs once it knows what an event means.

    Args:
        now: the wall clock, Unix nanoseconds.
        host: this machine's name.
        content_cap: most characters of a result.
        most: conversations that are followed at once. Of more, the one without events for the longest is given up.
        wake_on_wait: a run that waits for a person is worth waking an agent.
        wait_timeout: seconds after which one that waits is lost.
    """

    def __init__(
        self,
        *,
        now: Callable[[], int] = time.time_ns,
        host: str | None = None,
        content_cap: int = 2_000,
        most: int = _MOST_CONVERSATIONS,
        wake_on_wait: bool = True,
        wait_timeout: float = 86_400.0,
    ) -> None:
        self._now = now
        self._host = host
        self._content_cap = content_cap
        self._most = most
        self._wake_on_wait = wake_on_wait
        self._wait_timeout = wait_timeout
        self._claims = Claims()
        self._begin(lambda report: None)

    def _begin(self, emit: Callable[[ProgressReport], None]) -> None:
        self._ledger = Ledger(
            emit=emit,
            now=self._now,
            host=self._host,
            content_cap=self._content_cap,
            wake_on_wait=self._wake_on_wait,
        )
        self._conversations: OrderedDict[str, Conversation] = OrderedDict()
        self._known_events: Recent[tuple[str, str], None] = Recent(_REMEMBERED_EVENTS)
        self._to_check: dict[str, None] = {}
        """Conversations for which something is due at some time."""
        self._at = 0
        """Time of the event that is judged, Unix nanoseconds."""
        self.open_tasks = 0

    def restore(self, report: ProgressReport) -> None:
        """Let a run wait on that waited in a process which is gone; ``report`` is its last one."""
        conversation_id, _, number = report.task_id.rpartition("/")
        is_ours = report.service == SERVICE and report.waiting and report.agent_id is None
        if not is_ours or not conversation_id or plain_id(conversation_id) in self._conversations:
            return
        conversation = self._find(conversation_id)
        conversation.runs = int(number) if number.isdecimal() else None
        conversation.origin = Origin(report.chat_id, report.message_id, report.name)
        conversation.run = run = Run(report.task_id, _nanoseconds(report.started))
        run.progress, run.content = report.progress or None, report.content
        run.sequence, run.run = report.sequence, report.run
        run.reported_at = run.waits_since = _nanoseconds(report.timestamp)
        run.halted, run.waits_for = True, Wait.ANSWER if report.content.endswith(_ANSWER) else Wait.CONFIRMATION
        self._to_check[plain_id(conversation.id)] = None
        self.open_tasks += 1

    # -- what is due ---------------------------------------------------------------------------------------------------

    def tick(self, now_ns: int) -> int | None:
        """End runs that looked failed for long enough. Returns when to come again (Unix ns), None for never."""
        self._at = now_ns
        checks = (self._check_suspect, self._check_status, self._check_wait)
        dues = []
        for key in list(self._to_check):
            conversation = self._conversations.get(key)
            for check in checks:
                run = conversation.run if conversation is not None else None
                if (
                    conversation is not None
                    and run is not None
                    and (due := check(conversation, run, now_ns)) is not None
                ):
                    dues.append(due)
                    break
            else:
                del self._to_check[key]
        return min(dues, default=None)

    def _check_suspect(self, conversation: Conversation, run: Run, now_ns: int) -> int | None:
        if run.suspicion is None:
            return None
        since, reason = run.suspicion
        if since + _PATIENCE > now_ns:
            return since + _PATIENCE
        conversation.explained = False
        self._fail(conversation, reason)
        return None

    def _check_status(self, conversation: Conversation, run: Run, now_ns: int) -> int | None:
        """Find out whether a tool does not run, but waits for a confirmation."""
        if run.to_read is None or run.halted:
            return None
        due, read = run.to_read
        if due > now_ns:
            return due
        run.to_read = None
        if read() == "waiting_for_confirmation":
            self._wait(conversation, Wait.CONFIRMATION)
        return None

    def _check_wait(self, conversation: Conversation, run: Run, now_ns: int) -> int | None:
        if run.waits_for is Wait.NOTHING:
            return None
        due = run.waits_since + int(self._wait_timeout * 1e9)
        if due > now_ns:
            return due
        self._fail(conversation, wording.nobody_came(self._wait_timeout))
        return None

    def _find(self, conversation_id: str) -> Conversation:
        key = plain_id(conversation_id)
        conversation = self._conversations.get(key)
        if conversation is None:
            if len(self._conversations) >= self._most:
                idle = next((c for c in self._conversations.values() if c.run is None), None)
                oldest = idle or next(iter(self._conversations.values()))
                self._fail(oldest, "too many conversations at once: this one is not followed any more")
                del self._conversations[plain_id(oldest.id)]
            conversation = self._conversations[key] = Conversation(clean_line(conversation_id, ID_CAP))
        self._conversations.move_to_end(key)
        return conversation

    # -- a run's life --------------------------------------------------------------------------------------------------

    def _running(self, conversation: Conversation, *, resumes: bool = True) -> Run:
        """Return the run that is under way, begun if there is none.

        ``resumes``: report that a halted run goes on; not where another report follows at once.
        """
        run = conversation.run
        if run is not None:
            run.suspicion = None
            if run.halted:
                run.halted, run.waits_for = False, Wait.NOTHING
                if resumes:
                    self._progress(conversation, "Resumed")
            return run
        run = conversation.run = Run(conversation.next_id(self._at), self._at)
        conversation.explained, conversation.failed_at = True, None
        self.open_tasks += 1
        self._progress(conversation, None)
        return run

    def _halt(self, conversation: Conversation, content: str, *, waiting: bool = False) -> None:
        if conversation.run is not None:
            conversation.run.halted = True
            self._progress(conversation, content, waiting=waiting)

    def _wait(self, conversation: Conversation, wait: Wait) -> None:
        run = conversation.run
        if run is None or run.waits_for is wait:
            return
        run.waits_for, run.waits_since = wait, self._at
        self._to_check[plain_id(conversation.id)] = None
        what = _ANSWER if wait is Wait.ANSWER else f"confirm '{run.pending()}'"
        self._halt(conversation, wording.waits_for(f"{wording.A_PERSON}: {what}"), waiting=True)

    def _suspect(self, conversation: Conversation, reason: str) -> None:
        run = conversation.run
        if run is not None and run.suspicion is None:
            run.suspicion = self._at, reason
            self._to_check[plain_id(conversation.id)] = None

    def _progress(self, conversation: Conversation, content: str | None, *, waiting: bool = False) -> None:
        run = conversation.run
        assert run is not None
        if content is not None and content == run.content:
            return
        run.content = content
        self._report(conversation, run, TaskStatus.IN_PROGRESS, content or wording.started(), waiting=waiting)

    def _complete(self, conversation: Conversation) -> None:
        run, conversation.run = conversation.run, None
        if run is None:
            return
        run.progress = 1.0
        content = wording.completed(seconds_between(run.started, self._at), run.failed_steps)
        if run.answer_is_message:
            content = "Ended with a message: it may be a question"
        self._report(conversation, run, TaskStatus.COMPLETED, content)

    def _fail(self, conversation: Conversation, reason: str) -> None:
        run, conversation.run = conversation.run, None
        if run is not None:
            conversation.failed_at = self._at
            self._report(conversation, run, TaskStatus.FAILED, wording.failed(reason, run.content), error=reason)

    def _report(
        self,
        conversation: Conversation,
        run: Run,
        status: TaskStatus,
        content: str,
        *,
        error: str | None = None,
        waiting: bool = False,
    ) -> None:
        origin = conversation.origin
        run.chat_id, run.message_id, run.name = origin.chat_id, origin.message_id, origin.name or "OpenHands"
        if status.is_terminal:
            self.open_tasks -= 1
            run.result = run.answer or None
        line = clean_line(content, self._content_cap)
        self._ledger.report(run, status, line, self._at, error=error, waiting=waiting)


def _nanoseconds(of: datetime | None) -> int:
    return 0 if of is None else int(of.timestamp() * 1e9)
