"""The Prometheus page, built from the plain figures when it is asked for; nothing is paid per request for it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from rewarm.obs.stats import BATCH_BOUNDS, FunctionStats, Histogram

#: (name, help, labels, value); a name that ends in "_total" is a counter's.
Gauges = Callable[[], Iterable[tuple[str, str, dict[str, str], float]]]


class LayerTimes:
    """Seconds that raising each layer took, by layer and function."""

    #: Raising takes from a fraction of a millisecond (Bare) to a minute (a large framework from a cold disk).
    BOUNDS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)

    def __init__(self) -> None:
        self.by_layer: dict[str, Histogram] = {}

    def observe(self, layer: str, seconds: float) -> None:
        histogram = self.by_layer.get(layer)
        if histogram is None:
            histogram = self.by_layer[layer] = Histogram(self.BOUNDS_S)
        histogram.observe(seconds)


class Collector:
    """Makes metric families for `prometheus_client` out of the figures."""

    def __init__(self, stats: dict[str, FunctionStats], layers: LayerTimes, gauges: Gauges) -> None:
        self._stats = stats
        self._layers = layers
        self._gauges = gauges

    def collect(self) -> Iterator[Any]:
        yield from self._counters()
        yield from self._histograms()
        yield from self._gauge_families()

    def _counters(self) -> Iterator[Any]:
        from prometheus_client.core import CounterMetricFamily

        requests = CounterMetricFamily("rewarm_requests", "Requests answered.", labels=["function", "code"])
        starts = CounterMetricFamily("rewarm_starts", "What requests found alive.", labels=["function", "kind"])
        inits = CounterMetricFamily("rewarm_instance_starts", "Instances started.", labels=["function"])
        calls = CounterMetricFamily("rewarm_calls", "Batches run.", labels=["function"])
        run = CounterMetricFamily("rewarm_run_seconds", "Time inside user code.", labels=["function"])
        billed = CounterMetricFamily(
            "rewarm_billed_seconds", "Init and run, each rounded up to 1 ms.", labels=["function"]
        )
        met = CounterMetricFamily("rewarm_slo_attained", "Requests answered within the SLO.", labels=["function"])
        for name, figures in self._stats.items():
            for code, count in figures.codes.items():
                requests.add_metric([name, str(code)], count)
            for kind, count in figures.starts.items():
                starts.add_metric([name, kind], count)
            inits.add_metric([name], figures.inits)
            calls.add_metric([name], figures.calls)
            run.add_metric([name], figures.run_ms / 1e3)
            billed.add_metric([name], figures.billed_ms / 1e3)
            if figures.slo_s is not None:
                met.add_metric([name], figures.slo_met)
        yield from (requests, starts, inits, calls, run, billed, met)

    def _histograms(self) -> Iterator[Any]:
        from prometheus_client.core import HistogramMetricFamily

        duration = HistogramMetricFamily(
            "rewarm_request_duration_seconds", "From the whole request read to its answer.", labels=["function"]
        )
        queue = HistogramMetricFamily("rewarm_queue_duration_seconds", "Waiting to be run.", labels=["function"])
        size = HistogramMetricFamily("rewarm_batch_size", "Requests per batch.", labels=["function"])
        for name, figures in self._stats.items():
            figures.fold()
            duration.add_metric([name], figures.durations.buckets(), figures.durations.total)
            queue.add_metric([name], figures.queue.buckets(), figures.queue.total)
            batches = Histogram(BATCH_BOUNDS)
            for rows, count in figures.sizes.items():
                batches.observe(rows, count)
            size.add_metric([name], batches.buckets(), batches.total)
        layer = HistogramMetricFamily("rewarm_layer_seconds", "Seconds to raise a layer.", labels=["layer"])
        for name, histogram in self._layers.by_layer.items():
            layer.add_metric([name], histogram.buckets(), histogram.total)
        yield from (duration, queue, size, layer)

    def _gauge_families(self) -> Iterator[Any]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        families: dict[str, Any] = {}
        for name, text, labels, value in self._gauges():
            if name not in families:
                kind = CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily
                families[name] = kind(name, text, labels=list(labels))
            families[name].add_metric(list(labels.values()), value)
        yield from families.values()


def page(collector: Collector) -> bytes:
    """The text of `GET /metrics`."""
    from prometheus_client import CollectorRegistry, generate_latest

    registry = CollectorRegistry(auto_describe=False)
    registry.register(collector)
    return generate_latest(registry)
