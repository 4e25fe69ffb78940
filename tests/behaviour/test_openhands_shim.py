"""The original's import path: there, and in nobody's way."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import openhands.runtime.plugins.agent_skills.letta_reporter as shim

import otel_letta

ROOT = Path(__file__).parents[2]


def test_the_original_import_path_gives_the_reporter() -> None:
    assert shim.LettaReporter is otel_letta.LettaReporter


def test_no_folder_of_the_path_is_a_regular_package() -> None:
    assert not list((ROOT / "compat").rglob("__init__.py"))
    assert list((ROOT / "compat").rglob("*.py")) == [
        ROOT / "compat/openhands/runtime/plugins/agent_skills/letta_reporter.py"
    ]


def test_it_lives_beside_another_portion_of_the_namespace(tmp_path: Path) -> None:
    """openhands-sdk's wheels have no ``openhands/__init__.py`` either (measured on 1.58)."""
    theirs = tmp_path / "openhands" / "sdk"
    theirs.mkdir(parents=True)
    (theirs / "__init__.py").write_text("WHO = 'openhands-sdk'\n")
    code = (
        "import openhands.sdk\n"
        "from openhands.runtime.plugins.agent_skills.letta_reporter import LettaReporter\n"
        "import openhands\n"
        "print(openhands.sdk.WHO, LettaReporter.__module__, getattr(openhands, '__file__', None))\n"
    )
    for path in (f"{tmp_path}:{ROOT / 'compat'}", f"{ROOT / 'compat'}:{tmp_path}"):
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONPATH": path, "PATH": ""},
            capture_output=True,
            text=True,
            timeout=60,
            cwd=tmp_path,
        )
        assert done.stdout.split() == ["openhands-sdk", "otel_letta.reporter", "None"], done.stderr
