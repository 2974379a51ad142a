"""A vLLM request as a path of cumulative prefix hashes."""

from collections.abc import Hashable, Sequence

from vllm.v1.request import Request

from feather.hashing import hash_blocks, hash_tokens


def prefix_path(request: Request, chunk_size: int, block_size: int) -> Sequence[Hashable]:
    """The prompt's chunk hashes. Taken from vLLM's block hashes if it computed them (prefix caching) and the chunk is a multiple of
    their block; otherwise computed from the token ids and whatever else makes the prefix (adapter, salt, images).

    A prompt given as embeddings has no token ids: without block hashes it shares nothing.
    """
    if request.block_hashes and chunk_size % block_size == 0:
        prompt_blocks = request.num_prompt_tokens // block_size
        return hash_blocks(request.block_hashes[:prompt_blocks], block_size, chunk_size)
    if request.prompt_token_ids is None or request.prompt_embeds is not None:
        return ()
    return hash_tokens(request.prompt_token_ids, chunk_size, _prefix_keys(request))


def _prefix_keys(request: Request) -> list[tuple[int, bytes]]:
    keys = []
    if request.lora_request is not None:
        keys.append((0, f"lora {request.lora_request.lora_name} {request.lora_request.lora_path}".encode()))
    if request.cache_salt:
        keys.append((0, f"salt {request.cache_salt}".encode()))
    for feature in sorted(request.mm_features, key=lambda feature: feature.mm_position.offset):
        keys.append((feature.mm_position.offset, f"mm {feature.identifier}".encode()))
    return keys
