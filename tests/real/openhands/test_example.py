"""examples/openhands_steered.py, run as its docstring says; tests/real/letta runs it under a real agent."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

EXAMPLE = Path(__file__).parents[3] / "examples" / "openhands_steered.py"


def test_the_steered_run_with_the_stand_ins(tmp_path: Path) -> None:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "LLM_", "LETTA_"))}
    done = subprocess.run(
        [sys.executable, EXAMPLE],
        cwd=tmp_path,
        env={**kept, "HOME": str(tmp_path), "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3_000:]
    assert "Files: hello.py, test_hello.py" in done.stdout
    assert done.stdout.count('status="completed"') == 2
    assert "<result>hello.py has a test.</result>" in done.stdout
