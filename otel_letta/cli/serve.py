"""`otel-letta serve`: the OTLP receiver."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from otel_letta.errors import LettaConfigurationError
from otel_letta.store.model import StoreError

_MISSING = "this needs a web server and OTLP's messages: pip install 'otel-letta[serve]'"
_TOKEN = "OTEL_LETTA_SERVE_TOKEN"  # noqa: S105 - a variable's name


@click.command(short_help="Receive OTLP from any program, report to Letta.")
@click.option(
    "--host", default="127.0.0.1", show_default=True, help="Address to listen on; any but loopback needs a token."
)
@click.option("--port", default=4318, show_default=True, type=click.IntRange(0, 65_535), help="OTLP/HTTP.")
@click.option("--grpc-port", type=click.IntRange(0, 65_535), help="OTLP/gRPC as well; its usual port is 4317.")
@click.option(
    "--token-file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Bearer tokens, one a line, each of which is good; read again when it changes.",
)
@click.option(
    "--token",
    envvar=_TOKEN,
    help=f"One bearer token. Better set {_TOKEN}, or use a file: others see command lines.",
)
@click.option("--allow-host", multiple=True, help="Name by which this may be called where no token is needed.")
@click.option(
    "--tls-cert", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Certificate chain, PEM."
)
@click.option("--tls-key", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Its private key, PEM.")
@click.option(
    "--spool",
    envvar="OTEL_LETTA_SPOOL",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File for what was received and is not settled; default is beside the outbox, if that is a file.",
)
@click.option("--workers", default=1, show_default=True, type=click.IntRange(1, 64), help="Processes that receive.")
@click.option(
    "--log-format", "form", type=click.Choice(["text", "json"]), default="text", help="Lines for people, or JSON lines."
)
def serve(
    host: str,
    port: int,
    grpc_port: int | None,
    token_file: Path | None,
    token: str | None,
    allow_host: tuple[str, ...],
    tls_cert: Path | None,
    tls_key: Path | None,
    spool: Path | None,
    workers: int,
    form: str,
) -> None:
    """Receive OTLP from any program, in any language, and report to your Letta agents.

    Traces and logs in protobuf and JSON on /v1/traces and /v1/logs; metrics are accepted and not read. LETTA_BASE_URL
    and LETTA_AGENT_ID name the agent, as everywhere; a span's or resource's letta.agent.id names another one of
    OTEL_LETTA_AGENT_ALLOW_LIST. With OTEL_LETTA_OUTBOX nothing that was answered with 200 is lost.
    """
    try:
        from otel_letta.serve.doors import is_loopback
        from otel_letta.serve.server import CannotListenError, Options
        from otel_letta.serve.workers import run
    except ImportError as error:
        raise click.ClickException(f"{_MISSING} ({error.name} is missing)") from None
    if bool(tls_cert) != bool(tls_key):
        raise click.UsageError("--tls-cert and --tls-key belong together")
    tokens = (token.strip(),) if token and token.strip() else ()
    if not is_loopback(host) and not tokens and token_file is None:
        raise click.UsageError(f"{host} can be reached by others: use --token-file, or set {_TOKEN}")
    options = Options(host, port, grpc_port, tokens, token_file, allow_host, tls_cert, tls_key, spool=spool)
    try:
        sys.exit(run(options, workers, form))
    except LettaConfigurationError as error:
        raise click.ClickException(f"{error}\n'otel-letta check' says more.") from None
    except (CannotListenError, StoreError, OSError, ValueError) as error:
        raise click.ClickException(str(error)) from None
