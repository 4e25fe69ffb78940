"""`otel-letta setup letta` on a REST server: what it makes, what it leaves alone, and what it takes back.

With real Letta servers: `tests/real/letta/test_real_tools.py` and `test_real_skill.py`.
"""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from otel_letta.cli.main import app
from otel_letta.letta.server_tools import TOKEN, TOOLS, URL, source_of
from tests.support.letta_tools import LettaTools

BRIDGE = "http://127.0.0.1:4318"
FOREIGN = 'def get_task() -> str:\n    """Mine."""\n'


@pytest.fixture
def letta_tools() -> Iterator[LettaTools]:
    with LettaTools(password="pw") as server:
        yield server


@pytest.fixture
def agent(letta_tools: LettaTools) -> str:
    return letta_tools.create_agent(MINE="of another tool", EMPTY="")


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    path = tmp_path / "tokens"
    path.write_text("# senders\nsender-token")  # no line end: as an editor may leave it
    path.chmod(0o640)
    return path


def setup(server: LettaTools, agent: str, *flags: str | Path) -> Result:
    environ = {"LETTA_BASE_URL": server.url, "LETTA_PASSWORD": "pw", "LETTA_AGENT_ID": agent}
    result = CliRunner().invoke(app(), ["setup", "letta", *map(str, flags)], env=environ)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.output
    for row in server.agents.get(agent, {"secrets": []})["secrets"]:
        assert row["key"] != TOKEN or row["value"] not in result.output  # a token is never printed
    return result


def state_of(server: LettaTools, tokens: Path) -> Any:
    return (
        json.dumps([server.agents, server.tools], sort_keys=True),
        tokens.read_text(),
        stat.S_IMODE(tokens.stat().st_mode),
    )


# -- saying ------------------------------------------------------------------------------------------------------------


def test_without_write_it_says_what_it_would_do_and_does_nothing(
    letta_tools: LettaTools, agent: str, tokens: Path
) -> None:
    before = state_of(letta_tools, tokens)
    result = setup(letta_tools, agent, "--token-file", tokens)
    assert result.exit_code == 0
    for part in (*TOOLS, URL, TOKEN, str(tokens), BRIDGE, "--write"):
        assert part in result.output
    assert letta_tools.changes == []
    assert state_of(letta_tools, tokens) == before


