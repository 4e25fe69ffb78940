"""``python -m otel_letta`` is ``otel-letta``."""

from otel_letta.cli.main import main

if __name__ == "__main__":
    main()
