"""Rules that turn the events of OpenHands' conversations into reports: one task a run."""

from __future__ import annotations

from collections.abc import Callable

from otel_letta.integrations.openhands.claims import plain_id
from otel_letta.integrations.openhands.conversations import Conversation, Run, Wait
from otel_letta.integrations.openhands.events import FINISH, PLAN, Event, EventKind, Origin
from otel_letta.integrations.openhands.lives import Lives
from otel_letta.report import ProgressReport
from otel_letta.text import clean_error, clean_line
from otel_letta.tracking import wording

_SUMMARY_CAP = 120
_ERROR_CAP = 200
_SAME_FAILURE = 5 * 10**9
"""Nanoseconds in which another error of a run that has failed is taken for the same one, said twice."""
_STATUS_AFTER = 10**9
"""Nanoseconds after a tool's start until the execution status is read: a confirmation is asked for in the same step."""


class Runs(Lives):
    """The runs of all conversations of a pipeline, judged by events: its `Source` of OpenHands' reports. The arguments
    are those of `Lives`."""

    # -- as a source of the pipeline -----------------------------------------------------------------------------------

    def start(self, emit: Callable[[ProgressReport], None]) -> None:
        """Begin with nothing open. Claims stay: a forked child goes on with its parent's callbacks."""
        self._begin(emit)

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

    def run_of(self, conversation_id: str) -> Run | None:
        """Return the run that is under way in a conversation."""
        conversation = self._conversations.get(plain_id(conversation_id))
        return None if conversation is None else conversation.run

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
            self._to_check[plain_id(conversation.id)] = None
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
            run.reach(min(event.done / event.total, wording.ALMOST_DONE))
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
        self._running(conversation, resumes=not event.text)
        if event.text:
            self._progress(conversation, event.text)

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
