"""What is published says the same in all places: the repository's address, and the version."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib.metadata import metadata
from pathlib import Path
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner

from otel_letta.cli.check.findings import Findings
from otel_letta.cli.check.show import SCHEMA, as_json
from otel_letta.cli.main import app

ROOT = Path(__file__).parents[2]
PROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
(HOME,) = re.findall(r'^Homepage = "(https://github\.com/([\w-]+)/([\w-]+))"$', PROJECT, re.MULTILINE)


def test_every_address_of_the_repository_is_the_same() -> None:
    url, owner, name = HOME
    ours = re.compile(r"https://(?:github\.com|raw\.githubusercontent\.com)/([\w-]*letta[\w-]*)/([\w-]+)")
    texts = [PROJECT, *((ROOT / ".github").rglob("*.yml"))]
    found = {
        pair for text in texts for pair in ours.findall(text if isinstance(text, str) else text.read_text("utf-8"))
    }
    assert found == {(owner, name)}
    assert f"https://{owner}.github.io/{name}/" in PROJECT
    assert url.endswith(name)


def test_the_command_has_the_version_of_the_package() -> None:
    (declared,) = re.findall(r'^version = "([^"]+)"$', PROJECT, re.MULTILINE)
    assert metadata("otel-letta")["Version"] == declared
    assert CliRunner().invoke(app(), ["--version"]).output.split()[-1] == declared


@pytest.mark.parametrize("pattern", re.findall(r"^pattern = '([^']+)'$", PROJECT, re.MULTILINE))
def test_what_the_index_would_not_find_is_made_absolute(pattern: str) -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    assert re.findall(pattern, text), "it is of no use any more"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_set_up_as_the_page_says(shell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (ROOT / "docs" / "cli.md").read_text("utf-8")
    variable = f"_OTEL_LETTA_COMPLETE={shell}_source"
    assert variable in page
    monkeypatch.setenv(*variable.split("="))
    result = CliRunner().invoke(app(), [], prog_name="otel-letta")
    assert result.exit_code == 0
    assert "_OTEL_LETTA_COMPLETE" in result.output


@pytest.mark.parametrize(
    "command",
    [
        "",
        "init",
        "check",
        "run",
        "demo",
        "replay",
        "tasks list",
        "tasks show",
        "tasks instruct",
        "hook",
        "openhands-webhooks",
    ],
)
def test_the_help_fits_80_columns(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    output = CliRunner().invoke(app(), [*command.split(), "--help"], prog_name="otel-letta").output
    lines = output.splitlines()
    assert len(lines) > 5 and max(map(len, lines)) <= 80
    if not command:
        assert "..." not in output.partition("Commands:")[2], "each command is described by a whole sentence"


def test_the_page_names_everything_in_the_json_of_check() -> None:
    page = (ROOT / "docs" / "cli.md").read_text("utf-8").partition("### The JSON")[2].partition("\n## ")[0]
    named = {
        name for cell in re.findall(r"^\| (`[^|]+) \|", page, re.MULTILINE) for name in re.findall(r"`(\w+)`", cell)
    }
    assert named == set(json.loads(as_json(Findings())))
    assert f"`schema` is {SCHEMA}." in page


@pytest.mark.examples
def test_the_script_makes_the_pictures(tmp_path: Path) -> None:
    """Takes as long as the demo that it records."""
    script = ROOT / "docs" / "pictures" / "make.py"
    subprocess.run([sys.executable, script, tmp_path], check=True, timeout=300, capture_output=True)
    made = {path.name: ElementTree.parse(path) for path in tmp_path.iterdir()}
    assert set(made) == {path.name for path in script.parent.glob("*.svg")}
    text = "".join(made["demo-light.svg"].getroot().itertext()).replace("\xa0", " ")
    assert "ValueError:" in text and "agent turns" in text
