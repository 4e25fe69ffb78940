"""Processes that end or stand still, with work under way: what a program was told is taken comes to the agent, once."""

from __future__ import annotations

import urllib.error
from pathlib import Path
from typing import Any

import pytest

from otel_letta.testing import InMemoryLetta
from tests.support.collector_run import Bridge, Gateway, Sink, gateway, post, send
from tests.support.collector_tasks import PATIENCE, ends, every_end_once, gave_up, ids, names_at, once, tasks
from tests.support.waiting import until

_HERE = Path(__file__).parent
_IMPATIENT = _HERE / "impatient.yaml"
_HESITANT = _HERE / "hesitant.yaml"
_MANY = 60


def _retries(running: Gateway) -> int:
    return running.collector.log.count("Exporting failed. Will retry the request after interval.")


# --- The Collector ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("more", [_IMPATIENT, _HESITANT], ids=["in-the-queue", "in-the-hop"])
def test_a_collector_that_is_killed_loses_no_end_that_it_took(
    letta: InMemoryLetta, agent: str, tmp_path: Path, more: Path
) -> None:
    """Nobody is at the bridge, so all waits: in the queue before it, or in the hop, which is made to hold it back."""
    with Bridge(letta, agent, tmp_path) as bridge, gateway(tmp_path, bridge.url, more) as running:
        for request in tasks(range(_MANY)):
            send(running.http, request)
        running.collector.kill()  # at once: whatever the last request has come to
        running.collector.forget(more)
        bridge.start()
        running.collector.start()
        every_end_once(letta, agent, _MANY)


def test_a_collector_that_is_killed_again_and_again_loses_no_end(
    letta: InMemoryLetta, agent: str, tmp_path: Path
) -> None:
    with Bridge(letta, agent, tmp_path) as bridge, gateway(tmp_path, bridge.url, _IMPATIENT) as running:
        bridge.start()
        requests = tasks(range(_MANY))
        for start in range(0, _MANY, 15):
            for request in requests[start : start + 15]:
                send(running.http, request)
            once(running.backend, 3 * (start + 15))  # what waits for the backend waits in memory
            running.collector.kill()
            running.collector.start()
        every_end_once(letta, agent, _MANY)
        once(running.backend, 3 * _MANY)


def test_what_waits_for_the_backend_goes_with_a_collector_that_is_killed(
    letta: InMemoryLetta, agent: str, tmp_path: Path
) -> None:
    """The README's row of what is lost: the exporter to the backend is yours, and has its queue in memory."""
    with Bridge(letta, agent, tmp_path) as bridge, gateway(tmp_path, bridge.url, _IMPATIENT) as running:
        bridge.start()
        running.backend_collector.kill()
        for request in tasks(range(_MANY)):
            send(running.http, request)
        running.collector.kill()
        running.backend_collector.start()
        running.collector.start()
        every_end_once(letta, agent, _MANY)
        (marker,) = tasks(range(_MANY, _MANY + 1))
        send(running.http, marker)
        once(running.backend, 3)


def test_a_collector_that_is_asked_to_end_exits_with_0_and_loses_nothing(
    letta: InMemoryLetta, agent: str, tmp_path: Path
) -> None:
    with Bridge(letta, agent, tmp_path) as bridge, gateway(tmp_path, bridge.url, _IMPATIENT) as running:
        for request in tasks(range(_MANY)):
            send(running.http, request)
        assert running.collector.stop() == 0
        bridge.start()
        running.collector.start()
        every_end_once(letta, agent, _MANY)
        once(running.backend, 3 * _MANY)


# --- The bridge -------------------------------------------------------------------------------------------------------


def test_a_bridge_that_stands_still_for_longer_than_requests_wait_loses_no_end(
    letta: InMemoryLetta, agent: str, tmp_path: Path
) -> None:
    """It gets what it was sent meanwhile more than once: the Collector cannot know that it has it."""
    with Bridge(letta, agent, tmp_path) as bridge, gateway(tmp_path, bridge.url, _IMPATIENT) as running:
        bridge.start()
        requests = tasks(range(_MANY))
        for request in requests[:20]:
            send(running.http, request)
        assert until(lambda: len(ends(letta, agent)) == 20, PATIENCE), bridge.log
        bridge.freeze()
        for request in requests[20:]:
            send(running.http, request)
        once(running.backend, 3 * _MANY)
        before = _retries(running)
        assert until(lambda: _retries(running) >= before + 4, PATIENCE), running.collector.log[-2000:]
        bridge.thaw()
        every_end_once(letta, agent, _MANY)
        once(running.backend, 3 * _MANY)


