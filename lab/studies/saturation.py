"""M5: when does a larger batch stop paying? Batches of growing size, of one prefix and of several."""

from collections.abc import Sequence

import pandas as pd

from lab.studies import words
from lab.studies.scale import check_axes, sweep
from lab.studies.shapes import Shape, medians
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
    cascade: Sequence[bool],
    repeats: int,
) -> pd.DataFrame:
    """Every batch size over one prefix and over ``mixed_groups``, under vLLM's own queue. Below the engine's largest batch as many clients
    as the batch has rows send one request after the other. All rows are kept; those under the first choice of cascade attention are
    returned. Raises ValueError unless ``batches`` has two sizes or more in ascending order."""
    check_axes(2, batches=batches)
    fixed = {"prefix_tokens": prefix_tokens, "requests": requests, "decode_tokens": decode_tokens, "batch": batches[0]}
    conditions = [
        condition
        for groups in (1, mixed_groups)
        for condition in sweep("M5", "batch", batches, engine=study.engine, groups=groups, **fixed)
    ]
    table = study.measure(conditions, repeats, cascade=cascade)
    return table[table["cascade"] == cascade[0]]


def over_batches(table: pd.DataFrame, mixed: int) -> Shape:
    """M5: decode throughput saturates before the largest batch; that of one prefix later and higher than that of ``mixed``."""
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


def found(shape: Shape, table: pd.DataFrame) -> str:
    """What was found, as Markdown."""
    steps = table[table["metric"] == "decode step"].pivot_table(index="batch", columns="groups", values="value", aggfunc="median")
    first, last = steps.index[0], steps.index[-1]
    return words.bullets([
        shape.found("Batch size (M5)."),
        *(
            f"**A decode step** of {'one prefix' if groups == 1 else f'{groups} prefixes'} takes {steps[groups][first]:.1f} ms at batch {first} and "
            f"{steps[groups][last]:.1f} ms at batch {last}: {last / first:g} times the tokens for {steps[groups][last] / steps[groups][first]:.1f} times the time."
            for groups in steps.columns
        ),
    ])  # fmt: skip
