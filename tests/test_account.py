"""The account: a law of step times is found again from the steps that it made, and foretells what it has not seen."""

import numpy as np
import pytest

from lab.account import FEATURES, FittedEngine, Law, Steps, best_discipline, fit, pairs, predict, steps_of
from lab.engines.arms import DISCIPLINES
from lab.instrument import Cell, Effort, measure
from lab.workloads import Loop

EFFORT = Effort(limit=1e6, turnovers=3, target=0.03)
MADE = Law(
    {("cascade", False): np.array([2.0, 0.3, 0.1, 0.5, 0.05, 1.0, 0.02, 0.01]), ("cascade", True): np.array([2.0, 0.3, 0.0, 0.5, 0, 1.0, 0.02, 0.01])},
    {"cascade": 0.02},
)  # fmt: skip
SEEN, UNSEEN = Loop(4, 2048, 16, mean_decode=16), Loop(2, 4096, 32, mean_decode=16)


def engine(law=MADE):
    return FittedEngine(law=law, kernel="cascade", max_batch=8)


def cells(loop, *arms):
    return [Cell(arm, "cascade", loop=loop) for arm in arms]


@pytest.fixture(scope="module")
def found():
    world = engine()
    taken = [*measure(world, cells(SEEN, "FCFS", "oracle (stop)"), EFFORT), *measure(world, cells(UNSEEN, "FCFS", "oracle (stop)"), EFFORT)]
    return fit(steps_of(one.found.whole, one.cell) for one in taken)


def test_the_law_is_found_again(found):
    assert found.milliseconds.keys() == MADE.milliseconds.keys() and found.noise["cascade"] < 0.06
    alike, mixed = np.array([1.0, 8, 16, 2, 2, 0, 0, 0]), np.array([1.0, 8, 16, 8, 12, 0, 0, 0])
    for features, shared in ((alike, True), (mixed, False)):
        assert found.seconds("cascade", features, shared) == pytest.approx(MADE.seconds("cascade", features, shared), rel=0.05)


def test_it_foretells_other_workloads(found):
    other = Loop(3, 3008, 24, mean_decode=16)
    wanted = cells(other, "FCFS", "oracle (order)", "oracle (stop)")
    came = predict(engine(), wanted, EFFORT)
    said = predict(engine(found), wanted, EFFORT)
    for cell in wanted:
        assert said[cell].throughput == pytest.approx(came[cell].throughput, rel=0.08)
    told = pairs({cell: [steady] for cell, steady in came.items()}, said)
    assert len(told) == 3 and all(pair.right for pair in told if pair.apart)


def test_the_best_discipline_is_one_of_the_simple_ones(found):
    name, rates = best_discipline(engine(found), Cell("FCFS", "cascade", loop=UNSEEN), Effort(limit=1e6, turnovers=1, target=0.2))
    assert rates.keys() == DISCIPLINES.keys() and rates[name] == max(rates.values())


def test_an_interrupted_step_tells_nothing():
    rng = np.random.default_rng(0)
    features = np.column_stack([np.ones(200), rng.integers(1, 32, 200), np.zeros((200, len(FEATURES) - 2))])
    seconds = (2 + 0.5 * features[:, 1]) / 1e3
    seconds[::50] *= 20
    law = fit([Steps("paged", seconds, features, np.zeros(200, bool))])
    assert law.milliseconds["paged", False][:2] == pytest.approx([2, 0.5], rel=0.01)


def test_no_steps_are_refused():
    with pytest.raises(ValueError, match="needs measured steps"):
        fit([])
