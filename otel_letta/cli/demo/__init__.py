"""`otel-letta demo`: what a Letta agent gets to know of three traced tasks, live."""
