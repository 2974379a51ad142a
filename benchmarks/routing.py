"""Several replicas on Ray Serve: ``python -m benchmarks.routing [--json] [--parts decision,modelled,faults,real] [--keep FILE.json]``.

* decision: microseconds of one decision at 64 replicas. Seconds.
* modelled: the same router code over 64 replicas with a virtual clock. About 6 s of one core for each run (a repeat has ten).
* faults: requests to real replicas that are killed in mid-run. 2 to 4 minutes.
* real: two real vLLM engines on this machine's CPUs behind every router; KV for all prefixes and for a third; uniform and Zipf prefixes, and
  nothing shared; steady state. A minute to start, then about 1.3 minutes for every scheduler and cell, of which a repeat has ten.

With ``--keep`` a call adds to what earlier ones found, and with ``--minutes`` it ends by then: the same command goes on where it stopped.
"""

import json
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import replace
from math import inf
from pathlib import Path

import pandas as pd

from benchmarks.timing import main
from lab import files, machine
from lab.routing import faults, fleet
from lab.stats import Ratio
from lab.studies import routing, study
from lab.studies.study import Study

PARTS = "decision,modelled,faults,real"
ISSUE = (
    "small_kv_over_best_ray",
    "worst_over_power_of_two",
    "hot_prefix_ttft_p99_ratio",
    "decision_us_64",
    "lost",
    "doubled",
    "modelled_64_of_oracle",
)
"""What comes first in the JSON object; null until its part has run."""


def run(
    parts: str, seconds: float, repeats: int, requests: int, kills: int, inside: str, kv: str, keep: str, minutes: float
) -> dict:  # fmt: skip
    start, chosen, setting = time.monotonic(), parts.split(","), replace(routing.Setting(), seconds=seconds)
    if unknown := set(chosen) - set(PARTS.split(",")):
        raise SystemExit(f"--parts {parts}: {', '.join(sorted(unknown))} is none of {PARTS}")
    kept = Path(keep) if keep else None
    found: dict = json.loads(kept.read_text(encoding="utf-8")) if kept and kept.exists() else {}

    def add(part: str, more: dict) -> None:
        found.update(more)
        found.setdefault("revisions", {})[part] = machine.revision()
        if kept:
            kept.parent.mkdir(parents=True, exist_ok=True)
            files.replace(kept, json.dumps(found, indent=1))

    with tempfile.TemporaryDirectory() as out:
        if "decision" in chosen:
            add("decision", {"decision_us_64": round(routing.decision_us(64), 1)})
        if "modelled" in chosen:
            add("modelled", modelled(Study("routing", None, out, backend="sim"), setting, repeats))
        if set(chosen) & {"faults", "real"}:
            if lacks := fleet.missing():
                raise SystemExit(lacks)
            print("starting two engines on Ray Serve: half a minute to a minute ...", file=sys.stderr)
            # Ray's processes write to this one's output, which is to hold one JSON object.
            with redirect_stdout(sys.stderr), routing.replicas(setting) as handle:
                if "real" in chosen:
                    left = 60 * minutes - (time.monotonic() - start)
                    add("real", measured(Study("routing", None, out), handle, setting, repeats, inside.split(","), kv, kept, left))
                if "faults" in chosen:
                    add("faults", killed(handle, setting, requests, kills))
    return dict.fromkeys(ISSUE) | found


def modelled(study_: Study, setting: routing.Setting, repeats: int) -> dict:
    table = routing.model(study_, setting, [64], repeats, 60.0, routers=(routing.OURS, routing.ORACLE))
    shares = {cell: ratio.median for (_, cell), ratio in routing.of_oracle(table).items()}
    return {"modelled_64_of_oracle": round(min(shares.values()), 3), "modelled": {cell: round(value, 3) for cell, value in shares.items()}}


