"""Kinds of values: what each allows, how it is parsed from text and Python values, and how it is written again."""

from __future__ import annotations

import math
import re
import unicodedata
from enum import Enum
from typing import Any, Generic, TypeVar

from otel_letta.ids import APP_SERVER_CONVERSATION, REST_CONVERSATION
from otel_letta.settings.secret import Secret

T_co = TypeVar("T_co", covariant=True)
OneOfThese = TypeVar("OneOfThese", bound=Enum)

# threading and socket refuse timeouts that do not fit a C integer (49 days on Windows).
_LONGEST = 30 * 86_400
_MOST = 1_000_000


class Delivery(str, Enum):
    """The way of reports to the agent: board and messages, messages alone, or the board alone (no LLM call)."""

    AUTO = "auto"
    MESSAGES = "messages"
    BOARD = "board"

    def __str__(self) -> str:
        return self.value


class ServerKind(str, Enum):
    """The kind of server that `LETTA_BASE_URL` names. ``auto``: the server is asked.

    ``app-server`` speaks over the WebSocket. ``app-server-http`` posts to the OpenAI-compatible API, where the
    server offers one: a process that ends abruptly leaves no turn behind that blocks the conversation.
    """

    AUTO = "auto"
    REST = "rest"
    APP_SERVER = "app-server"
    APP_SERVER_HTTP = "app-server-http"

    def __str__(self) -> str:
        return self.value


class Refused(ValueError):
    """A value cannot be used. `reason` must not quote it; `show` is False when the value may hold a secret."""

    def __init__(self, reason: str = "", *, show: bool = True) -> None:
        super().__init__(reason)
        self.reason = reason
        self.show = show


class Kind(Generic[T_co]):
    """A kind of values. `allowed` completes the sentence "allowed: …"."""

    allowed: str

    def parse(self, value: object) -> T_co:
        """Turn the text of a variable, or the value of a keyword, into a setting; raises `Refused`."""
        raise NotImplementedError

    def write(self, value: Any) -> str:
        """Write a setting as the environment would hold it."""
        return str(value)


