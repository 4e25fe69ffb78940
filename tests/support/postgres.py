"""A PostgreSQL cluster of the tests' own, in a temporary folder, with the programs that the machine has.

PostgreSQL refuses to run as root, so under root it runs as ``nobody``.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from tests.support.program import until

_OLDEST = 14


def programs() -> Path:
    """The folder of ``initdb`` and ``postgres``, of the newest version; AssertionError if there is none."""
    on_path = shutil.which("initdb")
    candidates = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
    usable = [path for path in candidates if int(path.parent.name) >= _OLDEST and (path / "initdb").exists()]
    assert on_path or usable, "PostgreSQL 14 or newer has to be on this machine"
    return usable[-1] if usable else Path(str(on_path)).resolve().parent


class Cluster:
    """A server on loopback with one superuser, ``letta``, who has a password. For ``with``."""

    password = "s3cret-pass"

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="otel-letta-postgres-"))
        self.port = _free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._as: dict[str, Any] = {"cwd": self.folder}
        if os.geteuid() == 0:
            nobody = pwd.getpwnam("nobody")
            os.chown(self.folder, nobody.pw_uid, nobody.pw_gid)
            self._as |= {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}

    def url(self, database: str = "postgres") -> str:
        return f"postgresql://letta:{self.password}@127.0.0.1:{self.port}/{database}"

    def __enter__(self) -> Cluster:
        secret = self.folder / "password"
        secret.write_text(self.password)
        secret.chmod(0o644)
        self._run("initdb", "-D", "data", "-U", "letta", "--pwfile", "password", "-A", "scram-sha-256", "-E", "UTF8")
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def start(self) -> None:
        """Start the server, and wait until it takes sessions."""
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    programs() / "postgres",
                    "-D",
                    "data",
                    "-h",
                    "127.0.0.1",
                    "-p",
                    str(self.port),
                    "-k",
                    str(self.folder),
                ],
                stdout=log,
                stderr=log,
                **self._as,
            )
        until(self._is_ready, "PostgreSQL is up", 120.0)

    def stop(self) -> None:
        """Stop the server, which ends all sessions; what was committed stays."""
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)
            self._process.wait()
            self._process = None

    def _is_ready(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self.folder / "log").read_text()
        command = [programs() / "pg_isready", "-h", "127.0.0.1", "-p", str(self.port)]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run([programs() / program, *arguments], capture_output=True, check=False, **self._as)
        assert done.returncode == 0, done.stderr.decode()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