def measured(
    study_: Study, handle, setting: routing.Setting, repeats: int, insides: list[str], kv: str, kept: Path | None, seconds: float
) -> dict:
    """Also keeps the rows, beside the file that is kept."""
    kvs = {"all": [routing.ROOMY], "third": [routing.SMALL], "both": [routing.ROOMY, routing.SMALL]}[kv]
    chosen = [cell for cell in routing.cells() if cell[1] in kvs]
    rows = kept.with_suffix(".csv") if kept else None
    before = study.read(rows) if rows and rows.exists() else None
    table = routing.measure(study_, handle, setting, repeats, chosen, insides=insides, before=before, seconds=seconds)
    if table.empty:
        raise SystemExit("nothing was measured: --minutes leaves no time after the start")
    if rows:
        rows.parent.mkdir(parents=True, exist_ok=True)
        files.replace(rows, table.to_csv(index=False))
    left = len(list(routing.blocks(repeats, chosen, insides, table)))
    return in_short(table) | {"cells_left": left}


def in_short(table: pd.DataFrame) -> dict:
    """What rows of real replicas tell."""
    told = routing.figures(table)
    rows = table.pivot_table(index=["inside", "cell", "policy"], columns="metric", values="value", aggfunc="median").round(3)
    return {
        "small_kv_over_best_ray": edge(min, told.small_kv_over_best_ray),
        "worst_over_power_of_two": edge(min, told.over_power_of_two),
        "hot_prefix_ttft_p99_ratio": edge(max, told.hot_p99),
        "small_kv": {shape: ratio._asdict() for shape, ratio in told.small_kv_over_best_ray.items()},
        "over_power_of_two": {cell: ratio._asdict() for cell, ratio in told.over_power_of_two.items()},
        "hot_prefix": {kv: ratio._asdict() for kv, ratio in told.hot_p99.items()},
        "cells": {" | ".join(key): {metric: float(value) for metric, value in row.items()} for key, row in rows.iterrows()},
    }


def edge(pick: Callable, ratios: dict[str, Ratio]) -> float | None:
    """The least or greatest of some medians; None without any."""
    return round(pick(ratio.median for ratio in ratios.values()), 3) if ratios else None


def killed(handle, setting: routing.Setting, requests: int, kills: int) -> dict:
    from lab.routing.real import Ask, Cell

    asked = replace(setting.asked("Zipf"), tokens=500, decode_tokens=(2, 8))
    cell = Cell(1_000_000)
    asks = (Ask(prompt, decode, group, cell) for prompt, group, decode in fleet.texts(asked, seed=1))
    outcome, done = fleet.wait_for(faults.soak(handle, asks, 32, most=requests, kills=kills, pause=5.0))
    return {"lost": outcome.lost, "doubled": outcome.doubled, "wrong": outcome.wrong, "requests": outcome.asked, "sent_again": outcome.retried, "kills": done,
            "replicas_that_answered": len(outcome.by_replica)}  # fmt: skip


def show(found: dict) -> None:
    for name, value in found.items():
        if isinstance(value, dict):
            print(name)
            for key, one in value.items():
                print(f"  {key:<50}{one if isinstance(one, (int, float)) else {k: round(v, 2) for k, v in one.items()}}")
        else:
            print(f"{name:<52}{value}")


if __name__ == "__main__":
    main(
        "benchmarks.routing", __doc__.splitlines()[0], run, show,
        parts={"default": PARTS, "help": f"what to run, of {PARTS}"},
        minutes={"type": float, "default": inf, "help": "real replicas: begin no cell that would not end by then, the start included"},
        seconds={"type": float, "default": 12.0, "help": "of each run on real replicas"},
        repeats={"type": int, "default": 1}, requests={"type": int, "default": 2500, "help": "while replicas are killed"},
        kills={"type": int, "default": 4},
        kv={"choices": ["all", "third", "both"], "default": "both", "help": "KV for all prefixes, or for a third of them, in the real replicas"},
        keep={"default": "", "help": "JSON file that keeps what was found, and beside it a CSV with the rows of real replicas; what they have is not run again"},
        inside={"default": "FCFS,Feather", "help": "the schedulers inside the real replicas"},
    )  # fmt: skip
