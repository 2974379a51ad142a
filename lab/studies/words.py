"""How ratios are told in sentences that have to be true of any run."""

from collections.abc import Iterable, Sequence

from lab.claims import NOISE
from lab.stats import Ratio

TRANSIENT = (
    "**Transient.** A queue that is there at the start and drains is not the steady state of a server: the ratios do not carry over to one."
)


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


def times(ratio: Ratio) -> str:
    return f"{ratio.median:.2f}×"


def told(ratio: Ratio) -> str:
    """A ratio, and whether it is one: "1.50×", or "1.01× (within noise)" where it is none."""
    return times(ratio) if differs(ratio) else f"{times(ratio)} (within noise)"


def gains(ratio: Ratio) -> bool:
    return ratio.median > 1 and differs(ratio)


def trend(ratios: Iterable[Ratio]) -> str:
    """Whether ratios one after the other "rise", "fall", "stay" (all within noise) or "go up and down"."""
    values = [ratio.median for ratio in ratios]
    if max(values) - min(values) <= NOISE * values[0]:
        return "stay"
    pairs = list(zip(values, values[1:]))
    if all(after >= (1 - NOISE) * before for before, after in pairs) and values[-1] > values[0]:
        return "rise"
    if all(after <= (1 + NOISE) * before for before, after in pairs) and values[-1] < values[0]:
        return "fall"
    return "go up and down"


def count(number: int, what: str) -> str:
    """ "1 group", "2 groups"."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def listed(parts: Iterable[str]) -> str:
    """ "a, b and c"."""
    *most, last = parts
    return f"{', '.join(most)} and {last}" if most else last


def percent(share: float) -> str:
    """With its sign: "+12 %", "−30 %", "±0 %"."""
    return f"{'±' if round(100 * share) == 0 else '−' if share < 0 else '+'}{abs(100 * share):.0f} %"


def bullets(points: Sequence[str]) -> str:
    """Points as a list in Markdown; empty ones are left out."""
    return "\n".join(f"* {point}" for point in points if point)
