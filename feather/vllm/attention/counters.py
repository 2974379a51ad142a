"""What the attention backend has done, where the scheduler can read it.

The backend works in vLLM's worker, the scheduler in the engine's process, and nothing that vLLM sends from one to the other has room for numbers
of others. Both run on one machine, so the numbers are in a small file that both map into memory.
"""

import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

NAMES = ("steps", "cascade", "packed", "rows", "shared_rows", "saved_tokens")
"""steps; those of them with shared prefixes computed once, by kernel; rows; those that shared; tokens of keys and values, of one layer, that were
not read again"""


def path(vllm_config: Any) -> Path:
    """Of the engine's file, that of the first worker."""
    parallel = vllm_config.parallel_config
    rank = getattr(parallel, "data_parallel_index", parallel.data_parallel_rank)
    return Path(tempfile.gettempdir()) / f"feather-attention-{vllm_config.instance_id}-{rank}"


def is_first_worker() -> bool:
    """Whether this process has the first share of the first layers: all workers do the same steps, and one counts them."""
    from vllm.distributed import parallel_state  # not for the scheduler, which reads this file too

    if not parallel_state.model_parallel_is_initialized():
        return True
    return parallel_state.get_tensor_model_parallel_rank() == 0 and parallel_state.get_pp_group().is_first_rank


class Counters:
    """The backend's side. Without a file, or a folder that takes it, the numbers stay in this process."""

    def __init__(self, file: Path | None):
        self.values = np.zeros(len(NAMES), dtype=np.int64)
        if file is not None:
            with suppress(OSError):
                self.values = np.memmap(file, dtype=np.int64, mode="w+", shape=len(NAMES))

    def add(self, **news: int) -> None:
        for name, value in news.items():
            self.values[NAMES.index(name)] += value

    def __getitem__(self, name: str) -> int:
        return int(self.values[NAMES.index(name)])


class Reader:
    """The scheduler's side. Takes the file away when it has it: the numbers stay mapped for both."""

    def __init__(self, vllm_config: Any):
        self._path = path(vllm_config)
        self._values: np.ndarray | None = None

    def read(self) -> dict[str, int]:
        """The numbers so far; none before the backend has begun."""
        if self._values is None:
            try:
                self._values = np.memmap(self._path, dtype=np.int64, mode="r", shape=len(NAMES))
                self._path.unlink()
            except (OSError, ValueError):
                return {}
        return {name: int(value) for name, value in zip(NAMES, self._values)}
