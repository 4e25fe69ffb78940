"""One transport for any address: the server is asked when it is first needed, and the transport that fits is used."""

from __future__ import annotations

import os
import socket
import sys
import threading
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

import pytest

from otel_letta.errors import (
    LettaAuthenticationError,
    LettaConnectionError,
    LettaConversationNotFoundError,
    LettaDependencyError,
    LettaError,
    LettaModelError,
    LettaServerError,
)
from otel_letta.letta import flavour
from otel_letta.letta.flavour import Flavour, ServerInfo
from otel_letta.letta.rest import RestTransport
from otel_letta.letta.select import SelectingTransport
from otel_letta.letta.transport import Block, Lane, Message
from otel_letta.runtime.deadline import Deadline
from otel_letta.settings import Settings
from otel_letta.testing import InMemoryLetta
from tests.support.stub_server import HTML, Stub, app_server, rest, stub_server

AGENT = "agent-1"
REST_ID = "conv-11111111-1111-4111-8111-111111111111"
APP_ID = "local-conv-7"
TOKEN = "open-sesame-1001"


class Recording:
    """Stands for a transport to an App Server; notes what it is asked, raises what it is told."""

    made: ClassVar[list[Recording]] = []
    queues_messages = True

    def __init__(self, settings: Settings, info: ServerInfo, *, ending: Deadline | None = None) -> None:
        self.settings, self.info, self.ending = settings, info, ending or Deadline()
        self.calls: list[tuple[Any, ...]] = []
        self.failure: LettaError | None = None
        self.made.append(self)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("_"):
            raise AttributeError(name)

        def call(*arguments: Any, **keywords: Any) -> Any:
            self.calls.append((name, *arguments, *(value for value in keywords.values() if value is not None)))
            if self.failure is not None:
                raise self.failure
            return None if name in ("probe", "write_block") else {"said by": name}

        return call


class OverHttp(Recording):
    """Stands for the one that uses the OpenAI-compatible API."""


@pytest.fixture(autouse=True)
def app_server_transports(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Recording]]:
    for name, kind in (("AppServerTransport", Recording), ("AppServerHttpTransport", OverHttp)):
        home = "transport" if kind is Recording else "openai_api"
        module = types.ModuleType(f"otel_letta.letta.app_server.{home}")
        setattr(module, name, kind)
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(Recording, "made", [])
    flavour._known.clear()
    yield Recording.made
    flavour._known.clear()


@pytest.fixture
def stub() -> Iterator[Stub]:
    with stub_server(rest()) as server:
        yield server


def transport(url: str, **keywords: Any) -> SelectingTransport:
    return SelectingTransport(Settings.resolve(environ={}, base_url=url, agent_id=AGENT, **keywords))


def delegate(chosen: SelectingTransport) -> Any:
    return chosen._delegate


# -- the choice


def test_making_one_and_asking_for_lanes_asks_nobody(stub: Stub) -> None:
    chosen = transport(stub.url)
    chosen.lane(None, REST_ID)
    chosen.reload()
    chosen.close()
    assert stub.seen == [] and delegate(chosen) is None and not chosen.queues_messages


def test_a_report_reaches_a_rest_server() -> None:
    with InMemoryLetta(password=TOKEN) as letta:
        agent_id = letta.create_agent("assistant")
        chosen = SelectingTransport(
            Settings.resolve(environ={}, base_url=letta.base_url, agent_id=agent_id, password=TOKEN)
        )
        chosen.send(chosen.lane(None, None), [Message("hello", "otid-1")])
        chosen.send(chosen.lane(None, None), [Message("hello", "otid-2")])
        assert set(chosen.landed(chosen.lane(None, None), ["otid-1", "otid-2"])) == {"otid-1", "otid-2"}
        assert chosen.describe(agent_id) == {"id": agent_id, "name": "assistant"}
        assert [agent["name"] for agent in chosen.agents(3)] == ["assistant"]
        assert isinstance(delegate(chosen), RestTransport)
        assert [request.path for request in letta.requests].count("/v1/health/") == 1
        chosen.close()


CALLS: list[tuple[str, Sequence[Any]]] = [
    ("send", (Lane("s", AGENT), [Message("x", "o")])),
    ("active_runs", (Lane("s", AGENT),)),
    ("landed", (Lane("s", AGENT), ["o"])),
    ("in_context", (Lane("s", AGENT), ["m"])),
    ("probe", (Lane("s", AGENT),)),
    ("describe", (AGENT,)),
    ("agents", (5,)),
    ("blocks", (AGENT,)),
    ("create_block", (AGENT, "label", "value", 9, "what", {"a": 1})),
    ("write_block", (Block("id", "label", "value", 9), "new", {"a": 1})),
]


