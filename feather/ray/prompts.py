"""A request to a Ray Serve deployment as a path of cumulative prefix hashes."""

import json
from array import array
from collections.abc import Iterable, Mapping
from typing import Any

from feather.hashing import hash_tokens


def prefix_path(arguments: Iterable[Any], chunk_size: int = 512, model: str = "") -> list[int]:
    """The chunk hashes of the first argument that has a prompt, as attribute or key: ``prompt_token_ids``, ``prompt`` (text or token ids;
    the first of several) or ``messages``. Four characters of text count as a token. A ``cache_salt`` and an adapter (``model``) enter every
    hash. Empty where there is nothing that can be hashed: such a request shares nothing."""
    for argument in arguments:
        get = argument.get if isinstance(argument, Mapping) else lambda name, argument=argument: getattr(argument, name, None)
        try:
            prompt = next(found for name in ("prompt_token_ids", "prompt", "messages") if (found := get(name)) is not None and len(found))
            keys = [(0, f"{kind} {value}".encode()) for kind, value in (("lora", model), ("salt", get("cache_salt"))) if value]
            if isinstance(prompt, list) and not isinstance(prompt[0], int):  # several prompts, or messages
                prompt = prompt[0] if isinstance(prompt[0], (str, list)) else json.dumps(prompt, default=str)
            if isinstance(prompt, str):
                prompt, chunk_size = array("I", prompt.encode("utf-32-le", "surrogatepass")), 4 * chunk_size
            return hash_tokens(prompt, chunk_size, keys)
        except StopIteration:
            continue
        except Exception:  # a user's object, whatever it is: an exception here would leave its request waiting for ever
            break
    return []
