"""How ratios are told in sentences that have to be true of any run."""

from collections.abc import Sequence

from lab.stats import Ratio

NOISE = 0.05
"""Two equal arms differ by less than this (``lab.claims``): smaller differences are told as none."""


def differs(ratio: Ratio) -> bool:
    """Whether a ratio is another one than 1: by more than ``NOISE``, and with its whole interval on one side of 1."""
    return abs(ratio.median - 1) > NOISE and (ratio.low > 1 or ratio.high < 1)


def speed(ratio: Ratio) -> str:
    """A ratio of throughputs: "1.52 times as fast", "0.80 times as fast", or "as fast (1.02 times)" where they do not differ."""
    return f"{ratio.median:.2f} times as fast" if differs(ratio) else f"as fast ({ratio.median:.2f} times)"


def change(ratio: Ratio) -> str:
    """What a ratio of a later to an earlier value means in per cent: "+12 %", "−30 %"."""
    return percent(ratio.median - 1)


def loss(ratio: Ratio) -> str:
    """What is lost of the numerator where the denominator is what is left: of 1.25 "20 %", of 0.98 "nothing"."""
    lost = 1 - 1 / ratio.median
    return f"{lost:.0%}".replace("%", " %") if lost >= 0.005 else "nothing"


def percent(share: float) -> str:
    """With its sign: "+12 %", "−30 %", "±0 %"."""
    return f"{'±' if round(100 * share) == 0 else '−' if share < 0 else '+'}{abs(100 * share):.0f} %"


def bullets(points: Sequence[str]) -> str:
    """Points as a list in Markdown; empty ones are left out."""
    return "\n".join(f"* {point}" for point in points if point)
