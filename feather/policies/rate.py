"""Recent throughput."""

import math
from dataclasses import dataclass


@dataclass
class Rate:
    """Tokens ÷ seconds. Older steps count less: 1/e of their weight once ``horizon`` seconds old."""

    horizon: float
    tokens: float = 0.0
    seconds: float = 0.0

    def add(self, tokens: float, seconds: float) -> None:
        keep = math.exp(-seconds / self.horizon)
        self.tokens, self.seconds = keep * self.tokens + tokens, keep * self.seconds + seconds

    @property
    def value(self) -> float:
        """tok/s; 0 before the first step"""
        return self.tokens / self.seconds if self.seconds else 0.0
