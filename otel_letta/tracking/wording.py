"""The sentences that are said where a task's author left none. Names, numbers and error types only."""

from __future__ import annotations

import functools

from otel_letta.text import duration, percent

NEVER_ENDED = "its span was never ended (lost)"
SHUT_DOWN = "the program shut down while the task was still open"
TOO_MANY_WAIT = "nobody came for it, and too many others wait"
NO_ANSWER = "it ended without an answer"
A_PERSON = "a person"
DENIED = "denied"
STOPPED_MIDWAY = "stopped before it ended"
ALMOST_DONE = 0.99
"""The share that a plan can reach before the task has ended: its last point may be followed by a new plan."""


def started() -> str:
    return "Task started"


def in_progress(progress: float | None) -> str:
    return "Task in progress" if progress is None else f"{percent(progress)} complete"


def completed(seconds: float, failed_steps: int) -> str:
    text = f"Task completed in {duration(seconds)}"
    if failed_steps:
        text += f", {failed_steps} failed {'step' if failed_steps == 1 else 'steps'}"
    return text


@functools.lru_cache(maxsize=16)  # the open tasks that a shutdown fails share one text
def failed(reason: str, last_word: str | None = None) -> str:
    text = f"Task failed: {reason}" if reason else "Task failed"
    return f"{text} (last: {last_word})" if last_word else text


# -- an agent's task ---------------------------------------------------------------------------------------------------


def agent_started(name: str) -> str:
    return f"Started '{name}'"


def using_tool(name: str) -> str:
    return f"Using tool {name}"


def tool_used(name: str, seconds: float, reason: str | None = None) -> str:
    """``reason``: why it failed; None if it did not."""
    if reason is None:
        return f"Used tool {name} ({duration(seconds)})"
    return f"Tool {name} failed: {reason}" if reason else f"Tool {name} failed"


def model_trouble(reason: str) -> str:
    return f"Trouble with the model: {reason}" if reason else "Trouble with the model"


def tool_denied(name: str) -> str:
    return f"Tool {name} was denied"


def sub_agent(name: str, reason: str | None = None) -> str:
    if reason is None:
        return f"Sub-agent {name} finished"
    return f"Sub-agent {name} failed: {reason}" if reason else f"Sub-agent {name} failed"


def tools_used(number: int) -> str:
    return f"{number} {'tool' if number == 1 else 'tools'} used"


def agent_finished(name: str, seconds: float, tools: int, problems: int) -> str:
    text = f"Finished '{name}' in {duration(seconds)}"
    if tools:
        text += f", {tools} {'tool' if tools == 1 else 'tools'}"
    if problems:
        text += f", {problems} {'problem' if problems == 1 else 'problems'}"
    return text


def agent_failed(name: str, reason: str) -> str:
    return f"'{name}' failed: {reason}" if reason else f"'{name}' failed"


def agent_stopped(name: str, why: str) -> str:
    return f"'{name}' stopped: {why}"


def agent_cancelled(name: str, reason: str) -> str:
    if "timed out" in reason:  # nobody can tell which
        return f"'{name}' was {reason}"
    return f"'{name}' was cancelled"


def agent_timed_out(name: str, reason: str) -> str:
    return f"'{name}' timed out: {reason}" if reason and "timed out" not in reason else f"'{name}' timed out"


def waits_for(what: str) -> str:
    return f"waits for {what}"


def background(name: str, work: str) -> str:
    what = f": {work}" if work else ""
    return f"'{name}' has answered, and work of it goes on in the background{what}"


def goes_on(name: str) -> str:
    return f"'{name}' goes on"


def nobody_came(seconds: float) -> str:
    return f"lost, it waited for {duration(seconds)} and nobody came"


def never_tried_again(seconds: float) -> str:
    return f"lost, it was to be tried again and was not for {duration(seconds)}"


def ended_with_message() -> str:
    return "it ended with a message, which may be a question"


def reported_elsewhere(name: str) -> str:
    return f"'{name}' ended; its callback tells how"


def lost(seconds: float) -> str:
    return f"lost, no news for {duration(seconds)}"


def silent(name: str, seconds: float) -> str:
    return f"No news from '{name}' for {duration(seconds)}"
