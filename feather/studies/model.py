"""Models made from a configuration, with random weights: the time of a step does not depend on what they say."""

import json
from dataclasses import dataclass
from pathlib import Path

from feather.workloads import VOCABULARY


@dataclass(frozen=True)
class Model:
    """A Llama-style decoder. ``kv_bytes_per_token`` is over all layers, keys and values, in bfloat16."""

    name: str
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    max_tokens: int

    @property
    def kv_bytes_per_token(self) -> int:
        return 2 * self.layers * self.kv_heads * self.head_dim * 2

    @property
    def weight_bytes(self) -> int:
        attention = self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        layer = attention + 3 * self.hidden * self.intermediate
        return 2 * (self.layers * layer + 2 * self.vocabulary * self.hidden)

    def write(self, folder: Path) -> Path:
        """Write the configuration as vLLM reads it (``load_format="dummy"``) and return its folder."""
        target = folder / self.name
        target.mkdir(parents=True, exist_ok=True)
        config = {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "num_hidden_layers": self.layers,
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "vocab_size": self.vocabulary,
            "max_position_embeddings": self.max_tokens,
            "rms_norm_eps": 1e-5,
            "rope_theta": 500000.0,
            "hidden_act": "silu",
            "torch_dtype": "bfloat16",
            "bos_token_id": 1,
            "eos_token_id": 2,
        }
        (target / "config.json").write_text(json.dumps(config, indent=1))
        return target


# Small enough for two cores, and with prefixes of 8 000 tokens (62.5 MiB of KV each) larger than their caches.
TINY_LLAMA = Model("tiny-llama", 4, 512, 1408, 8, 8, 64, VOCABULARY, 16_384)
# The paper's model: shapes of the published Llama-3-8B configuration.
LLAMA_3_8B = Model("llama-3-8b", 32, 4096, 14_336, 32, 8, 128, 128_256, 16_384)
MODELS = {model.name: model for model in (TINY_LLAMA, LLAMA_3_8B)}
