"""The tree against a brute-force model that keeps whole paths and recomputes everything from the definitions."""

import gc
import os
import random

import psutil
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from feather import cht
from feather.cht import ORDERS, Candidate, ChunkedHashTree
from feather.hashing import hash_blocks, hash_tokens
from feather.request import Request

SLACK = cht._SLACK


class BruteForce:
    """The tree by definition: waiting and active paths, nothing cached."""

    def __init__(self, order):
        self.order, self.waiting, self.active, self.arrivals = order, {}, {}, 0

    def insert(self, id_, path):
        self.waiting[id_] = (self.arrivals, tuple(path))
        self.arrivals += 1

    def move(self, id_, source, target):
        entry = source.pop(id_)
        if target is not None:
            target[id_] = entry

    @staticmethod
    def common(paths):
        depth = 0
        for column in zip(*paths):
            if len(set(column)) > 1:
                break
            depth += 1
        return depth

    def tip(self):
        return self.common([path for _, path in self.active.values()]) if self.active else 0

    def homogeneity(self):
        chunks = [hash_ for _, path in self.active.values() for hash_ in path]
        return 1 - len(set(chunks)) / len(chunks) if chunks else 0

    def find_best(self):
        if not self.waiting:
            return None
        working_set = {hash_ for _, path in self.active.values() for hash_ in path}
        tip = self.tip()
        some_active = next(iter(self.active.values()), (0, ()))[1]

        def key(item):
            arrival, path = item[1]
            cost = sum(hash_ not in working_set for hash_ in path)
            loss = tip - self.common([path, some_active[:tip]]) if self.active else 0
            if not self.active or cost == len(path) or self.order == "arrival":
                return (1, 0, 0, arrival)
            return (0, loss if self.order == "tip" else 0, cost, arrival)

        id_, (_, path) = min(self.waiting.items(), key=key)
        sharing = sum(other[:tip] == some_active[:tip] for _, other in self.waiting.values())
        after = self.common([path, some_active[:tip]]) if self.active else 0
        return Candidate(id_, sum(hash_ not in working_set for hash_ in path), tip, after, sharing)


@st.composite
def prompts(draw):
    """Few tokens and short chunks, so that prefixes of each other, equal, empty and diverging prompts all occur."""
    return draw(st.lists(st.integers(0, 1), max_size=9))


class TreeMachine(RuleBasedStateMachine):
    CHUNK = 2

    @initialize(order=st.sampled_from(ORDERS))
    def start(self, order):
        cht._SLACK = 0  # so that compaction happens at these sizes too
        self.tree, self.model, self.ids = ChunkedHashTree(order), BruteForce(order), 0

    @rule(prompt=prompts())
    def insert(self, prompt):
        path = hash_tokens(prompt, self.CHUNK)
        self.tree.insert(Request(self.ids, path))
        self.model.insert(self.ids, path)
        self.ids += 1

    def teardown(self):
        cht._SLACK = SLACK

    @precondition(lambda self: self.model.waiting)
    @rule()
    def add_best(self):
        best = self.tree.find_best().request_id
        self.tree.add_to_batch(best)
        self.model.move(best, self.model.waiting, self.model.active)

    @precondition(lambda self: self.model.waiting)
    @rule(data=st.data())
    def add_any(self, data):
        id_ = data.draw(st.sampled_from(sorted(self.model.waiting)))
        self.tree.add_to_batch(id_)
        self.model.move(id_, self.model.waiting, self.model.active)

    @precondition(lambda self: self.model.waiting)
    @rule(data=st.data(), back=st.booleans())
    def remove(self, data, back):
        id_ = data.draw(st.sampled_from(sorted(self.model.waiting)))
        request = self.tree.remove(id_)
        assert request.arrival == self.model.waiting[id_][0]
        if back:
            self.tree.insert(request)
        else:
            self.model.move(id_, self.model.waiting, None)

    @precondition(lambda self: self.model.active)
    @rule(data=st.data(), preempt=st.booleans())
    def leave_the_batch(self, data, preempt):
        id_ = data.draw(st.sampled_from(sorted(self.model.active)))
        if preempt:
            self.tree.preempt(id_)
        else:
            self.tree.finish(id_)
        self.model.move(id_, self.model.active, self.model.waiting if preempt else None)

    @invariant()
    def agrees_with_the_model(self):
        assert self.tree.find_best() == self.model.find_best()
        assert self.tree.tip_depth == self.model.tip()
        assert self.tree.homogeneity == self.model.homogeneity()
        assert set(self.tree.waiting) == set(self.model.waiting)
        assert set(self.tree.active) == set(self.model.active)

    @invariant()
    def counts_and_sizes_hold(self):
        tree = self.tree
        everyone = [path for _, path in (*self.model.waiting.values(), *self.model.active.values())]
        assert tree._nodes.keys() == {hash_ for path in everyone for hash_ in path}
        for node in tree._nodes.values():
            assert node.active == sum(node.hash in path for _, path in self.model.active.values())
            assert node.waiting == sum(node.hash in path for _, path in self.model.waiting.values())
            assert len(node.heap) <= 2 * node.waiting + 1
        assert tree._working_set == sum(node.active > 0 for node in tree._nodes.values())
        assert len(tree._by_arrival) <= 2 * len(tree.waiting) + 1
        assert len(tree._frontier) <= 2 * tree._working_set + 1


