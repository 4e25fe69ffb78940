"""The tasks over HTTP: paths, doors, bounds, and the way of an instruction from an agent to a program."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from otel_letta.report import ProgressReport
from otel_letta.serve import api, session
from otel_letta.serve.server import Service
from otel_letta.testing import InMemoryLetta
from tests.support.otlp_sender import Connection, post, request_of, serving, span_of
from tests.support.waiting import until

OTHER = "agent-00000000-0000-4000-8000-00000000000f"


@pytest.fixture
def receiver(letta: InMemoryLetta, agent: str) -> Iterator[Service]:
    with serving(letta.base_url, agent) as service:
        yield service


@pytest.fixture
def locked(letta: InMemoryLetta, agent: str, tmp_path: Path) -> Iterator[Service]:
    (tmp_path / "tokens").write_text(f"sender\nown agent={agent}\nother agent={OTHER}\nany agent=*\n")
    with serving(letta.base_url, agent, token_file=tmp_path / "tokens") as service:
        yield service


def client(service: Service, token: str | None = None, **headers: str) -> httpx.Client:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    if token is not None:
        named["authorization"] = f"Bearer {token}"
    return httpx.Client(base_url=f"http://127.0.0.1:{service.options.port}", headers=named, timeout=60)


def known(service: Service, task: str, **more: Any) -> None:
    service.intake.tasks.take(ProgressReport(**{"task_id": task, "name": task, **more}))


def listed(found: httpx.Response) -> list[str]:
    return [task["task_id"] for task in found.json()["tasks"]]


GO_ON = {"action": "continue", "text": "go on"}


def test_a_task_sent_as_otlp_is_listed_and_shown_with_its_steps(receiver: Service, agent: str) -> None:
    assert post(receiver.options.port, "/v1/traces", request_of(span_of("Import"), service__name="s")).status == 200
    with client(receiver) as asks:
        assert until(lambda: listed(asks.get("/api/tasks")))
        answer = asks.get("/api/tasks")
        (task,) = answer.json()["tasks"]
        assert (task["name"], task["state"], task["agent_id"], task["service"]) == ("Import", "completed", agent, "s")
        assert answer.headers["content-type"] == "application/json"
        assert answer.headers["cache-control"] == "no-store"
        assert not [name for name in answer.headers if name.startswith("access-control")]
        found = asks.get(f"/api/tasks/{task['task_id']}").json()
        assert found["steps"][-1]["state"] == "completed" and found["trace_id"]
        assert listed(asks.get("/api/tasks", headers={"x-agent-id": OTHER})) == []
        assert asks.get(f"/api/tasks/{task['task_id']}", headers={"x-agent-id": OTHER}).status_code == 404


def test_an_instruction_goes_from_the_agent_to_the_program_that_waits(locked: Service, agent: str) -> None:
    known(locked, "import")
    with (
        client(locked, "sender") as program,
        client(locked, "own", x_agent_id=agent) as asks,
        ThreadPoolExecutor() as at,
    ):
        coming = at.submit(program.get, "/api/tasks/import/instructions", params={"wait": 60})
        number = locked.intake.tasks.show().working[0].id
        assert until(lambda: locked.asking.instructions.is_asked_for(number))
        given = asks.post("/api/tasks/import/instructions", json=GO_ON)
        assert given.status_code == 200
        assert "which asks" in given.json()["message"]
        taken = coming.result(60)
        assert taken.json() == {"instructions": [{"id": given.json()["id"], **GO_ON}]}
        assert program.get("/api/tasks/import/instructions").json() == {"instructions": []}


@pytest.mark.parametrize("task", ["a/b", "a//b", "ä ö", "x?y#z", "100%", "a%2Fb", "..", "instructions", "/", "<b>"])
def test_an_id_may_hold_anything(receiver: Service, task: str) -> None:
    known(receiver, task)
    path = f"/api/tasks/{quote(task, safe='').replace('.', '%2E')}"
    with client(receiver) as asks:
        assert asks.get(path).json()["task_id"] == task
        assert asks.post(f"{path}/instructions", json=GO_ON).status_code == 200
        assert len(asks.get(f"{path}/instructions").json()["instructions"]) == 1


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/api/tasks", 200),
        ("GET", "/api/tasks/", 200),
        ("GET", "//api//tasks//", 200),
        ("POST", "/api/tasks", 405),
        ("DELETE", "/api/tasks/import", 405),
        ("PUT", "/api/tasks/import/instructions", 405),
        ("OPTIONS", "/api/tasks", 405),
        ("HEAD", "/api/tasks", 405),
        ("GET", "/api/tasks/unknown", 404),
        ("GET", "/api/tasks/unknown/instructions", 404),
        ("GET", "/api/tasks/import/steps", 404),
        ("GET", "/api/tasks/import/instructions/1", 404),
        ("GET", "/api/tasksx", 404),
        ("GET", "/api/tasks/import/instructions?wait=soon", 400),
        ("GET", "/api/tasks/import/instructions?wait=-1", 400),
        ("GET", "/api/tasks/import/instructions?wait=nan", 400),
        ("GET", "/api/tasks/import/instructions?wait=", 200),
        ("GET", "/api/tasks/import/instructions?wait=0&wait=0.0", 200),
    ],
)
def test_paths_and_methods(receiver: Service, method: str, path: str, status: int) -> None:
    known(receiver, "import")
    with client(receiver) as asks:
        answer = asks.request(method, f"http://127.0.0.1:{receiver.options.port}{path}")
        assert answer.status_code == status
        if status != 200 and method != "HEAD":
            assert answer.json()["message"]
        assert ("allow" in answer.headers) == (status == 405)


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b"", "application/json", 400),
        (b"{", "application/json", 400),
        (b"[]", "application/json", 400),
        (b"null", "application/json", 400),
        (b"[" * 60_000, "application/json", 400),
        (b'"\xff"', "application/json", 400),
        (b"{}", "application/json", 400),
        (b'{"action": 1e999, "text": NaN}', "application/json", 400),
        (b'{"action": "accept"}', "application/json", 409),
        (b'{"action": "continue", "text": "\\ud800 \\u0000 go on"}', "application/json; charset=utf-8", 200),
        (json.dumps(GO_ON).encode(), "text/plain", 415),
        (json.dumps(GO_ON).encode(), "application/x-www-form-urlencoded", 415),
        (b'{"text": "' + b"x" * 70_000 + b'"}', "application/json", 413),
        (b'{"action": "continue", "text": "' + b"x" * 9_000 + b'"}', "application/json", 413),
    ],
)
def test_bad_bodies_get_a_clear_answer(receiver: Service, body: bytes, kind: str, status: int) -> None:
    known(receiver, "import")
    with client(receiver) as asks:
        answer = asks.post("/api/tasks/import/instructions", content=body, headers={"content-type": kind})
        assert answer.status_code == status
        assert answer.json()


def test_a_body_of_ten_megabytes_is_not_read(receiver: Service) -> None:
    known(receiver, "import")
    with Connection(receiver.options.port) as sends:
        sends.send(
            b"POST /api/tasks/import/instructions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Content-Length: 10000000\r\n\r\n{"
        )
        assert sends.answer().status == 413
    with Connection(receiver.options.port) as sends:
        sends.send(
            b"POST /api/tasks/import/instructions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n"
        )
        while sends.send(b"10000\r\n" + b"x" * 65_536 + b"\r\n"):  # until the receiver has enough of it
            pass
    with client(receiver) as asks:
        assert asks.get("/api/tasks").status_code == 200


def test_a_body_that_stops_is_given_up(letta: InMemoryLetta, agent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "BOUNDS", api.BOUNDS._replace(patience=0.1))
    with serving(letta.base_url, agent) as receiver, Connection(receiver.options.port) as slow:
        known(receiver, "import")
        slow.send(
            b"POST /api/tasks/import/instructions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Content-Length: 50\r\n\r\n{"
        )
        answer = slow.answer()
        assert (answer.status, answer.headers["connection"], answer.headers["retry-after"]) == (503, "close", "5")


def test_waiting_programs_are_bounded_and_one_that_leaves_takes_nothing(
    receiver: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api, "_MOST_ASKING", 1)
    known(receiver, "import")
    (task,) = receiver.intake.tasks.show().working
    asking = receiver.asking.instructions._boxes

    def waits() -> bool:
        return task.id in asking and asking[task.id].asking == 1

    with client(receiver) as asks:
        with Connection(receiver.options.port) as leaves:
            leaves.send(b"GET /api/tasks/import/instructions?wait=60 HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert until(waits)
            refused = asks.get("/api/tasks/import/instructions?wait=60")
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
        assert until(lambda: not waits())
        asks.post("/api/tasks/import/instructions", json=GO_ON)
        assert len(asks.get("/api/tasks/import/instructions?wait=60").json()["instructions"]) == 1


def test_the_end_of_the_program_ends_every_wait(letta: InMemoryLetta, agent: str) -> None:
    with serving(letta.base_url, agent) as service, client(service) as asks, ThreadPoolExecutor() as at:
        known(service, "import")
        (task,) = service.intake.tasks.show().working
        coming = at.submit(asks.get, "/api/tasks/import/instructions", params={"wait": 60})
        assert until(lambda: service.asking.instructions.is_asked_for(task.id))
        service.stop()
        assert coming.result(60).json() == {"instructions": []}


def test_an_unforeseen_fault_is_503(receiver: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("secret of the inside")

    monkeypatch.setattr(receiver.intake.tasks, "show", fails)
    with client(receiver) as asks:
        answer = asks.get("/api/tasks")
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
        assert "secret" not in answer.text


# -- an agent's answer -------------------------------------------------------------------------------------------------


def waits(task: str, content: str, number: int = 1) -> bytes:
    """A span that has ended while its task waits for somebody."""
    said = {"letta.task.id": task, "letta.task.name": task, "letta.task.content": content}
    attributes: list[dict[str, Any]] = [{"key": key, "value": {"stringValue": text}} for key, text in said.items()]
    attributes.append({"key": "letta.task.waiting", "value": {"boolValue": True}})
    return request_of(span_of(task, number, attributes=attributes, status={}))


def test_a_block_in_an_answer_to_a_report_comes_to_the_program(
    receiver: Service, letta: InMemoryLetta, agent: str
) -> None:
    letta.answer_next('Yes. <task-instruction task_id="deploy" action="accept">go</task-instruction>')
    assert post(receiver.options.port, "/v1/traces", waits("deploy", "deletes A?")).status == 200
    with client(receiver) as program:
        found: list[dict[str, Any]] = []

        def come() -> bool:
            answer = program.get("/api/tasks/deploy/instructions", params={"wait": 5})
            found.extend(answer.json().get("instructions", []))
            return bool(found)

        assert until(come, 60)
    assert [(each["action"], each["text"]) for each in found] == [("accept", "go")]


def test_a_call_that_came_here_and_stands_in_the_answer_too_is_one(
    receiver: Service, letta: InMemoryLetta, agent: str
) -> None:
    arguments = {"task_id": "deploy", "action": "continue", "text": "go on"}
    known(receiver, "other")
    with client(receiver) as asks:
        assert post(receiver.options.port, "/v1/traces", waits("deploy", "begins")).status == 200
        assert until(lambda: "deploy" in listed(asks.get("/api/tasks")) and letta.reports(agent), 60)
        # What the agent's tool does in the turn that the next report brings.
        letta.answer_next(
            '<task-instruction task_id="other" action="continue">this too</task-instruction>',
            calls=[("instruct_task", arguments)],
        )
        given = asks.post("/api/tasks/deploy/instructions", json={"action": "continue", "text": "go on"})
        assert given.status_code == 200
        assert post(receiver.options.port, "/v1/traces", waits("deploy", "which of the two?", 2)).status == 200
        other: list[dict[str, Any]] = []

        def come() -> bool:  # what stands in the answer has been dealt with then
            other.extend(asks.get("/api/tasks/other/instructions?wait=5").json()["instructions"])
            return bool(other)

        assert until(come, 60)
        taken = asks.get("/api/tasks/deploy/instructions").json()["instructions"]
        assert [each["text"] for each in taken] == ["go on"]


# -- who may -----------------------------------------------------------------------------------------------------------

_DOORS = ("list", "show", "take", "instruct", "send", "page", "data", "metrics")


def statuses(service: Service, token: str | None, **headers: str) -> dict[str, int]:
    with client(service, token, **headers) as asks:
        return {
            "list": asks.get("/api/tasks").status_code,
            "show": asks.get("/api/tasks/import").status_code,
            "take": asks.get("/api/tasks/import/instructions").status_code,
            "instruct": asks.post("/api/tasks/import/instructions", json=GO_ON).status_code,
            "send": asks.post("/v1/traces", json={"resourceSpans": []}).status_code,
            "page": asks.get("/").status_code,
            "data": asks.get("/tasks.json").status_code,
            "metrics": asks.get("/metrics").status_code,
        }


@pytest.mark.parametrize(
    ("token", "expected"),
    [
        ("sender", (200, 200, 200, 403, 200, 200, 200, 200)),
        ("own", (200, 200, 403, 200, 403, 401, 403, 403)),
        ("other", (200, 404, 403, 404, 403, 401, 403, 403)),
        ("any", (200, 200, 403, 200, 403, 401, 403, 403)),
        ("stranger", (401, 401, 401, 401, 401, 401, 401, 401)),
        (None, (401, 401, 401, 401, 401, 401, 401, 401)),
    ],
)
def test_what_each_token_opens(locked: Service, token: str | None, expected: tuple[int, ...]) -> None:
    known(locked, "import")
    assert statuses(locked, token) == dict(zip(_DOORS, expected, strict=True))


def test_without_tokens_the_header_limits_and_nothing_else(receiver: Service, agent: str) -> None:
    known(receiver, "import")
    assert set(statuses(receiver, None).values()) == {200}
    assert set(statuses(receiver, None, x_agent_id=agent).values()) == {200}
    limited = statuses(receiver, None, x_agent_id=OTHER)
    assert (limited["list"], limited["show"], limited["take"], limited["instruct"]) == (200, 404, 404, 404)


def test_a_token_of_every_agent_is_limited_by_the_header(locked: Service, agent: str) -> None:
    known(locked, "import")
    assert statuses(locked, "any", x_agent_id=agent)["show"] == 200
    limited = statuses(locked, "any", x_agent_id=OTHER)
    assert (limited["list"], limited["show"], limited["instruct"]) == (200, 404, 404)


def test_an_agents_token_makes_no_cookie(locked: Service) -> None:
    with client(locked) as browser:
        assert browser.post("/login", data={"token": "own"}).status_code == 401
        # Nor one that its holder makes by the rule, which is no secret.
        forged = session.cookie_of("own", time.time())
        name = session.name_for(locked.options.port)
        assert browser.get("/tasks.json", headers={"cookie": f"{name}={forged}"}).status_code == 401


def test_a_cookie_of_the_page_opens_nothing_here(locked: Service) -> None:
    known(locked, "import")
    with client(locked) as browser:
        assert browser.post("/login", data={"token": "sender"}).status_code == 303
        assert browser.get("/tasks.json").status_code == 200
        assert browser.get("/api/tasks").status_code == 401


@pytest.mark.parametrize(
    "headers",
    [{"Host": "evil.example"}, {"Sec-Fetch-Site": "cross-site"}, {"Origin": "https://evil.example"}],
)
def test_where_no_token_is_needed_no_page_asks(receiver: Service, headers: dict[str, str]) -> None:
    known(receiver, "import")
    with client(receiver) as browser:
        assert browser.get("/api/tasks", headers=headers).status_code == 403
        assert browser.post("/api/tasks/import/instructions", json=GO_ON, headers=headers).status_code == 403
        assert browser.get("/api/tasks/import/instructions", headers=headers).status_code == 403


def test_without_the_sdk_its_path_says_how_to_get_it(
    letta: InMemoryLetta, agent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("mcp", "mcp_types"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "otel_letta.serve.mcp", raising=False)
    with serving(letta.base_url, agent) as service, client(service) as asks:
        answer = asks.post("/mcp", json={})
        assert (answer.status_code, "otel-letta[mcp]" in answer.json()["message"]) == (404, True)


def test_several_processes_say_so(letta: InMemoryLetta, agent: str) -> None:
    with serving(letta.base_url, agent, shared=True) as service, client(service) as asks:
        assert "its own tasks only" in asks.get("/api/tasks").json()["note"]
        assert "its own tasks only" in asks.get("/api/tasks/x").json()["message"]


def test_many_agents_and_programs_at_once_lose_and_double_nothing(receiver: Service) -> None:
    known(receiver, "import")
    known(receiver, "other")
    texts = [f"step {number}" for number in range(60)]
    taken: list[str] = []
    lock = threading.Lock()

    def give(text: str) -> None:
        with client(receiver) as asks:
            assert until(
                lambda: (
                    asks.post("/api/tasks/import/instructions", json={"action": "continue", "text": text}).status_code
                    == 200
                )
            )

    def come() -> None:
        with client(receiver) as program:
            while len(taken) < len(texts):
                found = program.get("/api/tasks/import/instructions", params={"wait": 0.5}).json()["instructions"]
                with lock:
                    taken.extend(each["text"] for each in found)

    with ThreadPoolExecutor(8) as at:
        programs = [at.submit(come) for _ in range(4)]
        for each in [at.submit(give, text) for text in texts]:
            each.result(60)
        for each in programs:
            each.result(60)
    assert sorted(taken) == sorted(texts)