class Number(Kind[float]):
    """A finite number from `low` to `high`; `above` excludes `low` itself."""

    def __init__(self, of: str, low: float = 0, high: float = _LONGEST, *, above: bool = False) -> None:
        self._low = low
        self._high = high
        self._above = above
        self.allowed = f"a number of {of} " + (
            f"above {low:g}, at most {high:.0f}" if above else f"from {low:g} to {high:.0f}"
        )

    def parse(self, value: object) -> float:
        number = self._number(value)
        if not math.isfinite(number) or not self._low <= number <= self._high or (self._above and number == self._low):
            raise Refused
        return number

    @staticmethod
    def _number(value: object) -> float:
        if isinstance(value, str):
            return float(_digits(value, r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?"))
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise Refused
        try:
            return float(value)
        except OverflowError:
            raise Refused from None

    def write(self, value: float) -> str:
        return str(int(value)) if value.is_integer() else repr(value)


class Whole(Kind[int]):
    """A whole number from `low` to `high`."""

    def __init__(self, of: str, low: int = 1, high: int = _MOST) -> None:
        self._low = low
        self._high = high
        self.allowed = f"a whole number of {of} from {low} to {high}"

    def parse(self, value: object) -> int:
        if isinstance(value, str):
            value = int(_digits(value, r"[+-]?[0-9]+"))
        if isinstance(value, bool) or not isinstance(value, int) or not self._low <= value <= self._high:
            raise Refused
        return int(value)


def _digits(text: str, form: str) -> str:
    # int() and float() alone would also take "1_000", "nan" and digits of other scripts. The length is bounded
    # because converting a very long number is slow, and refused by Python itself past a limit.
    text = text.strip()
    if len(text) > 100 or not re.fullmatch(form, text):
        raise Refused
    return text


class OneOf(Kind[OneOfThese]):
    """One value of an enumeration, in any case."""

    def __init__(self, these: type[OneOfThese]) -> None:
        self._these = these
        self.allowed = ", ".join(str(each) for each in these)

    def parse(self, value: object) -> OneOfThese:
        try:
            return self._these(plain_text(value).lower())
        except ValueError:
            raise Refused from None


class Switch(Kind[bool]):
    """True or false, in any case."""

    allowed = "true, false"

    def parse(self, value: object) -> bool:
        if isinstance(value, bool):
            return value
        text = plain_text(value).lower()
        if text not in {"true", "false"}:
            raise Refused
        return text == "true"

    def write(self, value: bool) -> str:
        return "true" if value else "false"


class Text(Kind[str]):
    """One line of 1 to `longest` characters; `form` is a regular expression that the whole of it matches."""

    def __init__(self, longest: int, *, form: str | None = None, allowed: str | None = None) -> None:
        self._longest = longest
        self._form = form
        self.allowed = allowed or f"any text of 1 to {longest} characters without control characters"

    def parse(self, value: object) -> str:
        text = plain_text(value)
        if not 1 <= len(text) <= self._longest or has_control(text):
            raise Refused
        if self._form is not None and not re.fullmatch(self._form, text):
            raise Refused
        return text


class Title(Text):
    """A conversation's title, which must not look like the id of one."""

    def __init__(self, longest: int) -> None:
        super().__init__(longest)
        self.allowed += ", but no conversation's id"

    def parse(self, value: object) -> str:
        text = super().parse(value)
        if REST_CONVERSATION.match(text) or APP_SERVER_CONVERSATION.match(text):
            raise Refused("it is a conversation's title, and this looks like an id")
        return text


class SecretText(Kind[Secret | None]):
    """A secret on one line; an empty one means that there is none. Takes nothing but a `Secret`."""

    allowed = "text on one line"

    def parse(self, value: object) -> Secret | None:
        if not isinstance(value, Secret):
            raise Refused("it is not text", show=False)
        stripped = Secret(value.reveal().strip())
        if has_control(stripped.reveal()):
            raise Refused("it contains a control character or is not valid Unicode", show=False)
        return stripped if stripped.reveal() else None


class Texts(Kind[tuple[str, ...]]):
    """Several short texts, written with commas between them."""

    def write(self, value: tuple[str, ...]) -> str:
        return ", ".join(value)


class AgentIds(Texts):
    """Agent ids, each once."""

    allowed = "agent ids, separated by commas (as keyword: a list or tuple of them)"

    def parse(self, value: object) -> tuple[str, ...]:
        if isinstance(value, str):
            value = [part for part in value.split(",") if part.strip()]
        if not isinstance(value, (list, tuple)):
            raise Refused
        return tuple(dict.fromkeys(AGENT_ID.parse(item) for item in value))


AGENT_ID = Text(200)
PATH = Text(4_096, allowed="the path of a file")


class Names(Texts):
    """Names of any kind, each once."""

    def __init__(self, of: str) -> None:
        self.allowed = f"{of}, separated by commas (as keyword: a list or tuple of them)"

    def parse(self, value: object) -> tuple[str, ...]:
        return tuple(dict.fromkeys(_texts(value)))


class ContentFields(Texts):
    """Fields of agents' spans beside names, in their own order; ``full`` stands for all of them."""

    fields = ("arguments", "results", "prompt", "answer", "errors")
    allowed = f"names, full, or some of {', '.join(fields)}, separated by commas"

    def parse(self, value: object) -> tuple[str, ...]:
        wanted = [name.lower() for name in _texts(value)]
        if wanted == ["full"]:
            return self.fields
        if not {"names", *self.fields} >= set(wanted):
            raise Refused
        return tuple(name for name in self.fields if name in wanted)


class TaskPatterns(Kind[tuple[tuple[str, str], ...]]):
    """Patterns of spans, each with what it is about: the span's name, its instrumentation scope's or its service's."""

    about = ("scope", "name", "service")
    allowed = (
        "patterns like scope:opentelemetry.instrumentation.celery*, name:nightly * or service:bot, separated by commas"
    )

    def parse(self, value: object) -> tuple[tuple[str, str], ...]:
        found = []
        for text in _texts(value):
            about, _, pattern = text.partition(":")
            if about not in self.about or not pattern.strip():
                raise Refused
            found.append((about, pattern.strip()))
        return tuple(dict.fromkeys(found))

    def write(self, value: tuple[tuple[str, str], ...]) -> str:
        return ", ".join(f"{about}:{pattern}" for about, pattern in value)


def _texts(value: object) -> list[str]:
    parts = value.split(",") if isinstance(value, str) else value
    if not isinstance(parts, (list, tuple)):
        raise Refused
    texts = [plain_text(part) for part in parts]
    if any(len(text) > 200 or has_control(text) for text in texts) or len(texts) > 100:
        raise Refused
    return [text for text in texts if text]


def plain_text(value: object) -> str:
    """Return a text without the whitespace around it, or raise `Refused`."""
    if not isinstance(value, str):
        raise Refused("it is not text")
    # A str subclass may bring a __str__ of its own (enumerations do).
    return str.__str__(value).strip()


def has_control(text: str) -> bool:
    """Return whether a text has characters that break a line or a request."""
    # Cs: lone surrogates, which no request can carry. Zl, Zp: line breaks by another name.
    return any(unicodedata.category(character) in {"Cc", "Cs", "Zl", "Zp"} for character in text)
