"""Reasons of failures: the error's type, and one line of its text that may be reported."""

from __future__ import annotations

import ast
import functools
import re
from typing import TYPE_CHECKING, NamedTuple

from otel_letta import semconv
from otel_letta.text import as_text, clean_error, clean_line, pattern
from otel_letta.tracking.values import NAME_CAP

if TYPE_CHECKING:
    from otel_letta.tracking.reading import Reading

__all__ = ["ADDRESS", "Reason", "clean_reason", "parse_literal", "reason_of"]

_REASON_CAP = 200
_KIND_CAP = 200
ADDRESS = pattern(r"[\w.+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63})+")


class Reason(NamedTuple):
    """The error's type, and one line of its text; both may be empty."""

    kind: str = ""
    text: str = ""

    def __bool__(self) -> bool:
        return bool(self.kind or self.text)

    def __str__(self) -> str:
        return self.text or self.kind

    @property
    def full(self) -> str:
        return f"{self.kind}: {self.text}" if self.kind and self.text else self.kind or self.text


_EMPTY_WORDS = pattern(r"(?i)(?:run\s+)?(?:status:\s*)?(?:error|failed|failure|unknown)\.?")


def reason_of(reading: Reading, *, whole: bool = False) -> Reason:
    """Return why a span failed. ``whole``: the error's line with all that it quotes."""
    kind = as_text(reading.attributes.get(semconv.ERROR_TYPE)) or ""
    exception, message = reading.exception
    if kind == "_OTHER" or not kind:
        kind = exception
    text = reading.described or message or as_text(reading.attributes.get("error.message")) or ""
    return clean_reason(text, kind, whole=whole)


# A constructor as it is shown by repr(): frameworks put that, and a stack trace right behind it, into the status.
_REPR = pattern(r"(?P<kind>[A-Za-z_][\w.]{0,120})\((?P<quote>['\"])(?P<text>.*?)(?P=quote),?\)\s*\Z", re.DOTALL)
_TYPED = pattern(r"(?P<kind>[A-Za-z_][\w.]{0,120}(?:Error|Exception|Exit|Interrupt|Warning|Failure)):\s+")
_PROVIDER = pattern(r"(?P<head>Error code: \d{3}|status_code: \d{3})(?:, model_name: [^,{]{1,80}, body:)?\s*(?:- )?\{")
_DETAILED = pattern(r"Error (?:in agent run|running tool)[^:{]{0,80}: (?={)")
_DETAILS = frozenset({"error", "tool_name"})
_QUOTED = pattern(r"(?<!\w)(?P<q>['\"`])(?:(?!(?P=q)(?!\w)).)*(?:(?P=q)|$)")
_QUOTED_ELSEWHERE = pattern(r"“[^”]*”?|„[^“”]*[“”]?|«[^»]*»?|「[^」]*」?|『[^』]*』?|‘[^’]*’(?!\w)")
_TAGGED = pattern(r"<(?P<tag>[A-Za-z][\w.-]{0,60})(?:\s[^<>]*)?>.*?(?:</(?P=tag)>|$)")
_HOME = pattern(r"(?:/home|/Users|\b[A-Za-z]:\\{1,2}Users)[/\\]{1,2}[^/\\\s:]+")
_BRACED = pattern(r"\{.*\}|\{.*$")
_LISTED = pattern(r"\[[^\]]*[,'\"…][^\]]*\]|\[[^\]]*$")
_VALUE_OF = pattern(
    r"(?i)(?P<head>\b(?:input_value|arguments?|args|kwargs|prompt|input|query|parameters?|content|payload|body"
    r"|e-?mail|user(?:[ _-]?(?:id|name))?)\s*[=:]|\b(?:message|text)=).*"
)
_TYPE_NAME = pattern(r"[\w.:$<>\[\]-]+")


