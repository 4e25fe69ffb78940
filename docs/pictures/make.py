"""Makes the pictures of the README and of the pages: `python docs/pictures/make.py [FOLDER]` (with the extra `cli`).

The demo runs as it is, against the stand-in for Letta; nothing in the pictures is drawn by hand. `demo-*.svg` is a
recording: rich renders the frames, and CSS shows one after another. `board-*.svg` is what the agent's memory block
holds in the middle of it. `asks-*.svg` is a task that asks its agent, and what comes back. `way-*.svg` is the way of a
span, narrow enough for a phone.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import re
import socket
import sys
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console, Group
from rich.panel import Panel
from rich.terminal_theme import DIMMED_MONOKAI, TerminalTheme
from rich.text import Text

import otel_letta
from otel_letta.cli.demo import show
from otel_letta.cli.demo.picture import LivePicture, Moment, Picture
from otel_letta.cli.demo.receivers import Receiver, StandIn
from otel_letta.testing import InMemoryLetta

HERE = Path(__file__).parent
WIDTH, HEIGHT = 112, 30
SECONDS = 6.0
FRAMES = 16
LAST_SHOWN = 5.0
"""Seconds that the last frame stays."""

LIGHT = TerminalTheme(
    (255, 255, 255),
    (36, 41, 47),
    [
        (36, 41, 47), (207, 34, 46), (17, 99, 41), (154, 103, 0),
        (9, 105, 218), (130, 80, 223), (27, 124, 131), (110, 119, 129),
    ],
)  # fmt: skip
THEMES = {"light": LIGHT, "dark": DIMMED_MONOKAI}

TEMPLATE = """\
<svg class="rich-terminal" viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg" role="img">
<title>{title}</title>
<style>
text {{ font: {size}px ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace }}
{styles}
</style>
<rect fill="{background}" stroke="#80808059" rx="8" x="1" y="1" width="{outer_width}" height="{outer_height}"/>
<g transform="translate(9, 41)">{body}</g>
<g transform="translate(26,22)"><circle cx="0" cy="0" r="7" fill="#ff5f57"/>
<circle cx="22" cy="0" r="7" fill="#febc2e"/><circle cx="44" cy="0" r="7" fill="#28c840"/></g>
</svg>
"""
PARTS = "\x1e".join(["{styles}", "{backgrounds}", "{matrix}", "{width}", "{height}"])


class Recorder(Picture):
    """Keeps every moment that differs from the one before."""

    def __init__(self, receiver: Receiver) -> None:
        super().__init__(receiver)
        self.moments: list[Moment] = []

    def frame(self, moment: Moment) -> None:
        self.moments.append(moment)

    def end(self, moment: Moment, *, delivered: bool, interrupted: bool) -> None:
        assert delivered, moment
        self.moments.append(moment)


def record() -> tuple[list[Moment], StandIn]:
    """Run the demo, and return what it showed."""
    socket.gethostname = lambda: "laptop"
    with InMemoryLetta(turn_seconds=0.3) as letta:
        receiver = StandIn(letta)
        recorder = Recorder(receiver)
        show.picture_for = lambda console, receiver: recorder  # type: ignore[assignment]
        with contextlib.redirect_stdout(io.StringIO()):
            assert show.Show(receiver, SECONDS, deque()).run() == 0
        return recorder.moments, receiver


def parts(console: Console, theme: TerminalTheme, name: str) -> list[str]:
    """Return the pieces of rich's SVG of what was printed."""
    svg = console.export_svg(title="", theme=theme, code_format=PARTS, unique_id=name, clear=True)
    # Each line's clip path would be half of the file, and textLength keeps text in its place as well.
    return re.sub(r' clip-path="[^"]*"', "", svg).split("\x1e")


def new_console(width: int) -> Console:
    return Console(
        record=True, width=width, file=io.StringIO(), force_terminal=True, color_system="truecolor", highlight=False
    )


