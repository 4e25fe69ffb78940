"""Reasons of failures: the error's type, and one line of its text that may be reported."""

from __future__ import annotations

import ast
import functools
import json
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from otel_letta import semconv
from otel_letta.text import as_text, clean_error, clean_line, pattern
from otel_letta.tracking.conventions.convention import Role
from otel_letta.tracking.conventions.interruptions import is_cancelled
from otel_letta.tracking.values import NAME_CAP

if TYPE_CHECKING:
    from otel_letta.tracking.reading import Reading

_REASON_CAP = 200
_KIND_CAP = 200
_TEXT_CAP = 16_384
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
    def is_partial(self) -> bool:
        """Its end is left out: the part that says most, as a rule."""
        return self.text.endswith(("…", "{…}"))

    @property
    def full(self) -> str:
        return f"{self.kind}: {self.text}" if self.kind and self.text else self.kind or self.text


_EMPTY_WORDS = pattern(r"(?i)(?:run\s+)?(?:status:\s*)?(?:error|failed|failure|unknown)\.?")


_NO_KINDS = frozenset(
    {"_OTHER", "other", "error", "Error", "Exception", "unknown", "errorString", "wrapError", "wrapErrors", "joinError"}
    | {
        "fundamental",
        "withStack",
        "TelemetrySafeError",
        "UnknownError",
        "BaseException",
        "RuntimeException",
        "Throwable",
    }
)
"""Types of errors that say no more than that it is one. Go's are what its own functions make of any text."""


def reason_of(
    reading: Reading,
    role: Role | None = None,
    *,
    types: Sequence[str] = (),
    texts: Sequence[str] = (),
    whole: bool = False,
) -> Reason:
    """Return why a span failed.

    Args:
        types: further attributes that may hold the error's type.
        texts: further attributes that may hold its text.
        whole: the error's line with all that it quotes.
    """
    attributes = reading.attributes
    exception, message = reading.exception
    kinds = [as_text(attributes.get(name)) or "" for name in (semconv.ERROR_TYPE, *types)]
    kind = next((kind for kind in (*kinds, exception) if kind and kind_of(kind) not in _NO_KINDS), "")
    candidates = [reading.described, message]
    candidates += [as_text(attributes.get(name)) or "" for name in ("error.message", *texts)]
    first, fixed = Reason(), _may_quote(reading, role)
    for text in filter(None, candidates):
        reason = clean_reason(text[:_TEXT_CAP], kind, fixed=fixed, whole=whole)
        if reason.text or not reason.kind:
            return reason
        first = first or reason
    return first or clean_reason("", kind)


def _may_quote(reading: Reading, role: Role | None) -> bool:
    """Return True for a span whose error may hold a value without quotation marks.

    What a model's provider says is about the call. Tools, and what is below them, fail with what they worked on, and
    agents repeat it: in Python that stands in quotation marks more often than not, in other languages hardly ever
    (measured with Go, Rust, Java).
    """
    language = as_text(reading.resource.get("telemetry.sdk.language"))
    if role is None or role is Role.TOOL:
        return language != "python"
    return role is not Role.LLM and language not in ("python", None)


def kind_of(kind: str) -> str:
    """Return an error's type without its package: ``*url.Error``, ``java.lang.IllegalStateException``."""
    return kind.strip("*& ").rpartition(".")[2].rpartition("::")[2]


