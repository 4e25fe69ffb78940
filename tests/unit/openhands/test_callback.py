"""OpenHands without OpenHands: stand-ins for its conversation, a real pipeline, Letta in memory."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import subprocess
import sys
import textwrap
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from otel_letta import LettaSpanProcessor, Settings
from otel_letta.integrations import openhands
from otel_letta.integrations.openhands import callback, callbacks, reporting
from otel_letta.runtime.imports import when_imported
from otel_letta.testing import InMemoryLetta
from tests.support.conversations import recorded

ASKED = {"kind": "MessageEvent", "source": "user", "id": "asked", "llm_message": {"content": []}}
FINISH = {"kind": "ActionEvent", "tool_name": "finish", "action": {"message": "all done"}, "id": "finish"}
FINISHED = {"kind": "ObservationEvent", "tool_name": "finish", "observation": {}, "id": "finished"}


class Conversation:
    """As much of OpenHands' conversation as is used."""

    def __init__(self, *callbacks: Callable[[Any], None]) -> None:
        self.id = uuid.uuid4()
        self.state = SimpleNamespace(execution_status="idle", events=[])
        self._callbacks = callbacks

    def happen(self, *events: dict[str, Any], status: str | None = None) -> None:
        for event in events:
            self.state.events.append(event)
            for each in self._callbacks:
                each(event)
        if status is not None:
            self.state.execution_status = status

    def run(self) -> None:
        self.happen(FINISH, FINISHED, status="finished")


@pytest.fixture
def letta() -> Iterator[InMemoryLetta]:
    with InMemoryLetta() as server:
        yield server
        openhands.shutdown()


@pytest.fixture
def agent(letta: InMemoryLetta) -> str:
    return letta.create_agent()


@pytest.fixture
def settings(letta: InMemoryLetta, agent: str) -> dict[str, Any]:
    return {"base_url": letta.base_url, "agent_id": agent, "delivery": "messages", "message_interval": 0}


def ends(letta: InMemoryLetta, agent: str) -> list[dict[str, Any]]:
    assert openhands.flush(10)
    return [report for report in letta.reports(agent) if report["status"] != "in_progress"]


# -- the callback ----------------------------------------------------------------------------------------------------


def test_a_run_is_told_from_its_start_to_its_end(letta: InMemoryLetta, agent: str, settings: dict[str, Any]) -> None:
    told = callback(chat_id="chat-123", message_id="msg-456", name="Write hello.py", **settings)
    events = [line["event"] for line in recorded("ok") if "event" in line]
    for event in events[:2]:
        told(event)
    assert openhands.flush(10)
    for event in events[2:]:
        told(event)
    (end,) = ends(letta, agent)
    assert end["result"] == "hello.py prints hello 0, 1 and 2."
    assert (end["chat_id"], end["message_id"], end["task"]) == ("chat-123", "msg-456", "Write hello.py")
    assert letta.reports(agent)[0]["content"] == "Task started"


def test_a_callback_neither_raises_nor_waits_whatever_comes(settings: dict[str, Any], letta: InMemoryLetta) -> None:
    class Hostile:
        def __getattr__(self, name: str) -> object:
            raise RuntimeError("mine")

    told = callback(**settings)
    with letta.hold():
        began = time.monotonic()
        for event in (Hostile(), object(), None, ASKED, FINISH, FINISHED):
            told(event)
        assert time.monotonic() - began < 0.5


def test_a_callback_without_valid_settings_does_nothing(caplog: pytest.LogCaptureFixture) -> None:
    told = callback(chat_id="chat-1")
    told(ASKED)
    with reporting(Conversation(), told):
        pass
    assert not told.active
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert "LETTA_AGENT_ID" in caplog.text


def test_ids_need_not_be_text(letta: InMemoryLetta, agent: str, settings: dict[str, Any]) -> None:
    chat: Any = uuid.uuid4()
    number: Any = 7
    thing: Any = object()
    callback(chat_id=chat, message_id=number, name=thing, **settings)(ASKED)
    assert openhands.flush(10)
    (report,) = letta.reports(agent)
    assert (report["chat_id"], report["message_id"], report["task"]) == (str(chat), "7", "OpenHands")


