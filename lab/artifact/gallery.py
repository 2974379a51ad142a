"""A kept run as a page of Markdown beside its figures: what a report says, legible where the repository is browsed."""

import json
from pathlib import Path

import pandas as pd

from lab import book
from lab.artifact import recorded
from lab.figures.charts import HOW


def gallery(out: Path, run: dict, claims: pd.DataFrame) -> str:
    """The page of the finished run in ``out``: for each notebook that drew figures or judged claims, the claims with their
    reasons and every figure with its caption, its file beside the page. ``claims``: rows of claims.csv."""
    how = HOW[run["backend"]] + ("" if run["backend"] == "sim" else f": {run['device']}")
    lines = [
        "# The figures of one run, and what they say", "",
        f"{how[0].upper()}{how[1:]} · {recorded.engine(run)} · profile {run['profiles'][0]} · "
        f"Feather {' and '.join(run['revisions'])}. Written by `python -m lab.artifact.publish`; the rows behind it are in `data/recorded/`.", "",
    ]  # fmt: skip
    if (out / "figures" / "claims.png").exists():
        lines += ["![Every ratio beside the paper's](claims.png)", ""]
    for name, seconds in run["seconds"].items():
        record = out / "results" / f"{name}.json"
        figures = (
            json.loads(record.read_text(encoding="utf-8"))["figures"] if record.exists() else []
        )  # a notebook without a study leaves none
        judged = claims[(claims["study"] == name) & (claims["verdict"] != "not run here")]
        if not figures and judged.empty:
            continue
        lines += [f"## {book.title(name)}", "", f"`notebooks/{name}.ipynb`, {seconds // 60}:{seconds % 60:02d} min", ""]
        lines += [
            f"* **{row.claim}**, the paper {row.paper}, here {recorded.number(row)}: **{row.verdict}**. {row.reason}"
            for row in judged.itertuples()
        ]
        lines += [""] if len(judged) else []
        for figure in figures:
            lines += [f"![{figure['caption']}]({figure['name']}.png)", "", figure["caption"], ""]
    return "\n".join(lines)
