"""Making text from spans safe to show: to an LLM, in a log, on a terminal.

Everything that leaves this package passes through here. The rules are about form, never about meaning: a reader
may still be lied to, but text cannot leave the place that it was put in, hide a part of itself, or break a request.
"""

from __future__ import annotations

import re
from typing import Any, cast

_ELLIPSIS = "…"


class _Pattern:
    def __init__(self, source: str, flags: int) -> None:
        self._source = source
        self._flags = flags

    def __getattr__(self, name: str) -> Any:
        found = getattr(re.compile(self._source, self._flags), name)
        setattr(self, name, found)  # the next time this is a plain attribute, as fast as the compiled pattern's own
        return found


def pattern(source: str, flags: int = 0) -> re.Pattern[str]:
    """A regular expression that is compiled at its first use: compiling all of ours takes 25 ms, and most programs
    never need most of them."""
    return cast("re.Pattern[str]", _Pattern(source, flags))


# Terminal escape sequences go as a whole: without their ESC byte the rest ("[31m") would stay behind as noise. Their
# one-character forms (U+0080-U+009F) lose only that character: nobody writes them, but "Straße" that was decoded as
# Latin-1 holds one ("StraÃ\x9fe"), and all that follows it would go.
_ANSI = pattern(
    r"\x1b\[[0-?]{0,64}[ -/]{0,16}[@-~]?"  # CSI
    r"|\x1b[\]PX^_][^\x07\x1b\x9c]{0,4096}(?:\x07|\x1b\\|\x9c)?"  # OSC, DCS, SOS, PM, APC
    r"|\x1b[ -/]{0,16}[0-~]?"
)
_LINE_BREAK = pattern(r"\r\n?|[\u2028\u2029\x85\x0b\x0c]")
# Letters and marks that nobody sees, and that so can carry a text which only an LLM does. Whatever else is invisible,
# Python calls unprintable: control characters, bidirectional overrides, zero-width and tag characters, private ones and
# those that its Unicode does not know. The joiners U+200C and U+200D and the variation selectors up to U+FE0F stay:
# scripts and emoji need them, though never many in a row.
_INVISIBLE = pattern("[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u3164\uffa0\U000e0100-\U000e01ef]")
_SHOWN = frozenset("\n\t\xa0\u1680\u202f\u205f\u3000\u200c\u200d") | set(map(chr, range(0x2000, 0x200B)))
"""What Python calls unprintable and stays: line breaks, spaces and the joiners."""
_JOINERS = pattern("([\u200c\u200d\ufe00-\ufe0f]{2})[\u200c\u200d\ufe00-\ufe0f]+")
_SURROGATE = pattern("[\ud800-\udfff]")
_SPACES = pattern(r"\s+")
_MANY_BREAKS = pattern(r"\n{3,}")

_URL = pattern(
    r"(?P<scheme>\b[a-zA-Z][a-zA-Z0-9+.-]{1,30}://)(?P<user>[^\s/?#]{0,2048}@)?(?P<rest>[^\s?#]*)(?P<query>[?#]\S*)?"
)
_QUERY = pattern(r"(?P<path>/[^\s?#]{0,500})\?[^\s=]{0,200}=\S*")
"""The query of an address without a server, as HTTP clients show it: ``Max retries exceeded with url: /find?q=…``."""
_CREDENTIALS = pattern(r"(?i)\b(?P<name>(?:proxy-)?authorization|(?:set-)?cookie)(?P<sep>\\?['\"]?\s{0,3}[=:]).+")
_SECRET = pattern(
    r"(?i)(?P<name>\b(?:bearer|basic)|(?:pass(?:word|wd|phrase|code)|pwd|secret|token|credentials?"
    r"|(?:api|access|private|signing|encryption)[_-]?key)(?:[_-][\w-]{0,40})?)"
    r"(?P<sep>\\?['\"]?\s{0,3}[=:]\s{0,3}|\s+(?=[\w+/.~-]{16,}))"
    r"(?!\[redacted\])(?P<value>[bru]?\\?(?P<quote>['\"]).*?(?:(?P=quote)|$)|(?:bearer\s+|basic\s+)?[^\s'\",;&)}\]]+)"
)
_KEY = pattern(
    # A digit tells a key from an identifier such as pk_users_created_at.
    r"(?<![A-Za-z0-9])(?:sk|pk|rk|hf|gh[opsur]|github_pat|glpat|xox[abeprs])[-_](?=[-_A-Za-z]{0,200}[0-9])"
    r"[-_A-Za-z0-9]{16,}"
)
_SUSPECT = pattern(r"[-:=/(\[@]|[0-9]")
"""What every further form of a secret has in it, and most names and many lines have not."""
_TRACEBACK = "Traceback (most recent"
_MARGIN = pattern(r" +\| (?! )")
"""What stands before the lines of an exception group."""
_PLAIN = {"amp": "&", "lt": "<", "gt": ">", "quot": '"', "apos": "'"}
_ESCAPED = pattern(f"&({'|'.join(_PLAIN)});")
_RAISED = pattern(r"[A-Za-z_][\w.]{0,200}(?::\s.*)?")
"""The last line of a stack trace: type and message."""


