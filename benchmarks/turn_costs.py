"""What a task of 30 minutes with 1,000 updates costs a Letta agent, in each delivery mode.

    python benchmarks/turn_costs.py --stand-in    # the in-memory server of otel_letta.testing: about 2 minutes
    python benchmarks/turn_costs.py               # a real Letta 0.16.8 with a scripted LLM: about 3 minutes

``python -m benchmarks`` runs it too, all modes at once, each with a stand-in of its own.

Time is scaled down: with ``--seconds 18`` (the default) one second stands for 100, so the pacing settings are divided
by 100 too. A turn of the agent is not scaled; here it takes some 0.2 s, as long as 20 s would in the 30 minutes.

Columns: ``turns`` are calls of the agent's LLM, each over its whole context; ``POSTs`` the requests that cause them;
``board`` the writes of the memory block, which cost no LLM call; ``HTTP`` all requests, looks at the agent's state
included; ``told`` how many reports the agent got as messages.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from opentelemetry.sdk.trace import TracerProvider

from otel_letta import LettaReporter, LettaSpanProcessor

_REAL_SECONDS = 1_800.0
_UPDATES = 1_000
_ENOUGH = 1_000_000


@dataclass(frozen=True)
class Server:
    """Where the reports go, and how many turns that has cost so far."""

    name: str
    base_url: str
    password: str
    create_agent: Callable[[], str]
    turns: Callable[[], int]


@contextlib.contextmanager
def stand_in() -> Iterator[Server]:
    from otel_letta.testing import InMemoryLetta

    with InMemoryLetta(password="benchmark", turn_seconds=0.2) as letta:
        yield Server("in-memory stand-in", letta.base_url, "benchmark", letta.create_agent, lambda: letta.turns)


@contextlib.contextmanager
def real() -> Iterator[Server]:
    sys.path.insert(0, str(Path(__file__).parent.parent))
    from letta_client import Letta

    from tests.support.letta_harness import LettaHarness
    from tests.support.letta_server import LETTA_VERSION, LettaServer
    from tests.support.scripted_llm import ScriptedLLM

    with (
        ScriptedLLM() as llm,
        LettaServer(llm) as server,
        Letta(base_url=server.base_url, api_key=server.password) as c,
    ):
        harness = LettaHarness(server, llm, c)
        yield Server(
            f"Letta {LETTA_VERSION}",
            server.base_url,
            server.password,
            harness.create_agent,
            lambda: llm.chat_calls,
        )


class RequestCounter(logging.Handler):
    """Counts HTTP requests by the one DEBUG line that each of them writes."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.all = 0
        self.posts = 0

    def emit(self, record: logging.LogRecord) -> None:
        line = record.getMessage()
        self.all += " -> " in line
        self.posts += line.startswith("POST ") and "/messages -> " in line


def with_numbers(span: Any, share: float, n: int) -> None:
    span.set_attribute("letta.task.progress", share)
    span.set_attribute("letta.task.content", f"{n} of {_UPDATES} files")


def with_words_only(span: Any, share: float, n: int) -> None:
    span.set_attribute("letta.task.content", f"now at file {n}")


def traced_task(server: Server, seconds: float, delivery: str, update: Callable[[Any, float, int], None]) -> Any:
    """One task of so many seconds, reported by a live processor; returns the processor's numbers."""
    scale = seconds / _REAL_SECONDS
    processor = LettaSpanProcessor(
        base_url=server.base_url,
        password=server.password,
        agent_id=server.create_agent(),
        delivery=delivery,
        message_interval=60.0 * scale,
        board_interval=15.0 * scale,
        poll_interval=max(0.25 * scale, 0.01),
        wake_budget=_ENOUGH,  # an hour's budget means nothing on a scaled clock
        shutdown_timeout=60.0,
    )
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(processor)
    began = time.monotonic()
    with provider.get_tracer("benchmark").start_as_current_span(
        "Import", attributes={"letta.task.name": "Import"}
    ) as s:
        for n in range(_UPDATES):
            time.sleep(max(began + seconds * n / _UPDATES - time.monotonic(), 0.0))
            update(s, n / _UPDATES, n)
        time.sleep(max(began + seconds - time.monotonic(), 0.0))
    provider.shutdown()
    return processor.stats()


def each_update_sent(server: Server) -> Any:
    """One request an update, as callers of `LettaReporter` ask for."""

    async def send_all() -> None:
        async with LettaReporter(
            base_url=server.base_url, password=server.password, agent_id=server.create_agent()
        ) as reporter:
            for n in range(_UPDATES):
                await reporter.send_progress_report("chat", "message", f"{n} of {_UPDATES} files", n / _UPDATES)

    asyncio.run(send_all())
    return {"board_writes": 0, "sent": _UPDATES}


@dataclass(frozen=True)
class Cost:
    """One line: what a way of reporting cost."""

    way: str
    turns: int
    posts: int
    board: int
    requests: int
    told: int


MODES = tuple(delivery + kind for delivery in ("auto", "messages", "board") for kind in ("", ", no numbers"))
EACH = "LettaReporter, each update"


def costs(server: Server, seconds: float, ways: Sequence[str]) -> Iterator[Cost]:
    """One after another, as they are done."""
    counter = RequestCounter()
    logger = logging.getLogger("otel_letta.letta.rest")
    logger.addHandler(counter)
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    for way in ways:
        turns, posts, requests = server.turns(), counter.posts, counter.all
        if way == EACH:
            stats = each_update_sent(server)
        else:
            delivery, _, wordless = way.partition(", ")
            stats = traced_task(server, seconds, delivery, with_words_only if wordless else with_numbers)
        yield Cost(
            way,
            server.turns() - turns,
            counter.posts - posts,
            stats["board_writes"],
            counter.all - requests,
            stats["sent"],
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--stand-in", action="store_true", help="without a real Letta")
    parser.add_argument("--seconds", type=float, default=18.0, help="what the 30 minutes are scaled to")
    parser.add_argument("--each", action="store_true", help="also send every update as a request of its own (minutes)")
    parser.add_argument("--mode", choices=MODES, help="only this one")
    parser.add_argument("--json", action="store_true", help="one JSON object a line instead of the table")
    options = parser.parse_args()

    with stand_in() if options.stand_in else real() as server:
        if not options.json:
            print(f"One task of 30 min, {_UPDATES:,} updates, scaled to {options.seconds:g} s; {server.name},")
            print(f"Python {platform.python_version()}, {time.strftime('%Y-%m-%d')}")
            print(f"{'mode':<28}{'turns':>7}{'POSTs':>7}{'board':>7}{'HTTP':>7}{'told':>7}")
        ways = [options.mode] if options.mode else [*MODES, *([EACH] if options.each else [])]
        for cost in costs(server, options.seconds, ways):
            if options.json:
                print(json.dumps(asdict(cost)), flush=True)
                continue
            way, *numbers = asdict(cost).values()
            print(f"{way:<28}" + "".join(f"{number:>7}" for number in numbers), flush=True)


if __name__ == "__main__":
    main()
