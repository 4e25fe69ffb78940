"""Programs from npm, each in a folder of its own in the tests' cache, of pinned versions."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

__all__ = ["cache_folder", "install", "locked"]

_TIMEOUT = 1_200.0


def install(name: str, packages: tuple[str, ...]) -> Path:
    """Return the folder that holds ``node_modules`` with these packages; it is made if it is missing or of others.

    RuntimeError if it cannot be made: never a reason to skip.
    """
    root = cache_folder() / f"npm-{name}"
    marker = root / "INSTALLED"
    digest = hashlib.sha256(json.dumps(packages).encode()).hexdigest()
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        with locked(root.with_name(f"{root.name}.lock")) as lock:
            if not (marker.exists() and marker.read_text() == digest):
                shutil.rmtree(root, ignore_errors=True)
                root.mkdir()
                print(f"[programs] installing {packages[0]} into {root} (once)", file=sys.stderr, flush=True)
                _npm_install(root, packages, lock)
                marker.write_text(digest)
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or ""
        raise RuntimeError(f"cannot install {name} into {root}: {error}\n{said[-4000:]}") from error
    return root


def _npm_install(root: Path, packages: tuple[str, ...], lock: int) -> None:
    (root / "package.json").write_text('{"private": true}')
    subprocess.run(
        ["npm", "install", "--no-audit", "--no-fund", "--no-update-notifier", "--ignore-scripts=false", *packages],
        cwd=root,
        check=True,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=_TIMEOUT,
        pass_fds=(lock,),  # should this process be killed, it is held until npm has ended as well
    )


def cache_folder() -> Path:
    chosen = os.environ.get("OTEL_LETTA_TEST_CACHE") or Path.home() / ".cache" / "otel-letta-tests"
    return Path(chosen).expanduser().resolve()


@contextlib.contextmanager
def locked(path: Path) -> Iterator[int]:
    """Hold a lock between processes, and yield its file descriptor; the system lets go of it if they die."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()
