"""`otel-letta init`: from a server and an agent to a `.env` that works.

`servers.py` finds a server, `env_file.py` writes the settings, `command.py` is the command and its questions.
"""
