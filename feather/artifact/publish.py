"""``python -m feather.artifact.publish [OUT]``: keep a finished run as the reference for its device.

Figures go to ``figures/``, rows, claims and the machine to ``data/recorded/<device>/``; the tables in README.md and
artifact.md are written anew. A run on the modelled GPU is kept likewise, in tables and folders of its own: modelled numbers never stand
among measured ones. Refuses a run of another profile than "default" or "full", with a failed notebook, or from
a changed checkout: what is kept must be what anyone can rerun.
"""

import json
import re
import shutil
import sys
from pathlib import Path

import pandas as pd

from feather.artifact.plan import ROOT

PAGES = ("README.md", "artifact.md")


def publish(out: Path) -> Path:
    run = json.loads((out / "run.json").read_text())
    if run["profiles"] not in (["default"], ["full"]):
        raise ValueError(f"{out} has notebooks of the profiles {run['profiles']}: run them all with default, or all with full")
    if run["failed"]:
        raise ValueError(f"{out} has failed notebooks: {', '.join(run['failed'])}")
    if len(run["revisions"]) != 1 or run["revisions"][0].endswith("+"):
        raise ValueError(f"{out} was run at {run['revisions']}: it must be one revision, without local changes")
    modelled = run["backend"] == "sim"
    prefix = "modelled-" if modelled else ""
    claims = pd.read_csv(out / "claims.csv", keep_default_na=False)
    tables = {f"{prefix}claims": claims_table(claims), f"{prefix}times": times_table(run["seconds"])}
    for name in tables:
        if not any(f"<!-- {name} -->" in (ROOT / page).read_text() for page in PAGES):
            raise ValueError(f"no page has a place for the table of the {name}: put <!-- {name} --> and <!-- /{name} --> into artifact.md")
    device = re.sub(r"[^a-z0-9]+", "-", run["device"].lower()).strip("-")
    target = ROOT / "data" / "recorded" / device
    target.mkdir(parents=True, exist_ok=True)
    for name in ("claims.csv", "run.json"):
        shutil.copy(out / name, target / name)
    compression = {"method": "gzip", "mtime": 0}  # the same bytes for the same rows
    pd.read_csv(out / "results.csv").to_csv(target / "results.csv.gz", index=False, compression=compression)
    figures = ROOT / "figures" / "modelled" if modelled else ROOT / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    for figure in (out / "figures").glob("*.png"):
        shutil.copy(figure, figures / figure.name)
    for page in PAGES:
        fill(ROOT / page, tables)
    return target


def claims_table(claims: pd.DataFrame) -> str:
    lines = ["| claim | what the paper says | paper | here | verdict |", "|---|---|---|---|---|"]
    for row in claims[claims["verdict"] != "not run here"].itertuples():
        here = f"{float(row.ours):.2f} {row.unit} [{float(row.low):.2f}, {float(row.high):.2f}]"
        lines.append(f"| {row.claim} | {row.text} | {row.paper} | {here} | {row.verdict} |")
    idle = claims[claims["verdict"] == "not run here"]
    if len(idle):
        lines += ["", "Not run here:", ""]
        for why, those in idle.groupby("reason", sort=False):
            lines.append(f"* {', '.join(those['claim'])}: " + (f"`{why}`" if why.startswith("./") else why))
    return "\n".join(lines)


def times_table(seconds: dict[str, int]) -> str:
    rows = [f"| `{name}` | {taken // 60}:{taken % 60:02d} |" for name, taken in seconds.items()]
    total = sum(seconds.values())
    return "\n".join(["| notebook | min |", "|---|---|", *rows, f"| all | {total // 60}:{total % 60:02d} |"])


def fill(page: Path, tables: dict[str, str]) -> None:
    """Replace what stands between ``<!-- name -->`` and ``<!-- /name -->``, for each name that the page has."""
    text = page.read_text()
    for name, table in tables.items():
        text = re.sub(f"(<!-- {name} -->\n).*?(<!-- /{name} -->)", lambda match: f"{match[1]}{table}\n{match[2]}", text, flags=re.S)
    page.write_text(text)


if __name__ == "__main__":
    try:
        print(f"kept in {publish(Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / 'out'))} and figures/")
    except (OSError, ValueError) as error:
        sys.exit(f"publish: {error}")
