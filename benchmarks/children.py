"""Figures about a whole process are measured in a fresh one: a module of this package, run as a program.

Bytecode is cached in a folder of the run's own, whatever PYTHONDONTWRITEBYTECODE says: installed packages have theirs
compiled, so compiling is no part of what an import costs.
"""

from __future__ import annotations

import atexit
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

__all__ = ["environment", "run", "start"]

_ROOT = Path(__file__).parent.parent
_bytecode: list[str] = []


def environment(**more: str) -> dict[str, str]:
    """For a child: this process's, which `benchmarks.__main__` has cleaned of LETTA_*, OTEL_* and proxies."""
    if not _bytecode:
        _bytecode.append(tempfile.mkdtemp(prefix="otel_letta_bench_"))
        atexit.register(shutil.rmtree, _bytecode[0], ignore_errors=True)
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**inherited, "PYTHONPYCACHEPREFIX": _bytecode[0], "PYTHONPATH": str(_ROOT), **more}


def start(module: str, *arguments: object) -> subprocess.Popen[str]:
    """``python -m benchmarks.module arguments`` with its stdout in a pipe."""
    command = [sys.executable, "-m", f"benchmarks.{module}", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment())


def run(module: str, *arguments: object) -> str:
    """The same, run to its end; returns what it printed."""
    child = start(module, *arguments)
    output, _ = child.communicate(timeout=600)
    if child.returncode:
        raise RuntimeError(f"benchmarks.{module} ended with {child.returncode}")
    return output
