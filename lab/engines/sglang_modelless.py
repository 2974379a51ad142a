"""SGLang 0.5.9's real scheduler, policy, adder, radix cache, pools and batches without a model, on a machine without a GPU: for simulation
and tests, which make up the tokens."""

from types import SimpleNamespace

import torch

from feather.sglang import VERSIONS, check_version, install
from lab.engines.sglang_stubs import stub

if (found := check_version()) != VERSIONS[0]:
    raise ImportError(f"this is SGLang {found}, and the modelled engine runs the scheduler of {VERSIONS[0]}: use the environment .venv")
stub()
from sglang.srt import server_args as server_args_module  # noqa: E402
from sglang.srt.disaggregation.utils import DisaggregationMode  # noqa: E402
from sglang.srt.managers.schedule_batch import Req  # noqa: E402
from sglang.srt.mem_cache.allocator import TokenToKVPoolAllocator  # noqa: E402
from sglang.srt.mem_cache.cache_init_params import CacheInitParams  # noqa: E402
from sglang.srt.mem_cache.memory_pool import ReqToTokenPool  # noqa: E402
from sglang.srt.mem_cache.radix_cache import RadixCache  # noqa: E402
from sglang.srt.sampling.sampling_params import SamplingParams  # noqa: E402
from sglang.srt.speculative.spec_info import SpeculativeAlgorithm  # noqa: E402

install()  # the hooks; they leave SGLang's own policies as they are
from sglang.srt.managers.scheduler import Scheduler  # noqa: E402

__all__ = ["ModellessScheduler", "Req", "made_up", "make_request", "server_arguments"]

_TOKEN = 7  # what every step samples
_VOCABULARY = 1_000_000
_MODEL = SimpleNamespace(is_multimodal=False, is_encoder_decoder=False, is_matryoshka=False, vocab_size=_VOCABULARY, hidden_size=8)


def server_arguments(**changes):
    """SGLang's own defaults, without the check of model and devices that making them the usual way does."""
    arguments = server_args_module.ServerArgs.__new__(server_args_module.ServerArgs)
    settings = dict(
        model_path="none", served_model_name="none", schedule_policy="feather", max_running_requests=8, chunked_prefill_size=512, page_size=1,
        model_config=_MODEL, attention_backend="torch_native", disable_overlap_schedule=True,
    )  # fmt: skip
    for name, value in {**settings, **changes}.items():
        setattr(arguments, name, value)
    arguments.pp_max_micro_batch_size = arguments.max_running_requests
    return arguments


class ModellessScheduler(Scheduler):
    """SGLang's scheduler, with Feather's policy under ``schedule_policy="feather"``, as far as it schedules.

    Args:
        slots: tokens that the KV pool holds.
        max_tokens: of a request, prompt and output.
        loras: adapters that fit one batch.
        changes: SGLang's server arguments where they differ from ``server_arguments``.
    """

    def __init__(self, slots: int, max_tokens: int = 4096, loras: int | None = None, **changes):
        self.server_args = arguments = server_arguments(**changes)
        server_args_module.set_global_server_args_for_scheduler(arguments)
        for name in ("schedule_policy", "enable_priority_scheduling", "schedule_low_priority_values_first", "tp_size",
                     "priority_scheduling_preemption_threshold", "pp_size", "enable_pdmux", "max_running_requests",
                     "max_prefill_tokens", "page_size", "enable_lora"):  # fmt: skip
            setattr(self, name, getattr(arguments, name))
        self.enable_overlap = not arguments.disable_overlap_schedule
        self.dp_rank = None
        self.model_config = _MODEL
        self.device = "cpu"
        self.spec_algorithm = SpeculativeAlgorithm.from_string(None)
        self.metrics_collector = self.feather = self.fallback = None
        self.enable_hierarchical_cache = self.enable_hicache_storage = self.enable_metrics = False
        self.abort_on_priority_when_disabled = self.enable_lora_overlap_loading = self.require_mlp_sync = False
        self.enable_dynamic_chunking = self.current_scheduler_metrics_enabled = False
        self.max_queued_requests = self.dllm_config = self.truncation_align_size = None
        self.disaggregation_mode = DisaggregationMode.NULL
        self.is_generation = True
        self.num_generated_tokens = self.forward_ct_decode = 0
        self.grammar_manager = SimpleNamespace(has_waiting_grammars=lambda: False, abort_requests=lambda request: None)
        self.send_to_tokenizer = SimpleNamespace(send_output=lambda *arguments: None)
        if loras is not None:
            manager = SimpleNamespace(validate_lora_batch=lambda adapters: len(adapters) <= loras)
            self.tp_worker = SimpleNamespace(model_runner=SimpleNamespace(lora_manager=manager))
        self.token_to_kv_pool_allocator = TokenToKVPoolAllocator(
            slots, torch.bfloat16, "cpu", SimpleNamespace(maybe_get_custom_mem_pool=lambda: None), need_sort=False
        )
        self.req_to_token_pool = ReqToTokenPool(self.max_running_requests + 1, max_tokens, "cpu", False)
        self.tree_cache = RadixCache(CacheInitParams(False, self.req_to_token_pool, self.token_to_kv_pool_allocator, 1))
        self.init_running_status()
        self.init_chunked_prefill()
        self.init_schedule_policy()

    def __getattr__(self, name: str):  # a stubbed base class would have an answer to everything
        raise AttributeError(name)

    def stream_output(self, *arguments, **keywords):
        pass

    def maybe_collect_routed_experts(self, request):
        pass

    def maybe_prepare_mlp_sync_batch(self, batch, need_sync=None):
        return batch

    def maybe_send_health_check_signal(self):
        pass

    def _maybe_clear_mm_inputs(self, batch):
        pass

    def log_prefill_stats(self, *arguments, **keywords):
        pass


def make_request(id_: str, tokens, decode_tokens: int = 4, **arguments) -> Req:
    params = SamplingParams(max_new_tokens=decode_tokens, ignore_eos=True, temperature=0)
    params.normalize(None)
    return Req(id_, "", list(tokens), params, eos_token_ids=set(), vocab_size=_VOCABULARY, **arguments)


def made_up(batch) -> SimpleNamespace:
    """What a model would give for this batch: a token for each of its requests."""
    batch.output_ids = tokens = torch.full((len(batch.reqs),), _TOKEN, dtype=torch.int64)
    return SimpleNamespace(
        logits_output=SimpleNamespace(customized_info=None, hidden_states=None), next_token_ids=tokens, copy_done=None,
        can_run_cuda_graph=False, extend_input_len_per_req=None, extend_logprob_start_len_per_req=None, num_accepted_tokens=0,
    )  # fmt: skip
