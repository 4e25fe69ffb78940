"""The agent's turns as spans: one for each request that carries reports, by the GenAI conventions for `invoke_agent`.

Off unless ``OTEL_LETTA_ANSWER_SPANS=true``. The span is a trace of its own, of kind CLIENT, with a link to the span of
each task that the request reported; its times are those of the request. It says which agent answered, how the turn
ended and how many tokens it used, and nothing of what was said. Names were checked against the conventions in November
2026 (Development), of which `gen_ai.provider.name` leaves ``letta`` to us.

All of its instrumentation scope is left out by whoever reports spans with this package, in this process or another.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode

from otel_letta import semconv
from otel_letta.answer import Answer
from otel_letta.delivery.answers import Turn
from otel_letta.report import ProgressReport

_OPERATION = "invoke_agent"
_PROVIDER = "letta"
_PORTS = {"http": 80, "https": 443}
_TOKENS = {
    semconv.GEN_AI_INPUT_TOKENS: "prompt_tokens",
    semconv.GEN_AI_CACHED_TOKENS: "cached_input_tokens",
    semconv.GEN_AI_OUTPUT_TOKENS: "completion_tokens",
}
"""The conventions' name of a count, and Letta's."""


@dataclass(frozen=True, slots=True)
class AnswerSpans:
    """Makes the span of a turn. Two of one provider are equal, so that components make it once.

    Args:
        provider: the program's own; None is the global one, whichever that is by then.
    """

    provider: trace.TracerProvider | None = None

    def __call__(self, turn: Turn) -> None:
        tracer = (self.provider or trace.get_tracer_provider()).get_tracer(semconv.ANSWER_SCOPE)
        span = tracer.start_span(
            _OPERATION,
            Context(),
            SpanKind.CLIENT,
            _of_request(turn),
            links=[link for link in map(_link, turn.reports) if link is not None],
            start_time=turn.began,
        )
        if turn.answer is not None:
            span.set_attributes(_of_answer(turn.answer))
        if turn.error is not None:
            span.set_attribute(semconv.ERROR_TYPE, type(turn.error).__name__)
            span.set_status(Status(StatusCode.ERROR, str(turn.error)))
        span.end(turn.ended)


def _of_request(turn: Turn) -> dict[str, Any]:
    server = urlsplit(turn.lane.server)
    attributes: dict[str, Any] = {
        semconv.GEN_AI_OPERATION: _OPERATION,
        semconv.GEN_AI_PROVIDER: _PROVIDER,
        semconv.GEN_AI_AGENT_ID: turn.lane.agent_id,
        semconv.SERVER_ADDRESS: server.hostname or "",
        semconv.SERVER_PORT: server.port or _PORTS.get(server.scheme, 80),
    }
    if turn.lane.conversation_id is not None:
        attributes[semconv.GEN_AI_CONVERSATION] = turn.lane.conversation_id
    return attributes


def _of_answer(answer: Answer) -> dict[str, Any]:
    attributes: dict[str, Any] = {name: answer.usage[count] for name, count in _TOKENS.items() if count in answer.usage}
    if answer.stop_reason is not None:
        attributes[semconv.GEN_AI_FINISH_REASONS] = (answer.stop_reason,)
    if answer.run_id is not None:
        attributes[semconv.RUN_ID] = answer.run_id
    return attributes


def _link(report: ProgressReport) -> Link | None:
    """Return the link to the span of a report's task, if one made it."""
    try:
        trace_id, span_id = int(report.trace_id or "", 16), int(report.span_id or "", 16)
    except ValueError:
        return None
    # Whether that span was sampled is not known here.
    return Link(SpanContext(trace_id, span_id, is_remote=False))
