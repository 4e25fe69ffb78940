"""The command `otel-letta`; its entry point is `otel_letta.cli.main`."""
