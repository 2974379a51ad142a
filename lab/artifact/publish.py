"""``python -m lab.artifact.publish [OUT]``: keep a finished run as the reference for its device.

Rows, claims and the machine go to ``data/recorded/<device>/``; figures to ``figures/``, in place of those of the run before, with a page
that shows them; the notebooks' outputs into the notebooks. Then the tables of the pages are written anew: they call this device "here"
(``data/recorded/reference`` says which it is) and have a column for every other device that a run was measured on. A run on the modelled
GPU is kept likewise, in tables and folders of its own: modelled numbers never stand among measured ones, unless each says so. Refuses a
run of another profile than "default" or "full", with a notebook that failed or was left out, or from a changed checkout: what is kept
must be what anyone can rerun.

``--again`` keeps a second run on the same device beside the first and says whether the verdicts agree. Its rows name their
revisions, which may be several: a notebook that has been changed since can be run again alone.

``--outputs-only`` puts the outputs of a run, which may be of a few notebooks, into the notebooks, and nothing else anywhere. ``--tables``
writes the tables of the pages anew from what is recorded.
"""

import argparse
import json
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import Field, fields, replace
from pathlib import Path

import pandas as pd

from feather.policies import POLICIES
from lab import book
from lab.artifact import outputs, recorded
from lab.artifact.gallery import gallery
from lab.book import ROOT
from lab.engines.arms import ARMS, SGLANG_ARMS, SOURCES
from lab.policies import POLICIES as STOPPING
from lab.policies import dotted
from lab.studies.study import read
from lab.studies.words import listed

TABLES = ("commands", "claims", "again", "times", "modelled-claims", "modelled-groups", "modelled-times", "policies", "arms")
CLAIMS, ROWS, RUN, FOUND = KEPT_FILES = ("claims.csv", "results.csv.gz", "run.json", "found.md")
_TELLS = 10  # cells, from which on a range says something
KEPT = ("idea.png",)  # in figures/, and drawn by no run: lab/figures/idea.py


def pages() -> list[Path]:
    """Where tables can stand between ``<!-- name -->`` and ``<!-- /name -->``."""
    return [path for path in (ROOT / "README.md", ROOT / "artifact.md", *sorted((ROOT / "docs").glob("*.md"))) if path.exists()]


def publish(out: Path, mended: bool = False) -> Path:
    """Keep a run. ``mended``: it may be of several revisions, since notebooks that had failed were mended and run again; every row says its own."""
    run = _keepable(out)
    if len(run["revisions"]) != 1 and not mended:
        raise ValueError(
            f"{out} was run at {run['revisions']}: it must be one revision (--mended keeps one of which failed notebooks were run again)"
        )
    text = "".join(page.read_text(encoding="utf-8") for page in pages())
    for name in TABLES:
        if f"<!-- {name} -->" not in text:
            raise ValueError(f"no page has a place for the table of the {name}: put <!-- {name} --> and <!-- /{name} --> into artifact.md")
    measured_elsewhere(run)  # raises for a broken record, before anything is kept
    shown = outputs.to_show(out, run)
    page = gallery(out, run, recorded.read(out / CLAIMS))
    target = _folder(run)
    target.mkdir(parents=True, exist_ok=True)
    for name in KEPT_FILES:
        (target / again(name)).unlink(missing_ok=True)
    _keep(out, run, target, str)
    modelled = run["backend"] == "sim"
    if not modelled:
        recorded.keep_as_reference(target.name, ROOT)
    figures = ROOT / "figures" / "modelled" if modelled else ROOT / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    for figure in figures.glob("*.png"):
        if figure.name not in KEPT:
            figure.unlink()
    for figure in (out / "figures").glob("*.png"):
        shutil.copy(figure, figures / figure.name)
    (figures / "README.md").write_text(page, encoding="utf-8")
    outputs.put_in(out, run, shown)
    write_tables()
    return target


def again(name: str) -> str:
    """What the file of a second run is called beside that of the first."""
    return name.replace(".", "-again.", 1)


