"""Batch formation without an engine."""

import pytest

from feather.agent import BatchState, NeverStop, Threshold
from feather.former import BatchFormer
from feather.options import Options


class Recorder:
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
    former.preempt("a2", "abc")
    assert former.next() is None, "a2 waits again and shares nothing with the batch that is now formed"
    for request in ("a3", "b0", "b1", "b2"):
        former.finish(request)
    assert fill(former) == ["a2"]


def test_no_share_of_stragglers_means_strict_batches():
    former = BatchFormer(Recorder(), straggler_share=0.0)
    for id_, path in (("a0", "abc"), ("a1", "abc"), ("b0", "xyz")):
        former.wait(id_, path)
    fill(former)
    former.finish("a0")
    assert former.next() is None


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
        ({"zzz": 1}, "unknown option 'zzz': the options are: policy, chunk_size"),
        ({"policy": "magic"}, "policy='magic' must be one of: never_stop, threshold"),
        ({"chunk_size": 0}, "chunk_size=0 must be from 1 to 4096"),
        ({"chunk_size": 512.0}, "chunk_size=512.0 must be of type int"),
        ({"chunk_size": True}, "chunk_size=True must be of type int"),
        ({"min_batch": 0}, "min_batch=0 must be at least 1"),
        ({"straggler_share": float("nan")}, "straggler_share=nan must be from 0 to 1"),
        ({"order": "random"}, "order='random' must be one of: cost, tip"),
    ],
)
def test_wrong_options_are_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        Options.from_mapping(options)
