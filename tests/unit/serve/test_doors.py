"""Tokens and hosts: who may come in."""

from __future__ import annotations

from pathlib import Path

import pytest

from otel_letta.serve.doors import Grant, Tokens, Verdict, comes_from_a_page, is_loopback, is_own_host


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def write(path: Path, *tokens: str) -> None:
    """Replace the file as a secret's mount does."""
    fresh = path.with_name("fresh")
    fresh.write_text("\n".join(tokens) + "\n")
    fresh.replace(path)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "tokens"
    write(path, "# comment", "one", "", "  two  ")
    return path


def judge(tokens: Tokens, token: str) -> Verdict:
    return tokens.judge(f"Bearer {token}")


def test_each_line_of_the_file_is_a_token(file: Path) -> None:
    tokens = Tokens(("given",), file)
    assert tokens
    assert [judge(tokens, token) for token in ("given", "one", "two")] == [Verdict.WELCOME] * 3
    assert [judge(tokens, token) for token in ("# comment", "three", "on", "oneone")] == [Verdict.UNKNOWN] * 4


@pytest.mark.parametrize("sent", ["Bearer one", "bearer one", "Bearer%20one", "Bearer   one ", " Bearer one"])
def test_a_token_is_known_however_it_was_written(file: Path, sent: str) -> None:
    assert Tokens((), file).judge(sent) is Verdict.WELCOME


@pytest.mark.parametrize("sent", ["", "one", "Basic one", "Bearer", "Bearer%20", "Bearer \x00", "Bearer Ünicöde"])
def test_anything_else_is_unknown(file: Path, sent: str) -> None:
    assert Tokens((), file).judge(sent) is Verdict.UNKNOWN


def test_a_new_token_is_good_as_soon_as_it_stands_in_the_file(file: Path) -> None:
    tokens = Tokens((), file)
    write(file, "one", "two", "new")
    assert judge(tokens, "new") is Verdict.WELCOME


def test_a_token_that_was_taken_out_is_asked_to_come_back_for_an_hour(file: Path) -> None:
    clock = Clock()
    tokens = Tokens((), file, clock)
    write(file, "new")
    assert judge(tokens, "one") is Verdict.LATER  # its sender will have the new one soon; 401 would cost its data
    clock.now += 3_601
    assert judge(tokens, "one") is Verdict.UNKNOWN
    write(file, "one")
    assert judge(tokens, "one") is Verdict.WELCOME


@pytest.mark.parametrize("how", ["missing", "empty", "a folder"])
def test_while_the_file_cannot_be_read_the_tokens_of_before_are_good_and_nobody_is_turned_away(
    file: Path, how: str
) -> None:
    tokens = Tokens((), file)
    file.unlink()
    if how == "empty":
        file.write_text("\n# nothing\n")
    elif how == "a folder":
        file.mkdir()
    assert judge(tokens, "one") is Verdict.WELCOME
    assert judge(tokens, "new") is Verdict.LATER
    assert tokens.judge("") is Verdict.UNKNOWN
    if how == "a folder":
        file.rmdir()
    write(file, "new")
    assert judge(tokens, "new") is Verdict.WELCOME
    assert judge(tokens, "stranger") is Verdict.UNKNOWN


def test_a_line_may_give_a_token_to_an_agent(file: Path) -> None:
    write(file, "sender", "own agent=agent-1", "  both\tagent=agent-1  agent=agent-2", "any agent=*", "x", "x agent=y")
    tokens = Tokens((), file)
    assert tokens.look_up("Bearer sender") == (Verdict.WELCOME, Grant(sends=True))
    assert tokens.look_up("Bearer own") == (Verdict.WELCOME, Grant(agents=frozenset({"agent-1"})))
    assert tokens.look_up("Bearer both")[1].agents == {"agent-1", "agent-2"}
    assert tokens.look_up("Bearer any")[1].agents == {"*"}
    assert tokens.look_up("Bearer x")[1] == Grant(sends=True, agents=frozenset({"y"}))
    assert tokens.look_up("Bearer stranger") == (Verdict.UNKNOWN, Grant())
    # It opens nothing for a sender, and no cookie of the page can be made of it.
    assert [judge(tokens, token) for token in ("own", "both", "any")] == [Verdict.AGENT] * 3
    assert judge(tokens, "x") is Verdict.WELCOME
    assert not tokens.any_is(lambda token: token in ("own", "both", "any"))


def test_an_agents_token_changes_and_goes_like_any_other(file: Path) -> None:
    write(file, "sender", "own agent=agent-1", "old agent=agent-1")
    tokens = Tokens((), file)
    write(file, "sender", "own agent=agent-2")
    assert tokens.look_up("Bearer own")[1].agents == {"agent-2"}
    assert tokens.look_up("Bearer old") == (Verdict.LATER, Grant())
    write(file, "sender", "own")
    assert judge(tokens, "own") is Verdict.WELCOME


@pytest.mark.parametrize("slip", ["own agnet=agent-1", "own agent=", "own agent-1", "own agent=a b", "own # comment"])
def test_a_slip_behind_a_token_makes_no_sender_of_it_and_the_error_does_not_show_it(file: Path, slip: str) -> None:
    write(file, "sender", slip)
    with pytest.raises(ValueError, match="line 2") as raised:
        Tokens((), file)
    assert "own" not in str(raised.value)
    write(file, "sender", "own agent=agent-1")
    tokens = Tokens((), file)
    write(file, "sender", slip)  # later: what was read before stays good
    assert tokens.look_up("Bearer own")[1].agents == {"agent-1"}


def test_without_a_token_to_begin_with_nothing_starts(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="nowhere"):
        Tokens((), tmp_path / "nowhere")
    (tmp_path / "empty").write_text("# no token\n")
    with pytest.raises(ValueError, match="no token"):
        Tokens((), tmp_path / "empty")
    assert not Tokens()


@pytest.mark.parametrize(
    "host",
    ["localhost", "localhost:4318", "127.0.0.1:4318", "[::1]:4318", "10.0.0.7", "letta_upstream", "bridge:4318", ""],
)
def test_a_name_that_no_page_can_have_is_ours(host: str) -> None:
    assert is_own_host(host, ())


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:4318", "localhost.evil.example", "127.0.0.1.nip.io", "a/b"]
)
def test_a_name_that_a_page_may_have_is_not(host: str) -> None:
    assert not is_own_host(host, ())


def test_a_name_can_be_allowed() -> None:
    assert is_own_host("Otel.Example.com:443", {"otel.example.com"})


@pytest.mark.parametrize(
    ("headers", "page"),
    [
        ({}, False),
        ({b"origin": b"http://127.0.0.1:4318", b"host": b"127.0.0.1:4318"}, False),
        ({b"origin": b"https://evil.example", b"host": b"127.0.0.1:4318"}, True),
        ({b"origin": b"null", b"host": b"127.0.0.1:4318"}, True),
        ({b"origin": b"http://evil.example:4318", b"host": b"evil.example:4318"}, True),
        ({b"sec-fetch-site": b"cross-site"}, True),
        ({b"sec-fetch-site": b"same-origin"}, False),
        ({b"origin": b"http://[", b"host": b"x"}, True),
    ],
)
def test_a_page_is_known_by_what_browsers_add(headers: dict[bytes, bytes], page: bool) -> None:
    assert comes_from_a_page(headers, ()) is page


@pytest.mark.parametrize(
    ("host", "loopback"), [("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("::", False)]
)
def test_loopback_is_reached_by_this_machine_alone(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback
