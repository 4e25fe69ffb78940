"""Attribute names that otel_letta writes and reads.

``letta.*`` are this project's own. OpenTelemetry's naming rules keep existing namespaces for the conventions
themselves, and the GenAI conventions (Development, checked November 2026) define no progress of a task, so minting
``gen_ai.task.progress`` would be wrong.
"""

from __future__ import annotations

from typing import Final

TASK_PROGRESS: Final = "letta.task.progress"
"""double, 0.0 to 1.0: the share of the task that is done."""
TASK_STATUS: Final = "letta.task.status"
"""string: ``in_progress``, ``completed`` or ``failed``."""
TASK_WAITING: Final = "letta.task.waiting"
"""boolean: the task waits for somebody. A span that ends with it leaves its task waiting, for another span with its id
to go on with."""
TASK_CONTENT: Final = "letta.task.content"
"""string: one line for a reader about where the task stands."""
TASK_RESULT: Final = "letta.task.result"
"""string: what the task produced."""
TASK_ID: Final = "letta.task.id"
"""string: spans with the same one, in whatever trace, are the same task."""
TASK_NAME: Final = "letta.task.name"
"""string: what people call the task; default is the span's name."""
CHAT_ID: Final = "letta.chat.id"
"""string: the conversation that asked for the task."""
MESSAGE_ID: Final = "letta.message.id"
"""string: the message that asked for the task."""
AGENT_ID: Final = "letta.agent.id"
"""string: another Letta agent than the configured one; only agents of the allow list are told."""

DECLARING: Final = frozenset(
    {TASK_PROGRESS, TASK_STATUS, TASK_WAITING, TASK_CONTENT, TASK_RESULT, TASK_ID, TASK_NAME, CHAT_ID, MESSAGE_ID}
)
"""A span that carries one of these is a task, or a step of the task around it."""

BARE_PROGRESS: Final = "progress"
BARE_STATUS: Final = "status"
BARE_CONTENT: Final = "content"
BARE_CHAT_ID: Final = "chat_id"
BARE_MESSAGE_ID: Final = "message_id"

BARE_DONE: Final = "done"
BARE_TOTAL: Final = "total"
"""Read beside `BARE_DONE` in progress events, and beside `BARE_PROGRESS`: a part and its whole."""
PARTS: Final = frozenset({BARE_DONE, BARE_PROGRESS})

INTERESTING: Final = DECLARING | {
    AGENT_ID,
    BARE_PROGRESS,
    BARE_STATUS,
    BARE_CONTENT,
    BARE_CHAT_ID,
    BARE_MESSAGE_ID,
}
"""All attributes that declare tasks and steps, or are read beside one that does."""

GEN_AI_OPERATION: Final = "gen_ai.operation.name"  # OpenTelemetry GenAI conventions, Development
GEN_AI_WORKFLOW_NAME: Final = "gen_ai.workflow.name"
GEN_AI_AGENT_NAME: Final = "gen_ai.agent.name"
GEN_AI_TOOL_NAME: Final = "gen_ai.tool.name"
GEN_AI_MODEL: Final = "gen_ai.request.model"
GEN_AI_CONVERSATION: Final = "gen_ai.conversation.id"
OPENINFERENCE_KIND: Final = "openinference.span.kind"  # OpenInference
TRACELOOP_KIND: Final = "traceloop.span.kind"  # OpenLLMetry
LAMINAR_KIND: Final = "lmnr.span.type"  # Laminar, which OpenHands traces with
MCP_METHOD: Final = "mcp.method.name"
SESSION_ID: Final = "session.id"
LOGFIRE_SPAN_TYPE: Final = "logfire.span_type"
LOGFIRE_PENDING_PARENT: Final = "logfire.pending_parent_id"

GEN_AI_PROVIDER: Final = "gen_ai.provider.name"
GEN_AI_AGENT_ID: Final = "gen_ai.agent.id"
GEN_AI_INPUT_TOKENS: Final = "gen_ai.usage.input_tokens"
GEN_AI_CACHED_TOKENS: Final = "gen_ai.usage.cache_read.input_tokens"
GEN_AI_OUTPUT_TOKENS: Final = "gen_ai.usage.output_tokens"
GEN_AI_FINISH_REASONS: Final = "gen_ai.response.finish_reasons"
SERVER_ADDRESS: Final = "server.address"  # OpenTelemetry conventions, stable
SERVER_PORT: Final = "server.port"
RUN_ID: Final = "letta.run.id"
"""string: Letta's id of a turn, on the span of the request that started it."""

ANSWER_SCOPE: Final = "otel_letta.answers"
"""Instrumentation scope of the spans of agents' turns. Whoever reports spans leaves them out: each report would make
another one, for ever."""
LETTA_SERVER_SCOPE: Final = "letta.otel.tracing"
LETTA_SERVER_SERVICE: Final = "letta-server"

PARTIAL_EVENT: Final = "partial.event"
"""Attribute of log records whose body is a span that is open, or has just ended: ``heartbeat`` or ``stop``.

Partial span processors write it (opentelemetry-python-contrib #3564, and the same in .NET and Java; read in
G-Research's otel-partial-python, -dotnet and -java of 2025).
"""

PROGRESS_EVENT: Final = "progress"
"""Name of span events that tell progress: attributes ``progress`` and ``content``, bare or as ``letta.task.*``."""

SERVICE_NAME: Final = "service.name"  # OpenTelemetry resource conventions, stable
HOST_NAME: Final = "host.name"
EXCEPTION_EVENT: Final = "exception"  # OpenTelemetry exception conventions, stable
EXCEPTION_TYPE: Final = "exception.type"
EXCEPTION_MESSAGE: Final = "exception.message"
EXCEPTION_STACKTRACE: Final = "exception.stacktrace"
ERROR_TYPE: Final = "error.type"
