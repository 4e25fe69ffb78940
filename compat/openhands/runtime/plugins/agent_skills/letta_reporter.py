"""The import path of the original OpenHands–Letta integration.

A portion of OpenHands' namespace: none of the folders above may ever hold an ``__init__.py`` of ours. Importing it
hooks nothing into OpenHands.
"""

from otel_letta import LettaReporter

__all__ = ["LettaReporter"]
