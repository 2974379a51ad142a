"""Batch formation without an engine."""

import random

import pytest

from feather.admission import Admission
from feather.former import BatchFormer, make_former
from feather.options import Options
from feather.policies import NeverStop
from feather.request import Request
from lab.policies import BatchState, Stopping, StoppingFormer, Threshold


class Recorder(Stopping):
    """Stops wherever shared prefix would be lost, and remembers what it was asked."""

    def __init__(self, straggler_share=0.5):
        self.asked, self.straggler_share = [], straggler_share

    def decide(self, state):
        self.asked.append(state)
        return state.tip_loss == 0


def fill(former):
    started = []
    while (request := former.next()) is not None:
        former.add_to_batch(request)
        started.append(request)
    return started


def test_a_policy_sees_the_batch_as_it_is_and_is_asked_once():
    policy = Recorder()
    former = StoppingFormer(policy)
    for id_, path in (("a1", "abc"), ("b1", "xyz"), ("a2", "abcd")):
        former.insert(Request(id_, path))
    assert fill(former) == ["a1", "a2"]
    former.next()
    former.next()
    assert policy.asked == [
        BatchState(batch_size=1, tip_loss=0, sharing=1, waiting=2),
        BatchState(batch_size=2, tip_loss=3, sharing=0, waiting=1),
    ]


def test_a_drained_batch_lets_the_next_one_in_and_its_stragglers_run_on():
    former = StoppingFormer(Recorder())
    for number in range(4):
        former.insert(Request(f"a{number}", "abc"))
    for number in range(3):
        former.insert(Request(f"b{number}", "xyz"))
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
    former = StoppingFormer(Committed(), max_wait=10.0, clock=lambda: now)
    for id_, path in (("a0", "abc"), ("b0", "xyz"), ("b1", "xyz"), ("a1", "abc")):
        former.insert(Request(id_, path))
    assert fill(former) == ["a0", "a1"], "a1 has taken the turn of b0"
    now = 11.0
    former.new_step()
    former.insert(Request("a2", "abc"))
    assert fill(former) == ["b0", "b1"]
    assert former.tree.tip_depth == 3, "those before have been retired: a mixed batch would have nothing to lose ever after"
    assert former.running == {"a0", "a1", "b0", "b1"}


def test_who_was_preempted_and_breaks_a_committed_batch_begins_the_next_one():
    former = StoppingFormer(Committed())
    for id_, path in (("b0", "xyz"), ("a0", "abc"), ("a1", "abc")):
        former.insert(Request(id_, path))
    former.add_to_batch("b0")
    former.preempt("b0")
    for id_ in ("a0", "a1"):
        former.add_to_batch(id_)
    former.new_step()
    assert fill(former) == ["b0"]
    assert former.tree.tip_depth == 3 and former.running == {"a0", "a1", "b0"}


def test_no_share_of_stragglers_means_strict_batches():
    former = StoppingFormer(Recorder(straggler_share=0.0))
    for id_, path in (("a0", "abc"), ("a1", "abc"), ("b0", "xyz")):
        former.insert(Request(id_, path))
    fill(former)
    former.finish("a0")
    assert former.next() is None


def test_asking_changes_nothing_until_the_seed_starts():
    former = StoppingFormer(Recorder())
    for id_, path in (("a0", "abc"), ("a1", "abc"), ("b0", "xyz")):
        former.insert(Request(id_, path))
    fill_two = [former.next(), former.add_to_batch("a0"), former.next(), former.add_to_batch("a1")]
    assert fill_two[::2] == ["a0", "a1"] and former.next() is None
    former.finish("a0")
    assert former.next() == "b0" and set(former.tree.active) == {"a1"}, "no row may be free for b0 yet"
    former.insert(Request("a2", "abc"))
    assert former.next() == "a2", "a relative that comes in time still joins"
    former.add_to_batch("a2")
    assert former.running == {"a1", "a2"} == set(former.tree.active)


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.mark.parametrize("policy", [NeverStop(), Recorder(straggler_share=0.0)], ids=["never stop", "stops"])
def test_nobody_waits_long_past_its_turn_behind_a_hot_prefix_that_never_ends(policy):
    """Adversarial: each second one relative of the batch finishes and two more come; strangers come now and then."""
    clock = Clock()
    former = make_former(policy, max_wait=5.0, clock=clock)
    waits, arrived, hot, cold, running = {}, {}, 0, 0, []
    for second in range(300):
        clock.now = float(second)
        for _ in range(2):
            former.insert(Request(f"hot{hot}", "abc"))
            arrived[f"hot{hot}"] = second
            hot += 1
        if second % 7 == 0:
            former.insert(Request(f"cold{cold}", f"x{cold}"))
            arrived[f"cold{cold}"] = second
            cold += 1
        while len(running) > 6 or second == 150 and running:
            former.finish(running.pop(0))
        former.new_step()
        while len(running) < 8 and (request := former.next()) is not None:
            former.add_to_batch(request)
            running.append(request)
            waits[request] = second - arrived[request]
    strangers = [waits[name] for name in waits if name.startswith("cold")]
    fair = [wait for name, wait in waits.items() if name.startswith("hot")]
    assert len(strangers) >= 20 and max(strangers) <= max(fair) + 5.0 + 2


