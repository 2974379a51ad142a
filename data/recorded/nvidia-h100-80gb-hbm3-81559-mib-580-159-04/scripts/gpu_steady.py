"""Steady state on a GPU that is at hand for minutes: ``python gpu_steady.py --out FOLDER --runner V2 --parts order --seconds 300``.

One real vLLM engine with random weights, compiled and with CUDA graphs; closed loops for a fixed time, every arm on the same warm prefix cache with
suffixes of its own, interleaved, one repeat after the other until the time is up. Rows are written after every repeat.

- ``order`` (runner V2): order of admission and order of rows, each alone and both, paged attention.
- ``arms`` (runner V1): the policies under paged attention and under vLLM's cascade.
- ``strangers`` (V1): M1, one batch that is run to its end. ``rate`` (V1): E1, an open loop at shares of FCFS's measured capacity.
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
SHOWN = ["throughput", "throughput, half width", "time to first token, p99", "decode throughput", "decode step", "mean batch", "groups per batch",
         "like neighbours", "stopped", "cascade steps", "prefix hits"]  # fmt: skip


def log(text: str) -> None:
    print(f"[{time.monotonic() - BEGAN:7.1f} s] {text}", flush=True)


class Interleaved:
    """Conditions of one study, a repeat at a time in an order drawn anew, as ``Study.measure`` does, but against a clock."""

    def __init__(self, study, conditions: list, deadline: float, prepare):
        self.study, self.conditions, self.deadline, self.prepare = study, conditions, deadline, prepare
        self.order, self.repeat, self.took = np.random.default_rng(1), 0, 0.0

    def run(self) -> bool:
        """Whether another repeat was made whole: a part of one would give some arms more repeats than others."""
        began, first = time.monotonic(), self.study.kept
        if began + self.took > self.deadline:
            return False
        self.prepare()
        for index in self.order.permutation(len(self.conditions)):
            if time.monotonic() > self.deadline:
                del self.study._rows[first:]
                return False
            self.study._record(self.conditions[index], self.repeat, 1 + self.repeat)
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
    parser.add_argument("--runner", default="V1")
    parser.add_argument("--seconds", type=float, required=True, help="from the start of this program to its end")
    parser.add_argument("--parts", required=True)
    parser.add_argument("--options", default="{}", help="JSON: sizes of the parts")
    options = parser.parse_args()
    deadline = BEGAN + options.seconds
    sizes = {
        "slots": 256, "prefix_tokens": 8_000, "rows": 128, "clients": 256, "decode_tokens": [16, 48], "cell_s": 12.0,
        "order": {"groups": [8, 16], "min": 2}, "arms": {"groups": [8], "min": 2, "arms": ["FCFS", "Feather (never stop)", "Feather (strict stop)", "Feather (bandit alone)", "Feather"]},
        "strangers": {"batch": 256, "divergent": [0, 1, 128], "decode_tokens": 24, "min": 3, "max": 5},
        "rate": {"groups": [8], "loads": [0.7, 1.0], "min": 1, "arms": ["FCFS", "Feather (never stop)", "Feather (strict stop)", "Feather"]},
    }  # fmt: skip
    for name, changed in json.loads(options.options).items():
        sizes[name] = {**sizes[name], **changed} if isinstance(changed, dict) else changed

    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("VLLM_USE_FLASHINFER_SAMPLER", "0")  # vLLM asks for FlashInfer without looking whether it is installed
    os.environ["VLLM_USE_V2_MODEL_RUNNER"] = str(int(options.runner == "V2"))
    import vllm

    from lab.engines import make_engine
    from lab.engines.arms import ARMS
    from lab.steady import steady
    from lab.studies.strangers import divergence
    from lab.studies.study import Condition, Study
    from lab.workloads import even_sizes, grouped, make_prefixes
    from lab.workloads.workload import FIRST_TOKEN, VOCABULARY

    log(f"imported vLLM {vllm.__version__}")
    gpu = options.backend == "gpu"
    if gpu:
        captured = sorted({1, 8, 16, 32, 48, 64, 96, 128, 256})
        vllm.LLM = functools.partial(vllm.LLM, compilation_config={"cudagraph_capture_sizes": captured})
    engine = make_engine(options.backend, options.model, max_batch=sizes["slots"], max_batched_tokens=16_384 if gpu else 8192, kv_gib=2, runner=options.runner)
    told = {"runner": options.runner, "launch": "compiled, CUDA graphs" if gpu else "eager", "scheduling": "synchronous"}
    if gpu:
        layers = engine.llm.llm_engine.vllm_config.compilation_config.static_forward_context.values()
        first = next(iter(layers)).impl
        told["attention"] = f"{type(first).__name__} {getattr(first, 'vllm_flash_attn_version', '')}".strip()
    log(f"engine is up: {told}, {type(engine._runner).__module__}; KV cache of {engine.kv_tokens} tokens")
    salts = count(1_000_000)

    def own_suffixes(workload):
        """In every run others: with blocks of 16 tokens, one of them holds nothing else, and the next arm would find it cached."""
        rng = np.random.default_rng(next(salts))
        prompts = [replace(one, tokens=one.tokens[:-20] + rng.integers(FIRST_TOKEN, VOCABULARY, 20).tolist()) for one in workload.prompts]
        return replace(workload, prompts=prompts)

    run_plain = engine.run
    engine.run = lambda workload, arm: run_plain(own_suffixes(workload), arm)
    prefixes = make_prefixes(max(max(sizes[part]["groups"]) for part in ("order", "arms", "rate")), sizes["prefix_tokens"])

    def prepare(rows: int):
        def ready():
            engine.use_batch(rows)
            if engine._warm is not prefixes:
                began = time.monotonic()
                engine.warm(prefixes)
                log(f"{len(prefixes)} prefixes of {len(prefixes[0])} tokens warmed in {time.monotonic() - began:.1f} s")

        return ready

    def loop(arm: str, groups: int, kernel: str, sorted_rows: bool, **more) -> Condition:
        def run(seed: int):
            engine.use_kernel(kernel, sorted_rows)
            wanted = int(200 * sizes["cell_s"])
            made = grouped(prefixes, even_sizes(wanted, groups), seed, decode_tokens=tuple(sizes["decode_tokens"]), requests_per_s=more.get("requests per s"))
            clients = None if more else sizes["clients"]
            found = engine.run(replace(made, clients=clients, seconds=sizes["cell_s"]), ARMS[arm])
            return steady(found) if not more else found

        low, high = sizes["decode_tokens"]
        labels = {"groups": groups, "prefix tokens": sizes["prefix_tokens"], "decode tokens": f"{low}–{high}", **told, **more}
        if not more:
            labels |= {"clients": sizes["clients"], "seconds": sizes["cell_s"]}
        return Condition(arm, {**labels, "row order": "prefix" if sorted_rows else "engine", "kernel asked for": kernel}, run)

    kernels = ["paged", "cascade"] if gpu and options.runner == "V1" else ["paged"]

    def order():
        found = [loop(arm, groups, "paged", sorted_rows) for groups in sizes["order"]["groups"]
                 for arm in ("FCFS", "Feather (never stop)") for sorted_rows in (False, True)]  # fmt: skip
        return "steady_order", found, sizes["rows"]

    def arms():
        at = sizes["arms"]
        return "steady_arms", [loop(arm, groups, kernel, False) for groups in at["groups"] for arm in at["arms"] for kernel in kernels], sizes["rows"]

    def strangers():
        at = sizes["strangers"]
        found = divergence(engine, prefixes[:2], at["batch"], at["divergent"], at["decode_tokens"])
        found = [one for one in found if one.parameters["arranged"] == "shuffled"]
        return "one_stranger", [replace(one, kernel=kernel, parameters={**one.parameters, **told}) for one in found for kernel in kernels], at["batch"]

    def rate():
        at = sizes["rate"]
        prepare(sizes["rows"])()
        engine.use_kernel("paged")
        low, high = sizes["decode_tokens"]
        made = grouped(prefixes, even_sizes(2400, at["groups"][0]), 77, decode_tokens=(low, high))
        capacity = steady(engine.run(replace(made, clients=sizes["clients"], seconds=8.0), ARMS["FCFS"])).throughput / ((low + high) / 2)
        log(f"rate: FCFS's capacity under the paged kernel is {capacity:.1f} requests a second")
        found = [loop(arm, groups, kernel, False, **{"load": load, "requests per s": load * capacity})
                 for groups in at["groups"] for load in at["loads"] for arm in at["arms"] for kernel in kernels[-1:]]  # fmt: skip
        return "rate", found, sizes["rows"]

    makers, parts, left = {"order": order, "arms": arms, "strangers": strangers, "rate": rate}, {}, []
    for name in options.parts.split(","):
        if time.monotonic() > deadline - 5:
            left.append(name)
            continue
        try:
            study, conditions, rows = makers[name]()
            part = parts[name] = Interleaved(Study(study, engine, options.out), conditions, deadline, prepare(rows))
            part.prepare()
            began, kept = time.monotonic(), sizes["cell_s"]
            sizes["cell_s"] = min(kept, 3.0)  # thrown away: what is compiled, captured and allocated at the first use
            for one in conditions[: 2 * len(kernels)]:
                part.study._run(one, 1000)
            sizes["cell_s"] = kept
            log(f"{name}: {min(len(conditions), 2 * len(kernels))} runs thrown away in {time.monotonic() - began:.1f} s")
            for _ in range(sizes[name]["min"]):
                if not part.run():
                    left.append(name)
                    break
        except Exception:
            log(f"{name} failed:")
            traceback.print_exc()
            left.append(name)
    more = True
    while more and time.monotonic() < deadline:
        more = any([part.run() for name, part in parts.items() if name not in left and 0 < part.repeat < sizes[name].get("max", 100)])
    log(f"repeats: { {name: part.repeat for name, part in parts.items()} }; not finished: {left}")
    for name, part in parts.items():
        if part.repeat:
            table = part.study.rows()
            shown = table[table["metric"].isin(SHOWN)]
            keys = [key for key in ("groups", "load", "divergent", "policy", "row order", "kernel") if key in shown]
            print(shown.pivot_table(index=keys, columns="metric", values="value", aggfunc="median", sort=False)[[one for one in SHOWN if one in set(shown["metric"])]].round(3).to_string(), flush=True)


if __name__ == "__main__":
    main()
