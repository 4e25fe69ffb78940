"""Figures against a real Letta 0.16.8 with a scripted LLM that answers at once (``--real``).

*end → in the agent's context*: from the end of a task's span until the agent's record lists one more message in its
context; asked every 10 ms over a kept connection, so up to that much too late. At the end the agent is asked, and every
task has to be in the prompt that its LLM gets then: only that proves that it knows. Then the long task of
`benchmarks.long_task`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
from opentelemetry.sdk.trace import TracerProvider

from benchmarks import long_task
from benchmarks.figures import Figure, Run, median
from benchmarks.turn_costs import Server
from otel_letta import LettaSpanProcessor


def measure(run: Run) -> Iterator[Figure]:
    root = str(Path(__file__).parent.parent)
    if root not in sys.path:
        sys.path.insert(0, root)
    from letta_client import Letta

    from tests.support.letta_harness import LettaHarness
    from tests.support.letta_server import LETTA_VERSION, LettaServer
    from tests.support.scripted_llm import ScriptedLLM

    run.say("starting the real Letta (its first time on a machine takes minutes)")
    with (
        ScriptedLLM() as llm,
        LettaServer(llm) as server,
        Letta(base_url=server.base_url, api_key=server.password) as client,
    ):
        harness = LettaHarness(server, llm, client)
        run.say("end → context")
        yield _end_to_context(harness, run.pick(30, 6))
        yield from long_task.measure_real(
            run,
            Server(
                f"Letta {LETTA_VERSION}",
                server.base_url,
                server.password,
                harness.create_agent,
                lambda: llm.chat_calls,
            ),
        )


def _end_to_context(harness: object, samples: int) -> Figure:
    from tests.support.letta_harness import LettaHarness

    assert isinstance(harness, LettaHarness)
    agent = harness.create_agent()
    processor = LettaSpanProcessor(
        base_url=harness.base_url, password=harness.password, agent_id=agent, wake_budget=1_000_000
    )
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(processor)
    tracer = provider.get_tracer("benchmark")
    headers = {"Authorization": f"Bearer {harness.password}"}
    seen = []
    with httpx.Client(base_url=harness.base_url, headers=headers, timeout=30) as looking:

        def known() -> int:
            return len(looking.get(f"/v1/agents/{agent}").raise_for_status().json()["message_ids"])

        for n in range(-1, samples):  # the first one warms up
            span = tracer.start_span(f"real task {n} ends", attributes={"letta.task.name": f"real task {n} ends"})
            provider.force_flush()  # the board
            before = known()
            began = time.monotonic()
            span.end()
            while known() == before:
                if time.monotonic() - began > 60:
                    raise TimeoutError("the report did not reach the agent's context")
                time.sleep(0.01)
            if n >= 0:
                seen.append((time.monotonic() - began) * 1e3)
            provider.force_flush()
    prompt = harness.next_prompt(agent)
    provider.shutdown()
    missing = [n for n in range(samples) if f"real task {n} ends" not in prompt]
    if missing:
        raise RuntimeError(f"the agent does not know of tasks {missing}")
    return Figure(
        "end → in the agent's context, real Letta, p50",
        f"{median(seen):.0f} ms",
        note=f"{min(seen):.0f} to {max(seen):.0f} ms, {samples} ends; the scripted LLM answers at once",
        numbers={"p50": median(seen), "all": seen},
    )
