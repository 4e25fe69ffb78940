"""`otel-letta demo`: three traced tasks on one side, what the Letta agent gets to know on the other, live.

The left side is what OpenTelemetry knows (the spans' own attributes), the right side what arrived at the server; only
`LettaSpanProcessor` is between them. The server is the stand-in of `otel_letta.testing`, unless ``--real`` is given.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections import deque
from collections.abc import Iterator

import click

from otel_letta.cli.demo.receivers import RealAgent, Receiver, StandIn
from otel_letta.cli.demo.show import Show
from otel_letta.errors import LettaConfigurationError
from otel_letta.settings import Settings
from otel_letta.testing import InMemoryLetta
from otel_letta.text import clean_line

_TURN_SECONDS = 0.4


@click.command(short_help="Watch three tasks, and what an agent gets to know.")
@click.option(
    "--real", is_flag=True, help="Talk to the server of your settings: up to three turns of your agent's LLM."
)
@click.option(
    "--seconds", type=click.FloatRange(0.2, 600), default=8.0, show_default=True, help="How long the tasks take."
)
def demo(real: bool, seconds: float) -> None:
    """Watch three traced tasks, and what a Letta agent hears about them.

    Needs no server, no settings and no network: a stand-in for Letta on this machine plays the agent.
    """
    if os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        click.echo("OTEL_SDK_DISABLED=true is set, so nothing can be traced: unset it for the demo.", err=True)
        sys.exit(1)
    with _log_lines() as log_lines, contextlib.ExitStack() as stack:
        receiver: Receiver
        if real:
            receiver = RealAgent(_own_settings())
        else:
            stack.enter_context(_no_proxy_on_loopback())
            receiver = StandIn(stack.enter_context(InMemoryLetta(turn_seconds=_TURN_SECONDS)))
        code = Show(receiver, seconds, log_lines).run()
    sys.exit(code)


def _own_settings() -> Settings:
    try:
        settings = Settings.resolve()
    except LettaConfigurationError as error:
        click.echo(f"{error}\n'otel-letta check' says more.", err=True)
        sys.exit(1)
    for warning in settings.security_warnings():
        click.echo(f"! {warning}", err=True)
    return settings


@contextlib.contextmanager
def _log_lines() -> Iterator[deque[str]]:
    """Collect the package's warnings, to be shown beside the picture and not in the middle of it."""
    lines: deque[str] = deque(maxlen=20)

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(clean_line(record.getMessage(), 300))

    logger, handler = logging.getLogger("otel_letta"), Handler(logging.WARNING)
    logger.addHandler(handler)
    try:
        yield lines
    finally:
        logger.removeHandler(handler)


@contextlib.contextmanager
def _no_proxy_on_loopback() -> Iterator[None]:
    """Keep a company's proxy away: it could not reach the stand-in on this machine."""
    before = {name: os.environ.get(name) for name in ("NO_PROXY", "no_proxy")}
    try:
        for name, value in before.items():
            os.environ[name] = f"{value},127.0.0.1" if value else "127.0.0.1"
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
