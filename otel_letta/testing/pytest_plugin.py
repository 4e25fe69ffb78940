"""A fixture for the tests of programs that report to a Letta agent; pytest finds it by itself.

    def test_the_agent_learns_that_the_import_is_done(in_memory_letta, monkeypatch):
        agent_id = in_memory_letta.create_agent()
        monkeypatch.setenv("LETTA_BASE_URL", in_memory_letta.base_url)
        monkeypatch.setenv("LETTA_AGENT_ID", agent_id)
        my_app.run_import()
        in_memory_letta.wait_for_messages(agent_id, 1)
        assert in_memory_letta.reports(agent_id)[-1]["status"] == "completed"

Every pytest run of an environment with otel_letta in it loads this module, so it does nothing but define the fixture.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from otel_letta.testing import InMemoryLetta


@pytest.fixture
def in_memory_letta() -> Iterator[InMemoryLetta]:
    """A Letta server on loopback (`otel_letta.testing.InMemoryLetta`), listening until the test ends."""
    from otel_letta.testing import InMemoryLetta

    with InMemoryLetta() as letta:
        yield letta
