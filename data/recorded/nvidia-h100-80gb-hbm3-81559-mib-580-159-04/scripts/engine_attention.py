"""The attention kernels that vLLM and PyTorch ship, over the batches of benchmarks.decode_attention: ``python engine_attention.py --heads llama-3-8b --rows FILE``.

One layer's decode attention, as the engine calls it, with FlashAttention 3 or 2 over the paged pool (``paged``; ``cascade`` is vLLM's
two calls and the merge), and with PyTorch's flash attention over contiguous copies of the prefixes (``packed``: one call a
group; ``paged``: a call in which every row reads its prefix for itself). The last leaves out each row's own tokens.
"""

import argparse
import json
import time
from pathlib import Path

import pandas as pd
import torch

from lab.kernels import reference
from lab.kernels.batch import divergent, even
from lab.kernels.packing import fetched_tokens
from lab import machine
from lab.studies.decode_attention import SIZES, SUFFIX, Bench, Sizes
from lab.studies.study import COLUMNS, Study, frame

STUDY = "10_engine_attention"


class FlashAttention:
    """vLLM's build of FlashAttention, called as its backend for CUDA calls it."""

    def __init__(self, pool, fa: int):
        from vllm.v1.attention.backends import flash_attn as backend
        from vllm.vllm_flash_attn import flash_attn_varlen_func, get_scheduler_metadata

        self.pool, self.fa = pool, fa
        self._cascade, self._call, self._schedule = backend.cascade_attention, flash_attn_varlen_func, get_scheduler_metadata

    def implementation(self, kernel: str) -> str:
        return f"FlashAttention {self.fa} of {machine.engine_version()}"

    def fetched_tokens(self, batch, kernel: str) -> int:
        # Cascade: all rows' queries against the prefix as one sequence, in tiles of 128 rows (times the heads that share a key).
        return fetched_tokens(batch, kernel, max(1, 128 // self.pool.heads.per_kv))

    def _metadata(self, rows: int, longest_query: int, lengths, longest: int, starts, causal: bool):
        if self.fa != 3:
            return None
        heads = self.pool.heads
        return self._schedule(
            batch_size=rows, max_seqlen_q=longest_query, max_seqlen_k=longest, num_heads_q=heads.query, num_heads_kv=heads.kv,
            headdim=heads.size, cache_seqlens=lengths, qkv_dtype=self.pool.dtype, cu_seqlens_q=starts,
            page_size=self.pool.block_size, causal=causal, window_size=(-1, -1), num_splits=0,
        )  # fmt: skip

    def prepare(self, kernel: str, batch, table):
        pool, rows = self.pool, len(batch.groups)
        numbers = lambda values: torch.tensor(values, dtype=torch.int32, device=pool.device)  # noqa: E731
        table, lengths, longest = table.to(pool.device), numbers(batch.lengths), max(batch.lengths)
        starts = torch.arange(rows + 1, dtype=torch.int32, device=pool.device)
        out = torch.empty((rows, pool.heads.query, pool.heads.size), dtype=pool.dtype, device=pool.device)
        scale = pool.heads.size**-0.5
        if kernel == "paged":
            plan = self._metadata(rows, 1, lengths, longest, starts, True)

            def attend(queries):
                self._call(
                    q=queries, k=pool.keys, v=pool.values, out=out, cu_seqlens_q=starts, max_seqlen_q=1, seqused_k=lengths,
                    max_seqlen_k=longest, softmax_scale=scale, causal=True, window_size=[-1, -1], block_table=table,
                    scheduler_metadata=plan, fa_version=self.fa,
                )  # fmt: skip
                return out

            return attend
        if kernel != "cascade":
            raise ValueError(f"kernel {kernel!r}: this implementation has paged and cascade")
        prefix, whole, own = batch.prefix_tokens, numbers([0, rows]), lengths - batch.prefix_tokens
        shared = numbers([prefix])
        first = self._metadata(1, rows, shared, prefix, whole, False)
        second = self._metadata(rows, 1, own, longest - prefix, starts, True)

        def attend(queries):
            self._cascade(
                out, queries, pool.keys, pool.values, cu_query_lens=starts, max_query_len=1, cu_prefix_query_lens=whole,
                prefix_kv_lens=shared, suffix_kv_lens=own, max_kv_len=longest, softmax_scale=scale, alibi_slopes=None,
                sliding_window=(-1, -1), logits_soft_cap=0, block_table=table, common_prefix_len=prefix, max_num_splits=0,
                fa_version=self.fa, prefix_scheduler_metadata=first, suffix_scheduler_metadata=second,
            )  # fmt: skip
            return out

        return attend


class TorchFlash:
    """PyTorch's flash attention over contiguous copies of the prefixes, made beforehand; a row's own tokens are left out. Query heads
    that share a key stand in the place of queries, so that nothing is repeated."""

    def __init__(self, pool):
        self.pool = pool

    def implementation(self, kernel: str) -> str:
        return f"flash attention of PyTorch {torch.__version__}, prefixes contiguous, own tokens left out"

    def fetched_tokens(self, batch, kernel: str) -> int:
        return len(set(batch.groups)) * batch.prefix_tokens if kernel == "packed" else len(batch.groups) * batch.prefix_tokens

    def prepare(self, kernel: str, batch, table):
        from torch.nn.attention import SDPBackend, sdpa_kernel
        from torch.nn.functional import scaled_dot_product_attention as attention

        pool, heads = self.pool, self.pool.heads
        members: dict[int, list[int]] = {}
        for row, group in enumerate(batch.groups):
            members.setdefault(group, []).append(row)
        parts = []
        for rows in members.values():
            blocks = table[rows[0], : batch.prefix_tokens // pool.block_size].long().to(pool.device)
            keys, values = (part[blocks].flatten(0, 1).transpose(0, 1)[None].contiguous() for part in (pool.keys, pool.values))
            parts.append((torch.tensor(rows, device=pool.device), keys, values))
        count = len(batch.groups)
        if kernel == "paged" and len(parts) > 1:
            raise ValueError("paged: only for one group here")
        flash = [SDPBackend.FLASH_ATTENTION, SDPBackend.MATH] if pool.device == "cpu" else [SDPBackend.FLASH_ATTENTION]

        def attend(queries):
            out = torch.empty_like(queries)
            with sdpa_kernel(flash):
                if kernel == "paged":
                    _, keys, values = parts[0]
                    rows = queries.view(count, heads.kv, heads.per_kv, heads.size)
                    return attention(rows, keys.expand(count, -1, -1, -1), values.expand(count, -1, -1, -1)).reshape(queries.shape)
                for rows, keys, values in parts:
                    mine = queries[rows].view(-1, heads.kv, heads.per_kv, heads.size).transpose(0, 1).reshape(1, heads.kv, -1, heads.size)
                    found = attention(mine, keys, values)
                    out[rows] = found.view(heads.kv, -1, heads.per_kv, heads.size).transpose(0, 1).reshape(-1, heads.query, heads.size)
            return out

        return attend


class EngineBench(Bench):
    """The bench with another implementation in the place of its own kernels, launched by Python, not from a graph: the copy before every
    call keeps the device busy for longer than the launches take."""

    def _captured(self, call):
        return call


def batches(sizes: Sizes, most_groups: int):
    """(curve, labels, batch): groups in three orders, and requests on a second prefix."""
    requests, tokens = sizes.requests, sizes.prefix_tokens
    for groups in sizes.groups:
        if groups > most_groups:
            continue
        for order in ("grouped", "round-robin", "shuffled") if 1 < groups < requests else ("grouped",):
            yield "groups", {"groups": groups, "order": order}, even(requests, groups, order, tokens, SUFFIX)
    for second in sizes.divergent:
        for order in ("shuffled", "grouped"):
            yield "divergent", {"divergent": second, "order": order}, divergent(requests, second, order, tokens, SUFFIX)
    for fewer in (2, 4, 8):
        for groups in {1, min(10, requests // fewer)} & set(range(most_groups + 1)):
            yield "batch", {"groups": groups, "order": "grouped"}, even(requests // fewer, groups, "grouped", tokens, SUFFIX)


def conditions(bench: EngineBench, implementations: list, most_groups: int) -> list:
    """One list over all implementations, so that they are measured interleaved."""
    found, one = [], {}
    for implementation in implementations:
        def add(kernel, batch, curve, implementation=implementation, **labels):
            bench.attention = implementation
            condition = bench.condition(kernel, batch, curve, **labels)

            def run(seed, condition=condition, implementation=implementation):
                bench.attention = implementation
                return condition.run(seed)

            found.append(type(condition)(condition.policy, condition.parameters, run, None))

        contiguous = isinstance(implementation, TorchFlash)
        for curve, labels, batch in batches(bench.sizes, most_groups):
            groups = len(set(batch.groups))
            if contiguous:
                if curve == "groups" and labels["order"] == "grouped" and groups in (1, 2, 5, 10):
                    add("packed", batch, curve, **labels)
                    if groups == 1:
                        add("paged", batch, curve, **labels)
                continue
            add("paged", batch, curve, **labels)
            if groups == 1:
                add("cascade", batch, curve, **labels)
    return found


def check(bench: EngineBench, implementations: list) -> list[dict]:
    """Every implementation against float64 on a few rows."""
    rows = []
    batch = even(8, 1, "grouped", bench.sizes.prefix_tokens, SUFFIX)
    table, queries = bench.pool.table(batch), bench.pool.queries(8, 1)
    wanted = reference.attend(bench.pool, queries, table, batch)
    bare = even(8, 1, "grouped", bench.sizes.prefix_tokens, 0)
    wanted_bare = reference.attend(bench.pool, queries, table, bare)
    for implementation in implementations:
        contiguous = isinstance(implementation, TorchFlash)
        for kernel in ("paged", "packed" if contiguous else "cascade"):
            error = reference.max_rel_err(implementation.prepare(kernel, batch, table)(queries), wanted_bare if contiguous else wanted)
            rows.append({"implementation": implementation.implementation(kernel), "kernel": kernel, "max_rel_err": error, "ok": error < 2e-2})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--heads", default="llama-3-8b")
    parser.add_argument("--backend", default="gpu")
    parser.add_argument("--implementations", default="fa3,fa2,torch")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--most-groups", type=int, default=100)
    parser.add_argument("--sizes", help="JSON: requests, prefix_tokens, groups, divergent")
    parser.add_argument("--rows", type=Path, required=True)
    options = parser.parse_args()
    sizes = Sizes(**json.loads(options.sizes)) if options.sizes else SIZES[options.backend][options.heads]
    start = time.perf_counter()
    bench = EngineBench(options.backend, options.heads, sizes)
    implementations = []
    for name in options.implementations.split(","):
        try:
            one = TorchFlash(bench.pool) if name == "torch" else FlashAttention(bench.pool, int(name[2:]))
            rows = check(bench, [one])
            print("CHECK", json.dumps(rows), flush=True)
            if all(row["ok"] for row in rows):
                implementations.append(one)
        except Exception as error:  # a kernel that is not there must not cost the others their rows
            print(f"{name} left out: {type(error).__name__}: {str(error)[:400]}", flush=True)
    out = options.rows.parent / f"{options.rows.name.split('.')[0]}-out"
    study = Study(STUDY, None, out, options.backend)
    table = study.measure(conditions(bench, implementations, options.most_groups), options.repeats)
    table[COLUMNS].loc[:, ~table[COLUMNS].columns.duplicated()].to_csv(options.rows, index=False, compression={"method": "gzip", "mtime": 0})
    times = table[table["metric"] == "attention time"]
    short = times.assign(implementation=times["implementation"].str.slice(0, 30)).groupby(
        ["implementation", "policy", "curve", "requests", "groups", "divergent", "order"], dropna=False, sort=False)["value"]
    print(short.describe()[["25%", "50%", "75%"]].round(4).to_string())
    print(f"copy {table[table['metric'] == 'copy bandwidth']['value'].median():.0f} GB/s; {time.perf_counter() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
