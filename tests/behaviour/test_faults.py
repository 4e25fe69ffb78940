"""Faults between a program and its server, a row of docs/faults.md each: an end arrives once, and the page is true."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from typing import Any

import pytest
import trustme

from otel_letta.testing import InMemoryLetta
from tests.support import fault_table
from tests.support.either import At
from tests.support.fault_proxy import FAULTS, Fault, FaultProxy
from tests.support.fault_table import PAGE, rows_of, tried
from tests.support.program import ends_in, program
from tests.support.waiting import until

ROWS = rows_of(PAGE.read_text(encoding="utf-8"))


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_a_fault_costs_what_the_page_says(fault: Fault) -> None:
    outcome = tried(fault)
    assert (outcome.in_context, outcome.dropped, outcome.flushed) == (1, 0, True)
    assert outcome.row == ROWS[fault.name], "write it anew: python -m tests.support.fault_table"


def test_the_page_has_these_rows_and_no_others() -> None:
    assert list(ROWS) == [fault.name for fault in FAULTS]


@pytest.fixture
def impatient() -> Iterator[None]:
    with fault_table.impatient():
        yield


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("wrong", ["another authority", "another name"])
def test_a_certificate_that_is_refused_is_named_and_the_end_waits_until_it_is_right(
    letta: InMemoryLetta, agent: str, caplog: pytest.LogCaptureFixture, tmp_path: Any, wrong: str
) -> None:
    right, other = trustme.CA(), trustme.CA()
    ca = tmp_path / "ca.pem"
    right.cert_pem.write_to_path(str(ca))
    good, bad = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    right.issue_cert("127.0.0.1").configure_cert(good)
    (other.issue_cert("127.0.0.1") if wrong == "another authority" else right.issue_cert("x.example")).configure_cert(
        bad
    )
    with FaultProxy(letta.base_url, tls=bad) as proxy:
        options: dict[str, Any] = {"delivery": "messages", "probe_interval": 0.05, "certificate": str(ca)}
        with program(At(proxy.base_url, None), agent, "simple", server="rest", **options) as app:
            app.do("the end")
            app.provider.force_flush(1)
            assert until(lambda: "The certificate of" in caplog.text)
            assert "parked" in caplog.text
            proxy.use_tls(good)
            assert app.flush(60)
    assert ends_in("\n".join(letta.context(agent))) == ["the end"]


@pytest.mark.usefixtures("impatient")
def test_a_name_that_is_not_found_for_a_while_delays_the_end(
    letta: InMemoryLetta, agent: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = [True]
    original = socket.getaddrinfo

    def look_up(host: Any, *rest: Any, **more: Any) -> Any:
        if host in ("letta.internal", b"letta.internal"):
            if lost[0]:
                raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
            host = "127.0.0.1"
        return original(host, *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    url = letta.base_url.replace("127.0.0.1", "letta.internal")
    with program(At(url, None), agent, "simple", server="rest", delivery="messages") as app:
        app.do("the end")
        app.provider.force_flush(1)
        assert until(lambda: "Temporary failure in name resolution" in caplog.text)
        lost[0] = False
        assert app.flush(60)
    assert ends_in("\n".join(letta.context(agent))) == ["the end"]
