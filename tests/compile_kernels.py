"""Run as a program: compile the kernels in bfloat16 for an Ada and a Hopper GPU, which needs neither; what came out, as JSON."""

import json
import re
import subprocess
import tempfile
from pathlib import Path
from types import SimpleNamespace

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from lab.kernels.batch import HEADS
from lab.kernels.packed import packed_kernel
from lab.kernels.paged import paged_kernel
from lab.kernels.triton_attention import launch_options

TYPES = {
    **dict.fromkeys(("queries", "keys", "values"), "*bf16"), **dict.fromkeys(("outputs", "sums"), "*fp32"), "scale": "fp32",
    **dict.fromkeys(("table", "members", "starts", "counts", "firsts", "lasts"), "*i32"), **dict.fromkeys(("table_width", "rows"), "i32"),
}  # fmt: skip
CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


def compiled(kernel, capability: int, heads: str, queries: int) -> dict:
    pool = SimpleNamespace(heads=HEADS[heads], block_size=16, device="cuda", keys=torch.empty(0, dtype=torch.bfloat16))
    options = launch_options(pool, queries)
    launch = {name: options.pop(name) for name in ("num_warps", "num_stages")}
    signature = {name: TYPES.get(name, "constexpr") for name in kernel.arg_names}
    # Triton's launcher finds by itself that the tensors are aligned.
    aligned = {(place,): [["tt.divisibility", 16]] for place, name in enumerate(kernel.arg_names) if signature[name].startswith("*")}
    source = ASTSource(kernel, signature, constexprs={**options, "SPLITS": 2}, attrs=aligned)
    made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=launch)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(made.asm["cubin"])
        file.flush()
        usage = subprocess.run([CUOBJDUMP, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True).stdout
    return {
        "kernel": kernel.__name__, "capability": capability, "heads": heads, "shared": made.metadata.shared,
        "stack": int(re.search(r"STACK:(\d+)", usage)[1]),
        "tensor cores": "mma" in made.asm["ptx"], "pipelined": "cp.async" in made.asm["ptx"],
    }  # fmt: skip


if __name__ == "__main__":
    cases = [(paged_kernel, 16), (packed_kernel, 64)]
    models = ("llama-3-8b", "longchat-13b")
    print(json.dumps([compiled(kernel, target, model, queries) for kernel, queries in cases for target in (89, 90) for model in models]))
