"""The paper's claims, and how a measured ratio becomes a verdict.

Source of texts and values: "Requests of a Feather Must Flock Together: Batch Size vs. Prefix Homogeneity in LLM
Inference", arXiv 2605.06046 (Llama-3-8B on an RTX 6000 Ada unless it says otherwise).
"""

from dataclasses import dataclass

from lab.stats import Ratio

VERDICTS = ("reproduced", "reproduced in direction", "not reproduced", "modelled only", "not run here")

# A factor counts as reproduced from four fifths of the paper's on.
_SHARE_OF_FACTOR = 0.8
# Two equal arms differ by up to 3.6 % on the machines that runs are kept of ("noise_floor" of benchmarks.policies: 0.9644 as recorded in
# commit 64d5cd0, 0.9745 in 9b45cde): less than 5 % is no difference, and a verdict that hung on it would be another one in the next run.
_NOISE = 0.05


@dataclass(frozen=True)
class Claim:
    id: str
    text: str
    paper: str
    """the paper's value, as it gives it"""
    factor: float | None = None
    """that value as a number that ours is held against; None for a claim about a shape"""
    unit: str = "×"
    floor: float = 1.0 + _NOISE
    """above it the direction, if not the size, is the paper's: a ratio above 1 by more than noise, half a share"""


CLAIMS = {
    claim.id: claim
    for claim in (
        Claim("M1", "Of 500 requests on two prefixes, one divergent request halves decode throughput", "≈ 2×", 2),
        Claim("M2", "8 homogeneous batches of 100 beat one mixed batch of 800; for long decodes even 16 of 50 do", "≈ 2×", 2),
        Claim("M3", "Prefix groups: a drop from 1 to 2, flat from 2 to 20, collapse from 20 to 100 (KV evictions)", "shape"),
        Claim("M4", "Throughput rises smoothly with the shared fraction of the prefix", "shape"),
        Claim("M5", "Throughput saturates before the maximum batch; homogeneous later and higher", "shape"),
        Claim("M6", "The number of prefix-tree levels does not matter", "shape"),
        Claim("M7", "Prefix detection costs 50–90 % of total latency at long prompts", "50–90 %", 0.5, "share", 0.25),
        Claim("E1", "Request-rate sweep, 5 groups of 5K tokens: Feather against vLLM's FCFS", "≈ 4×", 4),
        Claim("E2", "Shared-prefix length 1K–10K", "2–10×", 2),
        Claim("E3", "1–100 prefix groups: Feather against FCFS", "up to 10×", 10),
        Claim("E4", "Decode length 1–200: against the second best", "3×", 3),
        Claim("E5", "Scheduler CPU time against LPM and DFS-weight; share of GPU time", "1000× lower, < 1 %", 1000),
        Claim("E6", "Models Qwen 0.5B/1.5B/8B, LongChat-13B", "up to 22×", 22),
        Claim("E7", "Against the prefix-aware attention kernel PAT", "equal or better", 1),
        Claim("E8", "Higher mean DRAM bandwidth, fewer DRAM accesses in total", "direction"),
        Claim("E9", "Ablations: radix tree for CHT; no stopping; chunk size 1…1024", "lower; lower; flat"),
        Claim("E10", "Without prefix sharing: not slower than FCFS", "≥ 1×", 1),
        Claim("E11", "Datasets L-Eval and LongBench", "2–10×", 2),
        Claim("E12", "The bandit converges", "≈ 100 s", unit="s"),
    )
}


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
        strong, weak = ours.low >= 1 - _NOISE, ours.median >= 1 - _NOISE
    else:
        strong, weak = ours.low >= _SHARE_OF_FACTOR * claim.factor, ours.low > claim.floor
    if strong and all((parts or {}).values()):
        return "reproduced"
    return "reproduced in direction" if weak else "not reproduced"
