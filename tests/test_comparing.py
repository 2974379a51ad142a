"""What notebooks say of their runs: ratios to FCFS, and sentences that have to be true of any run."""

import pandas as pd
import pytest

from lab.stats import Ratio
from lab.studies import comparing, groups, inside, lengths, rates, words
from lab.studies.study import Study

SURE, UNSURE = Ratio(1.5, 1.4, 1.6, 5), Ratio(1.5, 0.9, 1.6, 5)


def rows(metric, values, repeats=2, **more):
    """Equal repeats of a metric under each policy of ``values``."""
    return pd.DataFrame([
        {"metric": metric, "unit": "u", "policy": policy, "repeat": repeat, "value": value, "kernel": "cascade", **more}
        for repeat in range(repeats) for policy, value in values.items()
    ])  # fmt: skip


def runs(throughput, waits, hits=None, **more):
    hits = hits or dict.fromkeys(throughput, 1.0)
    tables = {"throughput": throughput, comparing.P99: waits, "prefix hits": hits, "mean batch": dict.fromkeys(throughput, 4.0)}
    return pd.concat([rows(metric, values, **more) for metric, values in tables.items()])


def test_a_ratio_within_noise_is_told_as_one():
    assert words.told(SURE) == "1.50×" and words.told(UNSURE) == "1.50× (within noise)"
    assert words.gains(SURE) and not words.gains(UNSURE) and not words.gains(Ratio(0.5, 0.4, 0.6, 5))


@pytest.mark.parametrize("values, told", [
    ([1.0], "stay"), ([1.0, 1.04, 1.0], "stay"), ([1.0, 1.2, 1.5], "rise"), ([1.5, 1.2, 1.0], "fall"), ([1.0, 2.0, 1.0], "go up and down"),
    ([1.0, 1.2, 1.18, 1.5], "rise"),
])  # fmt: skip
def test_a_trend_goes_by_more_than_noise(values, told):
    assert words.trend(Ratio(value, value, value, 1) for value in values) == told


def test_the_best_is_neither_the_base_nor_an_oracle():
    table = pd.concat(
        [runs({"FCFS": 1.0, "Feather": value, "oracle (stop)": 9.0}, {}, groups=count) for count, value in ((1, 1.0), (4, 1.3))]
    )
    assert comparing.candidates(table) == ["Feather"]
    policy, count, ratio = comparing.best(table, "groups")
    assert (policy, count, ratio.median) == ("Feather", 4, 1.3)


def test_a_setting_that_varies_is_not_told_as_one():
    table = pd.DataFrame({"requests": [8, 8], "groups": [1, 2], "decode": [[1, 2], [1, 2]]})
    assert comparing.settings(table, "requests", "decode") == [8, [1, 2]]
    with pytest.raises(ValueError, match="groups has 2 values, not one: 1, 2"):
        comparing.settings(table, "groups")


def arms(feather, order, stop):
    return {"FCFS": 1.0, "Feather": feather, "oracle (order)": order, "oracle (stop)": stop}


def test_what_was_found_of_groups_follows_the_rows():
    def found(order, stop, hits=1.0):
        table = pd.concat([
            runs(arms(1.0, 1.0, 1.0), arms(1.0, 1.0, 1.0), groups=1),
            runs(arms(order, order, stop), arms(0.5, 0.5, 0.5), arms(hits, hits, hits), groups=8),
        ])  # fmt: skip
        cases = pd.concat([runs(arms(1.2, 1.2, 1.2), {}, case="equal"), runs(arms(1.0, 1.0, 1.0), {}, case="unequal")])
        return groups.found(table, cases, runs({"FCFS": 1.0, "Feather": 1.0}, {}))

    assert "here order is worth more" in found(order=1.6, stop=1.2) and "here stopping is worth more" in found(order=1.2, stop=1.6)
    assert "no difference between the two" in found(order=1.3, stop=1.3)
    assert "Evictions" in found(order=1.6, stop=1.2, hits=0.5) and "Evictions" not in found(order=1.6, stop=1.2)


def test_a_rate_above_the_capacity_is_told_as_a_transient():
    table = pd.concat([runs({"FCFS": 1.0, "Feather": 1.0}, {"FCFS": 1.0, "Feather": 1.0}, requests_per_s=rate) for rate in (5.0, 20.0)])
    assert "At 2.0 times the capacity the queue grows" in rates.found(table, 10.0, "Feather")
    assert "No rate here is above it" in rates.found(table, 30.0, "Feather")


def test_what_was_found_of_kernels_follows_the_rows():
    table = pd.concat([
        runs({"FCFS": 10.0, "Feather": 15.0, "Feather (never stop)": 11.0}, {}, kernel="cascade", groups=8),
        runs({"FCFS": 10.0, "Feather": 10.0, "Feather (never stop)": 10.0}, {}, kernel="paged", groups=8),
        runs({"FCFS": 16.0, "Feather": 17.6, "Feather (never stop)": 24.0}, {}, kernel="packed", groups=8),
    ])  # fmt: skip
    told = comparing.found_by_kernel(table, "8 groups", groups=8)
    assert "1.50× under cascade (Feather), 1.00× (within noise) under paged" in told and "1.50× under packed (Feather (never stop))" in told
    assert told.endswith("FCFS itself, over FCFS under cascade: 1.00× under paged and 1.60× under packed.")
    assert comparing.found_by_kernel(comparing.judged(table), "8 groups", groups=8) == ""
    assert comparing.kernels(table, lambda part: comparing.over(part, "Feather")) == (
        " This is under the cascade kernel; under the paged kernel it is 1.00×; under the packed kernel it is 1.10×."
    )


def test_a_kernel_that_shares_prefixes_by_itself_is_measured_or_asked_for(tmp_path, capsys):
    parts = [(name, {"FCFS": fcfs, "Feather": feather}) for name, fcfs, feather in (("cascade", 10.0, 15.0), ("packed", 16.0, 20.0))]
    table = pd.concat([runs(rates, rates, kernel=name, groups=8) for name, rates in parts])
    study = Study("20_prefix_groups", None, tmp_path)
    groups._verdict_on_packing(study, table, "Feather")
    assert "E7: paper equal or better, here 0.94 ×" in (said := capsys.readouterr().out) and "the same packed 1.25×" in said
    groups._verdict_on_packing(study, comparing.judged(table), "Feather")
    assert "E7: not run here" in capsys.readouterr().out


def test_the_second_best_is_no_policy_of_feathers():
    table = runs({"FCFS": 1.0, "LPM": 1.4, "Feather": 1.5, "Feather (never stop)": 2.0}, {}, decode_tokens=24)
    policy, ratio = lengths.second_best(table, "Feather", 24)
    assert policy == "LPM" and ratio.median == pytest.approx(1.5 / 1.4)


def test_chunk_sizes_are_compared_with_512(tmp_path):
    with pytest.raises(ValueError, match=r"chunk_sizes=\[1, 64\] must hold 512"):
        inside.chunks(Study("25_test", None, tmp_path), [1, 64], 1, requests=1, decode_tokens=(1, 2), batch=1, groups=1, prefix_tokens=1)
    table = pd.concat(
        [rows("throughput", {"Feather (never stop)": value}, chunk_size=size) for size, value in ((1, 0.8), (512, 1.0), (1024, 1.1))]
    )
    size, worst = inside.worst_chunk(table)
    assert size == 1 and worst.median == 0.8
