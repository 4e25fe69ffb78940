"""Sources that are sent to a Letta server, and run there."""
