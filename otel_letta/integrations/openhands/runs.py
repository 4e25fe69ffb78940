"""Rules that turn the events of OpenHands' conversations into reports: one task a run."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from datetime import datetime, timezone

from otel_letta.integrations.openhands.claims import Claims, plain_id
from otel_letta.integrations.openhands.conversations import Conversation, Run, Wait
from otel_letta.integrations.openhands.events import FINISH, ID_CAP, PLAN, Event, EventKind, Origin
from otel_letta.report import ProgressReport, TaskStatus
from otel_letta.text import clean_error, clean_line
from otel_letta.tracking import wording
from otel_letta.tracking.ledger import Ledger, seconds_between
from otel_letta.tracking.tree import Recent

_SUMMARY_CAP = 120
_ERROR_CAP = 200
_MOST_CONVERSATIONS = 1_000
_REMEMBERED_EVENTS = 20_000
"""Ids of known events: webhooks deliver a batch again when its answer got lost."""
_PATIENCE = 40 * 10**9
"""Nanoseconds that a run that seems to have failed waits for the event with the reason, or for its late finish:
OpenHands sends it at once, but an agent-server may keep it back for 30 s, the default of its webhooks."""
_SAME_FAILURE = 5 * 10**9
"""Nanoseconds in which another error of a run that has failed is taken for the same one, said twice."""
_STATUS_AFTER = 10**9
"""Nanoseconds after a tool's start until the execution status is read: a confirmation is asked for in the same step."""


