"""The baselines: the radix tree against brute force, its queue policies against SGLang's own code."""

import os.path
import random
from types import SimpleNamespace

import pandas as pd
import pytest

from feather.sglang import check_version, missing
from lab.engines.baselines import CachedPrompts, RadixQueue, WindowQueue
from lab.studies import detection, detection_costs
from lab.studies.sglang_peer import Peer, queues
from lab.studies.study import Study

needs_sglang = pytest.mark.skipif(missing() is not None, reason=str(missing()))


def random_prompts(rng, count):
    """Prefixes of each other, equal prompts, early and late divergence."""
    stems = [[rng.randrange(3) for _ in range(rng.randrange(60))] for _ in range(4)]
    return [rng.choice(stems)[: rng.randrange(1, 60)] + [rng.randrange(3) for _ in range(rng.randrange(1, 40))] for _ in range(count)]


def test_the_radix_tree_matches_what_brute_force_matches():
    rng = random.Random(0)
    for _ in range(100):
        cached, inserted = CachedPrompts(capacity=10**9), []
        for prompt in random_prompts(rng, 20):
            expected = max((len(os.path.commonprefix([prompt, other])) for other in inserted), default=0)
            depth, node = cached.match(prompt)
            assert depth == expected
            path = []
            while node is not cached.tree.root:
                path, node = node.edge + path, node.parent
            assert path == prompt[:depth]
            cached.insert(prompt)
            inserted.append(prompt)
        assert cached.tree.size == len({tuple(prompt[:end]) for prompt in inserted for end in range(1, len(prompt) + 1)})


def test_a_full_radix_tree_drops_what_was_used_longest_ago():
    cached = CachedPrompts(capacity=100)
    cached.insert([1] * 60)
    cached.insert([2] * 30)
    cached.match([1] * 60)
    cached.insert([3] * 40)
    assert cached.match([2] * 30)[0] == 0 and cached.match([1] * 60)[0] == 60 and cached.match([3] * 40)[0] == 40
    assert cached.tree.size == 100


@needs_sglang
@pytest.mark.parametrize("policy", ["lpm", "dfs-weight", "hrrn", "shortest-prefill-first"])
@pytest.mark.parametrize("count", [40, 140])
@pytest.mark.parametrize("cut_off", [False, True])
def test_the_queue_orders_as_sglang_does(policy, count, cut_off):
    if policy not in queues():
        pytest.skip(f"SGLang {check_version()} has no {policy}: requirements/other_sglang.sh 0.5.23")
    rng = random.Random(count)
    for _ in range(20):
        prompts = random_prompts(rng, 10 + count)
        if policy == "lpm":  # of a prompt that is cached whole 0.5.23 counts all tokens but one, 0.5.9 all, so none is
            prompts[10:] = [[*prompt, 3 + place] for place, prompt in enumerate(prompts[10:])]
        running = [request(f"r{i}", prompt) for i, prompt in enumerate(prompts[:10])]
        waiting = [request(f"w{i}", prompt) for i, prompt in enumerate(prompts[10:])]
        peer, computed = Peer(policy, cut_off), 0
        queue = RadixQueue(policy, 10**9, lambda: running[5:], prompts[:5], 128 if cut_off else None, lambda: computed)
        begun = iter(running)
        for place, one in enumerate(waiting):
            if place % 4 == 0 and (ran := next(begun, None)):
                peer.cached(ran.prompt_token_ids)
                computed += len(ran.prompt_token_ids)
            peer.arrive(one.request_id, one.prompt_token_ids)
            queue.add_request(one)
        peer.schedule()
        assert [one.request_id for one in queue.order(waiting)] == [one.rid for one in peer.waiting]


def request(id_, prompt):
    return SimpleNamespace(request_id=id_, prompt_token_ids=prompt, num_output_tokens=0)


def ordered(queue, *requests):
    for one in requests:
        queue.add_request(one)
    queue.reconcile()
    return queue


def taken(queue, count):
    return [queue.pop_request().request_id for _ in range(count)]


LONG, SHORT = [1] * 300, [2] * 100
"""two prefixes that are cached"""


