"""OTLP, from bytes to spans and log records."""
