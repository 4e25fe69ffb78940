"""An address is told apart once: REST server, App Server or Letta Cloud; and nobody is shown a token unasked."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from otel_letta.errors import (
    LettaConnectionError,
    LettaError,
    LettaRateLimitError,
    LettaServerError,
    LettaTimeoutError,
)
from otel_letta.letta import flavour
from otel_letta.letta.flavour import Flavour, ServerInfo, forget, recognise
from otel_letta.runtime.deadline import Deadline
from otel_letta.settings import Settings
from tests.support.stub_server import HTML, INFO, Answer, Stub, app_server, rest, stub_server

TOKEN = "open-sesame-1001"
CAPABLE = frozenset({"memory_management", "conversation_management"})


@pytest.fixture(autouse=True)
def nothing_known() -> Iterator[None]:
    flavour._known.clear()
    yield
    assert not flavour._pending
    flavour._known.clear()


@pytest.fixture
def stub() -> Iterator[Stub]:
    with stub_server(rest()) as server:
        yield server


def settings(url: str, **keywords: Any) -> Settings:
    return Settings.resolve(environ={}, base_url=url, agent_id="agent-1", **keywords)


def as_websocket(url: str) -> str:
    return url.replace("http://", "ws://") + "/ws"


# -- what answers


def test_a_rest_server_says_so_in_one_request_without_the_token(stub: Stub) -> None:
    assert recognise(settings(stub.url, password=TOKEN)) == ServerInfo(Flavour.REST, version="0.16.8")
    assert stub.seen == [("/v1/health/", None)]


@pytest.mark.parametrize("spell", [str, as_websocket], ids=["http", "ws"])
@pytest.mark.parametrize("openai_api", [True, False])
def test_an_app_server_says_what_it_can_do(stub: Stub, spell: Callable[[str], str], openai_api: bool) -> None:
    stub.answer = app_server(openai_api=openai_api)
    assert recognise(settings(spell(stub.url), password=TOKEN)) == ServerInfo(
        Flavour.APP_SERVER, "0.34.12", 1, "local", CAPABLE, openai_api
    )
    assert stub.tokens == []


def test_an_app_server_that_wants_its_token_gets_it_and_then_says_the_same(stub: Stub) -> None:
    stub.answer = app_server(token=TOKEN)
    found = recognise(settings(as_websocket(stub.url), password=TOKEN))
    assert found == ServerInfo(Flavour.APP_SERVER, "0.34.12", 1, "local", CAPABLE, True)
    assert stub.seen[:2] == [("/app-server-info", None), ("/app-server-info", f"Bearer {TOKEN}")]


@pytest.mark.parametrize("password", [None, "another"], ids=["missing", "wrong"])
@pytest.mark.parametrize("spell", [str, as_websocket], ids=["http", "ws"])
def test_an_app_server_is_known_even_where_its_token_is_not(
    stub: Stub, spell: Callable[[str], str], password: str | None
) -> None:
    stub.answer = app_server(token=TOKEN)
    assert recognise(settings(spell(stub.url), password=password)) == ServerInfo(Flavour.APP_SERVER)


def test_letta_cloud_is_known_by_its_name_without_asking() -> None:
    for url in ("https://api.letta.com", "https://API.letta.com/v1", "wss://api.letta.com"):
        assert recognise(settings(url, api_key=TOKEN)) == ServerInfo(Flavour.CLOUD)


def test_a_rest_server_with_models_of_its_own_is_no_app_server(stub: Stub) -> None:
    recognise(settings(stub.url))
    assert "/v1/models" not in stub.paths


def test_a_server_behind_a_proxy_that_lets_nobody_in_without_a_password_is_asked_with_it(stub: Stub) -> None:
    for behind, kind in ((rest(), Flavour.REST), (app_server(), Flavour.APP_SERVER)):
        forget(stub.url)
        stub.answer = lambda path, token, behind=behind: (  # type: ignore[misc]
            behind(path, None) if token == f"Bearer {TOKEN}" else (401, HTML)
        )
        found = recognise(settings(stub.url, password=TOKEN))
        assert found.flavour is kind and found.version


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize(("spell", "kind"), [(str, Flavour.REST), (as_websocket, Flavour.APP_SERVER)])
def test_where_nobody_is_let_in_the_address_decides(
    stub: Stub, status: int, spell: Callable[[str], str], kind: Flavour
) -> None:
    stub.answer = lambda path, token: (status, HTML)
    assert recognise(settings(spell(stub.url), password=TOKEN)) == ServerInfo(kind)


@pytest.mark.parametrize(
    "answer",
    [
        (200, HTML),
        (404, HTML),
        (200, ["a list"]),
        (200, {"status": "ok"}),
        (200, {"version": 7}),
        (200, {"type": "another"}),
        (200, b"[" * 100_000),
        (204, b""),
        (418, {"error": "websocket"}),
    ],
    ids=str,
)
@pytest.mark.parametrize("spell", [str, as_websocket], ids=["http", "ws"])
def test_what_is_no_letta_is_an_error_for_a_person_and_gets_no_token(
    stub: Stub, answer: Answer, spell: Callable[[str], str]
) -> None:
    stub.answer = lambda path, token: answer
    with pytest.raises(LettaServerError, match=r"no Letta server|No Letta App Server") as raised:
        recognise(settings(spell(stub.url), password=TOKEN))
    assert raised.value.parks and "check LETTA_BASE_URL" in raised.value.hint
    assert stub.tokens == []


def test_a_websocket_s_address_is_never_taken_for_a_rest_server(stub: Stub) -> None:
    with pytest.raises(LettaServerError, match="No Letta App Server at ws://"):
        recognise(settings(as_websocket(stub.url)))


def test_hostile_words_are_cleaned_capped_and_free_of_our_token(stub: Stub) -> None:
    hostile = f"\x1b[31m{TOKEN}\r\n" + "x" * 9_000
    stub.answer = app_server(
        token=TOKEN,
        info={**INFO, "letta_code_version": hostile, "backend": hostile, "capabilities": {hostile: True, "b": "yes"}},
    )
    found = recognise(settings(stub.url, password=TOKEN))
    for text in (found.version, found.backend, *found.capabilities):
        assert text.startswith("[redacted]") and len(text) <= 40 and text.isprintable()


@pytest.mark.parametrize("info", [{}, {"capabilities": [1], "protocol_version": True, "backend": 3}])
def test_an_app_server_that_says_less_is_one_too(stub: Stub, info: dict[str, Any]) -> None:
    stub.answer = app_server(info={"type": "app_server_info_response", **info})
    assert recognise(settings(stub.url)) == ServerInfo(Flavour.APP_SERVER, openai_api=True)


def test_an_answer_without_end_is_not_read_to_the_end() -> None:
    stop, sent = threading.Event(), []

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(10_000)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n")
            try:
                while not stop.is_set():
                    sent.append(connection.send(b"x" * 10_000))
            except OSError:
                stop.set()
            listener.close()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"ws://127.0.0.1:{listener.getsockname()[1]}"
        threading.Thread(target=serve, daemon=True).start()
        with pytest.raises(LettaServerError, match="No Letta App Server"):
            recognise(settings(url))
        assert stop.wait(10)
    assert sum(sent) < 20_000_000


# -- trouble


@pytest.mark.parametrize(
    ("status", "kind"), [(500, LettaServerError), (503, LettaServerError), (429, LettaRateLimitError)]
)
@pytest.mark.parametrize("spell", [str, as_websocket], ids=["http", "ws"])
def test_a_server_in_trouble_is_asked_again_next_time(
    stub: Stub, status: int, kind: type[LettaError], spell: Callable[[str], str]
) -> None:
    stub.answer = lambda path, token: (status, {"detail": "starting"})
    with pytest.raises(kind) as raised:
        recognise(settings(spell(stub.url)))
    assert raised.value.status == status and not raised.value.parks
    stub.answer = app_server()
    assert recognise(settings(spell(stub.url))).flavour is Flavour.APP_SERVER


def test_a_refused_connection_is_an_error_that_shows_its_cause_and_is_not_remembered() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    with pytest.raises(LettaConnectionError) as raised:
        recognise(settings(url))
    assert not raised.value.may_have_landed
    cause: BaseException | None = raised.value
    while cause is not None and not isinstance(cause, ConnectionRefusedError):
        cause = cause.__cause__ or cause.__context__
    assert isinstance(cause, ConnectionRefusedError)  # the gate concludes from it that turns died
    assert not flavour._known


def test_a_connection_that_breaks_in_the_answer_does_not_look_like_a_lost_report() -> None:
    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(10_000)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, daemon=True).start()
        with pytest.raises(LettaConnectionError) as raised:
            recognise(settings(f"http://127.0.0.1:{listener.getsockname()[1]}"))
    assert not raised.value.may_have_landed


@pytest.fixture
def silent() -> Iterator[str]:
    """The address of a server that accepts and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def test_silence_is_an_error_in_time_that_does_not_look_like_a_lost_report(silent: str) -> None:
    began = time.monotonic()
    with pytest.raises(LettaTimeoutError) as raised:
        recognise(settings(silent, read_timeout=0.2))
    assert not raised.value.may_have_landed
    assert time.monotonic() - began < 5


