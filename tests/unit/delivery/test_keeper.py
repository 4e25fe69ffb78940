"""The block of a board: who writes it, how often, and what happens when it cannot be written."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from otel_letta.delivery.desk import Desk
from otel_letta.delivery.keeper import BoardKeeper
from otel_letta.delivery.stats import Stats
from otel_letta.delivery.worker import Crew
from otel_letta.letta.rest import RestTransport
from otel_letta.report import ProgressReport
from otel_letta.runtime.deadline import Deadline
from otel_letta.runtime.locks import HostLock
from otel_letta.settings import Settings
from otel_letta.testing import InMemoryLetta
from tests.support.fake_transport import Clock, end, progress

# -- the keeper ---------------------------------------------------------------------------------------------------


class Keeper(BoardKeeper):
    """A keeper with a lock of its own, and a clock that the test moves."""

    def __init__(self, server: InMemoryLetta, agent: str, clock: Clock | None = None, **options: Any) -> None:
        self.clock = clock or Clock()
        self.handed_back: list[list[ProgressReport]] = []
        self.stats = Stats()
        settings = Settings.resolve(base_url=server.base_url, agent_id=agent, **options)
        self.letta = RestTransport(settings)
        crew = Crew(self.clock)
        self.settled = crew.settled
        super().__init__(
            agent,
            self.letta,
            settings,
            self.stats,
            crew,
            self.handed_back.append,
        )

    def report(self, *reports: ProgressReport) -> None:
        with self._lock:
            for report in reports:
                self.put(report)

    def flush(self) -> None:
        with self._lock:
            self.flush_soon()
        self.wait()

    def wait(self) -> None:
        """Until nothing is unwritten."""
        with self._lock:
            assert self.settled.wait_for(lambda: not self.has_pending(0) and not self.busy, 60), "still unwritten"

    def look(self) -> None:
        """Let it see that the clock moved."""
        with self._lock:
            self.wake()

    def idle(self) -> None:
        """Until it has nothing to do just now."""
        with self._lock:
            assert self.settled.wait_for(lambda: not self.busy and self._next_job(self.clock())[0] is None, 60)

    @property
    def writes(self) -> int:
        return int(self.stats.snapshot()["board_writes"])

    def shut(self) -> None:
        with self._lock:
            self.flush_soon(closing=True)
        self.wait()
        with self._lock:
            self.stop()
        self.letta.close()

    def crash(self) -> None:
        """What is left when the process is killed: the lock is free, nothing else was said."""
        with self._lock:
            self.stop()
            self._release()
        self.letta.close()


@pytest.fixture
def agent(server: InMemoryLetta) -> str:
    return server.create_agent()


@pytest.fixture
def keep(server: InMemoryLetta, agent: str) -> Iterator[Callable[..., Keeper]]:
    made: list[Keeper] = []

    def make(**options: Any) -> Keeper:
        made.append(Keeper(server, agent, **options))
        return made[-1]

    yield make
    for keeper in made:
        keeper.crash()


def block(server: InMemoryLetta, agent: str, label: str = "task_progress") -> Any:
    with server._world.changed:
        found = server._world.agents[agent].block(label)
        assert found is not None, f"no block {label}"
        return found


def patches(server: InMemoryLetta) -> list[Any]:
    return [r for r in server.requests if r.method == "PATCH" and r.path.startswith("/v1/blocks/")]


def test_a_missing_block_is_created_attached_marked_as_ours_and_read_only_for_the_agent(
    server: InMemoryLetta, agent: str, keep: Callable[..., Keeper]
) -> None:
    keep().report(progress("Refactor", 0.5))
    assert server.wait_for(lambda: "50% Refactor" in (server.board(agent) or ""))

    made = block(server, agent)
    assert made.read_only is True and made.limit == 5_000
    assert "no reply is needed" in made.description
    assert set(made.metadata) == {"otel_letta"}
    assert "Refactor" in server.context(agent)[0]  # the agent sees it in its prompt
    assert server.turns == 0


def test_a_quick_change_waits_for_the_interval_and_slow_ones_do_not(
    server: InMemoryLetta, agent: str, keep: Callable[..., Keeper]
) -> None:
    keeper = keep()
    keeper.report(progress("a", 0.1))
    keeper.wait()
    keeper.report(progress("a", 0.2))
    keeper.clock.advance(14.9)
    keeper.look()
    keeper.idle()
    assert keeper.writes == 1

    keeper.report(progress("a", 0.3))
    keeper.clock.advance(0.2)
    keeper.look()
    keeper.wait()
    assert keeper.writes == 2 and "30%" in (server.board(agent) or "")

    keeper.clock.advance(100)
    keeper.report(progress("a", 0.4))
    keeper.wait()
    assert keeper.writes == 3


def test_nothing_is_written_when_nothing_changed(keep: Callable[..., Keeper]) -> None:
    keeper = keep()
    keeper.report(progress("a", 0.1, "x"))
    keeper.wait()
    keeper.clock.advance(100)
    keeper.report(progress("a", 0.1, "x"))
    keeper.look()
    keeper.idle()
    assert keeper.writes == 1


def test_after_new_settings_with_another_address_the_board_stands_at_that_server(
    server: InMemoryLetta, agent: str, keep: Callable[..., Keeper]
) -> None:
    with InMemoryLetta() as other:
        other.create_agent(agent_id=agent)
        keeper = keep()
        keeper.report(progress("a", 0.1))
        keeper.wait()
        keeper.letta.use(Settings.resolve(base_url=other.base_url, agent_id=agent))
        keeper.report(progress("a", 0.2))
        keeper.flush()
        assert "10%" in (server.board(agent) or "") and "20%" in (other.board(agent) or "")
        # Under the lock that any process takes for that server's board.
        lock = HostLock(f"board {other.base_url} {block(other, agent).id}")
        assert not lock.try_acquire()
        keeper.crash()
        assert lock.try_acquire()
        lock.release()


def test_a_flush_does_not_wait_for_the_interval(server: InMemoryLetta, agent: str, keep: Callable[..., Keeper]) -> None:
    keeper = keep()
    keeper.report(progress("a", 0.1))
    keeper.wait()
    keeper.report(progress("a", 0.2))
    keeper.flush()
    assert "20%" in (server.board(agent) or "")


def test_a_30_minute_task_with_1_000_updates_costs_no_turn_and_a_write_every_15_seconds_at_most(
    server: InMemoryLetta, agent: str, keep: Callable[..., Keeper]
) -> None:
    keeper = keep()
    for number in range(1_000):
        keeper.report(progress("a", number / 1_000))
        if number % 10 == 0:
            keeper.look()
            keeper.idle()
        keeper.clock.advance(1.8)
    keeper.report(end("a"))
    keeper.flush()
    assert server.turns == 0
    assert 50 <= len(patches(server)) <= 122


@pytest.mark.parametrize("path", ["/v1/blocks/block-", "/core-memory/blocks$"])
def test_a_conflict_is_retried_on_the_same_block(
    server: InMemoryLetta, agent: str, keep: Callable[..., Keeper], path: str, caplog: pytest.LogCaptureFixture
) -> None:
    server.fail_next(409, {"detail": "CONFLICT: Block was updated by another transaction."}, path=path)
    keeper = keep()
    keeper.report(progress("a", 0.1))
    assert server.wait_for(lambda: any(path.rstrip("$") in r.path for r in server.requests))
    keeper.idle()
    keeper.clock.advance(0.6)
    keeper.look()
    keeper.wait()
    assert "10%" in (server.board(agent) or "")
    assert server.board(agent, "task_progress_2") is None
    assert not [r for r in caplog.records if r.levelno >= logging.ERROR]  # a conflict is nobody's mistake


def test_a_flush_survives_a_conflict(server: InMemoryLetta, agent: str, keep: Callable[..., Keeper]) -> None:
    keeper = keep()
    keeper.report(progress("a", 0.1))
    keeper.wait()
    server.fail_next(409, path="/v1/blocks/")
    keeper.report(progress("a", 0.2))
    with keeper._lock:
        keeper.flush_soon()
    assert server.wait_for(lambda: len(patches(server)) == 2)
    keeper.idle()
    keeper.clock.advance(0.6)  # not the 15 s of the interval
    keeper.look()
    keeper.wait()
    assert "20%" in (server.board(agent) or "")


def test_endless_conflicts_are_not_hammered(server: InMemoryLetta, keep: Callable[..., Keeper]) -> None:
    server.fail_next(409, times=None, path="/v1/blocks/block-", method="PATCH")
    keeper = keep()
    keeper.report(progress("a", 0.1))
    for _ in range(200):  # 100 s
        keeper.look()
        keeper.idle()
        keeper.clock.advance(0.5)
    assert 5 <= len(patches(server)) <= 12


def test_a_label_taken_meanwhile_by_somebody_else_gives_a_suffix(
    server: InMemoryLetta, agent: str, keep: Callable[..., Keeper]
) -> None:
    server.fail_next(409, {"detail": "duplicate key [SQL: ...]"}, path="/attach/")
    keeper = keep()
    keeper.report(progress("a", 0.1))
    keeper.wait()
    assert server.board(agent) is None and "10%" in (server.board(agent, "task_progress_2") or "")
    with server._world.changed:
        assert len(server._world.blocks) == 1  # no orphan


def test_a_deleted_block_is_made_again(server: InMemoryLetta, agent: str, keep: Callable[..., Keeper]) -> None:
    keeper = keep()
    keeper.report(progress("a", 0.1))
    keeper.wait()
    old = block(server, agent).id
    with server._world.changed:
        del server._world.blocks[old]
        server._world.agents[agent].blocks.clear()
    keeper.report(progress("a", 0.2))
    keeper.clock.advance(16)
    keeper.look()
    assert server.wait_for(lambda: len(patches(server)) == 2)
    keeper.idle()
    keeper.clock.advance(1)
    keeper.look()
    keeper.wait()
    assert "20%" in (server.board(agent) or "") and block(server, agent).id != old


def test_a_foreign_block_is_never_written_and_the_log_says_so_once(
    server: InMemoryLetta, agent: str, keep: Callable[..., Keeper], caplog: pytest.LogCaptureFixture
) -> None:
    theirs = add_block(server, agent, value="my own notes")
    keeper = keep()
    for share in (0.1, 0.2):
        keeper.report(progress("a", share))
        keeper.flush()
    assert theirs.value == "my own notes" and theirs.metadata == {}
    assert "20%" in (server.board(agent, "task_progress_2") or "")
    assert caplog.text.count("did not make") == 1


def add_block(server: InMemoryLetta, agent: str, label: str = "task_progress", **fields: Any) -> Any:
    from otel_letta.testing.world import Block as _Block

    with server._world.changed:
        made = _Block(label=label, **fields)
        server._world.blocks[made.id] = made
        server._world.agents[agent].blocks.append(made)
    return made


@pytest.mark.parametrize("mark", [None, "yes", [], 7])
def test_a_mark_of_the_wrong_form_is_not_ours(
    server: InMemoryLetta, agent: str, keep: Callable[..., Keeper], mark: Any
) -> None:
    theirs = add_block(server, agent, value="notes", metadata={"otel_letta": mark})
    keeper = keep()
    keeper.report(progress("a", 0.1))
    keeper.wait()
    assert theirs.value == "notes"


def test_the_limit_of_an_existing_smaller_block_is_respected(
    server: InMemoryLetta, agent: str, keep: Callable[..., Keeper]
) -> None:
    keeper = keep()
    keeper.report(progress("a"))
    keeper.wait()
    keeper.shut()
    block(server, agent).limit = 300
    again = keep()
    again.report(*(progress(f"t{n}", 0.5, "x" * 100) for n in range(20)))
    again.wait()
    text = server.board(agent) or ""
    assert len(text) <= 300 and "In progress: 20" in text


def test_a_second_writer_takes_a_suffix_and_both_are_shown(
    server: InMemoryLetta, agent: str, keep: Callable[..., Keeper]
) -> None:
    first, second = keep(), keep()
    first.report(progress("one", 0.1))
    first.wait()
    second.report(progress("two", 0.2))
    second.wait()
    first.report(progress("one", 0.3))
    first.flush()
    assert "one" in (server.board(agent) or "") and "two" not in (server.board(agent) or "")
    assert "two" in (server.board(agent, "task_progress_2") or "")


_WRITER = """
import sys
from tests.support.fake_transport import progress
from tests.unit.delivery.test_keeper import Keeper
class Server: base_url = sys.argv[1]
keeper = Keeper(Server, sys.argv[2])
keeper.report(progress("child", 0.5))
keeper.wait()
print("written", flush=True)
sys.stdin.readline()
"""


def test_a_second_process_takes_a_suffix_and_leaves_it_when_it_is_killed(
    server: InMemoryLetta, agent: str, keep: Callable[..., Keeper]
) -> None:
    root = str(Path(__file__).resolve().parents[3])
    mine = keep()
    mine.report(progress("parent", 0.1))
    mine.wait()

    def child() -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", _WRITER, server.base_url, agent],
            env={**os.environ, "PYTHONPATH": root},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None and process.stdout.readline() == "written\n"
        return process

    for _ in range(2):  # the second time it finds the block of the one that was killed
        process = child()
        assert "parent" in (server.board(agent) or "")
        assert "child" in (server.board(agent, "task_progress_2") or "")
        process.kill()
        process.communicate()
    assert server.board(agent, "task_progress_3") is None


@pytest.mark.parametrize("end_of_life", ["shut", "crash"])
def test_after_a_restart_the_block_is_used_again(
    server: InMemoryLetta, agent: str, keep: Callable[..., Keeper], end_of_life: str
) -> None:
    keeper = keep()
    keeper.report(progress("a", 0.1))
    keeper.wait()
    old = block(server, agent).id
    getattr(keeper, end_of_life)()

    again = keep()
    again.report(progress("b", 0.2))
    again.wait()
    assert block(server, agent).id == old and "b" in (server.board(agent) or "")
    assert server.board(agent, "task_progress_2") is None


def of_another_host(keeper: Keeper, **changes: Any) -> None:
    made = block_of(keeper)
    made.metadata = {"otel_letta": {**made.metadata["otel_letta"], "host": "elsewhere", **changes}}


def block_of(keeper: Keeper) -> Any:
    server: InMemoryLetta = keeper.server  # type: ignore[attr-defined]
    return block(server, keeper._agent_id)


@pytest.mark.parametrize(
    ("changes", "taken_over"),
    [
        ({}, False),
        ({"closed": True}, True),
        ({"updated": "2020-01-01T00:00:00+00:00"}, True),
        ({"updated": "nonsense"}, True),
    ],
)
def test_another_host_s_block_is_taken_over_only_when_its_writer_is_gone(
    server: InMemoryLetta, agent: str, keep: Callable[..., Keeper], changes: dict[str, Any], taken_over: bool
) -> None:
    theirs = keep()
    theirs.server = server  # type: ignore[attr-defined]
    theirs.report(progress("theirs", 0.1))
    theirs.wait()
    theirs.crash()
    of_another_host(theirs, **changes)

    mine = keep()
    mine.report(progress("mine", 0.2))
    mine.wait()
    assert ("mine" in (server.board(agent) or "")) is taken_over
    assert ("mine" in (server.board(agent, "task_progress_2") or "")) is not taken_over


def test_a_clean_end_says_so_in_the_mark_and_writes_the_last_state(
    server: InMemoryLetta, agent: str, keep: Callable[..., Keeper]
) -> None:
    keeper = keep()
    keeper.report(progress("a", 0.1))
    keeper.wait()
    keeper.report(end("a"))
    keeper.shut()
    assert block(server, agent).metadata["otel_letta"]["closed"] is True
    assert "In progress: none" in (server.board(agent) or "")


def test_a_writer_with_open_tasks_shows_that_it_lives(keep: Callable[..., Keeper]) -> None:
    keeper = keep()
    keeper.report(progress("a", 0.1))
    keeper.wait()
    keeper.clock.advance(1_801)
    keeper.look()
    keeper.idle()
    assert keeper.writes == 2


def test_a_writer_that_slept_too_long_asks_again_whose_the_block_is(
    server: InMemoryLetta, agent: str, keep: Callable[..., Keeper]
) -> None:
    keeper = keep()
    keeper.server = server  # type: ignore[attr-defined]
    keeper.report(end("a"))
    keeper.wait()
    of_another_host(keeper)  # taken over meanwhile
    value = server.board(agent)
    keeper.clock.advance(3_601)
    keeper.report(progress("b", 0.5))
    keeper.wait()
    assert server.board(agent) == value
    assert "b" in (server.board(agent, "task_progress_2") or "")


def test_the_label_is_a_setting(server: InMemoryLetta, agent: str, keep: Callable[..., Keeper]) -> None:
    keep(board_label="jobs").report(progress("a", 0.1))
    assert server.wait_for(lambda: server.board(agent, "jobs") is not None)


def test_a_wrong_password_parks_the_board_until_it_is_mended(
    server: InMemoryLetta, agent: str, keep: Callable[..., Keeper], monkeypatch: pytest.MonkeyPatch
) -> None:
    server.password = "right"
    monkeypatch.setenv("LETTA_PASSWORD", "wrong")
    keeper = keep()
    keeper.report(progress("a", 0.1))
    assert server.wait_for(lambda: len(server.requests) == 1)
    keeper.idle()
    assert "Invalid credentials" in str(keeper.state()["parked"])
    monkeypatch.setenv("LETTA_PASSWORD", "right")
    keeper.clock.advance(61)
    keeper.look()
    keeper.wait()
    assert "10%" in (server.board(agent) or "") and keeper.state()["parked"] is None


def test_a_server_without_blocks_hands_the_open_tasks_back(
    server: InMemoryLetta, agent: str, keep: Callable[..., Keeper], caplog: pytest.LogCaptureFixture
) -> None:
    server.fail_next(404, {"detail": "Not Found"}, times=None, path="core-memory")
    keeper = keep()
    keeper.report(progress("a", 0.1), end("b"))
    with keeper._lock:
        assert keeper.settled.wait_for(lambda: keeper.unsupported and not keeper.busy, 60)
    (reports,) = keeper.handed_back
    assert [report.task_id for report in reports] == ["a"]
    assert "sent as messages instead" in caplog.text


def test_board_mode_on_such_a_server_says_that_nothing_is_reported(
    server: InMemoryLetta, keep: Callable[..., Keeper], caplog: pytest.LogCaptureFixture
) -> None:
    server.fail_next(404, {"detail": "Not Found"}, times=None, path="core-memory")
    keeper = keep(delivery="board")
    keeper.report(progress("a", 0.1))
    with keeper._lock:
        assert keeper.settled.wait_for(lambda: keeper.unsupported and not keeper.busy, 60)
    (line,) = [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR]
    assert "nothing is reported" in line and "OTEL_LETTA_DELIVERY=messages" in line


# -- through the whole pipeline -----------------------------------------------------------------------------------


def run_a_task(server: InMemoryLetta, agent: str, delivery: str) -> dict[str, Any]:
    from opentelemetry.sdk.trace import TracerProvider

    from otel_letta import LettaSpanProcessor

    processor = LettaSpanProcessor(base_url=server.base_url, agent_id=agent, delivery=delivery)
    provider = TracerProvider()
    provider.add_span_processor(processor)
    with provider.get_tracer("test").start_as_current_span("job", attributes={"letta.task.id": "job-1"}) as span:
        span.set_attribute("letta.task.progress", 0.4)
        assert processor.force_flush(60_000)
    assert processor.force_flush(60_000)
    stats = processor.stats()
    provider.shutdown()
    return stats


def test_board_mode_costs_no_turn_ever(server: InMemoryLetta, agent: str) -> None:
    run_a_task(server, agent, "board")
    assert server.turns == 0 and not server.messages(agent)
    assert "completed" in (server.board(agent) or "")


def test_auto_mode_costs_one_turn_a_task(server: InMemoryLetta, agent: str) -> None:
    run_a_task(server, agent, "auto")
    assert server.turns == 1
    assert [report["status"] for report in server.reports(agent)] == ["completed"]


def test_auto_mode_falls_back_to_messages_where_there_are_no_blocks(server: InMemoryLetta, agent: str) -> None:
    server.fail_next(404, {"detail": "Not Found"}, times=None, path="core-memory")
    run_a_task(server, agent, "auto")
    assert [report["status"] for report in server.reports(agent)] == ["in_progress", "completed"]


# -- shared blocks, and limits that change --------------------------------------------------------------------------


def test_two_agents_that_share_a_block_have_a_board_each_and_the_log_says_so(
    server: InMemoryLetta, agent: str, keep: Callable[..., Keeper], caplog: pytest.LogCaptureFixture
) -> None:
    first = keep()
    first.report(progress("of the first agent", 0.5))
    first.flush()
    other = server.create_agent()
    with server._world.changed:
        server._world.agents[other].blocks.append(block(server, agent))
    second = Keeper(server, other)
    try:
        second.report(progress("of the second agent", 0.5))
        second.flush()
        first.report(progress("another of the first agent", 0.5))
        first.flush()
        assert "of the first agent" in (server.board(agent) or "")
        assert "of the second agent" not in (server.board(agent) or "")
        assert "of the second agent" in (server.board(other, "task_progress_2") or "")
        lines = [r.getMessage() for r in caplog.records if "shares its block" in r.getMessage()]
        assert len(lines) == 1 and other in lines[0] and "task_progress" in lines[0]
    finally:
        second.crash()


def many(number: int) -> list[ProgressReport]:
    return [progress(f"task {n:03}", 0.5, f"{'x' * 60} {n}") for n in range(number)]


def test_a_limit_that_somebody_lowers_is_kept_at_once(
    server: InMemoryLetta, agent: str, keep: Callable[..., Keeper]
) -> None:
    keeper = keep()
    keeper.report(*many(30))
    keeper.flush()
    assert len(server.board(agent) or "") > 1_000
    with server._world.changed:
        block(server, agent).limit = 600
    keeper.report(progress("task 000", 0.7, "news"))
    keeper.flush()
    assert len(server.board(agent) or "") <= 600
    assert "news" in (server.board(agent) or "")


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_server_that_enforces_a_limit_gets_a_board_that_fits(
    server: InMemoryLetta, agent: str, keep: Callable[..., Keeper], status: int
) -> None:
    keeper = keep()
    keeper.report(progress("task 000", 0.1))
    keeper.flush()
    server.fail_next(status, {"detail": "Edit failed: Exceeds limit"}, times=3, method="PATCH", path="^/v1/blocks/")
    keeper.report(*many(40))
    for _ in range(4):
        with keeper._lock:
            keeper.flush_soon()
        keeper.clock.advance(1.0)
        keeper.look()
        keeper.idle()
    keeper.wait()
    text = server.board(agent) or ""
    assert "In progress: 40" in text and len(text) < 1_000


@pytest.mark.parametrize("wrong", ["password", "agent"])
def test_a_wrong_setting_is_one_line_and_the_exit_waits_for_nothing(
    server: InMemoryLetta, agent: str, caplog: pytest.LogCaptureFixture, wrong: str
) -> None:
    server.password = "right"
    settings = Settings.resolve(
        environ={},
        base_url=server.base_url,
        agent_id="agent-11111111-1111-4111-8111-111111111111" if wrong == "agent" else agent,
        password="wrong" if wrong == "password" else "right",
        server="rest",
    )
    desk = Desk(settings, RestTransport(settings), Stats())
    desk.put(progress("a", 0.5))
    desk.put(end("b"))
    assert not desk.flush(Deadline.after(30.0))  # it does not wait for the next try, a minute away
    before = len(server.requests)
    assert not desk.close(Deadline.after(30.0))
    assert len(server.requests) - before <= 2
    remedy = "LETTA_AGENT_ID" if wrong == "agent" else "LETTA_PASSWORD"
    lines = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert len([line for line in lines if "not delivered" not in line]) == 1, lines
    assert all(remedy in line for line in lines)