@pytest.mark.parametrize(("name", "arguments"), CALLS, ids=[name for name, _ in CALLS])
def test_each_call_that_needs_the_server_is_handed_on(
    stub: Stub, app_server_transports: list[Recording], name: str, arguments: Sequence[Any]
) -> None:
    stub.answer = app_server()
    chosen = transport(stub.url)
    answer = getattr(chosen, name)(*arguments)
    (made,) = app_server_transports
    assert made.calls == [(name, *arguments)]
    assert answer == (None if name in ("probe", "write_block") else {"said by": name})
    assert made.info.version == "0.34.12" and made.info.openai_api


@pytest.mark.parametrize(
    ("kind", "flavour_", "made"),
    [
        ("rest", Flavour.REST, RestTransport),
        ("app-server", Flavour.APP_SERVER, Recording),
        ("app-server-http", Flavour.APP_SERVER, OverHttp),
    ],
)
def test_a_kind_that_is_set_is_not_asked_for(stub: Stub, kind: str, flavour_: Flavour, made: type[object]) -> None:
    stub.answer = lambda path, token: (404, {"detail": "Agent not found"})
    chosen = transport(stub.url, server=kind)
    try:
        chosen.probe(chosen.lane(None, None))
    except LettaError:
        assert made is RestTransport
    assert type(delegate(chosen)) is made
    assert not set(stub.paths) & {"/v1/health/", "/app-server-info"}
    assert chosen._info == ServerInfo(flavour_)
    assert chosen.queues_messages is (made is not RestTransport)


def test_letta_cloud_is_a_rest_api_that_nobody_is_asked_about(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RestTransport, "probe", lambda self, lane, **_: None)
    chosen = transport("https://api.letta.com", api_key=TOKEN)
    chosen.probe(chosen.lane(None, None))
    assert isinstance(delegate(chosen), RestTransport)


def test_a_server_that_is_away_is_asked_again_at_the_next_call(stub: Stub) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    with pytest.raises(LettaConnectionError):
        transport(url).probe(Lane(url, AGENT))
    stub.answer = lambda path, token: (503, {"detail": "starting"})
    chosen = transport(stub.url)
    with pytest.raises(LettaServerError):
        chosen.probe(chosen.lane(None, None))
    stub.answer = app_server()
    chosen.probe(chosen.lane(None, None))
    assert isinstance(delegate(chosen), Recording)


def test_threads_that_come_at_once_get_one_transport(stub: Stub, app_server_transports: list[Recording]) -> None:
    stub.answer = app_server()
    chosen = transport(stub.url)
    together = threading.Barrier(6)

    def work() -> None:
        together.wait(10)
        chosen.probe(chosen.lane(None, None))

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    (made,) = app_server_transports
    assert len(made.calls) == 6 and stub.paths.count("/app-server-info") == 1


