"""An environment with the real OpenHands, made once and kept: prints the path of its Python.

    "$(python -m tests.support.openhands_env)" -m pytest -m openhands tests/real/openhands

It needs a Python 3.12 or 3.13 (on PATH or of pyenv; it need not be the one that runs this), PyPI, and about 0.8 GB in
``$OTEL_LETTA_TEST_CACHE`` (``~/.cache/otel-letta-tests``). The package under test is installed from this checkout,
editable, so that it is always the present one.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.support.letta_server import _cache_folder, _makes_venvs

__all__ = ["python"]

ROOT = Path(__file__).parent.parent.parent

_VERSIONS = ((3, 12), (3, 13))
_PACKAGES = (
    f"{ROOT}[cli,test-openhands]",
    "pytest>=8.0",
    "pytest-rerunfailures>=14",
    "respx>=0.22",
    "hypothesis>=6.100",
)
_USED = "import openhands.sdk, openhands.tools, opentelemetry.sdk, httpx"


def python(*, as_it_is: bool = False) -> Path:
    """The environment's Python; the environment is made, or brought up to date.

    ``as_it_is``: one that works is left alone, since other tests may be running in it. Its package under test may then
    be another checkout's: PYTHONPATH comes before it.
    """
    base = _find_python()
    folder = _cache_folder() / f"openhands-{hashlib.sha256(base.encode()).hexdigest()[:12]}"
    folder.mkdir(parents=True, exist_ok=True)
    found = folder / "venv" / "bin" / "python"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if as_it_is and found.exists() and subprocess.run([found, "-c", _USED], check=False).returncode == 0:
            return found
        if not found.exists():
            _run(base, "-m", "venv", str(folder / "venv"))
        # Not pip: it was still trying versions of OpenTelemetry's packages, which Laminar pins and others do not, after
        # 20 minutes of a day on which only some of them had a new release. uv's resolver takes seconds.
        _run(str(found), "-m", "pip", "install", "--quiet", "uv>=0.5")
        _run(str(found), "-m", "uv", "pip", "install", "--quiet", "--python", str(found), "--editable", *_PACKAGES)
    return found


def _find_python() -> str:
    """A Python that OpenHands runs on: the one that runs this, if it will do."""
    if sys.version_info[:2] in _VERSIONS:
        return sys.executable
    candidates = [shutil.which(f"python{major}.{minor}") for major, minor in _VERSIONS]
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    candidates += [str(path) for major, minor in _VERSIONS for path in pyenv.glob(f"{major}.{minor}.*/bin/python")]
    for candidate in candidates:
        if candidate and _makes_venvs(candidate):
            return candidate
    raise RuntimeError("OpenHands needs Python 3.12 or 3.13 with venv and ensurepip: install one")


def _run(*command: str) -> None:
    # Standard output is for the answer alone.
    subprocess.run(command, check=True, stdout=sys.stderr)


if __name__ == "__main__":
    print(python())