def test_a_response_ratio_grows_with_what_was_computed_and_falls_with_what_there_is_to_compute():
    computed = 0
    queue = RadixQueue("hrrn", 10**6, list, [LONG], computed=lambda: computed)
    queue.add_request(request("old, much to do", [3] * 1000))
    computed = 500
    queue.add_request(request("new, little to do", LONG + [4] * 40))
    computed = 600
    queue.reconcile()
    assert taken(queue, 2) == ["new, little to do", "old, much to do"], "100 / 40 is more than 600 / 1000"
    queue.add_request(request("new", LONG + [4] * 40))
    assert taken(ordered(queue, request("newer", LONG + [5] * 20)), 2) == ["new", "newer"], "nothing was computed since: by name"


def test_the_shortest_prefill_goes_first_whatever_is_cached_of_it():
    queue = RadixQueue("shortest-prefill-first", 10**6, list, [LONG])
    ordered(queue, request("60 of 60", [5] * 60), request("50 of 350", LONG + [6] * 50), request("also 60", [7] * 60))
    assert taken(queue, 3) == ["50 of 350", "60 of 60", "also 60"]


def test_with_age_a_request_without_a_match_overtakes_those_with_one():
    queue, served = RadixQueue("lpm, ageing", 10**6, list, [SHORT], ageing=50), []
    queue.add_request(request("cold", [3] * 20))
    for number in range(4):
        served += taken(ordered(queue, request(f"warm {number}", SHORT + [9] * 5)), 1)
    assert served == ["warm 0", "warm 1", "cold", "warm 2"], "after two passes it counts as much as 100 tokens, and it is older"


@pytest.mark.parametrize("k, expected", [(1, "abcdef"), (2, "adbecf"), (3, "adebfc"), (100, "adefbc")])
def test_of_k_requests_the_first_is_the_oldest_and_the_others_match_best(k, expected):
    queue = RadixQueue("k-lpm", 10**6, list, [LONG], k=k)
    ordered(queue, *(request(name, [10 + number] * 20) for number, name in enumerate("abc")))
    ordered(queue, *(request(name, LONG + [20 + number] * 20) for number, name in enumerate("def")))
    served = taken(queue, 2)
    queue.reconcile()  # another step goes on where this one ended
    assert "".join(served + taken(queue, 4)) == expected


def test_a_window_looks_no_further_and_only_where_there_is_something_to_protect():
    manager = SimpleNamespace(usage=0.8, get_computed_blocks=lambda one: (None, 16 * int(one.request_id[1:])))
    for usage, expected in ((0.8, ["c2", "b1", "a0", "d9"]), (0.4, ["a0", "b1", "c2", "d9"])):
        manager.usage = usage
        queue = ordered(WindowQueue(manager, window=3), *(request(name, [1]) for name in ("a0", "b1", "c2", "d9")))
        assert taken(queue, 4) == expected


def test_detection_measures_every_policy_at_every_point():
    table = detection.sweep([100, 200], [10, 20], steps=2)
    points = {(row.prompt_tokens, row.waiting) for row in table.itertuples()}
    assert points == {(100, 20), (200, 20), (200, 10)}
    assert (table.groupby(["policy", "prompt_tokens", "waiting"]).size() == 2).all() and (table["ms"] > 0).all()
    assert len(table["policy"].unique()) == (2 if missing() else 3 + len(queues()))


@needs_sglang
def test_detection_can_measure_the_adapter_too():
    table = detection.measure(600, 20, steps=3, cut_off=True, adapter=True)
    assert (table.groupby("policy").size() == 3).all() and {"Feather in SGLang", "SGLang LPM, cut off"} < set(table["policy"])


def test_what_detection_costs_is_told_from_the_deepest_queue(tmp_path):
    study = Study("00_test", None, tmp_path)
    alone = detection_costs.alone(study, [100, 200], [10, 20], steps=2)
    assert {title for _, _, title, _ in detection_costs.facets(alone)} == {"20 requests waiting", "prompts of 200 tokens"}
    metrics = {"decode step": 20.0, "queue time per step": 0.1, "queue share": 0.005}
    inside = pd.DataFrame([
        {"metric": metric, "policy": policy, "value": value, "repeat": 0}
        for metric, value in metrics.items() for policy in ("FCFS", "Feather (never stop)")
    ])  # fmt: skip
    costs = detection_costs.Costs(alone, inside)
    assert (costs.length, costs.deepest, len(costs.ms)) == (200, 20, 2)
    assert "20 requests of 200 tokens waiting" in costs.found() and "100 µs a step, 0.50 %" in costs.found()
    told = costs.claims(study)
    assert told.count("not run here") == (2 if missing() else 0) and {"M7", "E5"} == {line[:2] for line in told.splitlines()}