def test_a_long_queue_for_everybody_is_still_served_in_tree_order():
    clock = Clock()
    former = BatchFormer(NeverStop(), max_wait=1.0, clock=clock)
    for number in range(40):
        former.insert(Request(f"{number % 4}.{number}", [f"{number % 4}{letter}" for letter in "abc"]))
    clock.now = 100.0  # everyone has waited long, but it was nobody's turn yet
    first = [former.next()]
    for _ in range(9):
        former.add_to_batch(first[-1])
        first.append(former.next())
    assert {name[0] for name in first} == {"0"}


def bursty(saturated_after=4.0, policy=None):
    """A queue has ended, and two of "a" run; b0 and a2 have come since, together, and a3 after them."""
    former = make_former(policy or NeverStop(), saturated_after=saturated_after)
    for id_ in ("a0", "a1"):
        former.insert(Request(id_, "abc"))
    fill(former)
    formed = former.formed()
    assert policy or not formed.contended
    for id_, path in (("b0", "xyz"), ("a2", "abc")):
        former.insert(Request(id_, path))
    former.new_step()
    assert former.next() == ("b0" if policy is None and saturated_after else "a2")
    former.insert(Request("a3", "abc"))
    assert former.waiting == 3
    return former


def test_a_burst_is_served_in_order_of_arrival():
    assert fill(bursty()) == ["b0", "a2", "a3"]
    assert fill(bursty(saturated_after=0.0)) == ["a2", "a3", "b0"]
    assert bursty().formed().burst and not bursty(saturated_after=0.0).formed().burst


def test_a_queue_of_so_many_batches_is_no_burst_and_relatives_overtake_in_it():
    former = bursty()
    former.insert(Request("b1", "xyz"))
    for number in range(3):
        assert former.formed().burst, f"{4 + number} of 8"
        former.insert(Request(f"c{number}", "uvw"))
    former.insert(Request("a4", "abc"))
    assert not former.formed().burst
    former.new_step()
    assert fill(former)[0] == "a2"
    assert not former.formed().contended
    former.insert(Request("d1", "abc"))
    assert former.formed().burst


def test_a_full_batch_whose_queue_is_empty_for_a_moment_ends_no_queue():
    former = BatchFormer(NeverStop(), saturated_after=4.0, max_batch=2)
    for number in range(9):
        former.insert(Request(number, "abc"))
    for number in range(9):
        former.add_to_batch(number)
        former.formed()
        if number:
            former.finish(number)
    former.insert(Request(9, "abc"))
    former.add_to_batch(9)
    assert former.formed().contended
    former.insert(Request(10, "abc"))
    assert not former.formed().burst


def test_a_queue_of_lower_priority_is_a_queue():
    admission = Admission(BatchFormer(NeverStop(), saturated_after=4.0), by_priority=True)
    for key, priority in (("urgent", 0), ("patient", 1)):
        admission.insert(Request(key, "abc", priority))
    admission.add_to_batch(admission.next(busy=False))
    formed = admission.formed()
    assert formed.contended and not formed.burst, "patient waits, although the former has not seen it yet"
    admission.add_to_batch(admission.next(busy=True))
    assert not admission.formed().contended


def test_an_urgent_request_makes_no_burst_of_an_overload():
    admission = Admission(BatchFormer(NeverStop(), saturated_after=1.0, max_batch=2), by_priority=True)
    for key in range(4):
        admission.insert(Request(key, "abc", 1))
    for _ in range(2):
        admission.add_to_batch(admission.next(busy=False))
    assert not admission.formed().burst
    admission.former._bursts._admitted = 0  # as though a queue had ended
    admission.insert(Request("urgent", "xyz", 0))
    admission.next(busy=True)
    assert not admission.formed().burst, "three wait, one of them offered"


