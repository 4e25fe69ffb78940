"""The spool in a real PostgreSQL: one table for many receivers, each with its own bodies and those of the dead."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from otel_letta.store.model import StoreError
from otel_letta.store.postgres import PostgresStore
from otel_letta.store.postgres_spool import PostgresSpool
from otel_letta.testing import InMemoryLetta
from tests.support.otlp_sender import post, request_of, serving, span_of
from tests.support.waiting import until
from tests.unit.serve.test_durable import ends, program

pytestmark = pytest.mark.postgres

ROOT = Path(__file__).parents[3]


@pytest.fixture
def new_spool(url: str) -> Iterator[Callable[[], PostgresSpool]]:
    opened: list[PostgresSpool] = []

    def made() -> PostgresSpool:
        opened.append(PostgresSpool(url, "the database"))
        opened[-1].open()
        return opened[-1]

    yield made
    for each in opened:
        each.close()


def bodies(spool: PostgresSpool) -> list[bytes]:
    return [item.body for item in spool.unsettled()]


def test_each_process_sees_its_own_bodies_only(new_spool: Callable[[], PostgresSpool]) -> None:
    one, other = new_spool(), new_spool()
    mine = one.append("traces", b"one").result()
    other.append("traces", b"other").result()
    assert (bodies(one), bodies(other)) == ([b"one"], [b"other"])
    assert one.size() == (1, 3)
    other.settle([mine])
    assert other.expire(2**40) == 1
    assert bodies(one) == [b"one"]


def test_the_bodies_of_one_that_lives_are_left_alone(new_spool: Callable[[], PostgresSpool]) -> None:
    one, other = new_spool(), new_spool()
    one.append("traces", b"one").result()
    assert other.adopt() == []
    assert (bodies(one), bodies(other)) == ([b"one"], [])


def test_the_bodies_of_one_that_was_killed_are_taken_over_by_one_heir(
    new_spool: Callable[[], PostgresSpool], url: str
) -> None:
    code = (
        "import os\n"
        "from otel_letta.store.choose import open_spool\n"
        f"spool = open_spool({url!r}); spool.open()\n"
        "spool.append('traces', b'first').result(); spool.append('logs', b'second').result()\n"
        "os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=120)
    assert done.returncode == -signal.SIGKILL
    heirs = [new_spool() for _ in range(3)]
    taken: list[int] = []

    def adopt(spool: PostgresSpool) -> None:
        assert until(lambda: taken.extend(spool.adopt()) or len(taken) == 2)  # type: ignore[func-returns-value]

    threads = [threading.Thread(target=adopt, args=(heir,)) for heir in heirs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(map(bodies, heirs)) == [[], [], [b"first", b"second"]]


def test_after_a_session_has_ended_it_goes_on_under_its_own_name(
    new_spool: Callable[[], PostgresSpool], url: str
) -> None:
    spool = new_spool()
    spool.append("traces", b"before").result()
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'otel_letta spool%'"
        )
    with pytest.raises(StoreError):  # nobody says 200 to that one
        spool.append("traces", b"lost").result()
    spool.append("traces", b"after").result()
    assert bodies(spool) == [b"before", b"after"]
    assert new_spool().adopt() == []


def test_a_database_of_the_first_version_is_brought_up_to_date(
    new_spool: Callable[[], PostgresSpool], url: str
) -> None:
    new_spool().close()
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("ALTER TABLE otel_letta.spool DROP COLUMN owner")
        connection.execute("UPDATE otel_letta.meta SET version = 1")
        connection.execute("INSERT INTO otel_letta.spool (kind, body, created) VALUES ('traces', 'old', 1)")
    store = PostgresStore(url, "the database")  # an outbox alone does it, too
    store.open()
    store.close()
    spool = new_spool()
    assert bodies(spool) == []
    assert len(spool.adopt()) == 1
    assert bodies(spool) == [b"old"]
    with psycopg.connect(url) as connection:
        assert connection.execute("SELECT version FROM otel_letta.meta").fetchall() == [(2,)]
    spool.append("traces", b"new").result()
    assert bodies(spool) == [b"old", b"new"]


def test_one_that_lives_goes_on_with_what_a_killed_receiver_had_taken_in(
    letta: InMemoryLetta, agent: str, url: str
) -> None:
    part = span_of("part", 2, traceId=f"{1:032x}", parentSpanId=f"{1:016x}")
    with (
        serving(letta.base_url, agent, settings={"outbox": url}, take_over=0.2) as heir,
        program(letta, agent, OTEL_LETTA_OUTBOX=url) as first,
    ):
        assert post(first.port, "/v1/traces", request_of(part)).status == 200
        first.kill()
        assert until(lambda: heir.intake.spool.size()[0] == 1)
        assert post(heir.options.port, "/v1/traces", request_of(span_of("whole"))).status == 200
        assert until(lambda: ends(letta, agent) == ["whole"])
        assert heir.pipeline.flush(60)
    assert ends(letta, agent) == ["whole"]


def test_what_a_killed_receiver_had_taken_in_is_reported_by_the_next_one(
    letta: InMemoryLetta, agent: str, url: str
) -> None:
    outbox = {"OTEL_LETTA_OUTBOX": url}
    part = span_of("part", 2, traceId=f"{1:032x}", parentSpanId=f"{1:016x}")  # waits for its parent
    with program(letta, agent, **outbox) as first, program(letta, agent, **outbox) as other:
        assert post(first.port, "/v1/traces", request_of(part)).status == 200
        assert post(other.port, "/v1/traces", request_of(span_of("of the other", 5))).status == 200
        first.kill()
        assert until(lambda: ends(letta, agent) == ["of the other"])
        assert other.stop() == 0
    with program(letta, agent, **outbox) as second:
        assert post(second.port, "/v1/traces", request_of(span_of("whole"))).status == 200
        assert until(lambda: "whole" in ends(letta, agent), 60)
        assert second.stop() == 0
    assert ends(letta, agent) == ["of the other", "whole"]  # the part was a step: the two processes' spans met
