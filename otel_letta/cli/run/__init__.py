"""`otel-letta run`: a program reports its tasks without a line of code.

`command.py` starts the program with `first_on_path/` before everything else on its path. Python imports the
`sitecustomize` in there before the program, and that calls `startup.py`.
"""