def _keep(out: Path, run: dict, target: Path, called: Callable[[str], str]) -> None:
    for name in (CLAIMS, RUN):
        shutil.copy(out / name, target / called(name))
    compression = {"method": "gzip", "mtime": 0}  # the same bytes for the same rows
    read(out / "results.csv").to_csv(target / called(ROWS), index=False, compression=compression)
    (target / called(FOUND)).write_text(found_in(out, run), encoding="utf-8")


def found_in(out: Path, run: dict) -> str:
    """What the notebooks of a run say that they found, their Markdown outputs and their claims, as one page."""
    parts = ["# What the notebooks of this run found", "", "Written by `python -m lab.artifact.publish`."]
    for name in sorted(run["seconds"]):
        said = []
        for cell in json.loads((out / "notebooks" / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]:
            for output in cell.get("outputs", []):
                told = output.get("data", {}).get("text/markdown") or (output.get("text", "") if output.get("name") == "stdout" else "")
                said.append(outputs.uncoloured("".join(told)).strip())
        if any(said):
            parts += ["", f"## {name}", "", "\n\n".join(filter(None, said))]
    return "\n".join(parts) + "\n"


def publish_outputs(out: Path) -> list[str]:
    """Put the outputs of a run into the notebooks; returns which. Raises ValueError for smoke sizes, which show nothing, and for a
    notebook that failed or has been changed since."""
    run = _read(out)
    _check_run(out, run)
    shown = outputs.to_show(out, run)
    outputs.put_in(out, run, shown)
    return shown


def publish_again(out: Path) -> str:
    """Keep a second run; returns a line on whether the verdicts agree. Raises ValueError for a run that could not be
    kept at all, or where no first is."""
    run = _keepable(out)
    target = _folder(run)
    if not (target / CLAIMS).exists():
        raise ValueError(f"{out} is of {run['device']}, of which no run is kept: publish it without --again")
    _keep(out, run, target, again)
    write_tables()
    differ = disagreements(target)
    return f"kept in {target / again(CLAIMS)}: " + ("the verdicts agree" if not differ else "; ".join(differ))


def write_tables() -> None:
    """Write the tables of all pages from what is recorded."""
    made = tables()
    for page in pages():
        fill(page, made)


def tables() -> dict[str, str]:
    """Name → table: from the record those of the reference run, of the modelled one, where there is one, and of both; from the registry
    that of the policies."""
    made = {}
    folders = {"": recorded.reference(ROOT, otherwise=""), "modelled-": "modelled"}
    found = {}
    for prefix, name in folders.items():
        folder = ROOT / "data" / "recorded" / name
        if name and (folder / CLAIMS).exists():
            found[prefix] = claims = recorded.read(folder / CLAIMS)
            run = _read(folder)
            made[f"{prefix}claims"] = modelled_table(claims) if prefix else claims_table(claims, measured_elsewhere(run), _again(folder))
            made[f"{prefix}times"] = times_table(run["seconds"])
            if prefix:
                made[f"{prefix}groups"] = groups_table(read(folder / ROWS))
            else:
                made["again"] = again_table(folder)
    none = pd.DataFrame(columns=recorded.CLAIM_COLUMNS)
    made["commands"] = commands_table(found.get("", none), found.get("modelled-", none), _again(ROOT / "data" / "recorded" / folders[""]))
    made["policies"] = policies_table()
    made["arms"] = arms_table()
    return made


def disagreements(folder: Path) -> list[str]:
    """A line for each claim of a kept run whose verdict is another in the second run."""
    first, second = (
        pd.read_csv(folder / name, keep_default_na=False).groupby("claim", sort=False)["verdict"].agg(" and ".join)
        for name in (CLAIMS, again(CLAIMS))
    )
    both = pd.DataFrame({"first": first, "second": second}).fillna("absent")
    return [f"{claim}: {row['first']}, then {row['second']}" for claim, row in both.iterrows() if row["first"] != row["second"]]


def _read(folder: Path) -> dict:
    return json.loads((folder / RUN).read_text(encoding="utf-8"))


def _check_run(out: Path, run: dict) -> None:
    if run["profiles"] not in (["default"], ["full"]):
        raise ValueError(f"{out} has notebooks of the profiles {run['profiles']}: run them all with default, or all with full")
    if run["failed"]:
        raise ValueError(f"{out} has failed notebooks: {', '.join(run['failed'])}")


def _keepable(out: Path) -> dict:
    run = _read(out)
    _check_run(out, run)
    missing = {entry.name for entry in book.ENTRIES.values() if run["backend"] in entry.minutes} - run["seconds"].keys()
    if missing:
        raise ValueError(f"{out} lacks {', '.join(sorted(missing))}: run all notebooks into one folder")
    if any(revision.endswith("+") for revision in run["revisions"]):
        raise ValueError(f"{out} was run at {run['revisions']}: it must be without local changes")
    return run


def _folder(run: dict) -> Path:
    return ROOT / "data" / "recorded" / re.sub(r"[^a-z0-9]+", "-", run["device"].lower()).strip("-")


def modelled_table(claims: pd.DataFrame) -> str:
    """A modelled run's claims. All have the same verdict, and a claim can have several rows: each says what was compared, and where."""
    lines = ["| claim | what the paper says | paper | modelled | policy and case, or parts | notebook, device |", "|---" * 6 + "|"]
    for row in claims[claims["verdict"] != "not run here"].itertuples():
        where = f"{recorded.today(row.study, row.claim).partition('_')[0]}, {row.device}"
        lines.append(f"| {row.claim} | {row.text} | {row.paper} | {recorded.number(row)} | {_case(row)} | {where} |")
    return "\n".join([*lines, *_not_run(claims)])


def groups_table(rows: pd.DataFrame) -> str:
    """The steady state of notebook 20 under the cascade kernel, tokens a second and p99 time to first token: a line for each number of prefix groups, a
    column for each arm. ``rows``: of a run."""
    steady = rows[(rows["study"] == "20_prefix_groups") & (rows.get("kernel", "") == "cascade")]
    if steady.empty:
        return "No run of notebook 20 is kept."
    parameters = steady["parameters"].map(json.loads)
    steady = steady.assign(groups=[given.get("groups") for given in parameters])[["clients" in given for given in parameters]]
    told = steady.pivot_table(index="groups", columns=["policy", "metric"], values="value", aggfunc="median")
    arms = [name for name in ARMS if name in told]
    lines = [f"| groups | {' | '.join(arms)} |", "|---" * (len(arms) + 1) + "|"]
    for groups, values in told.iterrows():
        cells = (
            f"{values[arm, 'throughput']:,.0f}".replace(",", " ") + f", {values[arm, 'time to first token, p99']:.0f} s" for arm in arms
        )
        lines.append(f"| {groups:.0f} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _case(row) -> str:
    """What its reason says of a claim's number: which parts hold, where it is told by parts, else what the reason begins with, the policy
    and the case: all up to the first semicolon or the end of the sentence."""
    if row.parts:
        return "; ".join(f"{part.strip()}: {holds}" for part, holds in re.findall(r"((?:(?!\. )[^;:])+): (yes|no)(?=[;.])", row.reason))
    return re.split(r"; |\.(?: (?=[A-Z])|$)", row.reason, maxsplit=1)[0]


def measured_elsewhere(run: dict) -> pd.DataFrame:
    """What was measured, not modelled, on other devices than the run's. Raises ValueError for a broken record."""
    kept = recorded.load(leave_out=(run["backend"], run["device"]), root=ROOT)
    return kept[kept["backend"] != "sim"]


def _again(folder: Path) -> pd.DataFrame | None:
    """The claims of the second run, if there is one."""
    if not (folder / again(CLAIMS)).exists():
        return None
    claims = recorded.read(folder / again(CLAIMS))
    return claims[claims["verdict"] != "not run here"]


def again_table(folder: Path) -> str:
    """How far two runs of the same are apart: for each notebook the throughput of the second over that of the first, where both measured it."""
    if not (folder / again(ROWS)).exists():
        return "Nobody has run it a second time on that device."
    cell = ["study", "policy", "parameters", "kernel", "rows"]
    first, second = (
        rows[rows["metric"] == "throughput"].groupby(cell, dropna=False)["value"].median()
        for rows in (read(folder / ROWS), read(folder / again(ROWS)))
    )
    lines = ["| notebook | cells | second run over first, median | nine of ten lie between |", "|---" * 4 + "|"]
    for study, ratios in (second / first).dropna().groupby("study"):
        low, middle, high = ratios.quantile((0.05, 0.5, 0.95))
        lines.append(f"| `{study}` | {len(ratios)} | {middle:.2f} × | {f'{low:.2f} and {high:.2f} ×' if len(ratios) >= _TELLS else ''} |")
    return "\n".join(lines)


def claims_table(claims: pd.DataFrame, elsewhere: pd.DataFrame | None = None, again: pd.DataFrame | None = None) -> str:
    """A run's claims as a table, with a column for the second run on the same device and one for each device of ``elsewhere`` (rows of
    ``recorded.load``), and under it which were not run and why. Beside those the verdict stands where it is another."""
    elsewhere = pd.DataFrame(columns=recorded.COLUMNS) if elsewhere is None else elsewhere
    others = list(elsewhere.groupby("run", sort=False))
    second = [] if again is None else [again]
    heads = ["claim", "what the paper says", "paper", _here(claims) if others else "here", "verdict",
             *(f"here again, at {rows['revision'].iloc[0]}" for rows in second), *(_head(rows) for _, rows in others)]  # fmt: skip
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for _, rows in claims.groupby("claim", sort=False):
        verdicts = set(rows["verdict"])
        columns = [_there(found[found["claim"] == rows["claim"].iloc[0]], verdicts) for found in (*second, *(found for _, found in others))]
        for row in rows.itertuples():
            tested = row.verdict != "not run here"
            if tested or any(columns):
                here = [recorded.number(row), row.verdict] if tested else ["not run here", ""]
                lines.append(f"| {' | '.join([row.claim, row.text, row.paper, *here, *columns])} |")
            columns = [""] * len(columns)  # a claim's rows share what was found elsewhere: it stands in the first
    return "\n".join([*lines, *_not_run(claims)])


def _not_run(claims: pd.DataFrame) -> list[str]:
    """Which claims were not run, and why: in one line where the same command would run them. The command is today's, whatever the
    notebooks were called when the run was kept."""
    idle = claims[claims["verdict"] == "not run here"]
    ways: dict[object, list[str]] = {}
    for row in idle.itertuples():
        ways.setdefault(book.measured(row.claim) if row.reason.startswith("./") else row.reason, []).append(row.claim)
    lines = ["", "Not run here:", ""] if ways else []
    return lines + [
        f"* {', '.join(those)}: " + (why if isinstance(why, str) else f"`{book.command(*those)}`") for why, those in ways.items()
    ]


def commands_table(measured: pd.DataFrame, modelled: pd.DataFrame, again: pd.DataFrame | None = None) -> str:
    """How each claim is tested, how long that takes, and what the reference run found, and the second; or what the modelled run found where none
    measures it."""
    lines = ["| claim | what the paper says | notebook | command | min, smoke / default | what to expect |", "|---" * 6 + "|"]
    for claim in book.CLAIMS.values():
        backend, record = ("cpu", measured) if book.measured(claim.id) else ("sim", modelled)
        run = [entry for entry in book.answered_by(claim.id) if backend in entry.minutes]
        notebooks = ", ".join(f"[{entry.name}](notebooks/{entry.name}.ipynb)" for entry in run)
        times = [entry.minutes[backend] for entry in run]
        minutes = " / ".join(f"{sum(time[size] for time in times):g}" for size in (0, 1)) if all(times) else "not timed"
        rows = record[(record["claim"] == claim.id) & (record["verdict"] != "not run here")]
        expected = "; ".join(f"{recorded.number(row)}, {row.verdict}" for row in rows.itertuples()) or "no run is kept"
        second = () if again is None or backend == "sim" else again[again["claim"] == claim.id].itertuples()
        expected += "".join(
            f"; again: {recorded.number(row)}" + f", {row.verdict}" * (row.verdict not in set(rows["verdict"])) for row in second
        )
        lines.append(f"| {claim.id} | {claim.text}: {claim.paper} | {notebooks} | `{book.command(claim.id)}` | {minutes} | {expected} |")
    return "\n".join(lines)


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
    """Notebook → minutes, by today's names: one that was several when it ran is added up, several that were one share a row."""
    spent: dict[tuple[str, ...], int] = {}
    for name, taken in seconds.items():
        names = tuple(recorded.names_today(name))
        spent[names] = spent.get(names, 0) + taken
    rows = [f"| {_together(names)} | {taken // 60}:{taken % 60:02d} |" for names, taken in sorted(spent.items())]
    total = sum(seconds.values())
    return "\n".join(["| notebook | min |", "|---|---|", *rows, f"| all | {total // 60}:{total % 60:02d} |"])


def _together(names: tuple[str, ...]) -> str:
    return f"`{names[0]}`" if len(names) == 1 else f"{listed(name.partition('_')[0] for name in names)} together"


def policies_table() -> str:
    """Every policy: what a user writes, the first paragraph of the class's docstring, and the options."""
    lines = ["| policy | what it does | its own options |", "|---" * 3 + "|"]
    for name, policy in {**POLICIES, **{dotted(policy): policy for policy in STOPPING}}.items():
        first = " ".join((policy.__doc__ or "").partition("\n\n")[0].split()).replace("``", "`")
        options = "; ".join(f"`{own.name}` ({_default(own)}): {own.metadata['help'].replace('``', '`')}" for own in fields(policy.settings))
        lines.append(f'| `"{name}"` | {first} | {options or "none"} |')
    return "\n".join(lines)


def arms_table() -> str:
    """Every way to schedule that is compared, and where it is from."""
    lines = ["| arm | what it does | from |", "|---|---|---|"]
    inside_sglang = [replace(arm, name=f"{arm.name}, inside SGLang") for arm in SGLANG_ARMS.values() if arm.kind == "sglang"]
    for arm in [*ARMS.values(), *inside_sglang]:
        lines.append(f"| {arm.name} | {arm.what} | {arm.source or SOURCES.get(arm.kind, '')} |")
    return "\n".join(lines)


def _default(option: Field) -> str:
    return f"{json.dumps(option.default)} {option.metadata['unit']}".strip()


def fill(page: Path, tables: dict[str, str]) -> None:
    """Replace what stands between ``<!-- name -->`` and ``<!-- /name -->``, for each name that the page has."""
    text = page.read_text(encoding="utf-8")
    for name, table in tables.items():
        text = re.sub(f"(<!-- {name} -->\n).*?(<!-- /{name} -->)", lambda match: f"{match[1]}{table}\n{match[2]}", text, flags=re.S)
    page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        prog="python -m lab.artifact.publish", description="Keep a finished run as the reference for its device."
    )
    parser.add_argument("out", nargs="?", type=Path, default=ROOT / "out", help="the run's folder (default: out)")
    other = parser.add_mutually_exclusive_group()
    other.add_argument("--mended", action="store_true", help="it may be of several revisions: notebooks that had failed were run again")
    other.add_argument("--again", action="store_true", help="it is a second run of what is kept: keep it beside the first")
    other.add_argument("--outputs-only", action="store_true", help="only put its outputs into the notebooks")
    other.add_argument("--tables", action="store_true", help="keep no run: write the tables of the pages from what is recorded")
    options = parser.parse_args()
    try:
        if options.tables:
            write_tables()
        elif options.outputs_only:
            print(f"put into notebooks/: {', '.join(publish_outputs(options.out)) or 'none'}")
        else:
            print(
                publish_again(options.out) if options.again else f"kept in {publish(options.out, options.mended)}, figures/ and notebooks/"
            )
    except (OSError, ValueError) as error:
        sys.exit(f"publish: {error}")
