"""A body stays in the spool as long as anything in it matters. What else it holds is over, after a crash as well."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from otel_letta.serve import over
from otel_letta.serve.answers import Refusal
from otel_letta.serve.over import Gone, Over
from otel_letta.serve.spool import OwnSpool
from otel_letta.store.choose import open_spool
from tests.support.otlp_sender import request_of
from tests.support.restarted import SECOND, START, Receiver
from tests.unit.serve.test_live import heartbeat, open_span

Part = dict[str, Any]


@pytest.fixture
def receiver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    found = Receiver(tmp_path / "bodies", monkeypatch)
    yield found
    found.close()


def agents_span(operation: str, trace: int, number: int, above: int = 0, seconds: float = 1.0) -> Part:
    said = {"gen_ai.operation.name": operation, "gen_ai.agent.name": f"agent {trace}", "gen_ai.tool.name": "read"}
    return {
        "traceId": f"{trace:032x}",
        "spanId": f"{number:016x}",
        **({"parentSpanId": f"{above:016x}"} if above else {}),
        "name": operation,
        "kind": 1,
        "startTimeUnixNano": str(START),
        "endTimeUnixNano": str(START + int(seconds * SECOND)),
        "attributes": [{"key": key, "value": {"stringValue": value}} for key, value in said.items()],
        "status": {"code": 1},
    }


def record(event: str, conversation: str, seconds: float = 0.0) -> Part:
    said = {"event.name": f"codex.{event}", "conversation.id": conversation}
    return {
        "timeUnixNano": str(START + int(seconds * SECOND)),
        "attributes": [{"key": key, "value": {"stringValue": value}} for key, value in said.items()],
    }


def spans(*parts: Part) -> tuple[bytes, str]:
    return request_of(*parts, service__name="svc"), "traces"


def logs(*parts: Part) -> tuple[bytes, str]:
    return request_of(*parts, logs=True, service__name="svc"), "logs"


class Story(NamedTuple):
    """Two tasks of which a body holds something, and what else comes of them."""

    both: tuple[bytes, str]
    end_of_first: tuple[bytes, str]
    end_of_second: tuple[bytes, str]
    names: tuple[str, str]


def _of_agents() -> Story:
    both = spans(*(agents_span("execute_tool", trace, 2, above=1) for trace in (1, 2)))
    first, second = (spans(agents_span("invoke_agent", trace, 1)) for trace in (1, 2))
    return Story(both, first, second, ("agent 1", "agent 2"))


def _of_heartbeats() -> Story:
    both = logs(*(heartbeat(open_span(f"task {number}", number)) for number in (1, 2)))
    first, second = (
        spans({**open_span(f"task {number}", number), "endTimeUnixNano": str(START + SECOND), "status": {"code": 1}})
        for number in (1, 2)
    )
    return Story(both, first, second, ("task 1", "task 2"))


def _of_conversations() -> Story:
    both = logs(*(record("user_prompt", conversation) for conversation in ("a", "b")))
    first, second = (
        logs(record("assistant_response", conversation, 1), record("session_end", conversation, 2))
        for conversation in ("a", "b")
    )
    return Story(both, first, second, ("svc", "svc"))


STORIES: dict[str, Callable[[], Story]] = {
    "agents": _of_agents,
    "heartbeats": _of_heartbeats,
    "conversations": _of_conversations,
}


@pytest.mark.parametrize("moment", ["at once", "after the look at what has settled"])
@pytest.mark.parametrize("kind", STORIES)
def test_what_was_over_in_a_body_that_stays_is_not_taken_up_again(receiver: Receiver, kind: str, moment: str) -> None:
    story = STORIES[kind]()
    receiver.take(*story.both)
    receiver.pass_seconds(0.1)
    receiver.take(*story.end_of_first)
    receiver.pass_seconds(3)
    assert receiver.ends == [(story.names[0], "completed")]
    if moment != "at once":
        receiver.pass_seconds(2)
        receiver.wait_until_kept(f"{story.both[1]}/json/zstd", "over")

    receiver.restart()
    receiver.restart()  # what is known of it is kept for the next one, too
    receiver.take(*story.end_of_second)
    receiver.pass_seconds(3)
    receiver.pass_seconds(100_000)

    assert receiver.ends == [(name, "completed") for name in story.names]
    assert receiver.open == set()
    receiver.pass_seconds(2)
    receiver.wait_until_kept()


def test_of_a_trace_that_is_over_what_comes_later_is_read_after_a_crash(receiver: Receiver) -> None:
    """It is over in the bodies of then, not for ever."""
    story = _of_agents()
    receiver.take(*story.both)
    receiver.take(*story.end_of_first)
    receiver.pass_seconds(3)
    receiver.pass_seconds(2)
    receiver.wait_until_kept("traces/json/zstd", "over")
    again = agents_span("invoke_agent", 1, 5, seconds=3.0)
    receiver.take(*spans({**again, "startTimeUnixNano": str(START + 2 * SECOND)}))
    receiver.restart()
    receiver.take(*story.end_of_second)
    receiver.pass_seconds(3)
    assert sorted(receiver.ends) == [("agent 1", "completed"), ("agent 1", "completed"), ("agent 2", "completed")]


def test_what_the_disk_refuses_for_a_while_is_written_and_forgotten_later(receiver: Receiver) -> None:
    story = _of_agents()
    receiver.take(*story.both)
    receiver.take(*story.end_of_first)
    receiver.disk_fails = True
    with pytest.raises(Refusal):
        receiver.take(*story.end_of_second)
    receiver.pass_seconds(3)
    receiver.pass_seconds(2)
    assert (receiver.ends, receiver.kept) == ([("agent 1", "completed")], ["traces/json/zstd"] * 2)
    receiver.disk_fails = False
    receiver.take(*story.end_of_second)
    receiver.pass_seconds(3)
    receiver.pass_seconds(2)
    receiver.wait_until_kept()
    receiver.restart()
    receiver.take(*story.end_of_first)  # its sender, which got no answer, comes again
    receiver.pass_seconds(10_000)
    assert receiver.ends == [("agent 1", "completed"), ("agent 2", "completed")]


def test_a_span_without_a_role_is_known_after_a_crash_to_be_above_an_agent_s_call(receiver: Receiver) -> None:
    """It is read, and nothing is under way in its trace yet."""
    between = agents_span("x", 1, 3, above=1)
    receiver.take(*spans({**between, "attributes": [between["attributes"][0]]}))
    receiver.pass_seconds(2)
    receiver.wait_until_kept("traces/json/zstd")
    receiver.restart()
    receiver.take(*spans(agents_span("execute_tool", 1, 2, above=3)))
    receiver.take(*spans(agents_span("invoke_agent", 1, 1)))
    receiver.pass_seconds(3)
    receiver.pass_seconds(2)
    assert [report.content for report in receiver.reports if "1 tool" in report.content][-1].startswith("Finished")
    receiver.wait_until_kept()
    receiver.take(*spans({**between, "traceId": f"{5:032x}", "attributes": [between["attributes"][0]]}))
    receiver.pass_seconds(31)
    receiver.wait_until_kept()


def test_log_events_that_come_before_their_prompt_are_there_when_it_comes(receiver: Receiver) -> None:
    receiver.take(*logs(record("assistant_response", "a", 1), record("session_end", "a", 2)))
    receiver.pass_seconds(2)
    receiver.restart()
    receiver.take(*logs(record("user_prompt", "a")))
    receiver.pass_seconds(3)
    assert receiver.ends == [("svc", "completed")]


def test_spans_of_other_traces_that_have_joined_a_turn_stay_with_it(receiver: Receiver) -> None:
    receiver.take(*logs(record("user_prompt", "a")))
    call = agents_span("chat", 5, 6)
    call["attributes"].append({"key": "conversation.id", "value": {"stringValue": "a"}})
    receiver.take(*spans({**call, "status": {"code": 2, "message": "exploded"}}))
    receiver.take(*logs(record("api_error", "a", 2)))
    receiver.pass_seconds(2)
    receiver.restart()
    receiver.pass_seconds(100)
    assert [report.error for report in receiver.reports if report.error] == ["exploded"]


def test_who_takes_over_a_spool_knows_what_was_over_by_the_ids_that_bodies_have_there(tmp_path: Path) -> None:
    first, second = (OwnSpool(tmp_path / "s", open_spool) for _ in range(2))
    second.spool.append("traces/json", b"{}").result()
    numbers = [first.spool.append("traces/json", b"{}").result() for _ in range(3)]
    first.spool.settle(numbers[:1])
    gone = Gone(frozenset({2**127}), frozenset({("svc", "a")}))
    first.spool.append(over.KIND, over.write(numbers, gone)).result()
    first.spool.append(over.KIND, b"of another version").result()
    first.close()
    *bodies, item, unread = second.take_over()
    items = {each.id: each.body for each in second.spool.unsettled()}
    found = Over()
    found.restore(items[item], item)
    assert [found.of(number) for number in bodies] == [gone, gone]
    assert not any(found.of(items_id) for items_id in items if items_id not in bodies and any(found.of(items_id)))
    assert items[unread] == b"of another version"
    second.close()
