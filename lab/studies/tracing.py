"""A decision trace (``feather.policies.trace``) as tables, figures and a few words."""

from dataclasses import replace

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns

from lab.engines.arms import Arm
from lab.studies.stopping import CLIENTS
from lab.workloads import even_sizes, grouped


def serve(engine, prefixes: list, requests: int, decode_tokens: tuple[int, int], path: str) -> None:
    """Serve clients in closed loop, twice as many as the batch has rows, with the default options, and trace it."""
    workload = grouped(prefixes, even_sizes(requests, len(prefixes)), 1, decode_tokens=decode_tokens)
    engine.run(replace(workload, clients=CLIENTS * engine.max_batch), Arm("Feather, traced", "feather", {"trace": path}))


def frame(steps: list[dict]) -> pd.DataFrame:
    """One row per step: t (s since the first), tokens, seconds, prefill, contended, burst, fills, throughput (tok/s)."""
    table = pd.DataFrame(steps).drop(columns="decisions")
    table["t"] -= table["t"].iloc[0]
    return table.assign(throughput=table["tokens"] / table["seconds"])


def decisions(steps: list[dict]) -> pd.DataFrame:
    """One row per decision: t, batch, loss, sharing, waiting, stragglers, added."""
    columns = ["t", "batch", "loss", "sharing", "waiting", "stragglers", "added"]
    return pd.DataFrame([[step["t"], *decision] for step in steps for decision in step["decisions"]], columns=columns)


def timeline(table: pd.DataFrame):
    """Throughput of the steps that only decode; shaded where a policy that stops drove."""
    figure, axes = plt.subplots(figsize=(9, 3.6))
    decode = table[table["prefill"] == 0]
    axes.plot(decode["t"], decode["throughput"], ".", markersize=3)
    for _, stretch in table.groupby((table["fills"] != table["fills"].shift()).cumsum()):
        if not stretch["fills"].iloc[0]:
            axes.axvspan(stretch["t"].iloc[0], stretch["t"].iloc[-1], color="0.85", zorder=0)
    axes.set(title="Each decode step's throughput", xlabel="seconds", ylabel="tok/s")
    axes.set_ylim(bottom=0)
    return figure


def decision_map(made: pd.DataFrame):
    """ADD's share by batch size and loss of prefix, in powers of two, where something could be lost."""
    costly = made[made["loss"] > 0]
    buckets = costly.assign(**{name: costly[name].map(lambda value: 2 ** (int(value).bit_length() - 1)) for name in ("batch", "loss")})
    counts = buckets.groupby(["batch", "loss"])["added"].agg(**{"share of ADD": "mean", "times": "size"}).reset_index()
    figure, axes = plt.subplots()
    sns.scatterplot(
        counts, x="batch", y="loss", hue="share of ADD", size="times", sizes=(30, 300), palette="vlag", hue_norm=(0, 1), ax=axes
    )
    axes.set(title="What was decided", xlabel="requests in the batch (b), at least", ylabel="shared prefix at stake (Δ), chunks, at least")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.legend(bbox_to_anchor=(1.02, 1), loc="upper left", frameon=False)
    return figure


def in_words(table: pd.DataFrame, made: pd.DataFrame) -> pd.DataFrame:
    """The minute in a few lines."""
    decode = table[(table["prefill"] == 0) & table["contended"] & ~table["burst"]]

    def rate(part: pd.DataFrame) -> str:
        return f"{part['tokens'].sum() / part['seconds'].sum():.0f} tok/s" if len(part) else "never happened"

    costly = made[made["loss"] > 0]
    lines = {
        "steps, and the time they took": f"{len(table)} in {table['seconds'].sum():.1f} s",
        "of them with prefill": f"{(table['prefill'] > 0).mean():.0%}",
        "with more requests than fit": f"{table['contended'].mean():.0%}",
        "in a burst": f"{table['burst'].mean():.0%}",
        "decisions; with shared prefix at stake": f"{len(made)}; {len(costly)}",
        "of the latter STOP": f"{(~costly['added'].astype(bool)).mean():.0%}" if len(costly) else "none",
        "decode throughput while never stopping drove": rate(decode[decode["fills"]]),
        "while the policy drove": rate(decode[~decode["fills"].astype(bool)]),
        "share of time that the policy drove": f"{table.loc[~table['fills'].astype(bool), 'seconds'].sum() / table['seconds'].sum():.1%}",
    }
    return pd.DataFrame({"": lines.keys(), "this trace": lines.values()})
