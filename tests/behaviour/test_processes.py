"""Forks, process pools and the end of a program: every task is told once, by the process that ends it.

The programs run as processes of their own, with a time limit, and report to an `InMemoryLetta` of this one.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

from otel_letta.testing import InMemoryLetta

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")

LIMIT = 30.0
"""Seconds after which a program counts as hanging."""

PREAMBLE = """
import atexit, os, sys, threading, time
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
from otel_letta import LettaSpanExporter, LettaSpanProcessor

TASK = {"letta.chat.id": "chat-1"}
provider = TracerProvider()
processor = LettaSpanProcessor()
provider.add_span_processor(processor)
tracer = provider.get_tracer("program")

def task(name, **attributes):
    return tracer.start_as_current_span(name, attributes={**TASK, **attributes})

def until(predicate):
    deadline = time.monotonic() + 20
    while not predicate():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)

def in_flight():
    return sum(lane["in_flight"] for lane in processor.stats()["lanes"].values())
"""

NO_THREADS_AT_EXIT = """
# What Python 3.12 does: registered first, so it runs last before the interpreter's own end, or first if asked for.
def no_more_threads():
    def start(self):
        raise RuntimeError("can't create new thread at interpreter shutdown")
    threading.Thread.start = start
"""


class Programs:
    def __init__(self, letta: InMemoryLetta, folder: Path) -> None:
        self.letta = letta
        self.agent = letta.create_agent()
        self._folder = folder
        self._started: list[subprocess.Popen[str]] = []

    def start(self, code: str, **environment: str) -> subprocess.Popen[str]:
        script = self._folder / f"program{len(self._started)}.py"
        script.write_text(textwrap.dedent(PREAMBLE) + textwrap.dedent(code))
        settings = {
            "LETTA_BASE_URL": self.letta.base_url,
            "LETTA_AGENT_ID": self.agent,
            "OTEL_LETTA_DELIVERY": "messages",
            "OTEL_LETTA_POLL_INTERVAL": "0.02",
        }
        process = subprocess.Popen(
            [sys.executable, "-W", "ignore::DeprecationWarning", str(script)],
            env=os.environ | settings | environment,
            cwd=self._folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._started.append(process)
        return process

    def finish(self, process: subprocess.Popen[str], *, exit_code: int = 0) -> str:
        """Wait for its end; returns what it wrote to stderr."""
        _, errors = process.communicate(timeout=LIMIT)
        assert process.returncode == exit_code, errors
        assert "Exception ignored" not in errors
        return errors

    def run(self, code: str, *, exit_code: int = 0, **environment: str) -> str:
        errors = self.finish(self.start(code, **environment), exit_code=exit_code)
        assert exit_code or "Traceback" not in errors, errors
        return errors

    def kill(self) -> None:
        """End whatever is left, children of a program that hangs included."""
        for process in self._started:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    stream.close()

    def ends(self) -> Counter[tuple[str, str]]:
        reports = self.letta.reports(self.agent)
        return Counter((r["task"], r["status"]) for r in reports if r["status"] != "in_progress")

    def content_of(self, name: str) -> str:
        (content,) = (
            r["content"] for r in self.letta.reports(self.agent) if r["task"] == name and r["status"] != "in_progress"
        )
        return str(content)


@pytest.fixture
def programs(letta: InMemoryLetta, tmp_path: Path) -> Iterator[Programs]:
    programs = Programs(letta, tmp_path)
    yield programs
    programs.kill()


def _line(stream: IO[str] | None) -> str:
    assert stream is not None
    return stream.readline().strip()


# -- fork -----------------------------------------------------------------------------------------------------------


@needs_fork
@pytest.mark.parametrize("ending", ["fall out of the block", "sys.exit(0)", "flush and os._exit"])
def test_a_task_that_is_open_at_fork_is_told_by_the_parent_alone(programs: Programs, ending: str) -> None:
    programs.run(
        """
        with task("the parent's"):
            child = os.fork()
            if not child:
                with task("the child's", **{"letta.task.id": "c"}):
                    pass
                if ENDING == "sys.exit(0)":
                    sys.exit(0)
                if ENDING == "flush and os._exit":
                    assert processor.force_flush()
                    os._exit(0)
        if child:
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        """.replace("ENDING", repr(ending))
    )
    assert programs.ends() == {("the parent's", "completed"): 1, ("the child's", "completed"): 1}


@needs_fork
def test_a_child_that_exits_without_a_word_takes_nothing_of_the_parents_along(programs: Programs) -> None:
    programs.run(
        """
        with task("first"):
            pass
        with task("second"):
            if not os.fork():
                os._exit(0)
            os.wait()
        """
    )
    assert programs.ends() == {("first", "completed"): 1, ("second", "completed"): 1}


@needs_fork
def test_a_progress_that_a_child_sets_on_the_parents_span_is_not_told(programs: Programs) -> None:
    programs.run(
        """
        with task("the parent's") as span:
            child = os.fork()
            if not child:
                span.set_attribute("letta.task.content", "said by the child")
                with task("the child's", **{"letta.task.id": "c"}):
                    assert processor.force_flush()
        if child:
            os.waitpid(child, 0)
        """
    )
    assert "said by the child" not in str(programs.letta.messages(programs.agent))
    assert programs.ends() == {("the parent's", "completed"): 1, ("the child's", "completed"): 1}


@needs_fork
@pytest.mark.parametrize("wrapped_in", ["SimpleSpanProcessor", "BatchSpanProcessor"])
def test_an_exporter_alone_keeps_parent_and_child_apart_too(programs: Programs, wrapped_in: str) -> None:
    programs.run(
        f"""
        provider = TracerProvider()
        provider.add_span_processor({wrapped_in}(LettaSpanExporter()))
        tracer = provider.get_tracer("program")
        with task("the parent's"):
            child = os.fork()
            if not child:
                with task("the child's", **{{"letta.task.id": "c"}}):
                    pass
        if child:
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        """
    )
    assert programs.ends() == {("the parent's", "completed"): 1, ("the child's", "completed"): 1}


@needs_fork
@pytest.mark.parametrize("wrapped_in", ["SimpleSpanProcessor", "BatchSpanProcessor"])
def test_a_span_of_a_child_may_have_started_before_the_fork(programs: Programs, wrapped_in: str) -> None:
    """Work that waited in a queue gets the time when it was put there."""
    programs.run(
        f"""
        provider = TracerProvider()
        provider.add_span_processor({wrapped_in}(LettaSpanExporter()))
        tracer = provider.get_tracer("program")
        queued = time.time_ns()
        with tracer.start_as_current_span("plain"), task("the parent's"), tracer.start_as_current_span("inner"):
            child = os.fork()
            if not child:
                from opentelemetry.context import Context
                tracer.start_span("queued", context=Context(), start_time=queued, attributes=TASK).end()
                tracer.start_span("step", start_time=queued, attributes={{"letta.task.id": "x"}}).end()
        if child:
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        """
    )
    assert programs.ends() == {("the parent's", "completed"): 1, ("queued", "completed"): 1, ("step", "completed"): 1}


# -- forks in C, which Python does not hear of: uWSGI's default ------------------------------------------------------


@needs_fork
@pytest.mark.parametrize(
    ("kind", "ending"),
    [
        ("processor", "sys.exit(0)"),
        *((kind, "provider.force_flush(), component.force_flush(), os._exit(0)")
          for kind in ("processor", "SimpleSpanProcessor", "BatchSpanProcessor")),
    ],
)  # fmt: skip
def test_a_child_of_a_fork_in_c_tells_its_own_tasks(programs: Programs, kind: str, ending: str) -> None:
    """PyDLL keeps the interpreter's lock, as an embedding program does."""
    programs.run(
        f"""
        import ctypes
        component = processor
        if {kind!r} != "processor":
            component = LettaSpanExporter()
            provider = TracerProvider()
            provider.add_span_processor(SimpleSpanProcessor(component) if "Simple" in {kind!r} else
                                        BatchSpanProcessor(component))
            tracer = provider.get_tracer("program")
        with task("warm up"):
            pass
        provider.force_flush()
        assert component.force_flush()
        with task("the parent's"):
            time.sleep(0.05)
            child = ctypes.PyDLL(None).fork()
            if not child:
                with tracer.start_as_current_span("request"), task("the child's", **{{"letta.task.id": "c"}}):
                    pass
                {ending}
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        """
    )
    assert programs.ends() == {(name, "completed"): 1 for name in ("warm up", "the parent's", "the child's")}


