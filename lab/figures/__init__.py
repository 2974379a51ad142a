"""How every figure looks. ``charts`` draws tables, ``tree`` the Chunked Hash Tree, ``attention`` the kernels' benchmark."""

from lab.figures.charts import (
    HOW,
    POLICIES,
    agreement,
    bars,
    colours,
    in_order,
    lines,
    log_lines,
    note,
    of_metric,
    ratio_bars,
    ratio_table,
    sign,
    style,
    worlds,
)

__all__ = [
    "HOW", "POLICIES", "agreement", "bars", "colours", "in_order", "lines", "log_lines", "note", "of_metric", "ratio_bars",
    "ratio_table", "sign", "style", "worlds",
]  # fmt: skip
