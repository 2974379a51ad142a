"""Models: whether the gain depends on the model that is served (E6), on the modelled device."""

from collections.abc import Sequence

import pandas as pd

from lab import figures
from lab.engines.arms import named
from lab.llm import MODELS
from lab.stats import Ratio
from lab.studies import comparing, words
from lab.studies.comparing import over
from lab.studies.scale import sweep
from lab.studies.study import Study
from lab.studies.words import listed, times, told, trend


def over_models(study: Study, models: Sequence[str], arms: Sequence[str], repeats: int, **setting) -> pd.DataFrame:
    """Rows of a full queue for each model under each arm; ``setting`` as in ``scale.Setting``."""
    return study.measure(sweep("E6", "model", models, named(*arms), **setting), repeats)


def sizes(models: Sequence[str], batch: int, prefix_tokens: int) -> pd.DataFrame:
    """What a model leaves for keys and values on the modelled device, and how many prefixes that is."""
    rows = []
    for condition in sweep("E6", "model", models, batch=batch, prefix_tokens=prefix_tokens):
        engine = condition.engine
        shape = MODELS[engine.model]
        rows.append(
            {"model": engine.model, "weights, GB": shape.weight_bytes / 1e9, "KV per token, KiB": shape.kv_bytes_per_token / 1024,
             "KV cache, tokens": engine.kv_tokens, f"prefixes of {prefix_tokens} tokens": engine.kv_tokens / prefix_tokens}
        )  # fmt: skip
    return pd.DataFrame(rows).set_index("model").round(1)


def draw(study: Study, table: pd.DataFrame, judged: str) -> None:
    factors = _factors(table, judged)
    best, least = max(factors, key=lambda name: factors[name].median), min(factors, key=lambda name: factors[name].median)
    requests, groups, tokens, decode, batch = comparing.settings(table, "requests", "groups", "prefix_tokens", "decode_tokens", "batch")
    data = table.sort_values("model", key=lambda names: names.map(_by_kv), kind="stable")
    study.figure(
        figures.ratio_bars_beside(data, comparing.BESIDE_AS_RATIOS, "FCFS", "model"),
        "e6_models",
        f"{judged} over FCFS: from {told(factors[least])} on {least} to {told(factors[best])} on {best}",
        f"{requests} requests, all there at the start, batch {batch}, {groups} groups of {tokens} tokens, {decode} decode tokens; models by KV per "
        f"token; {figures.spread(comparing.repeats(table))}",
        "Throughput and p99 time to first token over FCFS's for several models (E6), a full queue.",
    )


def verdict(study: Study, table: pd.DataFrame, judged: str) -> None:
    """E6 by the policy ``judged`` on the model on which it gains most, as the paper says "up to"."""
    factors = _factors(table, judged)
    best = max(factors, key=lambda name: factors[name].median)
    reason = f"{judged} on {best}, its best; " + ", ".join(f"{model} {times(factor)}" for model, factor in factors.items()) + "."
    print(study.claim("E6", factors[best], reason))


def found(table: pd.DataFrame, judged: str) -> str:
    """What was found, as Markdown."""
    factors = _factors(table, judged)
    best = max(factors, key=lambda name: factors[name].median)
    evicted, hits = (_medians(table, metric) for metric in ("evictions", "prefix hits"))
    crowded = [model for model in factors if evicted["FCFS", model] > 0]
    return words.bullets([
        f"**Models.** From the least KV per token to the most, the throughputs of {judged} over FCFS {trend(factors.values())}: "
        + listed(f"{told(factor)} on {model}" for model, factor in factors.items()) + ".",
        f"**Waiting.** On {best} its p99 time to first token is {times(over(table, judged, metric=comparing.P99, model=best))} FCFS's.",
        "**Evictions.** " + (
            "Under FCFS the KV cache overflows on " + listed(crowded) + ": " + listed(
                f"{100 * hits['FCFS', model]:.0f} % of {model}'s prompt tokens come from the cache under FCFS, {100 * hits[judged, model]:.0f} % under {judged}"
                for model in crowded) + "." if crowded else "No model's KV cache overflows under FCFS."),
        words.TRANSIENT,
    ])  # fmt: skip


def _by_kv(model: str) -> int:
    return MODELS[model].kv_bytes_per_token


def _factors(table: pd.DataFrame, policy: str) -> dict[str, Ratio]:
    models = table["model"].unique()
    return {model: over(table, policy, model=model) for model in sorted(models, key=_by_kv)}


def _medians(table: pd.DataFrame, metric: str) -> pd.Series:
    return table[table["metric"] == metric].groupby(["policy", "model"])["value"].median()