def test_a_caller_s_deadline_holds_also_for_one_who_waits_for_another_s_question(stub: Stub) -> None:
    release, asked = threading.Event(), threading.Event()

    def answer(path: str, token: str | None) -> Answer:
        asked.set()
        release.wait(10)
        return rest()(path, token)

    stub.answer = answer
    ours = settings(stub.url)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(recognise, ours)
        assert asked.wait(10)
        try:
            with pytest.raises(LettaTimeoutError, match="has not said in time"):
                recognise(ours, until=Deadline.after(0.05))
        finally:
            release.set()
        assert first.result(10).flavour is Flavour.REST


# -- once


def test_the_answer_is_remembered_for_the_address_in_either_spelling(stub: Stub) -> None:
    stub.answer = app_server()
    first = recognise(settings(stub.url))
    asked = len(stub.seen)
    assert recognise(settings(as_websocket(stub.url), password=TOKEN, content_cap=500)) == first
    assert len(stub.seen) == asked


def test_what_was_only_guessed_is_not_remembered(stub: Stub) -> None:
    stub.answer = app_server(token=TOKEN)
    assert not recognise(settings(stub.url, password="another")).version
    assert recognise(settings(stub.url, password=TOKEN)).version == "0.34.12"


def test_a_forgotten_address_is_asked_again(stub: Stub) -> None:
    assert recognise(settings(stub.url)).flavour is Flavour.REST
    stub.answer = app_server()
    assert recognise(settings(stub.url)).flavour is Flavour.REST
    forget(as_websocket(stub.url).removesuffix("/ws"))
    assert recognise(settings(stub.url)).flavour is Flavour.APP_SERVER


