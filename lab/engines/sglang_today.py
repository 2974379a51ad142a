"""SGLang 0.5.23 as it is, in this process and on a CPU: its own scheduler, policies, adder, radix cache (Rust) and pools, started with its
own arguments and plug-ins (environment: ``requirements/other_sglang.sh 0.5.23``).

``started`` once per process; between tests or runs, ``configure``. The model is as small as can be, and its output is made up unless it is asked
to compute.
"""

import os
import tempfile
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ["SGLANG_USE_CPU_ENGINE"] = "1"
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from feather.sglang import install
from feather.sglang.plugin import load
from lab.llm import Model

load()  # the hooks, and not ``install``: the options in the environment stay as they are
import torch  # noqa: E402
from sglang.srt.layers.logits_processor import LogitsProcessorOutput  # noqa: E402
from sglang.srt.managers.schedule_batch import Req  # noqa: E402
from sglang.srt.managers.scheduler import Scheduler  # noqa: E402
from sglang.srt.managers.utils import GenerationBatchResult  # noqa: E402
from sglang.srt.runtime_context import SpawnRanks, get_context, publish  # noqa: E402
from sglang.srt.sampling.sampling_params import SamplingParams  # noqa: E402
from sglang.srt.server_args import PortArgs, ServerArgs  # noqa: E402

NANO = Model("nano-llama", 1, 64, 128, 2, 2, 32, 32_000, 32_768)
_TOKEN = 7  # what a made-up step samples


def arguments(folder: Path, **changes: Any) -> ServerArgs:
    """SGLang's arguments for the smallest model on a CPU, with ``--schedule-policy feather``."""
    settings = dict(
        model_path=str(NANO.write(folder)), load_format="dummy", skip_tokenizer_init=True, dtype="float32", device="cpu",
        attention_backend="torch_native", schedule_policy="feather", max_running_requests=8, max_total_tokens=32_000,
        chunked_prefill_size=512, disable_cuda_graph=True, disable_overlap_schedule=True, log_level="error",
    )  # fmt: skip
    return ServerArgs(**{**settings, **changes})


@cache
def started() -> Scheduler:
    """The one scheduler of this process: 200 000 tokens, 64 requests at once at most, a model whose output is made up (``make_up``)."""
    scheduler = start(max_total_tokens=200_000, max_running_requests=64)
    make_up(scheduler)
    return scheduler


def start(**changes: Any) -> Scheduler:
    """SGLang's scheduler, started; ``changes``: its arguments, see ``arguments``. Raises RuntimeError the second time in a process."""
    chosen = arguments(Path(tempfile.mkdtemp()), **changes)
    chosen.resolve_once()
    publish(chosen, role="scheduler", ranks=SpawnRanks(world_rank=0, gpu_id=0))
    scheduler = Scheduler(chosen, PortArgs.init_new(chosen))
    for sender, method in ((scheduler.output_streamer, "stream_output"), (scheduler.ipc_channels.send_to_tokenizer, "send_output")):
        setattr(type(sender), method, lambda *arguments, **keywords: None)  # nobody listens
    return scheduler


def configure(
    scheduler: Scheduler,
    policy: str = "feather",
    options: dict | None = None,
    slots: int | None = None,
    loras: int | None = None,
    max_running_requests: int = 8,
    **changes: Any,
) -> Scheduler:
    """An empty scheduler with another policy, options of Feather's, and resolved arguments of SGLang's where they differ from its defaults here
    (``chunked_prefill_size``, ``enable_mixed_chunk``, ``disable_overlap_schedule``, priorities …). ``slots``: tokens of the KV pool left to use.
    ``loras``: adapters that fit one batch; their weights are none."""
    settings = dict(
        chunked_prefill_size=512, enable_mixed_chunk=False, disable_overlap_schedule=True, enable_priority_scheduling=False,
        schedule_low_priority_values_first=False, schedule_conservativeness=1.0, pp_max_micro_batch_size=max_running_requests,
    )  # fmt: skip
    settings |= changes
    get_context().override("lab", **settings, schedule_policy="fcfs" if policy == "feather" else policy)
    scheduler.init_running_status()
    scheduler.tree_cache.reset()
    scheduler.req_to_token_pool.clear()
    scheduler.token_to_kv_pool_allocator.clear()
    if slots is not None:
        scheduler.token_to_kv_pool_allocator.alloc(scheduler.token_to_kv_pool_allocator.available_size() - slots)
    scheduler.enable_overlap = not settings["disable_overlap_schedule"]
    scheduler.enable_priority_scheduling = settings["enable_priority_scheduling"]
    scheduler.schedule_low_priority_values_first = settings["schedule_low_priority_values_first"]
    scheduler.schedule_policy = "fcfs" if policy == "feather" else policy
    scheduler.max_running_requests = max_running_requests
    scheduler.enable_lora, scheduler.lora_drainer = loras is not None, None
    adapters_fit = SimpleNamespace(validate_lora_batch=lambda adapters: len(adapters) <= (loras or 0))
    scheduler.tp_worker.model_runner.lora_manager = None if loras is None else adapters_fit
    scheduler.init_chunked_prefill()
    scheduler.init_overlap()
    scheduler.init_batch_result_processor()
    install(options or {})
    with _asked_for(scheduler, policy):
        scheduler.init_schedule_policy()
    return scheduler


@contextmanager
def _asked_for(scheduler: Scheduler, policy: str) -> Iterator[None]:
    sealed, scheduler.server_args = scheduler.server_args, SimpleNamespace(schedule_policy=policy)
    try:
        yield
    finally:
        scheduler.server_args = sealed


def make_request(id_: str, tokens, decode_tokens: int = 4, **keywords: Any) -> Req:
    # There is no token that ends a request. Were it told to ignore them, SGLang would reserve all its tokens and retract nobody.
    params = SamplingParams(max_new_tokens=decode_tokens, temperature=0)
    params.normalize(None)
    return Req(id_, "", array("q", tokens), params, eos_token_ids=set(), vocab_size=NANO.vocabulary, **keywords)


def made_up(batch) -> GenerationBatchResult:
    """What a model would give for this batch: a token for each of its requests."""
    tokens = torch.full((len(batch.reqs),), _TOKEN, dtype=torch.int64)
    return GenerationBatchResult(logits_output=LogitsProcessorOutput(next_token_logits=None), next_token_ids=tokens)


def make_up(scheduler: Scheduler) -> None:
    """From now on the model computes nothing."""
    scheduler.model_worker = SimpleNamespace(forward_batch_generation=lambda batch, **keywords: made_up(batch))


def compute(scheduler: Scheduler) -> None:
    """From now on the model computes."""
    scheduler.model_worker = scheduler.tp_worker
