"""Faults in front of both real servers: whatever a client sees, every end is in the agent's context once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest

from tests.real.letta.test_both_servers import server  # noqa: F401 - a fixture
from tests.support import fault_table
from tests.support.either import At, Either
from tests.support.fault_proxy import (
    BOMB,
    CHUNKS,
    CLOSED,
    GARBAGE,
    PAGES,
    REFUSE,
    RESET_IN_REQUEST,
    RESET_IN_RESPONSE,
    Fault,
    FaultProxy,
    page,
)
from tests.support.program import ends_in, program, until

pytestmark = pytest.mark.letta

REACHED = (CLOSED.reaching(), RESET_IN_RESPONSE, GARBAGE.reaching(), page(500).reaching(), page(524).reaching())
OTHERS = (REFUSE, RESET_IN_REQUEST, CLOSED, CHUNKS, BOMB, *PAGES)


@pytest.fixture(autouse=True)
def impatient() -> Iterator[None]:
    with fault_table.impatient():
        yield


@pytest.mark.parametrize("fault", [*REACHED, *OTHERS], ids=str)
def test_an_end_behind_a_fault_is_in_the_context_once(
    server: Either,  # noqa: F811
    caplog: pytest.LogCaptureFixture,
    fault: Fault,
) -> None:
    agent = server.create_agent()
    with FaultProxy(server.base_url) as proxy:
        options = {"delivery": "messages", "probe_interval": 0.2, "server": server.kind}
        with program(At(proxy.base_url, server.password), agent, "simple", **options) as app:
            # An App Server is asked over a WebSocket, whose handshake is a GET.
            proxy.set(fault, method="POST" if server.kind == "rest" and fault is not REFUSE else None)
            app.do("the end")
            app.provider.force_flush(1)
            until(lambda: "reports to" in caplog.text or app.stats["sent"], "somebody noticed", 60)
            proxy.set(None)
            assert app.flush(120)
    assert Counter(ends_in(server.next_prompt(agent))) == {"the end": 1}


@pytest.mark.parametrize("reset_after", ["the handshake", "a turn"])
def test_a_socket_that_breaks_costs_nothing(
    server: Either,  # noqa: F811
    reset_after: str,
) -> None:
    agent = server.create_agent()
    with FaultProxy(server.base_url) as proxy:
        options = {"delivery": "messages", "probe_interval": 0.2, "server": server.kind}
        with program(At(proxy.base_url, server.password), agent, "simple", **options) as app:
            if reset_after == "a turn":
                app.do("before")
                assert app.flush(120)
            proxy.set(REFUSE)
            app.do("the end")
            app.provider.force_flush(1)
            proxy.set(None)
            assert app.flush(120)
    wanted = {"before", "the end"} if reset_after == "a turn" else {"the end"}
    assert Counter(ends_in(server.next_prompt(agent))) == dict.fromkeys(wanted, 1)
