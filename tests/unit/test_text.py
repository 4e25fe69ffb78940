"""What text may look like when it leaves the package."""

from __future__ import annotations

import re
import sys
import unicodedata
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from otel_letta.text import as_text, clean_block, clean_error, clean_line, escape, percent
from tests.support.tracked import hostile_text

FEW = settings(max_examples=150)

# Written from the Unicode standard, not from the code: controls but line feed, surrogates, bidirectional controls,
# zero-width characters that shape nothing, tag characters, noncharacters of the basic plane.
FORBIDDEN = re.compile(
    "[\x00-\x09\x0b-\x1f\x7f-\x9f\ud800-\udfff\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff"
    "\U000e0000-\U000e01ef\ufdd0-\ufdef\ufffe\uffff\U0001fffe\U0010ffff]"
)

PIECES = st.sampled_from(
    [
        "\x1b[31m",
        "\x1b]0;title\x07",
        "\x1b]8;;http://x",
        "\x1bP",
        "\x9b1m",
        "\x9d",
        "\x1b",
        "\x00",
        "\r\n",
        "\r",
        "\n\n\n",
        "\u202e",
        "\u2066",
        "\u200b",
        "\ufeff",
        "\U000e0041",
        "\ud800",
        "\udfff",
        "\u2028",
        "\t",
        " ",
        "\u00a0",
        "\u200d",
        "\ufe0f",
        "a",
        "é",
        "🚀",
        "</task-progress>",
        "&lt;",
        "password=",
        "hunter2",
        "token: ",
        "Bearer ",
        "[redacted]",
        "sk-0123456789abcdef0123",
        "https://u:p@h/x?q=1",
        "?a=b",
        "/find",
        "…",
        "'",
        '"',
        "\\",
        ")",
        "Authorization: ",
        "Traceback (most recent call last):",
        "ValueError: bad",
        "x" * 60,
    ]
)
TEXTS = st.one_of(
    st.text(st.characters(), max_size=80),
    st.lists(st.one_of(PIECES, st.text(st.characters(), max_size=3)), max_size=25).map("".join),
)
CAPS = st.integers(0, 120)


# -- as_text ------


class _LoudBytes(bytes):
    def __getitem__(self, key: Any) -> Any:
        raise RuntimeError("hostile")

    decode = __str__ = __repr__ = __iter__ = __getitem__  # type: ignore[assignment]


class _LoudInt(int):
    def __repr__(self) -> str:
        raise RuntimeError("hostile")

    __str__ = __format__ = __index__ = __int__ = __repr__  # type: ignore[assignment]


class _LoudFloat(float):
    def __repr__(self) -> str:
        raise RuntimeError("hostile")

    __str__ = __format__ = __float__ = __repr__  # type: ignore[assignment]


class _Liar:
    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        raise RuntimeError("hostile")

    def __str__(self) -> str:
        raise RuntimeError("hostile")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("plain", "plain"),
        ("", ""),
        (True, "true"),
        (False, "false"),
        (42, "42"),
        (-7, "-7"),
        (0.5, "0.5"),
        (float("nan"), "nan"),
        (b"caf\xc3\xa9", "café"),
        (b"\xff\xfe", "\ufffd\ufffd"),
        (bytearray(b"x"), "x"),
    ],
)
def test_a_scalar_becomes_the_text_it_plainly_is(value: Any, text: str) -> None:
    assert as_text(value) == text


@pytest.mark.parametrize(
    "value",
    [None, [], ("a",), {"a": 1}, [["deep", {"x": None}]], {1, 2}, object(), 1j, str, 10**5000],
    ids=["None", "list", "tuple", "dict", "nested", "set", "object", "complex", "type", "5000 digits"],
)
def test_what_is_no_text_is_none(value: Any) -> None:
    assert as_text(value) is None


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (hostile_text("kept"), "kept"),
        (_LoudBytes(b"kept"), "kept"),
        (_LoudInt(7), "7"),
        (_LoudFloat(0.5), "0.5"),
        (_Liar(), None),
    ],
    ids=["str", "bytes", "int", "float", "liar"],
)
def test_the_values_own_code_is_never_run(value: Any, text: str | None) -> None:
    got = as_text(value)
    assert got == text
    assert got is None or type(got) is str


def test_of_a_megabyte_of_bytes_only_the_beginning_is_decoded() -> None:
    text = as_text(b"x" * 1_000_000)
    assert text is not None
    assert len(text) == 65_536


# -- clean_line and clean_block ------


