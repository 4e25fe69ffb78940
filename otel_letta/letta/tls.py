"""Certificates: whose word is taken for the server's, what is shown to it, and what is wrong when one is refused."""

from __future__ import annotations

import os
import ssl

from otel_letta.errors import LettaConfigurationError, LettaConnectionError
from otel_letta.settings import Settings
from otel_letta.settings.urls import http_url
from otel_letta.text import clean_error

_PAIR = ("CERTIFICATE_REQUIRED", "HANDSHAKE_FAILURE", "BAD_CERTIFICATE", "UNKNOWN_CA", "certificate required")
"""What servers answer to a client without a certificate, or with a wrong one."""


def context_of(settings: Settings) -> ssl.SSLContext:
    """Make the TLS context for the settings' server. Takes tens of milliseconds, but for a server without TLS: then no
    authority is loaded, and nobody trusted.

    Raises:
        LettaConfigurationError: a file cannot be used.
    """
    cafile = settings.certificate or os.environ.get("SSL_CERT_FILE")
    where = (
        "OTEL_LETTA_CERTIFICATE" if settings.certificate else "SSL_CERT_FILE" if cafile else "The trusted authorities"
    )
    try:
        context = _trusting(cafile, is_tls=http_url(settings.base_url).startswith("https://"))
        if settings.client_certificate:
            where = "OTEL_LETTA_CLIENT_CERTIFICATE (or OTEL_LETTA_CLIENT_KEY)"
            # Without a password: OpenSSL would ask for one on the terminal.
            context.load_cert_chain(settings.client_certificate, settings.client_key, password=lambda: b"")
    except (OSError, ValueError) as error:
        reason = clean_error(getattr(error, "strerror", None) or str(error)) or type(error).__name__
        problem = f"{where} cannot be loaded: {reason}"
    else:
        return context
    raise LettaConfigurationError(problem, hint="allowed: a PEM file that this process may read", parks=True)


def _trusting(cafile: str | None, *, is_tls: bool) -> ssl.SSLContext:
    capath = os.environ.get("SSL_CERT_DIR")
    if cafile or capath:  # without TLS too: a file that cannot be read is a mistake that somebody should hear of
        return ssl.create_default_context(cafile=cafile, capath=None if cafile else capath)
    if not is_tls:
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    import certifi  # whom httpx trusts; a company's own authority is known to the operating system alone

    context = ssl.create_default_context()
    context.load_verify_locations(certifi.where())
    return context


def certificate_problem(error: BaseException, settings: Settings) -> LettaConnectionError | None:
    """Make the error for a handshake that failed for a certificate; None if it was something else."""
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        if isinstance(link, ssl.SSLCertVerificationError):
            return _refused_by_us(link, settings)
        if isinstance(link, ssl.SSLError) and any(word in str(link) for word in _PAIR):
            return _refused_by_server(link, settings)
        link = link.__cause__ or link.__context__
    return None


def _refused_by_us(error: ssl.SSLCertVerificationError, settings: Settings) -> LettaConnectionError:
    reason = clean_error(error.verify_message or str(error)).rstrip(".")
    if "self-signed" in reason or "self signed" in reason or "issuer" in reason:
        hint = (
            "if it is the right server, set OTEL_LETTA_CERTIFICATE to the file of the certificate that signed its own"
        )
    elif "expired" in reason or "not yet valid" in reason:
        hint = "renew it on the server, and check this machine's clock"
    else:
        hint = "LETTA_BASE_URL has to name the server as its certificate does"
    return LettaConnectionError(
        f"The certificate of {settings.base_url} is refused", detail=reason, hint=hint, parks=True
    )


def _refused_by_server(error: ssl.SSLError, settings: Settings) -> LettaConnectionError:
    return LettaConnectionError(
        f"{settings.base_url} refuses the TLS connection",
        detail=clean_error(error.reason or str(error)),
        hint="if it wants a client certificate, set OTEL_LETTA_CLIENT_CERTIFICATE",
        parks=True,
    )