def as_text(value: Any) -> str | None:
    """A plain `str` for anything that can honestly be one, else None. Runs none of the value's own code.

    Span attributes may hold bytes, None, nested containers, and instances of `str` subclasses whose methods raise.
    """
    kind = type(value)  # not isinstance(): it asks the value for its __class__
    if kind is str:
        return value  # type: ignore[no-any-return]
    if value is None:
        return None
    if issubclass(kind, str):
        return str.__str__(value)
    if kind is bool:
        return "true" if value else "false"
    if issubclass(kind, int):
        try:
            return int.__repr__(value)
        except ValueError:  # more digits than sys.set_int_max_str_digits() allows
            return None
    if issubclass(kind, float):
        return float.__repr__(value)
    for binary in (bytes, bytearray):
        if issubclass(kind, binary):
            return binary.__getitem__(value, slice(65_536)).decode("utf-8", "replace")
    return None


def _visible(text: str, budget: int) -> str:
    # The cut comes first, so that a megabyte costs no more than a page does.
    text = text[:budget]
    if text.isascii() and text.isprintable():
        return text  # nothing below could match, and nearly every name, id and line is like that
    text = _LINE_BREAK.sub("\n", _ANSI.sub("", text))
    text = _SURROGATE.sub("\ufffd", _INVISIBLE.sub("", text))
    if not text.replace("\n", "").isprintable():
        text = "".join([each for each in text if each.isprintable() or each in _SHOWN])
    return _JOINERS.sub(r"\1", text)


def _cut(text: str, cap: int) -> str:
    if len(text) <= cap:
        return text
    return text[: cap - 1].rstrip() + _ELLIPSIS if cap > 0 else ""


def clean_line(text: str, cap: int) -> str:
    """One line of at most ``cap`` characters without anything invisible; a shortened text ends in an ellipsis."""
    if len(text) <= cap and text.isascii() and text.isprintable() and "  " not in text:
        return text.strip()  # as nearly every name, id and line is
    budget = cap * 4 + 256
    line = _SPACES.sub(" ", _visible(text, budget)).strip()
    if len(text) > budget and len(line) <= cap:
        line += _ELLIPSIS
    return _cut(line, cap)


def clean_block(text: str, cap: int) -> str:
    """Like `clean_line`, but line breaks stay; a shortened text says how long it was, if there is room."""
    if len(text) <= cap and text.isascii() and text.isprintable():
        return text.strip()
    budget = cap * 4 + 256
    block = _visible(text, budget).replace("\t", " ").strip()
    block = _MANY_BREAKS.sub("\n\n", block)
    if len(block) <= cap and len(text) <= budget:
        return block
    note = f"{_ELLIPSIS} [shortened from {len(text)} characters]"
    if len(note) * 2 > cap:
        return _cut(block if len(block) > cap else block + _ELLIPSIS, cap)
    return block[: cap - len(note)].rstrip() + note


def clean_error(text: str, cap: int = 200) -> str:
    """The one line of an error text that may be told: no stack trace, URL query or likely secret."""
    head, trace, _ = _visible(text, 8_192).partition(_TRACEBACK)
    first = next((line for line in head.splitlines() if line.strip(" +|")), "")
    if trace and first.strip(" +|") in ("", "Exception Group"):
        first = _raised(_visible(text[-8_192:], 8_192))
    line = _URL.sub(_bare_url, first[:2_048])
    line = _QUERY.sub(lambda m: f"{m['path']}?{_ELLIPSIS}", line)
    line = _CREDENTIALS.sub(lambda m: f"{m['name']}{m['sep']} [redacted]", line)
    line = _SECRET.sub(lambda m: f"{m['name']}{m['sep']}[redacted]", line)
    if _SUSPECT.search(line):
        from otel_letta.secret_forms import redacted  # a table that few programs need, and none at its start

        line = redacted(_KEY.sub("[redacted]", line))
    return clean_line(line, cap)


def _raised(trace: str) -> str:
    """What a stack trace ends with, as far as that is one line."""
    lines = (_MARGIN.sub("", line) for line in reversed(trace.splitlines()))
    return next((line for line in lines if _RAISED.fullmatch(line)), "")


def _bare_url(match: re.Match[str]) -> str:
    return f"{match['scheme']}{match['rest']}{'?' + _ELLIPSIS if match['query'] else ''}"


def escape(text: str) -> str:
    """XML escaping that is right in a text and in a double-quoted attribute."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace('"', "&quot;")


def unescape(text: str) -> str:
    """Undo `escape`, once, and nothing more: HTML's other names would make ``©`` of the ``&copy`` in an address."""
    return _ESCAPED.sub(lambda match: _PLAIN[match[1]], text)


def percent(progress: float) -> str:
    """``0.5`` → ``50%``. Rounds down, so that only what is complete says 100 %."""
    return "100%" if progress >= 1.0 else f"{min(int(progress * 100 + 1e-9), 99)}%"


def duration(seconds: float) -> str:
    """Return seconds in words: ``0.4 s``, ``2 min 5 s``, ``3 h 20 min``."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds + 0.05), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"
