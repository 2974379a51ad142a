"""vLLM's attention backend for CPUs with Feather's kernel in it.

The options ``attention`` and ``rows`` of ``additional_config["feather"]`` say what it does; without them it is vLLM's backend as it was. What
the kernel does not know (see ``reason_against``) stays with vLLM's, with one line in the log, and so does everything after a failure.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from vllm import _custom_ops as ops
from vllm.logger import init_logger
from vllm.v1.attention.backend import AttentionType, CommonAttentionMetadata
from vllm.v1.attention.backends import cpu_attn

from feather.options import Options
from feather.vllm.attention.attend import Attend
from feather.vllm.attention.counters import Counters, is_first_worker, path
from feather.vllm.attention.layout import PAIRED, layout_of
from feather.vllm.attention.plan import make_plan, sort_rows
from feather.vllm.attention.vectors import LANES

logger = init_logger("vllm.feather")

LEAST_TOKENS = 128
"""a shorter prefix is not worth a task of its own"""
LEAST_READ = 65_536
"""tokens of keys and values, over all layers, that a step reads: with fewer, planning and merging cost more than sharing saves (8 groups of 256 tokens, 32
rows, 4 layers: 0.84 × paged throughput; ``benchmarks.attention``)"""
MOST_QUERIES = 256
"""rows with more, such as a long prefill, go to vLLM's kernel, which is made for them"""


@dataclass
class Metadata(cpu_attn.CPUAttentionMetadata):
    """vLLM's own for all rows, and how Feather's kernel takes them."""

    attend: Attend | None = None
    """with this step's plan; None: no row goes to Feather's kernel"""
    tokens: torch.Tensor | None = None
    """the step's queries that go to vLLM's kernel, in this order; None: all as they are, or none where ``attend`` takes them all"""
    others: cpu_attn.CPUAttentionMetadata | None = None
    """what vLLM's kernel is told of these"""


