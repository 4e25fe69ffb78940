"""A worker that asks its supervising agent which of two ways to go, and waits for what it says.

    python examples/asking_worker.py

Expect two turns of the agent: the task waits for an instruction, and is completed as it was instructed. An agent of
yours has to know how it can instruct a task: docs/uses/steering.md has the text for its memory. If it says nothing in
two minutes, the worker decides.
"""

from __future__ import annotations

from _stand_in import letta_agent

import otel_letta
from otel_letta import task, wait_for_instruction

TASK = "invoices-april"
ANSWER = f"""It came too late for March, whose books are closed.
<task-instruction task_id="{TASK}" action="continue">Book it in April.</task-instruction>"""


def book_invoices() -> None:
    with task("Book the invoices", task_id=TASK, chat_id="chat-6", message_id="msg-1") as t:
        t.progress(0.5, "10 of 20 invoices booked")
        instruction = wait_for_instruction(
            t, timeout=120, question="invoice 11 is dated 31 March: into the books of March, or of April?"
        )
        # A choice between what the worker knows: an instruction's text is no command.
        month = "March" if instruction is not None and "march" in instruction.text.lower() else "April"
        print("The agent says:", instruction.text if instruction is not None else "nothing in time", flush=True)
        t.progress(0.9, f"invoice 11 booked in {month}")
        t.result(f"20 invoices booked, the doubtful one in {month}")


if __name__ == "__main__":
    with letta_agent(ANSWER), otel_letta.configure():
        book_invoices()
