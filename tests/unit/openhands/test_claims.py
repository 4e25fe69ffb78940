"""Conversations that are reported by a callback, and not by their spans as well."""

from __future__ import annotations

from otel_letta.integrations.openhands.claims import Claims


def test_a_claimed_conversation_is_known_with_dashes_and_without() -> None:
    claims = Claims()
    claims.add("9FF3DA80-23e4-4f9f-a936-512fe8e8fbb0")
    assert "9ff3da8023e44f9fa936512fe8e8fbb0" in claims
    assert "9ff3da80-23e4-4f9f-a936-512fe8e8fbb0" in claims


def test_claims_are_bounded() -> None:
    claims = Claims(most=2)
    for name in ("a", "b", "c"):
        claims.add(name)
    assert [name in claims for name in ("a", "b", "c")] == [False, True, True]
