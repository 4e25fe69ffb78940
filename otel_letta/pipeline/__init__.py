"""Joins one watcher of open spans, one tracker and one delivery, for all components that are configured alike."""
