"""vLLM's real scheduler and KV-cache manager without a model: the tests make up the tokens."""

from collections import deque
from functools import cache

import torch
from vllm.engine.arg_utils import EngineArgs
from vllm.sampling_params import SamplingParams
from vllm.utils.hashing import get_hash_fn_by_name
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus
from vllm.v1.structured_output import StructuredOutputManager

from lab.llm import TINY_LLAMA

BLOCK = 16


def make_scheduler(cls, folder, blocks=2000, max_num_seqs=8, max_tokens=512, feather=None, log_stats=False, **engine_args):
    """A scheduler over ``blocks`` KV blocks of 16 tokens; ``feather`` goes into additional_config."""
    config = EngineArgs(
        model=str(TINY_LLAMA.write(folder)),
        skip_tokenizer_init=True,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_tokens,
        max_model_len=4096,
        block_size=BLOCK,
        additional_config={} if feather is None else {"feather": feather},
        **{"enable_prefix_caching": True, **engine_args},
    ).create_engine_config()
    config.cache_config.num_gpu_blocks = blocks
    spec = FullAttentionSpec(block_size=BLOCK, num_kv_heads=8, head_size=64, dtype=torch.bfloat16)
    kv = KVCacheConfig(num_blocks=blocks, kv_cache_tensors=[], kv_cache_groups=[KVCacheGroupSpec(["layer"], spec)])
    return cls(config, kv, StructuredOutputManager(config), block_size=BLOCK, hash_block_size=BLOCK, log_stats=log_stats)


@cache
def hash_function():
    function = get_hash_fn_by_name("sha256")
    init_none_hash(function)  # once: vLLM 0.25 draws another seed each time
    return function


def make_request(scheduler, id_, tokens, decode=4, **request_args):
    hasher = get_request_block_hasher(BLOCK, hash_function()) if scheduler.cache_config.enable_prefix_caching else None
    if "pooling_params" in request_args:
        return Request(id_, list(tokens), None, block_hasher=hasher, **request_args)
    extra, structured = request_args.pop("extra", None), request_args.pop("structured_outputs", None)
    params = SamplingParams(max_tokens=decode, ignore_eos=True, temperature=0, extra_args=extra, structured_outputs=structured)
    params._eos_token_id = None
    return Request(id_, list(tokens), params, None, block_hasher=hasher, **request_args)


class Driver:
    """Runs a scheduler ``depth`` schedules ahead of the results, as async scheduling does at 2, and keeps account."""

    def __init__(self, scheduler, depth=1):
        self.scheduler, self.depth = scheduler, depth
        self.in_flight = deque()
        self.tokens = {}
        self.finished = []
        self.batches = []
        self.cached_tokens = 0  # found in the prefix cache by requests when they started

    def add(self, *requests):
        for request in requests:
            self.tokens[request.request_id] = 0
            self.scheduler.add_request(request)

    def step(self, **arguments):
        output = self.scheduler.schedule(**arguments)
        self.cached_tokens += sum(new.num_computed_tokens for new in output.scheduled_new_reqs)
        if output.total_num_scheduled_tokens:
            self.batches.append(list(output.num_scheduled_tokens))
        self.in_flight.append(output)
        if len(self.in_flight) >= self.depth:
            self.deliver()
        return output

    def deliver(self):
        output = self.in_flight.popleft()
        ids = list(output.num_scheduled_tokens)
        sampled = []
        for id_ in ids:
            request = self.scheduler.requests.get(id_)
            # A prefill, or the recomputation of what a preempted request had, that is not through yet samples nothing.
            through = request is not None and self._computed(request, output) >= request.num_tokens
            sampled.append(self.sample(request, output) if through else [])
        result = ModelRunnerOutput(ids, {id_: row for row, id_ in enumerate(ids)}, sampled)
        self.complete(result)
        for outputs in self.scheduler.update_from_output(output, result).values():
            for one in outputs.outputs:
                self.tokens[one.request_id] += len(one.new_token_ids)
                if one.finish_reason is not None:
                    self.finished.append(one.request_id)

    def sample(self, request, output):
        """The tokens that the model makes for a request whose prefill is through."""
        return [7]

    def complete(self, result):
        """Whatever else the model runner reports."""

    @staticmethod
    def _computed(request, output):
        if request.request_id in {new.req_id for new in output.scheduled_new_reqs}:
            start = next(new for new in output.scheduled_new_reqs if new.req_id == request.request_id).num_computed_tokens
        else:
            cached = output.scheduled_cached_reqs
            start = cached.num_computed_tokens[cached.req_ids.index(request.request_id)]
        return start + output.num_scheduled_tokens[request.request_id]

    def run(self, max_steps=2000):
        """To the end; fails rather than spin for ever."""
        for _ in range(max_steps):
            if not self.scheduler.has_unfinished_requests():
                while self.in_flight:
                    self.deliver()
                return self
            self.step()
        raise AssertionError(f"still unfinished after {max_steps} steps: {list(self.scheduler.requests)}")


class Grammar:
    """Accepts everything."""

    def accept_tokens(self, request_id, tokens):
        return True

    def validate_tokens(self, tokens):
        return tokens

    def is_terminated(self):
        return False


def abort(scheduler, *ids):
    scheduler.finish_requests(ids, RequestStatus.FINISHED_ABORTED)
