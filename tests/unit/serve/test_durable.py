"""What was answered with 200 survives the process, and is reported once."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from otel_letta.otlp import json_request
from otel_letta.report import ProgressReport, TaskStatus
from otel_letta.serve import intake as intake_module
from otel_letta.serve.server import listen
from otel_letta.serve.spool import OwnSpool
from otel_letta.store.choose import open_spool
from otel_letta.store.model import Spool
from otel_letta.testing import InMemoryLetta
from tests.support.otlp_sender import post, request_of, serving, span_of
from tests.support.program import Address
from tests.support.waiting import until

LONG = "1795946401500000000"


class Program:
    """``otel-letta serve`` as a process of its own."""

    def __init__(self, process: subprocess.Popen[str], port: int) -> None:
        self.process = process
        self.port = port

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(60)

    def stop(self) -> int:
        self.process.terminate()
        return self.process.wait(60)


@contextmanager
def program(letta: Address, agent: str, *arguments: str, **environ: str) -> Iterator[Program]:
    with listen("127.0.0.1", 0) as free:
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "otel_letta", "serve", "--port", str(port), *arguments],
        env={
            **os.environ,
            "PYTHONPATH": str(Path(__file__).parents[3]),
            "LETTA_BASE_URL": letta.base_url,
            "LETTA_AGENT_ID": agent,
            **({"LETTA_PASSWORD": letta.password} if letta.password else {}),
            "OTEL_LETTA_MESSAGE_INTERVAL": "0",
            **environ,
        },
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert until(lambda: _answers(port) or process.poll() is not None, 60)
        yield Program(process, port)
    finally:
        process.kill()
        process.communicate()


def _answers(port: int) -> bool:
    try:
        return post(port, "/v1/traces", b"{}").status in (200, 401)
    except OSError:
        return False


def ends(letta: InMemoryLetta, agent: str) -> list[str]:
    return [report["task"] for report in letta.reports(agent) if report["status"] != "in_progress"]


def test_what_a_killed_receiver_had_taken_in_is_reported_by_the_next_one(
    letta: InMemoryLetta, agent: str, tmp_path: Path
) -> None:
    spool = str(tmp_path / "bodies")
    part = span_of("part", 2, traceId=f"{1:032x}", parentSpanId=f"{1:016x}")  # waits for its parent
    with program(letta, agent, "--spool", spool) as first:
        assert post(first.port, "/v1/traces", request_of(part)).status == 200
        first.kill()
    assert ends(letta, agent) == []
    with program(letta, agent, "--spool", spool) as second:
        assert post(second.port, "/v1/traces", request_of(span_of("whole"))).status == 200
        assert until(lambda: ends(letta, agent), 60)
        assert second.stop() == 0
    assert ends(letta, agent) == ["whole"]  # the part was a step of it: the two processes' spans met


def test_of_spans_that_say_nothing_it_keeps_whose_places_matter(
    letta: InMemoryLetta, agent: str, tmp_path: Path
) -> None:
    spool = str(tmp_path / "bodies")
    between = {**span_of("between", 2, attributes=[], parentSpanId=f"{1:016x}"), "traceId": f"{1:032x}"}
    noise = [{**span_of("noise", number, attributes=[]), "traceId": f"{2:032x}"} for number in range(10, 100)]
    part = span_of("part", 3, traceId=f"{1:032x}", parentSpanId=f"{2:016x}")
    with program(letta, agent, "--spool", spool) as first:
        assert post(first.port, "/v1/traces", request_of(between, *noise)).status == 200
        assert _kept_kinds(Path(f"{spool}-1")) == []  # nobody would miss them
        assert post(first.port, "/v1/traces", request_of(part, *noise)).status == 200
        assert until(lambda: _kept_kinds(Path(f"{spool}-1")) == ["traces/json/zstd", "places"])
        first.kill()
    with program(letta, agent, "--spool", spool) as second:
        # The places are written once more, as something below them is read again.
        assert until(lambda: _kept_kinds(Path(f"{spool}-1")) == ["traces/json/zstd", "places"])
        assert post(second.port, "/v1/traces", request_of(span_of("whole"))).status == 200
        assert until(lambda: ends(letta, agent), 60)
        assert until(lambda: set(_kept_kinds(Path(f"{spool}-1"))) <= {"end"}, 60)
        assert second.stop() == 0
    assert ends(letta, agent) == ["whole"]  # the part is below it, and only the one between says so


NIGHTLY = span_of("nightly"), span_of("later part", 2, traceId=f"{2:032x}", parentSpanId=f"{9:016x}")
"""A task that is over, and a span that waits for its parent, so that their body stays in the spool."""


def _report_and_crash(letta: InMemoryLetta, agent: str, spool: str) -> None:
    with program(letta, agent, "--spool", spool) as first:
        assert post(first.port, "/v1/traces", request_of(*NIGHTLY)).status == 200
        assert until(lambda: ends(letta, agent) == ["nightly"], 60)
        assert until(lambda: _kept_ends(Path(f"{spool}-1")), 60)
        first.kill()


def test_an_end_that_was_reported_is_not_reported_again_after_a_crash(
    letta: InMemoryLetta, agent: str, tmp_path: Path
) -> None:
    spool, body = str(tmp_path / "bodies"), request_of(*NIGHTLY)
    _report_and_crash(letta, agent, spool)
    with program(letta, agent, "--spool", spool) as second:
        # Its other span still waits, so all of the body was taken in again; and its sender, which got no answer, comes.
        assert post(second.port, "/v1/traces", body).status == 200
        assert post(second.port, "/v1/traces", request_of(span_of("other", 5))).status == 200
        assert until(lambda: "other" in ends(letta, agent), 60)
        second.stop()
    assert ends(letta, agent).count("nightly") == 1


def test_an_end_that_was_delivered_and_not_noted_is_looked_for_in_the_agent_s_context(
    letta: InMemoryLetta, agent: str, tmp_path: Path
) -> None:
    """Whoever takes over a dead process's outbox delivers from it, and knows nothing of that process's spool."""
    spool = str(tmp_path / "bodies")
    _report_and_crash(letta, agent, spool)
    with _spool(tmp_path / "bodies-1") as kept:
        kept.settle([item.id for item in kept.unsettled() if item.kind == "end"])
    with program(letta, agent, "--spool", spool) as second:
        assert post(second.port, "/v1/traces", request_of(span_of("other", 5))).status == 200
        assert until(lambda: "other" in ends(letta, agent), 60)
        second.stop()
    assert ends(letta, agent).count("nightly") == 1


def test_with_an_outbox_a_crash_at_any_moment_loses_no_end_and_no_task_of_others(
    letta: InMemoryLetta, agent: str, tmp_path: Path
) -> None:
    outbox = {"OTEL_LETTA_OUTBOX": str(tmp_path / "outbox.db")}
    open_task = {
        "timeUnixNano": LONG,
        "eventName": "letta.task.progress",
        "traceId": f"{7:032x}",
        "spanId": f"{7:016x}",
        "attributes": [{"key": "letta.task.name", "value": {"stringValue": "goes on"}}],
    }
    letta.stop_listening()
    with program(letta, agent, **outbox) as first:
        assert post(first.port, "/v1/logs", request_of(open_task, logs=True)).status == 200
        assert post(first.port, "/v1/traces", request_of(span_of("away"))).status == 200
        assert until(lambda: _kept_ends(tmp_path / "outbox.db.spool-1"), 60)
        assert post(first.port, "/v1/traces", request_of(span_of("at once", 2))).status == 200
        first.kill()
    letta.resume_listening()
    with program(letta, agent, **outbox) as second:
        assert until(lambda: {"away", "at once"} <= set(ends(letta, agent)), 60)
        assert post(second.port, "/v1/traces", request_of(span_of("goes on", 7))).status == 200
        assert until(lambda: "goes on" in ends(letta, agent), 60)
        second.stop()
    assert sorted(ends(letta, agent)) == ["at once", "away", "goes on"]
    assert {report["status"] for report in letta.reports(agent)} <= {"completed", "in_progress"}


def test_an_instruction_survives_a_crash_and_is_taken_once(letta: InMemoryLetta, agent: str, tmp_path: Path) -> None:
    spool = str(tmp_path / "bodies")
    open_task = {
        "timeUnixNano": LONG,
        "eventName": "letta.task.progress",
        "attributes": [
            {"key": name, "value": {"stringValue": value}}
            for name, value in (("letta.task.id", "import"), ("letta.task.name", "Import"))
        ],
    }

    def taken(running: Program) -> list[str] | None:
        answer = httpx.get(f"http://127.0.0.1:{running.port}/api/tasks/import/instructions", timeout=60)
        return [each["text"] for each in answer.json()["instructions"]] if answer.status_code == 200 else None

    with program(letta, agent, "--spool", spool) as first:
        assert post(first.port, "/v1/logs", request_of(open_task, logs=True)).status == 200
        assert until(lambda: taken(first) == [], 60)
        for text in ("one", "two"):
            body = json.dumps({"action": "continue", "text": text}).encode()
            assert post(first.port, "/api/tasks/import/instructions", body).status == 200
        first.kill()
    with program(letta, agent, "--spool", spool) as second:
        found: list[str] = []
        assert until(lambda: found.extend(taken(second) or []) or found == ["one", "two"], 60)
        second.stop()
    with program(letta, agent, "--spool", spool) as third:
        assert until(lambda: taken(third) == [], 60)


@contextmanager
def _spool(path: Path) -> Iterator[Spool]:
    spool = open_spool(str(path))
    spool.open()
    try:
        yield spool
    finally:
        spool.close()


def _kept_ends(path: Path) -> bool:
    return "end" in _kept_kinds(path)


def _kept_kinds(path: Path) -> list[str]:
    with _spool(path) as spool:
        return [item.kind for item in spool.unsettled()]


def test_a_body_that_comes_again_when_more_of_it_matters_is_told_once(
    letta: InMemoryLetta, agent: str, tmp_path: Path
) -> None:
    """What is kept of it, and with it its hash, is another then."""
    plain = {**span_of("plain", 20, attributes=[]), "traceId": f"{2:032x}"}
    matters = span_of("other", 21, traceId=f"{2:032x}")
    with serving(letta.base_url, agent, spool=tmp_path / "bodies") as service:
        for body in (request_of(span_of("task"), plain), request_of(matters), request_of(span_of("task"), plain)):
            assert post(service.options.port, "/v1/traces", body).status == 200
            assert until(lambda: service.intake.feed.waiting() == 0)
        assert post(service.options.port, "/v1/traces", request_of(span_of("last", 30))).status == 200
        assert until(lambda: "last" in ends(letta, agent))
    assert sorted(ends(letta, agent)) == ["last", "other", "task"]


def test_bodies_that_have_come_are_all_read_before_the_first_is_written(
    letta: InMemoryLetta, agent: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    bodies = [request_of(span_of(f"task {number}", number)) for number in range(1, 6)]
    with serving(letta.base_url, agent, spool=tmp_path / "bodies") as service, ThreadPoolExecutor(1) as threads:
        intake = service.intake
        read, append = json_request.read_traces, intake.spool.append
        monkeypatch.setitem(
            intake_module._READERS, ("traces", True), lambda *args: [steps.append("read"), read(*args)][1]
        )
        monkeypatch.setattr(intake.spool, "append", lambda *args: [steps.append("write"), append(*args)][1])

        async def take_all() -> None:
            await asyncio.gather(*(intake.take_soon("traces", True, body, threads) for body in bodies))

        asyncio.run(take_all())
        assert steps[:10] == ["read"] * 5 + ["write"] * 5
        assert until(lambda: len(ends(letta, agent)) == 5)


def test_a_settled_body_leaves_the_spool(letta: InMemoryLetta, agent: str, tmp_path: Path) -> None:
    with serving(letta.base_url, agent, spool=tmp_path / "bodies") as service:
        assert post(service.options.port, "/v1/traces", request_of(span_of("done"))).status == 200
        assert until(lambda: ends(letta, agent) == ["done"])
        assert until(lambda: all(item.kind == "end" for item in service.intake.spool.unsettled()))
        waits = span_of("part", 2, traceId=f"{2:032x}", parentSpanId=f"{9:016x}")
        assert post(service.options.port, "/v1/traces", request_of(waits)).status == 200
        assert until(lambda: service.intake.feed.waiting() == 1)
        assert [item.kind for item in service.intake.spool.unsettled() if item.kind != "end"] == ["traces/json/zstd"]


def test_a_body_that_comes_again_is_kept_once_also_after_a_start(
    letta: InMemoryLetta, agent: str, tmp_path: Path
) -> None:
    waits = request_of(span_of("part", 2, parentSpanId=f"{9:016x}"))
    for _ in range(2):
        with serving(letta.base_url, agent, spool=tmp_path / "bodies", settings={"grace": 60.0}) as service:
            for _ in range(2):
                assert post(service.options.port, "/v1/traces", waits).status == 200
            kinds = [item.kind for item in service.intake.spool.unsettled()]
            assert [kind for kind in kinds if kind != "end"] == ["traces/json/zstd"]


def test_a_body_is_packed_on_the_disk_and_one_of_an_earlier_release_is_read_as_it_is(
    letta: InMemoryLetta, agent: str, tmp_path: Path
) -> None:
    body = request_of(*(span_of("waits", n, traceId=f"{n:032x}", parentSpanId=f"{99:016x}") for n in range(1, 100)))
    with serving(letta.base_url, agent, spool=tmp_path / "bodies") as service:
        assert post(service.options.port, "/v1/traces", body).status == 200
        (kept,) = service.intake.spool.unsettled()
        assert len(kept.body) < len(body) / 10
        service.intake.spool.append(
            "traces/json", request_of(span_of("as before", 200, traceId=f"{200:032x}"))
        ).result()
        service.intake.spool.append("traces/json/zstd", b"no frame").result()
        no_ends = (b"{}", b"[1]", b"\xff", b'["", "a", "b", []]')
        for no_end in no_ends:
            service.intake.spool.append("end", no_end).result()
    with serving(letta.base_url, agent, spool=tmp_path / "bodies") as service:
        assert until(lambda: "as before" in ends(letta, agent) and "waits" in ends(letta, agent), 30)
        assert not [item for item in service.intake.spool.unsettled() if item.body in (b"no frame", *no_ends)]


def test_ends_that_come_together_are_kept_together(letta: InMemoryLetta, agent: str, tmp_path: Path) -> None:
    spans = [span_of(f"task {n}", n, traceId=f"{n:032x}") for n in range(1, 51)]
    with serving(letta.base_url, agent, spool=tmp_path / "bodies") as service:
        all_have_come = threading.Event()
        service.intake._settler.submit(all_have_come.wait, 60)
        assert post(service.options.port, "/v1/traces", request_of(*spans)).status == 200
        assert until(lambda: len(service.intake.told._fresh) == 50)
        all_have_come.set()
        assert until(lambda: _ends_in(service.intake.spool) == 50)
        assert len([item for item in service.intake.spool.unsettled() if item.kind == "end"]) == 1
    with serving(letta.base_url, agent, spool=tmp_path / "bodies") as service:
        assert until(lambda: len(service.intake.told._earlier) == 50)


def test_an_end_is_not_noted_before_the_outbox_has_it(
    letta: InMemoryLetta, agent: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Noted only, and not delivered by a process that dies then, it would be lost."""
    settings = {"outbox": str(tmp_path / "outbox.db")}
    with serving(letta.base_url, agent, spool=tmp_path / "bodies", settings=settings) as service:
        intake = service.intake
        outbox = intake._handle.pipeline.desk.outbox
        assert outbox is not None
        save, may_go_on = outbox.save, threading.Event()

        def save_while_an_end_comes() -> None:
            monkeypatch.undo()
            save()
            intake._pass_on(ProgressReport(status=TaskStatus.COMPLETED, task_id="t-1"), lambda report: None)

        monkeypatch.setattr(outbox, "save", save_while_an_end_comes)
        intake._settler.submit(may_go_on.wait, 60)
        intake._settle_now(())
        assert _ends_in(intake.spool) == 0
        may_go_on.set()
        assert until(lambda: _ends_in(intake.spool) == 1)


