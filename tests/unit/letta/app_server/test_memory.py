"""The board as a file in the agent's memory."""

from __future__ import annotations

from typing import Any

import pytest

from otel_letta import errors
from otel_letta.letta.app_server import memory
from otel_letta.letta.app_server.transport import AppServerTransport
from otel_letta.letta.transport import Block
from tests.support.scripted_app_server import ScriptedAppServer
from tests.unit.letta.app_server.support import AGENT, Make

MARKED = {"otel_letta": {"host": "vm", "closed": False}}


def board(letta: AppServerTransport) -> Block:
    return letta.create_block(AGENT, "task_progress", "none", 5_000, "Progress\nof tasks.", MARKED)


def writes(server: ScriptedAppServer) -> list[str]:
    return [frame["content"] for frame in server.of("write_memory_file")]


def test_a_board_is_a_file_in_the_root_with_the_two_keys_that_the_server_allows(
    server: ScriptedAppServer, make: Make
) -> None:
    letta = make()
    block = board(letta)
    assert server.files[AGENT]["task_progress.md"] == (
        "---\nname: task_progress\ndescription: Progress of tasks.\n---\nnone\n"
    )
    letta.write_block(block, "50 %", MARKED)
    assert server.files[AGENT]["task_progress.md"] == (
        "---\nname: task_progress\ndescription: Progress of tasks.\n---\n50 %\n"
    )
    assert not server.of("input")  # no LLM call


def test_whose_a_board_is_stands_in_its_commits(server: ScriptedAppServer, make: Make) -> None:
    letta = make()
    block = board(letta)
    server.files[AGENT]["task_progress_2.md"] = "---\nname: x\ndescription: y\n---\na stranger's"
    for message in ("otel_letta {", "otel_letta [1]", 'otel_letta {"label": 7}', "otel_letta " + "[" * 90_000, 7, None):
        server.commits.insert(0, {"message": message})
    found = {found.label: found for found in make().blocks(AGENT)}
    assert found["task_progress"].metadata == MARKED
    assert found["task_progress_2"].metadata == {}
    assert "MEMORY" not in found
    newer = {"otel_letta": {"host": "vm", "closed": True}}
    letta.write_block(block, "done", newer)
    found = {found.label: found for found in make().blocks(AGENT)}
    assert (found["task_progress"].metadata, found["task_progress"].value) == (newer, "done")


def test_what_did_not_change_is_not_written(server: ScriptedAppServer, make: Make) -> None:
    letta = make()
    block = board(letta)
    letta.write_block(block, "50 %", MARKED)
    before = len(writes(server))
    letta.write_block(block, " 50 %\n", {"otel_letta": {"closed": True}})
    assert len(writes(server)) == before


class _Clock:
    """A module `time` that only passes when somebody sleeps, or when the server takes its time."""

    def __init__(self) -> None:
        self.now = 1_000.0
        self.slept: list[float] = []

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


@pytest.mark.parametrize(("commit", "pause"), [(0.08, 0.5), (0.3, 1.5), (9.0, 3.0)])
def test_a_board_is_written_when_the_server_has_looked_at_the_memory_as_slow_as_it_is(
    monkeypatch: pytest.MonkeyPatch, commit: float, pause: float
) -> None:
    clock = _Clock()
    monkeypatch.setattr(memory, "time", clock)

    class Session:
        def request(self, kind: str, body: dict[str, Any]) -> dict[str, Any]:
            if kind == "write_memory_file":
                clock.now += commit
                return {"success": True}
            return {"success": True, "content": "---\ndescription: d\n---\nolder\n"}

    files = memory.Memory()
    board = Block("agent/task_progress", "task_progress", "", 5_000)
    session: Any = Session()
    files.write(session, board, "at first", {})
    assert clock.slept == [0.0]
    with files.during_turn():
        pass
    files.write(session, board, "after a turn", {})
    assert clock.slept[1:] == [pytest.approx(pause)]
    clock.now += 60.0
    files.write(session, board, "long after it", {})
    assert clock.slept[2:] == [0.0]


