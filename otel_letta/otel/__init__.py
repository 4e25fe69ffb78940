"""What plugs into OpenTelemetry's SDK and API."""
