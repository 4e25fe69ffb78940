"""The page at ``/``: who may see it, what it shows, and that nothing in a task's text becomes markup."""

from __future__ import annotations

import html.parser
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from otel_letta.report import ProgressReport, TaskStatus
from otel_letta.serve import markup, page, session
from otel_letta.serve.doors import Tokens
from otel_letta.serve.server import Service
from otel_letta.serve.tasks import TaskList
from otel_letta.testing import InMemoryLetta
from tests.support.otlp_sender import post, request_of, serving, span_of
from tests.support.waiting import until

HOSTILE = (
    "<script>alert(1)</script><img src=x onerror=alert(1)>\"'><b>&lt;i&gt; &#60;u&#62; </li></ul></main> {{7*7}} ${x}"
)


@pytest.fixture
def receiver(letta: InMemoryLetta, agent: str) -> Iterator[Service]:
    with serving(letta.base_url, agent) as service:
        yield service


@pytest.fixture
def locked(letta: InMemoryLetta, agent: str, tmp_path: Path) -> Iterator[Service]:
    (tmp_path / "tokens").write_text("first-token\nsecond-token\n")
    with serving(letta.base_url, agent, token_file=tmp_path / "tokens") as service:
        yield service


def client(service: Service, **headers: str) -> httpx.Client:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx.Client(base_url=f"http://127.0.0.1:{service.options.port}", headers=named, timeout=60)


def report(task: str, **more: Any) -> ProgressReport:
    return ProgressReport(**{"task_id": task, "name": task, **more})


