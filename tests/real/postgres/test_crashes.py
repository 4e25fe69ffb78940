"""A program that is killed again and again, with one outbox in a database: each durable end reaches the agent, once."""

from __future__ import annotations

import pytest

from tests.support.outbox_kills import kill_again_and_again

pytestmark = pytest.mark.postgres


def test_every_end_that_was_durable_reaches_the_agent_once_however_often_its_program_is_killed(url: str) -> None:
    survived = kill_again_and_again(url)
    assert survived.flushed
    assert (survived.missing, survived.twice, survived.out_of_order) == (set(), {}, set())
