"""A turn dies with its server, yet its run stays active for ever: who saw the server gone does not wait for it."""

from __future__ import annotations

import time
import uuid

import pytest

from otel_letta.delivery.gate import exchange, settle
from otel_letta.errors import LettaConnectionError, LettaError, LettaServerError, LettaTimeoutError
from otel_letta.letta.transport import Lane, Message, Run
from otel_letta.runtime.deadline import Deadline
from tests.support.fake_transport import FakeTransport

NEVER = Deadline()
"""Never give up."""


def _refused() -> LettaError:
    error = LettaConnectionError()
    error.__cause__ = RuntimeError("an HTTP library's")
    error.__cause__.__cause__ = ConnectionRefusedError()
    return error


class Restarted(FakeTransport):
    """A server that left the active run behind; its next look at runs raises ``gone``."""

    def __init__(self, gone: LettaError | None, age: float = 5.0) -> None:
        super().__init__()
        self.gone = gone
        self.began = time.monotonic() - age
        self.left_behind = f"run-{uuid.uuid4()}"

    def active_runs(self, lane: Lane, **_: object) -> list[Run]:
        gone, self.gone = self.gone, None
        if gone is not None:
            raise gone
        return [Run(self.left_behind, time.monotonic() - self.began)]


@pytest.fixture
def lane() -> Lane:
    return Lane(f"http://{uuid.uuid4()}.test", "agent-1")


def _look_after_silence(letta: FakeTransport, lane: Lane) -> None:
    with pytest.raises(LettaError):
        settle(letta, lane, ["otid"], until=NEVER, busy_patience=0.1)


def _send_again(letta: FakeTransport, lane: Lane) -> None:
    end = Message("end", "otid")
    exchange(
        letta,
        lane,
        [end],
        until=NEVER,
        patience=0.1,
        busy_patience=0.1,
        must_stay=["otid"],
        check_landed_first=True,
    )


@pytest.mark.parametrize("gone", [_refused(), LettaServerError(status=502)], ids=["refused", "502 of a proxy"])
def test_a_run_of_before_the_outage_is_not_waited_for(lane: Lane, gone: LettaError) -> None:
    letta = Restarted(gone)
    _look_after_silence(letta, lane)

    _send_again(letta, lane)

    assert letta.texts() == [["end"]]


@pytest.mark.parametrize(
    "gone",
    [LettaConnectionError("no such host"), LettaTimeoutError(), LettaServerError(status=500)],
    ids=["no such host", "silence", "500"],
)
def test_behind_other_failures_the_turn_may_go_on(lane: Lane, gone: LettaError) -> None:
    letta = Restarted(gone)
    _look_after_silence(letta, lane)

    with pytest.raises(LettaTimeoutError):
        _send_again(letta, lane)

    assert letta.texts() == []


def test_a_run_of_after_the_outage_is_waited_for(lane: Lane) -> None:
    letta = Restarted(_refused(), age=-10.0)
    _look_after_silence(letta, lane)

    with pytest.raises(LettaTimeoutError):
        _send_again(letta, lane)


def test_another_servers_outage_does_not_count(lane: Lane) -> None:
    letta = Restarted(_refused())
    _look_after_silence(letta, Lane("http://elsewhere.test", "agent-1"))

    with pytest.raises(LettaTimeoutError):
        _send_again(letta, lane)
