"""A request to a Ray Serve deployment as a path of cumulative prefix hashes."""

import json
from array import array
from collections.abc import Iterable, Mapping
from typing import Any

from feather.hashing import hash_tokens

_CHARACTERS = 4  # of text count as a token


def prefix_path(arguments: Iterable[Any], chunk_size: int = 512, model: str = "") -> list[int]:
    """The chunk hashes of the first argument that has a prompt, as attribute or key: ``prompt_token_ids``, ``prompt`` (text or token ids;
    the first of several) or ``messages``. A ``cache_salt`` and an adapter (``model``) enter every hash. Empty where there is nothing that can be
    hashed: such a request shares nothing."""
    for argument in arguments:
        get = argument.get if isinstance(argument, Mapping) else lambda name, argument=argument: getattr(argument, name, None)
        prompt = get("prompt_token_ids") or get("prompt") or get("messages")
        if prompt:
            keys = [(0, f"{kind} {value}".encode()) for kind, value in (("lora", model), ("salt", get("cache_salt"))) if value]
            try:
                return _hash(prompt, chunk_size, keys)
            except (TypeError, ValueError):
                return []
    return []


def _hash(prompt: Any, chunk_size: int, keys: list[tuple[int, bytes]]) -> list[int]:
    if isinstance(prompt, list):
        if isinstance(prompt[0], (str, list)):
            prompt = prompt[0]
        elif not isinstance(prompt[0], int):  # messages
            prompt = json.dumps(prompt, default=str)
    if isinstance(prompt, str):
        characters = array("I")
        characters.frombytes(prompt.encode("utf-32-le", "surrogatepass"))
        prompt, chunk_size = characters, chunk_size * _CHARACTERS
    return hash_tokens(prompt, chunk_size, keys)
