"""OTLP, from bytes to spans."""
