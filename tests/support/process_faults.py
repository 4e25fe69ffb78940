"""What happens to a process that reports, and what becomes of three ends: delivered, on its way, and waiting."""

from __future__ import annotations

import signal
from dataclasses import dataclass

__all__ = ["CASES", "Case", "table"]

_WAIT = "sys.stdin.readline()"
ALL = ("delivered", "on its way", "waiting")
SENT = ("delivered", "on its way")


@dataclass(frozen=True)
class Case:
    """A fault, and what it costs a program without an outbox."""

    fault: str
    code: str = _WAIT
    """What the program does once one end is delivered, one on its way and one waiting."""
    signals: tuple[int, ...] = ()
    """What it is sent then."""
    arrive: tuple[str, ...] = ALL
    before: str = ""
    """What it does at its beginning."""
    exit_code: int = 0
    says: str = ""
    """A part of what it writes about it."""

    @property
    def row(self) -> str:
        lost = "nothing" if self.arrive == ALL else "what waits; an end whose request is out arrives"
        return f"| {self.fault} | {f'`{self.says}`' if self.says else 'nothing'} | {lost} |"


CASES = (
    Case("SIGTERM, not handled (the default)", signals=(signal.SIGTERM,), exit_code=-signal.SIGTERM, arrive=SENT),
    Case("SIGHUP, not handled", signals=(signal.SIGHUP,), exit_code=-signal.SIGHUP, arrive=SENT),
    Case("SIGKILL, or power loss", signals=(signal.SIGKILL,), exit_code=-signal.SIGKILL, arrive=SENT),
    Case("`os._exit()`", code=f"{_WAIT}; os._exit(3)", exit_code=3, arrive=SENT),
    Case("`os.execv()`", code=f"{_WAIT}; os.execv(sys.executable, [sys.executable, '-c', ''])", arrive=SENT),
    Case(
        "SIGTERM, handled by `sys.exit()`",
        before="import signal; signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))",
        signals=(signal.SIGTERM,),
        exit_code=143,
    ),
    Case("Ctrl-C (SIGINT)", signals=(signal.SIGINT,), exit_code=-signal.SIGINT),
    Case("`sys.exit()`, or the end of the program", code=f"{_WAIT}; sys.exit(4)", exit_code=4),
    Case(
        "another `atexit` function that raises",
        before="atexit.register(lambda: 1 / 0)",
        code=f"atexit.register(lambda: 1 / 0); {_WAIT}",
        says="ZeroDivisionError",
    ),
    Case("SIGSTOP for a while, then SIGCONT", signals=(signal.SIGSTOP, signal.SIGCONT)),
    Case("the clock is set a day ahead", code=f"real = time.time; time.time = lambda: real() + 86_400; {_WAIT}"),
    Case("the clock is set back a day", code=f"real = time.time; time.time = lambda: real() - 86_400; {_WAIT}"),
    Case(
        "a MemoryError while a report is sent",
        code=f"raising(MemoryError, 2); {_WAIT}",
        says="unexpected error while sending",
    ),
    Case("a thread that sends dies of a SystemExit", code=f"raising(SystemExit, 1); {_WAIT}"),
)


def table() -> str:
    """Write the table."""
    return "\n".join(["| fault | what is said | what is lost |", "| --- | --- | --- |", *(case.row for case in CASES)])
