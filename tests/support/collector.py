"""A real OpenTelemetry Collector, built once from `collector/builder.yaml` into the tests' cache, and run on loopback.

It needs Go and its module proxy; eight minutes on two cores the first time. The folder is named after the hash of the
builder's file, so another list of components is another program.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from tests.support.collector_keys import FOLDER
from tests.support.programs.install import cache_folder, locked
from tests.support.waiting import until

__all__ = ["Collector", "Runs", "binary", "validate"]

_R = TypeVar("_R", bound="Runs")

RELEASE = "v0.161.0"
_BUILDER = f"go.opentelemetry.io/collector/cmd/builder@{RELEASE}"
_TIMEOUT = 7_200.0
"""Seconds for a build on a busy machine."""


def binary() -> Path:
    """Return the Collector; it is built if it is missing. RuntimeError if it cannot be: never a reason to skip."""
    recipe = FOLDER / "builder.yaml"
    digest = hashlib.sha256(recipe.read_bytes()).hexdigest()[:16]
    root = cache_folder() / f"collector-{digest}"
    found = root / "otelcol-letta"
    root.parent.mkdir(parents=True, exist_ok=True)
    with locked(root.with_name(f"{root.name}.lock")) as lock:
        if not found.exists():
            print(f"[collector] building {found} (once, 8 minutes)", file=sys.stderr, flush=True)
            shutil.rmtree(root, ignore_errors=True)
            root.mkdir()
            _build(root, recipe, lock)
            (root / "build" / "otelcol-letta").rename(found)
            shutil.rmtree(root / "build")
    return found


def _build(root: Path, recipe: Path, lock: int) -> None:
    go = shutil.which("go")
    if go is None:
        raise RuntimeError("Go is needed to build the Collector")
    shutil.copy(recipe, root / "builder.yaml")
    environ = {**os.environ, "GOBIN": str(root), "CGO_ENABLED": "0", "GOFLAGS": "-mod=mod -buildvcs=false"}
    for command in ([go, "install", _BUILDER], [str(root / "builder"), "--config", "builder.yaml"]):
        done = subprocess.run(
            ["nice", *command],
            cwd=root,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=_TIMEOUT,
            check=False,
            pass_fds=(lock,),  # should this process be killed, it is held until the build has ended as well
        )
        if done.returncode != 0:
            raise RuntimeError(f"cannot build the Collector: {command[-1]}\n{done.stdout[-4000:]}")


def validate(files: list[Path], environ: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run the Collector's own ``validate`` with this environment and nothing else."""
    command = [str(binary()), "validate", *(f"--config={file}" for file in files)]
    return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=600, check=False)


class Runs:
    """A process that can end and come back, and writes to a file. It does not run before `start`."""

    def __init__(self, command: list[str], environ: dict[str, str], log: Path) -> None:
        self._command = command
        self._environ = environ
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self: _R) -> _R:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def log(self) -> str:
        return self._log.read_text("utf-8", errors="replace")

    def start(self) -> None:
        """Start it, again if need be."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._command, env=self._environ, stdout=log, stderr=log)

    def kill(self) -> None:
        """End it as kill -9 does."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(60)
            self._process = None

    def stop(self) -> int:
        """Ask it to end, and return its exit code."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        code = self._process.wait(300)
        self._process = None
        return code


class Collector(Runs):
    """A Collector on loopback.

    Args:
        files: its configuration, in order.
        environ: variables that the configuration reads; ``HEALTH_ENDPOINT`` is needed.
        log: file for what it writes.
        disks: folders that are small disks, and their sizes: in its own view of the file system alone, which needs
            root, and empty at every start.
    """

    def __init__(
        self, files: list[Path], environ: dict[str, str], log: Path, disks: Mapping[str, str] | None = None
    ) -> None:
        command = [str(binary()), *(f"--config={file}" for file in files)]
        for folder, size in (disks or {}).items():
            Path(folder).mkdir(parents=True, exist_ok=True)
            mount = f"mount -t tmpfs -o size={shlex.quote(size)} tmpfs {shlex.quote(folder)}"
            # Each program takes the place of the one before, so that signals reach the Collector.
            command = ["unshare", "--mount", "sh", "-c", f'{mount} && exec "$@"', "sh", *command]
        super().__init__(command, {"PATH": os.environ["PATH"], **environ}, log)
        self.start()

    def start(self) -> None:
        """Start it, again if need be, and wait until it is healthy."""
        super().start()
        process = self._process
        assert process is not None
        assert until(lambda: process.poll() is not None or self._is_healthy(), 120), self.log[-4000:]
        assert process.poll() is None, self.log[-4000:]

    def _is_healthy(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://{self._environ['HEALTH_ENDPOINT']}/", timeout=10) as answer:
                return bool(answer.status == 200)
        except (OSError, urllib.error.URLError):
            return False

    def forget(self, file: Path) -> None:
        """Start it without this file of its configuration the next time."""
        self._command.remove(f"--config={file}")
