"""Memory traffic: what scheduling by prefix saves of it (E8), and whether a prefix-packed kernel makes that unnecessary (E7), modelled."""

import pandas as pd

from lab import figures
from lab.engines.arms import named
from lab.stats import Ratio
from lab.studies import words
from lab.studies.comparing import over
from lab.studies.scale import sweep
from lab.studies.study import Study, compare, overview
from lab.studies.words import times

MOVED = ["DRAM traffic", "DRAM bandwidth", "KV from DRAM", "KV read by the cores"]


def measure(study: Study, prefix_tokens: int, judged: str, repeats: int, **setting) -> pd.DataFrame:
    """A full queue under FCFS and ``judged`` with cascade attention, and under FCFS with a kernel that reads every shared prefix once (the
    packing itself is taken as free); ``setting`` as in ``scale.Setting``. The rows tell the three apart by "kernel" and "policy"."""
    setting = {"prefix_tokens": prefix_tokens, **setting}
    conditions = sweep("E8", "kernel", ["cascade"], named("FCFS", judged), **setting)
    conditions += sweep("E7", "kernel", ["packed"], named("FCFS"), **setting)
    return study.measure(conditions, repeats)


def table(rows: pd.DataFrame) -> pd.DataFrame:
    """Throughput and memory traffic of each."""
    return overview(rows, ["throughput", *MOVED, "mean batch", "prefix hits"], ["kernel", "policy"])


def saved(rows: pd.DataFrame, judged: str, metric: str = "DRAM traffic") -> Ratio:
    """FCFS's traffic over that of ``judged``, the same requests, cascade attention."""
    return over(rows, "FCFS", base=judged, metric=metric, kernel="cascade")


def against_packed(rows: pd.DataFrame, judged: str) -> Ratio:
    """Throughput of ``judged`` with cascade attention over FCFS's with the packed kernel."""
    return compare(rows, "throughput", of={"policy": judged, "kernel": "cascade"}, to={"policy": "FCFS", "kernel": "packed"})


def draw(study: Study, rows: pd.DataFrame, judged: str, repeats: int) -> None:
    data = rows.assign(policy=rows["policy"] + ", " + rows["kernel"] + " attention")
    study.figure(
        figures.bars(data, "DRAM traffic", "GB read from DRAM for the whole queue", scale="linear"),
        "e8_memory_traffic",
        f"{judged} saves traffic: FCFS reads {times(saved(rows, judged))} as much" if saved(rows, judged).median > 1 else
        f"{judged} saves no traffic: FCFS reads {times(saved(rows, judged))} as much",
        f"the same requests, all there at the start; {figures.spread(repeats)}",
        "DRAM traffic of a full queue under FCFS and a stopping rule with cascade attention, and under FCFS with a prefix-packed kernel (E7, E8).",
        rows=rows,
        kernel=False,
    )  # fmt: skip


def verdicts(study: Study, rows: pd.DataFrame, judged: str) -> None:
    versus, more, kv = against_packed(rows, judged), saved(rows, judged), saved(rows, judged, "KV from DRAM")
    faster = over(rows, judged, metric="DRAM bandwidth", kernel="cascade")
    print(
        study.claim(
            "E7", versus, f"{judged} with cascade attention over FCFS with a prefix-packed kernel; the packing itself is taken as free."
        )
    )
    print(study.claim(
        "E8", more,
        f"DRAM traffic of FCFS over that of {judged}, the same requests; mean DRAM bandwidth of {judged} over FCFS's: {times(faster)}. Of keys and "
        f"values alone FCFS reads {times(kv)}; the rest are weights, which smaller batches read more often.",
        {"higher mean bandwidth": faster.median > 1, "fewer accesses in total": more.median > 1, "fewer to keys and values": kv.median > 1},
    ))  # fmt: skip


def found(rows: pd.DataFrame, judged: str) -> str:
    """What was found, as Markdown."""
    return words.bullets([
        f"**Traffic.** FCFS reads {times(saved(rows, judged))} what {judged} reads from DRAM in all, and {times(saved(rows, judged, 'KV from DRAM'))} "
        "of keys and values.",
        f"**A packed kernel.** {judged} with cascade attention gives {times(against_packed(rows, judged))} the throughput of FCFS with the packed kernel.",
    ])  # fmt: skip
