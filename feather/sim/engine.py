"""vLLM's real scheduler and KV-cache manager on a virtual clock that the step model advances.

Admission, prefix hits, chunked prefill, evictions, preemption and recomputation are vLLM's own; only how long a step takes
is modelled, and which token comes out is made up.
"""

import os
import tempfile
import time
from collections import deque
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from feather.sim.costs import SchedulingCosts, kind_of
from feather.sim.hardware import DEVICES, Device
from feather.sim.rows import Rows, SharedBlocks
from feather.sim.steptime import StepModel, StepTime
from feather.studies.engine import Run, like_neighbours
from feather.studies.model import MODELS, Model
from feather.workloads import Prompt, Workload

_TOKEN = 7  # what every step samples


@dataclass
class SimRun(Run):
    """A run on the modelled device: what a ``Run`` tells, and the memory traffic that no engine reports."""

    weight_bytes: np.ndarray = field(kw_only=True)
    """per step, from DRAM"""
    kv_dram_bytes: np.ndarray = field(kw_only=True)
    kv_cache_bytes: np.ndarray = field(kw_only=True)
    """per step, keys and values that the cores read, from the last-level cache or through it"""
    cascade: np.ndarray = field(kw_only=True)
    """per step: the cascade kernel ran"""

    def metrics(self) -> dict[str, tuple[float, str]]:
        dram = self.weight_bytes.sum() + self.kv_dram_bytes.sum()
        traffic = {
            "DRAM traffic": (dram / 1e9, "GB"),
            "DRAM traffic per token": (dram / self.output_tokens / 1e6, "MB"),
            "DRAM bandwidth": (dram / self.step_seconds.sum() / 1e9, "GB/s"),
            "KV from DRAM": (self.kv_dram_bytes.sum() / 1e9, "GB"),
            "KV read by the cores": (self.kv_cache_bytes.sum() / 1e9, "GB"),
            "cascade steps": (self.cascade.mean(), "share of steps"),
            "prefilled tokens": (self.prefill_tokens.sum(), "tokens"),
        }
        return {**super().metrics(), **{name: (float(value), unit) for name, (value, unit) in traffic.items()}}


