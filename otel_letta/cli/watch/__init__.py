"""`otel-letta watch`: the tasks in the terminal, from a receiver or from the board of a Letta agent."""
