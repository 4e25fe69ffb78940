"""Faults of the process that reports, a row of docs/faults.md each."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from otel_letta.testing import InMemoryLetta
from tests.behaviour.test_processes import LIMIT, Programs, programs  # noqa: F401 - a fixture
from tests.support.fault_table import PAGE
from tests.support.process_faults import CASES, Case, table
from tests.support.waiting import until

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals")

_PROGRAM = """
def raising(kind, times):
    from otel_letta.letta.http import HttpClient
    original, left = HttpClient.request, [times]
    def request(*arguments, **keywords):
        if left[0] and arguments[1] == "POST":
            left[0] -= 1
            raise kind("out of it")
        return original(*arguments, **keywords)
    HttpClient.request = request

{before}
with task("delivered"):
    pass
assert provider.force_flush(20_000)
print("delivered", flush=True)
sys.stdin.readline()
with task("on its way"):
    pass
until(in_flight)
with task("waiting"):
    pass
until(lambda: sum(lane["waiting"] for lane in processor.stats()["lanes"].values()))
print("ready", flush=True)
{code}
"""


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.fault)
def test_a_fault_of_the_process_costs_what_the_page_says(
    programs: Programs,  # noqa: F811
    letta: InMemoryLetta,
    ctrl_c: None,
    case: Case,
) -> None:
    process = programs.start(
        _PROGRAM.format(before=case.before, code=case.code), OTEL_LETTA_SHUTDOWN_TIMEOUT="25", OTEL_LETTA_GRACE="0"
    )
    assert process.stdin is not None and process.stdout is not None
    assert process.stdout.readline() == "delivered\n"
    with letta.hold():
        process.stdin.write("go on\n")
        process.stdin.flush()
        assert process.stdout.readline() == "ready\n"
        assert until(lambda: letta.in_flight(programs.agent))
        for number in case.signals:
            if number == signal.SIGCONT:
                continue
            process.send_signal(number)
        if not case.signals:
            process.stdin.write("go on\n")
            process.stdin.flush()
        if case.arrive != ("delivered", "on its way", "waiting"):
            process.wait(LIMIT)  # while the turn still runs
    if signal.SIGCONT in case.signals:
        assert until(lambda: ("on its way", "completed") in programs.ends())
        process.send_signal(signal.SIGCONT)
        process.stdin.write("go on\n")
        process.stdin.flush()
    errors = _finish(process)
    assert process.returncode == case.exit_code, errors
    assert case.says in errors
    assert until(lambda: len(programs.ends()) >= len(case.arrive))
    assert programs.ends() == {(name, "completed"): 1 for name in case.arrive}


def _finish(process: subprocess.Popen[str]) -> str:
    _, errors = process.communicate(timeout=LIMIT * 2)
    return errors


def test_the_page_has_these_rows() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page.partition("<!-- process faults -->\n")[2].partition("\n<!-- /process faults -->")[0] == table()
