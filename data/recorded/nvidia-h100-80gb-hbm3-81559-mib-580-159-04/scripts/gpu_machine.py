"""The GPU, its software and two ceilings (copy bandwidth, bf16 matrix product) as one JSON object."""

import json
import platform
import subprocess
import time
from importlib.metadata import PackageNotFoundError, version

import torch

properties = torch.cuda.get_device_properties(0)
query = "name,memory.total,driver_version,clocks.sm,clocks.mem,power.limit,temperature.gpu"
found = {
    "device": subprocess.run(["nvidia-smi", f"--query-gpu={query}", "--format=csv"], capture_output=True, text=True).stdout.strip().splitlines(),
    "multiprocessors": properties.multi_processor_count, "L2 bytes": properties.L2_cache_size, "memory bytes": properties.total_memory,
    "CUDA": torch.version.cuda, "python": platform.python_version(), "date": time.strftime("%Y-%m-%d", time.gmtime()),
}  # fmt: skip
for package in ("torch", "triton", "vllm", "transformers", "numpy", "pandas", "xxhash"):
    try:
        found[package] = version(package)
    except PackageNotFoundError:
        found[package] = None


def median_seconds(call, repeats: int = 20) -> float:
    times = []
    for repeat in range(repeats + 3):
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
        marks[0].record()
        call()
        marks[1].record()
        torch.cuda.synchronize()
        times.append(marks[0].elapsed_time(marks[1]) / 1e3)
    return sorted(times[3:])[repeats // 2]


source = torch.empty(2**30, dtype=torch.float32, device="cuda").normal_()
target = torch.empty_like(source).normal_()
found["copy GB/s, read and written"] = round(2 * source.nbytes / median_seconds(lambda: target.copy_(source)) / 1e9, 1)
found["sum GB/s, read"] = round(source.nbytes / median_seconds(lambda: source.sum()) / 1e9, 1)
one, two = (torch.empty(8192, 8192, dtype=torch.bfloat16, device="cuda").normal_() for _ in range(2))
found["bf16 matrix product 8192, TFLOP/s"] = round(2 * 8192**3 / median_seconds(lambda: one @ two) / 1e12, 1)
print(json.dumps(found, indent=1))
