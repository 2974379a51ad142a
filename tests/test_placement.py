"""Which replica takes a request: the rule without Ray, and the hashes and reports that it goes by."""

import time
from math import ceil
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feather.hashing import hash_tokens
from feather.ray.placement import Placement
from feather.ray.prompts import prefix_path
from feather.ray.statistics import KEY, Outstanding


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


def told(running=0, waiting=0, prefixes=(), chunks=None, report=0):
    return {"report": report, "running": running, "waiting": waiting, "prefixes": list(prefixes), "chunks": chunks}


def placement(*ids, reports=True, **options):
    made = Placement(clock=Clock(), **options)
    made.update(ids)
    for id_ in ids if reports else ():
        made.report(id_, told())
    return made


def loads(made):
    return {id_: replica.load for id_, replica in made._replicas.items()}


def send(made, request_id, path):
    chosen = made.choose(path, loads(made))
    made.place(request_id, path, chosen)
    return chosen


def test_requests_of_one_prefix_stay_together_and_others_go_where_there_is_less():
    made = placement("a", "b")
    first = send(made, 1, ["x1", "x2"])
    other = send(made, 2, ["y1", "y2"])
    assert {first, other} == {"a", "b"}
    assert [send(made, number, path) for number, path in ((3, ["x1", "x2", "own"]), (4, ["y1", "y2"]))] == [first, other]
    for number in (1, 2, 3, 4):
        made.done(number)
    assert loads(made) == {"a": 0, "b": 0}
    assert made.choose(["x1", "x2"], loads(made)) == first, "the cache outlives the request"


def test_of_two_that_hold_the_prefix_the_one_with_more_relatives_takes_it():
    made = placement("a", "b", epsilon=10)
    made.place(1, ["x"], "a")
    for number in (2, 3):
        made.place(number, ["x"], "b")
    for number in (4, 5, 6):
        made.place(number, ["y"], "a")
    made.done(6)
    assert made.choose(["x"], loads(made)) == "b"


def test_the_longest_prefix_counts_and_a_common_head_draws_nobody():
    made = placement("a", "b", "c", epsilon=10)
    made.place(1, ["head", "x"], "a")
    made.place(2, ["head", "y"], "b")
    assert made.choose(["head", "y", "own"], loads(made)) == "b"
    made.place(3, ["head"], "c")
    assert made.choose(["z"], loads(made)) in "abc"


@pytest.mark.parametrize("epsilon", [0.0, 0.25, 1.0])
def test_a_hot_prefix_spreads_but_nobody_gets_more_than_the_bound(epsilon):
    made = placement(*"abcd", epsilon=epsilon)
    for number in range(100):
        before = loads(made)
        chosen = send(made, number, ["hot"])
        assert before[chosen] < ceil((1 + epsilon) * (number + 1) / 4)
    assert min(loads(made).values()) > 0


def test_a_lukewarm_prefix_does_not_spread():
    made = placement(*"abcd")
    homes = {}
    for number in range(400):
        group = number % 20
        homes.setdefault(group, set()).add(send(made, number, [group]))
        if number >= 100:
            made.done(number - 100)
    assert sum(map(len, homes.values())) < 30, "20 prefixes, hardly any of them in two places"


def test_without_reports_or_with_old_ones_somebody_else_chooses():
    made = placement("a", "b", reports=False, stale_after=5.0)
    assert made.choose(["x"], loads(made)) is None
    made.report("a", told())
    made.report("b", told())
    assert made.choose(["x"], loads(made)) is not None
    made.clock.now += 6
    assert made.choose(["x"], loads(made)) is None
    made.report("a", told())
    assert made.choose(["x"], loads(made)) is None, "the same report again is no news"
    made.report("a", told(report=1))
    assert made.choose(["x"], loads(made)) == "a"


def test_one_that_no_longer_reports_does_not_let_the_others_take_all():
    made = placement("a", "b", stale_after=5.0, epsilon=0.5)
    made.clock.now += 6
    made.report("a", told(report=1))
    chosen = [send(made, number, [number]) for number in range(20)]
    assert set(chosen) == {"a", None}
    assert loads(made)["a"] < 20 * 0.5, "(1 + 0.5) × the mean over both replicas, then Ray chooses"