@pytest.mark.parametrize("works", [True, False])
def test_many_threads_ask_once_and_all_hear_the_answer(stub: Stub, works: bool) -> None:
    threads = 8
    started = threading.Barrier(threads)
    ours = settings(stub.url)

    def answer(path: str, token: str | None) -> Answer:
        # Answered only when everybody else waits: what they wait for counts its waiters.
        (pending,) = flavour._pending.values()
        deadline = time.monotonic() + 30
        while len(pending._waiters) < threads - 1 and time.monotonic() < deadline:
            threading.Event().wait(0.005)
        return rest()(path, token) if works else (503, {"detail": "starting"})

    stub.answer = answer

    def ask() -> ServerInfo | LettaError:
        started.wait(60)
        try:
            return recognise(ours)
        except LettaError as error:
            return error

    with ThreadPoolExecutor(threads) as pool:
        outcomes = [future.result(60) for future in [pool.submit(ask) for _ in range(threads)]]
    assert stub.paths == ["/v1/health/"]
    assert all(isinstance(outcome, ServerInfo if works else LettaServerError) for outcome in outcomes)


def test_ctrl_c_ends_the_question_but_not_those_who_wait_for_it(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(flavour, "_ask", interrupted)
        with pytest.raises(KeyboardInterrupt):
            recognise(settings(stub.url))
    assert recognise(settings(stub.url)).flavour is Flavour.REST


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_knows_nothing_and_waits_for_nobody(stub: Stub) -> None:
    recognise(settings(stub.url))
    flavour._pending[("x", "y")] = flavour.Future()
    flavour._lock.acquire()
    try:
        child = os.fork()
        if child == 0:
            os._exit(0 if not flavour._known and not flavour._pending and not flavour._lock.locked() else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        flavour._lock.release()
        flavour._pending.clear()
    assert flavour._known


def test_no_token_in_a_log(stub: Stub, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    stub.answer = lambda path, token: (401, {"error": f"invalid websocket bearer token: {token}"})
    recognise(settings(stub.url, password=TOKEN))
    assert f"Bearer {TOKEN}" in stub.tokens
    assert "/app-server-info -> 401" in caplog.text and TOKEN not in caplog.text
