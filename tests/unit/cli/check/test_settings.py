"""Every setting is shown, whatever its value, and every one that cannot be used is named.

A new setting fails here until `tests.support.settings.SHOWN` has a value for it.
"""

from __future__ import annotations

import json

import pytest

from otel_letta.cli.check import probe
from otel_letta.settings import VARIABLES, Variable
from tests.support.checking import check, problems
from tests.support.settings import PASSWORD, SHOWN

EVERY = pytest.mark.parametrize("variable", VARIABLES, ids=lambda variable: variable.env)
BAD = "\x07"
"""A control character is no value of any setting."""


@pytest.fixture(autouse=True)
def no_server_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "_examine_server", lambda *examined: None)


@EVERY
def test_its_value_is_shown_to_people(variable: Variable, monkeypatch: pytest.MonkeyPatch) -> None:
    raw, shown = SHOWN[variable.name]
    monkeypatch.setenv(variable.env, raw)
    lines = check("--all").output.splitlines()
    assert not any(PASSWORD in line for line in lines)
    environment, defaults = lines.index("  from the environment"), lines.index("  from the defaults")
    assert [variable.env, *shown.split()] in [line.split() for line in lines[environment:defaults]]


@EVERY
def test_its_value_is_shown_to_programs(variable: Variable, monkeypatch: pytest.MonkeyPatch) -> None:
    raw, shown = SHOWN[variable.name]
    monkeypatch.setenv(variable.env, raw)
    found = json.loads(check("--json").output)["settings"]
    assert found[variable.env] == {"value": shown, "source": "environment"}
    assert list(found) == [each.env for each in VARIABLES]


@EVERY
def test_a_value_that_cannot_be_used_is_named_and_not_shown_as_set(
    variable: Variable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LETTA_AGENT_ID", "agent-1")
    monkeypatch.setenv(variable.env, BAD)
    result = check()
    (problem,) = problems(result)
    assert problem.startswith(f"{variable.env} from the environment cannot be ")
    assert not [line for line in result.output.splitlines() if line.split()[:1] == [variable.env]]


def test_all_that_cannot_be_used_are_named_together(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in VARIABLES:
        monkeypatch.setenv(variable.env, BAD)
    assert [problem.split()[0] for problem in problems(check())] == [variable.env for variable in VARIABLES]
