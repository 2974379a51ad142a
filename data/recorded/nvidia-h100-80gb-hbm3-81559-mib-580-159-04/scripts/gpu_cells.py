"""Cells of benchmarks.steady in steady state on a real engine, one line of JSON a run, written as soon as it is over:
``python gpu_cells.py REVISION OUT.jsonl SECONDS LIMIT REPEATS GROUPS:KERNEL:ARM …``; no run begins after SECONDS. V1 runner."""

import functools
import json
import os
import sys
import time

BEGAN = time.monotonic()
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
revision, out, seconds, limit, repeats, *wanted = sys.argv[1:]
from lab import machine

machine.revision = lambda: revision
import vllm

vllm.LLM = functools.partial(vllm.LLM, compilation_config={"cudagraph_capture_sizes": sorted({1, 2, 4, 8, *range(16, 257, 16)})})
from dataclasses import replace

from benchmarks.steady import REAL_GPU, REAL_GPU_LOOP, Part, learned, told
from lab.engines import make_engine
from lab.instrument import Cell, Effort, measure


def look(engine):
    traffic = getattr(getattr(getattr(engine.scheduler.waiting, "former", None), "policy", None), "traffic", None)
    return learned(engine) | ({"capacity_chunks": traffic._capacity, "own_prompt_tokens": traffic._per_request} if traffic else {})


effort = Effort(repeats=int(repeats), limit=float(limit), turnovers=2, control_every=99)
cells = [Cell(arm, kernel, False, replace(REAL_GPU_LOOP, groups=int(groups))) for groups, kernel, arm in (each.split(":") for each in wanted)]
engine = make_engine("gpu", **REAL_GPU)
print(f"[{time.monotonic() - BEGAN:.0f} s] engine: {engine.device_name}, KV cache of {engine.kv_tokens if hasattr(engine, 'kv_tokens') else '?'} tokens", flush=True)
part = Part("gpu", REAL_GPU, (), (), (), effort)
for one in measure(engine, cells, effort, look=look):
    row = told(part, engine.device_name.split(",")[0], one.cell, [one]) | {"revision": revision, "repeat": one.repeat, "control": one.control, "limit": float(limit), "seed": one.seed}
    with open(out, "a") as file:
        print(json.dumps(row, default=float), file=file)
    print(f"[{time.monotonic() - BEGAN:.0f} s] {one.cell.name}: {row['tok_s']:.0f} ± {100 * row['ci_share']:.0f} % p99 {row['ttft_p99_s']:.2f} step {row['decode_step_ms']:.1f} ms rows {row['mean_batch']:.0f} "
          f"groups {row['groups_per_batch']:.1f} hits {row['prefix_hits']:.3f} cascade {row['cascade_share']:.2f} queue {100 * row['queue_share']:.1f} % again {one.again} {one.looked}", flush=True)
    if time.monotonic() - BEGAN > float(seconds):
        break
