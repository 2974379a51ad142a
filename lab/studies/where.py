"""Where this runs: what this machine, its backend and the models under study are, for a reader."""

import pandas as pd

from lab import machine
from lab.llm import MODELS


def this_machine() -> pd.DataFrame:
    return pd.Series(machine.describe()).to_frame("this machine")


def models(prefix_tokens: int = 8000) -> pd.DataFrame:
    """Shapes and sizes of the models that studies can run."""
    rows = {
        name: {
            "layers": model.layers,
            "heads (keys and values)": f"{model.heads} ({model.kv_heads})",
            "weights, MiB": model.weight_bytes / 2**20,
            "KV of a token, KiB": model.kv_bytes_per_token / 2**10,
            f"KV of a prefix of {prefix_tokens} tokens, MiB": prefix_tokens * model.kv_bytes_per_token / 2**20,
        }
        for name, model in MODELS.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index").round(1)


MEANS = {
    "gpu": "vLLM on a CUDA GPU: measured, at the paper's sizes",
    "cpu": "vLLM's build for CPUs with a small model: measured, but smaller than the paper's sizes by a factor of ten or more",
    "sim": "the engine's own scheduler on a modelled GPU: modelled, never called measured",
}


def found(backend: str, kv_gib: float) -> str:
    """Which backend runs here, why, and whether a CPU's KV cache of ``kv_gib`` GiB of bfloat16 fits, as Markdown. Raises ValueError for a backend that
    cannot run here, MemoryError where the KV cache does not fit."""
    chosen, reason = machine.choose_backend(backend)
    text = f"**Backend `{chosen}`**, because {reason}. Its numbers come from {MEANS[chosen]}."
    if chosen == "cpu":
        machine.check_memory(kv_gib)
        text += f" A KV cache of {machine.gib(kv_gib):g} GiB fits: {machine.memory_gib()[1]:.0f} GiB of memory are free."
        if machine.lacks_avx512():
            text += " This CPU has no AVX-512 and is several times slower than one that has: studies run `tiny-llama-quarter`, a quarter of `tiny-llama`,"
            text += f" and models compute in {machine.cpu_dtype()}, which is faster there than bfloat16."
    return text
