"""The baselines: the radix tree against brute force, its queue policies against SGLang's own code."""

import os.path
import random
from types import SimpleNamespace

import pandas as pd
import pytest

from feather.sglang import missing
from lab.engines.baselines import CachedPrompts, RadixQueue
from lab.studies import detection, detection_costs
from lab.studies.sglang_peer import Peer
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
@pytest.mark.parametrize("policy", ["lpm", "dfs-weight"])
@pytest.mark.parametrize("count", [40, 140])
@pytest.mark.parametrize("cut_off", [False, True])
def test_the_queue_orders_as_sglang_does(policy, count, cut_off):
    rng = random.Random(count)
    for _ in range(20):
        prompts = random_prompts(rng, 10 + count)
        running = [SimpleNamespace(request_id=f"r{i}", prompt_token_ids=prompt) for i, prompt in enumerate(prompts[:10])]
        waiting = [SimpleNamespace(request_id=f"w{i}", prompt_token_ids=prompt) for i, prompt in enumerate(prompts[10:])]
        peer = Peer(policy, cut_off)
        queue = RadixQueue(policy, 10**9, lambda: running[5:], prompts[:5], 128 if cut_off else None)
        for request in running:
            peer.cached(request.prompt_token_ids)
        for request in waiting:
            peer.arrive(request.request_id, request.prompt_token_ids)
        peer.schedule()
        assert [request.request_id for request in queue.order(waiting)] == [request.rid for request in peer.waiting]


def test_detection_measures_every_policy_at_every_point():
    table = detection.sweep([100, 200], [10, 20], steps=2)
    points = {(row.prompt_tokens, row.waiting) for row in table.itertuples()}
    assert points == {(100, 20), (200, 20), (200, 10)}
    assert (table.groupby(["policy", "prompt_tokens", "waiting"]).size() == 2).all() and (table["ms"] > 0).all()
    assert len(table["policy"].unique()) == (2 if missing() else 5)


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
