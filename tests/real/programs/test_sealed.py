"""The network that the programs of these tests run in: loopback, and nothing else."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.support.loopback import Handler, LoopbackServer
from tests.support.programs.sealed import can_be_sealed, cell

CALLS = """
import socket, sys
here, elsewhere = ("127.0.0.1", int(sys.argv[1])), ("192.0.2.1", 80)
for address in (here, elsewhere):
    try:
        socket.create_connection(address, timeout=5).close()
        print("reached")
    except OSError as error:
        print(error.strerror)
"""


class Silent(Handler):
    def do_GET(self) -> None:
        self.send(200)


@pytest.mark.skipif(not can_be_sealed(), reason="this system makes no networks for its users")
def test_a_program_reaches_the_test_and_nobody_else(tmp_path: Path) -> None:
    with cell(1) as opened, LoopbackServer(Silent, listener=opened.listeners[0]) as server:
        process = opened.run([sys.executable, "-c", CALLS, str(server.server_port)], tmp_path, {})
        output, errors = process.communicate(timeout=60)
    assert output.splitlines() == ["reached", "Network is unreachable"], errors