def test_a_file_without_a_head_gets_one(server: ScriptedAppServer, make: Make) -> None:
    letta = make()
    block = board(letta)
    for broken in ("50 %\n", "---\nname: x\n", "---\nname: x\n---\n50 %\n"):
        server.files[AGENT]["task_progress.md"] = broken
        letta.write_block(block, "51 %", MARKED)
        written = server.files[AGENT]["task_progress.md"]
        assert written.startswith("---\nname: task_progress\ndescription: task_progress\n---\n")


def test_the_memory_is_listed_to_the_last_part(server: ScriptedAppServer, make: Make) -> None:
    server.files[AGENT] = {f"f{number}.md": f"v{number}" for number in range(12)}
    server.files[AGENT] |= {"system/deep.md": "x", "notes.txt": "x", "MEMORY.md": "x"}
    blocks = make().blocks(AGENT)
    assert [block.label for block in blocks] == [f"f{number}" for number in range(12)]
    assert not server.of("memory_history")  # none of them could be ours


def test_odd_entries_are_passed_over(server: ScriptedAppServer, make: Make) -> None:
    entries = [None, 7, {}, {"relative_path": 7}, {"relative_path": "a.md", "content": {}}]
    server.answers["list_memory"] = lambda connection, frame: server.reply(connection, frame, entries=entries)
    assert [(block.label, block.value) for block in make().blocks(AGENT)] == [("a", "")]


@pytest.mark.parametrize("before", [None, "---\nname: t\ndescription: d\n---\nold\n"])
def test_a_refused_file_is_taken_back(server: ScriptedAppServer, make: Make, before: str | None) -> None:
    """It would stay, uncommitted, and the agent be told with every turn to see to it."""
    letta = make()
    if before is not None:
        block = board(letta)
        server.files[AGENT]["task_progress.md"] = before
    refused = "new" if before is not None else "none"
    server.refuse_file = lambda path, content: "bad.md: missing\nfrontmatter" if refused in content else None
    with pytest.raises(errors.LettaConflictError, match="refused the memory file") as raised:
        board(letta) if before is None else letta.write_block(block, "new", MARKED)
    assert raised.value.parks
    assert raised.value.status is None  # so that nobody takes it for a conflict that passes
    assert server.files[AGENT].get("task_progress.md") == before


def test_a_file_that_is_there_already_is_not_overwritten(server: ScriptedAppServer, make: Make) -> None:
    server.files[AGENT] = {"task_progress.md": "a person's"}
    with pytest.raises(errors.LettaConflictError) as raised:
        board(make())
    assert raised.value.status == 409
    assert server.files[AGENT] == {"task_progress.md": "a person's"}


def test_a_deleted_file_is_told_as_such(server: ScriptedAppServer, make: Make) -> None:
    letta = make()
    block = board(letta)
    del server.files[AGENT]["task_progress.md"]
    with pytest.raises(errors.LettaConflictError) as raised:
        letta.write_block(block, "50 %", MARKED)
    assert (raised.value.status, raised.value.parks) == (404, False)
    assert "task_progress.md" not in server.files[AGENT]


def test_no_memory_is_made_for_an_agent_that_does_not_exist(server: ScriptedAppServer, make: Make) -> None:
    letta = make()
    block = board(letta)
    del server.agents[AGENT]
    server.files.clear()
    for call in (
        lambda: letta.blocks(AGENT),
        lambda: board(letta),
        lambda: letta.write_block(block, "x", MARKED),
    ):
        with pytest.raises(errors.LettaAgentNotFoundError):
            call()
    assert not server.files


def test_an_agent_without_files_has_no_board(server: ScriptedAppServer, make: Make) -> None:
    for body in ({"memfs_enabled": False, "entries": []}, {"success": False, "error": "no memory"}):
        server.answers["list_memory"] = lambda connection, frame, body=body: server.reply(connection, frame, **body)
        with pytest.raises(errors.LettaUnsupportedError):
            make().blocks(AGENT)
