"""The sentences that are said where a task's author left none. Names, numbers and error types only."""

from __future__ import annotations

from otel_letta.text import percent

__all__ = ["completed", "duration", "failed", "in_progress", "started"]


def started() -> str:
    return "Task started"


def in_progress(progress: float | None) -> str:
    return "Task in progress" if progress is None else f"{percent(progress)} complete"


def completed(seconds: float, failed_steps: int) -> str:
    text = f"Task completed in {duration(seconds)}"
    if failed_steps:
        text += f", {failed_steps} failed {'step' if failed_steps == 1 else 'steps'}"
    return text


def failed(reason: str, last_word: str | None = None) -> str:
    text = f"Task failed: {reason}" if reason else "Task failed"
    return f"{text} (last: {last_word})" if last_word else text


def duration(seconds: float) -> str:
    """``0.4 s``, ``2 min 5 s``, ``3 h 20 min``."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds + 0.05), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"
