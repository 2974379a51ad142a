"""Models: whether the gain depends on the model that is served (E6): shapes that fit this machine, measured, and the paper's, modelled."""

from collections.abc import Mapping, Sequence

import pandas as pd

from lab import figures
from lab.engines import Engine
from lab.engines.apart import EngineApart
from lab.engines.arms import named
from lab.engines.modelled import ModelledEngine
from lab.llm import MODELS
from lab.machine import choose_backend
from lab.stats import Ratio
from lab.studies import comparing, words
from lab.studies.comparing import over
from lab.studies.scale import sweep
from lab.studies.study import Study, under_kernels
from lab.studies.words import listed, times, told, trend

STUDY = "23_models"


def begin(backend: str, out: str) -> Study:
    """The study, without an engine of its own: each model has one. Raises ValueError for a backend that cannot run here."""
    figures.style()
    return Study(STUDY, None, out, choose_backend(backend)[0])


def over_models(
    study: Study, models: Sequence[str], arms: Sequence[str], kernels: Sequence[str], repeats: int, batch: int, kv_gib: int, **setting
) -> tuple[dict[str, Engine], pd.DataFrame]:
    """The engine of each model, and rows of a full queue under each arm and kernel; ``setting`` as in ``scale.Setting``. Real engines run in
    processes of their own, one after the other, with a KV cache of ``kv_gib`` GiB on a CPU; what they are is told after they have ended, too."""
    served: dict[str, Engine] = {}
    tables = []
    backend = study.provenance["backend"]
    for model in models:
        engine = ModelledEngine(model, batch) if backend == "sim" else EngineApart(backend, model, max_batch=batch, kv_gib=kv_gib)
        conditions = under_kernels(sweep("E6", "model", [model], named(*arms), engine, batch=batch, **setting), kernels)
        tables.append(study.measure(conditions, repeats))
        if isinstance(engine, EngineApart):
            engine.close()
        served[model] = engine
    runs = pd.concat(tables, ignore_index=True)
    return served, runs.sort_values("kernel", key=lambda names: names.map(list(kernels).index), kind="stable", ignore_index=True)


def sizes(served: Mapping[str, Engine], prefix_tokens: int) -> pd.DataFrame:
    """What a model leaves for keys and values on its engine, and how many prefixes that is."""
    rows = []
    for model, engine in served.items():
        shape = MODELS[model]
        rows.append(
            {"model": model, "query heads per key": shape.heads // shape.kv_heads, "weights, GB": shape.weight_bytes / 1e9,
             "KV per token, KiB": shape.kv_bytes_per_token / 1024,
             "KV cache, tokens": engine.kv_tokens, f"prefixes of {prefix_tokens} tokens": engine.kv_tokens / prefix_tokens}
        )  # fmt: skip
    return pd.DataFrame(rows).set_index("model").round(1)


def draw(study: Study, runs: pd.DataFrame, judged: str) -> None:
    """Throughput and waiting over FCFS's by model under the first kernel; where there are several, what each kernel gives each model beside it."""
    table = comparing.judged(runs)
    factors = _factors(table, judged)
    best, least = max(factors, key=lambda name: factors[name].median), min(factors, key=lambda name: factors[name].median)
    requests, groups, tokens, decode, batch = comparing.settings(table, "requests", "groups", "prefix_tokens", "decode_tokens", "batch")
    setting = (
        f"{requests} requests, all there at the start, batch {batch}, {groups} groups of {tokens} tokens, {decode} decode tokens; models by KV per "
        f"token; {figures.spread(comparing.repeats(table))}"
    )
    study.figure(
        figures.ratio_bars_beside(_sorted(table), comparing.BESIDE_AS_RATIOS, "FCFS", "model"),
        "e6_models",
        f"{judged} over FCFS: from {told(factors[least])} on {least} to {told(factors[best])} on {best}" + comparing.where(runs),
        setting,
        "Throughput and p99 time to first token over FCFS's for several models (E6), a full queue.",
        rows=table,
    )
    if runs["kernel"].nunique() == 1:
        return
    kernels = _of_kernels(runs)
    most = max(kernels, key=lambda name: kernels[name].median, default="")
    study.figure(
        figures.ratio_bars_beside(_sorted(_by_kernel(runs)), comparing.BESIDE_AS_RATIOS, f"FCFS, {_stock(runs)}", "model"),
        "e6_kernels",
        f"The same requests, first come, first served: over {_stock(runs)} attention, packed gives from "
        f"{told(min(kernels.values(), key=lambda ratio: ratio.median))} to {told(kernels[most])} (on {most})"
        if kernels
        else f"{judged} under each kernel",
        setting,
        f"Throughput and p99 time to first token under each kernel, over FCFS under {_stock(runs)}, for several models (E6).",
        rows=runs,
    )


