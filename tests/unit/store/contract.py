"""What every store does, whatever its database: the classes are run by `test_sqlite.py` and by the real PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from otel_letta.store.model import Changes, NewEntry, Spool, Standing, Store, StoreFullError

LANE = "lane"

Another = Callable[[], Store]
"""Opens the database once more, as another process would."""


def an_end(body: str, *, lane: str = LANE, ends: str = "", claims: bool = False, created: float = 100.0) -> NewEntry:
    return NewEntry("server", lane, body, created, ends, claims=claims)


def bodies(store: Store, lane: str = LANE) -> list[str]:
    return [entry.body for entry in store.waiting(lane, 0, 100)]


def lose(standing: Standing) -> str:
    return f"lost {standing.body}"


class EntriesContract:
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

    def test_are_not_posted_by_one_who_has_lost_them(self, store: Store, another: Another) -> None:
        (row,) = store.apply(Changes(entries=[an_end("a")])).ids
        store.close()
        store.open()  # under another name: the first one is dead
        assert row is not None
        assert store.apply(Changes(posted=[row])).ours == set()
        assert store.known([row]) == set()

    def test_are_written_together_with_the_end_of_their_task_or_not_at_all(
        self, store: Store, another: Another
    ) -> None:
        store.apply(Changes(standings={"task": Standing("task", "server", LANE, "half")}))
        store.apply(Changes(entries=[an_end("done", ends="task")]))
        assert store.all_standings() == []
        assert bodies(store) == ["done"]

    def test_that_are_too_old_go_and_are_named_by_their_own_process(self, store: Store, another: Another) -> None:
        store.apply(Changes(entries=[an_end("old", created=1.0), an_end("new", created=10.0)]))
        assert another().expire(5.0) == []
        assert bodies(store) == ["old", "new"]
        assert [entry.body for entry in store.expire(5.0)] == ["old"]
        assert bodies(store) == ["new"]

    def test_are_dropped_by_a_person_unless_their_process_lives(self, store: Store, another: Another) -> None:
        (row,) = store.apply(Changes(entries=[an_end("a")])).ids
        assert row is not None
        other = another()
        assert [alive for _, alive in other.all_entries()] == [True]
        assert other.remove([row]) == 0
        store.close()
        assert [alive for _, alive in other.all_entries()] == [False]
        assert other.remove([row]) == 1
        other.close()


class HeirsContract:
    def test_get_the_ends_of_the_dead_behind_their_own_and_in_order(self, store: Store, another: Another) -> None:
        store.apply(Changes(entries=[an_end("a"), an_end("b")]))
        heir = another()
        heir.apply(Changes(entries=[an_end("own")]))
        assert heir.adopt(["server"], lose) == (0, 0)  # the other is alive
        store.close()
        assert heir.adopt(["server"], lose) == (2, 0)
        assert bodies(heir) == ["own", "a", "b"]
        heir.close()

    def test_take_nothing_that_is_for_another_server(self, store: Store, another: Another) -> None:
        store.apply(Changes(entries=[an_end("a")], standings={"t": Standing("t", "server", LANE, "x")}))
        store.close()
        heir = another()
        assert heir.adopt(["another"], lose) == (0, 0)
        assert heir.adopt([], lose) == (1, 1)
        heir.close()

    def test_say_that_tasks_under_way_are_lost_and_leave_those_that_wait_to_everybody(
        self, store: Store, another: Another
    ) -> None:
        running = Standing("run", "server", LANE, "half")
        waiting = Standing("wait", "server", LANE, "asks", waiting=True, owed=True)
        store.apply(Changes(standings={"run": running, "wait": waiting}))
        store.close()
        heir = another()
        assert heir.adopt(["server"], lose) == (0, 1)
        assert bodies(heir) == ["lost half"]
        assert [(each.key, each.owner) for each in heir.standings(["server"])] == [("wait", None)]
        assert (heir.take_notice("wait"), heir.take_notice("wait")) == (True, False)
        heir.close()

    def test_end_a_task_that_waited_once_whoever_is_first(self, store: Store, another: Another) -> None:
        store.apply(Changes(standings={"w": Standing("w", "server", LANE, "asks", waiting=True)}))
        store.close()
        heirs = [another(), another()]
        for heir in heirs:
            heir.adopt(["server"], lose)
        ids = [heir.apply(Changes(entries=[an_end("over", ends="w", claims=True)])).ids[0] for heir in heirs]
        assert [each is None for each in ids] == [False, True]
        for heir in heirs:
            heir.close()


class SpoolContract:
    def test_gives_bodies_in_order_until_they_are_settled_also_after_a_restart(
        self, new_spool: Callable[..., Spool]
    ) -> None:
        spool = new_spool()
        first = spool.append("traces", b"\x00one").result()
        spool.append("logs", b"two").result()
        spool.close()
        spool.open()
        assert [(item.kind, item.body) for item in spool.unsettled()] == [("traces", b"\x00one"), ("logs", b"two")]
        spool.settle([first])
        assert [item.body for item in spool.unsettled()] == [b"two"]
        assert spool.size() == (1, 3)
        spool.close()

    def test_is_bounded_by_size_and_age(self, new_spool: Callable[..., Spool]) -> None:
        spool = new_spool(most_bytes=10)
        spool.append("traces", b"12345678").result()
        with pytest.raises(StoreFullError):
            spool.append("traces", b"90a").result()
        assert spool.expire(2**40) == 1
        spool.append("traces", b"90a").result()
        spool.close()
