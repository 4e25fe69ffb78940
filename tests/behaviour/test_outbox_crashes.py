"""A program that is killed again and again, with one outbox: what was on the disk reaches the agent, and once.

``OTEL_LETTA_TEST_KILLS`` sets how often; the default is for a CI machine that has other things to do.
"""

from __future__ import annotations

from pathlib import Path

from tests.support.outbox_kills import kill_again_and_again


def test_every_end_that_was_durable_reaches_the_agent_once_however_often_its_program_is_killed(tmp_path: Path) -> None:
    # Each kill starts a Python with an SDK, which takes a second or more on a busy machine.
    survived = kill_again_and_again(str(tmp_path / "outbox.db"))
    assert survived.flushed
    assert (survived.missing, survived.twice, survived.out_of_order) == (set(), {}, set())
