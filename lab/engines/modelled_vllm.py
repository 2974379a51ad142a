"""vLLM's real scheduler and KV-cache manager, as the modelled device drives them."""

import tempfile
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from vllm.engine.arg_utils import EngineArgs
from vllm.sampling_params import SamplingParams
from vllm.utils.hashing import get_hash_fn_by_name
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus
from vllm.v1.structured_output import StructuredOutputManager

from feather.options import Options
from feather.vllm.queue import FeatherQueue
from lab import machine
from lab.engines.arms import Arm
from lab.engines.scheduling import Scheduled
from lab.engines.study_scheduler import StudyScheduler
from lab.llm import Model
from lab.model.rows import Rows, SharedBlocks
from lab.model.steptime import Batch
from lab.workloads import Prompt

_REMEMBERED = 512  # prompts
_TOKEN = 7  # what every step samples


class VllmScheduling:
    """``lab.engines.scheduling.Scheduling`` by vLLM: ``kv_blocks`` blocks of ``block_size`` tokens; ``clock`` gives the seconds that
    Feather takes for the time."""

    def __init__(
        self, model: Model, kv_blocks: int, block_size: int, max_batch: int, max_batched_tokens: int, prefix_caching: bool,
        clock: Callable[[], float],
    ):  # fmt: skip
        with tempfile.TemporaryDirectory() as folder:
            config = EngineArgs(
                model=str(model.write(Path(folder))),
                skip_tokenizer_init=True,
                max_num_seqs=max_batch,
                max_num_batched_tokens=max_batched_tokens,
                max_model_len=model.max_tokens,
                block_size=block_size,
                enable_prefix_caching=prefix_caching,
            ).create_engine_config()
        config.cache_config.num_gpu_blocks = kv_blocks
        spec = FullAttentionSpec(block_size=block_size, num_kv_heads=model.kv_heads, head_size=model.head_dim, dtype=torch.bfloat16)
        kv = KVCacheConfig(num_blocks=kv_blocks, kv_cache_tensors=[], kv_cache_groups=[KVCacheGroupSpec(["all"], spec)])
        self.real = SimScheduler(
            config, kv, StructuredOutputManager(config), block_size=block_size, hash_block_size=block_size, clock=clock
        )
        self.version = machine.engine_version()
        self.sorts = False
        self._block_size = block_size
        self._hasher = BlockHasher(block_size) if prefix_caching else None

    @property
    def steps(self) -> list:
        return self.real.steps

    @property
    def unfinished(self) -> int:
        return len(self.real.requests)

    @property
    def waiting(self) -> int:
        return len(self.real.waiting)

    @property
    def row_ids(self) -> list[str]:
        return self._ids

    def use(self, arm: Arm) -> None:
        if arm.kind == "sglang":
            raise ValueError(f"{arm.name!r} is a policy of SGLang's: it needs engine='sglang'")
        self.real.use(arm)
        self._requests: dict[str, Request] = {}
        self._rows, self._shared, self._batch = Rows(), SharedBlocks(self._block_size), None
        self._ids: list[str] = []

    def forget(self, warmed: list[list[int]]) -> None:
        self.real.reset_prefix_cache()
        self.real.warmed = warmed

    def add(self, id_: str, prompt: Prompt, arrival: float) -> None:
        self._requests[id_] = request = self.request(id_, prompt, arrival)
        self.real.add_request(request)

    def request(self, id_: str, prompt: Prompt, arrival: float) -> Request:
        params = SamplingParams(temperature=0, max_tokens=prompt.decode_tokens, ignore_eos=True, extra_args={"group": prompt.group})
        return Request(id_, prompt.tokens, params, None, arrival_time=arrival, block_hasher=self._hasher)

    def schedule(self) -> Scheduled | None:
        self._output = self.real.schedule()
        scheduled = self._output.num_scheduled_tokens
        if not scheduled:
            return None
        return Scheduled(len(scheduled), len(self._output.scheduled_new_reqs), kind_of(self.real.arm))

    def batch(self, free_prefill: bool) -> Batch:
        scheduled, rows, requests = self._output.num_scheduled_tokens, self._rows, self._requests
        prefill = len(scheduled) != sum(scheduled.values())
        if self._batch is not None and self._batch.new is None and not prefill and scheduled.keys() == set(rows.ids):
            self._batch.private_tokens += self._batch.rows
            return self._batch
        came, left = rows.update(scheduled)
        for id_ in left:
            self._shared.remove(id_)
        blocks_of = self.real.kv_cache_manager.get_block_ids
        for id_ in [*came, *(id_ for id_, tokens in scheduled.items() if tokens > 1 and id_ not in came)]:
            self._shared.put(id_, blocks_of(id_)[0][: requests[id_].num_computed_tokens // self._block_size])
        self._ids = ids = self._shared.by_prefix(rows.ids) if self.sorts else list(rows.ids)
        contexts = [requests[id_].num_computed_tokens for id_ in ids]
        new = [scheduled[id_] for id_ in ids] if prefill and not free_prefill else None
        self._batch = self._shared.batch(ids, contexts, new)
        return self._batch

    def deliver(self) -> tuple[list[str], int]:
        ids, cached = list(self._output.num_scheduled_tokens), 0
        through = [not self._requests[id_].is_prefill_chunk for id_ in ids]
        tokens = [[_TOKEN] if sampled else [] for sampled in through]
        result = ModelRunnerOutput(ids, {id_: row for row, id_ in enumerate(ids)}, tokens)
        for outputs in self.real.update_from_output(self._output, result).values():
            for one in outputs.outputs:
                if one.prefill_stats is not None:
                    cached += one.prefill_stats.num_cached_tokens
        return [id_ for id_, sampled in zip(ids, through) if sampled], cached

    def drop(self) -> bool:
        self.real.finish_requests(None, RequestStatus.FINISHED_ABORTED)
        return True


def kind_of(arm: Arm) -> str:
    """The row of the cost table that an arm (``lab.engines.arms.Arm``) is charged by. Whatever matches all that waits in a radix tree is
    charged as LPM, whose sorting is a small part; a window of some tens of requests is not charged."""
    if arm.kind == "radix":
        return "radix dfs-weight" if arm.options["policy"] == "dfs-weight" else "radix lpm"
    return {"published": "feather", "window": "fcfs"}.get(arm.kind, arm.kind)


class SimScheduler(StudyScheduler):
    """``clock`` gives the seconds that Feather takes for the time."""

    def __init__(self, *args, clock: Callable[[], float], **kwargs):
        self.clock = clock
        super().__init__(*args, **kwargs)

    def make_feather_queue(self, options: Options) -> FeatherQueue:
        # The budget is one of real time, of which a virtual clock knows nothing.
        return super().make_feather_queue(replace(options, decision_budget=float("inf")))


class BlockHasher:
    """vLLM's own block hashes. Those of the leading blocks that a prompt has in common with an earlier one are looked up
    instead of computed again: most of the time of a simulated run would go there."""

    def __init__(self, block_size: int):
        hash_function = get_hash_fn_by_name("sha256")
        init_none_hash(hash_function)
        self._hash = get_request_block_hasher(block_size, hash_function)
        self._block_size = block_size
        self._known: OrderedDict[tuple, tuple[Sequence[int], list]] = OrderedDict()

    def __call__(self, request: Request) -> list:
        if request.block_hashes:
            return self._hash(request)
        tokens = request.prompt_token_ids
        first = tuple(tokens[: self._block_size])
        earlier, hashes = self._known.get(first, ((), []))
        request.block_hashes.extend(hashes[: self._shared_blocks(tokens, earlier)])
        computed = self._hash(request)
        self._known[first] = tokens, [*request.block_hashes, *computed]
        self._known.move_to_end(first)
        if len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)
        return computed

    def _shared_blocks(self, tokens: Sequence[int], earlier: Sequence[int]) -> int:
        low, high = 0, min(len(tokens), len(earlier)) // self._block_size
        while low < high:
            middle = (low + high + 1) // 2
            start, end = low * self._block_size, middle * self._block_size
            if tokens[start:end] == earlier[start:end]:
                low = middle
            else:
                high = middle - 1
        return low