def test_settings_of_another_kind_are_one_error_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    wrong: Any = {"base_url": "http://127.0.0.1:1"}
    assert not callback(settings=wrong).active
    assert [record.levelname for record in caplog.records] == ["ERROR"]


def test_callbacks_with_the_same_settings_share_one_pipeline(settings: dict[str, Any]) -> None:
    callback(**settings)(ASKED)
    assert callback(**settings).stats()["reports"] == callback(**settings).stats()["reports"]
    assert len(callbacks._shares) == 1
    callback(**{**settings, "delivery": "board"})
    assert len(callbacks._shares) == 2


def test_finished_settings_are_taken_and_exclude_others(
    settings: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    finished = Settings.resolve(**settings)
    assert callback(settings=finished).active
    assert callback(settings=finished).stats() == callback(**settings).stats()
    assert len(callbacks._shares) == 1
    assert not callback(settings=finished, delivery="board").active
    assert "exclude each other" in caplog.text


def test_the_conversation_that_calls_is_found_on_the_stack(
    letta: InMemoryLetta, agent: str, settings: dict[str, Any]
) -> None:
    there = ModuleType("openhands.sdk.conversation.impl.local_conversation")
    source = (
        "class LocalConversation:\n"
        "    def __init__(self, id, callback):\n        self.id, self.callback = id, callback\n"
        "    def run(self): ...\n"
        "    def send_message(self, event):\n        (lambda e: self.callback(e))(event)\n"
    )
    exec(compile(source, "local_conversation.py", "exec"), there.__dict__)
    known = uuid.uuid4()
    told = callback(**settings)
    conversation = there.LocalConversation(known, told)
    conversation.send_message({"kind": "SystemPromptEvent"})
    conversation.send_message(ASKED)
    conversation.send_message(FINISH)
    conversation.send_message(FINISHED)
    assert ends(letta, agent)[0]["task_id"] == f"{known}/1"
    assert str(known) in repr(told)


def test_what_is_open_at_shutdown_has_failed(letta: InMemoryLetta, agent: str, settings: dict[str, Any]) -> None:
    told = callback(**settings)
    told(ASKED)
    openhands.shutdown()
    openhands.shutdown()
    (end,) = [report for report in letta.reports(agent) if report["status"] == "failed"]
    assert end["error"] == "the program shut down while the task was still open"
    told(FINISH)
    assert not told.active


def test_a_processor_that_leaves_does_not_end_what_a_callback_tells(
    letta: InMemoryLetta, agent: str, settings: dict[str, Any]
) -> None:
    told = callback(**settings)
    processor = LettaSpanProcessor(**settings)
    told(ASKED)
    processor.shutdown()
    told(FINISH)
    told(FINISHED)
    assert [end["status"] for end in ends(letta, agent)] == ["completed"]


def test_a_program_that_just_ends_has_delivered(letta: InMemoryLetta, agent: str) -> None:
    program = f"""
        from otel_letta.integrations.openhands import callback
        told = callback(base_url={letta.base_url!r}, agent_id={agent!r})
        told({ASKED!r}); told({FINISH!r}); told({FINISHED!r})
        callback(base_url={letta.base_url!r}, agent_id={agent!r})({ASKED!r})
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(program)], timeout=60, check=True)
    assert sorted(report["status"] for report in letta.reports(agent)) == ["completed", "failed"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_tells_its_own_and_not_what_its_parent_has_open(letta: InMemoryLetta, agent: str) -> None:
    program = f"""
        import os
        from otel_letta.integrations import openhands
        settings = dict(base_url={letta.base_url!r}, agent_id={agent!r}, delivery="messages", message_interval=0)
        mine = openhands.callback(chat_id="parent", **settings)
        mine({ASKED!r})
        child = os.fork()
        if child == 0:
            own = openhands.callback(chat_id="child", **settings)
            for event in ({ASKED!r}, {FINISH!r}, {FINISHED!r}):
                own(event)
            openhands.shutdown()
            os._exit(0)
        os.waitpid(child, 0)
        mine({FINISH!r}); mine({FINISHED!r})
    """
    subprocess.run([sys.executable, "-W", "ignore", "-c", textwrap.dedent(program)], timeout=60, check=True)
    over = [report for report in letta.reports(agent) if report["status"] != "in_progress"]
    assert sorted((report["chat_id"], report["status"]) for report in over) == [
        ("child", "completed"),
        ("parent", "completed"),
    ]


# -- claims ------------------------------------------------------------------------------------------------------


def test_a_callback_speaks_for_its_conversation_where_the_settings_are_the_same(settings: dict[str, Any]) -> None:
    conversation = Conversation()
    processor = LettaSpanProcessor(**settings)
    elsewhere = LettaSpanProcessor(**{**settings, "delivery": "board"})
    try:
        with reporting(conversation, callback(**settings)):
            assert processor._hooked is not None
            assert elsewhere._hooked is not None
            assert str(conversation.id) in processor._hooked.claims
            assert str(conversation.id) not in elsewhere._hooked.claims
    finally:
        processor.shutdown()
        elsewhere.shutdown()


# -- reporting -------------------------------------------------------------------------------------------------------


def test_reporting_with_a_callback_tells_each_thing_once(
    letta: InMemoryLetta, agent: str, settings: dict[str, Any]
) -> None:
    told = callback(chat_id="chat-1", **settings)
    conversation = Conversation(told)
    with reporting(conversation, told) as same:
        assert same is told
        conversation.happen({"kind": "SystemPromptEvent"}, ASKED)
        assert openhands.flush(10)  # else the end may overtake the start
        conversation.run()
    (end,) = ends(letta, agent)
    assert (end["task_id"], end["result"], end["chat_id"]) == (f"{conversation.id}/1", "all done", "chat-1")
    assert [report["content"] for report in letta.reports(agent)].count("Task started") == 1


def test_reporting_without_a_callback_reads_what_happened_when_it_is_over(
    letta: InMemoryLetta, agent: str, settings: dict[str, Any]
) -> None:
    conversation = Conversation()
    conversation.happen(ASKED)
    with reporting(conversation, chat_id="chat-1", **settings):
        conversation.run()
    (end,) = ends(letta, agent)
    assert (end["status"], end["result"], end["chat_id"]) == ("completed", "all done", "chat-1")


def test_reporting_beside_a_callback_that_it_does_not_know_of(
    letta: InMemoryLetta, agent: str, settings: dict[str, Any]
) -> None:
    told = callback(chat_id="chat-1", **settings)
    conversation = Conversation(told)
    told._bind(conversation)
    with reporting(conversation, **settings):
        conversation.happen(ASKED)
        conversation.run()
    assert [end["chat_id"] for end in ends(letta, agent)] == ["chat-1"]


def test_an_exception_goes_on_and_is_told(letta: InMemoryLetta, agent: str, settings: dict[str, Any]) -> None:
    class ConversationRunError(RuntimeError):
        pass

    with pytest.raises(ConversationRunError), reporting(Conversation(), **settings):
        raise ConversationRunError("Conversation run failed for id=…, see /root") from TimeoutError("no answer")
    assert [end["error"] for end in ends(letta, agent)] == ["TimeoutError: no answer"]


@pytest.mark.parametrize(
    ("error", "reason"), [(KeyboardInterrupt(), "interrupted (Ctrl-C)"), (asyncio.CancelledError(), "cancelled")]
)
def test_an_abort_goes_on_and_is_told(
    letta: InMemoryLetta, agent: str, settings: dict[str, Any], error: BaseException, reason: str
) -> None:
    with pytest.raises(type(error)), reporting(Conversation(), **settings):
        raise error
    assert [end["error"].startswith(reason) for end in ends(letta, agent)] == [True]


@pytest.mark.parametrize(("status", "told"), [("finished", "completed"), ("running", "failed")])
def test_a_program_that_exits_with_success_is_judged_by_the_status(
    letta: InMemoryLetta, agent: str, settings: dict[str, Any], status: str, told: str
) -> None:
    conversation = Conversation()
    with pytest.raises(SystemExit), reporting(conversation, **settings):
        conversation.state.execution_status = status
        sys.exit(0)
    assert [end["status"] for end in ends(letta, agent)] == [told]


def test_what_was_told_before_the_conversation_was_known_is_no_second_task(
    letta: InMemoryLetta, agent: str, settings: dict[str, Any]
) -> None:
    """A remote conversation delivers events on a thread of its own, where nothing says whose they are."""
    told = callback(**settings)
    conversation = Conversation(told)
    conversation.happen(ASKED)
    for status in ("paused", "finished"):
        with reporting(conversation, told):
            conversation.happen(status=status)
    (end,) = ends(letta, agent)
    assert end["status"] == "completed"
    assert told.stats()["open_tasks"] == 0
    other = Conversation(told)
    with reporting(other, told):
        other.run()
    assert ends(letta, agent)[-1]["task_id"] == f"{other.id}/1"


def test_threads_that_ask_at_once_speak_of_one_conversation(settings: dict[str, Any]) -> None:
    told = callback(**settings)
    assert told._name_myself() == told._name_myself()


def test_a_conversation_whose_server_died_has_its_end_all_the_same(
    letta: InMemoryLetta, agent: str, settings: dict[str, Any]
) -> None:
    class Remote:
        id = uuid.uuid4()
        server: Any = SimpleNamespace(execution_status="running", events=[])

        @property
        def state(self) -> Any:
            if self.server is None:
                raise OSError("no answer")
            return self.server

    conversation = Remote()
    with pytest.raises(ConnectionError), reporting(conversation, **settings):
        conversation.server = None
        raise ConnectionError("server gone")
    assert [end["error"] for end in ends(letta, agent)] == ["ConnectionError: server gone"]


def test_reporting_works_around_arun(letta: InMemoryLetta, agent: str, settings: dict[str, Any]) -> None:
    async def main() -> None:
        conversation = Conversation()
        async with reporting(conversation, **settings):
            conversation.run()

    asyncio.run(main())
    assert [end["status"] for end in ends(letta, agent)] == ["completed"]


def test_reporting_on_something_else_neither_raises_nor_hides_what_does(settings: dict[str, Any]) -> None:
    class Odd:
        @property
        def state(self) -> object:
            raise OSError("gone")

    with reporting(Odd(), **settings):
        pass
    with pytest.raises(ZeroDivisionError), reporting(None, **settings):
        raise ZeroDivisionError


def test_a_callback_and_ids_exclude_each_other(settings: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match="already"):
        reporting(Conversation(), callback(**settings), chat_id="chat-2")


def test_conversations_side_by_side_are_kept_apart(letta: InMemoryLetta, agent: str, settings: dict[str, Any]) -> None:
    def work(n: int) -> None:
        told = callback(chat_id=f"chat-{n}", **settings)
        conversation = Conversation(told)
        with reporting(conversation, told):
            conversation.happen({**ASKED, "id": f"asked-{n}"}, {**FINISH, "action": {"message": f"answer {n}"}})
            conversation.happen(FINISHED, status="finished")

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted((end["chat_id"], end["result"]) for end in ends(letta, agent)) == [
        (f"chat-{n}", f"answer {n}") for n in range(8)
    ]


# -- attach ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def fake_sdk(tmp_path: Path) -> Path:
    """Packages that behave as lmnr and openhands.sdk do: the first traces, to a provider of its own, if an endpoint is
    set when the second is imported."""
    tracing = tmp_path / "site" / "lmnr" / "opentelemetry_lib" / "tracing"
    sdk = tmp_path / "site" / "openhands" / "sdk"
    for folder in (tracing, sdk):
        folder.mkdir(parents=True)
    (tracing / "__init__.py").write_text("class TracerWrapper:\n    instance = None\n")
    (tracing.parent / "__init__.py").touch()
    (tracing.parent.parent / "__init__.py").write_text(
        "import os\n"
        "from lmnr.opentelemetry_lib.tracing import TracerWrapper\n"
        "class Laminar:\n"
        "    @staticmethod\n"
        "    def is_initialized():\n        return TracerWrapper.instance is not None\n"
    )
    (sdk / "__init__.py").write_text(
        "import os, lmnr\n"
        "if os.environ.get('OTEL_EXPORTER_OTLP_ENDPOINT'):\n"
        "    from opentelemetry.sdk.trace import TracerProvider\n"
        "    wrapper = lmnr.TracerWrapper()\n"
        "    wrapper._tracer_provider = TracerProvider(shutdown_on_exit=False)\n"
        "    lmnr.TracerWrapper.instance = wrapper\n"
    )
    return tmp_path / "site"


ATTACH = """
import logging
logging.basicConfig(format="%(levelname)s %(message)s")
from otel_letta.integrations import openhands
{first}
{second}
import lmnr
wrapper = lmnr.TracerWrapper.instance
print("attached:", wrapper is not None and any(
    type(p).__name__ == "LettaSpanProcessor" for p in wrapper._tracer_provider._active_span_processor._span_processors))
"""
ORDERS = pytest.mark.parametrize(
    "steps",
    [("import openhands.sdk", "openhands.attach()"), ("openhands.attach()", "import openhands.sdk")],
    ids=["after the import", "before the import"],
)


def _attach(site: Path, steps: tuple[str, str], **environment: str) -> subprocess.CompletedProcess[str]:
    first, second = (step.replace("import openhands.sdk", "__import__('openhands.sdk')") for step in steps)
    return subprocess.run(
        [sys.executable, "-c", ATTACH.format(first=first, second=second)],
        env={
            "PATH": "",
            "PYTHONPATH": os.pathsep.join([str(site), *sys.path]),
            "LETTA_BASE_URL": "http://127.0.0.1:1",
            "LETTA_AGENT_ID": "agent-1",
            **environment,
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )


@ORDERS
def test_attach_finds_the_provider_in_either_order(fake_sdk: Path, steps: tuple[str, str]) -> None:
    done = _attach(fake_sdk, steps, OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:1")
    assert done.stdout == "attached: True\n", done.stderr


@ORDERS
def test_attach_says_when_tracing_is_off_and_how_to_switch_it_on(fake_sdk: Path, steps: tuple[str, str]) -> None:
    done = _attach(fake_sdk, steps)
    assert done.stdout == "attached: False\n"
    assert "ERROR OpenHands' tracing is off" in done.stderr
    assert "OTEL_EXPORTER_OTLP_ENDPOINT before openhands.sdk is imported" in done.stderr


def test_nothing_of_openhands_is_imported(fake_sdk: Path) -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys, otel_letta.integrations.openhands as o; o.attach(); print('openhands' in sys.modules)",
        ],
        env={"PATH": "", "PYTHONPATH": os.pathsep.join([str(fake_sdk), *sys.path])},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout == "False\n"


def test_an_import_is_announced_once_and_left_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "otel_letta_probe.py").write_text("value = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    heard: list[str] = []
    before = list(sys.meta_path)
    when_imported("otel_letta_probe", lambda: heard.append("imported"))
    probe = __import__("otel_letta_probe")
    assert heard == ["imported"]
    assert sys.meta_path == before
    assert type(probe.__loader__).__name__ == type(probe.__spec__.loader).__name__ == "SourceFileLoader"
    when_imported("otel_letta_probe", lambda: heard.append("there already"))
    assert heard[-1] == "there already"
    del sys.modules["otel_letta_probe"]


def test_who_asks_only_where_a_module_is_gets_all_that_its_loader_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "otel_letta_probe.py").write_text("value = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    before = list(sys.meta_path)
    when_imported("otel_letta_probe", lambda: pytest.fail("not imported"))
    try:
        spec = importlib.util.find_spec("otel_letta_probe")
        assert spec is not None
        assert spec.loader.get_source("otel_letta_probe") == "value = 1\n"  # type: ignore[union-attr]
    finally:
        sys.meta_path[:] = before


def test_an_import_that_does_not_exist_fails_as_ever() -> None:
    before = list(sys.meta_path)
    when_imported("otel_letta_no_such_module", lambda: pytest.fail("not imported"))
    try:
        with pytest.raises(ModuleNotFoundError, match="otel_letta_no_such_module"):
            __import__("otel_letta_no_such_module")
    finally:
        sys.meta_path[:] = before