class Runs:
    """The runs of all conversations of a pipeline: its `Source` of OpenHands' reports.

    Args:
        now: the wall clock, Unix nanoseconds.
        host: this machine's name.
        content_cap: most characters of a result.
        most: conversations that are followed at once. Of more, the one without events for the longest is given up.
    """

    def __init__(
        self,
        *,
        now: Callable[[], int] = time.time_ns,
        host: str | None = None,
        content_cap: int = 2_000,
        most: int = _MOST_CONVERSATIONS,
    ) -> None:
        self._now = now
        self._host = host
        self._content_cap = content_cap
        self._most = most
        self._claims = Claims()
        self._begin(lambda report: None)

    def _begin(self, emit: Callable[[ProgressReport], None]) -> None:
        self._ledger = Ledger(emit=emit, now=self._now, host=self._host, content_cap=self._content_cap)
        self._conversations: OrderedDict[str, Conversation] = OrderedDict()
        self._known_events: Recent[tuple[str, str], None] = Recent(_REMEMBERED_EVENTS)
        self._suspects: dict[str, Run] = {}
        self._to_read: dict[str, Conversation] = {}
        """Conversations whose execution status is to be read."""
        self._at = 0
        """Time of the event that is judged, Unix nanoseconds."""
        self.open_tasks = 0

    # -- as a source of the pipeline -----------------------------------------------------------------------------------

    def start(self, emit: Callable[[ProgressReport], None]) -> None:
        """Begin with nothing open. Claims stay: a forked child goes on with its parent's callbacks."""
        self._begin(emit)

    def tick(self, now_ns: int) -> int | None:
        """End runs that looked failed for long enough. Returns when to come again (Unix ns), None for never."""
        self._at = now_ns
        due = self._read_statuses(now_ns)
        for key, run in list(self._suspects.items()):
            conversation = self._conversations.get(key)
            if conversation is None or conversation.run is not run or run.suspicion is None:
                del self._suspects[key]
                continue
            since, reason = run.suspicion
            if since + _PATIENCE <= now_ns:
                conversation.explained = False
                self._fail(conversation, reason)
            else:
                due = since + _PATIENCE if due is None else min(due, since + _PATIENCE)
        return due

    def _read_statuses(self, now_ns: int) -> int | None:
        """Find out which tools do not run, but wait for a confirmation."""
        due = None
        for key, conversation in list(self._to_read.items()):
            run = conversation.run
            if run is None or run.to_read is None or run.halted:
                del self._to_read[key]
            elif run.to_read[0] <= now_ns:
                del self._to_read[key]
                if run.to_read[1]() == "waiting_for_confirmation":
                    self._wait(conversation, Wait.CONFIRMATION)
            else:
                due = run.to_read[0] if due is None else min(due, run.to_read[0])
        return due

    def shutdown(self) -> None:
        """Report what is open as failed: the program ends. What waits for a person still does."""
        self._at = self._now()
        for conversation in self._conversations.values():
            run = conversation.run
            if run is not None and run.waits_for is not Wait.NOTHING and run.suspicion is None:
                continue
            reason = run.suspicion[1] if run is not None and run.suspicion is not None else ""
            self._fail(conversation, reason or wording.SHUT_DOWN)

    def claim(self, conversation_id: str) -> None:
        """Report a conversation by its events alone from now on. Any thread may call this."""
        self._claims.add(conversation_id)

    def claims(self, conversation_id: str) -> bool:
        """Return whether a callback reports the conversation, so that its spans are not reported as well."""
        return conversation_id in self._claims

    # -- events --------------------------------------------------------------------------------------------------------

    def observe(self, conversation_id: str, origin: Origin, event: Event) -> None:
        """Judge an event, and report what follows from it."""
        self._at = event.at or self._now()
        conversation = self._find(conversation_id)
        if event.id and not self._is_new(conversation.id, event.id):
            return
        if origin is not conversation.last_origin:
            conversation.last_origin = origin
            before = conversation.origin
            conversation.origin = before.over(origin) if origin.is_default else origin.over(before)
        _RULES[event.kind](self, conversation, event)

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

    def _is_new(self, conversation_id: str, event_id: str) -> bool:
        key = (conversation_id, event_id)
        if key in self._known_events:
            return False
        self._known_events.put(key, None)
        return True

    # -- rules, one for each kind of event -----------------------------------------------------------------------------

    def _created(self, conversation: Conversation, event: Event) -> None:
        if conversation.runs is None and conversation.run is None:
            conversation.runs = 0

    def _user_message(self, conversation: Conversation, event: Event) -> None:
        self._running(conversation)

    def _tool_started(self, conversation: Conversation, event: Event) -> None:
        run = self._running(conversation, resumes=False)
        run.answer = None  # it goes on after what looked like its end
        line = clean_error(event.text, _SUMMARY_CAP) or clean_line(event.tool, _SUMMARY_CAP)
        run.began(event.call, line)
        if event.status is not None:
            run.to_read = self._at + _STATUS_AFTER, event.status
            self._to_read[plain_id(conversation.id)] = conversation
        if event.tool != PLAN or event.text:  # the items of the plan come right afterwards
            self._progress(conversation, line)

    def _tool_ended(self, conversation: Conversation, event: Event) -> None:
        run = conversation.run
        if run is None:
            return
        run.calls.pop(event.call, None)
        run.failed_steps += event.failed
        if run.waits_for is Wait.CONFIRMATION:
            self._running(conversation)  # it was confirmed, or it could not have run
        if event.tool == FINISH and run.answer is not None and not conversation.end_is_given:
            self._complete(conversation)
        elif event.done is not None:
            run.progress = max(run.progress, min(event.done / event.total, wording.ALMOST_DONE))
            self._progress(conversation, f"{event.done} of {event.total} steps of the plan done")

    def _denied(self, conversation: Conversation, event: Event) -> None:
        run = conversation.run
        if run is None:
            return
        line = run.calls.pop(event.call, "") or clean_line(event.tool, _SUMMARY_CAP)
        if run.waits_for is Wait.CONFIRMATION and not run.calls:
            run.waits_for = Wait.NOTHING  # nobody has to act any more, though it stands still until it is run again
        self._progress(conversation, f"Denied: {line}")

    def _acp_call(self, conversation: Conversation, event: Event) -> None:
        if conversation.run is None:
            return  # the rest of a turn that is over
        if self._is_new(conversation.id, f"call {event.call}"):
            self._tool_started(conversation, event)
        if event.code in ("completed", "failed") and self._is_new(conversation.id, f"end of call {event.call}"):
            self._tool_ended(conversation, event)

    def _question(self, conversation: Conversation, event: Event) -> None:
        self._running(conversation, resumes=False)
        self._wait(conversation, Wait.ANSWER)

    def _answer(self, conversation: Conversation, event: Event) -> None:
        if conversation.run is not None:
            self._running(conversation)

    def _finish(self, conversation: Conversation, event: Event) -> None:
        run = self._running(conversation, resumes=False)
        run.answer, run.answer_is_message = event.text, False

    def _agent_message(self, conversation: Conversation, event: Event) -> None:
        run = self._running(conversation, resumes=False)
        run.answer, run.answer_is_message = event.text, True
        if not conversation.end_is_given:
            self._complete(conversation)

    def _error(self, conversation: Conversation, event: Event) -> None:
        if conversation.run is None:
            failed_at = conversation.failed_at
            if not conversation.explained or (failed_at is not None and self._at - failed_at <= _SAME_FAILURE):
                conversation.explained = True  # its failure was reported already
                return
            self._running(conversation, resumes=False)
        parts = clean_error(event.code, 80), clean_error(event.text, _ERROR_CAP)
        self._fail(conversation, ": ".join(part for part in parts if part) or "OpenHands stopped with an error")

    def _paused(self, conversation: Conversation, event: Event) -> None:
        self._halt(conversation, "Paused")

    def _interrupted(self, conversation: Conversation, event: Event) -> None:
        self._fail(conversation, "interrupted")

    def _status(self, conversation: Conversation, event: Event) -> None:
        conversation.end_is_given = True
        if event.code == "running":
            self._running(conversation)
        elif event.code == "error":
            self._suspect(conversation, "OpenHands stopped with an error")
        elif event.code == "deleting":
            self._suspect(conversation, "the conversation was deleted before the task was finished")
        else:
            self._judge(conversation, event.code)

    def _run_entered(self, conversation: Conversation, event: Event) -> None:
        if event.code == "new":
            self._created(conversation, event)
        conversation.end_is_given = True
        self._running(conversation)

    def _run_returned(self, conversation: Conversation, event: Event) -> None:
        conversation.end_is_given = False
        run = conversation.run
        if not event.text:
            self._judge(conversation, event.code)
            if conversation.run is None or conversation.run.halted:
                return
            if event.code != "error" and conversation.run.answer is not None:
                self._complete(conversation)
                return
        # The event with a remote conversation's reason may come only after this one: it is no failure of its own.
        if run is not None:
            conversation.explained = False
        self._fail(conversation, clean_error(event.text, _ERROR_CAP) or "stopped before it was finished")

    def _stopped(self, conversation: Conversation, event: Event) -> None:
        self._complete(conversation)

    def _closed(self, conversation: Conversation, event: Event) -> None:
        self._fail(conversation, event.text)

    def _judge(self, conversation: Conversation, status: str) -> None:
        """End or halt the run as OpenHands' execution status has it."""
        if status == "finished":
            self._complete(conversation)
        elif status == "stuck":
            self._fail(conversation, "stuck: OpenHands saw it repeat itself")
        elif status == "paused":
            self._halt(conversation, "Paused")
        elif status == "waiting_for_confirmation":
            self._wait(conversation, Wait.CONFIRMATION)

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
        if conversation.runs is None:
            # Earlier runs may have been reported, by another process too: numbers from 1 on could be theirs.
            number = f"{_utc(self._at):%Y%m%dT%H%M%S.%f}"[:-3] + "Z"
        else:
            conversation.runs += 1
            number = str(conversation.runs)
        run = conversation.run = Run(f"{conversation.id}/{number}", self._at)
        conversation.explained, conversation.failed_at = True, None
        self.open_tasks += 1
        self._progress(conversation, None)
        return run

    def _halt(self, conversation: Conversation, content: str) -> None:
        if conversation.run is not None:
            conversation.run.halted = True
            self._progress(conversation, content)

    def _wait(self, conversation: Conversation, wait: Wait) -> None:
        run = conversation.run
        if run is None or run.waits_for is wait:
            return
        run.waits_for = wait
        what = "answer its question" if wait is Wait.ANSWER else f"confirm '{run.pending()}'"
        self._halt(conversation, f"waits for a person: {what}")

    def _suspect(self, conversation: Conversation, reason: str) -> None:
        run = conversation.run
        if run is not None and run.suspicion is None:
            run.suspicion = self._at, reason
            self._suspects[plain_id(conversation.id)] = run

    def _progress(self, conversation: Conversation, content: str | None) -> None:
        run = conversation.run
        assert run is not None
        if content is not None and content == run.content:
            return
        run.content = content
        self._report(conversation, run, TaskStatus.IN_PROGRESS, content or wording.started())

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
        self, conversation: Conversation, run: Run, status: TaskStatus, content: str, *, error: str | None = None
    ) -> None:
        origin = conversation.origin
        run.chat_id, run.message_id, run.name = origin.chat_id, origin.message_id, origin.name or "OpenHands"
        if status.is_terminal:
            self.open_tasks -= 1
            run.result = run.answer or None
        self._ledger.report(run, status, clean_line(content, self._content_cap), self._at, error=error)


_RULES: dict[EventKind, Callable[[Runs, Conversation, Event], None]] = {
    EventKind.CREATED: Runs._created,
    EventKind.USER_MESSAGE: Runs._user_message,
    EventKind.TOOL_STARTED: Runs._tool_started,
    EventKind.TOOL_ENDED: Runs._tool_ended,
    EventKind.DENIED: Runs._denied,
    EventKind.ACP_CALL: Runs._acp_call,
    EventKind.QUESTION: Runs._question,
    EventKind.ANSWER: Runs._answer,
    EventKind.FINISH: Runs._finish,
    EventKind.AGENT_MESSAGE: Runs._agent_message,
    EventKind.ERROR: Runs._error,
    EventKind.PAUSED: Runs._paused,
    EventKind.INTERRUPTED: Runs._interrupted,
    EventKind.STATUS: Runs._status,
    EventKind.RUN_ENTERED: Runs._run_entered,
    EventKind.RUN_RETURNED: Runs._run_returned,
    EventKind.STOPPED: Runs._stopped,
    EventKind.CLOSED: Runs._closed,
}


def _utc(nanoseconds: int) -> datetime:
    return datetime.fromtimestamp(nanoseconds / 1e9, timezone.utc)
