"""How ratios are told in sentences that have to be true of any run."""

from collections.abc import Sequence

from lab.stats import Ratio

NOISE = 0.05
"""Two equal arms differ by less than this (``lab.claims``): smaller differences are told as none."""


def differs(ratio: Ratio) -> bool:
    """Whether a ratio is another one than 1: by more than ``NOISE``, and with its whole interval on one side of 1."""
    return abs(ratio.median - 1) > NOISE and (ratio.low > 1 or ratio.high < 1)


def shows(ratio: Ratio) -> bool:
    """Whether a difference from 1, however small, shows over the spread of the runs: 1 lies outside the interval."""
    return not ratio.low <= 1 <= ratio.high


def speed(ratio: Ratio) -> str:
    """A ratio of throughputs: "1.52 times as fast"; "as fast (1.02 times)" within ``NOISE``; with its interval where that holds 1."""
    if abs(ratio.median - 1) <= NOISE:
        return f"as fast ({ratio.median:.2f} times)"
    spread = "" if shows(ratio) else f" [{ratio.low:.2f}, {ratio.high:.2f}]"
    return f"{ratio.median:.2f}{spread} times as fast"


def change(ratio: Ratio) -> str:
    """What a ratio of a later to an earlier value means in per cent: "+12 %", "−30 %", or "no change that shows" over the spread."""
    return percent(ratio.median - 1) if shows(ratio) or ratio.low == ratio.high else "no change that shows"


def loss(ratio: Ratio) -> str:
    """What is lost of the numerator where the denominator is what is left: of 1.25 "20 %"; "nothing" of a ratio of 1 or less, and
    "nothing that shows" where 1 lies within the interval."""
    lost = 1 - 1 / ratio.median
    if lost < 0.005:
        return "nothing"
    return f"{100 * lost:.0f} %" if shows(ratio) else "nothing that shows"


def percent(share: float) -> str:
    """With its sign: "+12 %", "−30 %", "±0 %"."""
    return f"{'±' if round(100 * share) == 0 else '−' if share < 0 else '+'}{abs(100 * share):.0f} %"


def bullets(points: Sequence[str]) -> str:
    """Points as a list in Markdown; empty ones are left out."""
    return "\n".join(f"* {point}" for point in points if point)
