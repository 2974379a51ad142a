"""When a curve has the shape that a claim of the paper names."""

import pandas as pd
import pytest

from lab.studies import shapes


def curve(metric, by, values, **more):
    """Two equal repeats of a curve: value of ``by`` → value."""
    rows = [{"metric": metric, by: at, "repeat": repeat, "value": value, **more} for repeat in (0, 1) for at, value in values.items()]
    return pd.DataFrame(rows)


def test_m3_is_a_drop_a_plain_and_a_collapse_where_the_cache_is_full():
    table = curve("throughput", "groups", {1: 200.0, 2: 100.0, 8: 95.0, 32: 40.0})
    shape = shapes.over_groups(table, [1, 2, 8, 32], cached=24)
    assert shape.ours.median == 2 and all(shape.parts.values()) and "holds 24.0" in shape.told
    assert list(shapes.over_groups(table, [1, 2, 8, 32], cached=24, until=2).parts.values()) == [True, False, True], "one count is no plain"
    assert not shapes.over_groups(table, [1, 2, 8], cached=24).parts["then less than half"], "nothing beyond was measured"
    gentle = curve("throughput", "groups", {1: 105.0, 2: 100.0, 8: 80.0, 32: 70.0})
    assert not any(shapes.over_groups(gentle, [1, 2, 8, 32], cached=24).parts.values())
    with pytest.raises(ValueError, match="must have a count from 2 to 1.5"):
        shapes.over_groups(table, [1, 2, 8, 32], cached=1.5)


def test_m4_rises_smoothly_or_in_a_jump_or_not_at_all():
    assert all(shapes.over_shared(curve("throughput", "shared", {0.0: 10.0, 0.5: 17.0, 0.8: 24.0, 1.0: 30.0})).parts.values())
    assert list(shapes.over_shared(curve("throughput", "shared", {0.0: 10.0, 0.5: 11.0, 0.8: 12.0, 1.0: 30.0})).parts.values()) == [
        True,
        False,
    ]
    assert not shapes.over_shared(curve("throughput", "shared", {0.0: 10.0, 0.5: 9.0, 1.0: 30.0})).parts[
        "rises from each share to the next"
    ]


def test_m5_saturates_later_and_higher_when_homogeneous():
    one = curve("decode throughput", "batch", {4: 50.0, 8: 100.0, 16: 150.0, 32: 151.0}, groups=1)
    eight = curve("decode throughput", "batch", {4: 50.0, 8: 80.0, 16: 81.0, 32: 80.0}, groups=8)
    shape = shapes.over_batches(pd.concat([one, eight]), 8)
    assert all(shape.parts.values()) and "from batch 16 on, over 8 groups from 8 on" in shape.told
    turned = shapes.over_batches(pd.concat([one.assign(groups=8), eight.assign(groups=1)]), 8).parts
    assert turned == {"saturates before the maximum": True, "homogeneous later": False, "homogeneous higher": False}


def test_m6_is_flat_over_levels():
    assert all(shapes.over_levels(curve("decode throughput", "levels", {1: 100.0, 2: 97.0, 4: 95.0})).parts.values())
    assert list(shapes.over_levels(curve("decode throughput", "levels", {1: 150.0, 2: 100.0, 4: 95.0})).parts.values()) == [True, False]
