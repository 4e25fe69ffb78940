"""The SQLite file of an outbox: who may read it, whose it is, and what happens when it cannot be used."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from otel_letta.store import sqlite as sqlite_files
from otel_letta.store.choose import open_spool, open_store
from otel_letta.store.model import Changes, Spool, Store, StoreError, StoreFullError, StoreNewerError
from tests.unit.store.contract import Another, EntriesContract, HeirsContract, SpoolContract, an_end, bodies, lose

ROOT = Path(__file__).parents[3]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "outbox.db"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    made = open_store(str(path))
    made.open()
    yield made
    made.close()


@pytest.fixture
def another(path: Path) -> Iterator[Another]:
    opened: list[Store] = []

    def open_once_more() -> Store:
        opened.append(open_store(str(path)))
        opened[-1].open()
        return opened[-1]

    yield open_once_more
    for each in opened:
        each.close()


class TestEntries(EntriesContract):
    def test_stay_with_a_process_whose_lock_was_removed(self, store: Store, path: Path) -> None:
        store.apply(Changes(entries=[an_end("a")]))
        for file in path.with_name("outbox.db.locks").glob("*.lock"):
            file.unlink()
        store.open()
        assert bodies(store) == ["a"]


class TestHeirs(HeirsContract):
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

    def test_loses_a_mode_that_is_too_wide(self, path: Path, another: Another) -> None:
        another()
        path.chmod(0o644)
        another()
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

    def test_that_is_broken_and_cannot_be_made_anew_is_not_open(self, store: Store, path: Path) -> None:
        store.close()
        path.write_bytes(b"garbage" * 1_000)

        def full(*_: object) -> None:
            raise sqlite3.OperationalError("database or disk is full")

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(sqlite_files.Database, "_create", full)
            with pytest.raises(StoreError):
                store.open()
        store.open()
        store.apply(Changes(entries=[an_end("a")]))
        assert bodies(store) == ["a"]

    def test_of_another_program_is_left_alone(self, path: Path) -> None:
        other = sqlite3.connect(path)
        other.execute("CREATE TABLE theirs (x)")
        other.commit()
        other.close()
        with pytest.raises(StoreNewerError, match="another program"):
            open_store(str(path)).open()
        assert not list(path.parent.glob("*corrupt*"))

    def test_that_another_process_creates_just_now_is_not_taken_for_another_program_s(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        real, asked = sqlite_files._pragma, []

        def meanwhile(connection: sqlite3.Connection, name: str) -> int:
            value = real(connection, name)
            asked.append(name)
            if asked == ["application_id"]:
                other = sqlite3.connect(path, timeout=0)
                with contextlib.suppress(sqlite3.OperationalError):  # locked: it comes later
                    other.executescript(f"BEGIN; {ours} COMMIT")
                other.close()
            return value

        made = open_store(str(path.with_name("made.db")))
        made.open()
        made.close()
        with contextlib.closing(sqlite3.connect(path.with_name("made.db"))) as example:
            version, application = (real(example, name) for name in ("user_version", "application_id"))
            ours = "".join(f"{line}\n" for line in example.iterdump() if line not in ("BEGIN TRANSACTION;", "COMMIT;"))
            ours += f"PRAGMA application_id={application}; PRAGMA user_version={version};"
        monkeypatch.setattr(sqlite_files, "_pragma", meanwhile)
        opened = open_store(str(path))
        opened.open()
        opened.close()

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

    def test_in_a_folder_that_does_not_exist_is_an_error_and_makes_none(self, tmp_path: Path) -> None:
        with pytest.raises(StoreError, match="folder does not exist"):
            open_store(str(tmp_path / "missing" / "outbox.db")).open()
        assert list(tmp_path.iterdir()) == []

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


@pytest.fixture
def new_spool(path: Path) -> Iterator[Callable[..., Spool]]:
    opened: list[Spool] = []

    def made(**options: Any) -> Spool:
        opened.append(open_spool(str(path), **options))
        opened[-1].open()
        return opened[-1]

    yield made
    for each in opened:
        each.close()


class TestSpool(SpoolContract):
    def test_lives_in_the_file_of_an_outbox(self, store: Store, path: Path) -> None:
        spool = open_spool(str(path))
        spool.open()
        spool.append("traces", b"x").result()
        store.apply(Changes(entries=[an_end("a")]))
        assert (spool.size(), bodies(store)) == ((1, 1), ["a"])
        spool.close()