@pytest.mark.parametrize(
    ("dirty", "clean"),
    [
        ("\x1b[1;31mred\x1b[0m", "red"),
        ("\x1b]0;window title\x07shown", "shown"),
        ("\x1b]8;;https://evil.example\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("a\x00b\x08c\x7fd", "abcd"),
        ("StraÃ\x9fe am FluÃ\x9f", "StraÃe am FluÃ"),  # mojibake holds C1 controls; nothing else may go with them
        ("right\u202eleft\u2066x\u2069", "rightleftx"),
        ("zero\u200bwidth\ufeff\u2060", "zerowidth"),
        ("tag\U000e0068\U000e0069s", "tags"),
        ("lone \ud83d\ud83d surrogate", "lone \ufffd\ufffd surrogate"),
        ("private\ue000\U000f0000\U0010fffd and unknown\u0378\ufdd0\U00014647", "private and unknown"),
        ("many   \t\u00a0\u3000 spaces ", "many spaces"),
        ("two\r\nlines\rthree\u2028four\x0bfive", "two lines three four five"),
        ("👩‍🚀 ❤️‍🔥 नमस्‍ते", "👩‍🚀 ❤️‍🔥 नमस्‍ते"),  # joiners and selectors that scripts and emoji need
        ("h\ufe00\ufe01\ufe02\ufe03\ufe04i", "h\ufe00\ufe01i"),  # ... but not a hidden text made of them
        ("", ""),
    ],
)
def test_a_line_loses_what_cannot_be_seen(dirty: str, clean: str) -> None:
    assert clean_line(dirty, 100) == clean


@pytest.mark.parametrize("clean", [clean_line, clean_block])
def test_of_all_characters_none_stays_that_is_unprintable_but_joiners_and_spaces(
    clean: Callable[[str, int], str],
) -> None:
    for start in range(0, sys.maxunicode, 1_024):
        shown = clean(f"a{''.join(map(chr, range(start, start + 1_024)))}z", 2_000)
        stayed = {each for each in shown if not each.isprintable()} - set("\n\u200c\u200d")
        assert {each for each in stayed if unicodedata.category(each) != "Zs"} == set()


def test_a_line_that_fits_exactly_is_whole_and_one_character_more_is_cut() -> None:
    assert clean_line("x" * 10, 10) == "x" * 10
    assert clean_line("x" * 11, 10) == "x" * 9 + "…"


def test_a_line_says_that_something_is_missing_even_if_the_beginning_was_all_invisible() -> None:
    assert clean_line("\u200b" * 10_000 + "the end", 10) == "…"


def test_a_block_keeps_its_lines_but_not_gaps() -> None:
    assert clean_block(" one\r\ntwo\n\n\n\n\nthree\t3 \n", 100) == "one\ntwo\n\nthree 3"


def test_a_shortened_block_says_how_long_it_was() -> None:
    assert clean_block("x" * 500, 100) == "x" * 67 + "… [shortened from 500 characters]"


@pytest.mark.parametrize("cap", [0, 1, 2, 16, 33, 40])
def test_a_block_keeps_its_cap_even_without_room_for_the_note(cap: int) -> None:
    assert len(clean_block("x" * 500, cap)) == cap


class _Metered(str):
    """Knows how much of itself was looked at."""

    most = 0

    def __getitem__(self, key: Any) -> str:
        part = str.__getitem__(self, key)
        _Metered.most = max(_Metered.most, len(part))
        return part

    def _whole(self, *_: Any, **__: Any) -> Any:
        raise AssertionError("all of it was read")

    split = splitlines = replace = strip = partition = __iter__ = _whole  # type: ignore[assignment]


@pytest.mark.parametrize(("clean", "budget"), [(clean_line, 1_056), (clean_block, 1_056), (clean_error, 8_192)])
@pytest.mark.parametrize(
    "unit", ["x", "\x1b[", "\x1b]", "\n", "\u202e", "password=", "://@", "/?", "sk-", "a ", "Traceback (most recent"]
)
def test_of_a_megabyte_only_a_budget_is_read(clean: Callable[[str, int], str], budget: int, unit: str) -> None:
    _Metered.most = 0
    text = _Metered(unit * (1_000_000 // len(unit)))
    assert len(clean(text, 200)) <= 200
    assert 0 < _Metered.most <= budget


@FEW
@given(TEXTS, CAPS)
def test_a_clean_line_is_one_visible_line_within_its_cap(text: str, cap: int) -> None:
    line = clean_line(text, cap)
    assert len(line) <= cap
    assert not FORBIDDEN.search(line)
    assert "\n" not in line
    assert line == line.strip()
    line.encode("utf-8")
    assert clean_line(line, cap) == line


@FEW
@given(TEXTS, CAPS)
def test_a_clean_block_is_visible_and_within_its_cap(text: str, cap: int) -> None:
    block = clean_block(text, cap)
    assert len(block) <= cap
    assert not FORBIDDEN.search(block)
    block.encode("utf-8")
    assert clean_block(block, cap) == block


# -- clean_error ------


@pytest.mark.parametrize(
    ("error", "told"),
    [
        ("ValueError: bad row 1043", "ValueError: bad row 1043"),
        ("first line\nsecond line", "first line"),
        ("\n\n  late line", "late line"),
        ('boom\nTraceback (most recent call last):\n  File "/srv/x.py", line 3\nKeyError: 1', "boom"),
        (
            "Traceback (most recent call last):\n  File \"/srv/x.py\", line 3, in f\n    f()\nKeyError: 'id'\n",
            "KeyError: 'id'",
        ),
        (
            '  + Exception Group Traceback (most recent call last):\n  |   File "/srv/x.py"\n'
            "  | ExceptionGroup: two (2 sub-exceptions)\n  +-+---\n    | ValueError: x\n    +---\n",
            "ValueError: x",
        ),
        ("", ""),
    ],
)
def test_of_an_error_one_line_is_told_and_no_stack_trace(error: str, told: str) -> None:
    assert clean_error(error) == told


def test_a_stack_trace_longer_than_the_budget_still_gives_its_last_line() -> None:
    frames = "".join(f'  File "/srv/x.py", line {n}, in f\n    call({n})\n' for n in range(2_000))
    assert (
        clean_error(f"Traceback (most recent call last):\n{frames}app.errors.Refused: no\n") == "app.errors.Refused: no"
    )


@pytest.mark.parametrize(
    ("error", "told"),
    [
        ("GET https://api.example/v1/find?q=private&k=1 failed", "GET https://api.example/v1/find?… failed"),
        ("at https://api.example/#access", "at https://api.example/?…"),
        ("postgresql+psycopg2://bob:hunter2@db:5432/app is down", "postgresql+psycopg2://db:5432/app is down"),
        ("redis://:hunter2@cache:6379/0", "redis://cache:6379/0"),
        ("amqp://bob:hun@ter2@mq/vhost", "amqp://mq/vhost"),
        (
            "Max retries exceeded with url: /find?q=private (Caused by X)",
            "Max retries exceeded with url: /find?… (Caused by X)",
        ),
        ("is /srv/data there? yes=1", "is /srv/data there? yes=1"),
    ],
)
def test_addresses_lose_their_query_and_credentials(error: str, told: str) -> None:
    assert clean_error(error) == told


SECRET = "hunter2hunter2hunter2"


@pytest.mark.parametrize(
    "error",
    [
        f"login failed: password={SECRET}",
        f'{{"password": "{SECRET}"}}',
        f"{{'api_key': '{SECRET}', 'user': 'bob'}}",
        f'body: "{{\\"client_secret\\": \\"{SECRET}\\"}}"',
        f"password=b'{SECRET}'",
        f"password='two words {SECRET}'",
        f"AWS_SECRET_ACCESS_KEY={SECRET}",
        f"LETTA_PASSWORD = {SECRET}",
        f"x-api-key: {SECRET}",
        f"access_token={SECRET}&next=1",
        f"Authorization: Bearer {SECRET}",
        f"Authorization: Token {SECRET}",
        f"{{'authorization': 'Digest username=\"bob\", response=\"{SECRET}\"'}}",
        f"Cookie: a=1; session={SECRET}",
        f"Bearer {SECRET} was refused",
        f"pass\u200bword={SECRET}",
        f"\x1b[1mpassword\x1b[0m={SECRET}",
        f"passphrase: {SECRET}",
        f"https://{SECRET}@host/",
        f"https://host/?x={SECRET}",
        "Incorrect API key provided: sk-proj-0123hunter20123456789",
        "ghp_0123456789hunter2ABCDEFGHIJ",
        "eyJhbGciOiJIUzI1.eyJzdWIhunter2.c2lnbmF0dXJl",
        "AKIAHUNTER2HUNTER2HU",
    ],
)
def test_likely_secrets_are_never_told(error: str) -> None:
    assert "hunter2" not in clean_error(error).lower()


@pytest.mark.parametrize(
    "error",
    [
        "maximum context length is 8192 tokens: 9000 given",
        "KeyError: skip_validation_of_rows_2024x",
        'duplicate key value violates unique constraint "pk_users_accounts_history"',
        "Authorization failed for user bob",
        "Unexpected token } in JSON at position 7",
        "basic check failed",
    ],
)
def test_ordinary_errors_are_told_whole(error: str) -> None:
    assert clean_error(error) == error


@FEW
@given(TEXTS, CAPS)
def test_a_clean_error_is_a_clean_line(text: str, cap: int) -> None:
    line = clean_error(text, cap)
    assert len(line) <= cap
    assert not FORBIDDEN.search(line)
    assert "\n" not in line
    line.encode("utf-8")


@FEW
@given(TEXTS)
def test_cleaning_a_clean_error_changes_nothing(text: str) -> None:
    line = clean_error(text, 4_000)
    assert clean_error(line, 4_000) == line


# -- escape and percent ------


def test_escaping_leaves_nothing_that_opens_or_closes() -> None:
    assert escape('<a href="x">&</a>') == "&lt;a href=&quot;x&quot;&gt;&amp;&lt;/a&gt;"


@pytest.mark.parametrize(
    ("progress", "text"),
    [
        (0.0, "0%"),
        (0.004, "0%"),
        (0.29, "29%"),
        (0.57, "57%"),
        (0.999, "99%"),
        (1 - 1e-12, "99%"),
        (1.0, "100%"),
        (1, "100%"),
    ],
)
def test_percentages_round_down_and_only_all_is_100(progress: float, text: str) -> None:
    assert percent(progress) == text


@pytest.mark.parametrize("whole", range(101))
def test_every_whole_percentage_is_itself(whole: int) -> None:
    assert percent(whole / 100) == f"{whole}%"