@functools.lru_cache(maxsize=128)  # a provider that fails says the same again and again
def clean_reason(text: str, kind: str = "", *, whole: bool = False) -> Reason:
    """Return one line of an error's text without what it quotes: texts in quotation marks, dictionaries, lists and
    addresses in an error are the values that somebody's program worked on."""
    kind = clean_line(kind, _KIND_CAP)
    # An error's type is one word; what has more of them is an error's text.
    kind = clean_line(kind.rpartition(".")[2] or kind, NAME_CAP) if _TYPE_NAME.fullmatch(kind) else ""
    text = text.partition("Traceback (most recent")[0].strip()
    shown = _REPR.match(text)
    if shown is not None:
        kind, text = kind or shown["kind"].rpartition(".")[2], shown["text"].replace("\\n", "\n")
    if not whole:
        text = _unwrapped(text)
    typed = _TYPED.match(text)
    if typed is not None:
        kind, text = kind or typed["kind"].rpartition(".")[2], text[typed.end() :]
    elif kind:
        # Classes of users' own may have any name; the SDK writes it in front of the text.
        before, colon, after = text.partition(": ")
        text = after if colon and before.rpartition(".")[2] == kind else text
    if kind == "KeyError" and not whole:
        return Reason(kind)  # its text is the key alone
    if kind == "CancelledError":
        return Reason("", "cancelled or timed out")
    head, _, rest = text.partition("\n")
    if head.rstrip().endswith(":"):
        text = f"{head.rstrip()} {rest.lstrip()}"
    line = clean_error(text, 4 * _REASON_CAP)
    if not whole:
        line = _VALUE_OF.sub(r"\g<head> …", line)
        line = _BRACED.sub("{…}", _QUOTED_ELSEWHERE.sub("'…'", _QUOTED.sub("'…'", line)))
        line = ADDRESS.sub("…", _LISTED.sub("[…]", _TAGGED.sub("<…>", line)))
        line = _HOME.sub("~", line)
    line = clean_line(line, _REASON_CAP)
    if _EMPTY_WORDS.fullmatch(line) or not any(character.isalnum() for character in line):
        line = ""
    return Reason(kind, line)


def _unwrapped(text: str) -> str:
    """Return the message inside an error that is shown as a dictionary, where its form is a known one: OpenAI Agents'
    own, and an LLM provider's answer behind its status code. Any other dictionary may hold a tool's arguments."""
    if text.startswith("{"):
        found = parse_literal(text)
        if isinstance(found, dict) and isinstance(found.get("message"), str):
            inner = found.get("data")
            cause = inner.get("error") if isinstance(inner, dict) else None
            return _unwrapped(cause) if isinstance(cause, str) and cause else found["message"]
        return text
    detailed = _DETAILED.match(text)
    if detailed is not None:
        found = parse_literal(text[detailed.end() :])
        cause = found.get("error") if isinstance(found, dict) and found.keys() <= _DETAILS else None
        return _unwrapped(cause) if isinstance(cause, str) and cause else text
    provider = _PROVIDER.search(text)
    if provider is not None:
        body = parse_literal(text[provider.end() - 1 :])
        if isinstance(body, dict):
            inner = body.get("error", body)
            message = inner.get("message") if isinstance(inner, dict) else None
            if isinstance(message, str):
                return f"{text[: provider.end('head')]} - {message}"
    return text


_ESCAPE = pattern(r"\\(.)", re.DOTALL)
_GLUED = pattern(r"(?<=[0-9])(?=(?:and|else|for|if|in|is|not|or)\b)")
"""Between a number and a keyword: the same."""


def parse_literal(text: str) -> object:
    """Parse text as a literal of Python; None for what is none."""
    text = text[:4_000].strip()
    end = text.rfind("}") + 1
    # Python complains about escapes that it does not know in a warning that shows them, on the program's stderr.
    text = _ESCAPE.sub(lambda m: m[0] if m[1] in "\\'\"abfnrtvxuUN\n" else f"\\{m[0]}", text[:end])
    try:
        return ast.literal_eval(_GLUED.sub(" ", text))
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
