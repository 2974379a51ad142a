"""What the scheduler reports arrives on the endpoint's side of vLLM's own message, and nothing of it anywhere else."""

from types import SimpleNamespace

from modelless import Driver, make_request, make_scheduler
from prometheus_client import REGISTRY
from vllm.v1.engine import EngineCoreOutputs
from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

from feather.vllm import FeatherScheduler
from feather.vllm.metrics import FeatherMetrics

OPTIONS = {"policy": "lab.policies.Threshold", "chunk_size": 32, "min_batch": 1, "max_loss": 0, "max_loss_under_load": 0}


class Watched(Driver):
    """Sends every step's statistics through vLLM's own encoding to the stat logger."""

    def __init__(self, scheduler):
        super().__init__(scheduler)
        self.metrics = FeatherMetrics(SimpleNamespace(model_config=SimpleNamespace(served_model_name="tiny")), [0])
        self.update = scheduler.update_from_output
        scheduler.update_from_output = self.watch

    def watch(self, *arguments):
        found = self.update(*arguments)
        message = EngineCoreOutputs(scheduler_stats=next(iter(found.values())).scheduler_stats)
        stats = MsgpackDecoder(EngineCoreOutputs).decode(MsgpackEncoder().encode(message)).scheduler_stats
        assert stats.waiting_lora_adapters
        stats.waiting_lora_adapters["an adapter"] = 3
        self.metrics.record(stats, None, engine_idx=0)
        assert stats.waiting_lora_adapters == {"an adapter": 3}
        return found


def value(name):
    return REGISTRY.get_sample_value(f"feather_{name}", {"model_name": "tiny", "engine": "0"})


def test_the_reports_of_a_scheduler_reach_the_endpoint(tmp_path):
    scheduler = make_scheduler(FeatherScheduler, tmp_path, feather=OPTIONS, log_stats=True)
    driver = Watched(scheduler)
    prefixes = [list(range(start, start + 128)) for start in (10, 1010)]
    driver.add(*(make_request(scheduler, f"{i}", prefixes[i % 2] + [5000 + i], 6) for i in range(6)))
    driver.step()
    assert (value("tip_tokens"), value("stops_total"), value("decisions_total"), value("fallbacks_total")) == (128, 1, 4, 0)
    assert abs(value("batch_homogeneity") - 2 / 3) < 1e-6, "three requests hold the same four chunks"
    assert value("decision_seconds_count") == 1 and 0 < value("decision_seconds_sum") < 1
    assert 0 < value("oldest_wait_seconds") < 60
    driver.run()
    assert value("stops_total") == scheduler.waiting.stops > 1
    assert value("decisions_total") == scheduler.waiting.former.decisions
    assert value("oldest_wait_seconds") == 0


def test_a_fallback_is_counted_once(tmp_path):
    scheduler = make_scheduler(FeatherScheduler, tmp_path, feather=OPTIONS, log_stats=True)
    scheduler.waiting.former.policy = None
    driver = Watched(scheduler)
    driver.add(*(make_request(scheduler, str(i), range(10, 60), 6) for i in range(6)))
    driver.run()
    assert len(driver.finished) == 6 and scheduler.fallback and value("fallbacks_total") == 1


def test_a_stock_scheduler_shows_no_metric_of_feathers():
    before = value("decisions_total")
    stats = SimpleNamespace(waiting_lora_adapters={"an adapter": 1})
    metrics = FeatherMetrics(SimpleNamespace(model_config=SimpleNamespace(served_model_name="tiny")), [0])
    metrics.record(stats, None)
    metrics.record(None, None)
    assert metrics._metrics is None and stats.waiting_lora_adapters == {"an adapter": 1} and value("decisions_total") == before


def test_what_a_policy_tells_wrongly_reaches_neither_the_engine_nor_the_endpoint(tmp_path):
    scheduler = make_scheduler(FeatherScheduler, tmp_path, feather={"policy": "planner"}, log_stats=True)
    policy = scheduler.waiting.former.policy
    policy.told = lambda: {"promise_arrival": float("inf"), "price_row": float("nan")}
    driver = Watched(scheduler)
    driver.add(*(make_request(scheduler, str(i), range(10, 60), 6) for i in range(6)))
    driver.step()
    assert REGISTRY.get_sample_value("feather_promise", {"model_name": "tiny", "engine": "0", "of": "arrival"}) == 0

    def wrong():
        raise RuntimeError("no such number")

    policy.told = wrong
    driver.run()
    assert scheduler.fallback == "RuntimeError: no such number" and value("fallbacks_total") == 1
