"""The settings of coding programs in docs/uses/coding-agents.md are the ones that `otel-letta setup` prints.

`python -m tests.docs.test_coding_agents` writes them anew.
"""

from __future__ import annotations

import re
from pathlib import Path

from otel_letta.cli.setup.merge import render
from otel_letta.cli.setup.programs import PROGRAMS, Program, Target
from tests.unit.cli.test_setup import setup

PAGE = Path(__file__).parents[2] / "docs" / "uses" / "coding-agents.md"
TARGET = Target("http://127.0.0.1:4318")


def section(program: Program) -> str:
    """What the page says of a program."""
    settings, variables = program.settings(TARGET), program.environment(TARGET)
    parts = [f"### {program.title} {program.checked}"]
    if settings:
        language = program.file.rpartition(".")[2]
        path = "/".join(part for part in ("~", program.folder, program.file) if part)
        parts.append(f"`{path}`:\n\n```{language}\n{render(program.file, settings)}```")
    if variables:
        lines = "".join(f"{name}={value}\n" for name, value in variables.items())
        parts.append(f"{'And in' if settings else 'In'} the environment that it starts in:\n\n```text\n{lines}```")
    return "\n\n".join([*parts, *program.notes])


def sections() -> str:
    return "\n\n".join(map(section, PROGRAMS.values()))


def test_the_page_has_the_settings_that_the_command_prints() -> None:
    found = re.search(r"<!-- setup -->\n\n(.*)\n\n<!-- /setup -->", PAGE.read_text("utf-8"), re.DOTALL)
    assert found is not None
    assert found[1] == sections(), "write it anew: python -m tests.docs.test_coding_agents"


def test_the_page_and_the_command_agree_to_the_letter() -> None:
    page = PAGE.read_text("utf-8")
    for name, program in PROGRAMS.items():
        printed = setup(name).stdout
        block = "".join(line for line in printed.splitlines(keepends=True) if not line.startswith("export "))
        assert block in page, name
        for line in printed.splitlines():
            if line.startswith("export "):
                assert f"\n{line.removeprefix('export ')}\n" in page, name
        assert program.checked in page


def test_every_program_of_the_page_can_be_set_up() -> None:
    """The table of what each sends and the settings are about the same programs."""
    page = PAGE.read_text("utf-8")
    for program in PROGRAMS.values():
        assert re.search(rf"^### {re.escape(program.title)} ", page, re.MULTILINE)


if __name__ == "__main__":
    page = PAGE.read_text("utf-8")
    new = f"<!-- setup -->\n\n{sections()}\n\n<!-- /setup -->"
    PAGE.write_text(re.sub(r"<!-- setup -->.*<!-- /setup -->", lambda _: new, page, flags=re.DOTALL), "utf-8")
