"""What a shorter or fairer wait costs in throughput: the planner's targets and weights, beside fixed disciplines, on a virtual clock."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from tqdm import tqdm

from feather.policies import Planner, Policy
from feather.policies.planner import PlannerSettings
from lab.figures.tradeoff import tradeoff
from lab.model.disciplines import DISCIPLINES, LAWS, LOADS, Fixed, run
from lab.studies.study import Study

SETTLE = 30.0  # virtual seconds, left out
DEFAULT, FIXED = "default", "fixed discipline"


class Way(NamedTuple):
    """One point to be: who decides, and the line of the figure that it is on."""

    line: str
    name: str
    make: Callable[[], Policy]


def ways(options: Mapping[str, Sequence[float]], fixed: bool = True) -> list[Way]:
    """The default; for each of the planner's ``options`` the values given; and the fixed disciplines."""
    planned = [Way(DEFAULT, DEFAULT, Planner)]
    for option, values in options.items():
        for value in values:
            planned.append(
                Way(option, f"{option}={value:g}", lambda option=option, value=value: Planner(PlannerSettings(**{option: value})))
            )
    return planned + [Way(FIXED, name, make) for name, make in DISCIPLINES.items() if fixed]


def trade(laws: Sequence[str], loads: Sequence[str], chosen: Sequence[Way], seeds: int, seconds: float) -> pd.DataFrame:
    """Columns law, load, line, way, seed; throughput and p99 time to first token over those of FCFS at the same seed; and Jain's index of
    the groups' mean times to first token, ``fairness``, beside FCFS's, ``fcfs_fairness``. Steady state, all modelled."""
    rows = []
    for law, load in tqdm([(law, load) for law in laws for load in loads], desc="trade", unit="cell"):
        for seed in range(1, seeds + 1):
            first = run(LAWS[law], LOADS[load], lambda: Fixed(False), seconds, SETTLE, seed=seed, order="arrival", saturated_after=0.0)
            for way in chosen:
                found = run(LAWS[law], LOADS[load], way.make, seconds, SETTLE, seed=seed)
                rows.append({"law": law, "load": load, "line": way.line, "way": way.name, "seed": seed,
                             "throughput": found.throughput / first.throughput, "p99": found.p99 / first.p99, "fairness": found.fairness,
                             "fcfs_fairness": first.fairness})  # fmt: skip
    return pd.DataFrame(rows)


def medians(table: pd.DataFrame) -> pd.DataFrame:
    """Over the seeds."""
    return (
        table.groupby(["law", "load", "line", "way"], sort=False)[["throughput", "p99", "fairness", "fcfs_fairness"]].median().reset_index()
    )


def keep(study: Study, table: pd.DataFrame) -> None:
    """As rows of the study."""
    for row in table.to_dict("records"):
        told = {"law": row["law"], "load": row["load"], "options": row["way"]}
        for metric, key, unit in (("throughput over FCFS", "throughput", "×"), ("p99 time to first token over FCFS", "p99", "×"),
                                  ("Jain's index", "fairness", "")):  # fmt: skip
            study.row("Feather" if row["line"] != FIXED else row["way"], told, metric, row[key], unit, row["seed"] - 1, row["seed"])
    study.rows()


def figure(study: Study, table: pd.DataFrame) -> None:
    """Throughput against p99, and against fairness, a column of panels for each law."""
    found = medians(table)
    default = found[found["line"] == DEFAULT]
    study.figure(
        tradeoff(found, DEFAULT, FIXED),
        "frontier",
        f"By default {default['throughput'].median():.2f} × the throughput of FCFS at {default['p99'].median():.1f} × its p99 time to first token "
        f"(medians); a target of twice FCFS's keeps {_kept(found):.0%} of the gain",
        f"Closed loops of {', '.join(found['load'].unique())} · lines join the values of one option · "
        + ("one seed" if table["seed"].nunique() == 1 else f"medians of {table['seed'].nunique()} seeds"),
        "Left of 1 somebody's wait is shorter than under FCFS. Jain's index is 1 where the groups wait alike.",
    )


def _kept(found: pd.DataFrame, way: str = "ttft_slo_over_fcfs=2") -> float:
    """Share of the default's gain in throughput that is left, over all cells; 1 where there is none."""
    gains = found.pivot(index=["law", "load"], columns="way", values="throughput") - 1
    if way not in gains:
        way = DEFAULT
    whole = gains[DEFAULT].clip(lower=0).sum()
    return float(gains[way].clip(lower=0).sum() / whole) if whole else 1.0


def found_in_words(table: pd.DataFrame) -> str:
    """What each option buys, in Markdown."""
    found, told = medians(table), []
    for line, rows in found.groupby("line", sort=False):
        parts = []
        for way, cells in rows.groupby("way", sort=False):
            parts.append(
                f"{way.partition('=')[2] or way}: {np.exp(np.log(cells['throughput']).mean()):.2f} × at {np.exp(np.log(cells['p99']).mean()):.2f} ×, "
                f"Jain {cells['fairness'].mean():.2f}"
            )
        told.append(f"* **{line}.** " + "; ".join(parts) + ".")
    worst = found[found["way"] == "ttft_slo_over_fcfs=2"]["p99"].max()
    if worst == worst:
        told.append(f"* A target of twice FCFS's p99 is held within {worst:.2f} × in the worst cell.")
    return (
        "Throughput over FCFS's at p99 time to first token over FCFS's, geometric means over laws and loads, and Jain's index "
        f"(FCFS's {found['fcfs_fairness'].mean():.2f}). Modelled, steady state.\n\n" + "\n".join(told)
    )
