"""Routers before modelled replicas: the rules, the model, and what the study makes of them."""

from dataclasses import replace

import numpy as np
import pytest

from lab.routing.load import Answered, Prefixes
from lab.routing.modelled import Fleet, Law
from lab.routing.rules import OURS, RULES, DualMap, Oracle, PrefixAffinity, RoundRobin
from lab.stats import batch_means
from lab.studies import routing
from lab.studies.study import Study

SETTING = routing.Setting(seconds=20.0)


def run(name, shape="uniform", kv=routing.SMALL, number=2, feather=True, seconds=40.0, seed=1):
    (rule, *_) = routing.rules(name, SETTING, shape, number, seed)
    return routing.run_modelled(SETTING, rule, "Feather" if feather else "FCFS", kv, shape, seed, number, seconds)


def rate(*arguments, **named):
    return run(*arguments, **named).steady(routing.DISCARD)["throughput"][0]


def test_the_rules_choose_as_they_say():
    robin, dual, affinity = RoundRobin(), DualMap(), PrefixAffinity()
    for rule in (robin, dual, affinity):
        rule.update("abc")
    assert sorted(robin.choose(()) for _ in range(6)) == list("aabbcc")
    pair = set()
    for number in range(20):
        pair.add(dual.choose(["x"]))
        dual.place(number, ["x"], dual.choose(["x"]))
    assert len(pair) == 2 and len({dual.choose([group]) for group in range(30)}) == 3
    affinity.place(1, ["x"], "b")
    assert {affinity.choose(["x", "own"]) for _ in range(9)} == {"b"} and affinity.choose(["y"]) != "b"


def test_the_oracle_gives_every_replica_an_equal_share():
    weights = dict(enumerate(Prefixes(9, 1, 1.0).weights))
    oracle = Oracle(weights)
    oracle.update(range(4))
    assert {home for homes in oracle._homes.values() for home in homes} == {0, 1, 2, 3}
    assert len(oracle._homes[0]) >= 2 and all(len(oracle._homes[group]) <= 2 for group in range(1, 9))


def test_batch_means_of_a_known_process():
    times = np.arange(1, 1001) * 0.01
    rate_, half = batch_means(times, np.full(1000, 3.0), 0.0, 10.0)
    assert rate_ == pytest.approx(300, rel=0.01) and half < 3
    with pytest.raises(ValueError, match="batches=1"):
        batch_means(times, times, 0, 10, 1)


def test_a_replica_takes_as_long_as_its_law_says():
    asked = Prefixes(1, 1000, suffix_tokens=0, decode_tokens=(4, 4))
    law = Law(0.01, 0.001, 0.002, 0.0001)
    answered = Fleet(RULES["power of two"](), asked, 1, 8, 5000, 1, law=law).run(1.0)
    step = 0.01 + 0.001 + 0.002
    assert answered.first[0] == pytest.approx(step + 0.1) and answered.done[0] == pytest.approx(4 * step + 0.1)
    assert answered.first[1] - answered.sent[1] == pytest.approx(step), "the prefix is cached"


@pytest.mark.parametrize("feather", [True, False])
def test_a_model_answers_everything_once_and_keeps_to_its_cache(feather):
    answered = run("power of two", feather=feather)
    assert len(answered.done) > 150 and all(first <= done for first, done in zip(answered.first, answered.done))
    assert all(sent < first for sent, first in zip(answered.sent, answered.first))
    assert run("power of two", feather=feather).done == answered.done, "a seed gives one run"
    assert run("power of two", kv=routing.ROOMY, feather=feather).hits > answered.hits


def test_keeping_prefixes_at_home_pays_where_the_cache_is_small():
    assert rate(OURS) > 1.2 * rate("power of two")
    assert rate(OURS, feather=False) > 1.2 * rate("power of two", feather=False)


def test_what_is_hot_spreads_where_affinity_lets_one_replica_drown():
    ours, affinity = (rate(name, "Zipf", number=16, seconds=20.0) for name in (OURS, "prefix affinity"))
    assert ours > 1.3 * affinity


@pytest.mark.parametrize("shape", routing.SHAPES)
def test_it_is_never_much_worse_than_power_of_two(shape):
    for kv in (routing.ROOMY, routing.SMALL):
        assert rate(OURS, shape, kv) > 0.97 * rate("power of two", shape, kv)


def test_many_replicas_come_near_an_oracle():
    for shape in ("uniform", "Zipf"):
        best = max(
            routing.run_modelled(SETTING, rule, "Feather", routing.ROOMY, shape, 1, 16, 20.0).steady(routing.DISCARD)["throughput"][0]
            for rule in routing.rules(routing.ORACLE, SETTING, shape, 16, 1)
        )
        assert rate(OURS, shape, routing.ROOMY, 16, seconds=20.0) > 0.9 * best


def test_old_statistics_are_refused_by_the_model():
    asked = SETTING.asked("uniform")
    fleet = Fleet(RULES[OURS](stale_after=0.5), asked, 2, 16, 100_000, 8, report_every=2.0)
    with pytest.raises(RuntimeError, match="no choice"):
        fleet.run(10.0)


def test_waits_and_rates_are_of_the_steady_part():
    answered = Answered(seconds=10.0)
    for second in range(10):
        answered.add(second, second + (5 if second < 3 else 1), second + 0.5 if second < 3 else second + 0.9, 10)
    told = answered.steady(0.3, batches=7)
    assert told["throughput"][0] == pytest.approx(10) and told[routing.P99][0] == 1 and told["answers"] == (7.0, "requests")


def test_the_study_says_what_it_found(tmp_path):
    study = Study("50_several_machines", None, tmp_path, backend="sim")
    table = routing.model(study, SETTING, [2, 4], 1, 15.0, insides=("FCFS", "Feather"))
    two = table[table["replicas"] == 2]
    told = routing.figures(two)
    assert set(told.small_kv_over_best_ray) == {"uniform", "Zipf"} and len(told.over_power_of_two) == 10
    assert set(told.hot_p99) == {routing.ROOMY, routing.SMALL}
    feather = table[table["inside"] == "Feather"]
    words = routing.found_in_words(two, feather)
    assert "KV for a third, Zipf prefixes" in words and "**4 replicas** (modelled)" in words
    routing.draw(study, two, SETTING, 1)
    routing.draw_modelled(study, feather, SETTING)
    assert {path.stem for path in (tmp_path / "figures").glob("*.png")} == {"routers_fcfs", "routers_feather", "routers_modelled"}
    assert set(table["backend"]) == {"sim"}


def test_on_a_slow_machine_modelled_replicas_run_until_they_have_answered(tmp_path):
    slow = replace(SETTING, law=Law(fixed=0.5, per_row=0.1, per_token=0.01))
    study = Study("50_several_machines", None, tmp_path, backend="sim")
    table = routing.model(study, slow, [2], 1, 5.0, [("Zipf", routing.SMALL)])
    assert (table[table["metric"] == "throughput"]["value"] > 0).all()
    routing.draw_modelled(study, table, slow)