def test_requests_of_other_routers_count_by_the_reports():
    made = placement("a", "b", epsilon=0.1)
    made.place(1, ["x"], "a")
    made.report("a", told(running=5, waiting=4, prefixes=[("x", 6), ("y", 3)], report=1))
    assert loads(made) == {"a": 9, "b": 0}
    assert made.choose(["y"], loads(made)) == "b", "a has more than its share"
    made.report("b", told(running=9, report=1))
    assert made.choose(["y"], loads(made)) == "a"
    made.done(1)
    assert loads(made)["a"] == 8


def test_the_mirror_of_a_cache_is_bounded_and_forgets_what_was_used_least_recently():
    made = placement("a", chunks=4)
    for number, group in enumerate("xyxz"):
        made.place(number, [f"{group}1", f"{group}2"], "a")
        made.done(number)
    held = made._replicas["a"].held
    assert list(held) == ["x2", "x1", "z2", "z1"], "a prefix is forgotten after what follows it"
    made.report("a", told(chunks=2, report=1))
    assert list(held) == ["z2", "z1"] and set(made._holders) == {"z1", "z2"}


def test_what_outstanding_requests_use_is_not_forgotten():
    made = placement("a", chunks=1)
    for number in range(3):
        made.place(number, [number], "a")
    assert len(made._replicas["a"].held) == 3
    for number in range(3):
        made.done(number)
    made.place(9, [9], "a")
    assert list(made._replicas["a"].held) == [9]


def test_replicas_come_and_go_and_the_others_keep_what_they_hold():
    made = placement("a", "b", epsilon=0.5)
    homes = {group: send(made, group, [group]) for group in range(4)}
    made.update(["a", "b", "c"])
    assert made.choose([7], loads(made)) != "c", "it has not reported yet"
    made.report("c", told())
    for group in range(4):
        made.done(group)
    assert {group: made.choose([group], loads(made)) for group in range(4)} == homes
    assert send(made, 10, [10]) and send(made, 11, [11]) and send(made, 12, [12])
    assert set(loads(made)) == {"a", "b", "c"} and all(loads(made).values())
    made.update(["a", "c"])
    assert all(set(holders) <= {"a", "c"} for holders in made._holders.values())
    made.done(11)
    assert made.choose([1], loads(made)) in ("a", "c")


def test_a_request_is_counted_once_wherever_it_went_in_the_end():
    made = placement("a", "b")
    made.place(1, ["x"], "a")
    made.place(1, ["x"], "b")
    assert loads(made) == {"a": 0, "b": 1}
    made.done(1, "a")
    assert loads(made)["b"] == 1, "the former replica's end is not the request's"
    made.done(1, "b")
    made.done(1, "b")
    assert loads(made) == {"a": 0, "b": 0}
    made.place(2, ["x"], "gone")
    assert loads(made) == {"a": 0, "b": 0}


def test_only_those_allowed_are_chosen():
    made = placement("a", "b")
    made.place(1, ["x"], "a")
    made.place(2, ["y"], "b")
    assert made.choose(["x"], ["b"]) == "b" and made.choose(["x"], []) is None


def test_wrong_options_are_refused():
    for option in ({"epsilon": -0.1}, {"stale_after": 0}, {"chunks": 0}):
        with pytest.raises(ValueError, match=next(iter(option))):
            Placement(**option)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["send", "done", "report", "update"]), st.integers(0, 9)), max_size=80))
def test_counts_stay_right_whatever_happens(events):
    made, outstanding, here = placement("a", "b", "c", chunks=6), {}, ["a", "b", "c"]
    for number, (event, value) in enumerate(events):
        if event == "send":
            path = [(value, depth) for depth in range(1 + value % 4)]
            if (chosen := made.choose(path, loads(made))) is not None:
                made.place(number, path, chosen)
                outstanding[number] = chosen
        elif event == "done" and outstanding:
            id_ = sorted(outstanding)[value % len(outstanding)]
            made.done(id_)
            del outstanding[id_]
        elif event == "report":
            made.report(here[value % len(here)], told(running=value, prefixes=[((value, 0), value)], report=number))
        elif event == "update":
            here = ["a", "b", "c", "d"][: 1 + value % 4]
            made.update(here)
            outstanding = {id_: place for id_, place in outstanding.items() if place in here}
        own = {id_: replica.own for id_, replica in made._replicas.items()}
        assert own == {id_: list(outstanding.values()).count(id_) for id_ in here}
        for chunk, holders in made._holders.items():
            assert holders and all(chunk in replica.held for replica in holders.values())
        for id_, replica in made._replicas.items():
            assert all(count >= 0 for count in replica.held.values())
            assert all(id_ in made._holders[chunk] for chunk in replica.held)