class Structure(html.parser.HTMLParser):
    """Tags with the names of their attributes, and all text."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, tuple[str, ...]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, tuple(name for name, _ in attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


# -- what it shows -----------------------------------------------------------------------------------------------------


def shown(*reports: ProgressReport, troubles: tuple[str, ...] = (), note: str = "") -> str:
    tasks = TaskList("agent-1")
    for each in reports:
        tasks.take(each)
    return markup.page(markup.View(tasks.show(), troubles, 1_000.0, note), signed_in=True)


def test_hostile_texts_stay_texts_wherever_they_stand() -> None:
    def with_text(text: str) -> Structure:
        fields = {"name": text, "chat_id": text, "service": text, "agent_id": text}
        return Structure(
            shown(
                report("a", content=text, **fields),
                report("b", content=text, waiting=True, **fields),
                report("c", result=text, status=TaskStatus.COMPLETED, **fields),
                report("d", error=text, content=text, status=TaskStatus.FAILED, **fields),
                troubles=(text,),
                note=text,
            )
        )

    harmless, hostile = with_text("x"), with_text(HOSTILE)
    assert hostile.tags == harmless.tags
    assert hostile.text.count("<script>alert(1)</script>") >= harmless.text.count("x") - 40
    assert hostile.text.count("<script>") >= 16
    assert HOSTILE[:60] in hostile.text


def test_what_changes_is_one_line_whatever_the_texts_are() -> None:
    tasks = TaskList("agent-1")
    tasks.take(report("a", content="one\r\ntwo\u2028three\x85four", name="n\nm"))
    line = markup.fragment(markup.View(tasks.show(), ["a\nb"], 0.0))
    assert len(line.splitlines()) == 1


def test_what_waits_comes_first_and_an_end_has_its_result() -> None:
    text = Structure(
        shown(
            report("Import", content="3 of 9", progress=0.333),
            report("Deploy", content="needs your yes", waiting=True),
            report("Count", result="42 rows", status=TaskStatus.COMPLETED, duration=61.0),
        )
    ).text
    places = [text.index(part) for part in ("Waiting for somebody", "Deploy", "Under way", "Import", "Ended", "Count")]
    assert places == sorted(places)
    for part in ("needs your yes", "33%", "3 of 9", "42 rows", "took 1 min 1 s"):
        assert part in text


def test_what_waits_for_letta_is_said_with_its_reason() -> None:
    idle = {"waiting": 0, "in_flight": 0, "parked": None, "last_error": None}
    stats = {
        "lanes": {
            "one": idle,
            "two": {**idle, "waiting": 2, "parked": "HTTP 401"},
            "three": {**idle, "in_flight": 1},
            "four": {**idle, "waiting": 1},
            "five": {**idle, "last_error": "an old one"},
            "six": {**idle, "waiting": 1, "last_error": "timed\nout"},
        },
        "boards": {"agent-1": {"parked": None}, "agent-2": {"parked": "no such agent"}},
        "outbox": {"place": "file", "error": "disk full"},
    }
    assert markup.troubles_of(stats) == [
        "2 reports for two: HTTP 401",
        "1 report for three: the agent is taking its turn",
        "1 report for four: not due yet",
        "1 report for six: timed out",
        "The board of agent-2 cannot be written: no such agent",
        "The outbox file cannot be used: disk full",
    ]
    never_opened = {"lanes": {}, "boards": {}, "outbox": {"place": None, "error": "no right to"}}
    assert markup.troubles_of(never_opened) == ["The outbox cannot be used: no right to"]
    assert markup.troubles_of({"lanes": {"one": idle}, "boards": {}}) == []


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(-5, "0 s"), (59.9, "59 s"), (60, "1 min"), (3_600, "1 h"), (7_500, "2 h 5 min"), (500_000, "5 d")],
)
def test_an_age_is_in_words(seconds: float, words: str) -> None:
    assert markup.age(seconds) == words


def test_a_task_sent_as_otlp_is_on_the_page_and_in_the_data(receiver: Service, agent: str) -> None:
    assert post(receiver.options.port, "/v1/traces", request_of(span_of(HOSTILE), service__name="s")).status == 200
    with client(receiver) as browser:
        assert until(lambda: browser.get("/tasks.json").json()["ended"])
        found = browser.get("/tasks.json").json()
        (task,) = found["ended"]
        assert (task["state"], task["agent"], task["chat"], task["service"]) == ("completed", agent, "c1", "s")
        got = browser.get("/")
        assert got.headers["content-type"] == "text/html; charset=utf-8"
        assert "default-src 'none'" in got.headers["content-security-policy"]
        assert "<script>alert" not in got.text
        assert "&lt;script&gt;alert" in got.text
        # It works without its script.
        assert '<noscript><meta http-equiv="refresh"' in got.text
        for name in ("page.css", "page.js"):
            assert name in got.text
            assert browser.get(f"/{name}").status_code == 200


# -- live --------------------------------------------------------------------------------------------------------------


def events(answer: httpx.Response) -> Iterator[str]:
    for line in answer.iter_lines():
        if line.startswith("data: "):
            yield line.removeprefix("data: ")


def test_a_change_comes_at_once_to_who_watches(receiver: Service) -> None:
    with client(receiver) as browser, browser.stream("GET", "/events") as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        coming = events(answer)
        assert "No task has ended yet" in next(coming)
        assert post(receiver.options.port, "/v1/traces", request_of(span_of("Import"))).status == 200
        assert any("Import" in each for each in coming)


def test_the_end_of_the_program_ends_every_stream(letta: InMemoryLetta, agent: str) -> None:
    with (
        serving(letta.base_url, agent) as service,
        client(service) as browser,
        browser.stream("GET", "/events") as answer,
    ):
        coming = events(answer)
        next(coming)
        service.stop()
        assert list(coming) == []  # it ended as it should: httpx raises for half an answer


def test_viewers_are_bounded_and_their_places_come_free(receiver: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "_MOST_VIEWERS", 1)
    with client(receiver) as browser:
        with browser.stream("GET", "/events") as answer:
            coming = events(answer)
            next(coming)
            with browser.stream("GET", "/events") as refused:
                pass
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")

        def is_free() -> bool:
            with browser.stream("GET", "/events") as answer:
                return answer.status_code == 200

        assert until(is_free)


def test_a_stream_ends_when_its_token_is_taken_away(locked: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "_KEEP_ALIVE", 0.1)
    with client(locked) as browser:
        assert browser.post("/login", data={"token": "first-token"}).status_code == 303
        with browser.stream("GET", "/events") as answer:
            coming = events(answer)
            next(coming)
            assert locked.options.token_file is not None
            locked.options.token_file.write_text("second-token\n")
            assert list(coming) == []
        assert browser.get("/events").status_code == 401
        assert browser.get("/").status_code == 401


# -- who may see it ----------------------------------------------------------------------------------------------------


def test_without_the_token_there_is_a_form_and_nothing_else(locked: Service) -> None:
    locked.intake.tasks.take(report("Secret plan"))
    with client(locked) as browser:
        got = browser.get("/")
        assert got.status_code == 401
        assert 'type="password"' in got.text
        assert "Secret plan" not in got.text
        for path in ("/events", "/tasks.json"):
            with browser.stream("GET", path) as refused:
                assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
                assert b"Secret plan" not in refused.read()


@pytest.mark.parametrize("token", ["first-token", " second-token "])
def test_the_form_gives_a_cookie_that_is_not_the_token(locked: Service, token: str) -> None:
    locked.intake.tasks.take(report("Secret plan"))
    with client(locked) as browser:
        got = browser.post("/login", data={"token": token})
        assert (got.status_code, got.headers["location"]) == (303, "./")
        cookie = got.headers["set-cookie"]
        assert token.strip() not in cookie
        assert "HttpOnly" in cookie and "SameSite=Lax" in cookie
        assert "Secret plan" in browser.get("/").text
        assert browser.get("/tasks.json").json()["working"][0]["name"] == "Secret plan"
        # It is for people: a page elsewhere must not be able to post spans by it.
        assert (
            browser.post("/v1/traces", content=b"{}", headers={"content-type": "application/json"}).status_code == 401
        )
        assert browser.get("/metrics").status_code == 401
        browser.post("/logout")
        assert browser.get("/").status_code == 401


def test_a_token_in_the_address_is_exchanged_at_once_and_in_no_log(
    locked: Service, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with client(locked) as browser:
        got = browser.get("/", params={"token": "first-token"})
        assert (got.status_code, got.headers["location"]) == (303, "./")
        assert browser.get("/").status_code == 200
        wrong = browser.get("/", params={"token": "third-token"})
        assert (wrong.status_code, wrong.headers.get("set-cookie")) == (401, None)
        assert "third-token" not in wrong.text
    ours = [
        each for each in caplog.records if not each.name.startswith("httpx") and not each.name.startswith("httpcore")
    ]
    assert not [each for each in ours if "-token" in each.getMessage()]


def test_a_wrong_token_is_told_to_be_wrong_and_one_that_was_taken_away_to_be_old(locked: Service) -> None:
    with client(locked) as browser:
        wrong = browser.post("/login", data={"token": "<b>"})
        assert wrong.status_code == 401
        assert 'role="alert"' in wrong.text and "<b>" not in wrong.text
        assert browser.post("/login", content=b"").status_code == 401
        assert browser.post("/login", data={"token": "x" * 10_000}).status_code == 413
        assert locked.options.token_file is not None
        locked.options.token_file.write_text("second-token\n")
        assert browser.post("/login", data={"token": "first-token"}).status_code == 503


def test_a_program_may_use_the_header(locked: Service) -> None:
    with client(locked, Authorization="Bearer second-token") as program:
        assert program.get("/tasks.json").status_code == 200
        assert program.get("/").status_code == 200
    with client(locked, Authorization="Bearer third-token") as program:
        assert program.get("/tasks.json").status_code == 401


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/", {"Host": "evil.example"}, 403),
        ("/events", {"Host": "evil.example"}, 403),
        ("/tasks.json", {"Host": "evil.example"}, 403),
        ("/events", {"Sec-Fetch-Site": "cross-site"}, 403),
        ("/tasks.json", {"Origin": "https://evil.example"}, 403),
        ("/", {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}, 200),
    ],
)
def test_where_no_token_is_needed_no_other_page_can_read(
    receiver: Service, path: str, headers: dict[str, str], status: int
) -> None:
    with client(receiver) as browser:
        got = browser.get(path, headers=headers)
        assert got.status_code == status
        assert not [name for name in got.headers if name.startswith("access-control")]


@pytest.mark.parametrize("path", ["/login", "/logout"])
def test_no_other_page_signs_anybody_in_or_out(locked: Service, path: str) -> None:
    with client(locked) as browser:
        got = browser.post(path, data={"token": "first-token"}, headers={"Origin": "https://evil.example"})
        assert (got.status_code, got.headers.get("set-cookie")) == (403, None)
        own = browser.post(
            path, data={"token": "first-token"}, headers={"Origin": "http://o.example", "Host": "o.example"}
        )
        assert own.status_code == 303


def test_a_cookie_is_good_for_a_while_and_for_its_token_alone() -> None:
    tokens = Tokens(["one", "two"])
    value = session.cookie_of("two", 1_000.0)
    assert session.is_good(value, tokens, 1_001.0)
    assert not session.is_good(value, tokens, 1_001.0 + session.LASTS)
    assert not session.is_good(value, Tokens(["one"]), 1_001.0)
    later = value.replace(value.partition(".")[0], str(int(time.time()) + 10**9))
    for forged in (later, "", "1", value + "0", value.upper(), "²" * 5 + value[5:]):
        assert not session.is_good(forged, tokens, 1_001.0)