def _ends_in(spool: Spool) -> int:
    return sum(len(item.body.splitlines()) for item in spool.unsettled() if item.kind == "end")


def test_a_full_spool_asks_senders_to_come_back(letta: InMemoryLetta, agent: str, tmp_path: Path) -> None:
    with serving(letta.base_url, agent, spool=tmp_path / "bodies", settings={"outbox_max_size": 1}) as service:
        port = service.options.port
        text = random.Random(1).randbytes(80_000).hex()  # half of it is left in the spool, which packs
        waits = [span_of(text, n, traceId=f"{n:032x}", parentSpanId=f"{99:016x}") for n in range(1, 20)]
        answers = [post(port, "/v1/traces", request_of(span)) for span in waits]
        refused = [answer for answer in answers if answer.status != 200]
        assert {answer.status for answer in refused} == {503}
        assert int(refused[0].headers["retry-after"]) > 0
        assert post(port, "/readyz", b"").status == 503
        assert post(port, "/healthz", b"").status == 200


def test_processes_have_spools_of_their_own_and_inherit_those_of_the_dead(tmp_path: Path) -> None:
    first, second = (OwnSpool(tmp_path / "s", open_spool) for _ in range(2))
    first.spool.append("traces/json", b"{}").result()
    assert (second.spool.unsettled(), second.orphans()) == ([], [])
    first.close()
    (orphan,) = second.orphans()
    assert [item.body for item in orphan.unsettled()] == [b"{}"]
    orphan.close()
    second.close()


