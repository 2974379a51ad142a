"""M7, E5: what does finding shared prefixes cost? A step's part alone (``detection``), and the queue inside the engine."""

from collections.abc import Sequence

import pandas as pd

from feather.sglang import missing
from lab.stats import Ratio, median_of, ratio
from lab.studies import words
from lab.studies.detection import length_shown, sweep
from lab.studies.evaluation import over_groups
from lab.studies.study import Study
from lab.workloads import make_prefixes

INSIDE = ("FCFS", "Feather (never stop)", "Feather (threshold)", "LPM", "DFS-weight", "block table")
TREE = "Feather, from block hashes"
"""what stands for Feather: it runs where vLLM has hashed the blocks already"""


def alone(study: Study, prompt_tokens: Sequence[int], waiting: Sequence[int], steps: int) -> pd.DataFrame:
    """``sweep``, kept in the rows of the study."""
    table = sweep(prompt_tokens, waiting, steps)
    for row in table.itertuples():
        place = {"prompt tokens": row.prompt_tokens, "waiting": row.waiting}
        study.row(row.policy, place, "detection time per step", row.ms, "ms", row.repeat)
    return table


def inside(study: Study, prefix_groups: int, prefix_tokens: int, requests: int, decode_tokens: int, repeats: int) -> pd.DataFrame:
    """The study's engine under the policies of ``INSIDE``, the queue full at the start. Raises RuntimeError where the time inside the
    queue is not a part of the step's."""
    prefixes = make_prefixes(prefix_groups, prefix_tokens)
    study.engine.warm(prefixes)
    table = study.measure(over_groups(study.engine, prefixes, [prefix_groups], requests, decode_tokens, arms=INSIDE), repeats)
    if not (shares := table[table["metric"] == "queue share"]["value"]).between(0, 1).all():
        raise RuntimeError(f"time inside the queue must be part of the step, but is up to {shares.max():g} of it")
    return table


def facets(table: pd.DataFrame) -> list[tuple]:
    """The panels of the figure, as ``figures.log_lines`` takes them: over prompt lengths and over queue lengths."""
    length, deepest = length_shown(list(table["prompt_tokens"])), table["waiting"].max()
    return [
        ("prompt_tokens", table["waiting"] == deepest, f"{deepest} requests waiting", "prompt tokens"),
        ("waiting", table["prompt_tokens"] == length, f"prompts of {length} tokens", "requests waiting"),
    ]


class Costs:
    """What is compared: the step with the longest queue alone, and the queue inside the engine."""

    def __init__(self, alone: pd.DataFrame, inside: pd.DataFrame):
        self.length, self.deepest = length_shown(list(alone["prompt_tokens"])), alone["waiting"].max()
        point = alone[(alone["prompt_tokens"] == self.length) & (alone["waiting"] == self.deepest)]
        self.ms = point.pivot(index="repeat", columns="policy", values="ms")
        self._inside = inside
        self.step_ms = self._of("decode step", "FCFS").median()
        self.queue_ms = self._of("queue time per step", "Feather (never stop)").median()
        self.queue_share = median_of(self._of("queue share", "Feather (never stop)"))

    def _of(self, metric: str, policy: str) -> pd.Series:
        return self._inside[(self._inside["metric"] == metric) & (self._inside["policy"] == policy)]["value"]

    def over(self, rival: str, ours: str = TREE) -> Ratio:
        """A rival's time for a step over ours."""
        return ratio(self.ms[rival], self.ms[ours])

    def share(self, rival: str) -> Ratio:
        """A rival's time as a share of it and one decode step together."""
        return median_of(self.ms[rival] / (self.ms[rival] + self.step_ms))

    def finding(self) -> str:
        """What the figure shows, in a sentence."""
        tree = 1e3 * self.ms[TREE].median()
        if missing():
            return f"Feather's part of a step takes {tree:.0f} µs with {self.deepest} requests of {self.length} tokens waiting"
        return f"Feather's part of a step takes {tree:.0f} µs; SGLang's LPM takes {self.over('SGLang LPM').median:.0f} times as long"

    def claims(self, study: Study) -> str:
        """M7 and E5, or why they could not be tested here."""
        if why := missing():
            return "\n".join(study.not_run(claim, why) for claim in ("M7", "E5"))
        where = f"{self.deepest} waiting, {self.length} tokens"
        m7 = study.claim(
            "M7", self.share("SGLang LPM"),
            f"SGLang's LPM call against one decode step of {self.step_ms:.0f} ms measured here, {where}, the cut-off at 128 waiting requests lifted; "
            f"DFS-weight: {self.share('SGLang DFS-weight').median:.2f}. With the cut-off LPM orders nothing at this depth.",
        )  # fmt: skip
        e5 = study.claim(
            "E5", self.over("SGLang LPM"),
            f"SGLang's LPM call over Feather's part of a step, {where}, from block hashes; DFS-weight: {self.over('SGLang DFS-weight').median:.0f}×; "
            f"from tokens: {self.over('SGLang LPM', 'Feather, from tokens').median:.0f}×; all that it does in a step inside SGLang: "
            f"{self.over('SGLang LPM', 'Feather in SGLang').median:.0f}×. All of Feather's queue takes {100 * self.queue_share.median:.2f} % of a real engine "
            f"step on this machine, {self.queue_ms * 1e3:.0f} µs, which would be {100 * self.queue_ms / 20:.2f} % of a GPU step of 20 ms.",
            parts={"less than 1 % of the engine step": self.queue_share.high < 0.01},
        )  # fmt: skip
        return f"{m7}\n{e5}"

    def found(self) -> str:
        """What was found, as Markdown."""
        queue = (
            f"**In the engine** all of Feather's queue (arrivals, hashing, order, decisions) takes {self.queue_ms * 1e3:.0f} µs a step, "
            f"{100 * self.queue_share.median:.2f} % of the step's time."
        )
        tree = f"**Alone**, {self.deepest} requests of {self.length} tokens waiting, Feather's part of a step takes {1e3 * self.ms[TREE].median():.0f} µs"
        if why := missing():
            return words.bullets([f"{tree}.", queue, f"**SGLang's policies** were not run here. {why}"])
        rivals = " and ".join(
            f"{name.removeprefix('SGLang ')} {self.ms[name].median():.1f} ms ({self.over(name).median:.0f} times)"
            for name in ("SGLang LPM", "SGLang DFS-weight")
        )
        return words.bullets([
            f"{tree} from vLLM's block hashes and {1e3 * self.ms['Feather, from tokens'].median():.0f} µs from tokens; SGLang's {rivals}.",
            f"**Behind SGLang's seam** Feather has more to do, {self.ms['Feather in SGLang'].median():.2f} ms: "
            f"SGLang's LPM takes {self.over('SGLang LPM', 'Feather in SGLang').median:.0f} times as long.",
            queue,
            f"**Share of a step**: LPM's call would be {100 * self.share('SGLang LPM').median:.0f} % of itself and one decode step of {self.step_ms:.0f} ms.",
        ])  # fmt: skip
