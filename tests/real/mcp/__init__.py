"""Real clients of the Model Context Protocol against `otel-letta serve`."""
