"""Counts of the receiver, for Prometheus if its client is installed."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """Counts that cost next to nothing, written out when somebody asks.

    Args:
        observe: returns gauges by name at that moment: the pipeline's and the spool's.
    """

    def __init__(self, observe: Callable[[], Mapping[str, float]] = dict) -> None:
        self.observe = observe
        self._prometheus: Any = None
        try:
            import prometheus_client
        except ImportError:
            return
        self._prometheus = prometheus_client
        self._registry = prometheus_client.CollectorRegistry()
        make = self._counter
        self._requests = make("requests", "Requests, by signal and the status of the answer.", "signal", "status")
        self._items = make("items", "Spans and log records that were taken in.", "signal")
        self._rejected = make("rejected_items", "Spans and log records that can never be accepted.", "signal")
        self._repeated = make("repeated_requests", "Requests that had been taken in before.", "signal")
        self._bytes = make("request_bytes", "Bytes of bodies, unpacked.", "signal")
        self._seconds = prometheus_client.Histogram(
            "otel_letta_request_seconds", "Time from a request's headers to its answer.", registry=self._registry
        )
        if not os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
            self._registry.register(self)

    def _counter(self, name: str, text: str, *labels: str) -> Any:
        return self._prometheus.Counter(f"otel_letta_{name}", text, labels, registry=self._registry)

    def taken(self, signal: str, items: int, rejected: int) -> None:
        if self._prometheus is not None:
            self._items.labels(signal).inc(items)
            if rejected:
                self._rejected.labels(signal).inc(rejected)

    def repeated(self, signal: str) -> None:
        if self._prometheus is not None:
            self._repeated.labels(signal).inc()

    def answered(self, signal: str, status: int, size: int, seconds: float) -> None:
        if self._prometheus is not None:
            self._requests.labels(signal, str(status)).inc()
            self._bytes.labels(signal).inc(size)
            self._seconds.observe(seconds)

    def collect(self) -> Any:
        """Yield the gauges; called by the registry."""
        from prometheus_client.core import GaugeMetricFamily

        for name, value in self.observe().items():
            yield GaugeMetricFamily(f"otel_letta_{name}", name.replace("_", " ").capitalize() + ".", value=value)

    def write(self) -> tuple[bytes, str] | None:
        """Return all in the text format, and its type; None without the library."""
        if self._prometheus is None:
            return None
        registry = self._registry
        if os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
            from prometheus_client.multiprocess import MultiProcessCollector

            registry = self._prometheus.CollectorRegistry()
            MultiProcessCollector(registry)  # type: ignore[no-untyped-call, unused-ignore]
        return self._prometheus.generate_latest(registry), _TYPE
