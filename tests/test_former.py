"""Batch formation without an engine."""

import pytest

from feather.agent import BatchState, NeverStop, Policy, Threshold
from feather.former import BatchFormer
from feather.options import Options


class Recorder(Policy):
    """Stops wherever shared prefix would be lost, and remembers what it was asked."""

    def __init__(self):
        self.asked = []

    def decide(self, state):
        self.asked.append(state)
        return state.tip_loss == 0


def fill(former):
    started = []
    while (request := former.next()) is not None:
        former.start(request)
        started.append(request)
    return started


def test_a_policy_sees_the_batch_as_it_is_and_is_asked_once():
    policy = Recorder()
    former = BatchFormer(policy)
    for id_, path in (("a1", "abc"), ("b1", "xyz"), ("a2", "abcd")):
        former.wait(id_, path)
    assert fill(former) == ["a1", "a2"]
    former.next()
    former.next()
    assert policy.asked == [
        BatchState(batch_size=1, tip_loss=0, sharing=1, waiting=2),
        BatchState(batch_size=2, tip_loss=3, sharing=0, waiting=1),
    ]


def test_a_drained_batch_lets_the_next_one_in_and_its_stragglers_run_on():
    former = BatchFormer(Recorder(), straggler_share=0.5)
    for number in range(4):
        former.wait(f"a{number}", "abc")
    for number in range(3):
        former.wait(f"b{number}", "xyz")
    assert fill(former) == ["a0", "a1", "a2", "a3"]
    former.finish("a0")
    assert former.next() is None
    former.finish("a1")
    assert fill(former) == ["b0", "b1", "b2"]
    assert former.running == {"a2", "a3", "b0", "b1", "b2"} and former.tree.tip_depth == 3
    former.preempt("a2")
    assert former.next() == "a2", "it shares nothing with the batch that is now formed, but it had its turn"
    for request in ("a3", "b0", "b1", "b2"):
        former.finish(request)
    assert fill(former) == ["a2"]


class Committed(Recorder):
    commits = True


def test_who_is_overdue_in_a_committed_batch_begins_the_next_one():
    now = 0.0
    former = BatchFormer(Committed(), max_wait=10.0, clock=lambda: now)
    for id_, path in (("a0", "abc"), ("b0", "xyz"), ("b1", "xyz"), ("a1", "abc")):
        former.wait(id_, path)
    assert fill(former) == ["a0", "a1"], "a1 has taken the turn of b0"
    now = 11.0
    former.new_step()
    former.wait("a2", "abc")
    assert fill(former) == ["b0", "b1"]
    assert former.tree.tip_depth == 3, "those before have been retired: a mixed batch would have nothing to lose ever after"
    assert former.running == {"a0", "a1", "b0", "b1"}


def test_who_was_preempted_and_breaks_a_committed_batch_begins_the_next_one():
    former = BatchFormer(Committed())
    for id_, path in (("b0", "xyz"), ("a0", "abc"), ("a1", "abc")):
        former.wait(id_, path)
    former.start("b0")
    former.preempt("b0")
    for id_ in ("a0", "a1"):
        former.start(id_)
    former.new_step()
    assert fill(former) == ["b0"]
    assert former.tree.tip_depth == 3 and former.running == {"a0", "a1", "b0"}


def test_no_share_of_stragglers_means_strict_batches():
    former = BatchFormer(Recorder(), straggler_share=0.0)
    for id_, path in (("a0", "abc"), ("a1", "abc"), ("b0", "xyz")):
        former.wait(id_, path)
    fill(former)
    former.finish("a0")
    assert former.next() is None


