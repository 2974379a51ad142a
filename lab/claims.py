"""How a measured ratio becomes a verdict on one of the paper's claims (``book.toml``)."""

from lab.book import CLAIMS
from lab.stats import Ratio

__all__ = ["CLAIMS", "NOISE", "VERDICTS", "verdict"]

VERDICTS = ("reproduced", "reproduced in direction", "not reproduced", "modelled only", "not run here")

# A factor counts as reproduced from four fifths of the paper's on.
_SHARE_OF_FACTOR = 0.8
# FCFS over FCFS has medians from 0.97 to 1.10 in six recorded cells (policies.json), all but one within 4 %: less than 5 % is no
# difference, and a verdict that hung on it would be another one in the next run.
NOISE = 0.05


def verdict(claim_id: str, ours: Ratio, backend: str, parts: dict[str, bool] | None = None) -> str:
    """Hold a number against the claim's: by its interval's ends, not by its middle; a claim without a factor by its parts.

    *Reproduced*: the whole interval lies above four fifths of the paper's factor. *Reproduced in direction*: it lies
    above the claim's floor, 1.05 for a ratio; how far from the paper's factor is for the number to say. A "not slower" claim
    (factor 1) is *reproduced* where the interval rules out a loss of more than 5 %, and *reproduced in direction* where only the
    median does. What a model says is never more than *modelled only*.

    A claim of several ``parts`` (name → whether it holds) is reproduced where all hold, in direction where some do; for
    a claim without a factor they alone decide. Raises ValueError for such a claim without parts.
    """
    claim = CLAIMS[claim_id]
    if backend == "sim":
        return "modelled only"
    if claim.factor is None:
        if not parts:
            raise ValueError(f"claim {claim_id} is about a {claim.paper!r}: name the parts of it that hold")
        return VERDICTS[0] if all(parts.values()) else VERDICTS[1] if any(parts.values()) else VERDICTS[2]
    if claim.factor == 1:
        strong, weak = ours.low >= 1 - NOISE, ours.median >= 1 - NOISE
    else:
        strong, weak = ours.low >= _SHARE_OF_FACTOR * claim.factor, ours.low > (1 + NOISE if claim.floor is None else claim.floor)
    if strong and all((parts or {}).values()):
        return "reproduced"
    return "reproduced in direction" if weak else "not reproduced"
