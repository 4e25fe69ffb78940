"""Making text from spans safe to show: to an LLM, in a log, on a terminal.

Everything that leaves this package passes through here. The rules are about form, never about meaning: a reader
may still be lied to, but text cannot leave the place that it was put in, hide a part of itself, or break a request.
"""

from __future__ import annotations

import re

__all__ = ["as_text", "clean_block", "clean_error", "clean_line", "escape", "percent"]

_ELLIPSIS = "…"

# Terminal escape sequences go as a whole: without their ESC byte the rest ("[31m") would stay behind as noise.
_ANSI = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]{0,64}[ -/]{0,16}[@-~]?"  # CSI
    r"|(?:\x1b[\]PX^_]|[\x9d\x90\x98\x9e\x9f])[^\x07\x1b\x9c]{0,4096}(?:\x07|\x1b\\|\x9c)?"  # OSC, DCS, SOS, PM, APC
    r"|\x1b[ -/]{0,16}[0-~]?"
)
_LINE_BREAK = re.compile(r"\r\n?|[\u2028\u2029\x85\x0b\x0c]")
# Control characters, bidirectional overrides, zero-width and tag characters (which can carry a text that only an
# LLM sees), noncharacters. The joiners U+200C and U+200D stay: scripts and emoji need them.
_INVISIBLE = re.compile(
    "[\x00-\x08\x0e-\x1f\x7f-\x9f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b\u200e\u200f"
    "\u202a-\u202e\u2060-\u206f\u3164\ufeff\uffa0\ufff0-\ufffb\ufffe\uffff\U0001bca0-\U0001bca3"
    "\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
_SURROGATE = re.compile("[\ud800-\udfff]")
_SPACES = re.compile(r"\s+")
_MANY_BREAKS = re.compile(r"\n{3,}")

_URL = re.compile(
    r"(?P<scheme>\b[a-zA-Z][a-zA-Z0-9+.-]{1,15}://)(?P<user>[^\s/?#@]{1,256}@)?(?P<rest>[^\s?#]*)(?P<query>[?#]\S*)?"
)
_SECRET = re.compile(
    r"(?i)\b(?P<name>bearer|basic|[\w-]{0,40}(?:password|passwd|secret|token|api[_-]?key|authorization))"
    r"(?P<sep>['\"]?\s{0,3}[=:]\s{0,3}['\"]?|\s+(?=[\w+/.~-]{16,}))(?P<value>(?:bearer\s+|basic\s+)?[^\s'\",;&)}\]]+)"
)
_KEY = re.compile(r"\b(?:sk|pk|ghp|gho|xox[abp]|AKIA|eyJ)[-_A-Za-z0-9]{16,}(?:\.[-_A-Za-z0-9]+){0,2}")
_TRACEBACK = "Traceback (most recent"


def as_text(value: object) -> str | None:
    """A plain `str` for anything that can honestly be one, else None. Runs none of the value's own code.

    Span attributes may hold bytes, None, nested containers, and instances of `str` subclasses whose methods raise.
    """
    if isinstance(value, str):
        return value if type(value) is str else str.__str__(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        try:
            return int.__repr__(value)
        except ValueError:  # more digits than sys.set_int_max_str_digits() allows
            return None
    if isinstance(value, float):
        return float.__repr__(value)
    if isinstance(value, (bytes, bytearray)):
        return bytes(value[:65536]).decode("utf-8", "replace")
    return None


def _visible(text: str, budget: int) -> str:
    # The cut comes first, so that a megabyte costs no more than a page does.
    text = _ANSI.sub("", text[:budget])
    text = _LINE_BREAK.sub("\n", text)
    return _SURROGATE.sub("\ufffd", _INVISIBLE.sub("", text))


def _cut(text: str, cap: int) -> str:
    return text if len(text) <= cap else text[: max(cap - 1, 0)].rstrip() + _ELLIPSIS


def clean_line(text: str, cap: int) -> str:
    """One line of at most ``cap`` characters without anything invisible; a shortened text ends in an ellipsis."""
    budget = cap * 4 + 256
    line = _SPACES.sub(" ", _visible(text, budget)).strip()
    if len(text) > budget and len(line) <= cap:
        line += _ELLIPSIS
    return _cut(line, cap)


def clean_block(text: str, cap: int) -> str:
    """Like `clean_line`, but line breaks stay; a shortened text says how long it was."""
    budget = cap * 4 + 256
    block = _visible(text, budget).replace("\t", " ").strip()
    block = _MANY_BREAKS.sub("\n\n", block)
    if len(block) <= cap and len(text) <= budget:
        return block
    note = f"{_ELLIPSIS} [shortened from {len(text)} characters]"
    return block[: max(cap - len(note), 0)].rstrip() + note


def clean_error(text: str, cap: int = 200) -> str:
    """The one line of an error text that may be told: no stack trace, URL query or likely secret."""
    text = text[:8192].split(_TRACEBACK, 1)[0]
    first = next((line for line in _visible(text, 8192).splitlines() if line.strip()), "")
    line = _URL.sub(_bare_url, first[:2048])
    line = _SECRET.sub(lambda m: f"{m['name']}{m['sep']}[redacted]", line)
    line = _KEY.sub("[redacted]", line)
    return clean_line(line, cap)


def _bare_url(match: re.Match[str]) -> str:
    return f"{match['scheme']}{match['rest']}{'?' + _ELLIPSIS if match['query'] else ''}"


def escape(text: str) -> str:
    """XML escaping that is right in a text and in a double-quoted attribute."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace('"', "&quot;")


def percent(progress: float) -> str:
    """``0.5`` → ``50%``. Rounds down, so that only what is complete says 100 %."""
    return f"{int(progress * 100 + 1e-9)}%"