def test_a_decision_takes_less_than_50_microseconds_at_64_replicas():
    made = placement(*range(64))
    paths = [[hash((group, chunk)) for chunk in range(20)] for group in range(300)]
    for number in range(2048):
        send(made, number, paths[number % 300])
    taken = []
    for number in range(1000):
        start = time.perf_counter_ns()
        made.choose(paths[number % 300], loads(made))
        taken.append(time.perf_counter_ns() - start)
    assert np.percentile(taken, 25) < 50_000


# -- prefixes and reports ----------------------------------------------------------------------------------------------


def test_a_prompt_is_hashed_as_the_tree_hashes_it():
    tokens = list(range(1000))
    assert prefix_path([SimpleNamespace(prompt_token_ids=tokens)], 256) == hash_tokens(tokens, 256)
    assert prefix_path([{"prompt": tokens}], 256) == hash_tokens(tokens, 256)
    assert prefix_path([object(), {"prompt": [tokens, [1]]}], 256) == hash_tokens(tokens, 256)
    assert prefix_path([{"prompt_token_ids": np.array(tokens)}], 256) == hash_tokens(tokens, 256)
    for odd in ({"messages": [{("a", "tuple"): 1}]}, {"prompt": 5}, {"prompt": [[], []]}, {"prompt_token_ids": [-1] * 300}, {"prompt": []}):
        assert prefix_path([odd], 256) == []


def test_text_and_messages_share_what_they_begin_with():
    one, other = ({"prompt": "a" * 3000 + end} for end in "xy")
    assert len(prefix_path([one], 256)) == 2 and prefix_path([one], 256) == prefix_path([other], 256)
    chats = [{"messages": [{"role": "system", "content": "s" * 5000}, {"role": "user", "content": "u" * 900 + end}]} for end in "xy"]
    paths = [prefix_path([chat], 256) for chat in chats]
    assert len(paths[0]) == 5 and paths[0] == paths[1]
    assert prefix_path([{"prompt": "é" * 1024}], 256) != prefix_path([{"prompt": "e" * 1024}], 256)


def test_tenants_and_adapters_share_nothing():
    tokens = list(range(600))
    plain = prefix_path([{"prompt": tokens}], 256)
    salted = [prefix_path([{"prompt": tokens, "cache_salt": salt}], 256) for salt in ("t1", "t2", "t1")]
    adapted = prefix_path([{"prompt": tokens}], 256, model="lora-a")
    assert salted[0] == salted[2] and not set(plain) & set(salted[0]) and not set(salted[0]) & set(salted[1])
    assert not set(adapted) & {*plain, *salted[0]}


@pytest.mark.parametrize(
    "request_", [{}, {"prompt": ""}, {"prompt": []}, {"prompt": [-1] * 600}, {"prompt": [[]]}, {"messages": []}, "text", 7, None]
)
def test_what_cannot_be_hashed_shares_nothing(request_):
    assert prefix_path([request_], 256) == []


def test_a_replica_reports_what_runs_and_waits_and_what_they_share():
    here = Outstanding(chunks=40)
    with here.request(["x", "x1"]) as first, here.request(["x", "x2"]), here.request(["y"]):
        here.runs(first)
        report = here.report()[KEY]
        assert report == {"report": 0, "running": 1, "waiting": 2, "prefixes": [("x", 2)], "chunks": 40}
        assert here.report() != {KEY: report}, "never the same twice"
    with pytest.raises(RuntimeError), here.request(["x"]):
        raise RuntimeError
    assert here.report()[KEY]["waiting"] == here.report()[KEY]["running"] == 0
