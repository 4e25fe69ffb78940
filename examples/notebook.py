"""A notebook's cells, in a loop that is running already.

    python examples/notebook.py

`asyncio.run()` fails in a notebook, since its cells run inside a loop. Nothing here needs it: the processor reports
from a thread of its own, and LettaReporter has a twin without `await`. Expect a report sent by hand with the agent's
answer, then two tasks that complete. In a notebook, paste the cells without the function around them.
"""

from __future__ import annotations

import asyncio
import time

from _stand_in import letta_agent


async def notebook() -> None:
    # %% Set up. Run again and it does no harm: nothing global is touched.
    from opentelemetry.sdk.trace import TracerProvider

    from otel_letta import LettaReporter, LettaSpanProcessor, task

    provider = TracerProvider()
    provider.add_span_processor(LettaSpanProcessor())
    tracer = provider.get_tracer("notebook")

    # %% Tell the agent something, and see what it answers. Costs one turn of its LLM.
    with LettaReporter() as reporter:
        answer = reporter.send_progress_report_sync(
            chat_id="chat-5", message_id="msg-1", content="Exploring the sales data", progress=0.0
        )
    print("The agent's turn ended with", answer["stop_reason"])

    # %% A cell that keeps the loop busy: its progress is seen all the same.
    with task("Clean the sales data", chat_id="chat-5", message_id="msg-2", tracer=tracer) as t:
        for _ in t.track(range(10)):
            time.sleep(0.1)
        t.result("10 files cleaned, 3 rows dropped")

    # %% A cell with await.
    async with task("Train the model", chat_id="chat-5", message_id="msg-3", tracer=tracer) as t:
        for epoch in range(1, 6):
            await asyncio.sleep(0.2)
            t.progress(epoch / 5, f"epoch {epoch}, loss {1 / epoch:.2f}")

    # %% Before you leave: a kernel that is restarted or killed sends nothing more.
    print("Delivered:", provider.force_flush())
    provider.shutdown()


if __name__ == "__main__":
    with letta_agent():
        asyncio.run(notebook())