# A constructor as it is shown by repr(): frameworks put that, and a stack trace right behind it, into the status.
_REPR = pattern(r"(?P<kind>[A-Za-z_][\w.]{0,120})\((?P<quote>['\"])(?P<text>.*?)(?P=quote),?\)\s*\Z", re.DOTALL)
_SEVERAL = pattern(
    r"(?:(?P<kind>[A-Za-z_][\w.]{0,120})(?:: )?)?\((?P<quote>['\"]).{0,2000}?(?P=quote), "
    r"(?P<cause>[A-Za-z_][\w.]{0,120}\(.*\))\)\s*\Z",
    re.DOTALL,
)
"""An exception with two arguments, a text and what raised it, as str() or repr() shows that:
``ServiceError: ("it failed", ValueError('why'))``."""
_TYPED = pattern(r"(?P<kind>(?:[A-Za-z_][\w.]{0,120})?(?:Error|Exception|Exit|Interrupt|Warning|Failure)|error):\s+")
_PROVIDER = pattern(
    r"(?P<head>Error code: \d{3}|status_code: \d{3}|HTTP [45]\d\d|\b[45]\d\d [A-Z][A-Za-z ]{2,40}?)"
    r"(?:, model_name: [^,{]{1,80}, body:)?\s*(?:- )?\{"
)
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
def clean_reason(text: str, kind: str = "", *, fixed: bool = False, whole: bool = False) -> Reason:
    """Return one line of an error's text without what it quotes: texts in quotation marks, dictionaries, lists and
    addresses in an error are the values that somebody's program worked on.

    Args:
        fixed: without what may be a value outside of quotation marks, either.
        whole: with all that it quotes.
    """
    kind = clean_line(kind, _KIND_CAP).lstrip("*&")
    # An error's type is one word; what has more of them is an error's text.
    kind = clean_line(kind_of(kind) or kind, NAME_CAP) if _TYPE_NAME.fullmatch(kind) else ""
    kind = f"HTTP {kind}" if _STATUS.fullmatch(kind) else "" if kind in _NO_KINDS else kind
    text = text.partition("Traceback (most recent")[0].strip()
    several = None if whole else _SEVERAL.match(text)
    cause = _REPR.match(several["cause"]) if several is not None else None
    if several is not None and cause is not None:
        kind, text = kind or _shown_kind(several["kind"] or ""), cause["text"].replace("\\n", "\n")
    shown = _REPR.match(text)
    if shown is not None:
        kind, text = kind or _shown_kind(shown["kind"]), shown["text"].replace("\\n", "\n")
    if not whole:
        text = _unwrapped(text, fixed=fixed)
    typed = _TYPED.match(text)
    if typed is not None:
        kind, text = kind or _shown_kind(typed["kind"]), text[typed.end() :]
    elif kind:
        # Classes of users' own may have any name; the SDK writes it in front of the text.
        before, colon, after = text.partition(": ")
        text = after if colon and before.rpartition(".")[2] == kind else text
    if kind == "KeyError" and not whole:
        return Reason(kind)  # its text is the key alone
    if kind == "CancelledError":
        return Reason("", "cancelled or timed out")
    if is_cancelled(kind, text):
        return Reason("", "cancelled")
    if _DEADLINE.search(text):
        return Reason("" if kind in _DEADLINE_KINDS else kind, "timed out")
    head, _, rest = text.partition("\n")
    if head.rstrip().endswith(":"):
        text = f"{head.rstrip()} {rest.lstrip()}"
    line = clean_error(text, 4 * _REASON_CAP)
    if not whole:
        line = _without_values(line, fixed=fixed)
    line = clean_line(line, _REASON_CAP)
    line = f"HTTP {line}" if _STATUS.fullmatch(line) else line
    return Reason(kind, "" if line == kind or _says_nothing(line) else line)


def _without_values(line: str, *, fixed: bool) -> str:
    """Return an error's line without the values that it quotes."""
    line = _VALUE_OF.sub(r"\g<head> …", line)
    line = _BRACED.sub("{…}", _QUOTED_ELSEWHERE.sub("'…'", _QUOTED.sub("'…'", line)))
    line = ADDRESS.sub("…", _LISTED.sub("[…]", _TAGGED.sub("<…>", line)))
    line = _HOME.sub("~", line)
    return _fixed(line) if fixed else line


def _says_nothing(line: str) -> bool:
    """Return True for a line that would stand behind any error."""
    return (
        line in _NO_KINDS
        or _EMPTY_WORDS.fullmatch(line) is not None
        or _STOCK.fullmatch(line) is not None
        or not any(character.isalnum() for character in line)
    )