def assembled(frames: list[list[str]], seconds: list[float], theme: TerminalTheme, title: str) -> str:
    """Put frames one behind the other, each shown for its time."""
    total, at, styles, body = sum(seconds), 0.0, [], []
    for number, (frame, lasts) in enumerate(zip(frames, seconds, strict=True)):
        frame_styles, backgrounds, matrix, *_ = frame
        styles.append(frame_styles)
        name = f"k{number}"
        start, end = 100 * at / total, 100 * (at + lasts) / total
        at += lasts
        if len(frames) > 1:
            # Where nothing moves (a printout, a reader that wants no motion) the last frame stands still.
            hidden = "visible" if number == len(frames) - 1 else "hidden"
            before = "0% { visibility: hidden } " if number else ""
            before += f"{start:.2f}% {{ visibility: visible }}"
            after = f"{end:.2f}%, 100% {{ visibility: hidden }}" if end < 99.99 else ""
            styles.append(
                f"#{name} {{ visibility: {hidden} }} @keyframes {name} {{ {before} {after} }} "
                "@media (prefers-reduced-motion: no-preference) { "
                f"#{name} {{ animation: {name} {total:.1f}s step-end infinite }} }}"
            )
        body.append(f'<g id="{name}">{backgrounds}{matrix}</g>')
    width, height = (float(text) for text in frames[0][3:5])
    red, green, blue = theme.background_color
    return TEMPLATE.format(
        width=width,
        height=height,
        outer_width=width - 2,
        outer_height=height - 2,
        size=20,
        title=title,
        styles="\n".join(styles),
        body="\n".join(body),
        background=f"#{red:02x}{green:02x}{blue:02x}",
    )


def chosen(moments: list[Moment]) -> Iterator[Moment]:
    """Choose frames at even times, and the last one."""
    last = moments[-1]
    step, due = last.seconds / FRAMES, 0.0
    for moment in moments[:-1]:
        if moment.seconds >= due:
            yield moment
            due = moment.seconds + step
    yield last


ANSWER = """\
The invoice counts where the work was done, so April.
<task-instruction task_id="invoices-7" action="continue">Book it in April.</task-instruction>"""


def conversation() -> list[tuple[str, str]]:
    """Run a task that asks its agent. Return what each side said, in order."""
    question = "Invoice 11 is of 31 March: the books of March, or of April?"
    with InMemoryLetta() as letta:
        agent = letta.create_agent()
        letta.answer_next(ANSWER)
        handle = otel_letta.configure(base_url=letta.base_url, agent_id=agent)
        with otel_letta.task("Book invoices", task_id="invoices-7", chat_id="chat-123") as t:
            instruction = otel_letta.wait_for_instruction(t, 60, question=question)
            assert instruction is not None, letta.reports(agent)
            t.result("32 invoices booked")
        handle.shutdown()
        asked, end = (each for each in letta.reports(agent) if each.get("waiting") or each["status"] == "completed")
    return [
        ("your program", f'wait_for_instruction(t, 60, question="{question}")'),
        ("your Letta agent gets", f"{asked['task']} ({asked['chat_id']}): {asked['content']}"),
        ("your Letta agent answers", ANSWER),
        ("your program goes on", repr(instruction)),
        ("your Letta agent gets", f"{end['task']} {end['status']}: {end['result']}"),
    ]


BOXES = [
    (110, 8, 200, "Your program", "spans, with or without letta.*", ""),
    (110, 92, 200, "TracerProvider", "", ""),
    (6, 176, 190, "BatchSpanProcessor", "", ""),
    (224, 176, 190, "LettaSpanProcessor", "tasks, progress, verdicts", "ours"),
    (6, 290, 120, "Your backend", "as before", ""),
    (152, 290, 124, "Board", "no LLM call", "ours"),
    (292, 290, 122, "Messages", "one turn each", "ours"),
    (152, 390, 262, "Your Letta agent", "", ""),
]
"""Left, top and width, title, words below it."""
ARROWS = [
    ((210, 56), (210, 92)),
    ((160, 126), (101, 176)),
    ((260, 126), (319, 176)),
    ((66, 210), (66, 290)),
    ((270, 224), (214, 290)),
    ((353, 224), (353, 290)),
    ((214, 338), (214, 390)),
    ((353, 338), (353, 390)),
]