class Builder(cpu_attn.CPUAttentionMetadataBuilder):
    """Plans each step. ``mode`` and ``sorts`` can be changed between steps."""

    dtype: torch.dtype

    def __init__(self, kv_cache_spec: Any, layer_names: list[str], vllm_config: Any, device: torch.device):
        super().__init__(kv_cache_spec, layer_names, vllm_config, device)
        options = Options.from_additional_config(vllm_config.additional_config)
        self.mode, self.sorts = options.attention, options.rows == "prefix"
        self.counters = Counters(path(vllm_config) if options.changes_steps and is_first_worker() else None)
        self._attend: Attend | None = None
        self._layers = [layer.impl for layer in cpu_attn.get_layers_from_vllm_config(vllm_config, cpu_attn.Attention, layer_names).values()]
        if self.mode != "paged":
            self.use(self.mode)

    def use(self, mode: str) -> None:
        """Attend as this mode says, from the next step on: "paged", "cascade" or "packed"."""
        self.mode = mode
        if mode == "paged" or self._attend is not None:
            return
        against = reason_against(self, self._layers)
        if against:
            logger.warning("Feather leaves attention to vLLM's kernel (attention=%r has no effect): %s", mode, against)
            self.mode = "paged"
            return
        scale = self._layers[0].scale
        try:
            paired = _layout(self) == PAIRED
            self._attend = Attend(self.num_heads, self.num_kv_heads, self.head_dim, self.block_size, self.dtype, scale, paired)
        except Exception:
            self._fail()

    def build(self, common_prefix_len: int, common_attn_metadata: CommonAttentionMetadata, fast_build: bool = False) -> Metadata:
        vllms = super().build(common_prefix_len, common_attn_metadata, fast_build)
        metadata = Metadata(**{field.name: getattr(vllms, field.name) for field in fields(vllms)})
        if (self.mode != "paged" or self.sorts) and vllms.causal and vllms.dynamic_causal is None and vllms.encoder_cache is None:
            try:
                self._plan(metadata)
            except Exception:
                self._fail()
                metadata.attend = metadata.tokens = metadata.others = None
        return metadata

    def _fail(self) -> None:
        logger.exception("Feather's attention failed: vLLM's kernel takes over for the rest of this run")
        self.mode, self.sorts = "paged", False

    def _plan(self, metadata: Metadata) -> None:
        table, lengths = metadata.block_table.numpy(), metadata.seq_lens.numpy().astype(np.int64)
        starts = metadata.query_start_loc.numpy().astype(np.int64)
        queries = np.diff(starts[: len(lengths) + 1])
        rows = np.arange(len(lengths))
        self.counters.add(steps=1, rows=len(rows))
        attend, plan = None if self.mode == "paged" else self._attend, None
        if attend is not None and int(lengths.sum()) * len(self._layers) >= LEAST_READ:
            group, least = self.num_heads // self.num_kv_heads, max(1, LEAST_TOKENS // self.block_size)
            plan = make_plan(table, lengths, queries, self.block_size, group, self.mode == "cascade", least, MOST_QUERIES)
        if attend is not None and plan is not None:
            self.counters.add(**{self.mode: 1}, shared_rows=plan.shared_rows, saved_tokens=plan.saved_blocks * self.block_size)
            attend.use(plan)
            metadata.attend = attend
            rows = plan.rest
        # A long prefill is not carried about for the sake of the rows beside it.
        if self.sorts and len(rows) > 2 and metadata.num_actual_tokens <= len(lengths) * MOST_QUERIES:
            rows = rows[sort_rows(table[rows], (lengths[rows] - queries[rows]) // self.block_size)]
        if len(rows) and (plan is not None or (np.diff(rows) < 0).any()):
            metadata.tokens = torch.from_numpy(np.concatenate([np.arange(starts[row], starts[row + 1]) for row in rows]))
            metadata.others = self._of_rows(metadata, torch.from_numpy(rows), torch.from_numpy(queries[rows]))

    def _of_rows(self, metadata: Metadata, rows: torch.Tensor, queries: torch.Tensor) -> cpu_attn.CPUAttentionMetadata:
        """What vLLM's kernel is told of these rows alone."""
        lengths, table = metadata.seq_lens[rows].contiguous(), metadata.block_table[rows].contiguous()
        starts = torch.zeros(len(rows) + 1, dtype=torch.int32)
        torch.cumsum(queries, 0, out=starts[1:])
        told = ops.cpu_attn_get_scheduler_metadata(
            num_reqs=len(rows),
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            seq_lens=lengths,
            dtype=self.dtype,
            query_start_loc=starts,
            causal=True,
            sliding_window_size=self.window_size,
            isa=self.isa,
            enable_kv_split=cpu_attn.envs.VLLM_CPU_ATTN_SPLIT_KV,
            dynamic_causal=None,
            kv_cache_dtype=self.kv_cache_dtype,
        )
        vllms = {field.name: getattr(metadata, field.name) for field in fields(cpu_attn.CPUAttentionMetadata)}
        changed = {"num_actual_tokens": int(starts[-1]), "query_start_loc": starts, "seq_lens": lengths, "block_table": table}
        return cpu_attn.CPUAttentionMetadata(**{**vllms, **changed, "scheduler_metadata": told})


class Attention(cpu_attn.CPUAttentionBackendImpl):
    def forward(self, layer, query, key, value, kv_cache, attn_metadata, output, *args, **kwargs) -> torch.Tensor:  # noqa: ANN001
        told = attn_metadata if isinstance(attn_metadata, Metadata) else None
        if told is None or (told.attend is None and told.tokens is None):
            return super().forward(layer, query, key, value, kv_cache, attn_metadata, output, *args, **kwargs)
        result = output.view(-1, self.num_heads, self.head_size)
        if told.attend is not None:
            told.attend(query[: told.num_actual_tokens], kv_cache, result)
        if told.tokens is not None:
            taken = torch.empty((len(told.tokens), *output.shape[1:]), dtype=output.dtype)
            super().forward(layer, query[told.tokens], key, value, kv_cache, told.others, taken, *args, **kwargs)
            output[told.tokens] = taken
        return output


class Backend(cpu_attn.CPUAttentionBackend):
    @staticmethod
    def get_impl_cls() -> type[Attention]:
        return Attention

    @staticmethod
    def get_builder_cls() -> type[Builder]:
        return Builder


def reason_against(builder: Builder, layers: Sequence[Any]) -> str:
    """Why Feather's kernel cannot attend for these layers; "" where it can."""
    if builder.dtype not in (torch.bfloat16, torch.float32):
        return f"it computes in bfloat16 and float32, not {builder.dtype}"
    if builder.kv_cache_dtype != "auto" and builder.kv_cache_dtype != str(builder.dtype).removeprefix("torch."):
        return f"it does not read a KV cache of {builder.kv_cache_dtype}"
    if builder.head_dim % LANES or builder.block_size % LANES:
        return f"it takes heads and blocks of multiples of {LANES}, not heads of {builder.head_dim} and blocks of {builder.block_size}"
    if builder.is_cross_attention or builder.is_encoder_only_attention or any(layer.attn_type != AttentionType.DECODER for layer in layers):
        return "it is for decoders"
    if any(layer.sliding_window != -1 for layer in layers):
        return "it knows no sliding windows"
    for name, what in (("alibi_slopes", "ALiBi"), ("sinks", "attention sinks"), ("logits_soft_cap", "soft caps")):
        if any(getattr(layer, name) not in (None, 0) for layer in layers):
            return f"it knows no {what}"
    if len({(layer.scale, layer.num_heads) for layer in layers}) > 1:
        return "its layers differ in heads or scale"
    if _layout(builder) is None:
        return f"this build of vLLM keeps keys or values in an order that it does not know ({builder.isa})"
    return ""


def _layout(builder: Builder) -> str | None:
    told = {"k_scale": 1.0, "v_scale": 1.0, "kv_cache_dtype": builder.kv_cache_dtype}
    return layout_of(builder.num_kv_heads, builder.head_dim, builder.block_size, builder.dtype, builder.isa, **told)
