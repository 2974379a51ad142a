"""M5: when does a larger batch stop paying? Batches of growing size, of one prefix and of several, in steady state and until a queue has drained."""

from collections.abc import Sequence
from dataclasses import replace

import pandas as pd

from lab import figures
from lab.instrument import Cell, Effort
from lab.studies import comparing, loops, words
from lab.studies.scale import check_axes, sweep
from lab.studies.shapes import Shape, medians, under_kernels
from lab.studies.study import Study, compare
from lab.workloads import Loop

NEARLY = 0.95
"""A curve has saturated where it reaches this share of its best."""


STOCK = "FCFS"
THROUGHPUT, DECODE = "throughput", "decode throughput"
"""In steady state nearly every step of a large batch carries somebody's prefill, and the few that do not are no fair sample: all steps count there. Of a
queue that drains, those that only decode."""


def steady(
    study: Study, batches: Sequence[int], mixed_groups: int, loop: Loop, arms: Sequence[str], kernels: Sequence[str], effort: Effort
) -> pd.DataFrame:
    """Every batch size over one prefix and over ``mixed_groups`` in a closed loop, under vLLM's own queue and each kernel; over ``mixed_groups`` and
    under the first kernel under ``arms``, too, since with more clients than rows somebody can be chosen. Raises ValueError unless ``batches`` has
    two sizes or more in ascending order."""
    check_axes(2, batches=batches)
    mixed = replace(loop, groups=mixed_groups)
    cells = [
        Cell(STOCK, kernel, study.engine.sorted_rows, one, batch)
        for kernel in kernels
        for one in (replace(loop, groups=1), mixed)
        for batch in batches
    ]
    cells += [Cell(arm, kernels[0], study.engine.sorted_rows, mixed, batch) for arm in arms if arm != STOCK for batch in batches]
    rows = loops.take(study, cells, effort)
    study.engine.use_batch(max(batches))
    study.engine.use_kernel(kernels[0], study.engine.sorted_rows)
    rows = rows.assign(batch=rows["max batch"])
    return rows.sort_values("kernel", key=lambda names: names.map(list(kernels).index), kind="stable", ignore_index=True)


def drain(
    study: Study,
    batches: Sequence[int],
    mixed_groups: int,
    prefix_tokens: int,
    requests: int,
    decode_tokens: int,
    kernel: str,
    repeats: int,
) -> pd.DataFrame:
    """The same sizes and numbers of prefixes under vLLM's own queue until all requests are answered. Below the engine's largest batch as many clients
    as the batch has rows send one request after the other. Raises ValueError as ``steady`` does."""
    check_axes(2, batches=batches)
    fixed = {"prefix_tokens": prefix_tokens, "requests": requests, "decode_tokens": decode_tokens, "batch": batches[0]}
    conditions = [
        condition
        for groups in (1, mixed_groups)
        for condition in sweep("M5", "batch", batches, engine=study.engine, groups=groups, **fixed)
    ]
    return study.measure(conditions, repeats, kernels=[kernel])


def stock(runs: pd.DataFrame) -> pd.DataFrame:
    """The rows that M5 is judged by."""
    return runs[runs["policy"] == STOCK]


def draw(study: Study, runs: pd.DataFrame, shape: Shape, mixed: int) -> None:
    """Throughput, and below it p99 time to first token, against the batch, a panel a kernel; then each policy's throughput and p99."""
    rows = stock(runs)
    tokens, decode, clients = comparing.settings(rows, "prefix tokens", "decode tokens", "clients")
    setting = (
        f"Steady state, {clients} clients, prefixes of {tokens} tokens, decode {decode} tokens · {figures.spread(comparing.repeats(runs))}"
    )
    study.figure(
        figures.lines_by_kernel(
            rows,
            THROUGHPUT,
            "batch",
            "groups",
            "maximum batch",
            comparing.BESIDE[THROUGHPUT],
            below=(comparing.P99, comparing.BESIDE[comparing.P99]),
        ),
        "m5_batch_size",
        shape.finding + comparing.where(rows),
        f"FCFS. {setting}",
        f"Throughput and p99 time to first token against the maximum batch size, homogeneous and over {mixed} prefix groups (M5).",
        rows=rows,
    )
    table = comparing.judged(runs)
    table = table[table["groups"] == mixed]
    if not comparing.candidates(table):
        return
    policy, batch, ratio = comparing.best(table, "batch")
    waits = comparing.over(table, policy, metric=comparing.P99, batch=batch)
    study.figure(
        figures.lines_beside(table, comparing.BESIDE, "batch", "policy", "maximum batch"),
        "m5_policies",
        f"{policy} over FCFS: {words.told(ratio)} at batch {batch}; p99 time to first token {words.times(waits)}",
        f"{mixed} prefix groups. {setting}",
        f"Throughput and p99 time to first token against the maximum batch size over {mixed} prefix groups under each policy (M5).",
        rows=table,
    )