TestTree = TreeMachine.TestCase
TestTree.settings = settings(max_examples=300, stateful_step_count=40, deadline=None, derandomize="CI" in os.environ)


def make(order="cost", **paths):
    tree = ChunkedHashTree(order)
    for id_, path in paths.items():
        tree.insert(Request(id_, path))
    return tree


def test_the_seed_is_the_oldest_and_without_sharing_the_order_is_arrival_order():
    tree = make(long="abcdef", short="x", none="")
    admitted = []
    while (best := tree.find_best()) is not None:
        admitted.append(best.request_id)
        tree.add_to_batch(best.request_id)
    assert admitted == ["long", "short", "none"]


def test_a_short_stranger_does_not_come_before_a_long_relative():
    tree = make(seed="ab", stranger="x", relative="abcdefgh")
    tree.add_to_batch("seed")
    assert tree.find_best() == Candidate("relative", cost=6, tip_before=2, tip_after=2, sharing=1)


def test_the_two_orders_differ_where_a_cheap_request_costs_the_tip():
    paths = dict(seed="abc", cheap="ax", faithful="abcdef")
    for order, expected in (("cost", "cheap"), ("tip", "faithful")):
        tree = make(order, **paths)
        tree.add_to_batch("seed")
        assert tree.find_best().request_id == expected


def test_the_tip_moves_up_with_a_stranger_and_down_again_without_it():
    tree = make(one="abc", two="abd", three="abc")
    for id_ in ("one", "three", "two"):
        tree.add_to_batch(id_)
    assert tree.tip_depth == 2 and tree.homogeneity == 1 - 4 / 9
    tree.finish("two")
    assert tree.tip_depth == 3 and tree.homogeneity == 1 / 2
    tree.finish("one")
    tree.finish("three")
    assert tree.tip_depth == tree.homogeneity == 0 and not tree._nodes


def test_the_nodes_can_be_looked_at():
    tree = make(one="ab", two="ac", none="")
    tree.add_to_batch("two")
    assert tree.nodes() == [("a", None, 1, 1, False), ("b", "a", 0, 1, False), ("c", "a", 1, 0, True)]
    tree.add_to_batch("one")
    assert [view.hash for view in tree.nodes() if view.tip] == ["a"]


