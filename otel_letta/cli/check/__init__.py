"""`otel-letta check`: the settings and where they come from, the server, the agent, and what a report would cost.

`probe.py` asks, `findings.py` judges and keeps what was found, `show.py` prints it, `command.py` is the command.
"""