def test_a_bridge_that_is_asked_to_end_under_way_exits_with_0_and_loses_no_end(
    letta: InMemoryLetta, agent: str, tmp_path: Path
) -> None:
    with Bridge(letta, agent, tmp_path) as bridge, gateway(tmp_path, bridge.url, _IMPATIENT) as running:
        bridge.start()
        requests = tasks(range(_MANY))
        for start in range(0, _MANY, 20):
            for request in requests[start : start + 20]:
                send(running.http, request)
            assert until(lambda: len(ends(letta, agent)) > start, PATIENCE), bridge.log  # noqa: B023
            assert bridge.stop() == 0, bridge.log[-4000:]
            bridge.start()
        every_end_once(letta, agent, _MANY)
        once(running.backend, 3 * _MANY)


# --- Slow ones --------------------------------------------------------------------------------------------------------


def test_a_backend_that_takes_its_time_holds_no_end_up(letta: InMemoryLetta, agent: str, tmp_path: Path) -> None:
    with (
        Bridge(letta, agent, tmp_path) as bridge,
        gateway(tmp_path, bridge.url, _IMPATIENT, _HERE / "patient_with_backend.yaml") as running,
    ):
        bridge.start()
        running.backend.open.clear()
        for request in tasks(range(_MANY)):
            send(running.http, request)
        every_end_once(letta, agent, _MANY)
        running.backend.open.set()
        once(running.backend, 3 * _MANY)


def test_a_backend_slower_than_its_exporter_waits_gets_spans_again(tmp_path: Path) -> None:
    """The README's row: at least once, since no answer came. It is the same without Letta's branch."""
    with Sink() as bridge, gateway(tmp_path, bridge.url, _IMPATIENT, _HERE / "hasty_with_backend.yaml") as running:
        running.backend.open.clear()
        (request,) = tasks(range(1))
        send(running.http, request)
        assert until(lambda: max(ids(running.backend).values(), default=0) > 1, PATIENCE)
        running.backend.open.set()
        once(bridge, 3)


def _takes(running: Gateway, request: dict[str, Any]) -> bool:
    try:
        post(running.http, request)
    except urllib.error.HTTPError as error:
        assert error.code in (429, 503), error.read()
        return False
    return True


def test_a_full_queue_before_the_backend_tells_programs_to_send_again(tmp_path: Path) -> None:
    with Sink() as bridge, gateway(tmp_path, bridge.url, _IMPATIENT, _HERE / "small_before_backend.yaml") as running:
        running.backend_collector.kill()
        requests = tasks(range(_MANY))
        refused = next(number for number, request in enumerate(requests) if not _takes(running, request))
        running.backend_collector.start()
        for request in requests[refused:]:
            assert until(lambda: _takes(running, request), PATIENCE)  # noqa: B023
        once(running.backend, 3 * _MANY)
        assert until(lambda: len(names_at(bridge)) == _MANY, PATIENCE)


# --- What is lost -----------------------------------------------------------------------------------------------------


def test_a_token_that_the_bridge_does_not_know_costs_what_was_sent_with_it(tmp_path: Path) -> None:
    with Sink() as bridge, gateway(tmp_path, bridge.url, _IMPATIENT) as running:
        bridge.status = 401
        first, second = tasks(range(2))
        send(running.http, first)
        assert until(lambda: bridge.refused >= 1, PATIENCE)
        assert until(lambda: "Dropping data" in running.collector.log, PATIENCE)
        bridge.status = 200
        send(running.http, second)
        assert until(lambda: names_at(bridge), PATIENCE)
        assert names_at(bridge) == {"task 1"}
        once(running.backend, 6)


def test_a_small_disk_that_is_full_costs_letta_s_branch_alone_and_the_backend_nothing(tmp_path: Path) -> None:
    with Sink() as bridge, gateway(tmp_path, bridge.url, _IMPATIENT, small_disk="1m") as running:
        bridge.status = 503
        count, spans = 400, 50
        for request in tasks(range(count), spans):
            send(running.http, request)
        once(running.backend, count * spans)
        assert until(lambda: "no space left on device" in running.collector.log, PATIENCE)
        assert until(lambda: gave_up(running), PATIENCE)
        bridge.status = 200
        assert until(lambda: names_at(bridge), PATIENCE)
        # What was kept goes out, and makes room again.
        for number in range(count, count + 500):
            (request,) = tasks(range(number, number + 1))
            send(running.http, request)
            if until(lambda: f"task {number}" in names_at(bridge), 1.0):  # noqa: B023
                break
        else:
            raise AssertionError("the queue does not work again")
        assert max(ids(running.backend).values()) == 1
        assert len(ids(bridge)) < count * spans, "the disk was never full"