@pytest.mark.parametrize("kind", ["auto", "app-server"])
def test_without_websockets_it_says_what_to_install_and_waits_for_a_person(
    stub: Stub, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    stub.answer = app_server()
    monkeypatch.setitem(sys.modules, "websockets", None)
    chosen = transport(stub.url, server=kind)
    for _ in range(2):
        with pytest.raises(LettaDependencyError, match=r"pip install 'otel-letta\[app-server\]'") as raised:
            chosen.probe(chosen.lane(None, None))
        assert raised.value.parks and isinstance(raised.value, ImportError)


# -- lanes


def test_before_the_kind_is_known_ids_of_both_kinds_name_conversations(stub: Stub) -> None:
    chosen = transport(stub.url)
    for chat, conversation in (
        (REST_ID, REST_ID),
        (APP_ID, APP_ID),
        ("chat-1", None),
        ("", None),
        (None, None),
        (f"{APP_ID}x", None),
        (f"x{REST_ID}", None),
        ("local-conv-", None),
        ("local-conv-7\n", None),
    ):
        assert chosen.lane(None, chat) == Lane(stub.url, AGENT, conversation)
    assert chosen.lane("agent-2", None) == Lane(stub.url, "agent-2")


@pytest.mark.parametrize(("kind", "own", "other"), [("rest", REST_ID, APP_ID), ("app-server", APP_ID, REST_ID)])
@pytest.mark.parametrize("asked", [True, False])
def test_once_it_is_known_only_its_own_ids_do(stub: Stub, kind: str, own: str, other: str, asked: bool) -> None:
    stub.answer = app_server() if kind == "app-server" else rest()
    chosen = transport(stub.url) if asked else transport(stub.url, server=kind)
    if asked:
        try:
            chosen.probe(chosen.lane(None, None))
        except LettaError:
            assert kind == "rest"  # no agent there
    assert chosen.lane(None, own).conversation_id == own
    assert chosen.lane(None, other).conversation_id is None


def test_an_app_server_whose_agents_are_in_letta_cloud_may_use_its_ids(stub: Stub) -> None:
    stub.answer = app_server(info={"type": "app_server_info_response", "backend": "cloud"})
    chosen = transport(stub.url)
    chosen.probe(chosen.lane(None, None))
    assert chosen.lane(None, REST_ID).conversation_id == REST_ID


def test_the_openai_compatible_api_can_address_no_conversation(stub: Stub) -> None:
    chosen = transport(stub.url, server="app-server-http")
    assert [chosen.lane(None, chat).conversation_id for chat in (APP_ID, REST_ID)] == [None, None]


def test_one_server_is_one_lane_in_either_spelling() -> None:
    lanes = {transport(f"{scheme}://localhost:4500").lane(None, None) for scheme in ("ws", "http")}
    assert lanes == {Lane("http://localhost:4500", AGENT)}


def test_a_rest_server_has_no_conversation_of_an_app_server(stub: Stub) -> None:
    chosen = transport(stub.url)
    with pytest.raises(LettaConversationNotFoundError):
        chosen.send(chosen.lane(None, APP_ID), [Message("x", "otid")])
    assert stub.paths == ["/v1/health/"]


# -- later


def test_an_address_that_answers_like_nothing_known_is_asked_again(
    stub: Stub, app_server_transports: list[Recording]
) -> None:
    chosen = transport(stub.url)
    stub.answer = lambda path, token: rest()(path, token) if path == "/v1/health/" else (404, HTML)
    for _ in range(2):
        with pytest.raises(LettaServerError, match="No Letta REST API"):
            chosen.probe(chosen.lane(None, None))
    assert stub.paths.count("/v1/health/") == 2
    before = delegate(chosen)
    stub.answer = app_server()
    chosen.probe(chosen.lane(None, None))
    assert before is not delegate(chosen)
    (made,) = app_server_transports
    assert made.calls == [("probe", chosen.lane(None, None))]


def test_the_way_back_closes_the_old_transport(stub: Stub, app_server_transports: list[Recording]) -> None:
    stub.answer = app_server()
    chosen = transport(stub.url)
    chosen.probe(chosen.lane(None, None))
    (made,) = app_server_transports
    made.failure = LettaServerError("No App Server at this address", status=404, parks=True)
    stub.answer = rest()
    with pytest.raises(LettaServerError, match="No App Server"):
        chosen.probe(chosen.lane(None, None))
    made.failure = None
    with pytest.raises(LettaError):
        chosen.probe(chosen.lane(None, None))
    assert isinstance(delegate(chosen), RestTransport)
    assert made.calls[-1] == ("close",)


@pytest.mark.parametrize(
    "failure",
    [
        LettaServerError(status=503),
        LettaConnectionError(),
        LettaAuthenticationError(status=401),
        LettaModelError(status=402, parks=True),
    ],
)
def test_other_failures_are_no_reason_to_ask_again(
    stub: Stub, app_server_transports: list[Recording], failure: LettaError
) -> None:
    stub.answer = app_server()
    chosen = transport(stub.url)
    chosen.probe(chosen.lane(None, None))
    asked = len(stub.seen)
    app_server_transports[0].failure = failure
    for _ in range(2):
        with pytest.raises(type(failure)):
            chosen.probe(chosen.lane(None, None))
    assert len(stub.seen) == asked


@pytest.fixture
def environ() -> dict[str, str]:
    return {"LETTA_AGENT_ID": AGENT}


@pytest.mark.parametrize("kind", ["auto", "app-server", "app-server-http"])
def test_new_settings_without_another_address_reach_the_transport(
    stub: Stub, environ: dict[str, str], app_server_transports: list[Recording], kind: str
) -> None:
    stub.answer = app_server()
    chosen = SelectingTransport(Settings.resolve(environ=environ, base_url=stub.url, server=kind))
    chosen.probe(chosen.lane(None, None))
    environ["LETTA_PASSWORD"] = TOKEN
    chosen.reload()
    (made,) = app_server_transports
    assert made.calls[-1] == ("use", chosen._settings)


@pytest.mark.parametrize("change", ["LETTA_BASE_URL", "OTEL_LETTA_SERVER"])
def test_another_address_or_kind_is_chosen_anew(
    stub: Stub, environ: dict[str, str], app_server_transports: list[Recording], change: str
) -> None:
    stub.answer = app_server()
    environ["LETTA_BASE_URL"] = stub.url
    chosen = SelectingTransport(Settings.resolve(environ=environ))
    lane = chosen.lane(None, None)
    chosen.probe(lane)
    (made,) = app_server_transports
    with stub_server(app_server()) as other:
        environ[change] = other.url if change == "LETTA_BASE_URL" else "app-server-http"
        chosen.reload()
        assert made.calls[-1] == ("close",)
        chosen.probe(lane)
        assert len(app_server_transports) == 2
        assert bool(other.seen) is (change == "LETTA_BASE_URL")
        server = other.url if change == "LETTA_BASE_URL" else stub.url
    assert chosen.lane(None, None) == Lane(server, AGENT)


def test_a_token_that_comes_later_lets_the_server_say_what_it_is(
    stub: Stub, environ: dict[str, str], app_server_transports: list[Recording]
) -> None:
    stub.answer = app_server(token=TOKEN)
    chosen = SelectingTransport(Settings.resolve(environ=environ, base_url=stub.url))
    chosen.probe(chosen.lane(None, None))
    environ["LETTA_PASSWORD"] = TOKEN
    chosen.reload()
    chosen.probe(chosen.lane(None, None))
    assert [made.info.version for made in app_server_transports] == ["", "0.34.12"]


def test_the_end_of_the_process_is_told_also_to_one_that_is_chosen_later(
    stub: Stub, app_server_transports: list[Recording]
) -> None:
    stub.answer = app_server()
    early, late = transport(stub.url), transport(stub.url)
    early.probe(early.lane(None, None))
    early.ending.bring_forward(123.0)
    early.close(until=early.ending)
    late.ending.bring_forward(456.0)
    late.probe(late.lane(None, None))
    first, second = app_server_transports
    assert first.ending.at == 123.0 and second.ending.at == 456.0
    assert first.calls[-1] == ("close", early.ending)


def test_a_rest_server_need_not_be_told_of_the_end(stub: Stub) -> None:
    chosen = transport(stub.url, server="rest")
    with pytest.raises(LettaError):
        chosen.probe(chosen.lane(None, None))
    chosen.ending.bring_forward(123.0)
    chosen.close(until=chosen.ending)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_waits_for_a_delegate_in_the_making_and_leaves_no_lock_behind(
    stub: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub.answer = app_server()
    making, made = threading.Event(), threading.Event()

    class Slow(Recording):
        def __init__(self, settings: Settings, info: ServerInfo, **ending: Deadline) -> None:
            making.set()
            threading.Event().wait(0.1)  # the fork below begins meanwhile
            super().__init__(settings, info, **ending)
            made.set()

    monkeypatch.setattr(sys.modules["otel_letta.letta.app_server.transport"], "AppServerTransport", Slow)
    chosen = transport(stub.url)
    thread = threading.Thread(target=chosen.probe, args=(chosen.lane(None, None),))
    thread.start()
    assert making.wait(10)
    child = os.fork()
    if child == 0:
        os._exit(0 if made.is_set() and not chosen._lock.locked() else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    thread.join(10)
    assert not chosen._lock.locked()


def test_neither_websockets_nor_the_app_server_s_module_is_loaded_for_a_rest_server() -> None:
    import subprocess

    with InMemoryLetta() as letta:
        code = (
            "import sys\n"
            "from otel_letta.letta.select import SelectingTransport\n"
            "from otel_letta.settings import Settings\n"
            f"settings = Settings.resolve(base_url={letta.base_url!r}, agent_id={letta.create_agent()!r})\n"
            "chosen = SelectingTransport(settings)\n"
            "chosen.probe(chosen.lane(None, None))\n"
            "print([name for name in ('websockets', 'otel_letta.letta.app_server.transport') if name in sys.modules])\n"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
