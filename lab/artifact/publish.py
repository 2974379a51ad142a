"""``python -m lab.artifact.publish [OUT] [--again]``: keep a finished run as the reference for its device.

Figures go to ``figures/``, in place of those of the run before, with a page that shows them; rows, claims and the machine to
``data/recorded/<device>/``; the tables in README.md and artifact.md are written anew: they call this device "here"
(``data/recorded/reference`` says which it is) and have a column for every other device that a run was measured on. A run on the
modelled GPU is kept likewise, in tables and folders of its own: modelled numbers never stand among measured ones. Refuses a run of
another profile than "default" or "full", with a notebook that failed or was left out, or from a changed checkout: what is kept must be
what anyone can rerun.

``--again`` keeps the claims of a second run on the same device beside the first's and says whether the verdicts agree. Its rows name their
revisions, which may be several: a notebook that has been changed since can be run again alone.
"""

import argparse
import json
import re
import shutil
import sys
from pathlib import Path

import pandas as pd

from lab.artifact import plan, recorded
from lab.artifact.gallery import gallery
from lab.artifact.plan import ROOT

PAGES = ("README.md", "artifact.md")
AGAIN = "claims-again.csv"


def publish(out: Path) -> Path:
    run = _keepable(out)
    if len(run["revisions"]) != 1:
        raise ValueError(f"{out} was run at {run['revisions']}: it must be one revision")
    modelled = run["backend"] == "sim"
    prefix = "modelled-" if modelled else ""
    claims = pd.read_csv(out / "claims.csv", keep_default_na=False)
    table = modelled_table(claims) if modelled else claims_table(claims, measured_elsewhere(run))
    tables = {f"{prefix}claims": table, f"{prefix}times": times_table(run["seconds"])}
    for name in tables:
        if not any(f"<!-- {name} -->" in (ROOT / page).read_text() for page in PAGES):
            raise ValueError(f"no page has a place for the table of the {name}: put <!-- {name} --> and <!-- /{name} --> into artifact.md")
    page = gallery(out, run, claims)
    target = _folder(run)
    target.mkdir(parents=True, exist_ok=True)
    (target / AGAIN).unlink(missing_ok=True)
    for name in ("claims.csv", "run.json"):
        shutil.copy(out / name, target / name)
    compression = {"method": "gzip", "mtime": 0}  # the same bytes for the same rows
    pd.read_csv(out / "results.csv").to_csv(target / "results.csv.gz", index=False, compression=compression)
    if not modelled:
        recorded.keep_as_reference(target.name, ROOT)
    figures = ROOT / "figures" / "modelled" if modelled else ROOT / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    for figure in figures.glob("*.png"):
        figure.unlink()
    for figure in (out / "figures").glob("*.png"):
        shutil.copy(figure, figures / figure.name)
    (figures / "README.md").write_text(page)
    for name in PAGES:
        fill(ROOT / name, tables)
    return target


def publish_again(out: Path) -> str:
    """Keep the claims of a second run; returns a line on whether the verdicts agree. Raises ValueError for a run that could not be
    kept at all, or where no first is."""
    run = _keepable(out)
    target = _folder(run)
    if not (target / "claims.csv").exists():
        raise ValueError(f"{out} is of {run['device']}, of which no run is kept: publish it without --again")
    shutil.copy(out / "claims.csv", target / AGAIN)
    differ = disagreements(target)
    return f"kept in {target / AGAIN}: " + ("the verdicts agree" if not differ else "; ".join(differ))


def disagreements(folder: Path) -> list[str]:
    """A line for each claim of a kept run whose verdict is another in the second run."""
    first, second = (
        pd.read_csv(folder / name, keep_default_na=False).groupby("claim", sort=False)["verdict"].agg(" and ".join)
        for name in ("claims.csv", AGAIN)
    )
    both = pd.DataFrame({"first": first, "second": second}).fillna("absent")
    return [f"{claim}: {row['first']}, then {row['second']}" for claim, row in both.iterrows() if row["first"] != row["second"]]


