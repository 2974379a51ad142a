"""A decision trace (``feather.policies.trace``): made on an engine or read from a file, as tables, figures and a few words."""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd

from feather.cost import PRICES, Load
from feather.policies import trace
from lab.engines.arms import Arm
from lab.figures import decisions as drawn
from lab.figures import timelines
from lab.studies.stopping import CLIENTS
from lab.studies.study import Study
from lab.workloads import even_sizes, grouped, make_prefixes


@dataclass
class Serving:
    """What a trace holds."""

    study: Study
    lines: list[dict]
    """as ``feather.policies.trace.read`` returns them"""
    setting: str
    """where they come from, for the figures"""

    def __post_init__(self) -> None:
        if not self.lines or not (self.steps["seconds"] > 0).all():
            raise ValueError(f"the trace has {len(self.lines)} steps, or steps that took no time: it cannot be drawn")

    @cached_property
    def steps(self) -> pd.DataFrame:
        return frame(self.lines)

    @cached_property
    def decisions(self) -> pd.DataFrame:
        return decisions(self.lines)

    @property
    def shown(self) -> float:
        """Seconds from the first step to the last."""
        return float(self.steps["t"].iloc[-1])

    @property
    def costly(self) -> pd.DataFrame:
        """The decisions that had something to decide: adding would have cost the batch some of its shared prefix."""
        return self.decisions[self.decisions["loss"] > 0]


def serve(study: Study, prefix_groups: int, prefix_tokens: int, decode_tokens: tuple[int, int], requests: int, seconds: float) -> Serving:
    """Serve clients in closed loop, twice as many as the batch has rows, with the default options, and trace it, until they have sent so many
    requests or so many seconds have passed. What was sent by then is answered."""
    engine, prefixes = study.engine, make_prefixes(prefix_groups, prefix_tokens)
    workload = grouped(prefixes, even_sizes(requests, prefix_groups), 1, decode_tokens=decode_tokens)
    clients = CLIENTS * engine.max_batch
    engine.warm(prefixes)
    with TemporaryDirectory() as folder:
        path = str(Path(folder) / "trace.jsonl")
        run = engine.run(replace(workload, clients=clients, seconds=seconds), Arm("Feather, traced", "feather", {"trace": path}))
        lines = trace.read(path)
    low, high = decode_tokens
    return Serving(
        study, lines,
        f"{prefix_groups} prefixes of {prefix_tokens} tokens, {len(run.first_token)} requests from {clients} clients in closed loop, batch "
        f"{engine.max_batch}, {low} to {high} decode tokens, the default policy without experience, one run",
    )  # fmt: skip


def read(name: str, out: str, path: str) -> Serving:
    """A trace that a server has written. Raises FileNotFoundError, or ValueError for a file that is damaged or has no step."""
    return Serving(Study(name, None, out), trace.read(path), f"read from {Path(path).name}")


def frame(steps: list[dict]) -> pd.DataFrame:
    """One row per step: t (s since the first), tokens, seconds, prefill, contended, burst, fills, throughput (tok/s)."""
    table = pd.DataFrame(steps).drop(columns=["decisions", "told", "load"], errors="ignore")
    table["t"] -= table["t"].iloc[0]
    return table.assign(throughput=table["tokens"] / table["seconds"])


def decisions(steps: list[dict]) -> pd.DataFrame:
    """One row per decision: t, batch, loss, sharing, waiting, stragglers, added."""
    columns = ["t", "batch", "loss", "sharing", "waiting", "stragglers", "added"]
    return pd.DataFrame([[step["t"], *decision] for step in steps for decision in step["decisions"]], columns=columns)


def timeline(serving: Serving) -> None:
    """Throughput of every step that only decodes, and where batches were stopped."""
    serving.study.figure(
        timelines.steps(serving.steps),
        "trace_timeline",
        f"{serving.shown:.0f} seconds of serving: a plan that stops batches was in force {_drove(serving.steps):.0%} of the time",
        serving.setting,
        "Throughput of each step that only decodes. Shaded: a plan that stops batches, or an experiment; elsewhere nothing is stopped.",
        measured=serving.study.engine is not None,
    )


def decided(serving: Serving) -> str:
    """What was decided, as a figure; one line that says so where there was nothing to decide."""
    costly = serving.costly
    if costly.empty:
        return "No candidate cost the batch any shared prefix: there was nothing to decide."
    serving.study.figure(
        drawn.asked(serving.decisions),
        "trace_decisions",
        f"{len(costly)} of {len(serving.decisions)} decisions put shared prefix at stake; {_stopped(costly):.0%} of them were STOP",
        f"{serving.setting} · size: how often the context came up · number: share of ADD",
        "Decisions by batch size and loss of shared prefix.",
        measured=serving.study.engine is not None,
    )
    return f"{len(costly)} decisions are drawn."


