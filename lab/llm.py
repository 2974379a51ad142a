"""Models made from a configuration, with random weights: the time of a step does not depend on what they say."""

import json
from dataclasses import dataclass
from pathlib import Path

from lab import machine

_PEAKED = 3.0  # standard deviation of a random query's scores: among 2 000 keys some ten then get half of the weight


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
    tied: bool = False
    """one matrix is both the embedding and the output head"""

    @property
    def kv_bytes_per_token(self) -> int:
        return 2 * self.layers * self.kv_heads * self.head_dim * 2

    @property
    def body_bytes(self) -> int:
        """weights of the layers, which every token is multiplied by"""
        attention = self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        return 2 * self.layers * (attention + 3 * self.hidden * self.intermediate)

    @property
    def head_bytes(self) -> int:
        """weights of the output head, which every row of a step is multiplied by once"""
        return 2 * self.vocabulary * self.hidden

    @property
    def weight_bytes(self) -> int:
        return self.body_bytes + (1 if self.tied else 2) * self.head_bytes

    def activation_bytes(self, tokens: int) -> int:
        """The widest activations of a step of so many tokens: the gate and up projections, and four copies of the hidden
        state, in bfloat16."""
        return 2 * tokens * (2 * self.intermediate + 4 * self.hidden)

    def write(self, folder: Path, weights_seed: int | None = None) -> Path:
        """Write the configuration as vLLM reads it (``load_format="dummy"``) and return its folder. ``weights_seed``: and random weights, for
        ``load_format="auto"``. vLLM's dummy weights are so small that what attention computes is lost beside the embedding: the tokens would be
        the same whatever it computed. These are scaled to the sizes of their inputs, and queries so that they attend to few tokens."""
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
            "tie_word_embeddings": self.tied,
            "max_position_embeddings": self.max_tokens,
            "rms_norm_eps": 1e-5,
            "rope_theta": 500000.0,
            "hidden_act": "silu",
            "torch_dtype": "bfloat16",
            "bos_token_id": 1,
            "eos_token_id": 2,
        }
        (target / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
        if weights_seed is not None:
            self._write_weights(target / "model.safetensors", weights_seed)
        return target

    def _write_weights(self, path: Path, seed: int) -> None:
        import torch
        from safetensors.torch import save_file

        generator = torch.Generator().manual_seed(seed)

        def matrix(rows: int, columns: int, scale: float = 1.0) -> torch.Tensor:
            return torch.randn(rows, columns, generator=generator) * (scale / columns**0.5)

        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        tensors = {"model.embed_tokens.weight": torch.randn(self.vocabulary, self.hidden, generator=generator)}
        if not self.tied:
            tensors["lm_head.weight"] = matrix(self.vocabulary, self.hidden)
        norms = ["model.norm"]
        for layer in range(self.layers):
            at = f"model.layers.{layer}"
            norms += [f"{at}.input_layernorm", f"{at}.post_attention_layernorm"]
            tensors |= {
                f"{at}.self_attn.q_proj.weight": matrix(queries, self.hidden, _PEAKED),
                f"{at}.self_attn.k_proj.weight": matrix(keys, self.hidden),
                f"{at}.self_attn.v_proj.weight": matrix(keys, self.hidden),
                f"{at}.self_attn.o_proj.weight": matrix(self.hidden, queries),
                f"{at}.mlp.gate_proj.weight": matrix(self.intermediate, self.hidden),
                f"{at}.mlp.up_proj.weight": matrix(self.intermediate, self.hidden),
                f"{at}.mlp.down_proj.weight": matrix(self.hidden, self.intermediate),
            }
        tensors |= {f"{norm}.weight": torch.ones(self.hidden) for norm in norms}
        save_file(tensors, path, {"format": "pt"})

    def write_adapter(self, folder: Path, seed: int, rank: int = 8) -> Path:
        """Write a LoRA adapter of the attention projections, with random weights that change what the model says, and return its folder."""
        import torch
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        shapes = {
            "q_proj": (self.hidden, queries),
            "k_proj": (self.hidden, keys),
            "v_proj": (self.hidden, keys),
            "o_proj": (queries, self.hidden),
        }
        config = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": list(shapes), "bias": "none"}
        (folder / "adapter_config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
        generator = torch.Generator().manual_seed(seed)
        tensors = {}
        for layer in range(self.layers):
            for name, (columns, rows) in shapes.items():
                at = f"base_model.model.model.layers.{layer}.self_attn.{name}"
                tensors[f"{at}.lora_A.weight"] = torch.randn(rank, columns, generator=generator) / columns**0.5
                tensors[f"{at}.lora_B.weight"] = torch.randn(rows, rank, generator=generator) / rank**0.5
        save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
        return folder


# Small enough for two cores, and with prefixes of 8 000 tokens (62.5 MiB of KV each) larger than their caches.
TINY_LLAMA = Model("tiny-llama", 4, 512, 1408, 8, 8, 64, 32_000, 16_384)
# A quarter of it in layers and vocabulary: a step takes a quarter of the time, and is made of the same parts.
TINY_LLAMA_QUARTER = Model("tiny-llama-quarter", 1, 512, 1408, 8, 8, 64, 8_000, 16_384)
# The first with keys and values that query heads share: 4 heads each, and 7 as in Qwen2.5-0.5B, of which it has 4 layers of 24.
TINY_GQA_4 = Model("tiny-gqa-4", 4, 512, 1408, 8, 2, 64, 32_000, 16_384)
TINY_GQA_7 = Model("tiny-gqa-7", 4, 896, 4864, 14, 2, 64, 32_000, 16_384)
# The paper's models: shapes of the published configurations (config.json on the Hugging Face Hub) of Llama-3-8B,
# Qwen2.5-0.5B, Qwen2.5-1.5B, Qwen3-8B and LongChat-13B-16K, as remembered, with parameter counts that agree with the model
# cards' (tests/test_sim.py). All are written as a Llama of that shape; the last number but `tied` is how long a request the
# studies may make, not what the model was trained for (Llama-3-8B: 8 192 tokens, less than the paper's prefixes).
LLAMA_3_8B = Model("llama-3-8b", 32, 4096, 14_336, 32, 8, 128, 128_256, 16_384)
QWEN_0_5B = Model("qwen-0.5b", 24, 896, 4864, 14, 2, 64, 151_936, 32_768, tied=True)
QWEN_1_5B = Model("qwen-1.5b", 28, 1536, 8960, 12, 2, 128, 151_936, 32_768, tied=True)
QWEN_8B = Model("qwen-8b", 36, 4096, 12_288, 32, 8, 128, 151_936, 32_768)
LONGCHAT_13B = Model("longchat-13b", 40, 5120, 13_824, 40, 40, 128, 32_000, 16_384)
MODELS = {
    model.name: model
    for model in (TINY_LLAMA, TINY_GQA_4, TINY_GQA_7, TINY_LLAMA_QUARTER, LLAMA_3_8B, QWEN_0_5B, QWEN_1_5B, QWEN_8B, LONGCHAT_13B)
}


def small() -> Model:
    """The model that this CPU is given where nobody names one: ``TINY_LLAMA``, or a quarter of it on one several times slower."""
    return TINY_LLAMA_QUARTER if machine.lacks_avx512() else TINY_LLAMA