def _keepable(out: Path) -> dict:
    run = json.loads((out / "run.json").read_text())
    if run["profiles"] not in (["default"], ["full"]):
        raise ValueError(f"{out} has notebooks of the profiles {run['profiles']}: run them all with default, or all with full")
    if run["failed"]:
        raise ValueError(f"{out} has failed notebooks: {', '.join(run['failed'])}")
    missing = set(plan.choose_for_backend(None, run["backend"])) - run["seconds"].keys()
    if missing:
        raise ValueError(f"{out} lacks {', '.join(sorted(missing))}: run all notebooks into one folder")
    if any(revision.endswith("+") for revision in run["revisions"]):
        raise ValueError(f"{out} was run at {run['revisions']}: it must be without local changes")
    return run


def _folder(run: dict) -> Path:
    return ROOT / "data" / "recorded" / re.sub(r"[^a-z0-9]+", "-", run["device"].lower()).strip("-")


def modelled_table(claims: pd.DataFrame) -> str:
    """A modelled run's claims: there is but one verdict, and a claim can have several rows, so each names its notebook and device."""
    lines = ["| claim | what the paper says | paper | modelled | notebook, device |", "|---" * 5 + "|"]
    for row in claims[claims["verdict"] != "not run here"].itertuples():
        lines.append(f"| {row.claim} | {row.text} | {row.paper} | {recorded.number(row)} | {row.study.partition('_')[0]}, {row.device} |")
    return "\n".join([*lines, *_not_run(claims)])


def measured_elsewhere(run: dict) -> pd.DataFrame:
    """What was measured, not modelled, on other devices than the run's. Raises ValueError for a broken record."""
    kept = recorded.load(leave_out=(run["backend"], run["device"]), root=ROOT)
    return kept[kept["backend"] != "sim"]


def claims_table(claims: pd.DataFrame, elsewhere: pd.DataFrame | None = None) -> str:
    """A run's claims as a table, with a column for each device of ``elsewhere`` (rows of ``recorded.load``), and under it which
    were not run and why."""
    elsewhere = pd.DataFrame(columns=recorded.COLUMNS) if elsewhere is None else elsewhere
    others = list(elsewhere.groupby("run", sort=False))
    heads = ["claim", "what the paper says", "paper", _here(claims) if others else "here", "verdict", *(_head(rows) for _, rows in others)]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for _, rows in claims.groupby("claim", sort=False):
        verdicts = set(rows["verdict"])
        columns = [_there(found[found["claim"] == rows["claim"].iloc[0]], verdicts) for _, found in others]
        for row in rows.itertuples():
            tested = row.verdict != "not run here"
            if tested or any(columns):
                here = [recorded.number(row), row.verdict] if tested else ["not run here", ""]
                lines.append(f"| {' | '.join([row.claim, row.text, row.paper, *here, *columns])} |")
            columns = [""] * len(columns)  # a claim's rows share what was found elsewhere: it stands in the first
    return "\n".join([*lines, *_not_run(claims)])


def _not_run(claims: pd.DataFrame) -> list[str]:
    idle = claims[claims["verdict"] == "not run here"]
    lines = ["", "Not run here:", ""] if len(idle) else []
    for why, those in idle.groupby("reason", sort=False):
        lines.append(f"* {', '.join(those['claim'])}: " + (f"`{why}`" if why.startswith("./") else why))
    return lines


def _here(claims: pd.DataFrame) -> str:
    return f"here: {_short(claims['device'].iloc[0])}"


def _head(rows: pd.DataFrame) -> str:
    """The other device, with its revision: what was measured by an older Feather can differ for that alone."""
    return f"{_short(rows['run_device'].iloc[0])}, at {' and '.join(sorted(rows['revision'].unique()))}"


def _short(device: str) -> str:
    return re.sub(r"\((R|TM)\)", "", device)


def _there(rows: pd.DataFrame, verdicts: set[str]) -> str:
    """A device's numbers for one claim, each with its verdict where that is another than here."""
    return "; ".join(recorded.number(row) + ("" if verdicts == {row.verdict} else f", {row.verdict}") for row in rows.itertuples())


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
    parser = argparse.ArgumentParser(
        prog="python -m lab.artifact.publish", description="Keep a finished run as the reference for its device."
    )
    parser.add_argument("out", nargs="?", type=Path, default=ROOT / "out", help="the run's folder (default: out)")
    parser.add_argument("--again", action="store_true", help="it is a second run of what is kept: keep its claims beside the first's")
    options = parser.parse_args()
    try:
        print(publish_again(options.out) if options.again else f"kept in {publish(options.out)} and figures/")
    except (OSError, ValueError) as error:
        sys.exit(f"publish: {error}")
