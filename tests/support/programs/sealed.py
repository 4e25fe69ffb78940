"""A program in a network where nothing is but loopback, and on it the servers of the test.

Linux makes such a network for anybody (a user and a network namespace). A process in there opens the listening sockets,
hands them out to the test, which serves them from where it is, and then becomes the program. Whatever else the program
wants to call, it finds no route: what works here works on a machine without internet.

Where a system does not allow it (some containers), the program runs in the network of the machine, with a proxy in its
environment that nobody serves.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

__all__ = ["Cell", "can_be_sealed", "cell"]

_SEAL = ("unshare", "--user", "--map-root-user", "--net")
_MOST = 1 << 20
_NOWHERE = "http://127.0.0.1:9"
NO_WAY_OUT = {
    **dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"), _NOWHERE),
    **dict.fromkeys(("NO_PROXY", "no_proxy"), "127.0.0.1,localhost"),
}


@functools.cache
def can_be_sealed() -> bool:
    found = shutil.which(_SEAL[0])
    return found is not None and subprocess.run([*_SEAL, "true"], capture_output=True).returncode == 0


class Cell:
    """A process that will be the program: it waits with its sockets until it is told what to run."""

    def __init__(self, sockets: int) -> None:
        ours, theirs = socket.socketpair()
        self._line = ours
        seal = _SEAL if can_be_sealed() else ()
        self.sealed = bool(seal)
        with theirs:
            self.process = subprocess.Popen(
                [*seal, sys.executable, __file__, str(theirs.fileno()), str(sockets), *seal[:1]],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,  # a group of its own, for Ctrl-C reaches all of a terminal's
            )
        ours.settimeout(60)
        _, handles, _, _ = socket.recv_fds(ours, 1, sockets)
        if len(handles) != sockets:
            raise RuntimeError(f"the cell did not open: {self.process.communicate()[1]}")
        self.listeners = [socket.socket(fileno=handle) for handle in handles]

    def run(self, command: list[str], folder: Path, environ: Mapping[str, str]) -> subprocess.Popen[str]:
        """Start the program."""
        order = {"command": command, "folder": str(folder), "environ": {**NO_WAY_OUT, **environ}}
        self._line.sendall(json.dumps(order).encode())
        self._line.close()
        return self.process


@contextlib.contextmanager
def cell(sockets: int) -> Iterator[Cell]:
    made = Cell(sockets)
    try:
        yield made
    finally:
        made._line.close()
        for listener in made.listeners:
            listener.close()
        if made.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(made.process.pid, 9)
        made.process.communicate()


def _become(line: socket.socket, sockets: int, sealed: bool) -> None:
    """In the new process: open the sockets, hand them out, and become the program."""
    if sealed:
        _raise_loopback()
    listeners = [socket.create_server(("127.0.0.1", 0), backlog=128) for _ in range(sockets)]
    socket.send_fds(line, [b"!"], [listener.fileno() for listener in listeners])
    raw = b"".join(iter(lambda: line.recv(_MOST), b""))
    if not raw:
        return  # the test has given up
    order: dict[str, Any] = json.loads(raw)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell lets what it starts in the background ignore Ctrl-C
    os.chdir(order["folder"])
    os.execvpe(order["command"][0], order["command"], order["environ"])


def _raise_loopback() -> None:
    """A new network's loopback is down (linux/if.h: SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP)."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = struct.pack("16sh14x", b"lo", 0)
        name, flags = struct.unpack("16sh14x", fcntl.ioctl(any_socket, 0x8913, request))
        fcntl.ioctl(any_socket, 0x8914, struct.pack("16sh14x", name, flags | 1))


if __name__ == "__main__":
    _become(socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2]), sealed=len(sys.argv) > 3)