def _shown_kind(kind: str) -> str:
    kind = kind_of(kind)
    return "" if kind in _NO_KINDS else kind


_STATUS = pattern(r"[45]\d\d")
_DEADLINE = pattern(r"\bdeadline exceeded\b")
_DEADLINE_KINDS = frozenset({"deadlineExceededError", "Error"})
_STOCK = pattern(
    r"(?i)(?:tool(?: execution| call)? failed|session error|unexpected exit|(?:model|api) call failed|error|failed"
    r"|an? (?:unknown |unexpected |internal )?error (?:has )?occurred|interrupted|null|none|undefined)[.:]?\s*"
)
"""Texts that stand for any reason."""
_KNOWN_PART = pattern(
    r"(?i)(?:http |status(?: code)? |error (?:code:? )?)?[45]\d\d\b.*"
    r"|connection (?:refused|reset.*|closed|error.*|timed out)"
    r"|timed out|timeout|eof|unexpected eof|permission denied|no such (?:file or directory|host)|not found|unauthorized"
    r"|forbidden|too many requests|rate limit.*|quota exceeded|overloaded|(?:invalid|incorrect) api key.*|broken pipe"
    r"|service unavailable|bad gateway|internal server error|no route to host|network is unreachable|out of memory"
    r"|disk full|no space left on device|division by zero|upstream.*"
)
"""Parts behind a colon that are no value."""
_VALUE_LIKE = pattern(
    r"(?=\S*[A-Za-z])(?=\S*\d)\S+|\S*[\w-][/\\_@#=][\w-]\S*|\S*\w\.\w\S*|\S*\b[A-Z]{2,}-\S*|\b\d{5,}\b"
)


def _fixed(line: str) -> str:
    """Return the part of an error's line that is the program's own words. In most languages a value stands behind a
    colon, without quotation marks: ``no such note: budget``."""
    parts = line.split(": ")
    kept = [_VALUE_LIKE.sub("…", parts[0])]
    for part in parts[1:]:
        if _KNOWN_PART.fullmatch(part.strip()) is None:
            kept.append("…")
            break
        kept.append(part)
    return ": ".join(kept)


def _unwrapped(text: str, *, fixed: bool = False) -> str:
    """Return the message inside an error that is shown as a dictionary, where its form is a known one: OpenAI Agents'
    own, and an LLM provider's answer, alone or behind its status code. Any other dictionary may hold a tool's
    arguments, and so may the answer of a server that a tool asked (``fixed``)."""
    if text.startswith("{"):
        found = _parsed(text)
        if isinstance(found, dict) and isinstance(found.get("message"), str):
            inner = found.get("data")
            cause = inner.get("error") if isinstance(inner, dict) else None
            return _unwrapped(cause) if isinstance(cause, str) and cause else found["message"]
        return text if fixed else _message_in(found) or text
    detailed = _DETAILED.match(text)
    if detailed is not None:
        found = parse_literal(text[detailed.end() :])
        cause = found.get("error") if isinstance(found, dict) and found.keys() <= _DETAILS else None
        return _unwrapped(cause) if isinstance(cause, str) and cause else text
    provider = _PROVIDER.search(text)
    if provider is not None and not fixed:
        message = _message_in(_parsed(text[provider.end() - 1 :]))
        if message is not None:
            return f"{text[: provider.end('head')]} - {message}"
    return text


def _parsed(text: str) -> object:
    try:
        return json.loads(text[:_TEXT_CAP])
    except (ValueError, RecursionError):
        return parse_literal(text)


def _message_in(body: object) -> str | None:
    """Return the message of a provider's answer: at its top, or below ``error``."""
    inner = body.get("error", body) if isinstance(body, dict) else None
    message = inner.get("message") if isinstance(inner, dict) else None
    return message if isinstance(message, str) else None


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
