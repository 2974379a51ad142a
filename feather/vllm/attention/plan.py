"""Who attends to what together in one step, found in the rows' block tables.

Two rows share a prefix where their tables begin with the same blocks: vLLM's prefix cache gives them the same ones, whatever the tokens, adapter
or salt. Rows sorted by their tables stand as a depth-first walk through the tree of prefixes would list them, so that each node of the tree is
a run of rows, found by how far neighbours agree.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from feather.vllm.attention.kernel import QUERIES

KEYS = 2048
"""of a task, at most: a long prefix becomes several, which the threads can share"""


class Node(NamedTuple):
    """Rows that share blocks, and which: a node of the tree of prefixes."""

    first_row: int
    last_row: int
    """exclusive; places in the sorted order"""
    first_block: int
    last_block: int
    """exclusive"""


def sort_rows(table: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The order in which rows of one prefix stand side by side, at every depth. ``table`` [rows, blocks] holds block ids, of which row i uses the
    first ``counts[i]``."""
    return np.array(sorted(range(len(counts)), key=[row[:count].tobytes() for row, count in zip(table.astype(">u4"), counts)].__getitem__))


def agreement(table: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """How many of its first blocks each row has in common with the row before it: [rows], 0 for the first. Blocks beyond ``counts`` do not
    count."""
    if len(table) < 2:
        return np.zeros(len(table), dtype=np.int64)
    differ = table[1:] != table[:-1]
    common = np.where(differ.any(1), differ.argmax(1), table.shape[1])
    return np.concatenate([[0], np.minimum(common, np.minimum(counts[1:], counts[:-1]))])


def tree(agreed: np.ndarray, least: int) -> Iterator[Node]:
    """The nodes that two rows or more share, parents before children; rows that share no more than ``least`` blocks beyond their parent are
    left with it. Rows of a node may go on alone: what they have beyond their last node is their own."""
    pending = [(0, len(agreed), 0)]
    while pending:
        low, high, depth = pending.pop()
        inner = agreed[low + 1 : high]
        if not len(inner):
            continue
        common = int(inner.min())
        if common - depth > least:
            yield Node(low, high, depth, common)
            depth = common
        cuts = [low, *(low + 1 + np.flatnonzero(inner <= common)), high]
        pending += [(int(start), int(end), depth) for start, end in zip(cuts, cuts[1:]) if end - start > 1]


@dataclass(frozen=True)
class Plan:
    """One step's attention as tasks, for every layer of the step. Arrays of int64."""

    tasks: np.ndarray
    """[tasks, 4]: first token, tokens, first block, blocks; ranges of ``tokens`` and ``blocks``. The dearest first, for the threads take them in turn"""
    tokens: np.ndarray
    """of all tasks, as places in the step's queries"""
    visible: np.ndarray
    """for each of them, how many of its task's keys it sees, from the first on; below 0 as 0"""
    blocks: np.ndarray
    """of all tasks, as ids"""
    merged: np.ndarray
    """the step's queries that have tasks"""
    starts: np.ndarray
    """[merged + 1]: the parts of the i-th of them are parts[starts[i]:starts[i + 1]]"""
    parts: np.ndarray
    """places in ``tokens``"""
    rest: np.ndarray
    """rows without a task"""
    shared_rows: int
    """rows that share a node"""
    saved_blocks: int
    """that each row by itself would have read besides"""


class _Tasks:
    def __init__(self, most_tokens: int, block_size: int):
        self._most_tokens, self._most_blocks, self._block_size = most_tokens, max(1, KEYS // block_size), block_size
        self._tasks: list[tuple[int, int, int, int]] = []
        self._tokens: list[np.ndarray] = []
        self._visible: list[np.ndarray] = []
        self._blocks: list[np.ndarray] = []
        self._token_count = self._block_count = 0

    def add(self, tokens: np.ndarray, visible: np.ndarray, blocks: np.ndarray) -> None:
        """The tokens attend to the blocks, each to as many of their keys as it sees."""
        for low in range(0, len(blocks), self._most_blocks):
            part = blocks[low : low + self._most_blocks]
            for first in range(0, len(tokens), self._most_tokens):
                some = tokens[first : first + self._most_tokens]
                self._tasks.append((self._token_count, len(some), self._block_count, len(part)))
                self._tokens.append(some)
                self._visible.append(visible[first : first + self._most_tokens] - low * self._block_size)
                self._token_count += len(some)
            self._blocks.append(part)
            self._block_count += len(part)

    def plan(self, rest: np.ndarray, shared_rows: int, saved_blocks: int) -> Plan:
        tasks = np.array(self._tasks, dtype=np.int64)
        tasks = tasks[np.argsort(-tasks[:, 3] * (tasks[:, 1] + 4), kind="stable")]  # widening a tile costs about four queries' work
        tokens = np.concatenate(self._tokens).astype(np.int64)
        parts = np.argsort(tokens, kind="stable")
        merged, starts = np.unique(tokens[parts], return_index=True)
        return Plan(
            tasks=tasks,
            tokens=tokens,
            visible=np.concatenate(self._visible).astype(np.int64),
            blocks=np.concatenate(self._blocks).astype(np.int64),
            merged=merged,
            starts=np.append(starts, len(tokens)).astype(np.int64),
            parts=parts.astype(np.int64),
            rest=rest,
            shared_rows=shared_rows,
            saved_blocks=saved_blocks,
        )


def make_plan(
    table: np.ndarray,
    lengths: np.ndarray,
    queries: np.ndarray,
    block_size: int,
    group: int,
    all_or_none: bool,
    least_blocks: int,
    most_queries: int,
) -> Plan | None:
    """The plan of a step, or None where nothing is shared.

    Args:
        table: block ids, [rows, blocks].
        lengths: tokens of each row when the step is done, [rows].
        queries: of these, the row's last ones, which the step computes, [rows].
        block_size: tokens in a block.
        group: query heads for each head of keys and values.
        all_or_none: only a prefix that all rows share counts, as in vLLM's cascade attention.
        least_blocks: fewer shared blocks than that are not worth a task.
        most_queries: rows with more queries are left out.
    """
    starts = np.concatenate([[0], np.cumsum(queries)])
    computed = (lengths - queries) // block_size
    if all_or_none and (queries > most_queries).any():
        return None
    order = np.flatnonzero(queries <= most_queries)
    if len(order) < 2:
        return None
    order = order[sort_rows(table[order], computed[order])]
    agreed = agreement(table[order], computed[order])
    if all_or_none:
        common = int(agreed[1:].min())
        nodes = [Node(0, len(order), 0, common)] if common >= least_blocks else []
    else:
        nodes = list(tree(agreed, least_blocks - 1))
    if not nodes:
        return None
    tasks = _Tasks(max(1, QUERIES // group), block_size)
    depths = np.zeros(len(order), dtype=np.int64)
    tokens_of = [np.arange(starts[row], starts[row + 1]) for row in order]
    for node in nodes:
        tokens = np.concatenate(tokens_of[node.first_row : node.last_row])
        blocks = table[order[node.first_row], node.first_block : node.last_block]
        tasks.add(tokens, np.full(len(tokens), len(blocks) * block_size), blocks)
        depths[node.first_row : node.last_row] = node.last_block
    shared = depths > 0
    for place in np.flatnonzero(shared):
        row, depth = order[place], depths[place]
        used = -(-lengths[row] // block_size)
        visible = np.arange(lengths[row] - queries[row] + 1, lengths[row] + 1) - depth * block_size
        tasks.add(tokens_of[place], visible, table[row, depth:used])
    rest = np.setdiff1d(np.arange(len(lengths)), order[shared])
    saved = sum((node.last_row - node.first_row - 1) * (node.last_block - node.first_block) for node in nodes)
    return tasks.plan(rest, int(shared.sum()), saved)
