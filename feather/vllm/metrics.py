"""Prometheus metrics on vLLM's own endpoint.

The scheduler runs in the engine's process and the endpoint in the API server's. After every step vLLM sends its
``SchedulerStats``, a fixed set of typed fields, from one to the other. ``add_to`` adds Feather's numbers beside the scheduler;
``FeatherMetrics``, a stat logger (entry-point group ``vllm.stat_logger_plugins``), takes them out again beside the endpoint.

They travel as integers in ``waiting_lora_adapters``, the one open dictionary of numbers that the engine leaves empty. vLLM fills
it in on the API server's side, after ours have been taken out. If the plug-in is kept from loading (``VLLM_PLUGINS``), all that
is seen of ours is a label of ``vllm:lora_requests_info``. This works across hosts and data-parallel ranks, as vLLM's metrics do.

Alternatives that do not work as well: the decoder drops the fields of a subclass; the readers of ``kv_connector_stats`` raise on
what is not their connector's; ``PROMETHEUS_MULTIPROC_DIR`` must be set before the server starts, must be wiped between runs and
covers one host; a port of our own would have to be opened.
"""

import prometheus_client
from vllm.config import VllmConfig
from vllm.v1.metrics.loggers import AggregateStatLoggerBase
from vllm.v1.metrics.stats import SchedulerStats

from feather import report

_MARK = "feather "  # before every key
_PER_UNIT = 1_000_000_000  # only integers travel


def add_to(stats: SchedulerStats, numbers: dict[str, float]) -> None:
    """Feather's numbers of a step, on the scheduler's side."""
    stats.waiting_lora_adapters |= {_MARK + name: round(number * _PER_UNIT) for name, number in numbers.items()}


class FeatherMetrics(AggregateStatLoggerBase):
    """The metrics, on the endpoint's side; created with the first report."""

    def __init__(self, vllm_config: VllmConfig, engine_indexes: list[int]):
        self._model = vllm_config.model_config.served_model_name
        self._metrics: dict | None = None

    def record(self, scheduler_stats, iteration_stats, mm_cache_stats=None, engine_idx: int = 0) -> None:
        if scheduler_stats is None:
            return
        adapters = scheduler_stats.waiting_lora_adapters
        found = {name.removeprefix(_MARK): adapters.pop(name) / _PER_UNIT for name in list(adapters) if name.startswith(_MARK)}
        if not found:
            return
        if self._metrics is None:
            self._metrics = report.registered(prometheus_client, "feather_", ("model_name", "engine"), attention=True)
        report.show(self._metrics, found, {"model_name": self._model, "engine": str(engine_idx)})

    def log_engine_initialized(self) -> None:
        pass
