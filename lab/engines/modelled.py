"""A serving engine's real scheduling code on a virtual clock that the step model advances.

Admission, prefix hits, chunked prefill, evictions, preemption and recomputation are the engine's own (``lab.engines.modelled_vllm``,
``lab.engines.modelled_sglang``); only how long a step takes is modelled, and which token comes out is made up.
"""

import os
import time
from collections import deque
from dataclasses import dataclass, field, replace

import numpy as np

from lab.engines.arms import ARMS, Arm
from lab.engines.run import Enough, Run, like_neighbours, moments, per
from lab.engines.scheduling import Scheduling
from lab.llm import MODELS, Model
from lab.model.costs import SchedulingCosts
from lab.model.hardware import DEVICES, MEMORY_SHARE, Device
from lab.model.steptime import StepModel, StepTime
from lab.workloads import Prompt, Workload

KERNELS = {"vllm": "cascade", "sglang": "paged"}
"""engine → the attention kernel of the paper's time: vLLM's cascade, up to early 2026; SGLang's (0.5.9) know no shared prefix"""


@dataclass(kw_only=True)
class ModelledRun(Run):
    """A run on the modelled device: what a ``Run`` tells, and the memory traffic that no engine reports."""

    weight_bytes: np.ndarray = per("step")
    """from DRAM"""
    kv_dram_bytes: np.ndarray = per("step")
    kv_cache_bytes: np.ndarray = per("step")
    """keys and values that the cores read, from the last-level cache or through it"""

    def metrics(self) -> dict[str, tuple[float, str]]:
        dram = self.weight_bytes.sum() + self.kv_dram_bytes.sum()
        traffic = {
            "DRAM traffic": (dram / 1e9, "GB"),
            "DRAM traffic per token": (dram / self.output_tokens / 1e6, "MB"),
            "DRAM bandwidth": (dram / self.step_seconds.sum() / 1e9, "GB/s"),
            "KV from DRAM": (self.kv_dram_bytes.sum() / 1e9, "GB"),
            "KV read by the cores": (self.kv_cache_bytes.sum() / 1e9, "GB"),
            "prefilled tokens": (self.prefill_tokens.sum(), "tokens"),
        }
        return {**super().metrics(), **{name: (float(value), unit) for name, (value, unit) in traffic.items()}}


