"""What otel_letta costs, measured: ``python -m benchmarks`` prints one table. See `benchmarks.__main__`."""