@pytest.mark.parametrize(
    ("flags", "code", "words"),
    [
        (["--write", "--remove"], 2, "exclude"),
        (["--url", "http://b/v1/traces"], 2, "without a path"),
        (["--agent", "agent-00000000-0000-4000-8000-000000000000"], 1, "agent not found"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    letta_tools: LettaTools, agent: str, flags: list[str], code: int, words: str
) -> None:
    result = setup(letta_tools, agent, *flags)
    assert (result.exit_code, letta_tools.changes) == (code, [])
    assert words.lower() in result.output.lower()


def test_without_an_agent_it_says_how_to_name_one(letta_tools: LettaTools) -> None:
    result = setup(letta_tools, "", "--write")
    assert result.exit_code == 1
    assert "--agent" in result.output


def test_a_wrong_password_is_named(letta_tools: LettaTools, agent: str) -> None:
    letta_tools.password = "another"
    result = setup(letta_tools, agent, "--write")
    assert result.exit_code == 1
    assert "LETTA_PASSWORD" in result.output


# -- writing -----------------------------------------------------------------------------------------------------------


def test_writing_makes_tools_secrets_and_a_token_and_a_second_time_changes_nothing(
    letta_tools: LettaTools, agent: str, tokens: Path
) -> None:
    result = setup(letta_tools, agent, "--token-file", tokens, "--write")
    assert result.exit_code == 0, result.output
    assert letta_tools.tool_names(agent) == sorted(TOOLS)
    assert all(tool["source_code"] == source_of(tool["name"]) for tool in letta_tools.tools.values())
    secrets = letta_tools.secrets(agent)
    assert {name: value for name, value in secrets.items() if name != TOKEN} == {
        "MINE": "of another tool",
        "EMPTY": "",
        URL: BRIDGE,
    }
    assert len(secrets[TOKEN]) >= 40
    assert tokens.read_text() == f"# senders\nsender-token\n{secrets[TOKEN]} agent={agent}\n"
    assert stat.S_IMODE(tokens.stat().st_mode) == 0o640  # as its owner has it
    assert [path.name for path in tokens.parent.iterdir()] == [tokens.name]  # no copy of tokens anywhere

    before, changes = state_of(letta_tools, tokens), len(letta_tools.changes)
    again = setup(letta_tools, agent, "--token-file", tokens, "--write")
    assert again.exit_code == 0
    assert "nothing is to be done" in again.output
    assert (state_of(letta_tools, tokens), len(letta_tools.changes)) == (before, changes)


def test_a_token_is_never_printed(letta_tools: LettaTools, agent: str, tokens: Path) -> None:
    written = setup(letta_tools, agent, "--token-file", tokens, "--write").output
    token = letta_tools.secrets(agent)[TOKEN]
    for flags in ([], ["--write"], ["--url", "https://bridge.example"], ["--remove"]):
        written += setup(letta_tools, agent, "--token-file", tokens, *flags).output
    assert token not in written


def test_a_new_token_file_is_for_its_owner_alone(letta_tools: LettaTools, agent: str, tmp_path: Path) -> None:
    setup(letta_tools, agent, "--token-file", tmp_path / "new", "--write")
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o600


def test_each_agent_has_a_token_of_its_own(letta_tools: LettaTools, agent: str, tokens: Path) -> None:
    other = letta_tools.create_agent()
    for each in (agent, other):
        assert setup(letta_tools, each, "--token-file", tokens, "--write").exit_code == 0
    one, two = (letta_tools.secrets(each)[TOKEN] for each in (agent, other))
    assert one != two
    assert tokens.read_text().splitlines()[2:] == [f"{one} agent={agent}", f"{two} agent={other}"]
    assert len(letta_tools.tools) == len(TOOLS)


def test_without_a_token_file_none_is_set_and_one_that_is_there_stays(
    letta_tools: LettaTools, agent: str, tokens: Path
) -> None:
    assert setup(letta_tools, agent, "--write").exit_code == 0
    assert TOKEN not in letta_tools.secrets(agent)
    setup(letta_tools, agent, "--write", "--token-file", tokens)
    token = letta_tools.secrets(agent)[TOKEN]
    assert setup(letta_tools, agent, "--write", "--url", "http://bridge.local:4318").exit_code == 0
    assert letta_tools.secrets(agent)[TOKEN] == token
    assert letta_tools.secrets(agent)[URL] == "http://bridge.local:4318"


def test_a_token_that_was_taken_out_of_the_file_is_not_put_back(
    letta_tools: LettaTools, agent: str, tokens: Path
) -> None:
    setup(letta_tools, agent, "--write", "--token-file", tokens)
    old = letta_tools.secrets(agent)[TOKEN]
    tokens.write_text("sender-token\n")
    assert setup(letta_tools, agent, "--write", "--token-file", tokens).exit_code == 0
    new = letta_tools.secrets(agent)[TOKEN]
    assert new != old
    assert tokens.read_text() == f"sender-token\n{new} agent={agent}\n"


def test_a_token_that_a_person_made_for_the_agent_is_used(letta_tools: LettaTools, agent: str, tokens: Path) -> None:
    tokens.write_text(f"sender\nmade-by-hand agent={agent}\nfor-all agent=*\n")
    setup(letta_tools, agent, "--write", "--token-file", tokens)
    assert letta_tools.secrets(agent)[TOKEN] == "made-by-hand"
    assert tokens.read_text().count("\n") == 3


def test_an_older_source_is_brought_up_to_date_in_its_place(letta_tools: LettaTools, agent: str) -> None:
    setup(letta_tools, agent, "--write")
    (tool,) = (tool for tool in letta_tools.tools.values() if tool["name"] == "get_task")
    tool["source_code"] = "def get_task():\n    return 'old'\n"
    result = setup(letta_tools, agent, "--write")
    assert "get_task up to date" in result.output
    assert tool["source_code"] == source_of("get_task")
    assert len(letta_tools.tools) == len(TOOLS)


def test_a_tool_of_somebody_else_is_neither_replaced_nor_attached(
    letta_tools: LettaTools, agent: str, tokens: Path
) -> None:
    letta_tools.create_tool(FOREIGN, ["mine"])
    before = state_of(letta_tools, tokens)
    result = setup(letta_tools, agent, "--write", "--token-file", tokens)
    assert result.exit_code == 1
    assert "get_task that is not ours" in result.output
    assert "Nothing was changed" in result.output
    assert state_of(letta_tools, tokens) == before


@pytest.mark.parametrize("flag", ["--write", "--remove"])
@pytest.mark.parametrize("name", ["SEALED", TOKEN])
def test_where_a_secret_of_another_tool_is_not_shown_none_is_written(
    letta_tools: LettaTools, agent: str, tokens: Path, flag: str, name: str
) -> None:
    """A change writes all secrets: what cannot be read would be lost."""
    letta_tools.agents[agent]["secrets"].append({"key": name, "value": "<encrypted>", "value_enc": "gAAAA"})
    before = state_of(letta_tools, tokens)
    result = setup(letta_tools, agent, flag, "--token-file", tokens)
    assert result.exit_code == 1
    assert name in result.output
    assert "Nothing was changed" in result.output
    assert state_of(letta_tools, tokens) == before


def test_a_secret_that_came_meanwhile_is_not_lost_either(
    letta_tools: LettaTools, agent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = letta_tools.create_tool
    rows = letta_tools.agents[agent]["secrets"]

    def another_person(source: str, tags: list[str]) -> dict[str, Any]:
        rows.append({"key": f"NEW_{len(rows)}", "value": "theirs", "value_enc": "theirs"})
        return make(source, tags)

    monkeypatch.setattr(letta_tools, "create_tool", another_person)
    assert setup(letta_tools, agent, "--write").exit_code == 0
    assert list(letta_tools.secrets(agent).values()).count("theirs") == len(TOOLS)


@pytest.mark.parametrize(
    "fault",
    [
        ("PUT", "/v1/tools/"),
        ("PATCH", "/v1/agents/{agent}/tools"),
        ("PATCH", "/v1/agents/{agent}"),
        ("GET", "/v1/tools/"),
    ],
)
def test_what_broke_off_is_done_by_the_next_run(
    letta_tools: LettaTools, agent: str, tokens: Path, fault: tuple[str, str]
) -> None:
    letta_tools.fails[fault[0], fault[1].format(agent=agent)] = 500
    assert setup(letta_tools, agent, "--write", "--token-file", tokens).exit_code == 1
    letta_tools.fails.clear()
    assert setup(letta_tools, agent, "--write", "--token-file", tokens).exit_code == 0
    assert letta_tools.tool_names(agent) == sorted(TOOLS)
    token = letta_tools.secrets(agent)[TOKEN]
    assert tokens.read_text() == f"# senders\nsender-token\n{token} agent={agent}\n"


def test_a_tool_that_does_not_reach_the_bridge_is_said_in_its_own_words(
    letta_tools: LettaTools, agent: str, tokens: Path
) -> None:
    tried: list[dict[str, Any]] = []

    def run(body: dict[str, Any]) -> dict[str, Any]:
        tried.append(body)
        return {
            "status": "success",
            "tool_return": f"The task bridge cannot be reached: {body['env_vars'][TOKEN]}\x1b[2J",
        }

    letta_tools.run = run
    result = setup(letta_tools, agent, "--write", "--token-file", tokens)
    assert result.exit_code == 1
    assert "cannot be reached: ***" in result.output
    assert "\x1b" not in result.output
    assert tried[0]["source_code"] == source_of("list_tasks")
    assert tried[0]["env_vars"] == {URL: BRIDGE, TOKEN: letta_tools.secrets(agent)[TOKEN], "LETTA_AGENT_ID": agent}


# -- taking back -------------------------------------------------------------------------------------------------------


def test_removing_takes_back_what_was_added_and_nothing_else(letta_tools: LettaTools, agent: str, tokens: Path) -> None:
    tokens.write_text("sender\nfor-all agent=*\n")
    own = letta_tools.create_tool("def other() -> str:\n    '''Mine.'''\n", ["mine"])
    letta_tools.agents[agent]["tools"].append(own["id"])
    before = state_of(letta_tools, tokens)
    setup(letta_tools, agent, "--write", "--token-file", tokens)
    said = setup(letta_tools, agent, "--remove", "--token-file", tokens)
    assert said.exit_code == 0
    assert state_of(letta_tools, tokens) == before
    changes = len(letta_tools.changes)
    assert "nothing is to be done" in setup(letta_tools, agent, "--remove", "--token-file", tokens).output
    assert len(letta_tools.changes) == changes


def test_a_tool_that_another_agent_has_stays_and_works(letta_tools: LettaTools, agent: str, tokens: Path) -> None:
    others = [letta_tools.create_agent() for _ in range(45)]  # more than fit on a page
    last = others[-1]
    for each in (agent, last):
        setup(letta_tools, each, "--write", "--token-file", tokens)
    setup(letta_tools, agent, "--remove", "--token-file", tokens)
    assert letta_tools.tool_names(agent) == []
    assert letta_tools.tool_names(last) == sorted(TOOLS)
    assert tokens.read_text().splitlines()[2:] == [f"{letta_tools.secrets(last)[TOKEN]} agent={last}"]
    setup(letta_tools, last, "--remove", "--token-file", tokens)
    assert letta_tools.tools == {}


def test_removing_without_the_token_file_says_that_the_token_is_still_good(
    letta_tools: LettaTools, agent: str, tokens: Path
) -> None:
    setup(letta_tools, agent, "--write", "--token-file", tokens)
    before = tokens.read_text()
    assert "--token-file" in setup(letta_tools, agent, "--remove").output
    assert tokens.read_text() == before
    assert TOKEN not in letta_tools.secrets(agent)


# -- what a person should know -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "offered"),
    [
        ("https://bridge.example.com", True),
        ("https://8.8.8.8:8443", True),
        ("http://bridge.example.com", False),
        ("https://localhost:4318", False),
        ("https://10.0.0.7", False),
        ("https://[::1]:4318", False),
        ("https://bridge.svc.cluster.local", False),
        ("https://bridge.local", False),
        ("https://bridge", False),
    ],
)
def test_mcp_is_offered_where_letta_would_take_the_address(
    letta_tools: LettaTools, agent: str, url: str, offered: bool
) -> None:
    shown = setup(letta_tools, agent, "--url", url).stdout
    assert ("mcp_server_type" in shown) == offered
    if offered:
        config = json.loads(shown[shown.index("{") :])
        assert config["config"]["server_url"] == f"{url}/mcp"
        assert config["config"]["auth_token"] == "Bearer TOKEN"


def test_a_token_on_its_way_through_an_open_network_is_mentioned(
    letta_tools: LettaTools, agent: str, tokens: Path
) -> None:
    said = "unencrypted"
    assert said in setup(letta_tools, agent, "--token-file", tokens, "--url", "http://10.0.0.7:4318").stderr
    assert said not in setup(letta_tools, agent, "--token-file", tokens, "--url", "https://10.0.0.7:4318").stderr
    assert said not in setup(letta_tools, agent, "--token-file", tokens).stderr
    assert said not in setup(letta_tools, agent, "--url", "http://10.0.0.7:4318").stderr


def test_what_a_server_writes_cannot_command_the_terminal(letta_tools: LettaTools, agent: str) -> None:
    letta_tools.agents[agent]["name"] = "x\x1b]0;mine\x07\n  ✓ done"
    shown = setup(letta_tools, agent).output
    assert "\x1b" not in shown
    assert "\n  ✓ done" not in shown
