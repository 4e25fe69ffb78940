"""The status of reporting in a program, for people and for other programs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from otel_letta.text import clean_line

if TYPE_CHECKING:
    from otel_letta.otel.component import Component

_CAP = 300


@dataclass(frozen=True, kw_only=True)
class Status:
    """The state of reporting at one moment. ``str()`` of it is for people, `to_dict` for programs."""

    active: bool = False
    """Tasks are reported: the settings are usable, and nobody has shut it down."""
    agent_id: str = ""
    base_url: str = ""
    delivery: str = ""
    """``auto``, ``messages`` or ``board``."""
    spans: int = 0
    """Ended spans that were examined for mistakes: the first 500 of them."""
    open_tasks: int = 0
    reports: int = 0
    """Reports that tasks made, whatever became of them."""
    messages: int = 0
    """Reports that the server took as messages."""
    turns: int = 0
    """Requests that cost the agent a turn of its LLM."""
    board: str | None = None
    """Label of the board, once it is there."""
    board_writes: int = 0
    waiting: int = 0
    """Reports that are not sent yet."""
    dropped: int = 0
    problems: tuple[str, ...] = ()
    """Everything that keeps reports from getting through now, one line each; empty when all is well."""

    @property
    def ok(self) -> bool:
        """True if tasks are reported, and nothing is known that keeps reports from getting through."""
        return self.active and not self.problems

    def to_dict(self) -> dict[str, Any]:
        """Return all fields and ``ok``, as plain values."""
        return {"ok": self.ok, **asdict(self), "problems": list(self.problems)}

    def __str__(self) -> str:
        if not self.agent_id:
            return "\n".join(["otel_letta reports nothing", *(f"  problem: {problem}" for problem in self.problems)])
        doing = "reports" if self.active else "was shut down; it reported"
        board = f", board {self.board}: {_counted(self.board_writes, 'write')}" if self.board else ""
        lines = [
            f"otel_letta {doing} to {self.agent_id} at {self.base_url} ({self.delivery})",
            f"  {_counted(self.open_tasks, 'open task')}, {_counted(self.reports, 'report')} made, "
            f"{self.waiting} waiting{f', {self.dropped} dropped' if self.dropped else ''}",
            f"  {_counted(self.messages, 'message')} sent ({_counted(self.turns, 'agent turn')}){board}",
        ]
        if self.active and not self.reports:
            lines.append(f"  no task yet, in {_counted(self.spans, 'ended span')}")
        return "\n".join([*lines, *(f"  problem: {problem}" for problem in self.problems)])

    def _repr_mimebundle_(self, **_: object) -> dict[str, str]:
        return {"text/plain": str(self)}


def status_of(component: Component) -> Status:
    """Return the status of one component, from what its pipeline knows now."""
    settings = component.settings
    if settings is None:
        return Status(problems=(component.problem,) if component.problem else ())
    component.catch_up()
    stats = component.stats()
    lanes, boards = stats["lanes"].values(), stats["boards"].values()
    troubles = [each.get("parked") or each.get("last_error") for each in (*lanes, *boards)]
    return Status(
        active=component.active,
        agent_id=clean_line(settings.agent_id, _CAP),
        base_url=settings.base_url,
        delivery=str(settings.delivery),
        spans=component.examined,
        open_tasks=stats["open_tasks"],
        reports=stats["reports"],
        messages=stats["sent"],
        turns=stats["requests"],
        board=next((board["label"] for board in boards if board.get("label")), None),
        board_writes=stats["board_writes"],
        waiting=sum(lane["waiting"] + lane["in_flight"] for lane in lanes),
        dropped=sum(stats["dropped"].values()),
        problems=tuple(dict.fromkeys(clean_line(str(trouble), _CAP) for trouble in troubles if trouble)),
    )


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what if number == 1 else f'{what}s'}"