def _stock(runs: pd.DataFrame) -> str:
    """The kernel that others are held against: vLLM's own; without it the first, which on mixed batches is vLLM's own, too."""
    return "paged" if "paged" in set(runs["kernel"]) else str(runs["kernel"].iloc[0])


def _by_kernel(runs: pd.DataFrame) -> pd.DataFrame:
    """FCFS under each kernel, as if the kernels were policies."""
    chosen = runs[runs["policy"] == "FCFS"]
    return chosen.assign(policy=chosen["policy"] + ", " + chosen["kernel"])


def _of_kernels(runs: pd.DataFrame) -> dict[str, Ratio]:
    """Model → FCFS under packed attention over FCFS under the stock kernel; empty where one of them was not run."""
    if "packed" not in set(runs["kernel"]) - {_stock(runs)}:
        return {}
    return {model: over(_by_kernel(runs), "FCFS, packed", f"FCFS, {_stock(runs)}", model=model) for model in _in_order(runs)}


def verdict(study: Study, runs: pd.DataFrame, served: Mapping[str, Engine], judged: str) -> None:
    """E6 by the policy ``judged`` on the model on which it gains most, as the paper says "up to"."""
    factors = _factors(comparing.judged(runs), judged)
    best = max(factors, key=lambda name: factors[name].median)
    reason = f"{judged} on {best}, its best; " + ", ".join(f"{model} {times(factor)}" for model, factor in factors.items()) + "."
    if runs["kernel"].nunique() > 1:
        reason += comparing.kernels(runs[runs["model"] == best], lambda table: over(table, judged))
    print(study.claim("E6", factors[best], reason, engine=served[best]))


def found(runs: pd.DataFrame, judged: str) -> str:
    """What was found, as Markdown."""
    table = comparing.judged(runs)
    factors = _factors(table, judged)
    best = max(factors, key=lambda name: factors[name].median)
    evicted, hits = (_medians(table, metric) for metric in ("evictions", "prefix hits"))
    crowded = [model for model in factors if evicted["FCFS", model] > 0]
    kernels = _of_kernels(runs)
    return words.bullets([
        f"**Models.** From the least KV per token to the most, the throughputs of {judged} over FCFS {trend(factors.values())}: "
        + listed(f"{told(factor)} on {model}" for model, factor in factors.items()) + ".",
        f"**Waiting.** On {best} its p99 time to first token is {times(over(table, judged, metric=comparing.P99, model=best))} FCFS's.",
        f"**Kernels.** FCFS under packed over FCFS under {_stock(runs)} attention: "
        + listed(f"{told(factor)} on {model}" for model, factor in kernels.items()) + "." if kernels else "",
        "**Evictions.** " + (
            "Under FCFS the KV cache overflows on " + listed(crowded) + ": " + listed(
                f"{100 * hits['FCFS', model]:.0f} % of {model}'s prompt tokens come from the cache under FCFS, {100 * hits[judged, model]:.0f} % under {judged}"
                for model in crowded) + "." if crowded else "No model's KV cache overflows under FCFS."),
        words.TRANSIENT,
    ])  # fmt: skip


def _by_kv(model: str) -> int:
    return MODELS[model].kv_bytes_per_token


def _in_order(table: pd.DataFrame) -> list[str]:
    return sorted(table["model"].unique(), key=_by_kv)


def _sorted(table: pd.DataFrame) -> pd.DataFrame:
    return table.sort_values("model", key=lambda names: names.map(_by_kv), kind="stable")


def _factors(table: pd.DataFrame, policy: str) -> dict[str, Ratio]:
    return {model: over(table, policy, model=model) for model in _in_order(table)}


def _medians(table: pd.DataFrame, metric: str) -> pd.Series:
    return table[table["metric"] == metric].groupby(["policy", "model"])["value"].median()