@pytest.mark.skipif(sys.platform == "win32", reason="no such signals there")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_receiver_that_is_asked_to_stop_delivers_and_exits_with_0(
    letta: InMemoryLetta, agent: str, number: signal.Signals
) -> None:
    with program(letta, agent) as running:
        assert post(running.port, "/v1/traces", request_of(span_of("last"))).status == 200
        running.process.send_signal(number)
        assert running.process.wait(60) == 0
    assert ends(letta, agent) == ["last"]


def test_what_settles_after_the_stop_is_left_to_the_next_start(
    letta: InMemoryLetta, agent: str, tmp_path: Path
) -> None:
    """A body's writer, or the pipeline's thread, may come to it only then; neither may end for that."""
    with serving(letta.base_url, agent, spool=tmp_path / "bodies") as service:
        assert (
            post(service.options.port, "/v1/traces", request_of(span_of("part", parentSpanId=f"{9:016x}"))).status
            == 200
        )
        (kept,) = service.intake.spool.unsettled()
    service.intake._settle([kept.id])
    with serving(letta.base_url, agent, spool=tmp_path / "bodies") as service:
        assert kept.body in [item.body for item in service.intake.spool.unsettled()]


def test_a_task_that_goes_on_elsewhere_does_not_fail_because_the_receiver_stops(
    letta: InMemoryLetta, agent: str, caplog: pytest.LogCaptureFixture
) -> None:
    progress = {
        "timeUnixNano": LONG,
        "eventName": "letta.task.progress",
        "traceId": f"{7:032x}",
        "spanId": f"{7:016x}",
        "attributes": [{"key": "letta.task.progress", "value": {"doubleValue": 0.5}}],
    }
    with serving(letta.base_url, agent, settings={"delivery": "messages"}) as service:
        assert post(service.options.port, "/v1/logs", request_of(progress, logs=True)).status == 200
        assert until(lambda: letta.reports(agent))
        operation = {"key": "gen_ai.operation.name", "value": {"stringValue": "execute_tool"}}
        tool = span_of("a tool of an agent", 2, traceId=f"{8:032x}", parentSpanId=f"{9:016x}", attributes=[operation])
        assert post(service.options.port, "/v1/traces", request_of(tool)).status == 200
        assert until(lambda: len(letta.reports(agent)) == 2)
    assert service.delivered
    assert ends(letta, agent) == []
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
