"""When a curve has the shape that a claim of the paper names, and what is said of it."""

import pandas as pd
import pytest

from lab.stats import Ratio
from lab.studies import saturation, sharing, strangers, words


def curve(metric, by, values, **more):
    """Two equal repeats of a curve: value of ``by`` → value."""
    more = {"kernel": "paged", "policy": "FCFS", **more}
    rows = [{"metric": metric, by: at, "repeat": repeat, "value": value, **more} for repeat in (0, 1) for at, value in values.items()]
    return pd.DataFrame(rows)


def test_m3_is_a_drop_a_plain_and_a_collapse_where_the_cache_is_full():
    table = curve("throughput", "groups", {1: 200.0, 2: 100.0, 8: 95.0, 32: 40.0})
    shape = sharing.over_groups(table, [1, 2, 8, 32], cached=24)
    assert shape.ours.median == 2 and all(shape.parts.values()) and "holds 24.0" in shape.told
    assert list(sharing.over_groups(table, [1, 2, 8, 32], cached=24, until=2).parts.values()) == [True, False, True], (
        "one count is no plain"
    )
    assert not sharing.over_groups(table, [1, 2, 8], cached=24).parts["then less than half"], "nothing beyond was measured"
    gentle = curve("throughput", "groups", {1: 105.0, 2: 100.0, 8: 80.0, 32: 70.0})
    assert not any(sharing.over_groups(gentle, [1, 2, 8, 32], cached=24).parts.values())
    assert shape.finding == "Throughput: −50 % from 1 prefix group to 2, −5 % from 2 to 8, −58 % from 8 to 32, more than the KV cache holds"
    assert "none of more than 24 groups was run" in sharing.over_groups(table[table["groups"] <= 8], [1, 2, 8], cached=24).told
    with pytest.raises(ValueError, match="must have a count from 2 to 1.5"):
        sharing.over_groups(table, [1, 2, 8, 32], cached=1.5)


def test_m4_rises_smoothly_or_in_a_jump_or_not_at_all():
    assert all(sharing.over_shared(curve("throughput", "shared", {0.0: 10.0, 0.5: 17.0, 0.8: 24.0, 1.0: 30.0})).parts.values())
    assert list(sharing.over_shared(curve("throughput", "shared", {0.0: 10.0, 0.5: 11.0, 0.8: 12.0, 1.0: 30.0})).parts.values()) == [
        True,
        False,
    ]
    assert not sharing.over_shared(curve("throughput", "shared", {0.0: 10.0, 0.5: 9.0, 1.0: 30.0})).parts[
        "rises from each share to the next"
    ]


def test_m5_saturates_later_and_higher_when_homogeneous():
    one = curve("throughput", "batch", {4: 50.0, 8: 100.0, 16: 150.0, 32: 151.0}, groups=1)
    eight = curve("throughput", "batch", {4: 50.0, 8: 80.0, 16: 81.0, 32: 80.0}, groups=8)
    shape = saturation.over_batches(pd.concat([one, eight]), 8)
    assert all(shape.parts.values()) and "from batch 16 on, over 8 groups from 8 on" in shape.told
    turned = saturation.over_batches(pd.concat([one.assign(groups=8), eight.assign(groups=1)]), 8).parts
    assert turned == {"saturates before the maximum": True, "homogeneous later": False, "homogeneous higher": False}


def test_a_shape_is_judged_under_the_first_kernel_and_told_under_the_others():
    flat = dict.fromkeys((4, 8, 16), 10.0)
    runs = [
        curve("throughput", "batch", {4: 50.0, 8: 100.0, 16: 102.0}, groups=1, kernel="cascade"),
        curve("throughput", "batch", flat, groups=8, kernel="cascade"),
    ]
    runs += [curve("throughput", "batch", flat, groups=count, kernel="paged") for count in (1, 8)]
    shape = saturation.over_batches(pd.concat(runs), 8)
    assert all(shape.parts.values()) and shape.ours.median == 1.02
    assert shape.kernels == "This is under the cascade kernel; under the paged kernel the ratio is 1.00×, and 1 of 3 parts hold."
    assert shape.kernels in shape.found("M5.")


def test_m6_is_flat_over_levels():
    assert all(sharing.over_levels(curve("decode throughput", "levels", {1: 100.0, 2: 97.0, 4: 95.0})).parts.values())
    assert list(sharing.over_levels(curve("decode throughput", "levels", {1: 150.0, 2: 100.0, 4: 96.0})).parts.values()) == [True, False]
    assert sharing.over_levels(curve("decode throughput", "levels", {1: 100.0, 2: 97.0, 4: 95.0})).finding == (
        "No difference above the noise: −3 % from 1 level of the prefix tree to 2, −2 % from there to 4"
    )
    assert not any(sharing.over_levels(curve("decode throughput", "levels", {1: 108.0, 2: 100.0, 4: 92.0})).parts.values()), (
        "5 % is the noise"
    )


def test_m1_is_a_cliff_a_step_or_neither():
    def told(one: float, most: float) -> str:
        rows = [(0, "shuffled", 100.0), (1, "shuffled", one), (1, "side by side", one), (8, "shuffled", most), (8, "side by side", most)]
        table = pd.DataFrame([
            {"metric": "decode throughput", "divergent": count, "arranged": order, "value": value, "repeat": repeat, "kernel": "paged", "requests": 16}
            for count, order, value in rows for repeat in (0, 1, 2)
        ])  # fmt: skip
        return strangers.finding(table)

    assert told(50.0, 48.0) == "One stranger among 16 costs 50 %: a cliff; 8 cost 52 %"
    assert told(80.0, 60.0) == "One stranger among 16 costs 20 %: a step, but not one half; 8 cost 40 %"
    assert told(97.0, 60.0) == "One stranger among 16 costs 3 %: no cliff; 8 cost 40 %"
    assert told(101.0, 100.0) == "One stranger among 16 costs nothing: no cliff; 8 cost nothing"


def test_a_difference_is_told_only_where_it_shows():
    clear, spread, none = Ratio(1.5, 1.4, 1.6, 5), Ratio(1.5, 0.7, 1.6, 5), Ratio(1.02, 1.01, 1.03, 5)
    assert [words.differs(ratio) for ratio in (clear, spread, none)] == [True, False, False]
    assert words.speed(clear) == "1.50 times as fast" and words.speed(spread) == "1.50 [0.70, 1.60] times as fast"
    assert words.speed(none) == "as fast (1.02 times)"
    assert (words.loss(clear), words.loss(spread), words.loss(none)) == ("33 %", "nothing that shows", "2 %")
    assert (words.change(clear), words.change(spread), words.percent(-0.3)) == ("+50 %", "no change that shows", "−30 %")
    assert words.bullets(["one", "", "two"]) == "* one\n* two"