@needs_fork
def test_prefork_workers_tell_their_own_tasks(programs: Programs) -> None:
    """As gunicorn does: a master with threads and an open connection forks workers, which live on their own."""
    programs.run(
        """
        with task("warm up"):
            pass
        assert processor.force_flush()
        children = []
        for worker in range(4):
            child = os.fork()
            if not child:
                for number in range(3):
                    with task(f"worker {worker} task {number}") as span:
                        span.set_attribute("letta.task.progress", 0.5)
                sys.exit(0)
            children.append(child)
        with task("the master's"):
            for child in children:
                assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        """
    )
    expected = {(f"worker {w} task {n}", "completed"): 1 for w in range(4) for n in range(3)}
    assert programs.ends() == expected | {("warm up", "completed"): 1, ("the master's", "completed"): 1}
    assert programs.letta.in_flight_max(programs.agent) == 1


@needs_fork
def test_a_fork_of_a_fork_is_a_process_like_any_other(programs: Programs) -> None:
    programs.run(
        """
        with task("0"):
            for generation in (1, 2):
                child = os.fork()
                if child:
                    os.waitpid(child, 0)
                    break
                with task(str(generation), **{"letta.task.id": str(generation)}):
                    pass
        """
    )
    assert programs.ends() == {(name, "completed"): 1 for name in "012"}


