"""Letta's own APIs: the only rooms of the house that know HTTP."""
