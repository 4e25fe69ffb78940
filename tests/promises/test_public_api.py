"""The public names, and what importing them costs."""

from __future__ import annotations

import subprocess
import sys

import pytest

import otel_letta


@pytest.mark.parametrize("name", otel_letta.__all__)
def test_every_public_name_exists_and_says_what_it_is(name: str) -> None:
    assert getattr(otel_letta, name).__doc__
    assert name in dir(otel_letta)


def test_the_names_of_the_type_checker_are_those_of_the_program() -> None:

    assert {name for names in otel_letta._HOMES.values() for name in names} == set(otel_letta.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        otel_letta.no_such_name  # noqa: B018


@pytest.mark.parametrize(
    ("statement", "unloaded"),
    [
        ("import otel_letta", ("opentelemetry", "httpx", "dotenv", "asyncio")),
        ("from otel_letta import LettaSpanProcessor, LettaSpanExporter", ("httpx", "rich", "click", "http.server")),
        ("from otel_letta import task", ("opentelemetry.sdk", "httpx")),
    ],
)
def test_nothing_is_loaded_before_it_is_needed(statement: str, unloaded: tuple[str, ...]) -> None:
    code = f"import sys\n{statement}\nprint([name for name in {unloaded!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