@needs_fork
def test_a_fork_while_a_report_is_on_its_way_sends_it_once(programs: Programs) -> None:
    with programs.letta.hold(programs.agent) as release:
        process = programs.start(
            """
            with task("before the fork"):
                pass
            until(lambda: in_flight() == 1)
            child = os.fork()
            if not child:
                with task("the child's"):
                    pass
                print("forked", flush=True)
                sys.exit(0)
            os.waitpid(child, 0)
            """,
            OTEL_LETTA_SHUTDOWN_TIMEOUT="20",
        )
        assert _line(process.stdout) == "forked"
        release()
        programs.finish(process)
    assert programs.ends() == {("before the fork", "completed"): 1, ("the child's", "completed"): 1}
    assert programs.letta.in_flight_max(programs.agent) == 1


@needs_fork
def test_a_fork_from_a_thread_while_others_report_does_not_hang(programs: Programs) -> None:
    """Locks that other threads hold at the moment of the fork must not be held for ever in the child."""
    programs.run(
        """
        stop = threading.Event()

        def busy():
            while not stop.wait(0.01):
                with task("busy", **{"letta.task.id": "busy"}) as span:
                    span.set_attribute("letta.task.progress", 0.5)
                processor.stats()

        threads = [threading.Thread(target=busy) for _ in range(4)]
        for thread in threads:
            thread.start()
        for number in range(5):
            child = os.fork()
            if not child:
                with task(f"child {number}"):
                    pass
                done = processor.force_flush(15_000)
                os._exit(0 if done else 9)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        stop.set()
        for thread in threads:
            thread.join()
        """,
        OTEL_LETTA_WAKE_BUDGET="100000",
    )
    ends = programs.ends()
    assert {name: number for (name, _), number in ends.items() if name != "busy"} == {
        f"child {number}": 1 for number in range(5)
    }


# -- multiprocessing ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [pytest.param("fork", marks=needs_fork), "spawn", "forkserver"])
def test_children_of_multiprocessing_tell_their_tasks(programs: Programs, method: str) -> None:
    """They end without ``atexit`` (fork and forkserver), so nobody shuts their provider down."""
    programs.run(
        f"""
        import multiprocessing

        def work(worker):
            for number in range(3):
                with task(f"worker {{worker}} task {{number}}"):
                    pass

        if __name__ == "__main__":
            context = multiprocessing.get_context({method!r})
            with task("the parent's"):
                children = [context.Process(target=work, args=(worker,)) for worker in range(2)]
                for child in children:
                    child.start()
                for child in children:
                    child.join()
                    assert child.exitcode == 0
        """
    )
    expected = {(f"worker {w} task {n}", "completed"): 1 for w in range(2) for n in range(3)}
    assert programs.ends() == expected | {("the parent's", "completed"): 1}


@needs_fork
def test_a_task_that_a_child_of_multiprocessing_leaves_open_failed(programs: Programs) -> None:
    programs.run(
        """
        import multiprocessing

        def work():
            global span
            span = tracer.start_span("left open", attributes=TASK)

        child = multiprocessing.get_context("fork").Process(target=work)
        child.start()
        child.join()
        assert child.exitcode == 0
        """
    )
    assert programs.ends() == {("left open", "failed"): 1}
    assert "shut down" in programs.content_of("left open")


@needs_fork
def test_a_thread_that_outlives_the_work_of_its_child_process_may_end_its_task(programs: Programs) -> None:
    programs.run(
        """
        import multiprocessing

        def slow():
            with task("in a thread"):
                started.set()
                time.sleep(0.3)  # the work of the child is long done
            processor.force_flush()

        def work():
            global started
            started = threading.Event()
            threading.Thread(target=slow).start()
            started.wait()

        child = multiprocessing.get_context("fork").Process(target=work)
        child.start()
        child.join()
        """
    )
    assert programs.ends() == {("in a thread", "completed"): 1}


