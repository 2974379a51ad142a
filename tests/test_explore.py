"""The notebook that is dragged: what it works out, and that moving a slider redraws it, without a browser."""

from dataclasses import replace

import numpy as np
import pytest

from lab.studies import explore

SMALL = explore.Setting(groups=3, prefix_tokens=4000, batch=16, decode_tokens=(4, 12))


def test_every_policy_serves_the_same_requests_within_the_batch():
    for course in explore.courses(SMALL).values():
        held = course.running + course.waiting
        assert course.running.sum(axis=1).max() <= SMALL.batch and (course.running.sum(axis=1) > 0).all()
        assert held.sum(axis=1).max() == SMALL.traffic.in_system
        assert (np.diff(course.began) > 0).all() and len(course.began) == len(held) + 1
    asked = {round(course.throughput * course.began[-1]) for course in explore.courses(SMALL).values()}
    assert len(asked) == 1, "the same tokens are decoded under every policy"


def test_strict_stopping_holds_one_prefix_and_first_come_first_served_mixes_them():
    found = explore.courses(SMALL)
    groups = {name: (course.running > 0).sum(axis=1) for name, course in found.items()}
    assert groups["Feather (strict stop)"].max() == 1 and groups["FCFS"].max() == SMALL.groups
    alone = explore.courses(replace(SMALL, groups=1))
    assert len({course.throughput for course in alone.values()}) == 1, "with one prefix there is nothing to decide"


def test_a_look_is_found_by_its_second():
    course = explore.Course(1.0, np.array([0.0, 1.0, 3.0]), np.zeros((2, 1)), np.zeros((2, 1)))
    assert [course.at(second) for second in (0.0, 0.9, 1.0, 2.9, 3.0)] == [0, 0, 1, 1, 1]


def test_what_would_not_fit_the_kv_cache_is_said():
    assert explore.does_not_fit(SMALL) == ""
    needed = replace(SMALL, groups=16, prefix_tokens=16_000)
    assert f"{needed.traffic.kv_tokens:,} tokens of KV cache" in explore.does_not_fit(needed)


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"groups": 0}, "groups=0 must be at least 1"),
        ({"common": 1.0}, "common=1.0 must be from 0 to below 1"),
        ({"decode_tokens": (8, 4)}, "decode_tokens=(8, 4) must be at least 1, the lesser first"),
        ({"kernel": "flash"}, "kernel='flash' must be one of: paged, cascade, packed"),
        ({"device": "cpu"}, "device='cpu' must be one of: rtx-6000-ada"),
    ],
)
def test_a_setting_that_makes_no_queue_is_named(wrong, message):
    with pytest.raises(ValueError) as error:
        replace(SMALL, **wrong)
    assert message in str(error.value)


def test_moving_a_slider_redraws_what_moving_it_back_restores():
    controls, note, shown = explore.panel(SMALL).children
    groups, moment = controls.children[0], controls.children[-1]
    first = shown.value
    assert bytes(first).startswith(b"\x89PNG") and first == explore.picture(SMALL, moment.value)
    groups.value = 2
    assert shown.value == explore.picture(replace(SMALL, groups=2), moment.value) != first
    groups.value = SMALL.groups
    assert shown.value == first
    moment.value = 0.9
    assert shown.value != first and "Worked out and drawn in" in note.value


def test_the_opening_picture_is_told_from_what_was_worked_out(tmp_path):
    study = explore.study("91_explore", SMALL, tmp_path)
    explore.keep(study, SMALL)
    assert (tmp_path / "figures" / "explore.png").exists()
    rates = {name: course.throughput for name, course in explore.courses(SMALL).items()}
    finding, told = explore.headline(SMALL)
    assert "one run each, cascade attention" in told
    assert f"{max(rates.values()) / rates['FCFS']:.2f}× FCFS" in finding or "No policy" in finding
