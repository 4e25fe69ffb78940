"""The password is on the wire and nowhere else: no log line, exception, traceback with local variables, or repr.

Everything is logged at DEBUG, by every library, and all that anybody could see is searched.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import logging
import socket
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote

import httpx
import pytest
import respx
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor

from otel_letta import LettaError, LettaReporter, LettaSpanExporter, LettaSpanProcessor, Settings
from otel_letta.letta.rest import RestTransport
from otel_letta.letta.transport import Message
from otel_letta.testing import InMemoryLetta

PASSWORDS = ["open-sesame-1001", "Grüße-aus-Köln", "пароль-сезам", "p%a/s'w\"o<r>d&=1", "k3y"]

everywhere = pytest.mark.parametrize("password", PASSWORDS)


def shapes(password: str) -> set[str]:
    """How the password could look in a text."""
    forms = {password, quote(password, safe=""), json.dumps(password)[1:-1], ascii(password)[1:-1]}
    for encoding in ("utf-8", "latin-1"):
        with contextlib.suppress(UnicodeEncodeError):
            raw = password.encode(encoding)
            forms |= {repr(raw)[2:-1], raw.decode("latin-1"), quote(raw, safe="")}
    return forms


class Sink(logging.Handler):
    """Collects all that could be seen, and then searches it."""

    def __init__(self, password: str) -> None:
        super().__init__(logging.DEBUG)
        self.password = password
        self.texts: list[tuple[str, str]] = []
        self.setFormatter(logging.Formatter("%(name)s %(threadName)s %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        self.see(f"log of {record.name}", self.format(record))
        self.see(f"log record of {record.name}", repr(record.msg) + repr(record.args))
        if record.exc_info and record.exc_info[1]:
            self.see_exception(record.exc_info[1])

    def see(self, where: str, text: str) -> None:
        self.texts.append((where, text))

    def see_exception(self, error: BaseException) -> None:
        """As an error reporter with local variables would show it; the frames of this file know the password."""
        pending, done = [error], []
        while pending:
            link = pending.pop()
            if any(link is other for other in done):
                continue
            done.append(link)
            pending += [other for other in (link.__cause__, link.__context__) if other is not None]
            self.see(f"{type(link).__name__}", f"{link} {link!r} {link.args!r} {getattr(link, '__dict__', '')!r}")
            shown = traceback.TracebackException.from_exception(link, capture_locals=True)
            shown.stack[:] = [frame for frame in shown.stack if frame.filename != __file__]
            shown.__cause__ = shown.__context__ = None
            self.see(f"traceback of {type(link).__name__}", "".join(shown.format()))

    def see_object(self, value: object) -> None:
        inside = vars(value) if hasattr(value, "__dict__") else {}
        self.see(f"repr of {type(value).__name__}", f"{value!r} {value} {value:} {inside!r}")

    def search(self) -> None:
        assert self.texts
        for where, text in self.texts:
            for shape in shapes(self.password):
                assert shape not in text, f"{where} tells the password as {shape!r}: {text[:2000]}"


@pytest.fixture
def sink(password: str, capfd: pytest.CaptureFixture[str]) -> Iterator[Sink]:
    made = Sink(password)
    names = [None, "httpx", "httpcore", "otel_letta", "asyncio", "opentelemetry"]
    loggers = [logging.getLogger(name) for name in names]
    before = [logger.level for logger in loggers]
    loggers[0].addHandler(made)
    for logger in loggers:
        logger.setLevel(logging.DEBUG)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        yield made
    for logger, level in zip(loggers, before, strict=True):
        logger.setLevel(level)
    loggers[0].removeHandler(made)
    for warning in seen:
        made.see("warning", str(warning.message))
    output, complaints = capfd.readouterr()
    made.see("stdout and stderr", output + complaints)
    made.search()


def test_the_search_itself_finds_a_password() -> None:
    for password in PASSWORDS:
        for shape in shapes(password):
            sink = Sink(password)
            sink.see("somewhere", f"text with {shape} in it")
            with pytest.raises(AssertionError, match="tells the password"):
                sink.search()


@pytest.mark.parametrize("password", ["open-sesame-1001"])
def test_the_search_looks_into_local_variables(password: str) -> None:
    def leak(secret: str) -> None:
        raise ValueError("harmless")

    code = compile("def call(leak, secret):\n    header = 'Bearer ' + secret\n    leak(secret)", "elsewhere.py", "exec")
    names: dict[str, Any] = {}
    exec(code, names)
    sink = Sink(password)
    try:
        names["call"](leak, password)
    except ValueError as error:
        sink.see_exception(error)
    with pytest.raises(AssertionError, match="tells the password"):
        sink.search()


def report(sink: Sink, **options: Any) -> None:
    """Both ways of the reporter, and what they raise."""
    reporter = LettaReporter(password=sink.password, connect_timeout=2.0, **options)
    sink.see_object(reporter)
    sink.see_object(reporter._transport)
    sink.see_object(reporter._settings)
    for call in (
        lambda: reporter.send_progress_report_sync("c", "m", "x", 1.0, "completed"),
        lambda: asyncio.run(reporter.send_progress_report("c", "m", "x")),
    ):
        try:
            call()
        except LettaError as error:
            sink.see_exception(error)
    reporter.close()
    try:
        reporter.send_progress_report_sync("c", "m", "x")
    except LettaError as error:
        sink.see_exception(error)


def run_tasks(sink: Sink, **options: Any) -> None:
    """Spans through processor and exporter, to the end."""
    keywords = {"password": sink.password, "connect_timeout": 2.0, "shutdown_timeout": 0.2, **options}
    processor, exporter = LettaSpanProcessor(**keywords), LettaSpanExporter(**keywords)
    provider = TracerProvider()
    provider.add_span_processor(processor)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    with provider.get_tracer("test").start_as_current_span("job", attributes={"letta.task.id": "job"}):
        pass
    provider.force_flush(200)
    sink.see("stats", repr(processor.stats()) + json.dumps(exporter.stats(), default=str))
    provider.shutdown()
    for component in (processor, exporter):
        sink.see_object(component)
    pipeline = processor._handle.pipeline if processor._handle else None
    if pipeline is not None:
        sink.see_object(pipeline)
        sink.see_object(pipeline.desk)


@everywhere
@pytest.mark.parametrize("use", [report, run_tasks])
def test_when_all_goes_well(sink: Sink, use: Callable[..., None]) -> None:
    with InMemoryLetta() as server:
        # As much time as it takes: on a busy machine nothing has been sent within 0.2 s.
        use(sink, base_url=server.base_url, agent_id=server.create_agent(), shutdown_timeout=20.0)
    assert any("httpcore" in where for where, _ in sink.texts)  # the libraries did log


FAILURES: dict[str, Callable[[InMemoryLetta], object]] = {
    "wrong password": lambda server: setattr(server, "password", "another"),
    "refused": lambda server: server.stop_listening(),
    "dropped": lambda server: server.drop_next(times=None),
    "bad request": lambda server: server.fail_next(400, times=None),
    "redirect": lambda server: server.fail_next(307, "", headers={"Location": "https://e.test"}, times=None),
    "server error": lambda server: server.fail_next(500, "<html>oops</html>", times=None),
    "no JSON": lambda server: server.fail_next(200, "hello", times=None),
    "LLM key": lambda server: server.model_failure("401"),
    "slow": lambda server: setattr(server, "turn_seconds", 1.0),
}


@pytest.mark.parametrize("password", PASSWORDS[:2])
@pytest.mark.parametrize("use", [report, run_tasks])
@pytest.mark.parametrize("failure", FAILURES)
def test_when_it_fails(sink: Sink, use: Callable[..., None], failure: str) -> None:
    with InMemoryLetta() as server:
        agent = server.create_agent()
        FAILURES[failure](server)
        use(sink, base_url=server.base_url, agent_id=agent, read_timeout=0.2, busy_timeout=0.2)


@pytest.mark.parametrize("password", PASSWORDS[:2])
def test_when_the_name_does_not_exist(sink: Sink) -> None:
    report(sink, base_url="https://letta.invalid", agent_id="a")


def echoes(password: str) -> list[Any]:
    """Error bodies of a server that prints the request that it got, headers and all."""
    header = f"authorization: Bearer {password}"
    return [
        {"detail": f"bad request: {header}"},
        {"detail": password},
        {"detail": {"code": password, "message": header}},
        {"detail": {"code": "PENDING_APPROVAL", "message": header}},
        {"error": {"type": f"llm_{password}", "message": password}},
        {"error": {"type": "proxy", "message": f"upstream said {password * 3}"}},
        {"detail": f"CONTEXT_WINDOW_EXCEEDED {password}"},
        {"detail": "x" * (2_000 - len(password) // 2) + password},
        {"detail": "\u200b" * (2_000 - len(password) // 2) + password},
        {"detail": "y" * (199 - len(password) // 2) + password},
        f"{header}\n",
        header.encode("utf-8"),
        header.encode("latin-1", "replace"),
        b"\x00" + json.dumps({"headers": [header]}).encode()[1:],
        repr({"headers": [(b"authorization", b"Bearer " + password.encode())]}),
        f"/search?q={quote(password)}",
    ]


@everywhere
@pytest.mark.parametrize("status", [400, 409, 500])
def test_when_a_server_echoes_it_in_its_error(sink: Sink, status: int) -> None:
    with InMemoryLetta() as server:
        agent = server.create_agent()
        settings = Settings.resolve(base_url=server.base_url, agent_id=agent, password=sink.password)
        letta = RestTransport(settings)
        for body in echoes(sink.password):
            server.fail_next(status, body)
            with pytest.raises(LettaError) as raised:
                letta.send(letta.lane(None, None), [Message("x", "otid")])
            sink.see_exception(raised.value)
        letta.close()


@pytest.mark.parametrize("password", PASSWORDS[:2])
def test_when_a_server_echoes_it_to_the_whole_pipeline(sink: Sink) -> None:
    with InMemoryLetta() as server:
        agent = server.create_agent()
        server.fail_next(500, {"detail": f"you sent Bearer {sink.password}"}, times=None)
        run_tasks(sink, base_url=server.base_url, agent_id=agent)


@everywhere
def test_when_a_redirect_points_to_it(sink: Sink) -> None:
    settings = Settings.resolve(base_url="https://letta.test", agent_id="a", password=sink.password)
    letta = RestTransport(settings)
    for place in (f"https://e.test/{quote(sink.password)}", f"https://e.test/?key={quote(sink.password, safe='')}"):
        with respx.mock() as router:
            router.post(path__regex=".*").respond(307, headers={"Location": place})
            with pytest.raises(LettaError) as raised:
                letta.send(letta.lane(None, None), [Message("x", "otid")])
        assert "redirects" in str(raised.value)
        sink.see_exception(raised.value)


@everywhere
def test_when_the_head_of_an_answer_echoes_it(sink: Sink) -> None:
    with InMemoryLetta() as server:
        letta = RestTransport(
            Settings.resolve(base_url=server.base_url, agent_id=server.create_agent(), password=sink.password)
        )
        echo = f"Bearer {sink.password}".encode().decode("latin-1")
        server.fail_next(400, headers={"X-Your-Authorization": echo, "Location": f"/?a={quote(sink.password)}"})
        with pytest.raises(LettaError) as raised:
            letta.send(letta.lane(None, None), [Message("x", "otid")])
        sink.see_exception(raised.value)
        letta.close()
    assert any(where == "log of httpcore.http11" and "[redacted]" in text for where, text in sink.texts)


@everywhere
def test_when_what_answers_is_no_http_at_all(sink: Sink) -> None:
    with garbage(b"Bearer " + sink.password.encode() + b"\r\n\r\n") as address:
        letta = RestTransport(Settings.resolve(base_url=address, agent_id="a", password=sink.password))
        with pytest.raises(LettaError) as raised:
            letta.send(letta.lane(None, None), [Message("x", "otid")])
        sink.see_exception(raised.value)
        letta.close()


@contextlib.contextmanager
def garbage(answer: bytes) -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65_536)
                connection.sendall(answer)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        thread.join(5)


@everywhere
def test_the_cause_of_an_error_is_kept_unless_it_tells_the_password(sink: Sink) -> None:
    settings = Settings.resolve(base_url="https://letta.test", agent_id="a", password=sink.password)
    letta = RestTransport(settings)
    harmless, telling = httpx.ConnectError("refused"), httpx.RemoteProtocolError(f"illegal line {sink.password}")
    for cause, kept in ((harmless, harmless), (telling, None)):
        with respx.mock() as router:
            router.post(path__regex=".*").mock(side_effect=cause)
            with pytest.raises(LettaError) as raised:
                letta.send(letta.lane(None, None), [Message("x", "otid")])
        assert raised.value.__cause__ is kept
        sink.see_exception(raised.value)


@everywhere
@pytest.mark.parametrize("accident", [KeyboardInterrupt, RuntimeError])
def test_when_a_request_breaks_while_its_head_is_written(
    sink: Sink, monkeypatch: pytest.MonkeyPatch, accident: type[BaseException]
) -> None:
    """At that moment, local variables of httpcore and h11 hold the headers."""
    import h11

    original = h11.Connection.send

    def interrupted(self: Any, event: Any) -> Any:
        original(self, event)
        raise accident

    with InMemoryLetta() as server:
        letta = RestTransport(
            Settings.resolve(base_url=server.base_url, agent_id=server.create_agent(), password=sink.password)
        )
        monkeypatch.setattr(h11.Connection, "send", interrupted)
        with pytest.raises((KeyboardInterrupt, LettaError)) as raised:
            letta.send(letta.lane(None, None), [Message("x", "otid")])
        monkeypatch.undo()
        letta.close()
    sink.see_exception(raised.value)


@pytest.mark.parametrize("wrap", [lambda text: text, lambda text: {"detail": text}])
def test_not_even_a_half_of_it_is_left_where_a_long_text_is_cut(wrap: Callable[[str], Any]) -> None:
    password = "open-sesame-1001"
    with InMemoryLetta() as server:
        letta = RestTransport(
            Settings.resolve(base_url=server.base_url, agent_id=server.create_agent(), password=password)
        )
        for length in (2_000, 200):
            for filler in ("\u200b", "x"):
                server.fail_next(400, wrap(filler * (length - 8) + password))
                with pytest.raises(LettaError) as raised:
                    letta.send(letta.lane(None, None), [Message("x", "otid")])
                assert "open" not in str(raised.value)
        letta.close()


BAD_SETTINGS: list[dict[str, Any]] = [
    {"read_timeout": -1},
    {"base_url": "http://user:{password}@host"},
    {"api_key": "{password}\n{password}"},
    {"pasword": "{password}"},
    {"settings": object()},
    {"agent_id": ""},
]


@everywhere
@pytest.mark.parametrize("make", [LettaReporter, LettaSpanExporter, LettaSpanProcessor])
@pytest.mark.parametrize("bad", BAD_SETTINGS)
def test_when_another_setting_is_bad(sink: Sink, make: Callable[..., Any], bad: dict[str, Any]) -> None:
    options = {
        name: value.replace("{password}", sink.password) if isinstance(value, str) else value
        for name, value in bad.items()
    }
    options = {"agent_id": "a", "base_url": "http://127.0.0.1:1", "password": sink.password, **options}
    try:
        made = make(**options)
    except Exception as error:
        assert make is LettaReporter
        sink.see_exception(error)
    else:
        sink.see_object(made)
        made.shutdown()


@everywhere
def test_an_answer_that_echoes_it_is_given_to_the_caller_as_it_is(sink: Sink) -> None:
    """What Letta answers belongs to whoever asked; only what we write ourselves is cleaned."""
    with respx.mock() as router:
        router.get(path__regex=".*").respond(200, json=[])
        router.post(path__regex=".*").respond(200, json={"messages": [{"content": sink.password}]})
        with LettaReporter(
            base_url="https://letta.test", agent_id="a", password=sink.password, server="rest"
        ) as reporter:
            answer = reporter.send_progress_report_sync("c", "m", "x")
    assert answer["messages"][0]["content"] == sink.password


def test_a_short_password_hides_the_whole_text_rather_than_being_spelt_out_by_holes() -> None:
    letta = RestTransport(Settings.resolve(base_url="https://letta.test", agent_id="x", password="a"))
    with respx.mock() as router:
        router.post(path__regex=".*").respond(400, json={"detail": "a bad message"})
        with pytest.raises(LettaError) as raised:
            letta.send(letta.lane(None, None), [Message("x", "otid")])
    assert raised.value.detail == "[redacted]"


def test_redaction_leaves_the_rest_of_the_words() -> None:
    letta = RestTransport(Settings.resolve(base_url="https://letta.test", agent_id="x", password="open-sesame-1001"))
    with respx.mock() as router:
        router.post(path__regex=".*").respond(400, json={"detail": "the word open-sesame-1001 is odd"})
        with pytest.raises(LettaError) as raised:
            letta.send(letta.lane(None, None), [Message("x", "otid")])
    assert raised.value.detail == "the word [redacted] is odd"


def test_both_secrets_are_redacted_whichever_is_sent() -> None:
    letta = RestTransport(
        Settings.resolve(base_url="https://letta.test", agent_id="x", password="open-sesame", api_key="key-of-cloud")
    )
    with respx.mock() as router:
        router.post(path__regex=".*").respond(400, json={"detail": "neither open-sesame nor key-of-cloud"})
        with pytest.raises(LettaError) as raised:
            letta.send(letta.lane(None, None), [Message("x", "otid")])
    assert raised.value.detail == "neither [redacted] nor [redacted]"


def test_no_secret_is_in_the_client_s_own_headers() -> None:
    """Masking in reprs is httpx's business; ours is that there is nothing to mask before a request is sent."""
    letta = RestTransport(Settings.resolve(base_url="https://letta.test", agent_id="x", password="open-sesame"))
    with letta._http._clients.one() as client:
        assert "authorization" not in client.headers
        out = io.StringIO()
        print(vars(client), file=out)
    assert "open-sesame" not in out.getvalue()
    letta.close()