@needs_fork
def test_a_process_pool_tells_the_tasks_of_its_workers(programs: Programs) -> None:
    programs.run(
        """
        import multiprocessing
        from concurrent.futures import ProcessPoolExecutor

        def work(number):
            with task(f"task {number}"):
                if number == 3:
                    raise ValueError("row 3")

        with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("fork")) as pool:
            futures = [pool.submit(work, number) for number in range(6)]
            assert [type(future.exception()) for future in futures].count(ValueError) == 1
        """
    )
    assert programs.ends() == {(f"task {n}", "failed" if n == 3 else "completed"): 1 for n in range(6)}


# -- the end of a program -------------------------------------------------------------------------------------------


def test_what_is_unsent_at_exit_is_delivered(programs: Programs) -> None:
    programs.run(
        """
        for number in range(30):
            with task(f"task {number}"):
                pass
        """
    )
    assert programs.ends() == {(f"task {n}", "completed"): 1 for n in range(30)}


@pytest.mark.parametrize("threads", ["threads can start", "no thread can start"])
@pytest.mark.parametrize("kind", ["processor", "exporter"])
def test_a_task_of_the_very_last_moment_is_delivered(programs: Programs, kind: str, threads: str) -> None:
    """Python 3.12 starts no thread any more in ``atexit``; elsewhere that rule is put in by hand."""
    programs.run(
        NO_THREADS_AT_EXIT
        + f"""
if {kind!r} == "exporter":
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(LettaSpanExporter()))
    tracer = provider.get_tracer("program")

@atexit.register
def last_moment():
    if {threads!r} == "no thread can start":
        no_more_threads()
    with task("last moment"):
        pass
"""
    )
    assert programs.ends() == {("last moment", "completed"): 1}


@pytest.mark.parametrize("delivery", ["auto", "messages", "board"])
def test_what_is_unsent_is_delivered_even_if_no_thread_can_start(programs: Programs, delivery: str) -> None:
    programs.run(
        NO_THREADS_AT_EXIT
        + """
no_more_threads()
with task("task 1"):
    pass
with task("task 2"):
    pass
""",
        OTEL_LETTA_DELIVERY=delivery,
    )
    told = programs.ends() if delivery != "board" else programs.letta.board(programs.agent)
    assert told is not None
    for name in ("task 1", "task 2"):
        assert (name, "completed") in told if isinstance(told, Counter) else f"{name}" in told


def test_a_task_that_is_open_at_exit_failed(programs: Programs) -> None:
    programs.run('span = tracer.start_span("left open", attributes=TASK)')
    assert programs.ends() == {("left open", "failed"): 1}
    assert "shut down" in programs.content_of("left open")


def test_the_exit_code_is_the_programs_own_and_is_told(programs: Programs) -> None:
    programs.run(
        """
        with task("task"):
            sys.exit(3)
        """,
        exit_code=3,
    )
    assert programs.content_of("task") == "Task failed: the program exited with code 3"


def test_an_exception_that_ends_the_program_is_told_and_shown_as_ever(programs: Programs) -> None:
    errors = programs.run(
        """
        with task("task"):
            raise ValueError("bad row")
        """,
        exit_code=1,
    )
    assert errors.rstrip().endswith("ValueError: bad row")
    assert programs.content_of("task") == "Task failed: ValueError: bad row"


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGINT to one process there")
def test_ctrl_c_is_told(programs: Programs, ctrl_c: None) -> None:
    process = programs.start(
        """
        with task("task"):
            print("working", flush=True)
            while True:  # a signal right before a wait without end would be seen after it
                time.sleep(0.01)
        """
    )
    assert _line(process.stdout) == "working"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=LIMIT)
    assert process.returncode in (-signal.SIGINT, 1)
    assert errors.rstrip().endswith("KeyboardInterrupt")
    assert programs.content_of("task") == "Task failed: interrupted (Ctrl-C)"


def test_ends_that_wait_in_a_daemon_thread_are_not_lost_at_exit(programs: Programs) -> None:
    """The turn that runs at exit is waited for, and what queued behind it follows."""
    with programs.letta.hold(programs.agent) as release:
        process = programs.start(
            """
            with task("first"):
                pass
            until(lambda: in_flight() == 1)
            with task("second"):
                pass
            atexit.register(print, "exiting", flush=True)
            """,
            OTEL_LETTA_SHUTDOWN_TIMEOUT="20",
        )
        assert _line(process.stdout) == "exiting"
        release()
        programs.finish(process)
    assert programs.ends() == {("first", "completed"): 1, ("second", "completed"): 1}


