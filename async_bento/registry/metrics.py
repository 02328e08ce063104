"""The metrics of a registry, for Prometheus."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from aiohttp import web

    from async_bento.registry.records.blobs import BlobRecords
    from async_bento.registry.records.sql import Records

_PREFIX = "async_bento_registry"
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 60, 600)
# All others count as `other`: each value of a label is one more series, which Prometheus keeps.
_METHODS = {"DELETE", "GET", "HEAD", "PATCH", "POST", "PUT"}


class Observed:
    """A request that is being counted; without a `response`, it has failed or was cancelled."""

    response: web.StreamResponse | None = None


class Metrics:
    """Counts requests and bytes, and asks the records for what is stored when the metrics are read."""

    def __init__(self, records: Records, blob_records: BlobRecords) -> None:
        self._records = records
        self._blob_records = blob_records
        self._registry = registry = CollectorRegistry()
        labels = ("method", "route")
        self._requests = Counter(
            f"{_PREFIX}_requests",
            "Requests, by status; 499 for a client that hung up",
            (*labels, "status"),
            registry=registry,
        )
        self._seconds = Histogram(
            f"{_PREFIX}_request_seconds", "Time until a response was sent", labels, buckets=_SECONDS, registry=registry
        )
        self._in_flight = Gauge(f"{_PREFIX}_requests_in_flight", "Requests that run", registry=registry)
        self._received = Counter(f"{_PREFIX}_received_bytes", "Bytes of request bodies", registry=registry)
        self._sent = Counter(f"{_PREFIX}_sent_bytes", "Bytes of response bodies", registry=registry)
        self._items = Gauge(f"{_PREFIX}_items", "Bentos and models", ("kind",), registry=registry)
        self._stored = Gauge(
            f"{_PREFIX}_stored_bytes",
            "Bytes of bentos and models (current), or to be removed (unused)",
            ("state",),
            registry=registry,
        )

    @contextmanager
    def request(self, request: web.Request) -> Generator[Observed]:
        """Count a request, which runs in the block."""
        resource = request.match_info.route.resource
        route = "unknown" if resource is None else resource.canonical
        method = request.method if request.method in _METHODS else "other"
        observed, began = Observed(), time.perf_counter()
        self._in_flight.inc()
        try:
            yield observed
        finally:
            self._in_flight.dec()
            self._seconds.labels(method, route).observe(time.perf_counter() - began)
            self._received.inc(request.content.total_bytes)
            status = 499
            if observed.response is not None:
                status = observed.response.status
                self._sent.inc(observed.response.content_length or 0)
            self._requests.labels(method, route, status).inc()

    def follow_upstream(self) -> Callable[[bool], None]:
        """Add the gauge of a mirror, and return the function that sets it."""
        up = Gauge(f"{_PREFIX}_upstream_up", "Whether the upstream of this mirror answers", registry=self._registry)
        return up.set

    async def render(self) -> tuple[bytes, str]:
        """Return the metrics as text, and its content type."""
        for kind, count in (await self._records.count_items()).items():
            self._items.labels(kind).set(count)
        usage = await self._blob_records.usage()
        self._stored.labels("current").set(usage.current)
        self._stored.labels("unused").set(usage.unused)
        return generate_latest(self._registry), CONTENT_TYPE_LATEST
