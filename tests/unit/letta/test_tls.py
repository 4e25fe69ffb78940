"""Certificates: self-signed servers, servers that want to see one, and words that say what is wrong with it."""

from __future__ import annotations

import datetime
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from otel_letta import errors
from otel_letta.letta.app_server.socket import Session
from otel_letta.letta.tls import context_of
from otel_letta.settings import Settings
from otel_letta.testing import InMemoryLetta
from tests.support.fault_proxy import FaultProxy
from tests.unit.letta.rest_support import transport


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def ca_file(authority: trustme.CA, tmp_path: Path) -> str:
    path = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(path))
    return str(path)


def context(certificate: trustme.LeafCert) -> ssl.SSLContext:
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(made)
    return made


@pytest.fixture
def server(letta: InMemoryLetta, authority: trustme.CA) -> Iterator[FaultProxy]:
    with FaultProxy(letta.base_url, tls=context(authority.issue_cert("127.0.0.1"))) as proxy:
        yield proxy


def ask(url: str, agent: str, **options: Any) -> None:
    letta = transport(url, agent, **options)
    try:
        letta.probe(letta.lane(None, None))
    finally:
        letta.close()


def refusal(url: str, agent: str, **options: Any) -> errors.LettaError:
    with pytest.raises(errors.LettaError) as raised:
        ask(url, agent, **options)
    return raised.value


def test_a_server_that_nobody_vouches_for_is_refused_with_the_remedy(server: FaultProxy, agent: str) -> None:
    error = refusal(server.base_url, agent)
    assert isinstance(error, errors.LettaConnectionError)
    assert str(error).startswith(f"The certificate of {server.base_url} is refused: ")
    assert "set OTEL_LETTA_CERTIFICATE" in str(error)
    assert error.parks


@pytest.mark.parametrize(("scheme", "trusts"), [("http", False), ("ws", False), ("https", True), ("wss", True)])
def test_authorities_are_loaded_for_servers_with_tls_alone(
    scheme: str, trusts: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.delenv(name, raising=False)
    made = context_of(Settings.resolve(environ={}, base_url=f"{scheme}://localhost:8283", agent_id="agent-1"))
    assert (made.cert_store_stats()["x509_ca"] > 0) is trusts
    assert made.verify_mode is ssl.CERT_REQUIRED
    assert made.check_hostname


@pytest.mark.parametrize("option", ["certificate", "client_certificate"])
def test_a_file_that_cannot_be_read_is_told_without_tls_too(option: str, letta: InMemoryLetta, agent: str) -> None:
    error = refusal(letta.base_url, agent, **{option: "/nowhere/file.pem"})
    assert isinstance(error, errors.LettaConfigurationError)
    assert "cannot be loaded" in str(error)


def test_a_setting_vouches_for_it(server: FaultProxy, agent: str, ca_file: str) -> None:
    ask(server.base_url, agent, certificate=ca_file)


def test_so_does_the_variable_that_every_program_knows(
    server: FaultProxy, agent: str, ca_file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", ca_file)
    ask(server.base_url, agent)


def test_the_setting_counts_alone(
    server: FaultProxy, agent: str, ca_file: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    other = tmp_path / "other.pem"
    trustme.CA().cert_pem.write_to_path(str(other))
    monkeypatch.setenv("SSL_CERT_FILE", ca_file)
    assert "is refused" in str(refusal(server.base_url, agent, certificate=str(other)))


def test_a_certificate_for_another_name(letta: InMemoryLetta, authority: trustme.CA, agent: str, ca_file: str) -> None:
    with FaultProxy(letta.base_url, tls=context(authority.issue_cert("other.example"))) as proxy:
        text = str(refusal(proxy.base_url, agent, certificate=ca_file))
    assert "certificate is not valid for '127.0.0.1'" in text
    assert "LETTA_BASE_URL has to name the server" in text


def test_a_certificate_that_has_expired(letta: InMemoryLetta, authority: trustme.CA, agent: str, ca_file: str) -> None:
    past = datetime.datetime(2020, 1, 1, tzinfo=datetime.timezone.utc)
    old = authority.issue_cert("127.0.0.1", not_before=past, not_after=past + datetime.timedelta(days=1))
    with FaultProxy(letta.base_url, tls=context(old)) as proxy:
        text = str(refusal(proxy.base_url, agent, certificate=ca_file))
    assert "certificate has expired" in text
    assert "renew it" in text


def test_a_server_that_wants_a_certificate(
    letta: InMemoryLetta, authority: trustme.CA, agent: str, ca_file: str, tmp_path: Path
) -> None:
    strict = context(authority.issue_cert("127.0.0.1"))
    authority.configure_trust(strict)
    strict.verify_mode = ssl.CERT_REQUIRED
    mine = authority.issue_cert("me@example.org")
    certificate, key = tmp_path / "me.pem", tmp_path / "me.key"
    mine.cert_chain_pems[0].write_to_path(str(certificate))
    mine.private_key_pem.write_to_path(str(key))
    with FaultProxy(letta.base_url, tls=strict) as proxy:
        ask(proxy.base_url, agent, certificate=ca_file, client_certificate=str(certificate), client_key=str(key))
        assert "OTEL_LETTA_CLIENT_CERTIFICATE" in str(refusal(proxy.base_url, agent, certificate=ca_file))


@pytest.mark.parametrize("name", ["certificate", "client_certificate"])
@pytest.mark.parametrize("content", [None, "no PEM"])
def test_a_file_that_cannot_be_used_is_named_by_its_variable(
    server: FaultProxy, agent: str, tmp_path: Path, name: str, content: str | None
) -> None:
    path = tmp_path / "file.pem"
    if content is not None:
        path.write_text(content)
    error = refusal(server.base_url, agent, **{name: str(path)})
    assert f"OTEL_LETTA_{name.upper()}" in str(error)
    assert error.parks


def test_a_websocket_has_the_same_words(server: FaultProxy, ca_file: str) -> None:
    url = server.base_url.replace("https://", "wss://")
    settings = Settings.resolve(environ={}, base_url=url, agent_id="agent-1")
    with pytest.raises(errors.LettaConnectionError, match=r"The certificate of wss://.* is refused"):
        Session(settings)
    trusting = Settings.resolve(environ={}, base_url=url, agent_id="agent-1", certificate=ca_file)
    with pytest.raises(errors.LettaServerError, match="No App Server at this address"):
        Session(trusting)
