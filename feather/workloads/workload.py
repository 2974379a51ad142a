"""What a workload is, whatever it was made from."""

from dataclasses import dataclass

VOCABULARY = 32_000  # token ids that every model here has


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
    """Prompts in order of arrival. ``warm``: the prefix cache holds every prefix of it when the run starts; otherwise
    the cache is emptied first."""

    prompts: list[Prompt]
    warm: bool = True

    @property
    def decode_tokens(self) -> int:
        return sum(prompt.decode_tokens for prompt in self.prompts)
