"""What this process measures of its own requests. Every label is one of a closed set: what a client makes up (a path, a
method, a name) becomes the same word for all.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Gauge, Histogram, ProcessCollector

from denoised.app.http.errors import METHODS

UNMATCHED, OTHER, GONE = "unmatched", "other", "gone"
BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)  # seconds


class HttpMetrics:
    """Instruments in a registry of their own. Thread-safe."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.in_flight = Gauge(
            "denoised_http_requests_in_flight", "Requests that are being answered, streams too.", registry=self.registry
        )
        self._latency = Histogram(
            "denoised_http_request_seconds",
            "Seconds until the answer begins; a client that asks to wait for its job waits in them.",
            ["method", "route", "status"],
            buckets=BUCKETS,
            registry=self.registry,
        )
        ProcessCollector(registry=self.registry)

    def observe(self, method: str, route: str | None, status: int | None, seconds: float) -> None:
        """A request was answered. route: the template, None = refused before routing, or nothing is there; status:
        None = the client left before."""
        self._latency.labels(
            method=method if method in METHODS else OTHER,
            route=route or UNMATCHED,
            status=GONE if status is None else f"{status // 100}xx",
        ).observe(seconds)
