"""Feather: a prefix-aware scheduler for LLM inference.

* The core (``hashing``, ``request``, ``cht``, ``policies``, ``former``, ``admission``, ``memory``, ``options``) needs numpy and xxhash
  alone; it knows no engine.
* ``feather.vllm`` and ``feather.sglang`` are the adapters that put the core into an engine's scheduler; ``feather.ray`` chooses among engines.
"""

from feather.cht import ChunkedHashTree
from feather.hashing import hash_tokens
from feather.options import Options
from feather.request import Request

__all__ = ["ChunkedHashTree", "Options", "Request", "hash_tokens"]
__version__ = "0.1.0"
