"""What an outbox has in memory, while its database is away or is exchanged for another one."""

from __future__ import annotations

from otel_letta.delivery.keeping import Keeping, Kept, Pending
from otel_letta.letta.transport import Lane
from otel_letta.store.model import Outcome
from tests.support.fake_transport import SERVER, end, progress

LANE = Lane(SERVER, "agent-1")


def test_a_task_that_began_again_while_its_end_could_not_be_written_stands() -> None:
    keeping = Keeping(100)
    keeping.stand("a", progress("a"), LANE, owed=False)
    keeping.wrote(keeping.take_pending(), Outcome([], frozenset()))
    keeping.stand_no_more("a", claimed=False)
    failed = keeping.take_pending()
    keeping.stand("a", progress("a"), LANE, owed=False)
    changes = failed.before(keeping.pending).changes(())
    assert (set(changes.standings), set(changes.over)) == ({"a"}, set())


def test_a_task_that_ended_while_its_standing_could_not_be_written_is_over() -> None:
    failed = Pending(standings={"a": (progress("a"), LANE, False)})
    changes = failed.before(Pending(over={"a"})).changes(())
    assert (set(changes.standings), set(changes.over)) == (set(), {"a"})


def test_another_database_is_read_from_its_beginning() -> None:
    """Its ids begin anew: whoever went on where the old one's were would never find what is in it."""
    keeping = Keeping(100)
    kept = Kept(end("a"), LANE, 0.0, in_memory=True)
    keeping.add(kept)
    keeping.wrote(keeping.take_pending(), Outcome([700], frozenset()))
    assert keeping.state(LANE).cursor == 700
    keeping.write_again([kept])
    assert keeping.state(LANE).cursor == 0
    assert [each.posted for each in keeping.take_pending().changes(()).entries] == [None]


def test_an_end_that_was_delivered_while_it_was_being_written_leaves_the_database_again() -> None:
    keeping = Keeping(100)
    kept = Kept(end("a"), LANE, 0.0, in_memory=True)
    keeping.add(kept)
    under_way = keeping.take_pending()
    keeping.settle([kept.report])
    keeping.wrote(under_way, Outcome([7], frozenset()))
    assert keeping.take_pending().settled == [7]
