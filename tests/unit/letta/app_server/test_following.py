"""Following a turn on its socket: patience with it, and the ends of callers and programs."""

from __future__ import annotations

import threading
import time

import pytest
from websockets.sync.server import ServerConnection

from otel_letta import errors
from otel_letta.letta.app_server import following, socket
from otel_letta.runtime.deadline import Deadline
from tests.support.scripted_app_server import Frame, Held, ScriptedAppServer
from tests.unit.letta.app_server.support import AGENT, ONE, OTHER, Make, leave, send, sending


def test_a_slow_llm_is_waited_for(server: ScriptedAppServer, make: Make) -> None:
    server.on_input = lambda held: None
    with sending(make()) as outcome:
        server.wait_for(lambda: len(server.of("sync")) >= 2)  # it asks, and hears that a turn runs
        assert not outcome
        (held,) = server.running
        held.finish()
    assert outcome["answer"]["stop_reason"] == "end_turn"
    assert not server.of("runtime_start", "abort_message")


def test_a_question_that_is_not_answered_does_not_close_the_socket_of_a_running_turn(
    server: ScriptedAppServer, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("otel_letta.letta.app_server.socket._SHORT", 0.02)
    server.on_input = lambda held: None
    server.answers["sync"] = lambda connection, frame: None
    with sending(make()) as outcome:
        server.wait_for(lambda: server.of("sync"))
        until = time.monotonic() + 0.2
        with server.changed:
            server.changed.wait_for(lambda: server.wedged or outcome, max(until - time.monotonic(), 0.0))
        assert not outcome
        (held,) = server.running
        held.finish()
    assert outcome["answer"]["stop_reason"] == "end_turn"
    assert len(server.of("sync")) == 1
    assert not server.wedged


def test_the_end_of_a_turn_that_arrives_behind_the_word_that_nothing_runs_is_heard(
    server: ScriptedAppServer, make: Make
) -> None:
    server.on_input = lambda held: None

    def answer_then_end(connection: ServerConnection, frame: Frame) -> None:
        (held,) = server.running
        idle = {"type": "update_loop_status", "loop_status": {"status": "WAITING_ON_INPUT"}}
        server.tell(connection, {**idle, "runtime": frame["runtime"]})
        server.reply(connection, frame)
        held.finish("error", "500: the LLM is down")

    server.answers["sync"] = answer_then_end
    with pytest.raises(errors.LettaModelError):
        send(make())
    assert not server.wedged


def test_a_message_that_waits_behind_a_turn_is_waited_for(server: ScriptedAppServer, make: Make) -> None:
    server.accept = lambda frame: {"accepted": True, "disposition": "queued"}

    def wait_in_queue(connection: ServerConnection, frame: Frame) -> None:
        runtime = frame["runtime"]
        (held,) = server.running
        server.tell(connection, {"type": "update_loop_status", "runtime": runtime, "loop_status": {"status": "X"}})
        queue = [{"client_message_id": held.ids[0]}]
        server.tell(connection, {"type": "update_queue", "runtime": runtime, "queue": queue})
        server.reply(connection, frame)

    server.on_input = lambda held: None
    server.answers["sync"] = wait_in_queue
    with sending(make()) as outcome:
        server.wait_for(lambda: len(server.of("sync")) >= 2)
        assert not outcome
        (held,) = server.running
        held.tell("update_queue", queue=[])
        held.finish()
    assert outcome["answer"]["stop_reason"] == "end_turn"


def test_frames_of_others_on_the_same_socket_change_nothing(server: ScriptedAppServer, make: Make) -> None:
    def amid_others(held: Held) -> None:
        for runtime in ({"agent_id": OTHER, "conversation_id": "default"}, {"agent_id": AGENT, "conversation_id": "c"}):
            finished = {"type": "turn_finished", "stop_reason": "error", "error": "theirs", "run_id": held.run}
            server.tell(held.socket, {**finished, "runtime": runtime, "terminal_consumer_ids": [None]})
        held.tell("turn_finished", stop_reason="error", error="somebody's", run_id="x", terminal_consumer_ids=["y"])
        held.finish()

    server.on_input = amid_others
    server.noise = ["garbage", '{"type": "of the future", "runtime": 7}', b"\x00"]
    assert send(make())["stop_reason"] == "end_turn"


def test_a_rejected_input_has_not_landed_and_may_be_tried_again(server: ScriptedAppServer, make: Make) -> None:
    server.accept = lambda frame: {"accepted": False, "error": "Stable input ledger is at capacity"}
    with pytest.raises(errors.LettaRateLimitError, match="ledger is at capacity") as raised:
        send(make())
    assert (raised.value.may_have_landed, raised.value.parks) == (False, False)


# -- ends of the process -----------------------------------------------------------------------------------------------


def test_leaving_stops_our_own_turn_before_the_socket_closes(server: ScriptedAppServer, make: Make) -> None:
    server.on_input = lambda held: None
    letta = make()
    with sending(letta) as outcome:
        server.wait_for(lambda: server.running)
        leave(letta, 0.3)
    assert len(server.of("abort_message")) == 1
    assert isinstance(outcome["error"], errors.LettaTimeoutError)
    assert outcome["error"].may_have_landed is True
    server.wait_for(lambda: server.open == 0)
    assert not server.wedged


def test_leaving_gives_the_turn_the_time_that_there_is(server: ScriptedAppServer, make: Make) -> None:
    server.on_input = lambda held: None
    letta = make()
    with sending(letta) as outcome:
        server.wait_for(lambda: server.running)
        letta.ending.bring_forward(time.monotonic() + 60.0)
        (held,) = server.running
        held.finish()
    assert outcome["answer"]["stop_reason"] == "end_turn"
    assert not server.of("abort_message")


@pytest.mark.parametrize("shared", ["in the run", "in the queue"])
def test_leaving_does_not_stop_what_runs_for_others_as_well(server: ScriptedAppServer, make: Make, shared: str) -> None:
    def with_another(held: Held) -> None:
        if shared == "in the run":
            held.loop("PROCESSING", run=[*held.ids, "theirs"])
        else:
            held.tell("update_queue", queue=[{"client_message_id": i} for i in (*held.ids, "theirs")])

    server.on_input = with_another
    letta = make()
    with sending(letta) as outcome:
        server.wait_for(lambda: server.of("input"))
        leave(letta, 0.1)
    assert isinstance(outcome["error"], errors.LettaTimeoutError)
    assert not server.of("abort_message")


def test_the_first_word_about_the_end_holds(make: Make) -> None:
    letta = make()
    now = time.monotonic()
    letta.ending.bring_forward(now + 10.0)
    letta.ending.bring_forward(now + 50.0)
    assert letta.ending.at == now + 10.0
    letta.ending.bring_forward(now + 5.0)
    assert letta.ending.at == now + 5.0


def test_after_the_end_no_turn_is_begun(server: ScriptedAppServer, make: Make) -> None:
    letta = make()
    letta.ending.bring_forward(time.monotonic())
    with pytest.raises(errors.LettaTimeoutError) as raised:
        send(letta)
    assert raised.value.may_have_landed is False
    assert not server.of("input")


def test_leaving_waits_no_longer_than_it_may(server: ScriptedAppServer, make: Make) -> None:
    server.on_input = lambda held: None
    server.answers["abort_message"] = lambda connection, frame: None
    letta = make()
    with sending(letta):
        server.wait_for(lambda: server.running)
        began = time.monotonic()
        leave(letta, 0.2)
        assert time.monotonic() - began < 5.0
    assert len(server.of("abort_message")) == 1


def test_a_turn_that_takes_too_long_goes_on_with_its_socket_open(server: ScriptedAppServer, make: Make) -> None:
    server.on_input = lambda held: None
    letta = make(read_timeout=0.1)
    with pytest.raises(errors.LettaTimeoutError, match="OTEL_LETTA_READ_TIMEOUT") as raised:
        send(letta)
    assert raised.value.may_have_landed is True
    assert server.open == 1
    (held,) = server.running
    held.finish()
    server.wait_for(lambda: server.open == 0)
    assert not server.wedged
    assert not server.of("abort_message")


def test_a_turn_that_nobody_waits_for_is_stopped_at_the_end(server: ScriptedAppServer, make: Make) -> None:
    server.on_input = lambda held: None
    letta = make(read_timeout=0.1)
    with pytest.raises(errors.LettaTimeoutError):
        send(letta)
    leave(letta, 0.3)
    assert len(server.of("abort_message")) == 1
    server.wait_for(lambda: server.open == 0)
    assert not server.wedged


def test_a_duplicate_that_nobody_waits_for_does_not_keep_its_socket(server: ScriptedAppServer, make: Make) -> None:
    send(make())
    letta = make(read_timeout=0.03)
    with pytest.raises(errors.LettaTimeoutError):
        send(letta)
    server.wait_for(lambda: server.open == 0)


def test_a_socket_is_not_kept_for_ever(server: ScriptedAppServer, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "_LINGER_AT_MOST", 0.1)
    server.answers["input"] = lambda connection, frame: None
    with pytest.raises(errors.LettaTimeoutError):
        send(make(read_timeout=0.05))
    server.wait_for(lambda: server.open == 0)


def test_where_no_thread_can_be_started_the_turn_is_stopped(
    server: ScriptedAppServer, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.on_input = lambda held: None
    letta = make(read_timeout=0.1)

    def no_thread(self: threading.Thread) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    receive = socket.Session.receive

    def then_no_thread(self: socket.Session, seconds: float) -> Frame | None:
        monkeypatch.setattr(threading.Thread, "start", no_thread)  # the socket's own thread runs by now
        return receive(self, seconds)

    monkeypatch.setattr(socket.Session, "receive", then_no_thread)
    with pytest.raises(errors.LettaTimeoutError):
        send(letta)
    monkeypatch.undo()
    assert len(server.of("abort_message")) == 1
    assert not server.wedged


def test_ctrl_c_leaves_the_turn_to_the_exit(
    server: ScriptedAppServer, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.on_input = lambda held: None
    letta = make()
    step = following.Watch.step

    def interrupted(self: following.Watch) -> bool:
        if self._turn.accepted and threading.current_thread() is threading.main_thread():
            raise KeyboardInterrupt
        return step(self)

    monkeypatch.setattr(following.Watch, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        send(letta)
    assert server.open == 1
    leave(letta, 0.3)
    assert len(server.of("abort_message")) == 1
    assert not server.wedged


def test_a_call_ends_when_somebody_waits_for_less(server: ScriptedAppServer, make: Make) -> None:
    server.on_input = lambda held: None
    letta = make(read_timeout=60.0)
    began = time.monotonic()
    with pytest.raises(errors.LettaTimeoutError):
        letta.send(letta.lane(None, None), [ONE], until=Deadline.after(0.1))
    assert time.monotonic() - began < 5.0
    for held in list(server.running):
        held.finish()
