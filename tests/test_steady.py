"""The steady part of a run: what is cut, how wide the interval is, and the instrument that measures many of them."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks.shift import AFTER, recovery
from benchmarks.steady import against_fcfs
from lab.engines import make_engine
from lab.engines.arms import ARMS, DISCIPLINES
from lab.engines.run import joined
from lab.instrument import Cell, Effort, Taken, _Bench, drift, measure, ranked_alike
from lab.steady import Watch, begin, estimate, pooled, settled, steady
from lab.workloads import Loop, Workload, grouped, make_prefixes

LOOP = Loop(groups=4, prefix_tokens=1000, clients=24, mean_decode=16)
EFFORT = Effort(limit=1e6, turnovers=3)


def closed_loop(requests: int = 300):
    engine = make_engine("sim", max_batch=8)
    prefixes = make_prefixes(2, 1000)
    engine.warm(prefixes)
    made = grouped(prefixes, [requests // 2, requests - requests // 2], seed=1, decode_tokens=(8, 24))
    return engine.run(Workload(made.prompts, clients=16), ARMS["FCFS"])


@pytest.fixture(scope="module")
def engine():
    return make_engine("sim", max_batch=8)


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


def test_the_interval_covers_the_mean_of_a_correlated_series():
    """Tokens come at a rate that wanders: the interval has to allow for it."""
    covered = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        rate = 100.0 + np.zeros(400)
        for step in range(1, 400):
            rate[step] = 100 + 0.9 * (rate[step - 1] - 100) + rng.normal(0, 5)
        times = np.sort(np.concatenate([step + rng.random(rng.poisson(max(rate[step], 1))) for step in range(400)]))
        found = estimate(times, 400.0)
        covered += abs(found.mean - 100) < found.half_width
    assert covered / 200 > 0.85


def test_a_step_in_the_rate_is_when_it_settles():
    slow, fast = np.arange(0, 30, 0.1), np.arange(30, 100, 0.05)
    assert settled(np.concatenate([slow, fast]), 40, 100.0, 20.0) == pytest.approx(32.5, abs=3)
    assert settled(np.arange(0, 100, 0.05), 0, 100.0, 20.0) == 0


def test_the_watch_ends_a_run_when_the_interval_is_narrow_or_the_time_is_up():
    watch = Watch(tokens=500, target=0.05, limit=50.0)
    times = np.arange(0.1, 60, 0.1)
    ended = next(count for count in range(1, len(times)) if watch(list(times[:count])))
    assert times[ended - 1] >= 50 - 1e-9, "500 tokens of a steady part at 10 a second"
    watch = Watch(tokens=200, target=0.05, limit=50.0)
    assert next(times[count - 1] for count in range(1, len(times)) if watch(list(times[:count]))) < 40


def test_what_an_arm_does_while_it_learns_is_cut():
    slow, fast = np.arange(0.0, 12.0, 0.2), np.arange(12.0, 20.0, 0.1)  # tok/s: 5, then 10
    times = np.concatenate([slow, fast])
    found = estimate(times, 20.0, 12.0)
    assert found.begin >= 12 and found.mean == pytest.approx(10, rel=0.05)
    watch = Watch(tokens=50, target=0.05, limit=6.0, learned=12.0)
    ended = next(times[count - 1] for count in range(1, len(times) + 1) if watch(list(times[:count])))
    assert 12 < ended <= 18.1


@pytest.mark.parametrize("name, learns", [("FCFS", False), ("Feather", True), ("Feather (never stop)", False), ("Feather (bandit alone)", True),
                                          ("authors' bandit", True), ("authors' rule", False), ("oracle (stop)", False), ("LPM", False)])  # fmt: skip
def test_which_arms_learn(name, learns):
    assert ARMS[name].learns == learns


def test_a_run_goes_on_beyond_its_limit_for_want_of_tokens():
    times = list(np.arange(0.01, 20, 0.01))
    assert len(times) > (ended := next(count for count in range(1, len(times)) if Watch(1, 1e-9, 2.0, least=600)(times[:count]))) > 600
    assert next(count for count in range(1, len(times)) if Watch(1, 1e-9, 2.0)(times[:count])) < ended


def test_a_part_without_a_first_token_tells_no_time_to_it(run):
    part = run.window(float(run.first_times.max()), run.seconds)
    assert not len(part.first_token) and np.isnan(part.metrics()["time to first token, p99"][0])


@pytest.mark.parametrize("loop", [LOOP, Loop(4, 1000, 24, "heavy", 16, zipf=1.0), Loop(4, 1000, None, "mooncake", 16, requests_per_s=50.0)])
def test_a_loop_is_the_same_for_the_same_seed_and_has_the_mean_it_says(loop):
    one, other = loop.workload(500, 3), loop.workload(500, 3)
    assert one == other and one.prompts[0].tokens[-20:] != loop.workload(500, 4).prompts[0].tokens[-20:]
    other = loop.workload(500, 3, suffixes=9)
    assert [(prompt.group, prompt.decode_tokens, prompt.arrival) for prompt in other.prompts] == [
        (prompt.group, prompt.decode_tokens, prompt.arrival) for prompt in one.prompts
    ] and other.prompts[0].tokens != one.prompts[0].tokens
    assert loop.draw(20_000, np.random.default_rng(0)).mean() == pytest.approx(16, rel=0.08)
    assert one.clients == loop.clients and (max(prompt.arrival for prompt in one.prompts) > 0) == (loop.clients is None)


@pytest.mark.parametrize("wrong", [{"decode": "long"}, {"clients": None}, {"requests_per_s": 1.0}, {"groups": 0}])
def test_a_loop_that_cannot_be_is_refused(wrong):
    with pytest.raises(ValueError, match="|".join(wrong)):
        Loop(**wrong)


def test_cells_are_interleaved_and_a_control_recurs(engine):
    cells = [Cell(arm, kernel, loop=LOOP) for kernel in ("paged", "cascade") for arm in ("FCFS", "Feather (never stop)")]
    taken = list(measure(engine, cells, Effort(repeats=2, limit=1e6, turnovers=3, control_every=3)))
    own = [one for one in taken if not one.control]
    assert sorted((one.cell.rung, one.repeat) for one in own) == sorted((cell.rung, repeat) for cell in cells for repeat in range(2))
    assert {one.cell for one in taken if one.control} == {cells[0]} and {one.seed for one in taken} == {1000, 1001}
    assert 0 <= drift(taken, cells[0]) < 0.2
    for one in taken:
        found = one.found
        assert found.half_width <= 0.04 * found.throughput and found.run.seconds > 0 and found.longest_wait >= found.run.first_token.max()
        assert found.run.metrics()["prefix hits"][0] > 0.9
    mean, half = pooled([one.found for one in own if one.cell == cells[0]])
    assert half < 0.04 * mean
    assert engine.kernel == "paged"


@pytest.mark.parametrize(
    "widths, limit, backend, kept, again",
    [
        ([1.0], 10.0, "cpu", 1.0, 0),
        ([9.0, 1.0], 10.0, "cpu", 1.0, 1),
        ([9.0, 4.0, 5.0], 10.0, "cpu", 4.0, 2),
        ([9.0], 2.0, "cpu", 9.0, 0),
        ([9.0], 1e6, "sim", 9.0, 0),
    ],
)
def test_a_run_that_says_too_little_is_run_again(monkeypatch, widths, limit, backend, kept, again):
    bar = SimpleNamespace(write=lambda text, file: None, total=1)
    bench = _Bench(SimpleNamespace(backend=backend), Effort(limit=limit), 1, False, bar)
    left = iter(widths)

    def run(cell, repeat):
        width = next(left)
        return SimpleNamespace(throughput=10.0, half_width=width), f"seen at {width}"

    monkeypatch.setattr(bench, "run", run)
    taken = bench.take(Cell("FCFS", loop=LOOP), 0)
    assert (taken.found.half_width, taken.again, bar.total) == (kept, again, 1 + again) and next(left, None) is None
    assert taken.looked == f"seen at {kept}", "of another run than the one that is kept"


def test_two_repeats_are_held_against_each_other():
    def taken(arm, repeat, rate, kernel="paged", control=False):
        found = SimpleNamespace(throughput=rate, half_width=1.0)
        return Taken(Cell(arm, kernel, loop=LOOP), repeat, 0, found, control)

    same = [taken("FCFS", 0, 10.0), taken("Feather", 0, 20.0), taken("FCFS", 1, 11.0), taken("Feather", 1, 14.0)]
    assert ranked_alike(same) == (2, 2)
    assert ranked_alike([*same, taken("FCFS", 0, 30.0, control=True), taken("FCFS", 0, 30.0, "packed")]) == (2, 2)
    turned = [taken("FCFS", 0, 10.0), taken("Feather", 0, 20.0), taken("FCFS", 1, 11.5), taken("Feather", 1, 10.0)]
    assert ranked_alike(turned) == (1, 0), "in the second repeat the intervals touch, so nothing is said there"


def test_who_still_waits_counts_in_the_longest_waits():
    run = closed_loop()
    begin, end = run.closed_until / 4, run.closed_until / 2
    part = run.window(begin, end)
    assert len(part.waiting) and part.waiting.min() >= 0 and part.waiting.max() <= end
    served = np.percentile(part.first_token, 99)
    starved = replace(part, waiting=np.append(part.waiting, [10 * served] * max(2, len(part.first_token) // 20)))
    assert starved.first_token_p99 > 5 * served and starved.metrics()["time to first token, p99"][0] == starved.first_token_p99
    assert replace(part, waiting=np.array([served / 2])).first_token_p99 == pytest.approx(served)


def test_all_arms_of_a_cell_have_the_same_requests_and_in_an_open_loop_the_same_time(monkeypatch):
    asked = []

    class Engine(SimpleNamespace):
        def run(self, workload, arm, watch):
            asked.append((arm.name, [prompt.decode_tokens for prompt in workload.prompts], watch._learned, watch._target))
            raise StopIteration

    engine = Engine(backend="cpu", max_batch=8, forget=lambda: None, use_kernel=lambda *arguments: None)
    for loop in (LOOP, LOOP.at(3.0)):
        for arm in ("FCFS", "Feather"):
            bench = _Bench(engine, Effort(limit=10.0), 1, True, SimpleNamespace())
            with pytest.raises(StopIteration):
                bench.run(Cell(arm, loop=loop), 0)
    (_, one, waits, target), (_, other, learned, _), (_, *open_fcfs), (_, *open_feather) = asked
    assert one == other and (waits, learned, target) == (0.0, 12.0, 0.04)
    assert open_fcfs == open_feather and open_fcfs[1:] == [12.0, 0.0]


def test_a_run_that_is_broken_off_leaves_nothing_behind(engine):
    engine.warm(LOOP.prefixes())
    broken = engine.run(LOOP.workload(400, 1), ARMS["FCFS"], lambda times: len(times) >= 200)
    assert 200 <= len(broken.token_times) < 210 and broken.closed_until == broken.seconds and len(broken.left_times)
    assert engine.run(LOOP.workload(40, 2), ARMS["FCFS"]).output_tokens == LOOP.workload(40, 2).decode_tokens


def test_the_same_cell_twice_or_none_is_refused(engine):
    with pytest.raises(ValueError, match="each once"):
        list(measure(engine, [Cell("FCFS", loop=LOOP)] * 2))
    with pytest.raises(ValueError, match="at least one"):
        list(measure(engine, []))


@pytest.mark.parametrize("name", DISCIPLINES)
def test_a_discipline_lets_in_as_many_groups_as_it_says(engine, name):
    arm = DISCIPLINES[name]
    engine.warm(LOOP.prefixes())
    run = engine.run(LOOP.workload(120, 1), arm)
    assert run.groups.max() <= (arm.options["at_once"] or 4)
    if not arm.options["refill"]:
        mixed = (run.prefill_tokens > 0) & (run.decode_rows > 0)
        assert not mixed.any() or arm.options["at_once"] > 1, "nobody joins a batch that has begun"
    assert run.output_tokens == LOOP.workload(120, 1).decode_tokens


def test_an_overloaded_open_loop_of_short_answers_is_long_enough_for_an_estimate(engine):
    effort = Effort(target=1e-9, limit=1e6, turnovers=0.25)
    closed = Loop(groups=4, prefix_tokens=1000, mean_decode=4, clients=24)
    (usual,) = measure(engine, [Cell("FCFS", loop=closed)], effort)
    (taken,) = measure(engine, [Cell("FCFS", loop=closed.at(1.5 * usual.found.throughput / closed.mean_decode))], effort)
    assert taken.found.throughput > 0


def test_a_benchmarks_cell_is_held_against_fcfs_of_its_own_workload_and_kernel():
    def cell(arm, rate, kernel="paged"):
        return {"workload": "w", "kernel": kernel, "arm": arm, "tok_s": rate, "ttft_p99_s": 100 / rate}

    one, other, alone = against_fcfs([cell("Feather", 20.0), cell("FCFS", 10.0), cell("Feather", 30.0, "packed")])
    assert (one["throughput_ratio"], one["p99_ttft_ratio"]) == (2.0, 0.5) and other["throughput_ratio"] == 1.0
    assert "throughput_ratio" not in alone


def test_a_run_has_recovered_from_when_the_mean_of_all_that_follows_is_good():
    slow, fast = np.arange(0.0, 30.0, 0.2), np.arange(30.0, 70.0, 0.1)  # tok/s: 5, then 10; the change comes at 25 s
    seconds, share = recovery(25.0, np.concatenate([slow, fast]), 10.0)
    assert seconds == 1.0, "5 of the 45 s after the change are slow; with the first of them left out, the mean is within 5 %"
    assert share == pytest.approx(1.0, abs=0.01)
    assert recovery(25.0, np.concatenate([slow, fast]), 20.0)[0] == AFTER