def way(theme: str) -> str:
    """Draw the way of a span."""
    ink, line, ours = ("#24292f", "#8c959f", "#ddf4ff") if theme == "light" else ("#e6edf3", "#8b949e", "#12375b")
    parts = [
        '<svg viewBox="0 0 420 434" xmlns="http://www.w3.org/2000/svg" role="img" width="420">',
        "<title>The way of a span: to your backend as before, and to the agent as board and messages</title>",
        f"<style>text {{ font: 14px system-ui, sans-serif; fill: {ink}; text-anchor: middle }} "
        ".small { font-size: 12px; opacity: 0.8 } .title { font-weight: 600 }</style>",
        f'<marker id="a" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
        f'<path d="M0 0 8 4 0 8z" fill="{line}"/></marker>',
    ]
    for (x1, y1), (x2, y2) in ARROWS:
        parts.append(f'<path d="M{x1} {y1} {x2} {y2}" stroke="{line}" stroke-width="1.5" marker-end="url(#a)"/>')
    for left, top, width, title, words, kind in BOXES:
        height = 48 if words else 34
        fill = ours if kind else "none"
        parts.append(
            f'<rect x="{left}" y="{top}" width="{width}" height="{height}" rx="6" fill="{fill}" stroke="{line}"/>'
            f'<text class="title" x="{left + width / 2}" y="{top + 22}">{title}</text>'
        )
        if words:
            parts.append(f'<text class="small" x="{left + width / 2}" y="{top + 39}">{words}</text>')
    return "\n".join([*parts, "</svg>"])


def main(folder: Path = HERE) -> None:
    moments, receiver = record()
    picked = list(chosen(moments))
    times = [after.seconds - moment.seconds for moment, after in itertools.pairwise(picked)] + [LAST_SHOWN]
    said = conversation()
    middle = next(moment for moment in moments if moment.seconds > SECONDS * 0.8)
    for name, theme in THEMES.items():
        (folder / f"way-{name}.svg").write_text(way(name) + "\n", encoding="utf-8")
        frames = []
        for number, moment in enumerate(picked):
            console = new_console(WIDTH)
            console.print(LivePicture(console, receiver)._whole(moment))
            frames.append(parts(console, theme, f"f{number}"))
        svg = assembled(
            frames, times, theme, "otel-letta demo: three traced tasks, and what a Letta agent gets to know"
        )
        (folder / f"demo-{name}.svg").write_text(tidied(svg), encoding="utf-8")
        console = new_console(96)
        console.print(Panel(Text(middle.received.board or ""), title="memory block task_progress", title_align="left"))
        svg = assembled([parts(console, theme, "b")], [1.0], theme, "The board, as it stands in the agent's memory")
        (folder / f"board-{name}.svg").write_text(tidied(svg), encoding="utf-8")
        console = new_console(96)
        console.print(Group(*(Panel(Text(text), title=who, title_align="left") for who, text in said)))
        svg = assembled([parts(console, theme, "a")], [1.0], theme, "A task asks its agent, and goes on as it answers")
        (folder / f"asks-{name}.svg").write_text(tidied(svg), encoding="utf-8")
    print(*(f"{path.name}: {path.stat().st_size:,} bytes" for path in sorted(folder.glob("*.svg"))), sep="\n")


def tidied(svg: str) -> str:
    return "\n".join(line.rstrip() for line in svg.splitlines() if line.strip()) + "\n"


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:2]))
