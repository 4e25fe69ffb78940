"""The forms of Letta's conversation ids.

On the ground floor because rooms on both sides of a wall ask for them: the transports, to which an id is an address,
and the settings, which refuse one where a title is meant.
"""

from __future__ import annotations

from otel_letta.text import pattern

REST_CONVERSATION = pattern(r"conv-[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\Z")
"""A conversation's id on a REST server and on Letta Cloud."""
APP_SERVER_CONVERSATION = pattern(r"local-conv-[0-9]{1,18}\Z")
"""A conversation's id on an App Server that keeps its agents itself (``--backend local``)."""
