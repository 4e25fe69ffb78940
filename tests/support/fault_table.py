"""What a user sees of each fault, and what it costs: tried, and written into docs/faults.md.

python -m tests.support.fault_table    # write the table anew
"""

from __future__ import annotations

import logging
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from otel_letta.delivery import retry
from otel_letta.testing import InMemoryLetta
from tests.support import process_faults
from tests.support.either import At
from tests.support.fault_proxy import DRIP_BODY, DRIP_HEAD, FAULTS, INTERIM, REFUSE, STALL, Fault, FaultProxy
from tests.support.program import ends_in, program
from tests.support.waiting import until

PAGE = Path(__file__).parents[2] / "docs" / "faults.md"
BEGIN, END = "<!-- faults -->\n", "\n<!-- /faults -->"
PROCESS_BEGIN, PROCESS_END = "<!-- process faults -->\n", "\n<!-- /process faults -->"
_SLOW = {STALL.name, STALL.reaching().name, DRIP_HEAD.name, DRIP_BODY.name, INTERIM.name}
SILENT = "nothing: the end is found in the agent's context"


@dataclass(frozen=True)
class Outcome:
    """What became of one end behind a fault that lasted for a while."""

    fault: str
    seen: str
    """The first line of the log about it."""
    in_context: int
    """How often the agent has the end afterwards."""
    dropped: int
    flushed: bool

    @property
    def loss(self) -> str:
        """What is not as it should be."""
        known = "" if self.flushed and not self.dropped else ", and said so"
        return f"the end is there {self.in_context} times{known}"

    @property
    def row(self) -> str:
        lost = "nothing" if (self.in_context, self.dropped, self.flushed) == (1, 0, True) else self.loss
        return f"| {self.fault} | {self.seen} | {lost} |"


class _Lines(logging.Handler):
    """The lines that a user sees by default."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@contextmanager
def _listening() -> Iterator[_Lines]:
    handler, logger = _Lines(), logging.getLogger("otel_letta")
    logger.addHandler(handler)
    try:
        yield handler
    finally:
        logger.removeHandler(handler)


@contextmanager
def impatient() -> Iterator[None]:
    """Inside, what failed is tried again soon."""
    before = retry._FIRST_BACKOFF
    retry._FIRST_BACKOFF = 0.02
    try:
        yield
    finally:
        retry._FIRST_BACKOFF = before


def tried(fault: Fault) -> Outcome:
    """Let every message of a program meet a fault until its user knows, and then no more."""
    with InMemoryLetta() as letta, FaultProxy(letta.base_url) as proxy, _listening() as log, impatient():
        agent = letta.create_agent()
        # Only where the fault is that time passes: a busy machine takes its time otherwise, too.
        patience = 0.5 if fault.name in _SLOW else 60.0
        more = {"server": "rest", "delivery": "messages", "connect_timeout": patience, "read_timeout": patience}
        with program(At(proxy.base_url, None), agent, "simple", **more, probe_interval=0.05) as app:

            def in_context() -> int:
                return len(ends_in("\n".join(letta.context(agent))))

            proxy.set(fault, method=None if fault is REFUSE else "POST")
            app.do("the end")
            app.provider.force_flush(1)
            assert fault is REFUSE or proxy.wait_until_hit()
            if fault.name in _SLOW:
                log.lines.clear()  # of connections that a busy machine did not make in time
            assert until(lambda: log.lines or in_context(), 60), "nobody noticed"
            if fault.reaches:
                # The one in the agent's context may be found without a word, or with one.
                until(lambda: log.lines or app.stats["sent"], 60)
            seen = next((line for line in log.lines if "report" in line), "")
            proxy.set(None)
            flushed = app.flush(90)
            dropped = sum(app.stats["dropped"].values())
            return Outcome(fault.name, _plain(seen, agent, proxy.base_url), in_context(), dropped, flushed)


def _plain(line: str, agent: str, url: str) -> str:
    if not line:
        return SILENT
    line = line.replace(agent, "AGENT").replace(url, "URL")
    line = re.sub(r"127\.0\.0\.1:\d+", "HOST", line)
    line = re.sub(r"\b\d+(?:\.\d+)? s\b", "… s", line)
    if "refused" not in line:  # whether a broken connection is noticed when it is read or written is up to chance
        line = re.sub(r"(Could not connect to Letta API at URL: ).*?( - check)", r"\1…\2", line)
    return f"`{line.replace('|', '/').replace('`', '')}`"


def table(outcomes: list[Outcome]) -> str:
    """Write the table."""
    return "\n".join(
        ["| fault | what the user sees | what is lost |", "| --- | --- | --- |", *(o.row for o in outcomes)]
    )


def rows_of(page: str) -> dict[str, str]:
    """Return the rows of the page by fault."""
    rows = page.partition(BEGIN)[2].partition(END)[0].splitlines()[2:]
    return {row.split(" | ", 1)[0].removeprefix("| "): row for row in rows}


def main() -> None:
    tempfile.tempdir = tempfile.mkdtemp()
    outcomes = []
    for fault in FAULTS:
        outcomes.append(tried(fault))
        print(outcomes[-1].row, file=sys.stderr)
    text = PAGE.read_text(encoding="utf-8")
    head, _, rest = text.partition(BEGIN)
    text = head + BEGIN + table(outcomes) + END + rest.partition(END)[2]
    head, _, rest = text.partition(PROCESS_BEGIN)
    text = head + PROCESS_BEGIN + process_faults.table() + PROCESS_END + rest.partition(PROCESS_END)[2]
    PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
