"""No secret of ours in texts, logs and tracebacks, although servers and libraries may repeat a request's headers."""

from __future__ import annotations

import contextlib
import json
import logging
import threading
from collections.abc import Callable, Iterator
from urllib.parse import quote, quote_plus, unquote

from otel_letta.settings import Secret, Settings
from otel_letta.text import pattern

Redact = Callable[[str], str]

_SHORTEST = 6
"""Characters. A text with a secret shorter than that in it is not shown at all."""
_SHORTEST_PART = 8
"""Characters of a secret's beginning or end that count as it: servers shorten what they repeat."""


def on_the_wire(token: Secret) -> bytes:
    """Return the token as a header's value holds it."""
    # Letta reads header bytes as Latin-1 and compares characters (starlette does), so this is the one encoding in
    # which a password like "Grüße" is accepted. What Latin-1 cannot hold goes as UTF-8, for proxies that know it.
    try:
        return token.reveal().encode("latin-1")
    except UnicodeEncodeError:
        return token.reveal().encode("utf-8")


def redactor(settings: Settings) -> Redact:
    """Return what takes our own secrets out of a text: a server may echo a request, with its headers, in its error."""
    shapes: set[str] = set()
    for secret in (settings.password, settings.api_key):
        if secret is not None:
            shapes |= _shapes(secret)
    # Longest first, since one form can be a part of another.
    ordered = sorted(shapes, key=len, reverse=True)

    def redact(text: str) -> str:
        for shape in ordered:
            if shape in text:
                if len(shape) < _SHORTEST:
                    return "[redacted]"  # "[redacted]" for every "a" would spell out the password
                text = text.replace(shape, "[redacted]")
        for shape in ordered:
            text = _without_parts(text, shape)
        return _WORD.sub(lambda word: _unless_it_hides(word[0], ordered), text) if "%" in text else text

    return redact


_WORD = pattern(r"\S+")


def _shapes(secret: Secret) -> set[str]:
    """Return the forms in which a server may repeat it."""
    plain = secret.reveal()
    wire = on_the_wire(secret)
    forms = [plain, plain.encode().decode("latin-1"), wire.decode("latin-1"), wire.decode("utf-8", "replace")]
    # As they look in undecoded JSON, in the repr of bytes, and in a URL.
    forms += [json.dumps(form)[1:-1] for form in tuple(forms)]
    forms += [repr(wire)[2:-1], repr(plain.encode())[2:-1]]
    forms += [quoted(raw, safe="") for raw in (plain, wire) for quoted in (quote, quote_plus)]
    return {form for form in forms if form.strip("\ufffd")}


def _without_parts(text: str, shape: str) -> str:
    """Return a text without what is left of a secret that was cut, at its beginning or its end."""
    if len(shape) <= _SHORTEST_PART:
        return text
    head, tail = shape[:_SHORTEST_PART], shape[-_SHORTEST_PART:]
    at = text.find(head)
    while at >= 0:
        end = at + _SHORTEST_PART
        while end - at < len(shape) and end < len(text) and text[end] == shape[end - at]:
            end += 1
        text = f"{text[:at]}[redacted]{text[end:]}"
        at = text.find(head, at + len("[redacted]"))
    at = text.find(tail)
    while at >= 0:
        begin, left = at, len(shape) - _SHORTEST_PART
        while left and begin and text[begin - 1] == shape[left - 1]:
            begin, left = begin - 1, left - 1
        text = f"{text[:begin]}[redacted]{text[at + _SHORTEST_PART :]}"
        at = text.find(tail, begin + len("[redacted]"))
    return text


def _unless_it_hides(word: str, shapes: list[str]) -> str:
    """Return a word, unless a secret is in what its percent signs stand for: any character can be written so."""
    if "%" not in word:
        return word
    meant = [unquote(word, encoding, "replace") for encoding in ("utf-8", "latin-1")]
    meant += [unquote(text.replace("+", " ")) for text in (word, *meant)]
    hides = any(shape in text or _without_parts(text, shape) != text for text in meant for shape in shapes)
    return "[redacted]" if hides else word


def presentable_cause(error: BaseException, redact: Redact) -> BaseException | None:
    """Take the frames off an error and all that led to it; return it unless its own words hold a secret."""
    chain = [error]
    for link in chain:
        link.__traceback__ = None  # frames hold the request's headers
        chain += [x for x in (link.__cause__, link.__context__) if x is not None and x not in chain]
    shows_secret = any(redact(text) != text for link in chain for text in (str(link), repr(link)))
    return None if shows_secret else error


class _RedactingFilter(logging.Filter):
    """A filter that redacts what httpx and httpcore log, at DEBUG, about an answer that echoes our request."""

    def __init__(self) -> None:
        super().__init__()
        self._here = threading.local()

    @contextlib.contextmanager
    def redacting(self, redact: Redact) -> Iterator[None]:
        self._here.redact = redact
        try:
            yield
        finally:
            self._here.redact = None

    def filter(self, record: logging.LogRecord) -> bool:
        redact: Redact | None = getattr(self._here, "redact", None)
        if redact is not None:
            message = record.getMessage()
            clean = redact(message)
            if clean != message:
                record.msg, record.args = clean, ()
        return True


_filter = _RedactingFilter()
for _name in ("httpx", "httpcore.connection", "httpcore.http11", "httpcore.http2", "httpcore.proxy", "httpcore.socks"):
    logging.getLogger(_name).addFilter(_filter)  # a parent's filter would not see its children's records

redacting = _filter.redacting
"""Context manager: on this thread, the logs of HTTP libraries are redacted."""
