"""From spans to reports. Pure: no thread, file, network or environment, and the clock is handed in."""