def test_nobody_of_a_lower_priority_waits_for_ever_behind_relatives_and_urgent_ones():
    clock = Clock()
    admission = Admission(BatchFormer(NeverStop(), max_wait=5.0, clock=clock), by_priority=True)
    admission.insert(Request("cold", "xyz", 1))
    started, running = {}, []
    for second in range(60):
        clock.now = float(second)
        for name, priority in ((f"hot{second}", 1), (f"hot{second}b", 1), (f"urgent{second}", 0)):
            admission.insert(Request(name, "abc", priority))
        admission.former.new_step()
        for _ in range(2):
            key = admission.next(busy=bool(running))
            admission.add_to_batch(key)
            started[key] = second
            running.append(key)
        while len(running) > 1:
            admission.finish(running.pop(0))
        admission.formed()
    assert "cold" in started and started["cold"] < 20


def test_an_idle_engine_that_steps_ends_no_queue():
    former = BatchFormer(NeverStop(), saturated_after=4.0)
    former.formed()
    for number in range(3):
        former.insert(Request(number, "abc"))
    former.add_to_batch(0)
    assert not former.formed().burst


def test_the_first_queue_is_no_burst_since_none_has_ended_yet():
    former = BatchFormer(NeverStop(), saturated_after=4.0)
    for id_, path in (("a0", "abc"), ("b0", "xyz"), ("a1", "abc")):
        former.insert(Request(id_, path))
    assert not former.formed().burst
    former.add_to_batch("a0")
    former.insert(Request("a2", "abc"))
    assert fill(former) == ["a1", "a2", "b0"]


def test_a_policy_that_stops_has_all_that_waits_before_it():
    assert fill(bursty(policy=Recorder())) == ["a2", "a3"]


@pytest.mark.parametrize("seed", range(20))
def test_whatever_happens_everybody_is_served_once(seed):
    draw, clock = random.Random(seed), Clock()
    former = BatchFormer(NeverStop(), max_wait=4.0, max_batch=4, saturated_after=draw.choice([0.0, 5.0]), clock=clock)
    waiting, running, done = set(), set(), []
    for number in range(300):
        clock.now += draw.random()
        former.new_step()
        if number < 200:
            former.insert(Request(number, draw.choice(["abc", "abd", "xyz"])))
            waiting.add(number)
        if waiting and draw.random() < 0.2:
            one = draw.choice(sorted(waiting))
            former.insert(former.remove(one))
        if running and draw.random() < 0.1:
            one = draw.choice(sorted(running))
            former.preempt(one)
            running.remove(one)
            waiting.add(one)
        while len(running) < 4 and (one := former.next()) is not None:
            former.add_to_batch(one)
            waiting.remove(one)
            running.add(one)
        assert former.waiting == len(waiting) and former.running == running
        if running and (draw.random() < 0.6 or number >= 200):
            for one in sorted(running)[:2]:
                former.finish(one)
                running.remove(one)
                done.append(one)
        former.formed()
    assert sorted(done) == list(range(200)) and not former.tree.nodes() and not former.waiting


def test_a_preempted_request_goes_first_again():
    former = BatchFormer(NeverStop())
    for id_, path in (("a", "abc"), ("b", "xyz"), ("c", "abc")):
        former.insert(Request(id_, path))
    for id_ in ("a", "b"):
        former.add_to_batch(id_)
    former.preempt("b")
    assert former.next() == "b"


def test_requests_that_are_deferred_again_and_again_use_up_nobodys_turn():
    clock = Clock()
    former = BatchFormer(NeverStop(), max_wait=1.0, clock=clock)
    for number in range(12):
        former.insert(Request(number, "ab" if number % 2 else "xy"))
    former.add_to_batch(former.next())
    for _ in range(50):
        clock.now += 1
        former.new_step()
        former.next()
        former.insert(former.remove(2))
    assert former.next() == 2, "the batch's relative, since nobody else has had a turn that passed"


