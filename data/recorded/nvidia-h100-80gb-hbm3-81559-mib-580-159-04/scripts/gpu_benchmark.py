"""benchmarks.steady with fewer CUDA graphs than vLLM would capture: ``python gpu_benchmark.py REVISION OUT.json [arguments of benchmarks.steady]``."""
import contextlib
import functools
import os
import sys

os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
revision, out, *rest = sys.argv[1:]
from lab import machine

machine.revision = lambda: revision
import vllm

vllm.LLM = functools.partial(vllm.LLM, compilation_config={"cudagraph_capture_sizes": sorted({1, 2, 4, 8, *range(16, 257, 16)})})
import runpy

sys.argv = ["benchmarks.steady", "--json", "--backend", "gpu", "--profile", "gpu", *rest]
with open(out, "w") as file, contextlib.redirect_stdout(file):
    runpy.run_module("benchmarks.steady", run_name="__main__", alter_sys=True)
