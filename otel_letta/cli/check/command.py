"""The command `otel-letta check`."""

from __future__ import annotations

import sys

import click

from otel_letta.cli.check.findings import Findings
from otel_letta.cli.check.probe import probe
from otel_letta.cli.check.show import Lines, as_json


@click.command(short_help="Say whether a report would get through.")
@click.option("--send", is_flag=True, help="Send a test report. It wakes the agent and costs one turn of its LLM.")
@click.option("--env-file", type=click.Path(), metavar="PATH", help="Read this .env file instead of the nearest one.")
@click.option("--all", "show_all", is_flag=True, help="Show the settings that have their defaults too.")
@click.option("--json", "in_json", is_flag=True, help="Print JSON, for programs: docs/cli.md describes it.")
def check(send: bool, env_file: str | None, show_all: bool, in_json: bool) -> None:
    """Say whether a report would reach your Letta agent, and what is wrong if not.

    Reads the settings as your program would from the present directory, asks the server, and sends nothing to the
    agent (but see --send). Exit code: 0 if a report would get through, else 1.
    """
    if in_json:
        findings = Findings()
        probe(findings, env_file, send=send)
        click.echo(as_json(findings))
    else:
        lines = Lines(show_all=show_all)
        findings = Findings(lines.show)
        probe(findings, env_file, send=send)
        lines.close(findings)
    sys.exit(1 if findings.problems else 0)
