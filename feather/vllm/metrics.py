"""Prometheus metrics on vLLM's own endpoint.

The scheduler lives in the engine's process and the endpoint in the API server's; between them, after every step, goes
vLLM's ``SchedulerStats``, a fixed set of typed fields. ``Report`` fills ours in beside the scheduler, ``FeatherMetrics`` is a
stat logger (entry-point group ``vllm.stat_logger_plugins``) that takes them out again beside the endpoint.

They travel as integers in ``waiting_lora_adapters``, the one open dictionary of numbers that the engine leaves empty. It is
filled in on the API server's side, where ours are taken out before vLLM's own loggers see them; and were the plug-in kept
from loading (``VLLM_PLUGINS``), nothing would be read but a label of ``vllm:lora_requests_info``. What else was weighed: a
subclass's fields are dropped by the decoder; ``kv_connector_stats`` holds anything, but its readers raise on what is not
their connector's; ``PROMETHEUS_MULTIPROC_DIR`` must be set before the server starts, wiped between runs, and covers one host;
and a port of our own would be one more thing to open. This way works across hosts and data-parallel ranks, as vLLM's does.
"""

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

    def __init__(self, chunk_size: int):
        self._chunk_size = chunk_size
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
        news = {name: total - self._told[name] for name, total in totals.items()}
        self._told |= totals
        stats.waiting_lora_adapters |= {_MARK + name: number for name, number in (news | state).items()}


class FeatherMetrics(AggregateStatLoggerBase):
    """The metrics themselves, on the endpoint's side; they come into being with the first report."""

    def __init__(self, vllm_config: VllmConfig, engine_indexes: list[int]):
        self._model = vllm_config.model_config.served_model_name
        self._metrics: dict[str, Counter | Gauge | Histogram] | None = None

    def record(self, scheduler_stats, iteration_stats, mm_cache_stats=None, engine_idx: int = 0) -> None:
        if scheduler_stats is None:
            return
        adapters = scheduler_stats.waiting_lora_adapters
        found = {name.removeprefix(_MARK): adapters.pop(name) for name in list(adapters) if name.startswith(_MARK)}
        if not found:
            return
        if self._metrics is None:
            self._metrics = _register()
        labelled = {name: metric.labels(self._model, str(engine_idx)) for name, metric in self._metrics.items()}
        labelled["homogeneity"].set(found["homogeneity_ppm"] / 1e6)
        labelled["tip"].set(found["tip_tokens"])
        labelled["oldest_wait"].set(found["oldest_wait_us"] / 1e6)
        labelled["fallbacks"].inc(found["fallbacks"])
        labelled["decisions"].inc(found.get("decisions", 0))
        labelled["stops"].inc(found.get("stops", 0))
        if found.get("decisions"):
            labelled["decision_seconds"].observe(found["decision_ns"] / 1e9)

    def log_engine_initialized(self) -> None:
        pass


def _register() -> dict[str, Counter | Gauge | Histogram]:
    for collector in list(REGISTRY._collector_to_names):  # those of an engine before this one, as vLLM does with its own
        if getattr(collector, "_name", "").startswith("feather_"):
            REGISTRY.unregister(collector)

    def gauge(name: str, meaning: str) -> Gauge:
        return Gauge(name, meaning, _LABELS, multiprocess_mode="mostrecent")

    return {
        "homogeneity": gauge(
            "feather_batch_homogeneity",
            "1 - distinct / all prompt chunks of the running requests: 0 where none is shared, near 1 where many share all.",
        ),
        "tip": gauge("feather_tip_tokens", "Tokens of prompt, in whole chunks, that all running requests share."),
        "oldest_wait": gauge("feather_oldest_wait_seconds", "How long ago the request that is first in the queue arrived."),
        "decisions": Counter("feather_decisions", "Decisions about the next request, or that there be none.", _LABELS),
        "stops": Counter("feather_stops", "Decisions to run the batch as it stands although requests wait.", _LABELS),
        "decision_seconds": Histogram(
            "feather_decision_seconds", "Time that the decisions of one scheduling step took.", _LABELS, buckets=_SECONDS
        ),
        "fallbacks": Counter("feather_fallbacks", "Times that Feather failed and vLLM's own queue took over.", _LABELS),
    }
