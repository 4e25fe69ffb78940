"""An OpenHands run that a Letta agent steers: it hears how the run ended, and asks for more.

    pip install openhands-sdk openhands-tools
    python examples/openhands_steered.py

Expect two runs of one conversation, and two files: the first run writes hello.py, and the agent answers to its end
that there shall be a test. OpenHands needs Python 3.12. Its model is scripted, so that this runs without a key: set
LLM_MODEL and LLM_API_KEY for a real one. An agent of yours has to know how it can instruct a task:
docs/uses/steering.md has the text for its memory.
"""

from __future__ import annotations

import os
import tempfile
import uuid
from pathlib import Path

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # no prices from the internet
os.environ.setdefault("OPENHANDS_SUPPRESS_BANNER", "1")

from _stand_in import language_model, letta_agent
from openhands.sdk import LLM, Agent, Conversation, Tool
from openhands.tools.file_editor import FileEditorTool

from otel_letta.integrations.openhands import callback, reporting

CONVERSATION = uuid.uuid4()
ANSWER = f"""hello.py is there, but who says that it works?
<task-instruction task_id="{CONVERSATION}/1" action="continue">Write test_hello.py, too.</task-instruction>"""


def write_hello(folder: str) -> None:
    agent = Agent(llm=LLM.load_from_env(), tools=[Tool(name=FileEditorTool.name)])
    observer = callback(chat_id="chat-123", message_id="msg-456", name="Write hello.py")
    conversation = Conversation(
        agent=agent, workspace=folder, callbacks=[observer], conversation_id=CONVERSATION, visualizer=None
    )
    with reporting(conversation, observer, follow_up=True, rounds=2):
        conversation.send_message(f"Write {folder}/hello.py, which prints hello.")
        conversation.run()
    conversation.close()


def creates(path: str, text: str) -> dict[str, object]:
    return {
        "tool": FileEditorTool.name,
        "command": "create",
        "path": path,
        "file_text": text,
        "summary": f"write {Path(path).name}",
    }


def finishes(message: str) -> dict[str, object]:
    return {"tool": "finish", "message": message}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        script = (
            creates(f"{folder}/hello.py", "print('hello')\n"),
            finishes("hello.py prints hello."),
            creates(f"{folder}/test_hello.py", "def test(capsys):\n    import hello\n"),
            finishes("hello.py has a test."),
        )
        with letta_agent(ANSWER), language_model(*script):
            write_hello(folder)
            print("Files:", ", ".join(sorted(path.name for path in Path(folder).glob("*.py"))), flush=True)
