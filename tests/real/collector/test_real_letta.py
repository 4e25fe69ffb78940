"""The whole way at once, with nothing in memory: SDK, Collector, receiver, and a real Letta 0.16.8."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from tests.support.collector_run import Bridge, gateway
from tests.support.collector_tasks import PATIENCE, check_ends, once
from tests.support.letta_harness import LettaHarness
from tests.support.program import Told, ends_in, told_to
from tests.support.waiting import until

_MANY = 12


def test_every_end_is_in_the_agent_s_next_prompt_once_though_collector_and_receiver_are_killed(
    real_letta: LettaHarness, tmp_path: Path
) -> None:
    agent, impatient = real_letta.create_agent(), Path(__file__).with_name("impatient.yaml")
    with Bridge(real_letta, agent, tmp_path) as bridge, gateway(tmp_path, bridge.url, impatient) as running:
        bridge.start()
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=f"{running.http}/v1/traces")))
        tracer = provider.get_tracer("program")
        for number in range(_MANY):
            with tracer.start_as_current_span(f"task {number}", attributes={"letta.task.id": f"t{number}"}):
                pass
            if number == _MANY // 3:
                assert provider.force_flush(60_000)
                once(running.backend, number + 1)
                running.collector.kill()
                running.collector.start()
            if number == 2 * _MANY // 3:
                assert provider.force_flush(60_000)
                bridge.kill()
                bridge.start()
        provider.shutdown()
        once(running.backend, _MANY)
        wanted = {f"task {number}" for number in range(_MANY)}
        assert until(lambda: wanted <= {told["task"] for told in _ends(real_letta, agent)}, PATIENCE), bridge.log
        check_ends(Counter(ends_in(real_letta.next_prompt(agent))), _MANY, unsure=range(2 * _MANY // 3 + 1))


def _ends(letta: LettaHarness, agent: str) -> list[Told]:
    return [told for told in told_to(letta, agent) if told["status"] != "in_progress"]
