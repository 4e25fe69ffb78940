"""Our own secrets, however a server repeats them."""

from __future__ import annotations

import json
from urllib.parse import quote, quote_plus

import pytest

from otel_letta.letta.redaction import presentable_cause, redactor
from tests.unit.letta.rest_support import transport

PASSWORDS = [
    "correct-horse-9-staple",
    "correct horse 9 staple",
    "Grüße aus Köln 1001",
    "пароль-с-точкой-77",
    'a"b\\c/d e+f&g=h%41',
]


def redact(password: str, text: str) -> str:
    return redactor(transport(password=password)._settings)(text)


def forms(password: str) -> list[str]:
    try:
        wire = password.encode("latin-1")
    except UnicodeEncodeError:
        wire = password.encode()
    return [
        password,
        wire.decode("latin-1"),
        password.encode().decode("latin-1"),
        json.dumps(password),
        json.dumps(password, ensure_ascii=False),
        repr(wire),
        repr(password),
        quote(password),
        quote(password, safe=""),
        quote_plus(password),
        quote(wire, safe=""),
        quote(password, safe="").lower() if password.isascii() else quote(wire, safe=""),
        "".join(f"%{byte:02x}" for byte in wire),
        "".join(f"%{byte:02X}" for byte in password.encode()),
    ]


@pytest.mark.parametrize("password", PASSWORDS)
def test_it_is_redacted_in_every_form(password: str) -> None:
    for form in forms(password):
        clean = redact(password, f"you sent Bearer {form} to us")
        assert "[redacted]" in clean, form
        assert "you sent" in clean
        assert form not in clean


@pytest.mark.parametrize("password", PASSWORDS)
@pytest.mark.parametrize("left", [8, 9, 12])
def test_so_is_what_is_left_of_a_shortened_one(password: str, left: int) -> None:
    for text in (f"token {password[:left]}… is bad", f"token …{password[-left:]} is bad", f"({password[:left]})"):
        clean = redact(password, text)
        assert "[redacted]" in clean
        assert password[:left] not in clean
        assert password[-left:] not in clean


def test_a_cut_percent_form_is_redacted_as_well() -> None:
    assert (
        redact("Grüße aus Köln 1001", "GET /?token=Gr%FC%DFe%20aus%20K gave 401") == "GET /?token=[redacted] gave 401"
    )


@pytest.mark.parametrize("way", ["__cause__", "__context__"])
def test_an_error_is_not_shown_if_one_that_led_to_it_tells_a_secret(way: str) -> None:
    redaction = redactor(transport(password=PASSWORDS[0])._settings)
    for words, shown in (("sent nothing", True), (f"sent Bearer {PASSWORDS[0]}", False)):
        error = OSError("no answer")
        setattr(error, way, ValueError(words))
        assert presentable_cause(error, redaction) is (error if shown else None)


def test_a_short_one_hides_the_whole_text() -> None:
    assert redact("abc", "an abc error") == "[redacted]"


@pytest.mark.parametrize("text", ["nothing of it", "100% done", "GET /a%20b failed", "correct", "%", "%zz", ""])
def test_other_texts_stay(text: str) -> None:
    assert redact("correct-horse-9-staple", text) == text
