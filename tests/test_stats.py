import json

import numpy as np
import pandas as pd
import pytest

from lab import book
from lab.claims import verdict
from lab.stats import BETWEEN_RUNS, Ratio, median_of, ratio, spread
from lab.studies.study import Condition, Study, compare


def test_a_ratio_is_paired_and_its_interval_covers_the_truth():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        machine = rng.uniform(0.5, 2, 9)  # a drift that hits both arms of a repeat alike
        found = ratio(1.3 * machine * rng.normal(1, 0.05, 9), machine, resamples=500)
        covered += found.low <= 1.3 <= found.high
    assert 170 <= covered <= 200
    assert str(ratio([2, 4], [1, 2])) == "2.00× [2.00, 2.00], n = 2"
    with pytest.raises(ValueError, match="equally many"):
        ratio([1, 2], [1])


@pytest.mark.parametrize(
    "claim, low, median, backend, expected",
    [
        ("M1", 1.6, 1.9, "cpu", "reproduced"),
        ("M1", 1.5, 1.9, "cpu", "reproduced in direction"),
        ("M1", 1.04, 1.9, "cpu", "not reproduced"),
        ("M1", 1.9, 2.0, "sim", "modelled only"),
        ("E10", 0.95, 1.0, "cpu", "reproduced"),
        ("E10", 0.9, 1.0, "cpu", "reproduced in direction"),
        ("E10", 0.9, 0.94, "cpu", "not reproduced"),
    ],
)
def test_verdicts_go_by_the_interval(claim, low, median, backend, expected):
    assert verdict(claim, Ratio(median, low, median + 0.1, 5), backend) == expected


def test_a_claim_of_parts_needs_them_all():
    flat = Ratio(1, 1, 1, 5)
    with pytest.raises(ValueError, match="name the parts"):
        verdict("E9", flat, "cpu")
    assert verdict("E9", flat, "cpu", {"one": True, "two": True}) == "reproduced"
    assert verdict("E9", flat, "cpu", {"one": True, "two": False}) == "reproduced in direction"
    assert verdict("E9", flat, "cpu", {"one": False}) == "not reproduced"
    assert verdict("E5", Ratio(2000, 1500, 3000, 5), "cpu", {"share": False}) == "reproduced in direction"
    assert verdict("M7", Ratio(0.7, 0.6, 0.8, 5), "cpu") == "reproduced"
    assert verdict("M7", Ratio(0.03, 0.02, 0.04, 5), "cpu") == "not reproduced"


def test_compare_pairs_by_repeat_and_refuses_an_ambiguous_choice():
    table = pd.DataFrame({"metric": "t", "policy": ["a", "b", "b", "a"], "repeat": [0, 0, 1, 1], "value": [2.0, 1.0, 2.0, 6.0]})
    assert compare(table, "t", of={"policy": "a"}, to={"policy": "b"}).median == 2.5
    with pytest.raises(ValueError, match="not one a repeat"):
        compare(table, "t", of={}, to={"policy": "b"})


def test_a_single_run_is_as_sure_as_it_says_of_itself():
    rows = [
        ("throughput", "a", 120.0),
        ("throughput", "b", 100.0),
        ("throughput, half width", "a", 3.6),
        ("throughput, half width", "b", 4.0),
    ]
    table = pd.DataFrame(
        [{"metric": metric, "policy": policy, "repeat": 0, "value": value, "backend": "sim"} for metric, policy, value in rows]
    )
    found = compare(table, "throughput", of={"policy": "a"}, to={"policy": "b"})
    assert found.median == 1.2 and (found.low, found.high) == (pytest.approx(1.2 * 0.95), pytest.approx(1.2 * 1.05))
    alone = compare(table[:2], "throughput", of={"policy": "a"}, to={"policy": "b"})
    assert alone.low == alone.high == 1.2
    twice = pd.concat([table, table.assign(repeat=1)])
    assert compare(twice, "throughput", of={"policy": "a"}, to={"policy": "b"}).low == pytest.approx(1.2 * (1 - 0.05 / 2**0.5))
    real = compare(table.assign(backend="cpu"), "throughput", of={"policy": "a"}, to={"policy": "b"})
    assert real.low == pytest.approx(1.2 * (1 - BETWEEN_RUNS * 2**0.5)), "two runs of a cell differ by more than each says"


def test_how_far_runs_of_one_cell_differ_is_computed_from_the_record():
    steady = book.ROOT / "data" / "recorded" / "amd-epyc-2-cores-32-mb-l3" / "benchmarks" / "steady.json"
    cells = json.loads(steady.read_text(encoding="utf-8"))["cells"]
    assert pytest.approx(1.96 * spread([[value for value, _ in cell["each"]] for cell in cells]), abs=0.001) == BETWEEN_RUNS
    assert spread([[100.0, 102.0], [5.0, 5.1]]) == pytest.approx(0.014, abs=1e-3), "0.02 between two runs, over the root of two"
    with pytest.raises(ValueError, match="no cell has two runs"):
        spread([[1.0]])


def test_the_run_that_is_thrown_away_has_requests_of_its_own(tmp_path):
    """Else the first repeat of the first condition would find them in the prefix cache."""
    seeds = []

    class Result:
        def metrics(self):
            return {"t": (1.0, "s")}

    def run(seed):
        seeds.append(seed)
        return Result()

    Study("00_test", None, tmp_path).measure([Condition("FCFS", {}, run)], repeats=3, seed=7)
    assert seeds[1:] == [7, 8, 9] and seeds[0] not in seeds[1:]


def test_a_study_without_an_engine_can_tell_of_a_model_and_one_with_an_engine_cannot(tmp_path):
    told = {"backend": "sim", "device": "RTX", "engine": "no vLLM"}
    study = Study("00_test", None, tmp_path, told=told)
    study.row("FCFS", {}, "t", 1.0, "s", 0)
    assert study.rows()[["backend", "device", "engine"]].to_dict("records") == [told]
    assert "modelled only" in study.claim("E12", median_of([1.0]), "why")
    with pytest.raises(ValueError, match="the engine says where its numbers come from"):
        Study("00_test", object(), tmp_path, told=told)
