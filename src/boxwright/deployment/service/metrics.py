"""Counters of the service for Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Metrics:
    """Counters of one service, in a registry of its own, so that one process may hold several."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._requests = Counter("boxwright_requests", "Requests answered.", ("path", "status"), registry=self.registry)
        self._seconds = Histogram(
            "boxwright_request_seconds", "From the first byte of a request to the last of its answer.", ("path",),
            buckets=_SECONDS, registry=self.registry,
        )  # fmt: skip
        self._batches = Histogram(
            "boxwright_batch_images", "Images computed at once.", buckets=(1, 2, 4, 8), registry=self.registry
        )
        self._computing = Counter(
            "boxwright_compute_seconds", "Seconds that the detector computed.", registry=self.registry
        )
        self.decoders_busy = Gauge(
            "boxwright_decoders_busy", "Processes that are decoding an image.", registry=self.registry
        )
        self.decoders_killed = Gauge(
            "boxwright_decoders_killed", "How often decoding took too much time.", registry=self.registry
        )
        self.waiting = Gauge("boxwright_images_waiting", "Images waiting or in work.", registry=self.registry)

    def count_request(self, path: str, status: int, seconds: float) -> None:
        """Count an answered request."""
        self._requests.labels(path, str(status)).inc()
        self._seconds.labels(path).observe(seconds)

    def count_batch(self, images: int, seconds: float) -> None:
        """Count a computed batch."""
        self._batches.observe(images)
        self._computing.inc(seconds)

    def text(self) -> bytes:
        """All counters in Prometheus's text format."""
        return generate_latest(self.registry)
