"""Gather what the notebooks left into results.csv, claims.csv and one self-contained page."""

import base64
import csv
import json
import struct
import time
from pathlib import Path

import pandas as pd
from jinja2 import Environment, FileSystemLoader, select_autoescape

from lab import book, machine
from lab.artifact import overview, recorded
from lab.artifact.recorded import CLAIM_COLUMNS
from lab.claims import CLAIMS
from lab.files import replace
from lab.studies.study import COLUMNS, DPI, read


def write_report(out: Path, backend: str, last: dict | None = None) -> None:
    """Write results.csv, claims.csv, run.json (what ran, where, for how long), figures/claims.png and .pdf, and report.html from
    ``out/results``, ``out/state`` and the runs recorded on other devices; each appears whole or not at all. A notebook that left
    no whole record, since it was killed, say, is left out. ``last``: what run.json tells of the command that ends with this."""
    states, stories, tables = {}, {}, []
    for path in sorted((out / "state").glob("*.json")):
        states[path.stem] = json.loads(path.read_text(encoding="utf-8"))
        try:
            stories[path.stem] = json.loads((out / "results" / path.name).read_text(encoding="utf-8"))
            tables.append(read(out / "results" / f"{path.stem}.csv"))
        except FileNotFoundError:  # it keeps no rows, like 00, or failed before the first
            continue
    tables = [table for table in tables if len(table)]
    results = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=COLUMNS)
    claims = claim_rows(stories, states, backend)
    run = {
        "profiles": sorted({state["profile"] for state in states.values()}),
        "revisions": sorted({state["revision"] for state in states.values()}),
        "failed": [name for name, state in states.items() if state["error"]],
        "backend": backend,
        "device": machine.device(backend),
        "seconds": {name: round(state["seconds"]) for name, state in states.items()},
        **({"last_command": last} if last else {}),
        "machine": machine.describe(),
    }
    replace(out / "results.csv", results.to_csv(index=False))
    table = pd.DataFrame(claims, columns=CLAIM_COLUMNS).astype({"repeats": "Int64"})
    replace(out / "claims.csv", table.to_csv(index=False))
    replace(out / "run.json", json.dumps(run, indent=1) + "\n")
    kept, broken = recorded_elsewhere(run)
    glance = overview.write_overview(out, table, kept, run)
    replace(out / "report.html", render(out, stories, states, claims, len(results), run, glance, recorded.lines(kept), broken))


def recorded_elsewhere(run: dict) -> tuple[pd.DataFrame, str]:
    """What was recorded on other devices than the run's, and what is wrong with the record: a broken one must not cost a run its
    report."""
    try:
        return recorded.load(leave_out=(run["backend"], run["device"])), ""
    except (OSError, ValueError) as error:
        return pd.DataFrame(columns=recorded.COLUMNS), str(error)


def claim_rows(stories: dict[str, dict], states: dict[str, dict], backend: str) -> list[dict]:
    """One row for every claim of the paper, in its order: with a verdict of ours, or "not run here" and why."""
    rows = []
    for claim in CLAIMS.values():
        base = {"claim": claim.id, "text": claim.text, "paper": claim.paper}
        found = [(study, entry) for study, story in stories.items() for entry in story["claims"] if entry["id"] == claim.id]
        for study, entry in found:
            ours = entry["ours"]
            rows.append({**base, "ours": round(ours["median"], 6), "low": round(ours["low"], 6), "high": round(ours["high"], 6),
                         "repeats": ours["repeats"], "unit": entry["unit"], "parts": entry.get("parts", ""),
                         "backend": entry["backend"], "device": entry["device"], "verdict": entry["verdict"], "reason": entry["reason"], "study": study,
                         "profile": states[study]["profile"], "revision": states[study]["revision"]})  # fmt: skip
        if not found:
            rows.append({**base, "backend": backend, "device": machine.device(backend), "verdict": "not run here",
                         "reason": _why_not_run(claim.id, stories), "study": ""})  # fmt: skip
    return rows


def _why_not_run(claim_id: str, stories: dict[str, dict]) -> str:
    for story in stories.values():
        if claim_id in story.get("not run", {}):
            return story["not run"][claim_id]
    return book.command(claim_id) if book.answered_by(claim_id) else "no notebook tests it"


def render(out: Path, stories: dict, states: dict, claims: list[dict], rows: int, run: dict, glance: dict | None,
           elsewhere: dict[str, list[str]], broken: str) -> str:  # fmt: skip
    """The page. ``glance``: the picture of all claims; ``elsewhere``: claim → lines on what other devices gave; ``broken``: why there
    are none."""
    if glance:
        glance = {**glance, **_embedded((out / "figures" / f"{glance['name']}.png").read_bytes())}
    sections = []
    for name, state in states.items():
        story = stories.get(name, {"figures": [], "engine": {}})
        figures = [
            {**figure, **_embedded(path.read_bytes())}
            for figure in story["figures"]
            if (path := out / "figures" / f"{figure['name']}.png").exists()
        ]
        sections.append({"name": name, "title": book.title(name), **state, "figures": figures, "engine": story["engine"]})
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=select_autoescape())
    made = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    return environment.get_template("report.html.j2").render(
        claims=claims,
        sections=sections,
        rows=rows,
        run=run,
        made=made,
        glance=glance,
        elsewhere=elsewhere,
        broken=broken,
        told=recorded.told,
    )


def _embedded(png: bytes) -> dict:
    """The picture as text, and the width in CSS pixels (96 an inch) at which all figures' letters are equally large."""
    width, _ = struct.unpack(">II", png[16:24])  # of the header, which every PNG starts with
    return {"data": base64.b64encode(png).decode(), "width": round(width * 96 / DPI)}


def print_claims(out: Path) -> None:
    """The claims table on the terminal: what was run first, then the ids of what was not."""
    with (out / "claims.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    print(f"\n{'claim':<6}{'paper':<22}{'here':<30}{'backend':<9}verdict")
    for row in rows:
        if row["verdict"] != "not run here":
            ours = f"{float(row['ours']):.2f} {row['unit']} [{float(row['low']):.2f}, {float(row['high']):.2f}]"
            ours = f"{row['parts']} parts" if row["parts"] else ours
            print(f"{row['claim']:<6}{row['paper']:<22}{ours:<30}{row['backend']:<9}{row['verdict']}")
    idle = [row["claim"] for row in rows if row["verdict"] == "not run here"]
    print(f"not run here: {', '.join(idle) or 'none'}")
