"""The rules that the paper's authors published, at their edges."""

import math

import pytest
from toy import all_or_nothing, by_rows, closed_loop

from feather.policies import Step
from feather.request import Request
from lab.engines.published import RULES, PlainTree, RadixCost, Rule, UpperConfidenceBandit, make_former
from lab.policies import BatchState


def state(size=20, loss=0, sharing=0):
    return BatchState(size, loss, sharing, waiting=50)


def rule(sharing_after=0):
    made = Rule()
    made.floor, made.sharing_after = 10, sharing_after
    return made


@pytest.mark.parametrize(
    "loss, sharing, admitted", [(5, 0, True), (6, 0, False), (6, 9, False), (6, 10, True), (7, 10, True), (8, 99, False)]
)
def test_five_chunks_may_be_lost_or_seven_where_ten_share_what_is_left(loss, sharing, admitted):
    assert rule(sharing).decide(state(loss=loss)) is admitted


def test_the_floor_rises_with_what_costs_nothing_up_to_ten_and_never_falls():
    made = Rule()
    made.sharing_after = 0
    assert made.floor == 1 and not made.decide(state(size=1, loss=6))
    for _ in range(3):
        assert made.decide(state(size=1))
    assert made.floor == 4 and made.decide(state(size=3, loss=99)) and not made.decide(state(size=4, loss=99))
    assert made.decide(state(loss=3)) and made.floor == 4, "that cost something"
    for _ in range(50):
        made.decide(state())
    assert made.floor == 10 and not made.decide(state(size=10, loss=99))


def asked(rule, *paths):
    """The former after it was asked who joins the request with the first path."""
    former, _ = make_former(rule)
    for number, path in enumerate(paths):
        former.insert(Request(number, path))
    former.add_to_batch(former.next())
    former.next()
    return former


def test_what_is_seen_is_the_tip_as_it_would_be_and_nobody_shares_the_root():
    former = asked("rule", "abcd", "abxy", "abzz")
    assert (former.policy.tip, former.policy.sharing_after, former.policy.cost) == (4, 2, 2 * 50)
    former = asked("rule", "abcd", "wxyz", "wxyy")
    assert (former.policy.tip, former.policy.sharing_after, former.policy.cost) == (4, 0, 4 * 50)


def test_the_two_rules_on_cost_count_tokens_outside_the_working_set():
    for made, most in ((RadixCost(), 50), (PlainTree(), 500)):
        made.cost = most
        assert made.decide(state(loss=99))
        made.cost = most + 1
        assert not made.decide(state())


def test_the_bandit_tries_both_and_then_bounds_from_above():
    made = UpperConfidenceBandit()
    made.tip = 8
    assert made.decide(state()) and not made.table, "it costs nothing"
    mixes = state(size=17, loss=9, sharing=13)
    for reward in (100.0, 900.0):
        made.decide(mixes)
        made.feedback(Step(tokens=100, seconds=100 / reward))
    (where, actions), *others = made.table.items()
    assert where == (4, 5, 3) and not others and actions == {True: [1, 100], False: [1, 900]}
    assert not made.decide(mixes)
    made.feedback(Step(tokens=100, seconds=100 / 100))
    assert not made.decide(mixes), "500 + 200 √(ln 3 / 2) is more than 100 + 200 √(ln 3)"
    bounds = {add: total / times + 200 * math.sqrt(math.log(3) / times) for add, (times, total) in actions.items()}
    assert bounds[False] > bounds[True]
    made.tip = 0
    made.decide(state(size=99, loss=0, sharing=40))
    assert (10, 0, 0) in made.table, "without a tip it decides, and nobody shares one"


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("law", [all_or_nothing, by_rows])
def test_all_serve_a_queue_that_never_ends(name, law):
    engine = closed_loop(lambda **facts: make_former(name, **facts)[0], law, seconds=30.0)
    assert engine.tokens > 1000
