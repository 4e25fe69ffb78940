"""The process that we live in: forks, locks, imports. Knows neither spans nor Letta."""