def test_asking_changes_nothing_until_the_seed_starts():
    former = BatchFormer(Recorder(), straggler_share=0.5)
    for id_, path in (("a0", "abc"), ("a1", "abc"), ("b0", "xyz")):
        former.wait(id_, path)
    fill_two = [former.next(), former.start("a0"), former.next(), former.start("a1")]
    assert fill_two[::2] == ["a0", "a1"] and former.next() is None
    former.finish("a0")
    assert former.next() == "b0" and set(former.tree.active) == {"a1"}, "no row may be free for b0 yet"
    former.wait("a2", "abc")
    assert former.next() == "a2", "a relative that comes in time still joins"
    former.start("a2")
    assert former.running == {"a1", "a2"} == set(former.tree.active)


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.mark.parametrize("policy", [NeverStop(), Recorder()], ids=["never stop", "stops"])
def test_nobody_waits_long_past_its_turn_behind_a_hot_prefix_that_never_ends(policy):
    """Adversarial: each second one relative of the batch finishes and two more come; strangers come now and then."""
    clock = Clock()
    former = BatchFormer(policy, straggler_share=0.0, max_wait=5.0, clock=clock)
    waits, arrived, hot, cold, running = {}, {}, 0, 0, []
    for second in range(300):
        clock.now = float(second)
        for _ in range(2):
            former.wait(f"hot{hot}", "abc")
            arrived[f"hot{hot}"] = second
            hot += 1
        if second % 7 == 0:
            former.wait(f"cold{cold}", f"x{cold}")
            arrived[f"cold{cold}"] = second
            cold += 1
        while len(running) > 6 or second == 150 and running:
            former.finish(running.pop(0))
        former.new_step()
        while len(running) < 8 and (request := former.next()) is not None:
            former.start(request)
            running.append(request)
            waits[request] = second - arrived[request]
    strangers = [waits[name] for name in waits if name.startswith("cold")]
    fair = [wait for name, wait in waits.items() if name.startswith("hot")]
    assert len(strangers) >= 20 and max(strangers) <= max(fair) + 5.0 + 2


def test_a_long_queue_for_everybody_is_still_served_in_tree_order():
    clock = Clock()
    former = BatchFormer(NeverStop(), max_wait=1.0, clock=clock)
    for number in range(40):
        former.wait(f"{number % 4}.{number}", [f"{number % 4}{letter}" for letter in "abc"])
    clock.now = 100.0  # everyone has waited long, but it was nobody's turn yet
    first = [former.next()]
    for _ in range(9):
        former.start(first[-1])
        first.append(former.next())
    assert {name[0] for name in first} == {"0"}


def test_a_preempted_request_goes_first_again():
    former = BatchFormer(NeverStop())
    for id_, path in (("a", "abc"), ("b", "xyz"), ("c", "abc")):
        former.wait(id_, path)
    for id_ in ("a", "b"):
        former.start(id_)
    former.preempt("b")
    assert former.next() == "b"


def test_requests_that_are_deferred_again_and_again_use_up_nobodys_turn():
    clock = Clock()
    former = BatchFormer(NeverStop(), max_wait=1.0, clock=clock)
    for number in range(12):
        former.wait(number, "ab" if number % 2 else "xy")
    former.start(former.next())
    for _ in range(50):
        clock.now += 1
        former.new_step()
        former.next()
        former.wait(2, "xy", former.cancel(2))
    assert former.next() == 2, "the batch's relative, since nobody else has had a turn that passed"


def test_the_threshold_counts_tokens_load_and_the_floor():
    rule = Threshold(chunk_size=50)
    assert rule.decide(BatchState(batch_size=9, tip_loss=5, sharing=0, waiting=1))
    assert not rule.decide(BatchState(batch_size=9, tip_loss=6, sharing=0, waiting=1))
    assert rule.decide(BatchState(batch_size=9, tip_loss=7, sharing=0, waiting=10))
    assert not rule.decide(BatchState(batch_size=9, tip_loss=8, sharing=0, waiting=10))
    assert rule.decide(BatchState(batch_size=3, tip_loss=99, sharing=0, waiting=10))
    assert NeverStop().decide(BatchState(batch_size=500, tip_loss=99, sharing=0, waiting=1))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"polcy": "threshold"}, "unknown option 'polcy': did you mean 'policy'"),
        ({"zzz": 1}, "unknown option 'zzz': the options are: policy, guard"),
        ({"policy": "magic"}, "policy='magic' must be one of: never_stop, threshold"),
        ({"chunk_size": 0}, "chunk_size=0 must be from 1 to 4096"),
        ({"chunk_size": 512.0}, "chunk_size=512.0 must be of type int"),
        ({"chunk_size": True}, "chunk_size=True must be of type int"),
        ({"min_batch": 0}, "min_batch=0 must be at least 1"),
        ({"max_wait": -1.0}, "max_wait=-1.0 must be at least 0"),
        ({"straggler_share": float("nan")}, "straggler_share=nan must be from 0 to 1"),
        ({"order": "random"}, "order='random' must be one of: cost, tip"),
    ],
)
def test_wrong_options_are_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        Options.from_mapping(options)
