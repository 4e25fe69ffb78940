"""`otel-letta openhands-webhooks`: the receiver of OpenHands' webhooks as a program of its own."""

from __future__ import annotations

import sys

import click

from otel_letta.settings import Secret

_MOST_CONNECTIONS = 512
"""Open ones, busy or not, below the usual limit of open files. The application bounds the bodies that they hold."""
_PATIENCE_WITH_REQUESTS = 2
"""Seconds. Without it one slow client would keep a receiver that is stopped from ever reporting open runs."""


@click.command("openhands-webhooks", short_help="Receive the webhooks of OpenHands' agent-server.")
@click.option(
    "--host", default="127.0.0.1", show_default=True, help="Address to listen on; any but loopback needs a token."
)
@click.option("--port", default=8284, show_default=True, type=click.IntRange(0, 65_535))
@click.option(
    "--token",
    envvar="OTEL_LETTA_WEBHOOK_TOKEN",
    help="Required as 'Authorization: Bearer …'. Better set OTEL_LETTA_WEBHOOK_TOKEN: others see command lines.",
)
@click.option("--chat-id", help="For conversations without the tag 'lettachat'.")
@click.option("--message-id", help="For conversations without the tag 'lettamessage'.")
def openhands_webhooks(host: str, port: int, token: str | None, chat_id: str | None, message_id: str | None) -> None:
    """Receive the webhooks of OpenHands' agent-server, and report to your Letta agent.

    Start the agent-server with OH_WEBHOOKS_0_BASE_URL=http://127.0.0.1:8284, OH_WEBHOOKS_0_EVENT_BUFFER_SIZE=1 and
    OH_WEBHOOKS_0_FLUSH_DELAY=1. LETTA_BASE_URL and LETTA_AGENT_ID name the agent, as everywhere.
    """
    from otel_letta.integrations.openhands.webhooks import OpenHandsWebhooks, is_loopback

    token = (token or "").strip()
    if not is_loopback(host) and not token:
        raise click.UsageError(f"{host} can be reached by others: set OTEL_LETTA_WEBHOOK_TOKEN")
    try:
        import uvicorn  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        raise click.ClickException("this needs a web server: pip install 'otel-letta[webhooks]'") from None
    from otel_letta.cli.half_open import HalfOpenProtocol

    app = OpenHandsWebhooks(token=Secret(token) if token else None, chat_id=chat_id, message_id=message_id)
    if not app.active:
        sys.exit(1)  # the reason is in the log
    uvicorn.run(
        app,
        http=HalfOpenProtocol,  # of h11: httptools puts no bound on headers
        ws="none",
        host=host,
        port=port,
        access_log=False,
        log_level="warning",
        lifespan="on",
        limit_concurrency=_MOST_CONNECTIONS,
        h11_max_incomplete_event_size=65_536,
        timeout_graceful_shutdown=_PATIENCE_WITH_REQUESTS,
    )
