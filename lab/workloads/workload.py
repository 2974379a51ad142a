"""What a workload is, whatever it was made from."""

from dataclasses import dataclass
from numbers import Integral

VOCABULARY = 8_000  # token ids that every model here has
FIRST_TOKEN = 10  # the first few ids are special tokens by convention


@dataclass(frozen=True)
class Prompt:
    """One request of a workload."""

    tokens: list[int]
    group: int
    """which prefix it begins with"""
    decode_tokens: int
    arrival: float = 0.0
    """seconds after the start of the run"""


@dataclass(frozen=True)
class Workload:
    """Prompts in order of arrival, at least one. ``warm``: the prefix cache holds every prefix of it when the run starts; otherwise
    the cache is emptied first. Raises ValueError where an arrival is negative, infinite or earlier than the one before, or a
    prompt has no token or asks for none."""

    prompts: list[Prompt]
    warm: bool = True
    clients: int | None = None
    """closed loop: so many clients, each sending its next request once its last is answered; None: nobody waits for answers"""
    seconds: float | None = None
    """after which nothing more is sent: what was sent until then is answered, the rest is left out; None: all is sent"""
    note: str = ""
    """what was cut, scaled or drawn to make it, for the caption of a figure"""

    def __post_init__(self) -> None:
        if self.clients is not None and self.clients < 1:
            raise ValueError(f"clients={self.clients} must be at least 1, or None")
        if self.seconds is not None and not self.seconds > 0:
            raise ValueError(f"seconds={self.seconds} must be above 0, or None")
        if not self.prompts:
            raise ValueError("a workload needs at least one prompt")
        before = 0.0
        for number, prompt in enumerate(self.prompts):
            if not 0 <= prompt.arrival < float("inf"):
                raise ValueError(f"prompt {number} arrives at {prompt.arrival} s: must be a number of seconds from 0 on")
            if prompt.arrival < before:
                raise ValueError(f"prompt {number} arrives at {prompt.arrival} s, after one at {before} s: sort them by arrival")
            if not prompt.tokens or not isinstance(prompt.decode_tokens, Integral) or prompt.decode_tokens < 1:
                raise ValueError(
                    f"prompt {number} has {len(prompt.tokens)} tokens and asks for {prompt.decode_tokens}: both must be whole numbers, at least 1"
                )
            before = prompt.arrival

    @property
    def decode_tokens(self) -> int:
        return sum(prompt.decode_tokens for prompt in self.prompts)

    @property
    def prompt_tokens(self) -> int:
        return sum(len(prompt.tokens) for prompt in self.prompts)
