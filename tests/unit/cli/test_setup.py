"""`otel-letta setup`: blocks for coding programs, and merging them into files that belong to somebody else.

That the programs do what these settings say is tested with the real ones: `tests/real/programs`.
"""

from __future__ import annotations

import json
import os
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest
import tomlkit
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st

from otel_letta.cli.main import app
from otel_letta.cli.setup.merge import CannotMerge, merge
from otel_letta.cli.setup.programs import PROGRAMS, Target

WITH_FILE = [name for name, program in PROGRAMS.items() if program.file]
JSON = [name for name in WITH_FILE if PROGRAMS[name].file.endswith(".json")]
ENDPOINT = "http://127.0.0.1:4318"
TOKEN = "tok-4711.abc"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for program in PROGRAMS.values():
        monkeypatch.delenv(program.folder_variable, raising=False)
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    path = tmp_path / "the token"
    path.write_text(f"{TOKEN}\nthe-next-one\n")
    return path


def setup(*arguments: str | Path) -> Result:
    result = CliRunner().invoke(app(), ["setup", *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.output
    return result


def value_at(document: Any, place: tuple[str, ...]) -> Any:
    for name in place:
        document = document[name]
    return document


def read(path: Path) -> Any:
    text = path.read_text("utf-8")
    return tomlkit.parse(text).unwrap() if path.suffix == ".toml" else json.loads(text)


def backups(path: Path) -> list[Path]:
    return sorted(path.parent.glob(f"{path.name}.*.bak"))


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# -- printing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PROGRAMS)
def test_printing_writes_nothing_and_shows_the_endpoint_once_it_is_needed(name: str, home: Path) -> None:
    result = setup(name, "--endpoint", "https://bridge.example:8443/")
    assert result.exit_code == 0
    assert "https://bridge.example:8443" in result.stdout
    assert "8443//" not in result.stdout
    assert not list(home.iterdir())


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_printed_block_is_a_file_that_the_program_could_have(name: str, home: Path) -> None:
    program = PROGRAMS[name]
    block = "".join(line for line in setup(name).stdout.splitlines(keepends=True) if not line.startswith("export "))
    if not program.file:
        assert block == ""
        return
    document = tomlkit.parse(block).unwrap() if program.file.endswith(".toml") else json.loads(block)
    for place, value in program.settings(Target(ENDPOINT)).items():
        assert value_at(document, place) == value


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_token_is_never_printed_but_gets_where_it_belongs(name: str, home: Path, token_file: Path) -> None:
    printed = setup(name, "--token-file", token_file)
    written = setup(name, "--token-file", token_file, "--write")
    assert TOKEN not in printed.output + written.output
    program = PROGRAMS[name]
    lines = [line for line in printed.stdout.splitlines() if line.startswith("export OTEL_EXPORTER_OTLP_HEADERS=")]
    if lines:  # what a shell makes of it
        done = subprocess.run(
            ["sh", "-c", f'{lines[0]}\nprintf %s "$OTEL_EXPORTER_OTLP_HEADERS"'], capture_output=True, text=True
        )
        assert done.stdout == f"Authorization=Bearer {TOKEN}"
    else:
        assert f"Bearer {TOKEN}" in program.path().read_text()
        assert "Bearer TOKEN" in printed.stdout


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_environment_is_lines_for_a_shell(name: str, home: Path) -> None:
    lines = [line for line in setup(name).stdout.splitlines() if line.startswith("export ")]
    expected = PROGRAMS[name].environment(Target(ENDPOINT))
    done = subprocess.run(
        ["sh", "-c", "\n".join([*lines, "env"])], capture_output=True, text=True, env={"PATH": "/bin"}
    )
    assert len(lines) == len(expected)
    assert {f"{name}={value}" for name, value in expected.items()} <= set(done.stdout.splitlines())


@pytest.mark.parametrize(
    "endpoint",
    [
        "127.0.0.1:4318",
        "ftp://x",
        "http://",
        "http://u:p@x",
        "http://x/v1/traces",
        "http://x:y",
        "http://x?a",
        "http://$(id)",
    ],
)
def test_an_endpoint_that_no_program_could_use_is_refused(endpoint: str, home: Path) -> None:
    result = setup("codex", "--write", "--endpoint", endpoint)
    assert (result.exit_code, list(home.iterdir())) == (2, [])


@pytest.mark.parametrize("content", [b"", b"\n", b"two words\n", b"a,b=c\n", b"na\xc3\xafve\n", b"\xff\xfe\n"])
def test_a_file_without_a_token_is_refused(content: bytes, home: Path, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_bytes(content)
    result = setup("codex", "--write", "--token-file", file)
    assert (result.exit_code, list(home.iterdir())) == (2, [])


def test_a_token_on_its_way_through_an_open_network_is_mentioned(home: Path, token_file: Path) -> None:
    said = "unencrypted"
    assert said in setup("codex", "--token-file", token_file, "--endpoint", "http://bridge.example:4318").stderr
    assert said not in setup("codex", "--token-file", token_file, "--endpoint", "https://bridge.example").stderr
    assert said not in setup("codex", "--token-file", token_file).stderr


# -- writing -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WITH_FILE)
def test_writing_makes_the_file_and_a_second_time_changes_nothing(name: str, home: Path) -> None:
    first, path = setup(name, "--write"), PROGRAMS[name].path()
    assert first.exit_code == 0
    assert path.is_relative_to(home)
    document, before = read(path), path.stat()
    for place, value in PROGRAMS[name].settings(Target(ENDPOINT)).items():
        assert value_at(document, place) == value
    second = setup(name, "--write")
    assert second.exit_code == 0
    assert "nothing was changed" in second.stderr
    after = path.stat()
    assert (after.st_mtime_ns, after.st_ino) == (before.st_mtime_ns, before.st_ino)
    assert not backups(path)


@pytest.mark.parametrize("name", WITH_FILE)
def test_what_is_there_stays_as_it_is(name: str, home: Path) -> None:
    path = PROGRAMS[name].path()
    path.parent.mkdir(parents=True)
    if path.suffix == ".toml":
        text = (
            '# mine\nmodel = "o7"  # the good one\n\n[otel]\nenvironment = "prod"\n\n[mcp_servers.x]\ncommand = "y"\n'
        )
    else:
        text = json.dumps(
            {"zeta": [1, 2.5, "ü"], "env": {"PATH_X": "1"}, "telemetry": {"outfile": "x"}, "alpha": None},
            indent=4,
            ensure_ascii=False,
        )
    path.write_text(text, "utf-8")
    path.chmod(0o640)
    result = setup(name, "--write")
    assert result.exit_code == 0, result.output
    (backup,) = backups(path)
    assert str(backup) in result.stderr
    assert (backup.read_text("utf-8"), mode(backup)) == (text, 0o640)
    assert mode(path) == 0o640
    new = path.read_text("utf-8")
    if path.suffix == ".toml":
        assert all(line in new.splitlines() for line in text.splitlines())
        assert read(path)["mcp_servers"] == {"x": {"command": "y"}}
    else:
        document = read(path)
        assert list(document)[:4] == ["zeta", "env", "telemetry", "alpha"]
        assert (document["zeta"], document["env"]["PATH_X"]) == ([1, 2.5, "ü"], "1")
        assert '\n    "zeta"' in new
        assert "ü" in new


@pytest.mark.parametrize("name", WITH_FILE)
def test_another_value_is_only_replaced_when_asked_to(name: str, home: Path) -> None:
    program = PROGRAMS[name]
    path = program.path()
    setup(name, "--write")
    place, value = next((p, v) for p, v in program.settings(Target(ENDPOINT)).items() if p[-1] != "enabled")
    text = merge(program.file, path.read_text(), {place: "mine"}).text
    path.write_text(text)

    refused = setup(name, "--write")
    assert refused.exit_code == 1
    assert ".".join(place) in refused.stderr
    assert (path.read_text(), backups(path)) == (text, [])

    replaced = setup(name, "--write", "--replace")
    assert replaced.exit_code == 0, replaced.output
    assert "1 replaced" in replaced.stderr
    assert value_at(read(path), place) == value
    (backup,) = backups(path)
    assert backup.read_text() == text


def test_codex_exporter_is_replaced_as_a_whole(home: Path) -> None:
    """Its kinds exclude each other: one added to the other is a file that Codex refuses."""
    path = PROGRAMS["codex"].path()
    path.parent.mkdir()
    for text in (
        '[otel]\nexporter = "none"\n',
        '[otel]\nexporter = { otlp-grpc = { endpoint = "https://x" } }\n',
        '[otel.exporter.otlp-grpc]\nendpoint = "https://x"\n\n[tui]\ntheme = "a"\n',
    ):
        path.write_text(text)
        assert setup("codex", "--write").exit_code == 1
        assert setup("codex", "--write", "--replace").exit_code == 0
        expected = {"otlp-http": {"endpoint": f"{ENDPOINT}/v1/logs", "protocol": "binary"}}
        assert read(path)["otel"]["exporter"] == expected
        assert ("tui" in text) == ("tui" in read(path))


BROKEN = {
    "comments": b'{\n  // mine\n  "a": 1\n}',
    "trailing comma": b'{"a": 1,}',
    "cut off": b'{"a": ',
    "no object": b"[1, 2]",
    "a name twice": b'{"env": {}, "env": {"A": "1"}}',
    "UTF-16": '{"a": 1}'.encode("utf-16"),
    "too deep": b"[" * 100_000,
    "a byte order mark": b'\xef\xbb\xbf{"a": 1}',
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
@pytest.mark.parametrize("name", JSON)
def test_json_that_a_merge_could_spoil_is_left_alone(name: str, content: bytes, home: Path) -> None:
    assert_left_alone(name, content)


@pytest.mark.parametrize(
    "content",
    [b"a = ", b"a = 1\na = 2\n", b"otel = 1\n", b"[[otel]]\n", b'a = "\xff"\n', b"[otel]\nx = 1\n[otel]\ny = 2\n"],
)
def test_toml_that_a_merge_could_spoil_is_left_alone(content: bytes, home: Path) -> None:
    assert_left_alone("codex", content)


@pytest.mark.parametrize("name", JSON)
def test_something_else_in_the_place_of_settings_is_left_alone(name: str, home: Path) -> None:
    table = next(iter(PROGRAMS[name].settings(Target(ENDPOINT))))[0]
    assert_left_alone(name, json.dumps({table: "no settings"}).encode())


def assert_left_alone(name: str, content: bytes) -> None:
    path = PROGRAMS[name].path()
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    result = setup(name, "--write", "--replace")
    assert result.exit_code == 1
    assert "Nothing was written" in result.stderr
    assert path.read_bytes() == content
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_folder_in_the_place_of_the_file_is_named(home: Path) -> None:
    path = PROGRAMS["codex"].path()
    path.mkdir(parents=True)
    result = setup("codex", "--write")
    assert result.exit_code == 1
    assert str(path) in result.stderr
    assert not list(path.iterdir())


def test_a_link_is_followed_and_stays_one(home: Path, tmp_path: Path) -> None:
    path, real = PROGRAMS["claude-code"].path(), tmp_path / "dotfiles.json"
    path.parent.mkdir()
    real.write_text('{"a": 1}\n')
    path.symlink_to(real)
    assert setup("claude-code", "--write").exit_code == 0
    assert path.is_symlink()
    assert read(real)["a"] == 1
    assert "env" in read(real)


def test_a_new_file_with_a_token_is_for_its_owner_alone(home: Path, token_file: Path) -> None:
    setup("claude-code", "--write", "--token-file", token_file)
    assert mode(PROGRAMS["claude-code"].path()) == 0o600
    setup("codex", "--write")
    mask = os.umask(0)
    os.umask(mask)
    assert mode(PROGRAMS["codex"].path()) == 0o666 & ~mask


@pytest.mark.parametrize("name", WITH_FILE)
def test_the_programs_own_variable_says_where_its_settings_are(
    name: str, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PROGRAMS[name].folder_variable, str(tmp_path / "elsewhere"))
    assert setup(name, "--write").exit_code == 0
    assert (tmp_path / "elsewhere" / PROGRAMS[name].file).exists()
    assert not list(home.iterdir())


def test_a_program_without_a_settings_file_says_that_nothing_was_written(home: Path) -> None:
    result = setup("copilot", "--write")
    assert result.exit_code == 1
    assert "nothing was written" in result.stderr
    assert "export OTEL_EXPORTER_OTLP_ENDPOINT" in result.stdout


def test_a_file_that_changed_meanwhile_is_not_overwritten(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = PROGRAMS["codex"].path()
    path.parent.mkdir()
    path.write_text("a = 1\n")

    def somebody_else(*arguments: Any) -> Any:
        path.write_text("a = 2\n")
        return merge(*arguments)

    monkeypatch.setattr("otel_letta.cli.setup.command.merge", somebody_else)
    assert setup("codex", "--write").exit_code == 1
    assert path.read_text() == "a = 2\n"


# -- any file ----------------------------------------------------------------------------------------------------------

names = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=8) | st.sampled_from(
    ["env", "otel", "exporter", "telemetry", "experimental", "enabled", "log_user_prompt"]
)
leaves = st.booleans() | st.integers(-(2**60), 2**60) | st.text(st.characters(codec="utf-8"), max_size=12)
documents = st.dictionaries(
    names,
    st.recursive(leaves, lambda inner: st.lists(leaves, max_size=3) | st.dictionaries(names, inner, max_size=3)),
    max_size=5,
)


@pytest.mark.parametrize("name", WITH_FILE)
@settings(max_examples=60)
@given(before=documents)
def test_a_merge_adds_our_settings_and_loses_nothing(name: str, before: dict[str, Any]) -> None:
    program = PROGRAMS[name]
    wanted = program.settings(Target(ENDPOINT, TOKEN))
    toml = program.file.endswith(".toml")
    text = tomlkit.dumps(before) if toml else json.dumps(before, indent=3)
    try:
        merged = merge(program.file, text, wanted)
    except CannotMerge:
        assert any(is_blocked(before, place) for place in wanted)
        return
    after = tomlkit.parse(merged.text).unwrap() if toml else json.loads(merged.text)
    assert all(value_at(after, place) == value for place, value in wanted.items())
    assert without(after, wanted) == without(before, wanted)
    again = merge(program.file, merged.text, wanted)
    assert (again.text, again.is_new) == (merged.text, False)


def is_blocked(document: Any, place: tuple[str, ...]) -> bool:
    """Something else is where a table would have to be."""
    for name in place[:-1]:
        document = document.get(name, {})
        if not isinstance(document, dict):
            return True
    return False


def without(document: dict[str, Any], places: dict[tuple[str, ...], Any]) -> dict[str, Any]:
    """All but these places, and the tables that were only made for them."""
    left: dict[str, Any] = json.loads(json.dumps(document))
    for place in places:
        table: Any = left
        for name in place[:-1]:
            table = table.get(name, {})
        table.pop(place[-1], None)
    for place in places:
        if left.get(place[0]) == {}:
            del left[place[0]]
    return left
