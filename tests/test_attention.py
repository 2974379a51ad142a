"""Attention that computes shared prefixes once: who attends to what, and with which result, without an engine."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
pytest.importorskip("numba")

from feather.vllm.attention.attend import Attend  # noqa: E402
from feather.vllm.attention.plan import Node, agreement, make_plan, sort_rows, tree  # noqa: E402

BLOCK = 16


def rows_of(paths, own, queries):
    """Block table, lengths and queries of rows: shared blocks (``paths``, ids), own tokens besides, and how many of a row's tokens are new."""
    free = 1000
    tables, lengths = [], []
    for path, tokens in zip(paths, own):
        used = len(path) + -(-tokens // BLOCK)
        tables.append([*path, *range(free, free + used - len(path))])
        free += used
        lengths.append(len(path) * BLOCK + tokens)
    table = np.zeros((len(paths), max(map(len, tables)) + 2), dtype=np.int32)
    for row, blocks in zip(table, tables):
        row[: len(blocks)] = blocks
    return table, np.array(lengths), np.array(queries)


def seen(plan, table, lengths, queries):
    """Of each query that has tasks: (block, offset) of every key it attends to, with repetitions."""
    keys = {int(token): [] for token in plan.merged}
    for first, count, block, blocks in plan.tasks:
        for place in range(first, first + count):
            for position in range(min(plan.visible[place], blocks * BLOCK)):
                keys[int(plan.tokens[place])].append((int(plan.blocks[block + position // BLOCK]), position % BLOCK))
    return keys


def expected(table, lengths, queries, rest):
    starts = np.concatenate([[0], np.cumsum(queries)])
    return {
        int(starts[row]) + new: [(int(table[row, key // BLOCK]), key % BLOCK) for key in range(lengths[row] - queries[row] + new + 1)]
        for row in range(len(lengths))
        if row not in rest
        for new in range(queries[row])
    }


SYSTEM, LEFT, RIGHT = [1, 2, 3], [4, 5, 6, 7], [8, 9]
NESTED = rows_of(
    [SYSTEM + LEFT, SYSTEM + RIGHT, SYSTEM + LEFT, SYSTEM, [20, 21], SYSTEM + RIGHT, []], [20, 1, 5, 40, 3, 17, 9], [1, 1, 4, 2, 1, 1, 1]
)


def test_rows_of_one_prefix_stand_side_by_side_at_every_depth():
    table, lengths, queries = NESTED
    order = sort_rows(table, (lengths - queries) // BLOCK)
    groups = [{0: "left", 2: "left", 1: "right", 5: "right"}.get(row, "") for row in order]
    assert groups.index("left") + 1 == len(groups) - 1 - groups[::-1].index("left")
    assert groups.index("right") + 1 == len(groups) - 1 - groups[::-1].index("right")
    places = [list(order).index(row) for row in (0, 1, 2, 3, 5)]
    assert max(places) - min(places) == 4, "all on the system prompt"


def test_a_tree_of_prefixes_becomes_a_task_for_each_node():
    agreed = np.array([0, 5, 7, 3, 0, 0, 9])
    assert set(tree(agreed, 0)) == {Node(0, 4, 0, 3), Node(0, 3, 3, 5), Node(1, 3, 5, 7), Node(5, 7, 0, 9)}
    assert set(tree(agreed, 4)) == {Node(0, 3, 0, 5), Node(5, 7, 0, 9)}, "what is too short is left with the parent"
    assert list(agreement(np.array([[1, 2, 3], [1, 2, 4], [1, 2, 4]]), np.array([3, 2, 3]))) == [0, 2, 2], "no further than a row goes"


@pytest.mark.parametrize("least", [1, 3])
def test_each_query_attends_to_each_of_its_keys_once(least):
    plan = make_plan(*NESTED, BLOCK, 1, False, least, 8)
    keys = seen(plan, *NESTED)
    wanted = expected(*NESTED, set(plan.rest))
    assert {token: sorted(found) for token, found in keys.items()} == {token: sorted(found) for token, found in wanted.items()}
    assert set(plan.rest) == {4, 6} and plan.shared_rows == 5


def test_cascade_is_all_or_nothing():
    table, lengths, queries = NESTED
    assert make_plan(table, lengths, queries, BLOCK, 1, True, 1, 8) is None
    some = [0, 1, 2, 5]
    plan = make_plan(table[some], lengths[some], queries[some], BLOCK, 1, True, 1, 8)
    assert plan.shared_rows == 4
    assert [blocks for _, tokens, _, blocks in plan.tasks if tokens == 7] == [len(SYSTEM)], "what some share beyond it is not used"
    assert make_plan(table[some], lengths[some], queries[some], BLOCK, 1, True, 4, 8) is None, "too short"
    assert make_plan(table[some], lengths[some], queries[some], BLOCK, 1, True, 1, 3) is None, "one with many queries"


def test_nothing_to_share_is_no_plan():
    table, lengths, queries = rows_of([[1], [2], []], [5, 5, 5], [1, 1, 1])
    for all_or_none in (True, False):
        assert make_plan(table, lengths, queries, BLOCK, 1, all_or_none, 1, 8) is None
    assert make_plan(table[:1], lengths[:1], queries[:1], BLOCK, 1, False, 1, 8) is None, "a batch of one"
    assert make_plan(table, lengths, np.full(len(lengths), 9), BLOCK, 1, False, 1, 8) is None, "a step of long prefills alone"
    # The shared blocks of rows 0 and 1 are being computed in this very step: row 0 attends to them causally, so they are not its context.
    table, lengths, queries = rows_of([[1, 2], [1, 2]], [0, 5], [32, 5])
    assert make_plan(table, lengths, queries, BLOCK, 1, False, 1, 64) is None


def test_blocks_beyond_a_rows_own_do_not_count():
    """What a row's table holds beyond its length is left from rows before it."""
    table = np.array([[1, 2, 3, 4], [1, 2, 3, 4]], dtype=np.int32)
    plan = make_plan(table, np.array([20, 64]), np.array([1, 1]), BLOCK, 1, False, 1, 8)
    assert {token: sorted(found) for token, found in seen(plan, None, None, None).items()} == {
        token: sorted(found) for token, found in expected(table, np.array([20, 64]), np.array([1, 1]), set()).items()
    }


@st.composite
def batches(draw):
    """Rows on a random tree of prefixes, in any order, with decode, chunked and long rows."""
    nodes = [[]]
    for name in range(draw(st.integers(1, 6))):
        parent = draw(st.sampled_from(nodes))
        nodes.append([*parent, *range(100 * name + 1, 100 * name + 1 + draw(st.integers(1, 5)))])
    count = draw(st.integers(1, 9))
    paths = [draw(st.sampled_from(nodes)) for _ in range(count)]
    own = [draw(st.integers(1, 40)) for _ in range(count)]
    queries = [draw(st.integers(1, tokens)) for tokens in own]
    return rows_of(paths, own, queries)


@settings(max_examples=150, deadline=None)
@given(batches(), st.integers(1, 3), st.booleans())
def test_any_batch_is_covered_once(batch, least, all_or_none):
    plan = make_plan(*batch, BLOCK, 2, all_or_none, least, 20)
    if plan is None:
        return
    table, lengths, queries = batch
    keys = seen(plan, *batch)
    wanted = expected(*batch, set(plan.rest))
    assert {token: sorted(found) for token, found in keys.items()} == {token: sorted(found) for token, found in wanted.items()}
    for place, token in enumerate(plan.merged):
        assert (plan.tokens[plan.parts[plan.starts[place] : plan.starts[place + 1]]] == token).all()


def reference(query, keys, values, table, lengths, queries, heads):
    """Attention in float32, row by row. ``keys``, ``values``: [blocks, heads, block size, head size]."""
    _, kv_heads, block, size = keys.shape
    found, at = torch.empty(query.shape), 0
    for row, length in enumerate(lengths):
        used = table[row, : -(-length // block)].tolist()
        k, v = (
            part[used].float().permute(1, 0, 2, 3).reshape(kv_heads, -1, size).repeat_interleave(heads // kv_heads, 0)
            for part in (keys, values)
        )
        for new in range(queries[row]):
            last = length - queries[row] + new + 1
            weights = torch.softmax(torch.einsum("hd,htd->ht", query[at].float(), k[:, :last]) * size**-0.5, 1)
            found[at] = torch.einsum("ht,htd->hd", weights, v[:, :last])
            at += 1
    return found


LAYOUTS = [(torch.float32, "plain"), (torch.bfloat16, "plain"), (torch.bfloat16, "paired")]


@pytest.mark.parametrize("dtype, layout", LAYOUTS)
def test_the_kernel_computes_attention(dtype, layout):
    """Nested prefixes, rows with several queries, three query heads to a head of keys, and strided queries, as they come from a model."""
    pytest.importorskip("vllm")
    from feather.vllm.attention.layout import in_order

    table, lengths, queries = NESTED
    heads, kv_heads, size = 6, 2, 32
    tolerance = 2e-6 if dtype == torch.float32 else 8e-3
    blocks = np.unique(table)
    table = np.searchsorted(blocks, table).astype(np.int32)
    generator = torch.Generator().manual_seed(0)
    keys, values = torch.randn(2, len(blocks), kv_heads, BLOCK, size, generator=generator).to(dtype)
    cache = torch.cat(in_order(layout, keys, values), -1).view(len(blocks), kv_heads, BLOCK, 2 * size)
    query = torch.randn(int(queries.sum()), heads + 4, size, generator=generator).to(dtype)[:, :heads]
    attend = Attend(heads, kv_heads, size, BLOCK, dtype, size**-0.5, layout == "paired")
    wanted = reference(query, keys, values, table, lengths, queries, heads)
    for all_or_none, rows in ((False, np.arange(len(lengths))), (True, np.array([0, 1, 2, 5]))):
        starts = np.concatenate([[0], np.cumsum(queries)])
        taken = np.concatenate([np.arange(starts[row], starts[row + 1]) for row in rows])
        plan = make_plan(table[rows], lengths[rows], queries[rows], BLOCK, heads // kv_heads, all_or_none, 1, 8)
        output = torch.full((len(taken), heads, size), 7.0).to(dtype)
        for threads in (1, 2, 3):
            before = torch.get_num_threads()
            torch.set_num_threads(threads)
            try:
                attend.use(plan)
                attend(query[taken], cache, output)
            finally:
                torch.set_num_threads(before)
            torch.testing.assert_close(output.float()[plan.merged], wanted[taken][plan.merged], atol=tolerance, rtol=tolerance)
        untouched = np.setdiff1d(np.arange(len(taken)), plan.merged)
        assert (output[untouched] == 7).all(), "rows that share nothing are left to vLLM's kernel"


@pytest.mark.parametrize("dtype, layout", [*LAYOUTS, (torch.bfloat16, None)])
def test_the_layout_is_that_of_what_vllms_operator_writes(monkeypatch, dtype, layout):
    pytest.importorskip("vllm")
    from feather.vllm.attention import layout as layouts

    def write(keys, values, kept_keys, kept_values, slots, isa):
        assert isa == "some" and slots.tolist() == list(range(64))
        keys, values = (each.view(2, 32, 3, 64).transpose(1, 2) for each in (keys, values))
        if layout:
            keys, values = layouts.in_order(layout, keys, values)
            kept_keys.copy_(keys.view(kept_keys.shape))
            kept_values.copy_(values.view(kept_values.shape))

    monkeypatch.setattr(layouts.ops, "cpu_attn_reshape_and_cache", write)
    assert layouts.layout_of(3, 64, 32, dtype, "some") == layout


def test_pairs_are_neighbours_in_the_head_for_keys_and_in_the_block_for_values():
    """As AMX's operator writes them: element 1 is the next dimension of the first key, and the next token's first dimension of the values."""
    pytest.importorskip("vllm")
    from feather.vllm.attention.layout import PAIRED, in_order

    places = torch.arange(32 * 64).view(32, 64)  # token × 64 + dimension
    keys, values = (each.tolist() for each in in_order(PAIRED, places, places))
    assert keys[:4] == [0, 1, 64, 65] and keys[32:34] == [2, 3] and keys[16 * 64] == 16 * 64
    assert values[:4] == [0, 64, 1, 65] and values[32:34] == [128, 192] and values[16 * 32] == 16


@pytest.mark.parametrize("when", ["it is made", "it plans"])
def test_after_a_failure_vllms_kernel_serves_the_rest_of_the_run(monkeypatch, when):
    pytest.importorskip("vllm")
    from feather.vllm.attention import backend

    def fails(*_):
        raise OSError("no threads")

    builder = object.__new__(backend.Builder)
    vars(builder).update(mode="packed", sorts=True, _attend=None, _layers=[SimpleNamespace(scale=1.0)], dtype=torch.float32)
    vars(builder).update(num_heads=1, num_kv_heads=1, head_dim=16, block_size=16)
    told = []
    monkeypatch.setattr(backend.logger, "exception", told.append)
    monkeypatch.setattr(backend, "reason_against", lambda *_: "")
    if when == "it is made":
        monkeypatch.setattr(backend, "Attend", fails)
        builder.use("packed")
    else:
        plain = backend.cpu_attn.CPUAttentionMetadata(1, 1, torch.zeros(2), 1, torch.zeros(1), torch.zeros(1, 1), torch.zeros(1), None)
        monkeypatch.setattr(backend.cpu_attn.CPUAttentionMetadataBuilder, "build", lambda *_: plain)
        monkeypatch.setattr(backend.Builder, "_plan", fails)
        metadata = builder.build(0, None)
        assert metadata.attend is metadata.tokens is metadata.others is None
    assert (builder.mode, builder.sorts) == ("paged", False) and len(told) == 1