def draw_drained(study: Study, runs: pd.DataFrame, mixed: int) -> None:
    """The same sizes until the last request is answered."""
    requests, tokens, decode = comparing.settings(runs, "requests", "prefix_tokens", "decode_tokens")
    study.figure(
        figures.lines_beside(
            runs,
            {"decode throughput": "decode throughput, tok/s", comparing.P99: comparing.BESIDE[comparing.P99]},
            "batch",
            "groups",
            "maximum batch",
        ),
        "m5_drained",
        f"Until the last answer: {_over_batches(runs, mixed, DECODE).finding}",
        f"FCFS, {requests} requests, prefixes of {tokens} tokens, {decode} decode tokens; below the largest batch a closed loop without a queue · "
        + figures.spread(comparing.repeats(runs)),
        "Decode throughput and p99 time to first token against the maximum batch size where requests end together (M5): a transient.",
        rows=runs,
    )


def over_batches(runs: pd.DataFrame, mixed: int) -> Shape:
    """M5: throughput saturates before the largest batch; that of one prefix later and higher than that of ``mixed``. Under vLLM's own queue."""
    return under_kernels(stock(runs), lambda table: _over_batches(table, mixed, THROUGHPUT))


def _over_batches(table: pd.DataFrame, mixed: int, metric: str) -> Shape:
    reached = {count: medians(table[table["groups"] == count], metric, "batch") for count in (1, mixed)}
    before, largest = (int(size) for size in reached[1].index[-2:])
    gain = {
        count: compare(table, metric, of={"groups": count, "batch": largest}, to={"groups": count, "batch": before}) for count in (1, mixed)
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
    return Shape(gain[1], told, parts, f"{finding}; one reaches {higher:.2f} times the {metric} of {mixed}")


def found(shape: Shape, runs: pd.DataFrame, drained: pd.DataFrame, mixed: int) -> str:
    """What was found, as Markdown; in steady state, but for the last point."""
    rows, table = stock(runs), comparing.judged(runs)
    # Only of sizes at which some step carried no prefill.
    steps = rows[rows["metric"] == "decode step"].groupby(["kernel", "groups", "batch"], sort=False)["value"].median()
    waits = table[(table["metric"] == comparing.P99) & (table["policy"] == STOCK)].groupby(["groups", "batch"])["value"].median()
    first, last = min(runs["batch"]), max(runs["batch"])

    def told(kernel: str, groups: int) -> str:
        few, many = (steps[kernel, groups, batch] for batch in (first, last))
        return f"{few:.1f} ms at batch {first} and {many:.1f} at {last} ({many / few:.1f} times) on {_on(groups)}"

    policies = [
        f"{policy} {words.listed(words.told(comparing.over(table, policy, batch=batch, groups=mixed)) + f' at batch {batch}' for batch in (first, last))}"
        for policy in comparing.candidates(table)
    ]
    return words.bullets([
        shape.found("Batch size (M5)."),
        *(
            f"**A decode step** under the {kernel} kernel takes {words.listed(told(kernel, groups) for groups in sorted(rows['groups'].unique()))}, "
            f"for {last / first:g} times the tokens."
            for kernel in steps.index.unique("kernel")
            if steps[kernel].index.isin([(groups, batch) for groups in (1, mixed) for batch in (first, last)]).sum() == 4
        ),
        f"**Waiting.** The same clients on more rows: p99 time to first token from batch {first} to {last} goes "
        + words.listed(f"from {waits[groups, first]:.2g} s to {waits[groups, last]:.2g} s on {_on(groups)}" for groups in (1, mixed)) + ".",
        f"**Policies**, over FCFS on {_on(mixed)}: {'; '.join(policies)}." if policies else "",
        f"**Until the last answer**, where requests end together: {_over_batches(drained, mixed, DECODE).finding}. This is a transient.",
    ])  # fmt: skip


def _on(groups: int) -> str:
    return "one prefix" if groups == 1 else f"{groups} prefixes"