WORK = """
for number in range(3):
    with task(f"task {number}"):
        pass
span = tracer.start_span("left open", attributes=TASK)
"""


@pytest.mark.parametrize("delivery", ["auto", "messages", "board"])
def test_exit_does_not_wait_for_a_server_that_is_gone(programs: Programs, delivery: str) -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))  # bound, not listening: connections are refused
        url = f"http://127.0.0.1:{reserved.getsockname()[1]}"
        began = time.monotonic()
        errors = programs.run(WORK, LETTA_BASE_URL=url, OTEL_LETTA_SHUTDOWN_TIMEOUT="0.5", OTEL_LETTA_DELIVERY=delivery)
    assert time.monotonic() - began < 15
    assert "Could not connect to Letta API" in errors


@pytest.mark.parametrize("delivery", ["auto", "messages", "board"])
def test_exit_does_not_wait_for_a_server_that_hangs(programs: Programs, delivery: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as hole:  # accepts and never answers
        url = f"http://127.0.0.1:{hole.getsockname()[1]}"
        began = time.monotonic()
        programs.run(WORK, LETTA_BASE_URL=url, OTEL_LETTA_SHUTDOWN_TIMEOUT="0.5", OTEL_LETTA_DELIVERY=delivery)
    assert time.monotonic() - began < 15


@pytest.mark.parametrize("delivery", ["auto", "messages", "board"])
def test_exit_does_not_wait_for_a_server_that_hangs_even_if_no_thread_can_start(
    programs: Programs, delivery: str
) -> None:
    """Then the requests go out on the program's own thread, which would hang with them."""
    with socket.create_server(("127.0.0.1", 0)) as hole:
        url = f"http://127.0.0.1:{hole.getsockname()[1]}"
        began = time.monotonic()
        programs.run(
            NO_THREADS_AT_EXIT + "\nno_more_threads()\n" + WORK,
            LETTA_BASE_URL=url,
            OTEL_LETTA_SHUTDOWN_TIMEOUT="0.5",
            OTEL_LETTA_DELIVERY=delivery,
        )
    assert time.monotonic() - began < 15


def test_exit_does_not_wait_for_a_turn_that_takes_minutes(programs: Programs) -> None:
    with programs.letta.hold(programs.agent):
        began = time.monotonic()
        programs.run(WORK, OTEL_LETTA_SHUTDOWN_TIMEOUT="0.5")
        assert time.monotonic() - began < 15


# -- what the agent answers ------------------------------------------------------------------------------------------

ANSWERED = """
def on_answer(report, answer):
    print(os.getpid() == main, report.name, report.status, answer.text, flush=True)

main = os.getpid()
provider = TracerProvider()
processor = LettaSpanProcessor(on_answer=on_answer)
provider.add_span_processor(processor)
tracer = provider.get_tracer("program")
"""


def _printed(programs: Programs, code: str) -> list[str]:
    process = programs.start(ANSWERED + textwrap.dedent(code))
    out, errors = process.communicate(timeout=LIMIT)
    assert process.returncode == 0, errors
    assert "Traceback" not in errors, errors
    return [line for line in out.splitlines() if "in_progress" not in line]


@pytest.mark.parametrize("threads", ["threads can start", "no thread can start"])
def test_the_exit_waits_for_who_gets_the_answer(programs: Programs, threads: str) -> None:
    programs.letta.answer_next("well done", times=None)
    lines = _printed(
        programs,
        NO_THREADS_AT_EXIT
        + f"""
@atexit.register
def last_moment():
    if {threads!r} == "no thread can start":
        no_more_threads()
    with task("last moment"):
        pass
""",
    )
    assert lines == ["True last moment completed well done"]


@needs_fork
def test_parent_and_child_get_the_answers_to_their_own_reports(programs: Programs) -> None:
    programs.letta.answer_next("well done", times=None)
    lines = _printed(
        programs,
        """
        with task("before"):
            pass
        assert processor.force_flush()
        until(lambda: processor.stats()["answers"])
        if os.fork() == 0:
            with task("child"):
                pass
            provider.shutdown()
            os._exit(0)
        assert os.wait()[1] == 0
        with task("parent"):
            pass
        """,
    )
    assert sorted(lines) == [
        "False child completed well done",
        "True before completed well done",
        "True parent completed well done",
    ]