def test_a_million_operations_leave_the_memory_where_it_was():
    """Random operations on a bounded population; whatever grew with their number would show."""
    rng = random.Random(0)
    paths = [[(group, depth) for depth in range(4)] + [(group, "end", tail)] for group in range(5) for tail in range(20)]
    tree, waiting, active, new = ChunkedHashTree("tip"), [], [], 0
    resident = {}
    for number in range(1_000_001):
        if number in (200_000, 1_000_000):
            gc.collect()
            resident[number] = psutil.Process().memory_info().rss
        choice = rng.random()
        if len(waiting) + len(active) < 100 and choice < 0.5 or not waiting + active:
            tree.insert(Request(new, rng.choice(paths)))
            waiting.append(new)
            new += 1
        elif waiting and (choice < 0.7 or not active):
            id_ = tree.find_best().request_id if choice < 0.65 else rng.choice(waiting)
            waiting.remove(id_)
            if choice < 0.55:
                tree.remove(id_)
            else:
                tree.add_to_batch(id_)
                active.append(id_)
        else:
            id_ = active.pop(rng.randrange(len(active)))
            if choice < 0.8:
                tree.preempt(id_)
                waiting.append(id_)
            else:
                tree.finish(id_)
    assert resident[1_000_000] - resident[200_000] < 4 * 2**20, "six bytes an operation would be more"
    assert len(tree._nodes) <= 5 * 24 and len(tree._frontier) <= 2 * len(tree._nodes) + 17


@pytest.mark.parametrize("chunk", [1, 16, 50, 512, 4096])
def test_decisions_are_the_same_whichever_hashes_the_paths_are_made_of(chunk):
    """Token hashes and an engine's block hashes differ as values; the tree must not notice."""
    rng = random.Random(chunk)
    stems = [[rng.randrange(99) for _ in range(9000)] for _ in range(3)]
    prompts = [rng.choice(stems)[: rng.randrange(9000)] + [rng.randrange(99) for _ in range(30)] for _ in range(24)]
    block = 16 if chunk % 16 == 0 else 1
    sources = (
        lambda tokens: hash_tokens(tokens, chunk),
        lambda tokens: hash_blocks([b"%d" % hash_ for hash_ in hash_tokens(tokens, block, [(0, b"other")])], block, chunk),
    )
    found = []
    for path_of in sources:
        tree, seen = ChunkedHashTree(), []
        for number, prompt in enumerate(prompts):
            tree.insert(Request(number, path_of(prompt)))
        while (best := tree.find_best()) is not None:
            seen.append(best)
            tree.add_to_batch(best.request_id)
            if len(tree.active) > 8:
                tree.finish(min(tree.active))
        found.append(seen)
    assert found[0] == found[1] and len(found[0]) == len(prompts)


def test_unknown_and_duplicate_ids_are_refused_and_change_nothing():
    tree = make(one="abc")
    for operation in (tree.finish, tree.preempt):
        with pytest.raises(KeyError, match="'one' is not active"):
            operation("one")
    for operation in (tree.add_to_batch, tree.remove):
        with pytest.raises(KeyError, match="'two' is not waiting"):
            operation("two")
    with pytest.raises(ValueError, match="in the tree already"):
        tree.insert(Request("one", "xyz"))
    assert tree.find_best().request_id == "one" and set(tree._nodes) == set("abc")
    with pytest.raises(ValueError, match="order 'best'"):
        ChunkedHashTree("best")
    with pytest.raises(LookupError, match="no request"):
        ChunkedHashTree().oldest()


def test_a_collision_may_misjudge_but_breaks_nothing():
    tree = make(one=[1, 2, 3], two=[9, 3, 2], three=[3, 3, 3])
    for _ in range(3):
        for id_ in ("one", "two", "three"):
            tree.add_to_batch(id_)
            tree.find_best()
        for id_ in ("two", "one", "three"):
            tree.preempt(id_)
    for id_ in ("one", "two", "three"):
        assert tree.find_best() is not None
        tree.remove(id_)
    assert tree.find_best() is None and not tree._nodes
