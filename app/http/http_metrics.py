"""What this process measures of its own requests.

Every label takes its values from a closed set; a path, method or name that a client makes up is counted under one word.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
OTHER_METHOD = "other"
UNMATCHED_ROUTE = "unmatched"
DISCONNECTED = "gone"  # the status of a request whose client left before the response
BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)  # seconds


class HttpMetrics:
    """Instruments in a registry of their own. Thread-safe."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.in_flight = Gauge(
            "denoised_http_requests_in_flight", "Requests in flight, streams included.", registry=self.registry
        )
        self._latency = Histogram(
            "denoised_http_request_seconds",
            "Seconds until the response starts, including the time for which a client asked to wait.",
            ["method", "route", "status"],
            buckets=BUCKETS,
            registry=self.registry,
        )
        self._health_checks = Counter(
            "denoised_health_checks",
            "Requests to /healthz and /readyz, which the other metrics leave out.",
            ["route", "status"],
            registry=self.registry,
        )
        ProcessCollector(registry=self.registry)

    def observe_health_check(self, route: str, status: int | None) -> None:
        """Count one health check, apart from other requests: probes come often, and 503 is an expected status."""
        self._health_checks.labels(route=route, status=_status_class(status)).inc()

    def observe(self, method: str, route: str | None, status: int | None, seconds: float) -> None:
        """Count one request.

        route: its template; None = refused before routing, or no route matched.
        status: None = the client disconnected before the response.
        seconds: until the response started.
        """
        self._latency.labels(
            method=method if method in METHODS else OTHER_METHOD,
            route=route or UNMATCHED_ROUTE,
            status=_status_class(status),
        ).observe(seconds)


def _status_class(status: int | None) -> str:
    return DISCONNECTED if status is None else f"{status // 100}xx"
