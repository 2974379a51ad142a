"""What a server tells its operator about Feather: metrics for Prometheus, which an adapter shows on its engine's own endpoint, with that
engine's prefix and labels."""

from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

from feather.admission import Admission

GAUGES = {
    "batch_homogeneity": "1 - distinct / all prompt chunks of the running requests: 0 where none is shared, near 1 where many share all.",
    "tip_tokens": "Tokens of prompt, in whole chunks, that all running requests share.",
    "oldest_wait_seconds": "How long ago the request that is first in the queue arrived.",
}
COUNTERS = {
    "decisions": "Decisions about the next request, or that there be none.",
    "stops": "Decisions to run the batch as it stands although requests wait.",
    "fallbacks": "Times that Feather failed and the engine's own queue took over.",
}
ATTENTION = {
    "attention_steps": "Steps by the attention kernel that ran, on a CPU.",
    "attention_shared_rows": "Rows whose prefix was computed together with others'.",
    "attention_saved_tokens": "Tokens of keys and values, of one layer, that were not read once more for another row.",
}
"""counters of the attention backend, where the engine has it; the first has a label of its own, the kernel"""
PLANNER = {
    "price": "Seconds that a unit of what a batch holds costs a step, as the planner has learned it.",
    "promise": "Tokens per second that the planner expects of a plan.",
}
"""gauges of the planner; each has a label of its own, what it is the price or the promise of"""
_SECONDS = "decision_seconds"
_MOST = 9e9  # what vLLM can carry to its endpoint; more, or what is no number, is told as 0
_BUCKETS = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0)


class Report:
    """The numbers of one scheduler; counts are of what has happened since it was asked last."""

    def __init__(self, chunk_size: int, attention: Callable[[], Mapping[str, int]] = dict):
        """``attention`` gives the totals of the attention backend, as ``feather.vllm.attention.counters`` names them."""
        self._chunk_size, self._attention = chunk_size, attention
        self._told: dict[str, float] = {}

    def numbers(self, admission: Admission | None, oldest_wait: float = 0.0) -> dict[str, float]:
        """By the names of the metrics. ``admission`` is None once Feather has failed. ``oldest_wait``: seconds."""
        totals, state = {"fallbacks": float(admission is None)}, dict.fromkeys(GAUGES, 0.0)
        if admission is not None:
            former = admission.former
            totals |= {"decisions": former.decisions, "stops": admission.stops, _SECONDS: admission.decision_seconds}
            state = {"batch_homogeneity": former.tree.homogeneity, "tip_tokens": former.tree.tip_depth * self._chunk_size,
                     "oldest_wait_seconds": oldest_wait, **(admission.guarded(lambda: former.policy.told()) or {})}  # fmt: skip
        totals |= {f"attention_{name}": total for name, total in self._attention().items()}
        news = {name: total - self._told.get(name, 0) for name, total in totals.items()}
        self._told |= totals
        return {name: number if abs(number) < _MOST else 0.0 for name, number in (news | state).items()}


def registered(prometheus: ModuleType, prefix: str, labels: Sequence[str], attention: bool = False) -> dict[str, Any]:
    """The metrics by name, made by ``prometheus_client``; with ``attention``, those of the attention backend too. Those of an engine before
    this one are replaced."""
    registry = prometheus.REGISTRY
    for collector in list(registry._collector_to_names):
        if getattr(collector, "_name", "").startswith(prefix):
            registry.unregister(collector)
    made = {name: prometheus.Gauge(prefix + name, text, labels, multiprocess_mode="mostrecent") for name, text in GAUGES.items()}
    made |= {name: prometheus.Gauge(prefix + name, text, [*labels, "of"], multiprocess_mode="mostrecent") for name, text in PLANNER.items()}
    for name, text in (COUNTERS | ATTENTION if attention else COUNTERS).items():
        made[name] = prometheus.Counter(prefix + name, text, [*labels, "kernel"] if name == "attention_steps" else labels)
    text = "Time that the decisions of one scheduling step took."
    return {**made, _SECONDS: prometheus.Histogram(prefix + _SECONDS, text, labels, buckets=_BUCKETS)}


def show(metrics: Mapping[str, Any], numbers: Mapping[str, float], labels: Mapping[str, Any]) -> None:
    """Numbers of a step on the metrics; all are shown from the first step on."""
    for name, metric in metrics.items():
        if name == "attention_steps":
            shared = {kernel: numbers.get(f"attention_{kernel}", 0) for kernel in ("cascade", "packed")}
            for kernel, steps in (shared | {"paged": numbers.get(name, 0) - sum(shared.values())}).items():
                metric.labels(**labels, kernel=kernel).inc(max(0, steps))
            continue
        if name in PLANNER:
            for key, number in numbers.items():
                if key.startswith(f"{name}_"):
                    metric.labels(**labels, of=key.removeprefix(f"{name}_")).set(number)
            continue
        metric = metric.labels(**labels)
        if name in GAUGES:
            metric.set(numbers[name])
        elif name != _SECONDS:
            metric.inc(numbers.get(name, 0))
        elif numbers.get("decisions"):
            metric.observe(numbers[name])