@dataclass
class SimEngine:
    """The surface of ``feather.studies.engine.Engine`` on a modelled device; made in under a second.

    Identical seeds give identical runs, unless ``scheduling`` is "measured".

    Raises ValueError for an unknown device or model, a size that is none, a model that does not fit the device, or (``run``) a
    prompt that does not fit its KV cache.
    """

    model: str | Model = "llama-3-8b"
    max_batch: int = 500
    max_batched_tokens: int = 32_768
    device: str | Device = "rtx-6000-ada"
    kernel: str = "cascade"
    """attention kernel: "cascade" (vLLM up to early 2026, so the paper's), "paged" (vLLM since) or "packed" """
    block_size: int = 16
    kv_gib: float | None = None
    """size of the KV cache; None: what model and activations leave of the device's memory"""
    memory_share: float = 0.92
    """of the device's memory that may be used (``gpu_memory_utilization``; vLLM 0.31's default)"""
    prefix_caching: bool = True
    free_prefill: bool = False
    """True: a prompt costs as much as one token, to tell what recomputed prefill contributes"""
    scheduling: str = "recorded"
    """scheduling time: "recorded" (the cost table; runs are identical), "measured" (as it takes on this machine now) or
    "free" """
    backend: str = field(default="sim", init=False)
    _runs: int = field(default=0, init=False)
    _warm: list = field(default_factory=list, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.scheduling not in ("recorded", "measured", "free"):
            raise ValueError(f"scheduling={self.scheduling!r} must be one of: recorded, measured, free")
        for name in ("max_batch", "max_batched_tokens", "block_size"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}={value!r} must be a whole number, at least 1")
        if not 0 < self.memory_share <= 1:
            raise ValueError(f"memory_share={self.memory_share} must be above 0 and at most 1")
        if self.kv_gib is not None and not self.kv_gib > 0:
            raise ValueError(f"kv_gib={self.kv_gib} must be above 0, or None for what the model leaves")
        self._shape = _look_up("model", self.model, MODELS)
        self._device = _look_up("device", self.device, DEVICES)
        self.steps = StepModel(self._device, self._shape, self.kernel)
        self.kv_blocks = int(self._kv_bytes() // (self.block_size * self._shape.kv_bytes_per_token))
        self.now = 0.0
        self.costs = SchedulingCosts() if self.scheduling == "recorded" else None
        self.measured: list[tuple] = []  # with scheduling="measured": one row of the cost table per step
        self._make_scheduler()

    @property
    def kv_tokens(self) -> int:
        return self.kv_blocks * self.block_size

    @property
    def device_name(self) -> str:
        return f"{self._device.name}, {self.kernel} attention"

    @property
    def cascade(self) -> bool:
        return self.kernel == "cascade"

    def _kv_bytes(self) -> float:
        device, shape = self._device, self._shape
        # The widest activations of a full step: the gate and up projections, and four copies of the hidden state.
        activations = 2 * self.max_batched_tokens * (2 * shape.intermediate + 4 * shape.hidden)
        usable = self.memory_share * device.memory_bytes
        left = usable - shape.weight_bytes - activations
        if left < self.block_size * shape.kv_bytes_per_token:
            raise ValueError(
                f"{shape.name} does not fit {device.name}: {shape.weight_bytes / 2**30:.1f} GiB of weights and "
                f"{activations / 2**30:.1f} GiB of activations, {usable / 2**30:.1f} of {device.memory_bytes / 2**30:.1f} GiB to use; "
                f"choose a smaller model or another device, or lower max_batched_tokens={self.max_batched_tokens}"
            )
        if self.kv_gib is None:
            return left
        if self.kv_gib * 2**30 > left:
            raise ValueError(f"kv_gib={self.kv_gib:g} does not fit: {shape.name} leaves {left / 2**30:.1f} GiB of {device.name} for KV")
        return self.kv_gib * 2**30

    def _make_scheduler(self) -> None:
        os.environ["HF_HUB_OFFLINE"] = "1"
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        import torch
        from vllm.engine.arg_utils import EngineArgs
        from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
        from vllm.v1.structured_output import StructuredOutputManager

        from feather.sim.scheduler import BlockHasher, SimScheduler

        shape = self._shape
        with tempfile.TemporaryDirectory() as folder:
            config = EngineArgs(
                model=str(shape.write(Path(folder))),
                skip_tokenizer_init=True,
                max_num_seqs=self.max_batch,
                max_num_batched_tokens=self.max_batched_tokens,
                max_model_len=shape.max_tokens,
                block_size=self.block_size,
                enable_prefix_caching=self.prefix_caching,
            ).create_engine_config()
        config.cache_config.num_gpu_blocks = self.kv_blocks
        spec = FullAttentionSpec(block_size=self.block_size, num_kv_heads=shape.kv_heads, head_size=shape.head_dim, dtype=torch.bfloat16)
        kv = KVCacheConfig(num_blocks=self.kv_blocks, kv_cache_tensors=[], kv_cache_groups=[KVCacheGroupSpec(["all"], spec)])
        self.scheduler = SimScheduler(
            config, kv, StructuredOutputManager(config), block_size=self.block_size,
            hash_block_size=self.block_size, clock=lambda: self.now,
        )  # fmt: skip
        self._hasher = BlockHasher(self.block_size) if self.prefix_caching else None

    def warm(self, prefixes: list[list[int]]) -> None:
        """Every warm workload finds these prefixes in the prefix cache from now on, as far as it holds them: each run begins
        with one request for each of them, whose time does not count."""
        self._warm = prefixes

    def run(self, workload: Workload, arm) -> SimRun:
        """Run a workload to its end under an arm (``scheduler.ARMS``), on a prefix cache that holds what ``warm`` was given,
        or nothing, as the workload wants it, and nothing of earlier runs."""
        from feather.studies.scheduler import ARMS

        self.scheduler.reset_prefix_cache()
        self.scheduler.warmed = self._warm if workload.warm else []
        if self.scheduler.warmed:
            self._drive(Workload([Prompt(tokens + [0], group, 1) for group, tokens in enumerate(self._warm)]), ARMS["FCFS"])
        return self._drive(workload, arm)

    # -- the clock and the loop ----------------------------------------------------------------------------------------

    def _drive(self, workload: Workload, arm) -> SimRun:
        self._check(workload)
        scheduler = self.scheduler
        scheduler.use(arm)
        self._cached_tokens = 0
        self._runs += 1
        rows, shared, batch = Rows(), SharedBlocks(self.block_size), None
        pending = deque(enumerate(workload.prompts))
        requests: dict[str, object] = {}
        produced: dict[str, list[float]] = {}
        log: list[tuple[StepTime, float, float]] = []  # the step, its time in the queue, like neighbours
        prompt_tokens = sum(len(prompt.tokens) for prompt in workload.prompts) // len(workload.prompts)
        start = self.now
        clients = workload.clients or len(pending)
        sent: dict[int, float] = {}  # when each request came
        arrived = 0  # since the last step
        delivered = 0.0  # seconds that delivering the last step took
        while pending or scheduler.has_unfinished_requests():
            while pending and start + pending[0][1].arrival <= self.now and len(scheduler.requests) < clients:
                index, prompt = pending.popleft()
                if workload.clients is not None:
                    prompt = replace(prompt, arrival=self.now - start)
                sent[index] = prompt.arrival
                request = self._request(f"{self._runs}-{index}", prompt, start)
                requests[request.request_id], produced[request.request_id] = request, []
                scheduler.add_request(request)
                arrived += 1
            if not scheduler.has_unfinished_requests():
                self.now = start + pending[0][1].arrival
                continue
            waiting = len(scheduler.waiting)
            began = time.perf_counter()
            output = scheduler.schedule()
            taken = time.perf_counter() - began
            scheduled = output.num_scheduled_tokens
            if not scheduled:
                raise RuntimeError(f"{arm.name}: {waiting} requests wait, {len(scheduler.running)} run, and nothing was scheduled")
            batch = self._batch(batch, rows, shared, scheduled, requests)
            self.last_batch = batch
            step = scheduler.steps[-1]
            work = len(scheduled), waiting, arrived, len(output.scheduled_new_reqs), prompt_tokens
            queue = engine = arrived = 0
            if self.costs is not None:
                queue, engine = self.costs.seconds(arm, *work)
            elif self.scheduling == "measured":
                queue, engine = step.queue_seconds, taken + delivered - step.queue_seconds  # delivered: the step before
                self.measured.append((kind_of(arm), *work, queue * 1e3, engine * 1e3))
            timed = self.steps.time(batch, queue + engine)
            self.now += timed.seconds
            began = time.perf_counter()
            self._deliver(output, requests)
            delivered = time.perf_counter() - began
            log.append((timed, queue, like_neighbours(rows.ids, step.groups)))
            for id_ in self._sampled:
                produced[id_].append(self.now - start)
        return self._told(workload, arm, sent, produced, log, self.now - start)

    def _batch(self, batch, rows: Rows, shared: SharedBlocks, scheduled: dict[str, int], requests: dict):
        """The batch of this step: the last one, a token longer each, unless somebody came, left or is in prefill."""
        prefill = len(scheduled) != sum(scheduled.values())
        if batch is not None and batch.new is None and not prefill and scheduled.keys() == set(rows.ids):
            batch.private_tokens += batch.rows
            return batch
        came, left = rows.update(scheduled)
        for id_ in left:
            shared.remove(id_)
        blocks_of = self.scheduler.kv_cache_manager.get_block_ids
        for id_ in [*came, *(id_ for id_, tokens in scheduled.items() if tokens > 1 and id_ not in came)]:
            shared.put(id_, blocks_of(id_)[0][: requests[id_].num_computed_tokens // self.block_size])
        contexts = [requests[id_].num_computed_tokens for id_ in rows.ids]
        return shared.batch(rows.ids, contexts, [scheduled[id_] for id_ in rows.ids] if prefill and not self.free_prefill else None)

    def _deliver(self, output, requests: dict) -> None:
        """Give the scheduler a token for every request whose prefill is through."""
        from vllm.v1.outputs import ModelRunnerOutput

        ids = list(output.num_scheduled_tokens)
        through = [not requests[id_].is_prefill_chunk for id_ in ids]
        self._sampled = [id_ for id_, sampled in zip(ids, through) if sampled]
        tokens = [[_TOKEN] if sampled else [] for sampled in through]
        result = ModelRunnerOutput(ids, {id_: row for row, id_ in enumerate(ids)}, tokens)
        for outputs in self.scheduler.update_from_output(output, result).values():
            for one in outputs.outputs:
                if one.prefill_stats is not None:
                    self._cached_tokens += one.prefill_stats.num_cached_tokens

    def _request(self, id_: str, prompt: Prompt, start: float):
        from vllm.sampling_params import SamplingParams
        from vllm.v1.request import Request

        params = SamplingParams(temperature=0, max_tokens=prompt.decode_tokens, ignore_eos=True, extra_args={"group": prompt.group})
        return Request(id_, prompt.tokens, params, None, arrival_time=start + prompt.arrival, block_hasher=self._hasher)

    def _check(self, workload: Workload) -> None:
        longest = max(workload.prompts, key=lambda prompt: len(prompt.tokens) + prompt.decode_tokens)
        tokens = len(longest.tokens) + longest.decode_tokens
        if tokens > min(self.kv_tokens, self._shape.max_tokens):
            raise ValueError(
                f"a request of {len(longest.tokens)} prompt and {longest.decode_tokens} decode tokens cannot run: the KV cache that "
                f"{self._shape.name} leaves on {self._device.name} holds {self.kv_tokens} tokens, and the model takes {self._shape.max_tokens}"
            )

    def _told(self, workload: Workload, arm, sent: dict[int, float], produced: dict, log: list, seconds: float) -> SimRun:
        for index, prompt in enumerate(workload.prompts):
            if (got := len(produced[f"{self._runs}-{index}"])) != prompt.decode_tokens:
                raise RuntimeError(f"{arm.name}: request {index} gave {got} of {prompt.decode_tokens} tokens")
        steps = self.scheduler.steps
        times, queue, neighbours = zip(*log)
        first = {f"{self._runs}-{index}": moment for index, moment in sent.items()}
        return SimRun(
            seconds=seconds,
            output_tokens=workload.decode_tokens,
            prompt_tokens=sum(len(prompt.tokens) for prompt in workload.prompts),
            cached_tokens=self._cached_tokens,
            step_seconds=np.array([step.seconds for step in times]),
            decode_rows=np.array([step.decode_rows for step in steps]),
            prefill_tokens=np.array([step.prefill_tokens for step in steps]),
            groups=np.array([len(set(step.groups.values())) for step in steps]),
            neighbours=np.array(neighbours),
            queue_seconds=np.array(queue),
            first_token=np.array([moments[0] - first[id_] for id_, moments in produced.items()]),
            between_tokens=np.concatenate([np.diff(moments) for moments in produced.values()]),
            weight_bytes=np.array([step.weight_bytes for step in times]),
            kv_dram_bytes=np.array([step.kv_dram_bytes for step in times]),
            kv_cache_bytes=np.array([step.kv_cache_bytes for step in times]),
            cascade=np.array([step.cascade for step in times]),
            preemptions=sum(step.preempted for step in steps),
            evictions=sum(step.evicted for step in steps),
            stopped_steps=sum(step.stopped for step in steps),
        )


def _look_up(what: str, wanted, known: dict):
    if isinstance(wanted, Device | Model):
        return wanted
    if wanted not in known:
        raise ValueError(f"{what} {wanted!r} is not one of: {', '.join(known)}")
    return known[wanted]