@dataclass
class ModelledEngine:
    """``Engine`` on a modelled device; made in under a second.

    Identical seeds give identical runs, unless ``scheduling`` is "measured".

    Raises ValueError for an unknown engine, device or model, a size that is none, a model that does not fit the device, or (``run``) a
    prompt that does not fit its KV cache; ImportError for engine "sglang" where the pinned SGLang is not installed.
    """

    model: str | Model = "llama-3-8b"
    max_batch: int = 500
    max_batched_tokens: int = 32_768
    device: str | Device = "rtx-6000-ada"
    kernel: str | None = None
    """attention kernel: "cascade" (vLLM up to early 2026, so the paper's), "paged" (vLLM since, and SGLang) or "packed";
    None: what the engine had at the paper's time (``KERNELS``)"""
    sorted_rows: bool = False
    """rows of one prefix side by side in the batch; for engine "vllm" """
    block_size: int = 16
    """tokens of a KV block; SGLang's are of one token whatever stands here"""
    kv_gib: float | None = None
    """size of the KV cache; None: what model and activations leave of the device's memory"""
    memory_share: float = MEMORY_SHARE
    """of the device's memory that may be used (``gpu_memory_utilization``)"""
    prefix_caching: bool = True
    free_prefill: bool = False
    """True: a prompt costs as much as one token, to tell what recomputed prefill contributes"""
    scheduling: str = "recorded"
    """scheduling time: "recorded" (the cost table; runs are identical), "measured" (as it takes on this machine now) or
    "free" """
    engine: str = "vllm"
    """whose scheduling code runs: "vllm" or "sglang" """
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
        if self.engine not in KERNELS:
            raise ValueError(f"engine={self.engine!r} must be one of: {', '.join(KERNELS)}")
        self.kernel = self.kernel or KERNELS[self.engine]
        self._shape = _look_up("model", self.model, MODELS)
        self._device = _look_up("device", self.device, DEVICES)
        self.kv_blocks = int(self._kv_bytes() // (self.block_size * self._shape.kv_bytes_per_token))
        self.now = 0.0
        self.costs = SchedulingCosts(self.engine) if self.scheduling == "recorded" else None
        self.measured: list[tuple] = []  # with scheduling="measured": one row of the cost table per step
        self.scheduler = self._make_scheduler()
        self.use_kernel(self.kernel, self.sorted_rows)

    @property
    def kv_tokens(self) -> int:
        return self.kv_blocks * self.block_size

    @property
    def device_name(self) -> str:
        return f"{self._device.name}, {self.kernel} attention"

    @property
    def engine_version(self) -> str:
        return self.scheduler.version

    @property
    def warms_up(self) -> bool:
        return self.scheduling == "measured"

    def use_batch(self, rows: int) -> None:
        """So many requests at once, at most, in the runs to come. Raises ValueError for less than one."""
        if rows < 1:
            raise ValueError(f"rows={rows} must be at least 1")
        self.max_batch = rows
        self.scheduler = self._make_scheduler()
        self.use_kernel(self.kernel, self.sorted_rows)

    def use_kernel(self, kernel: str, sorted_rows: bool = False) -> None:
        """The attention kernel and the order of rows for the runs to come. Raises ValueError for an unknown kernel, and for sorted rows inside
        SGLang, which are not modelled."""
        if sorted_rows and self.engine != "vllm":
            raise ValueError(f"sorted_rows=True: not modelled for engine={self.engine!r}")
        self.steps = StepModel(self._device, self._shape, kernel)
        self.scheduler.sorts = sorted_rows
        self.kernel, self.sorted_rows = kernel, sorted_rows

    def _kv_bytes(self) -> float:
        device, shape = self._device, self._shape
        activations = shape.activation_bytes(self.max_batched_tokens)
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

    def _make_scheduler(self) -> Scheduling:
        def clock() -> float:
            return self.now

        if self.engine == "sglang":
            from lab.engines.modelled_sglang import SglangScheduling

            if not self.prefix_caching:
                raise ValueError("prefix_caching=False: not modelled for engine='sglang'")
            return SglangScheduling(self._shape, self.kv_tokens, self.max_batch, self.max_batched_tokens, self.block_size, clock)
        os.environ["HF_HUB_OFFLINE"] = "1"
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        from lab.engines.modelled_vllm import VllmScheduling

        return VllmScheduling(
            self._shape, self.kv_blocks, self.block_size, self.max_batch, self.max_batched_tokens, self.prefix_caching, clock
        )

    def warm(self, prefixes: list[list[int]], anew: bool = False) -> None:
        """Every warm workload finds these prefixes in the prefix cache from now on, as far as it holds them: each run begins
        with one request for each of them, whose time does not count, and, with or without ``anew``, with nothing else."""
        self._warm = prefixes

    def forget(self) -> None:
        """Nothing: every run begins so."""

    def run(self, workload: Workload, arm: Arm, enough: Enough | None = None) -> ModelledRun:
        """Run a workload under an arm (``arms.ARMS``; inside SGLang, ``arms.SGLANG_ARMS``) to its end, or until it is ``enough`` (inside SGLang
        what was sent until then is answered), on a prefix cache that holds what ``warm`` was given, or nothing, as the workload wants it, and nothing of earlier runs."""
        warmed = self._warm if workload.warm else []
        self.scheduler.forget(warmed)
        if warmed:
            self._drive(Workload([Prompt(tokens + [0], group, 1) for group, tokens in enumerate(self._warm)]), ARMS["FCFS"])
        return self._drive(workload, arm, enough)

    # -- the clock and the loop ----------------------------------------------------------------------------------------

    def _drive(self, workload: Workload, arm: Arm, enough: Enough | None = None) -> ModelledRun:
        self._check(workload)
        scheduler = self.scheduler
        scheduler.use(arm)
        self._runs += 1
        pending = deque(enumerate(workload.prompts))
        produced: dict[str, list[float]] = {}
        log: list[tuple[float, StepTime, float, float]] = []  # when the step ended, the step, its time in the queue, like neighbours
        prompt_tokens = sum(len(prompt.tokens) for prompt in workload.prompts) // len(workload.prompts)
        start = self.now
        clients = workload.clients or len(pending)
        sent: dict[int, float] = {}  # when each request came
        arrived = finished = 0  # since the last step
        found = 0  # tokens in the prefix cache
        delivered = 0.0  # seconds that delivering the last step took
        token_times: list[float] = []
        dropped = False
        while pending or scheduler.unfinished:
            if workload.seconds is not None and self.now - start >= workload.seconds:
                pending.clear()
                if not scheduler.unfinished:
                    break
            while pending and start + pending[0][1].arrival <= self.now and scheduler.unfinished < clients:
                index, prompt = pending.popleft()
                if workload.clients is not None:
                    prompt = replace(prompt, arrival=self.now - start)
                sent[index] = prompt.arrival
                produced[id_ := f"{self._runs}-{index}"] = []
                scheduler.add(id_, prompt, start + prompt.arrival)
                arrived += 1
            if not scheduler.unfinished:
                self.now = start + pending[0][1].arrival
                continue
            waiting = scheduler.waiting
            began = time.perf_counter()
            scheduled = scheduler.schedule()
            taken = time.perf_counter() - began
            if scheduled is None:
                raise RuntimeError(f"{arm.name}: {waiting} requests wait, {scheduler.unfinished - waiting} run, and nothing was scheduled")
            batch = self.last_batch = scheduler.batch(self.free_prefill)
            step = scheduler.steps[-1]
            work = scheduled.rows, waiting, arrived, scheduled.admitted, finished, prompt_tokens
            queue = engine = arrived = 0
            if self.costs is not None:
                queue, engine = self.costs.seconds(scheduled.charged, *work)
            elif self.scheduling == "measured":
                queue, engine = step.queue_seconds, taken + delivered - step.queue_seconds  # delivered: the step before
                self.measured.append((scheduled.charged, *work, queue * 1e3, engine * 1e3))
            timed = self.steps.time(batch, queue + engine)
            self.now += timed.seconds
            began, unfinished = time.perf_counter(), scheduler.unfinished
            sampled, cached = scheduler.deliver()
            delivered, finished = time.perf_counter() - began, unfinished - scheduler.unfinished
            found += cached
            log.append((self.now - start, timed, queue, like_neighbours(scheduler.row_ids, step.groups), len(sampled)))
            for id_ in sampled:
                produced[id_].append(self.now - start)
                token_times.append(self.now - start)
            if enough and pending and enough(token_times):
                pending.clear()
                if dropped := scheduler.drop():
                    break
        workload = replace(workload, prompts=workload.prompts[: len(sent)])
        return self._told(workload, arm, sent, produced, log, found, self.now - start, dropped)

    def _check(self, workload: Workload) -> None:
        longest = max(workload.prompts, key=lambda prompt: len(prompt.tokens) + prompt.decode_tokens)
        tokens = len(longest.tokens) + longest.decode_tokens
        if tokens > min(self.kv_tokens, self._shape.max_tokens):
            raise ValueError(
                f"a request of {len(longest.tokens)} prompt and {longest.decode_tokens} decode tokens cannot run: the KV cache that "
                f"{self._shape.name} leaves on {self._device.name} holds {self.kv_tokens} tokens, and the model takes {self._shape.max_tokens}"
            )

    def _told(
        self, workload: Workload, arm: Arm, sent: dict[int, float], produced: dict, log: list, cached: int, seconds: float, dropped: bool
    ) -> ModelledRun:
        got_all = prompt_tokens = 0
        for index, prompt in enumerate(workload.prompts):
            got = len(produced[f"{self._runs}-{index}"])
            got_all += got
            prompt_tokens += len(prompt.tokens) if got else 0
            if got != prompt.decode_tokens and not dropped:
                raise RuntimeError(f"{arm.name}: request {index} gave {got} of {prompt.decode_tokens} tokens")
        steps = self.scheduler.steps
        ended, times, queue, neighbours, tokens = zip(*log)
        arrived = {f"{self._runs}-{index}": moment for index, moment in sent.items()}
        return ModelledRun(
            seconds=seconds,
            output_tokens=got_all,
            prompt_tokens=prompt_tokens,
            cached_tokens=cached,
            step_times=np.array(ended),
            step_seconds=np.array([step.seconds for step in times]),
            decode_rows=np.array([step.decode_rows for step in steps]),
            prefill_tokens=np.array([step.prefill_tokens for step in steps]),
            step_tokens=np.array(tokens),
            groups=np.array([len(set(step.groups.values())) for step in steps]),
            neighbours=np.array(neighbours),
            queue_seconds=np.array(queue),
            cascade=np.array([step.cascade for step in times]),
            stopped=np.array([step.stopped for step in steps]),
            **moments(produced, arrived),
            closed_until=seconds if dropped else max(arrived.values()),
            weight_bytes=np.array([step.weight_bytes for step in times]),
            kv_dram_bytes=np.array([step.kv_dram_bytes for step in times]),
            kv_cache_bytes=np.array([step.kv_cache_bytes for step in times]),
            preemptions=sum(step.preempted for step in steps),
            evictions=sum(step.evicted for step in steps),
        )


def _look_up(what: str, wanted, known: dict):
    if isinstance(wanted, Device | Model):
        return wanted
    if wanted not in known:
        raise ValueError(f"{what} {wanted!r} is not one of: {', '.join(known)}")
    return known[wanted]
