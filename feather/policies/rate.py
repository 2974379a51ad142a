"""Throughput of late."""

import math
from dataclasses import dataclass


@dataclass
class Rate:
    """Tokens ÷ seconds, older steps counting less: to 1/e once ``horizon`` seconds old."""

    horizon: float
    tokens: float = 0.0
    seconds: float = 0.0

    def add(self, tokens: float, seconds: float) -> None:
        keep = math.exp(-seconds / self.horizon)
        self.tokens, self.seconds = keep * self.tokens + tokens, keep * self.seconds + seconds

    @property
    def value(self) -> float:
        """tok/s; 0 before anything was run"""
        return self.tokens / self.seconds if self.seconds else 0.0
