"""The SQLite file of an outbox: who may read it, whose it is, and what happens when it cannot be used."""

from __future__ import annotations

import os
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from otel_letta.store.choose import open_spool, open_store
from otel_letta.store.model import Changes, NewEntry, Standing, Store, StoreError, StoreFullError, StoreNewerError

LANE = "lane"
ROOT = Path(__file__).parents[3]


def an_end(body: str, *, lane: str = LANE, ends: str = "", claims: bool = False, created: float = 100.0) -> NewEntry:
    return NewEntry("server", lane, body, created, ends, claims=claims)


def bodies(store: Store, lane: str = LANE) -> list[str]:
    return [entry.body for entry in store.waiting(lane, 0, 100)]


def lose(standing: Standing) -> str:
    return f"lost {standing.body}"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "outbox.db"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    made = open_store(str(path))
    made.open()
    yield made
    made.close()


class TestEntries:
    def test_come_back_in_the_order_in_which_they_were_written(self, store: Store) -> None:
        store.apply(Changes(entries=[an_end("a"), an_end("b"), an_end("other", lane="elsewhere")]))
        store.apply(Changes(entries=[an_end("c")]))
        assert bodies(store) == ["a", "b", "c"]
        assert store.lanes() == {LANE: 3, "elsewhere": 1}

    def test_come_back_from_a_place_on_and_no_more_than_wanted(self, store: Store) -> None:
        ids = store.apply(Changes(entries=[an_end(each) for each in "abcd"])).ids
        assert [entry.body for entry in store.waiting(LANE, ids[0] or 0, 2)] == ["b", "c"]

    def test_go_when_they_are_settled(self, store: Store) -> None:
        first, _ = store.apply(Changes(entries=[an_end("a"), an_end("b")])).ids
        store.apply(Changes(settled=[first or 0]))
        assert bodies(store) == ["b"]

    def test_say_that_a_request_went_out_and_whether_that_failed_for_certain(self, store: Store) -> None:
        first, second = store.apply(Changes(entries=[an_end("a"), an_end("b")])).ids
        assert first is not None
        assert second is not None
        assert store.apply(Changes(posted=[first, second])).ours == {first, second}
        store.apply(Changes(notes={first: ("refused", False), second: ("silence", True)}))
        found = {entry.body: entry for entry in store.waiting(LANE, 0, 9)}
        assert (found["a"].posted, found["a"].note) == (None, "refused")
        assert found["b"].posted is not None
        assert found["b"].note == "silence"

    def test_are_not_posted_by_one_who_has_lost_them(self, store: Store, path: Path) -> None:
        (row,) = store.apply(Changes(entries=[an_end("a")])).ids
        store.close()
        store.open()  # under another name: the first one is dead
        assert row is not None
        assert store.apply(Changes(posted=[row])).ours == set()
        assert store.known([row]) == set()

    def test_are_written_together_with_the_end_of_their_task_or_not_at_all(self, store: Store, path: Path) -> None:
        store.apply(Changes(standings={"task": Standing("task", "server", LANE, "half")}))
        store.apply(Changes(entries=[an_end("done", ends="task")]))
        assert store.all_standings() == []
        assert bodies(store) == ["done"]

    def test_that_are_too_old_go_and_are_named(self, store: Store) -> None:
        store.apply(Changes(entries=[an_end("old", created=1.0), an_end("new", created=10.0)]))
        assert [entry.body for entry in store.expire(5.0)] == ["old"]
        assert bodies(store) == ["new"]

    def test_are_dropped_by_a_person_unless_their_process_lives(self, store: Store, path: Path) -> None:
        (row,) = store.apply(Changes(entries=[an_end("a")])).ids
        assert row is not None
        other = open_store(str(path))
        other.open()
        assert [alive for _, alive in other.all_entries()] == [True]
        assert other.remove([row]) == 0
        store.close()
        assert [alive for _, alive in other.all_entries()] == [False]
        assert other.remove([row]) == 1
        other.close()


