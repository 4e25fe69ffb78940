"""``otel-letta serve`` on the command line."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner

from otel_letta.cli.main import app
from otel_letta.serve import workers
from otel_letta.serve.server import listen
from otel_letta.testing import InMemoryLetta
from tests.support.otlp_sender import post, request_of, span_of
from tests.support.waiting import until
from tests.unit.serve.test_durable import ends, program


@pytest.fixture(autouse=True)
def _log_is_pytests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "log_as", lambda form: None)


def run(*arguments: str, **environ: str) -> tuple[int, str]:
    result = CliRunner().invoke(app(), ["serve", *arguments], env={"LETTA_AGENT_ID": "agent-1", **environ})
    return result.exit_code, result.output


def test_other_machines_need_a_token() -> None:
    code, said = run("--host", "0.0.0.0")
    assert code == 2
    assert "--token-file" in said
    assert run("--host", "::", "--token", " ")[0] == 2


def test_a_certificate_needs_its_key(tmp_path: Path) -> None:
    (tmp_path / "c.pem").touch()
    assert run("--tls-cert", str(tmp_path / "c.pem"))[0] == 2


@pytest.mark.parametrize(
    ("arguments", "environ", "word"),
    [
        (["--token-file", "nowhere"], {}, "nowhere"),
        ([], {"LETTA_AGENT_ID": ""}, "LETTA_AGENT_ID"),
        (["--tls-cert", "c.pem", "--tls-key", "c.pem"], {}, "c.pem"),
        ([], {"OTEL_LETTA_OUTBOX": "postgresql://u:secret@127.0.0.1:9/x"}, "postgresql://u:***@127.0.0.1:9/x"),
    ],
)
def test_what_cannot_be_used_is_named(arguments: list[str], environ: dict[str, str], word: str, tmp_path: Path) -> None:
    Path("c.pem").write_text("no certificate")
    code, said = run("--port", "0", *arguments, **environ)
    assert code == 1
    assert word in said
    assert "Traceback" not in said


def test_a_port_that_is_taken_is_named() -> None:
    with listen("127.0.0.1", 0) as taken:
        code, said = run("--port", str(taken.getsockname()[1]))
    assert code == 1
    assert "Collector" in said


def test_it_says_where_it_listens_and_that_memory_is_all_it_has(letta: InMemoryLetta, agent: str) -> None:
    with program(letta, agent) as running:
        running.process.terminate()
        _, said = running.process.communicate(timeout=60)
    assert f"http://127.0.0.1:{running.port}" in said
    assert "OTEL_LETTA_OUTBOX" in said
    assert "Traceback" not in said


@pytest.mark.skipif(sys.platform == "win32", reason="no such signals there")
def test_several_processes_receive_behind_one_address_and_one_that_dies_is_replaced(
    letta: InMemoryLetta, agent: str, tmp_path: Path
) -> None:
    with program(letta, agent, "--workers", "2", "--spool", str(tmp_path / "s")) as running:
        assert until(lambda: len(list(tmp_path.glob("s-?"))) == 2, 60)
        children = _children(running.process.pid)
        assert len(children) == 2
        os.kill(children[0], signal.SIGKILL)
        assert until(lambda: len(set(_children(running.process.pid)) - {children[0]}) == 2, 60)
        names = [f"task {n}" for n in range(1, 9)]
        for number, name in enumerate(names, 1):
            assert _sent(running.port, request_of(span_of(name, number)))
        assert until(lambda: sorted(ends(letta, agent)) == names, 60)
        written = httpx.get(f"http://127.0.0.1:{running.port}/metrics", timeout=60).text
        assert 'otel_letta_items_total{signal="traces"} 8.0' in written  # of all of them, whoever answers
        assert running.stop() == 0


@pytest.mark.skipif(sys.platform == "win32", reason="no such signals there")
def test_processes_whose_parent_was_killed_end(letta: InMemoryLetta, agent: str) -> None:
    with program(letta, agent, "--workers", "2") as running:
        assert until(lambda: len(_children(running.process.pid)) == 2, 60)
        children = _children(running.process.pid)
        running.process.kill()
        assert until(lambda: not any(Path(f"/proc/{child}").exists() for child in children), 60)


def _sent(port: int, body: bytes) -> bool:
    """Send as an exporter would, which tries again when the process that had the connection dies."""

    def sent() -> bool:
        try:
            return post(port, "/v1/traces", body).status == 200
        except OSError:
            return False

    return until(sent, 60)


def _children(pid: int) -> list[int]:
    """Return the processes that receive; multiprocessing has one more, for its own purposes."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            command = (entry / "cmdline").read_text()
        except (OSError, ValueError, IndexError):
            continue
        if parent == pid and "spawn_main" in command:
            found.append(int(entry.name))
    return sorted(found)
