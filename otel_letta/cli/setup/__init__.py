"""`otel-letta setup`: coding programs' own settings, so that they report by OTLP and leave content out."""
