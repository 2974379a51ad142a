"""M5: when does a larger batch stop paying? Batches of growing size, of one prefix and of several."""

from collections.abc import Sequence

import pandas as pd

from lab import figures
from lab.studies import comparing, words
from lab.studies.scale import check_axes, sweep
from lab.studies.shapes import Shape, medians, under_kernels
from lab.studies.study import Study, compare

NEARLY = 0.95
"""A curve has saturated where it reaches this share of its best."""


def measure(
    study: Study,
    batches: Sequence[int],
    mixed_groups: int,
    prefix_tokens: int,
    requests: int,
    decode_tokens: int,
    kernels: Sequence[str],
    repeats: int,
) -> pd.DataFrame:
    """Every batch size over one prefix and over ``mixed_groups``, under vLLM's own queue. Below the engine's largest batch as many clients
    as the batch has rows send one request after the other. Raises ValueError unless ``batches`` has two sizes or more in ascending order."""
    check_axes(2, batches=batches)
    fixed = {"prefix_tokens": prefix_tokens, "requests": requests, "decode_tokens": decode_tokens, "batch": batches[0]}
    conditions = [
        condition
        for groups in (1, mixed_groups)
        for condition in sweep("M5", "batch", batches, engine=study.engine, groups=groups, **fixed)
    ]
    return study.measure(conditions, repeats, kernels=kernels)


def draw(study: Study, runs: pd.DataFrame, shape: Shape, mixed: int) -> None:
    """Decode throughput against the batch, a panel a kernel."""
    requests, tokens, decode = comparing.settings(runs, "requests", "prefix_tokens", "decode_tokens")
    study.figure(
        figures.lines_by_kernel(runs, "decode throughput", "batch", "groups", "maximum batch", "decode throughput, tok/s"),
        "m5_batch_size",
        shape.finding + comparing.where(runs),
        f"FCFS, {requests} requests, prefixes of {tokens} tokens, {decode} decode tokens; below the largest batch a closed loop · "
        + figures.spread(comparing.repeats(runs)),
        f"Decode throughput against the maximum batch size, homogeneous and over {mixed} prefix groups (M5).",
        rows=runs,
    )


def over_batches(runs: pd.DataFrame, mixed: int) -> Shape:
    """M5: decode throughput saturates before the largest batch; that of one prefix later and higher than that of ``mixed``."""
    return under_kernels(runs, lambda table: _over_batches(table, mixed))


def _over_batches(table: pd.DataFrame, mixed: int) -> Shape:
    reached = {count: medians(table[table["groups"] == count], "decode throughput", "batch") for count in (1, mixed)}
    before, largest = (int(size) for size in reached[1].index[-2:])
    gain = {
        count: compare(table, "decode throughput", of={"groups": count, "batch": largest}, to={"groups": count, "batch": before})
        for count in (1, mixed)
    }
    saturated = {count: int((curve >= NEARLY * curve.max()).idxmax()) for count, curve in reached.items()}
    higher = reached[1].max() / reached[mixed].max()
    told = (
        f"Homogeneous, batch {largest} over {before}; over {mixed} groups: {gain[mixed].median:.2f}×. Within 5 % of its best from batch {saturated[1]} on, over "
        f"{mixed} groups from {saturated[mixed]} on; the best is {higher:.2f} times as high."
    )
    parts = {
        "saturates before the maximum": max(saturated.values()) < largest,
        "homogeneous later": saturated[1] > saturated[mixed],
        "homogeneous higher": bool(higher > 1),
    }

    def gains(count: int, gain: str) -> str:
        return f"{gain} up to batch {saturated[count]}" if saturated[count] < largest else f"still {gain} at batch {largest}"

    if saturated[1] == saturated[mixed]:
        finding = f"One prefix and {mixed} prefixes {gains(1, 'gain')}"
    else:
        finding = f"One prefix {gains(1, 'gains')}, {mixed} prefixes {gains(mixed, 'gain')}"
    return Shape(gain[1], told, parts, f"{finding}; one reaches {higher:.2f} times the decode throughput of {mixed}")


def found(shape: Shape, runs: pd.DataFrame) -> str:
    """What was found, as Markdown."""
    steps = runs[runs["metric"] == "decode step"].groupby(["kernel", "groups", "batch"], sort=False)["value"].median()
    first, last = min(runs["batch"]), max(runs["batch"])

    def told(kernel: str, groups: int) -> str:
        few, many = (steps[kernel, groups, batch] for batch in (first, last))
        return f"{few:.1f} ms at batch {first} and {many:.1f} at {last} ({many / few:.1f} times) on {'one prefix' if groups == 1 else f'{groups} prefixes'}"

    return words.bullets([
        shape.found("Batch size (M5)."),
        *(
            f"**A decode step** under the {kernel} kernel takes {words.listed(told(kernel, groups) for groups in sorted(runs['groups'].unique()))}, "
            f"for {last / first:g} times the tokens."
            for kernel in runs["kernel"].unique()
        ),
    ])  # fmt: skip
