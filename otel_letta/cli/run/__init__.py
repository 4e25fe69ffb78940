"""`otel-letta run`: a program reports its tasks without a line of code.

`command.py` starts the program with `first_on_path/` before everything else on its path, whose `sitecustomize` Python imports before anything
else; that calls `startup.py`.
"""
