"""Prometheus metrics on vLLM's own endpoint.

The scheduler runs in the engine's process and the endpoint in the API server's. After every step vLLM sends its
``SchedulerStats``, a fixed set of typed fields, from one to the other. ``Report`` adds Feather's numbers beside the scheduler;
``FeatherMetrics``, a stat logger (entry-point group ``vllm.stat_logger_plugins``), takes them out again beside the endpoint.

They travel as integers in ``waiting_lora_adapters``, the one open dictionary of numbers that the engine leaves empty. vLLM fills
it in on the API server's side, after ours have been taken out. If the plug-in is kept from loading (``VLLM_PLUGINS``), all that
is seen of ours is a label of ``vllm:lora_requests_info``. This works across hosts and data-parallel ranks, as vLLM's metrics do.

Alternatives that do not work as well: the decoder drops the fields of a subclass; the readers of ``kv_connector_stats`` raise on
what is not their connector's; ``PROMETHEUS_MULTIPROC_DIR`` must be set before the server starts, must be wiped between runs and
covers one host; a port of our own would have to be opened.
"""

from collections.abc import Callable

from prometheus_client import REGISTRY, Counter, Gauge, Histogram
from vllm.config import VllmConfig
from vllm.v1.metrics.loggers import AggregateStatLoggerBase
from vllm.v1.metrics.stats import SchedulerStats

from feather.vllm.queue import FeatherQueue

_MARK = "feather "  # before every key
_LABELS = ("model_name", "engine")
_SECONDS = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0)


class Report:
    """What has happened since the last step, on the scheduler's side."""

    def __init__(self, chunk_size: int, attention: Callable[[], dict[str, int]] = dict):
        """``attention`` gives the totals of the attention backend, as ``attention.counters`` names them."""
        self._chunk_size, self._attention = chunk_size, attention
        self._told = dict.fromkeys(("decisions", "stops", "decision_ns", "fallbacks"), 0)

    def add_to(self, stats: SchedulerStats, queue: FeatherQueue | None) -> None:
        """``queue`` is None once vLLM's own has taken over."""
        totals, state = {"fallbacks": int(queue is None)}, {"homogeneity_ppm": 0, "tip_tokens": 0, "oldest_wait_us": 0}
        if queue is not None:
            tree = queue.former.tree
            totals |= {
                "decisions": queue.former.decisions,
                "stops": queue.stops,
                "decision_ns": round(queue.decision_seconds * 1e9),
            }
            state = {
                "homogeneity_ppm": round(tree.homogeneity * 1e6),
                "tip_tokens": tree.tip_depth * self._chunk_size,
                "oldest_wait_us": round(queue.oldest_wait() * 1e6),
            }
        totals |= {f"attention_{name}": total for name, total in self._attention().items()}
        news = {name: total - self._told.get(name, 0) for name, total in totals.items()}
        self._told |= totals
        stats.waiting_lora_adapters |= {_MARK + name: number for name, number in (news | state).items()}


class FeatherMetrics(AggregateStatLoggerBase):
    """The metrics, on the endpoint's side; created with the first report."""

    def __init__(self, vllm_config: VllmConfig, engine_indexes: list[int]):
        self._model = vllm_config.model_config.served_model_name
        self._metrics: _Metrics | None = None

    def record(self, scheduler_stats, iteration_stats, mm_cache_stats=None, engine_idx: int = 0) -> None:
        if scheduler_stats is None:
            return
        adapters = scheduler_stats.waiting_lora_adapters
        found = {name.removeprefix(_MARK): adapters.pop(name) for name in list(adapters) if name.startswith(_MARK)}
        if not found:
            return
        if self._metrics is None:
            self._metrics = _Metrics()
        metrics, labels = self._metrics, (self._model, str(engine_idx))
        metrics.homogeneity.labels(*labels).set(found["homogeneity_ppm"] / 1e6)
        metrics.tip.labels(*labels).set(found["tip_tokens"])
        metrics.oldest_wait.labels(*labels).set(found["oldest_wait_us"] / 1e6)
        metrics.fallbacks.labels(*labels).inc(found["fallbacks"])
        metrics.decisions.labels(*labels).inc(found.get("decisions", 0))
        metrics.stops.labels(*labels).inc(found.get("stops", 0))
        steps = found.get("attention_steps", 0)
        for kernel in ("cascade", "packed"):
            ran = found.get(f"attention_{kernel}", 0)
            metrics.attention_steps.labels(*labels, kernel).inc(ran)
            steps -= ran
        metrics.attention_steps.labels(*labels, "paged").inc(steps)
        metrics.shared_rows.labels(*labels).inc(found.get("attention_shared_rows", 0))
        metrics.saved_tokens.labels(*labels).inc(found.get("attention_saved_tokens", 0))
        seconds = metrics.decision_seconds.labels(*labels)  # shown from the first report on, also without a decision
        if found.get("decisions"):
            seconds.observe(found["decision_ns"] / 1e9)

    def log_engine_initialized(self) -> None:
        pass


class _Metrics:
    """Feather's Prometheus metrics, registered. Those of an engine before this one are replaced, as vLLM does with its own."""

    def __init__(self) -> None:
        for collector in list(REGISTRY._collector_to_names):
            if getattr(collector, "_name", "").startswith("feather_"):
                REGISTRY.unregister(collector)

        def gauge(name: str, meaning: str) -> Gauge:
            return Gauge(name, meaning, _LABELS, multiprocess_mode="mostrecent")

        self.homogeneity = gauge(
            "feather_batch_homogeneity",
            "1 - distinct / all prompt chunks of the running requests: 0 where none is shared, near 1 where many share all.",
        )
        self.tip = gauge("feather_tip_tokens", "Tokens of prompt, in whole chunks, that all running requests share.")
        self.oldest_wait = gauge("feather_oldest_wait_seconds", "How long ago the request that is first in the queue arrived.")
        self.decisions = Counter("feather_decisions", "Decisions about the next request, or that there be none.", _LABELS)
        self.stops = Counter("feather_stops", "Decisions to run the batch as it stands although requests wait.", _LABELS)
        self.decision_seconds = Histogram(
            "feather_decision_seconds", "Time that the decisions of one scheduling step took.", _LABELS, buckets=_SECONDS
        )
        self.attention_steps = Counter("feather_attention_steps", "Steps by the attention kernel that ran, on a CPU.", (*_LABELS, "kernel"))
        self.shared_rows = Counter("feather_attention_shared_rows", "Rows whose prefix was computed together with others'.", _LABELS)
        self.saved_tokens = Counter(
            "feather_attention_saved_tokens",
            "Tokens of keys and values, of one layer, that were not read once more for another row.",
            _LABELS,
        )
        self.fallbacks = Counter("feather_fallbacks", "Times that Feather failed and vLLM's own queue took over.", _LABELS)