def test_the_threshold_counts_tokens_load_and_the_floor():
    rule = Threshold(chunk_size=50)
    assert rule.decide(BatchState(batch_size=9, tip_loss=5, sharing=0, waiting=1))
    assert not rule.decide(BatchState(batch_size=9, tip_loss=6, sharing=0, waiting=1))
    assert rule.decide(BatchState(batch_size=9, tip_loss=7, sharing=0, waiting=10))
    assert not rule.decide(BatchState(batch_size=9, tip_loss=8, sharing=0, waiting=10))
    assert rule.decide(BatchState(batch_size=3, tip_loss=99, sharing=0, waiting=10))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"polcy": "threshold"}, "unknown option 'polcy': did you mean 'policy'"),
        ({"zzz": 1}, "unknown option 'zzz': the options are: policy, checkpoint"),
        ({"policy": "magic"}, "policy='magic' must be one of: never_stop, planner"),
        ({"chunk_size": 0}, "chunk_size=0 must be from 1 to 4096"),
        ({"chunk_size": 512.0}, "chunk_size=512.0 must be of type int"),
        ({"chunk_size": True}, "chunk_size=True must be of type int"),
        ({"policy": "lab.policies.Threshold", "min_batch": 0}, "min_batch=0 must be at least 1"),
        ({"saturated_after": -1.0}, "saturated_after=-1.0 must be at least 0"),
        ({"max_wait": -2.0}, "max_wait=-2.0 must be at least -1"),
        ({"policy": "lab.policies.Threshold", "straggler_share": float("nan")}, "straggler_share=nan must be from 0 to 1"),
        ({"order": "random"}, "order='random' must be one of: cost, tip"),
    ],
)
def test_wrong_options_are_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        Options.from_mapping(options)


def test_a_few_urgent_requests_do_not_move_a_long_queue_and_many_do():
    former = BatchFormer(NeverStop())
    admission = Admission(former, by_priority=True)
    for number in range(100):
        admission.insert(Request(("patient", number), [number % 4, number], 1))
    admission.add_to_batch(admission.next(busy=False))
    admission.insert(Request("urgent", [9, 9], 0))
    admission.insert(Request("more urgent", [9, 8], -1))
    removed = []
    former.remove = lambda id_, remove=former.remove: (removed.append(id_), remove(id_))[1]
    for expected in ("more urgent", "urgent"):
        assert admission.next(busy=True) == expected
        admission.add_to_batch(expected)
    assert not removed and admission.next(busy=True)[0] == "patient"
    for number in range(100):
        admission.insert(Request(("urgent", number), [number % 2, number], 0))
    first = admission.next(busy=True)
    assert first[0] == "urgent" and len(removed) == 99, "as many as are offered: it pays to offer them instead"
    for _ in range(100):
        assert (urgent := admission.next(busy=True))[0] == "urgent"
        admission.add_to_batch(urgent)
    assert admission.next(busy=True)[0] == "patient"


def test_who_comes_back_has_waited_all_the_while():
    clock = Clock()
    waited = []
    policy = NeverStop()
    policy.choose = lambda tree, room, seconds, late: (waited.append(seconds), tree.oldest())[1]
    admission = Admission(BatchFormer(policy, clock=clock))
    admission.insert(Request("one", "abc"))
    for second in range(1, 4):
        clock.now = float(second)
        admission.former.new_step()
        assert admission.next(busy=False) == "one"
        admission.set_aside("one")
        admission.put_back("one")
    assert waited == [1.0, 2.0, 3.0]
    admission = Admission(BatchFormer(policy, clock=clock), by_priority=True)
    admission.insert(Request("first", "abc", 0))
    admission.next(busy=False)
    admission.insert(Request("second", "abc", 1))
    clock.now = 10.0
    admission.add_to_batch("first")
    assert admission.next(busy=True) == "second" and waited[-1] == 7.0, "what it waited before its priority's turn counts"


def test_a_preempted_request_that_the_engine_defers_goes_first_when_it_is_back():
    admission = Admission(BatchFormer(NeverStop()))
    for number in range(3):
        admission.insert(Request(number, [number]))
    for number in (0, 1):
        admission.add_to_batch(number)
    admission.preempt(1)
    assert admission.next(busy=True) == 1
    admission.set_aside(1)
    assert admission.next(busy=True) == 2
    admission.put_back(1)
    assert admission.next(busy=True) == 1
    admission.add_to_batch(1)
    admission.finish(1)
    admission.insert(Request(1, [1]))
    assert admission.next(busy=True) == 2, "another request of that name has not run"


@pytest.mark.parametrize("preempted", [False, True])
def test_a_few_urgent_requests_keep_their_order_when_one_comes_back(preempted):
    admission = Admission(BatchFormer(NeverStop()), by_priority=True)
    for number in range(8):
        admission.insert(Request(number, [number], 1))
    admission.add_to_batch(admission.next(busy=False))
    for name in "ABC":
        admission.insert(Request(name, [name], 0))
    assert admission.next(busy=True) == "A"
    if preempted:
        admission.add_to_batch("A")
        admission.preempt("A")
    else:
        admission.set_aside("A")
        assert admission.next(busy=True) == "B"
        admission.put_back("A")
    admission.insert(Request("D", ["D"], 0))
    for name in "ABCD":
        assert admission.next(busy=True) == name
        admission.add_to_batch(name)
    assert admission.next(busy=True) == 1