class TestHeirs:
    def test_get_the_ends_of_the_dead_behind_their_own_and_in_order(self, store: Store, path: Path) -> None:
        store.apply(Changes(entries=[an_end("a"), an_end("b")]))
        heir = open_store(str(path))
        heir.open()
        heir.apply(Changes(entries=[an_end("own")]))
        assert heir.adopt(["server"], lose) == (0, 0)  # the other is alive
        store.close()
        assert heir.adopt(["server"], lose) == (2, 0)
        assert bodies(heir) == ["own", "a", "b"]
        heir.close()

    def test_take_nothing_that_is_for_another_server(self, store: Store, path: Path) -> None:
        store.apply(Changes(entries=[an_end("a")], standings={"t": Standing("t", "server", LANE, "x")}))
        store.close()
        heir = open_store(str(path))
        heir.open()
        assert heir.adopt(["another"], lose) == (0, 0)
        assert heir.adopt([], lose) == (1, 1)
        heir.close()

    def test_say_that_tasks_under_way_are_lost_and_leave_those_that_wait_to_everybody(
        self, store: Store, path: Path
    ) -> None:
        running = Standing("run", "server", LANE, "half")
        waiting = Standing("wait", "server", LANE, "asks", waiting=True, owed=True)
        store.apply(Changes(standings={"run": running, "wait": waiting}))
        store.close()
        heir = open_store(str(path))
        heir.open()
        assert heir.adopt(["server"], lose) == (0, 1)
        assert bodies(heir) == ["lost half"]
        assert [(each.key, each.owner) for each in heir.standings(["server"])] == [("wait", None)]
        assert (heir.take_notice("wait"), heir.take_notice("wait")) == (True, False)
        heir.close()

    def test_end_a_task_that_waited_once_whoever_is_first(self, store: Store, path: Path) -> None:
        store.apply(Changes(standings={"w": Standing("w", "server", LANE, "asks", waiting=True)}))
        store.close()
        heirs = [open_store(str(path)), open_store(str(path))]
        for heir in heirs:
            heir.open()
            heir.adopt(["server"], lose)
        ids = [heir.apply(Changes(entries=[an_end("over", ends="w", claims=True)])).ids[0] for heir in heirs]
        assert [each is None for each in ids] == [False, True]
        for heir in heirs:
            heir.close()

    def test_find_a_process_dead_that_was_killed_whatever_its_children_do(self, path: Path) -> None:
        # The child goes on after the parent's death, and has all that a fork inherits.
        program = (
            "import os, sys, time\n"
            "from otel_letta.store.choose import open_store\n"
            "from otel_letta.store.model import Changes, NewEntry\n"
            f"store = open_store({str(path)!r}); store.open()\n"
            "store.apply(Changes(entries=[NewEntry('server', 'lane', 'a', 1.0)]))\n"
            "if os.fork() == 0:\n"
            "    print('child', flush=True); sys.stdin.readline(); os._exit(0)\n"
            "os.kill(os.getpid(), 9)\n"
        )
        with subprocess.Popen(
            [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "child\n"
            process.wait()
            heir = open_store(str(path))
            heir.open()
            assert heir.adopt(["server"], lose) == (1, 0)
            heir.close()

    @pytest.mark.parametrize("how", ["os._exit(0)", "os.execv('/bin/true', ['true'])", "os.kill(os.getpid(), 15)"])
    def test_find_a_process_dead_however_it_ended(self, path: Path, how: str) -> None:
        program = (
            "import os\n"
            "from otel_letta.store.choose import open_store\n"
            "from otel_letta.store.model import Changes, NewEntry\n"
            f"store = open_store({str(path)!r}); store.open()\n"
            "store.apply(Changes(entries=[NewEntry('server', 'lane', 'a', 1.0)]))\n" + how
        )
        subprocess.run([sys.executable, "-c", program], check=False, cwd=ROOT)
        heir = open_store(str(path))
        heir.open()
        assert heir.adopt(["server"], lose) == (1, 0)
        heir.close()


class TestTheFile:
    def test_is_for_its_user_alone_with_its_log(self, store: Store, path: Path) -> None:
        store.apply(Changes(entries=[an_end("secret")]))
        modes = {each.name: stat.S_IMODE(each.stat().st_mode) for each in path.parent.iterdir()}
        assert modes == {
            "outbox.db": 0o600,
            "outbox.db-wal": 0o600,
            "outbox.db-shm": 0o600,
            "outbox.db.locks": 0o700,
        }

    def test_loses_a_mode_that_is_too_wide(self, path: Path) -> None:
        open_store(str(path)).open()
        path.chmod(0o644)
        open_store(str(path)).open()
        assert stat.S_IMODE(path.stat().st_mode) == 0o600

    def test_that_is_broken_is_moved_aside_and_kept(self, path: Path, caplog: pytest.LogCaptureFixture) -> None:
        made = open_store(str(path))
        made.open()
        made.close()
        path.write_bytes(b"garbage" * 1_000)
        made.open()
        made.apply(Changes(entries=[an_end("a")]))
        assert bodies(made) == ["a"]
        (aside,) = path.parent.glob("outbox.db.corrupt-*")
        assert aside.read_bytes() == b"garbage" * 1_000
        assert "moved to" in caplog.text
        made.close()

    def test_of_another_program_is_left_alone(self, path: Path) -> None:
        other = sqlite3.connect(path)
        other.execute("CREATE TABLE theirs (x)")
        other.commit()
        other.close()
        with pytest.raises(StoreNewerError, match="another program"):
            open_store(str(path)).open()
        assert not list(path.parent.glob("*corrupt*"))

    def test_that_is_no_database_and_was_none_of_ours_is_left_alone(self, path: Path) -> None:
        path.write_text("export PATH=/bin\n")
        with pytest.raises(StoreError, match="no outbox"):
            open_store(str(path)).open()
        assert path.read_text() == "export PATH=/bin\n"

    def test_of_a_newer_version_is_left_alone(self, path: Path) -> None:
        made = open_store(str(path))
        made.open()
        made.close()
        newer = sqlite3.connect(path)
        newer.execute("PRAGMA user_version=99")
        newer.close()
        with pytest.raises(StoreNewerError, match="schema 99"):
            made.open()

    def test_that_was_removed_is_noticed(self, store: Store, path: Path) -> None:
        path.unlink()
        with pytest.raises(StoreError, match="gone"):
            store.apply(Changes(entries=[an_end("a")]))
        before = store.identity
        store.open()
        assert store.identity != before
        store.apply(Changes(entries=[an_end("a")]))
        assert bodies(store) == ["a"]

    def test_refuses_more_than_its_bound_and_takes_it_when_something_went(self, path: Path) -> None:
        made = open_store(str(path), most_bytes=200_000)
        made.open()
        ids = []
        with pytest.raises(StoreFullError, match="as much as it may"):
            for _ in range(100):
                ids += made.apply(Changes(entries=[an_end("x" * 10_000)])).ids
        made.apply(Changes(settled=[each for each in ids if each is not None]))
        made.apply(Changes(entries=[an_end("y")]))
        assert bodies(made) == ["y"]
        made.close()

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere; the folder that is a file covers the kind")
    def test_in_a_folder_that_cannot_be_written_is_an_error(self, tmp_path: Path) -> None:
        tmp_path.chmod(0o500)
        with pytest.raises(StoreError):
            open_store(str(tmp_path / "outbox.db")).open()
        tmp_path.chmod(0o700)

    def test_below_something_that_is_no_folder_is_an_error(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(StoreError, match=r"outbox\.db"):
            open_store(str(tmp_path / "file" / "outbox.db")).open()

    def test_is_used_by_a_forked_child_under_a_name_of_its_own(self, store: Store, path: Path) -> None:
        store.apply(Changes(entries=[an_end("parent's")]))
        child = os.fork()
        if child == 0:
            code = 1
            try:
                own = open_store(str(path))
                own.open()
                own.apply(Changes(entries=[an_end("child's")]))
                code = 0 if bodies(own) == ["child's"] and own.adopt(["server"], lose) == (0, 0) else 2
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert bodies(store) == ["parent's"]
        assert store.adopt(["server"], lose) == (1, 0)
        assert bodies(store) == ["parent's", "child's"]


class TestSpool:
    def test_gives_bodies_in_order_until_they_are_settled_also_after_a_restart(self, path: Path) -> None:
        spool = open_spool(str(path))
        spool.open()
        first = spool.append("traces", b"\x00one")
        spool.append("logs", b"two")
        spool.close()
        spool.open()
        assert [(item.kind, item.body) for item in spool.unsettled()] == [("traces", b"\x00one"), ("logs", b"two")]
        spool.settle([first])
        assert [item.body for item in spool.unsettled()] == [b"two"]
        assert spool.size() == (1, 3)
        spool.close()

    def test_is_bounded_by_size_and_age(self, path: Path) -> None:
        spool = open_spool(str(path), most_bytes=10)
        spool.open()
        spool.append("traces", b"12345678")
        with pytest.raises(StoreFullError):
            spool.append("traces", b"90a")
        assert spool.expire(2**40) == 1
        spool.append("traces", b"90a")
        spool.close()

    def test_lives_in_the_file_of_an_outbox(self, store: Store, path: Path) -> None:
        spool = open_spool(str(path))
        spool.open()
        spool.append("traces", b"x")
        store.apply(Changes(entries=[an_end("a")]))
        assert (spool.size(), bodies(store)) == ((1, 1), ["a"])
        spool.close()
