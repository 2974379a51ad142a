"""What verified drafts do to the value of a homogeneous batch. A step that verifies k drafted tokens a row reads the row's KV cache once for
k + 1 queries, so the sweep that homogeneity makes cheaper is spread over more tokens."""

from typing import NamedTuple

import pandas as pd

from lab.engines.arms import ARMS
from lab.engines.real import RealEngine
from lab.figures.charts import lines
from lab.stats import Ratio
from lab.studies import words
from lab.studies.study import Condition, Study, compare
from lab.workloads import even_sizes, grouped, make_prefixes

_FCFS = ARMS["FCFS"]


def measure(study: Study, engine: RealEngine, prefix_tokens: int, groups: int, decode_tokens: int, repeats: int) -> pd.DataFrame:
    """The rows of one full batch of one prefix and of ``groups`` prefixes, with drafts and without, all requests there at the start, prefix
    cache warm. ``engine`` must have been made with ``drafts``; afterwards it drafts."""
    prefixes = make_prefixes(groups, prefix_tokens)
    engine.warm(prefixes)

    def condition(count: int, drafts: bool) -> Condition:
        def run(seed: int):
            engine.use_drafts(drafts)
            return engine.run(grouped(prefixes[:count], even_sizes(engine.max_batch, count), seed, decode_tokens=decode_tokens), _FCFS)

        parameters = {"groups": count, "drafts": engine.drafts if drafts else 0, "requests": engine.max_batch,
                      "prefix tokens": prefix_tokens, "decode tokens": decode_tokens}  # fmt: skip
        return Condition(_FCFS.name, parameters, run, engine)

    table = study.measure([condition(count, drafts) for count in (1, groups) for drafts in (False, True)], repeats)
    engine.use_drafts(True)
    return table


class Value(NamedTuple):
    """Throughput of one prefix over several."""

    plain: Ratio
    drafted: Ratio
    gain: Ratio
    """of one prefix, with drafts over without"""
    groups: int
    drafts: int


def value(table: pd.DataFrame) -> Value:
    groups, drafts = int(table["groups"].max()), int(table["drafts"].max())

    def ratio(of: tuple[int, int], to: tuple[int, int]) -> Ratio:
        return compare(table, "throughput", *({"groups": count, "drafts": drafted} for count, drafted in (of, to)))

    return Value(ratio((1, 0), (groups, 0)), ratio((1, drafts), (groups, drafts)), ratio((1, drafts), (1, 0)), groups, drafts)


def finding(table: pd.DataFrame) -> str:
    """What the figure shows, in a sentence."""
    found = value(table)
    change = "less" if found.drafted.median < found.plain.median else "more"
    if found.plain.low <= found.drafted.median <= found.plain.high:
        change = "as much"
    tokens = table[(table["metric"] == "tokens per row") & (table["drafts"] > 0)]["value"]  # told where a draft was accepted
    accepted = tokens.median() - 1 if len(tokens) else 0.0
    return (
        f"One prefix over {found.groups}: {words.told(found.plain)} without drafts, {words.told(found.drafted)} with {found.drafts} drafted tokens a row, "
        f"of which {accepted:.1f} are accepted: "
        f"homogeneity is worth {change}. Drafts alone: {words.told(found.gain)}"
    )


def figure(table: pd.DataFrame):
    """Throughput over the number of prefixes, with drafts and without."""
    named = table.assign(drafts=table["drafts"].map(lambda count: f"{count} a row" if count else "none"))
    return lines(named, "throughput", "groups", "drafts", "prefix groups in the batch", "throughput, tok/s")
