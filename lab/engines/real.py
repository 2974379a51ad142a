"""A real vLLM engine in this process, driven step by step."""

import os
import tempfile
import time
from collections import deque
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from feather.options import KERNELS
from feather.vllm.attention import register
from lab import machine
from lab.engines.arms import ARMS, Arm
from lab.engines.run import Enough, Run, like_neighbours, moments
from lab.llm import MODELS, TINY_LLAMA_QUARTER
from lab.workloads import Prompt, Workload


@dataclass
class RealEngine:
    """vLLM with random weights and the studies' scheduler; starts in 10 to 25 s, so make one and reuse it.

    Raises ValueError where the backend cannot run here, MemoryError where the KV cache does not fit.
    """

    backend: str = "auto"
    model: str = "tiny-llama"
    max_batch: int = 32
    max_batched_tokens: int = 8192
    kv_gib: int = 4
    """whole GiB of bfloat16 (``machine.gib``); cpu only: on a GPU vLLM takes what the weights leave"""
    kv_tokens: int | None = None
    """that the KV cache holds: fewer than it could, for studies of evictions; None: all that it can"""
    block_size: int | None = None
    """tokens; default: 32 on a cpu, the smallest that vLLM's CPU attention takes, and 16 on a gpu"""
    dtype: str | None = None
    """default: ``machine.dtype``"""
    weights: str | None = None
    """path of a model with real weights, instead of ``model``"""
    kernel: str = "paged"
    """attention: "paged", "cascade" (vLLM's own on a GPU, Feather's on a CPU) or "packed" (CPU only); ``use_kernel`` exchanges it between runs"""
    sorted_rows: bool = False
    """rows of one prefix side by side in the batch (on a GPU only with ``runner="V2"``)"""
    runner: str = "V1"
    """vLLM's model runner on a GPU: "V1", which alone knows cascade attention, or "V2", its default, which alone follows an order of rows"""
    drafts: int = 0
    """tokens that a row is given as a draft in each step, found by n-grams in its own context and verified by the model; ``use_drafts`` switches
    them between runs"""
    adapters: int = 0
    """LoRA adapters, of rank 8 at most, that a batch holds at once"""
    seed: int = 0
    warms_up: bool = field(default=True, init=False)
    _runs: int = field(default=0, init=False)
    _warm: list = field(default_factory=list, init=False, repr=False)
    _kept: dict = field(default_factory=dict, init=False, repr=False)

    @property
    def device_name(self) -> str:
        return machine.device(self.backend)

    @property
    def engine_version(self) -> str:
        return machine.engine_version(self.dtype) + (f", {self.model}" if self.model == TINY_LLAMA_QUARTER.name else "")

    def __post_init__(self) -> None:
        self.backend, _ = machine.choose_backend(self.backend)
        self.dtype = self.dtype or machine.dtype(self.backend)
        if self.model not in MODELS:
            raise ValueError(f"model {self.model!r} is not one of: {', '.join(MODELS)}")
        shape = MODELS[self.model]
        runners = ("V1", "V2") if self.backend == "gpu" else ("V1",)
        if self.runner not in runners:
            raise ValueError(f"runner={self.runner!r} is not one of: {', '.join(runners)} (backend {self.backend})")
        if self.kv_gib < 1 or self.kv_gib != int(self.kv_gib):
            raise ValueError(f"kv_gib={self.kv_gib} must be a whole number of GiB, at least 1")
        if self.backend == "cpu":
            machine.check_memory(self.kv_gib, shape.weight_bytes / 2**30, self.dtype)
        # Read by vLLM at import: the engine in this process, nothing fetched, and one model runner in every arm.
        os.environ.update(
            VLLM_ENABLE_V1_MULTIPROCESSING="0",
            VLLM_USE_V2_MODEL_RUNNER=str(int(self.runner == "V2")),
            VLLM_CPU_KVCACHE_SPACE=str(int(machine.gib(self.kv_gib, self.dtype))),
            HF_HUB_OFFLINE="1",
        )
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        from vllm import LLM
        from vllm.platforms import current_platform

        register()

        if current_platform.is_cuda() != (self.backend == "gpu"):
            raise ValueError(
                f"backend {self.backend!r}: the vLLM in this environment is the build for {current_platform.device_name}; "
                f"./run_all.sh --backend {self.backend} uses the environment that fits"
            )
        # On a GPU the kernel is always there and switched at run time: one engine, and so the same CUDA graphs, in both arms. With async scheduling
        # a step's time would be its neighbour's; vLLM's build for CPUs has none.
        gpu = {"disable_cascade_attn": self.runner == "V2", "async_scheduling": False}
        options = gpu if self.backend == "gpu" else {"enforce_eager": True}
        self.block_size = self.block_size or (32 if self.backend == "cpu" else 16)
        if self.kv_tokens is not None:
            least = shape.max_tokens + self.block_size  # vLLM keeps a block for itself
            if self.kv_tokens < least:
                raise ValueError(
                    f"kv_tokens={self.kv_tokens} must be at least {least}: {shape.name} takes requests of {shape.max_tokens} tokens"
                )
            options["num_gpu_blocks_override"] = self.kv_tokens // self.block_size
        if self.drafts:
            n_grams = {"method": "ngram", "num_speculative_tokens": self.drafts, "prompt_lookup_min": 1, "prompt_lookup_max": 3}
            options["speculative_config"] = n_grams
        if self.adapters:
            options |= {"enable_lora": True, "max_loras": self.adapters, "max_lora_rank": 8}
        with tempfile.TemporaryDirectory() as folder:
            self.llm = LLM(
                model=self.weights or str(shape.write(Path(folder))),
                load_format="auto" if self.weights else "dummy",
                skip_tokenizer_init=True,
                dtype=self.dtype,
                max_num_seqs=self.max_batch,
                max_model_len=shape.max_tokens,
                max_num_batched_tokens=self.max_batched_tokens,
                block_size=self.block_size,
                enable_prefix_caching=True,
                scheduler_cls="lab.engines.study_scheduler.StudyScheduler",
                seed=self.seed,
                **options,
            )
        core = self.llm.llm_engine.engine_core.engine_core
        self.scheduler = core.scheduler
        self.kv_tokens = self.scheduler.kv_cache_config.num_blocks * self.block_size
        self._runner = core.model_executor.driver_worker.worker.model_runner
        self._propose = self._runner.drafter.propose if self.drafts else None
        self._watch_cascade()
        self.use_kernel(self.kernel, self.sorted_rows)

    def _watch_cascade(self) -> None:
        """Notice, on a GPU from inside the model runner, the steps in which it decides for the cascade kernel."""
        self._cascaded = False
        if self.runner == "V2":
            return
        decide = self._runner._compute_cascade_attn_prefix_lens

        def watched(*arguments, **named):
            lengths = decide(*arguments, **named)
            self._cascaded = lengths is not None
            return lengths

        self._runner._compute_cascade_attn_prefix_lens = watched

    def use_batch(self, rows: int) -> None:
        """So many requests at once, at most, in the runs to come. Raises ValueError for more than the engine has slots for."""
        slots = self.scheduler.scheduler_config.max_num_seqs
        if not 1 <= rows <= slots:
            raise ValueError(f"rows={rows} must be from 1 to {slots}, the requests that this engine was made for")
        self.scheduler.max_num_running_reqs = self.scheduler.max_num_active_reqs = self.max_batch = rows

    def use_kernel(self, kernel: str, sorted_rows: bool = False) -> None:
        """The attention kernel and the order of rows for the runs to come. Where a step does not suit cascade or packed attention, the paged kernel
        runs. Raises ValueError for what there is not on this backend, or not for this model."""
        if kernel not in KERNELS:
            raise ValueError(f"kernel={kernel!r} is not one of: {', '.join(KERNELS)}")
        if self.backend == "gpu":
            if kernel == "packed" or (sorted_rows if self.runner == "V1" else kernel != "paged"):
                raise ValueError(
                    f"kernel={kernel!r}, sorted_rows={sorted_rows}: on a GPU vLLM has cascade attention under runner V1 alone, and takes an "
                    f"order of rows under V2 alone; this engine runs {self.runner}"
                )
            self._runner.cascade_attn_enabled = kernel == "cascade"
            self.scheduler.sorted_rows = sorted_rows
        else:
            for builder in self._builders:
                builder.use(kernel)
                builder.sorts = sorted_rows
            if not self._as_set(kernel, sorted_rows):
                raise ValueError(f"kernel={kernel!r}: Feather's attention does not take {self.model} in {self.dtype}; vLLM's log says why")
        self.kernel, self.sorted_rows = kernel, sorted_rows

    def _as_set(self, kernel: str, sorted_rows: bool) -> bool:
        """Whether the backend does what it was told: it falls back to vLLM's kernel for what Feather's does not know, and after a failure."""
        return self.backend == "gpu" or all((builder.mode, builder.sorts) == (kernel, sorted_rows) for builder in self._builders)

    def _shared_steps(self) -> int:
        """Steps so far whose shared prefixes Feather's kernel computed once."""
        return 0 if self.backend == "gpu" else sum(builder.counters["cascade"] + builder.counters["packed"] for builder in self._builders)

    @property
    def _builders(self) -> list:
        return [builder for groups in self._runner.attn_groups for group in groups for builder in group.metadata_builders]

    def use_drafts(self, on: bool) -> None:
        """Drafts for the runs to come, or not. Raises ValueError for an engine that was made without."""
        if on and not self.drafts:
            raise ValueError("use_drafts(True): this engine was made with drafts=0")
        if self.drafts:
            self._runner.drafter.propose = self._propose if on else lambda count, sampled, *rest, **named: [[] for _ in sampled]

    def warm(self, prefixes: list[list[int]], anew: bool = False) -> None:
        """Put the prefixes into the prefix cache, one request each; warm workloads find them there from now on. ``anew``: and
        nothing of earlier runs."""
        if anew:
            self.llm.reset_prefix_cache()
        self._warm = prefixes
        prompts = [Prompt(tokens + [0], group, 1) for group, tokens in enumerate(prefixes)]
        self._drive(Workload(prompts), ARMS["FCFS"])
        self.scheduler.warmed = prefixes
        self._kept = self.scheduler.cached_blocks()

    def forget(self) -> None:
        """Drop from the prefix cache what ``warm`` did not put there; where some of that has gone, all is put there anew."""
        if not self.scheduler.keep_only(self._kept):
            self.warm(self._warm, anew=True)

    def run(self, workload: Workload, arm: Arm, enough: Enough | None = None) -> Run:
        """Run a workload to its end under an arm (``arms.ARMS``), or until it is ``enough``, on a prefix cache as the workload wants it. Raises
        RuntimeError unless every request that was not dropped finishes once with exactly its tokens."""
        if not workload.warm:
            self.llm.reset_prefix_cache()
            self.scheduler.warmed = []
        elif self._warm and not self.scheduler.warmed:
            self.warm(self._warm)
        return self._drive(workload, arm, enough)

    def _drive(self, workload: Workload, arm: Arm, enough: Enough | None = None) -> Run:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        engine = self.llm.llm_engine
        self.scheduler.use(arm)
        self._runs += 1
        pending = deque(enumerate(workload.prompts))
        produced: dict[str, list[float]] = {}
        arrivals: dict[str, float] = {}
        done: set[str] = set()
        cached = 0
        clients = workload.clients or len(pending)
        step_times, step_seconds, step_tokens, neighbours, cascade = [], [], [], [], []
        token_times: list[float] = []
        unfinished: list[str] = []  # dropped
        start = time.perf_counter()
        while pending or engine.has_unfinished_requests():
            now = time.perf_counter() - start
            if workload.seconds is not None and now >= workload.seconds:
                pending.clear()
                if not engine.has_unfinished_requests():
                    break
            while pending and pending[0][1].arrival <= now and len(arrivals) - len(done) < clients:
                index, prompt = pending.popleft()
                request_id = f"{self._runs}-{index}"
                params = SamplingParams(
                    temperature=0,
                    max_tokens=prompt.decode_tokens,
                    ignore_eos=True,
                    detokenize=False,
                    output_kind=RequestOutputKind.DELTA,
                    extra_args={"group": prompt.group},
                )
                arrivals[request_id] = prompt.arrival if workload.clients is None else now
                produced[request_id] = []
                engine.add_request(request_id, {"prompt_token_ids": prompt.tokens}, params)
            if not engine.has_unfinished_requests():
                time.sleep(max(0.0, pending[0][1].arrival - (time.perf_counter() - start)))
                continue
            self._cascaded = False
            shared_before = self._shared_steps()
            steps_before, began = len(self.scheduler.steps), time.perf_counter()
            outputs = engine.step()
            ended = time.perf_counter()
            if len(self.scheduler.steps) > steps_before:
                step_times.append(ended - start)
                step_seconds.append(ended - began)
                step_tokens.append(sum(len(output.outputs[0].token_ids) for output in outputs))
                groups = self.scheduler.steps[-1].groups
                rows = groups if self.runner == "V2" else self._runner.input_batch.req_ids
                if self.sorted_rows and self.backend == "cpu":  # the runner's rows stay; it is the kernel that is given them by prefix
                    rows = sorted(rows, key=lambda id_: groups.get(id_, -1))
                neighbours.append(like_neighbours(rows, groups))
                cascade.append(self._cascaded or self._shared_steps() > shared_before)
            for output in outputs:
                came = [ended - start] * len(output.outputs[0].token_ids)
                produced[output.request_id] += came
                token_times += came
                if output.finished:
                    done.add(output.request_id)
                    cached += output.num_cached_tokens or 0
            if enough and pending and enough(token_times):
                unfinished = [id_ for id_ in produced if id_ not in done]
                engine.abort_request(unfinished)
                break
        seconds = time.perf_counter() - start
        workload = replace(workload, prompts=workload.prompts[: len(arrivals)])
        for index, prompt in enumerate(workload.prompts):
            id_ = f"{self._runs}-{index}"
            if id_ not in unfinished and (len(produced[id_]) != prompt.decode_tokens or id_ not in done):
                raise RuntimeError(
                    f"{arm.name}: request {index} gave {len(produced[id_])} of {prompt.decode_tokens} tokens; "
                    f"{len(done)} of {len(workload.prompts)} requests finished"
                )
        if not self._as_set(self.kernel, self.sorted_rows):
            raise RuntimeError(f"{arm.name}: {self.kernel} attention failed and vLLM's kernel took over; the log says why")
        steps = self.scheduler.steps
        return Run(
            seconds=seconds,
            output_tokens=len(token_times),
            prompt_tokens=sum(len(prompt.tokens) for index, prompt in enumerate(workload.prompts) if f"{self._runs}-{index}" in done),
            cached_tokens=cached,
            step_times=np.array(step_times),
            step_seconds=np.array(step_seconds),
            decode_rows=np.array([step.decode_rows for step in steps]),
            prefill_tokens=np.array([step.prefill_tokens for step in steps]),
            step_tokens=np.array(step_tokens),
            groups=np.array([len(set(step.groups.values())) for step in steps]),
            neighbours=np.array(neighbours),
            queue_seconds=np.array([step.queue_seconds for step in steps]),
            cascade=np.array(cascade),
            stopped=np.array([step.stopped for step in steps]),
            **moments(produced, arrivals),
            closed_until=token_times[-1] if unfinished else max(arrivals.values()),
            preemptions=sum(step.preempted for step in steps),
            evictions=sum(step.evicted for step in steps),
        )