@dataclass
class Prices:
    """What steps cost, as the planner had learned it by the end, and how far off its predictions were."""

    table: pd.DataFrame
    """by price: ms per unit, units in the mean step of the last third, ms of that step, share"""
    errors: pd.DataFrame
    """relative error of each step's prediction by the prices known before it: columns t, prefill (whether), error"""
    setting: str

    def __str__(self) -> str:
        late = self.errors[self.errors["t"] >= self.errors["t"].iloc[-1] / 3]
        typical = late.groupby("prefill")["error"].apply(lambda error: error.abs().median())
        told = [
            f"{typical[kind]:.1%} off where it {what}"
            for kind, what in ((False, "only decodes"), (True, "computes prompts too"))
            if kind in typical
        ]
        dearest = self.table["share"].idxmax()
        return (
            f"Most of a step is the price of *{dearest}*: {self.table['share'].max():.0%}. Before it ran, a step's time was predicted "
            f"{' and '.join(told)} (median, the first third left out; {self.setting})."
        )


def prices(serving: Serving) -> Prices | None:
    """None for a trace without prices: of another policy, or before anything was learned."""
    lines = [line for line in serving.lines if line.get("load", [0])[0] and any(name.startswith("price_") for name in line["told"])]
    lines = [line for line in lines if any(line["told"].get(f"price_{name}") for name in PRICES)]
    if not lines:
        return None
    amounts = pd.DataFrame([Load(*line["load"]).amounts(line["prefill"]) for line in lines], columns=PRICES)
    known = pd.DataFrame([[line["told"].get(f"price_{name}", 0.0) for name in PRICES] for line in lines], columns=PRICES)
    seconds = pd.Series([line["seconds"] for line in lines])
    errors = pd.DataFrame({
        "t": [line["t"] - serving.lines[0]["t"] for line in lines],
        "prefill": [line["prefill"] > 0 for line in lines],
        "error": (amounts * known).sum(axis=1) / seconds - 1,
    })  # fmt: skip
    each, typical = known.iloc[-1], amounts.iloc[-(len(lines) // 3 or 1) :].mean()
    cost = each * typical
    table = pd.DataFrame({"ms each": 1e3 * each, "in a step": typical, "ms of a step": 1e3 * cost, "share": cost / cost.sum()})
    return Prices(table.rename(index=lambda name: name.replace("_", " ")), errors, serving.setting)


def _drove(steps: pd.DataFrame) -> float:
    """Share of the time in which batches were stopped."""
    return float(steps.loc[~steps["fills"].astype(bool), "seconds"].sum() / steps["seconds"].sum())


def _stopped(costly: pd.DataFrame) -> float:
    return float((~costly["added"].astype(bool)).mean())


def _rates(steps: pd.DataFrame) -> tuple[float | None, float | None]:
    """Decode throughput (tok/s) while nothing was stopped and while batches were, over steps without prefill in which more requests were there
    than fit and which were in no burst; None where there was no such step."""
    decode = steps[(steps["prefill"] == 0) & steps["contended"] & ~steps["burst"]]
    parts = [decode[decode["fills"].astype(bool) == fills] for fills in (True, False)]
    filling, stopping = (float(part["tokens"].sum() / part["seconds"].sum()) if len(part) else None for part in parts)
    return filling, stopping


def in_words(serving: Serving) -> pd.DataFrame:
    """The trace in a few lines."""
    steps, costly = serving.steps, serving.costly
    filling, stopping = (f"{rate:.0f} tok/s" if rate else "never happened" for rate in _rates(steps))
    lines = {
        "steps, and the time they took": f"{len(steps)} in {steps['seconds'].sum():.1f} s",
        "of them with prefill": f"{(steps['prefill'] > 0).mean():.0%}",
        "with more requests than fit": f"{steps['contended'].mean():.0%}",
        "in a burst": f"{steps['burst'].mean():.0%}",
        "decisions; with shared prefix at stake": f"{len(serving.decisions)}; {len(costly)}",
        "of the latter STOP": f"{_stopped(costly):.0%}" if len(costly) else "none",
        "decode throughput while nothing was stopped": filling,
        "while batches were stopped": stopping,
        "share of time that they were": f"{_drove(steps):.1%}",
    }
    return pd.DataFrame({"": lines.keys(), "this trace": lines.values()})


def found(serving: Serving) -> str:
    """What the trace shows, in Markdown."""
    steps = serving.steps
    filling, stopping = _rates(steps)
    switches = int((steps["fills"] != steps["fills"].shift()).sum()) - 1
    if filling and stopping:
        rates = f"Then a step with more requests than fit decoded {stopping:.0f} tok/s, else {filling:.0f}: {stopping / filling:.2f} times as many."
    else:
        rates = "The two cannot be compared: there was only one of them while more requests were there than fit."
    return (
        f"* The trace shows {serving.shown:.0f} s and {len(steps)} steps. Batches were stopped {_drove(steps):.1%} of the time; that changed "
        f"{switches} time{'s' * (switches != 1)}.\n* {rates}\n* Of {len(serving.decisions)} decisions {len(serving.costly)} put shared prefix at stake"
        + (f", and {_stopped(serving.costly):.0%} of those were STOP." if len(serving.costly) else ".")
    )
