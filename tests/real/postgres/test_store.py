"""The store in a real PostgreSQL: what every store does, and what sessions, restarts and stopped processes bring."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from otel_letta.runtime.deadline import Deadline
from otel_letta.store.choose import open_spool, open_store
from otel_letta.store.lane_locks import LaneLock, LaneLocks
from otel_letta.store.model import Changes, Spool, Standing, StoreError, StoreFullError, StoreNewerError
from otel_letta.store.postgres import PostgresStore
from tests.support.postgres import Cluster
from tests.support.program import until
from tests.unit.store.contract import Another, EntriesContract, HeirsContract, SpoolContract, an_end, bodies, lose

pytestmark = pytest.mark.postgres

ROOT = Path(__file__).parents[3]


class TestEntries(EntriesContract):
    pass


@pytest.fixture
def new_spool(url: str) -> Iterator[Callable[..., Spool]]:
    opened: list[Spool] = []

    def made(**options: Any) -> Spool:
        opened.append(open_spool(url, "the database", **options))
        opened[-1].open()
        return opened[-1]

    yield made
    for each in opened:
        each.close()


class TestSpool(SpoolContract):
    pass


class TestHeirs(HeirsContract):
    def test_find_a_process_dead_that_was_killed(self, url: str, another: Another) -> None:
        program = (
            "import os\n"
            "from otel_letta.store.choose import open_spool, open_store\n"
            "from otel_letta.store.model import Changes, NewEntry\n"
            f"store = open_store({url!r}); store.open()\n"
            "store.apply(Changes(entries=[NewEntry('server', 'lane', 'a', 1.0)]))\n"
            "os.kill(os.getpid(), 9)\n"
        )
        subprocess.run([sys.executable, "-c", program], check=False, cwd=ROOT)
        heir = another()
        until(lambda: heir.adopt(["server"], lose).entries, "the server ends its session")
        assert bodies(heir) == ["a"]

    def test_wait_for_those_who_lost_their_session_to_a_restart_of_the_server(self, cluster: Cluster, url: str) -> None:
        first, second = (PostgresStore(url, "the database") for _ in range(2))
        first.open()
        second.open()
        first.apply(Changes(entries=[an_end("a")], standings={"t": Standing("t", "server", "lane", "half")}))
        cluster.stop()
        with pytest.raises(StoreError):
            first.apply(Changes(entries=[an_end("b")]))
        cluster.start()
        with pytest.raises(StoreError):
            second.beat()
        second.open()
        assert second.adopt(["server"], lose) == (0, 0)
        first.open()
        assert bodies(first) == ["a"]
        first.close()
        impatient = PostgresStore(url, "the database", grace=0.0)
        impatient.open()
        assert impatient.adopt(["server"], lose) == (1, 1)
        second.close()
        impatient.close()


def test_an_earlier_session_of_the_same_process_is_ended_when_it_comes_back(url: str) -> None:
    # The network failed: the client has given its session up, and the server has not noticed.
    store = PostgresStore(url, "the database")
    store.open()
    store.apply(Changes(entries=[an_end("a")]))
    forgotten, store._session.connection = store._session.connection, None
    store.open()
    assert bodies(store) == ["a"]
    assert forgotten is not None
    with pytest.raises(psycopg.Error):
        forgotten.execute("SELECT 1")
    store.close()


def test_two_processes_that_start_at_once_make_the_tables_once(url: str) -> None:
    program = f"from otel_letta.store.choose import open_spool, open_store; open_store({url!r}).open()"
    started = [subprocess.Popen([sys.executable, "-c", program], cwd=ROOT) for _ in range(4)]
    assert [process.wait() for process in started] == [0, 0, 0, 0]


def test_a_newer_schema_is_left_alone(url: str, store: PostgresStore) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("UPDATE otel_letta.meta SET version = 99")
    with pytest.raises(StoreNewerError, match="schema 99"):
        PostgresStore(url, "the database").open()


def test_the_bound_of_size_is_kept(url: str) -> None:
    store = PostgresStore(url, "the database", most_bytes=100)
    store.open()
    store.apply(Changes(entries=[an_end("x" * 1_000)]))
    store._used = None
    with pytest.raises(StoreFullError):
        store.apply(Changes(entries=[an_end("y")]))
    store.close()


def test_no_error_has_the_password(cluster: Cluster) -> None:
    wrong = cluster.url().replace(str(cluster.port), "1")
    with pytest.raises(StoreError) as raised:
        open_store(wrong, "postgresql://letta:***@127.0.0.1:1/postgres").open()
    assert cluster.password not in str(raised.value)
    assert "127.0.0.1:1" in str(raised.value)


def test_a_forked_child_leaves_the_session_of_its_parent_alone(url: str, store: PostgresStore) -> None:
    store.apply(Changes(entries=[an_end("a")]))
    child = os.fork()
    if child == 0:
        code = 1
        try:
            own = PostgresStore(url, "the database")
            own.open()
            code = 0 if own.adopt(["server"], lose) == (0, 0) else 2
            own.close()
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert bodies(store) == ["a"]


# -- the locks of lanes ----------------------------------------------------------------------------------------


@pytest.fixture
def lock(url: str) -> Iterator[Callable[..., LaneLock]]:
    opened: list[LaneLocks] = []

    def made(lane: str = "lane", idle: float = 60.0, url: str = url) -> LaneLock:
        opened.append(LaneLocks(url, "the database", "test", idle))
        return LaneLock(opened[-1], lane)

    yield made
    for each in opened:
        each.close()


Lock = Callable[..., LaneLock]


def test_a_lane_is_held_by_one(lock: Lock) -> None:
    one, two = lock(), lock()
    assert one.acquire(Deadline.after(30.0))
    assert not two.acquire(Deadline.after(0.1))
    assert lock("other lane").acquire(Deadline.after(30.0))
    one.release()
    assert two.acquire(Deadline.after(30.0))
    two.release()


def test_two_threads_of_one_process_do_not_share_it(url: str) -> None:
    locks = LaneLocks(url, "the database", "test")
    assert LaneLock(locks, "lane").acquire(Deadline.after(30.0))
    assert not LaneLock(locks, "lane").acquire(Deadline.after(0.1))
    locks.close()


def test_a_lane_is_free_when_its_holder_dies_and_soon_after_it_was_stopped(url: str, lock: Lock) -> None:
    # PostgreSQL waits for the time of its own that says when a session is idle for too long.
    program = (
        "import sys\n"
        "from otel_letta.runtime.deadline import Deadline\n"
        "from otel_letta.store.lane_locks import LaneLock, LaneLocks\n"
        f"lock = LaneLock(LaneLocks({url!r}, 'the database', 'test', 2.0), 'lane')\n"
        "assert lock.acquire(Deadline.after(60.0))\n"
        "print('held', flush=True)\n"
        "sys.stdin.readline()\n"
    )
    for how in (signal.SIGKILL, signal.SIGSTOP):
        with subprocess.Popen(
            [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
        ) as holder:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "held\n"
            mine = lock()
            assert not mine.acquire(Deadline.after(0.1))
            holder.send_signal(how)
            assert mine.acquire(Deadline.after(120.0))
            mine.release()
            holder.kill()


def test_a_holder_that_lives_says_so_by_itself(url: str, lock: Lock) -> None:
    one, two = lock(idle=8.0), lock()
    assert one.acquire(Deadline.after(30.0))
    seen = set()
    with psycopg.connect(url, autocommit=True) as connection:

        def when() -> int:
            row = connection.execute(
                "SELECT max(state_change) FROM pg_stat_activity WHERE query = 'SELECT 1'"
            ).fetchone()
            seen.add(row and row[0])
            return len(seen - {None})

        until(lambda: when() >= 2, "it says so twice")
    assert not two.acquire(Deadline.after(0.1))
    one.release()


def test_who_lost_the_session_gets_another_one(url: str, lock: Lock) -> None:
    one = lock()
    assert one.acquire(Deadline.after(30.0))
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'test'")
    one.release()
    assert one.acquire(Deadline.after(30.0))
    assert not lock().acquire(Deadline.after(0.1))
    one.release()


def test_without_the_database_a_lane_is_everybodys(lock: Lock, cluster: Cluster) -> None:
    assert lock(url=cluster.url().replace(str(cluster.port), "1")).acquire(Deadline.after(30.0))
