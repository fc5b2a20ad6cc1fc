"""What Prometheus reads at /metrics: requests, tokens, times, queue and slots; counted with the kept client library."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from chinchilla_lm.serve.served_model import ServedModel
from chinchilla_lm.serve.settings import Limits

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
# Seconds. From a tiny model's millisecond to a long prompt on a slow machine, three steps a decade.
_REQUEST_BUCKETS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0)
_TOKEN_BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


class Metrics:
    """Counts of one server; two servers in a process have separate ones."""

    def __init__(self, served: ServedModel, limits: Limits) -> None:
        """Starts at zero."""
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "chinchilla_requests", "Answered requests.", ("route", "method", "status"), registry=self._registry
        )
        self._seconds = Histogram(
            "chinchilla_request_seconds",
            "From the first byte to the end of the answer.",
            ("route",),
            buckets=_REQUEST_BUCKETS,
            registry=self._registry,
        )
        self._first = Histogram(
            "chinchilla_time_to_first_token_seconds",
            "From the whole request to its first token, waiting included.",
            buckets=_REQUEST_BUCKETS,
            registry=self._registry,
        )
        self._each = Histogram(
            "chinchilla_time_per_token_seconds",
            "Between two tokens of one text.",
            buckets=_TOKEN_BUCKETS,
            registry=self._registry,
        )
        self._tokens = Counter("chinchilla_tokens", "Tokens of answered requests.", ("kind",), registry=self._registry)
        self.in_flight = Gauge(
            "chinchilla_requests_in_flight", "Requests that generate, embed or wait.", registry=self._registry
        )
        self.connections = Gauge("chinchilla_connections", "Open connections.", registry=self._registry)
        most = Gauge("chinchilla_requests_in_flight_limit", "More are answered 429.", registry=self._registry)
        most.set(limits.max_requests)
        self._registry.register(_SchedulerCounts(served))  # type: ignore[arg-type] - a collector has collect()

    def count_request(self, route: str, method: str, status: int, seconds: float) -> None:
        """Note an answer; `route` is one of ours or "other", so that strangers cannot make names."""
        self._requests.labels(route, method, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def count_first_token(self, seconds: float) -> None:
        """Note the wait for a text's first token."""
        self._first.observe(seconds)

    def count_next_tokens(self, seconds: float, tokens: int) -> None:
        """Note a later piece of a text: the time since its last piece, and its tokens."""
        for _ in range(tokens):
            self._each.observe(seconds / tokens)

    def count_tokens(self, *, prompt: int, completion: int) -> None:
        """Note the tokens of an answered request."""
        self._tokens.labels("prompt").inc(prompt)
        self._tokens.labels("completion").inc(completion)

    def page(self) -> bytes:
        """Return all of it as text."""
        return generate_latest(self._registry)


class _SchedulerCounts:
    """The scheduler's own counts, read when they are asked for."""

    def __init__(self, served: ServedModel) -> None:
        self._served = served

    def collect(self) -> Iterator[Metric]:
        if self._served.scheduler is None:
            return
        counts = self._served.scheduler.statistics()
        for name, words in (
            ("running", "Texts that are being written."),
            ("waiting", "Texts that wait for a slot."),
            ("slots", "Texts that fit at once."),
            ("slots_busy", "Slots in use."),
        ):
            yield GaugeMetricFamily(f"chinchilla_{name}", words, value=getattr(counts, name))
        for name, words in (
            ("prompt_tokens", "Prompt tokens given to the model."),
            ("prompt_tokens_reused", "Of these, already in a slot's cache."),
            ("tokens_generated", "Tokens chosen."),
            ("cancelled", "Requests that ended early because their client left or their time was over."),
            ("failed", "Requests that ended with an error."),
            ("decode_steps", "Forward passes of decoding."),
            ("decode_rows", "Texts in these passes in sum."),
            ("draft_guesses", "Tokens that the draft guessed."),
            ("draft_kept", "Of these, right: each spared a pass."),
        ):
            yield CounterMetricFamily(f"chinchilla_{name}", words, value=getattr(counts, name))
