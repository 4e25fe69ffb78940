"""`python -m benchmarks` runs and prints its table. What the figures say depends on the machine: see docs/limits.md."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_command_prints_a_table_and_writes_the_figures(tmp_path: Path) -> None:
    """Takes ten seconds or more: the import is measured in some dozen programs."""
    file = tmp_path / "figures.json"
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--quick", "--only", "import", "--json", str(file)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    head, rule, *lines = done.stdout.splitlines()
    assert [cell.strip() for cell in head.strip("|").split("|")] == ["what", "figure", "target", ""]
    assert set(rule) == set("|- ")
    assert any(line.startswith("| import otel_letta") and "≤ 0.25×" in line for line in lines)
    assert any("CPUs" in line and "Python" in line and "opentelemetry-sdk" in line for line in lines)

    figures = json.loads(file.read_text(encoding="utf-8"))["figures"]
    assert {figure["verdict"] for figure in figures} <= {"met", "MISSED", "–"}
    assert all(f"{figure['what']}" in done.stdout for figure in figures)
