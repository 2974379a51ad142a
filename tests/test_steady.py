"""The steady part of a run: what is cut, and how wide the interval is."""

import numpy as np
import pytest

from lab.engines import make_engine
from lab.engines.arms import ARMS
from lab.engines.run import joined
from lab.steady import begin, steady
from lab.workloads import Workload, grouped, make_prefixes


def closed_loop(requests: int = 300):
    engine = make_engine("sim", max_batch=8)
    prefixes = make_prefixes(2, 1000)
    engine.warm(prefixes)
    made = grouped(prefixes, [requests // 2, requests - requests // 2], seed=1, decode_tokens=(8, 24))
    return engine.run(Workload(made.prompts, clients=16), ARMS["FCFS"])


@pytest.fixture(scope="module")
def run():
    return closed_loop()


@pytest.mark.parametrize("transient", [0, 7, 30])
def test_the_transient_is_found(transient):
    noise = np.random.default_rng(0).normal(0, 1, 80)
    series = noise + np.where(np.arange(80) < transient, 20.0, 50.0)
    assert abs(begin(series) - transient) <= 3


def test_never_more_than_half_is_cut():
    assert begin(np.arange(40.0)) <= 20


def test_the_end_where_the_queue_drains_is_cut_too(run):
    found = steady(run)
    assert 0 <= found.begin < run.closed_until / 2 + 1e-9
    part = found.run
    assert part.seconds == pytest.approx(run.closed_until - found.begin)
    assert part.token_times.min() > found.begin and part.token_times.max() <= run.closed_until < run.seconds
    assert part.output_tokens == len(part.token_times) < run.output_tokens
    assert found.throughput == pytest.approx(part.metrics()["throughput"][0], rel=1e-6)
    assert 0 < found.half_width < found.throughput / 2
    assert {"begin", "throughput, half width", "throughput, transient"} < found.metrics().keys()


def test_a_window_holds_what_ended_in_it(run):
    half = run.seconds / 2
    first, second = run.window(0, half), run.window(half, run.seconds)
    assert first.output_tokens + second.output_tokens == run.output_tokens == len(run.token_times)
    assert len(first.step_seconds) + len(second.step_seconds) == len(run.step_seconds)
    assert len(first.first_token) + len(second.first_token) == len(run.first_token)
    assert len(first.between_tokens) + len(second.between_tokens) == len(run.between_tokens)
    assert type(first) is type(run) and len(first.weight_bytes) == len(first.step_times), "a modelled run's own fields, too"


def test_joined_runs_follow_each_other(run):
    both = joined([run, run])
    assert both.seconds == 2 * run.seconds and both.step_times.max() == pytest.approx(run.seconds + run.step_times.max())
    assert (np.diff(both.token_times) >= 0).all()


def test_too_few_tokens_are_refused():
    with pytest.raises(ValueError, match="send more requests"):
        steady(closed_loop(17))
