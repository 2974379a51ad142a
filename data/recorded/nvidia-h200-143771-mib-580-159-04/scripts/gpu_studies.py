"""Notebooks' studies on a GPU that is at hand for minutes: ``python gpu_studies.py --out FOLDER --seconds 200 --parts M1,M3``.

One real vLLM engine with random weights; the conditions of the studies' own functions, with cascade attention off and on, interleaved,
one repeat after the other, until the time is up. Rows are written after every repeat, so a run that is ended early keeps what it has.
A part's ``min`` repeats come first; what time is left goes to further repeats of the parts in turn.
"""

import argparse
import functools
import json
import os
import time
import traceback
from dataclasses import replace
from itertools import count
from pathlib import Path

import numpy as np

BEGAN = time.monotonic()


def log(text: str) -> None:
    print(f"[{time.monotonic() - BEGAN:7.1f} s] {text}", flush=True)


class Interleaved:
    """Conditions of one study, run a repeat at a time in an order drawn anew, as ``Study.measure`` does, but with a clock."""

    def __init__(self, study, conditions: list, deadline: float, warm_up, prepare=None, seed: int = 1):
        self.study, self.conditions, self.deadline, self.seed = study, conditions, deadline, seed
        self.order, self.repeat, self.took = np.random.default_rng(seed), 0, 0.0
        self.prepare, self._warm_up = prepare, warm_up

    def run(self, repeats: int) -> bool:
        """Whether all of them were run."""
        if self.prepare:
            self.prepare()
        if not self.repeat:
            self._warm_up()
        for _ in range(repeats):
            began = time.monotonic()
            if began + self.took > self.deadline:
                return False
            # A repeat is kept whole or not at all: a part of one would give some arms more repeats than others.
            first = self.study.kept
            for index in self.order.permutation(len(self.conditions)):
                if time.monotonic() > self.deadline:
                    del self.study._rows[first:]
                    return False
                condition = self.conditions[index]
                self.study._record(condition, self.repeat, self.seed + self.repeat)
            self.repeat += 1
            self.took = time.monotonic() - began
            self.study.rows(first)
            log(f"{self.study.name}: repeat {self.repeat} of {len(self.conditions)} conditions took {self.took:.1f} s")
        return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--backend", default="gpu")
    parser.add_argument("--model", default="llama-3-8b")
    parser.add_argument("--seconds", type=float, required=True, help="from the start of this program to its end")
    parser.add_argument("--parts", default="M1,M3,E3,M2,E1")
    parser.add_argument("--mode", choices=("eager", "graphs"), default="eager", help="graphs: vLLM's own default, compiled and with CUDA graphs")
    parser.add_argument("--attention", default="", help="FlashAttention version, default: vLLM's choice")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--batched-tokens", type=int, default=16_384)
    parser.add_argument("--options", default="{}", help="JSON: sizes of the parts")
    options = parser.parse_args()
    deadline = BEGAN + options.seconds
    sizes = {
        "M1": {"prefix_tokens": 10_000, "batch": options.batch, "divergent": [0, 1, options.batch // 2], "decode_tokens": 24, "min": 3, "lone": True},
        "M3": {"prefix_tokens": 10_000, "batch": options.batch, "groups": [1, 2, 5, 10, 20], "decode_tokens": 24, "min": 3},
        "E3": {"prefix_tokens": 10_000, "batch": 128, "groups": [5, 20], "requests": 256, "decode_tokens": 32, "min": 3,
               "arms": ["FCFS", "Feather", "Feather (never stop)", "Feather (threshold)", "oracle (stop)"]},
        "M2": {"prefix_tokens": 10_000, "groups": 8, "requests": 256, "batches": [1, 8, 16], "decode_tokens": [64], "min": 3},
        "E1": {"prefix_tokens": 5_000, "batch": 128, "groups": 5, "requests": 256, "decode_tokens": 64, "loads": [0.7, 3.0], "min": 3,
               "arms": ["FCFS", "Feather", "Feather (never stop)", "oracle (stop)"]},
    }  # fmt: skip
    for part, changed in json.loads(options.options).items():
        sizes[part].update(changed)

    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "0"
    os.environ.setdefault("VLLM_USE_FLASHINFER_SAMPLER", "0")  # vLLM asks for FlashInfer without looking whether it is installed
    import vllm
    from feather.studies import motivation
    from feather.studies.engine import Engine
    from feather.studies.evaluation import over_groups
    from feather.studies.scheduler import ARMS
    from feather.studies.study import Condition, Study, under_cascade
    from feather.workloads import even_sizes, grouped, make_prefixes
    from feather.workloads.workload import FIRST_TOKEN, VOCABULARY

    log(f"imported vLLM {vllm.__version__}")
    extra = {"async_scheduling": False}  # a step's time is then that step's own, not its neighbour's
    gpu = options.backend == "gpu"
    if gpu and options.mode == "eager":
        extra["enforce_eager"] = True
    if gpu and options.mode == "graphs":
        captured = sorted({1, 8, 16, 32, 64, 128, options.batch // 2, options.batch})
        extra["compilation_config"] = {"cudagraph_capture_sizes": captured}
    if gpu and options.attention:
        extra["attention_config"] = {"flash_attn_version": int(options.attention)}
    vllm.LLM = functools.partial(vllm.LLM, **extra)
    engine = Engine(options.backend, options.model, max_batch=options.batch, max_batched_tokens=options.batched_tokens, kv_gib=2)
    version = "n/a"
    if gpu:
        from vllm.v1.worker.gpu_model_runner import GPUModelRunner

        assert isinstance(engine._runner, GPUModelRunner), f"not the V1 runner: {type(engine._runner)}"
        layers = engine.llm.llm_engine.vllm_config.compilation_config.static_forward_context.values()
        version = str(getattr(next(iter(layers)).impl, "vllm_flash_attn_version", type(next(iter(layers)).impl).__name__))
    told = {"attention": f"FlashAttention {version}" if gpu else "CPU", "launch": "eager" if options.mode == "eager" else "compiled, CUDA graphs",
            "scheduling": "synchronous", "runner": "V1"}  # fmt: skip
    log(f"engine is up: {told}; KV cache of {engine.kv_tokens} tokens")
    kernels = [False, True] if gpu else [False]
    salts, run_plain = count(1_000_000), engine.run

    def run_salted(workload, arm):
        """Own suffixes in every run: with blocks of 16 tokens, one of them holds nothing else, and the next arm would find it cached."""
        rng = np.random.default_rng(next(salts))
        prompts = [replace(one, tokens=one.tokens[:-20] + rng.integers(FIRST_TOKEN, VOCABULARY, 20).tolist()) for one in workload.prompts]
        return run_plain(replace(workload, prompts=prompts), arm)

    engine.run = run_salted

    def interleaved(name: str, conditions: list, prefixes: list, both=True, block=(), anew=False):
        study = Study(name, engine, options.out)
        conditions = under_cascade(conditions, engine, kernels if both else kernels[-1:])
        conditions = [replace(one, parameters={**one.parameters, **told}, engine=engine) for one in conditions]

        def prepare():
            if engine._warm is not prefixes:
                began = time.monotonic()
                engine.warm(prefixes)
                log(f"{name}: {len(prefixes)} prefixes of {len(prefixes[0])} tokens warmed in {time.monotonic() - began:.1f} s")

        def warm_up():
            for one in conditions[: len(conditions) // len(kernels) + 1 : max(1, len(conditions) // len(kernels))]:
                began = time.monotonic()
                run = one.run(1000)
                found = run.metrics()
                log(f"{name}: thrown away: {one.policy} {one.parameters.get('cascade')} {time.monotonic() - began:.1f} s, "
                    f"decode step {found.get('decode step', (0,))[0]:.1f} ms, cascade steps {found['cascade steps'][0]:.2f}, hits {found['prefix hits'][0]:.3f}")

        return Interleaved(study, conditions, deadline, warm_up, prepare)

    prefixes_10k = make_prefixes(max([2, sizes["M2"]["groups"], *sizes["M3"]["groups"], *sizes["E3"]["groups"]]), sizes["M1"]["prefix_tokens"])

    def m1():
        at = sizes["M1"]
        found = motivation.divergence(engine, prefixes_10k[:2] if at["prefix_tokens"] == 10_000 else make_prefixes(2, at["prefix_tokens"]),
                                      at["batch"], at["divergent"], at["decode_tokens"])
        if at["lone"]:  # a lone request's place among the rows does not matter: only the shuffled one
            found = [one for one in found if not (one.parameters["divergent"] == 1 and one.parameters["rows"] == "side by side")]
        return interleaved("01_prefix_homogeneity", found, prefixes_10k)

    def m3():
        at = sizes["M3"]

        def condition(groups: int) -> Condition:
            def run(seed: int):
                return engine.run(grouped(prefixes_10k, even_sizes(at["batch"], groups), seed, decode_tokens=at["decode_tokens"]), ARMS["FCFS"])

            return Condition("FCFS", {"figure": "M3", "groups": groups, "requests": at["batch"], "prefix_tokens": at["prefix_tokens"],
                                      "decode_tokens": at["decode_tokens"]}, run)  # fmt: skip

        return interleaved("18_sweeps", [condition(groups) for groups in at["groups"]], prefixes_10k)

    def queue(at: dict, **labels) -> list:
        """A queue of requests for fewer rows: the batch is held to ``batch`` rows by the scheduler's own limit."""
        return over_groups(engine, labels.pop("prefixes"), at["groups"], at["requests"], at["decode_tokens"], arms=at["arms"], **labels)

    def limited(conditions: list, rows: int) -> list:
        def hold(condition):
            def run(seed: int):
                before, engine.scheduler.max_num_running_reqs = engine.scheduler.max_num_running_reqs, rows
                try:
                    return condition.run(seed)
                finally:
                    engine.scheduler.max_num_running_reqs = before

            return replace(condition, parameters={**condition.parameters, "rows of the batch": rows}, run=run)

        return [hold(one) for one in conditions]

    def e3():
        at = sizes["E3"]
        return interleaved("03_end_to_end", limited(queue(at, prefixes=prefixes_10k), at["batch"]), prefixes_10k)

    def m2():
        at = sizes["M2"]
        found = motivation.partitions(engine, prefixes_10k[: at["groups"]], at["requests"], at["batches"], at["decode_tokens"])
        return interleaved("02_batch_size", found, prefixes_10k)

    def e1():
        at = sizes["E1"]
        prefixes = make_prefixes(at["groups"], at["prefix_tokens"], seed=5)
        if engine._warm is not prefixes:
            engine.warm(prefixes)
        workload = grouped(prefixes, even_sizes(at["batch"], at["groups"]), 2000, decode_tokens=at["decode_tokens"])
        engine.use_cascade(False)
        capacity = at["batch"] / engine.run(workload, ARMS["FCFS"]).seconds
        log(f"E1: FCFS's capacity is {capacity:.1f} requests a second")
        found = []
        for load in at["loads"]:
            found += over_groups(engine, prefixes, [at["groups"]], at["requests"], at["decode_tokens"], requests_per_s=load * capacity, arms=at["arms"])
        return interleaved("18_sweeps_rate", limited(found, at["batch"]), prefixes)

    makers = {"M1": m1, "M2": m2, "M3": m3, "E3": e3, "E1": e1}
    parts, left = {}, []
    for name in options.parts.split(","):
        if time.monotonic() > deadline - 5:
            left.append(name)
            continue
        try:
            parts[name] = makers[name]()
            if not parts[name].run(sizes[name]["min"]):
                left.append(name)
        except Exception:
            log(f"{name} failed:")
            traceback.print_exc()
            left.append(name)
    more = True
    while more and time.monotonic() < deadline:
        more = False
        for name, part in parts.items():
            if part.repeat and name not in left:
                more |= part.run(1)
    log(f"repeats: { {name: part.repeat for name, part in parts.items()} }; not finished: {left}")
    for name, part in parts.items():
        if part.repeat:
            table = part.study.rows()
            shown = table[table["metric"].isin(["throughput", "decode throughput", "decode step", "cascade steps", "time to first token, p99", "mean batch", "groups per batch", "prefix hits"])]
            keys = [key for key in ("policy", "groups", "divergent", "rows", "batches", "decode tokens", "requests per s", "cascade") if key in shown]
            print(shown.pivot_table(index=keys, columns="metric", values="value", aggfunc="median", dropna=True, sort=False).round(2).to_string(), flush=True)


if __name__ == "__main__":
    main()
