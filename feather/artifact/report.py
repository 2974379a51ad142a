"""Gather what the notebooks left into results.csv, claims.csv and one self-contained page."""

import base64
import csv
import json
import os
import time
from pathlib import Path

import pandas as pd
from jinja2 import Environment, FileSystemLoader, select_autoescape

from feather.artifact.plan import notebook_names
from feather.studies import machine
from feather.studies.claims import CLAIMS

CLAIM_COLUMNS = ["claim", "text", "paper", "ours", "low", "high", "unit", "backend", "device", "verdict", "reason", "study"]


def write_report(out: Path, profile: str, backend: str) -> None:
    """Write results.csv, claims.csv, report.html and run.json (what ran, where, for how long) from ``out/results`` and
    ``out/state``; each appears whole or not at all."""
    stories = {path.stem: json.loads(path.read_text()) for path in sorted((out / "results").glob("*.json"))}
    tables = [pd.read_csv(path) for path in sorted((out / "results").glob("*.csv"))]
    results = pd.concat([table for table in tables if len(table)], ignore_index=True) if tables else pd.DataFrame()
    _replace(out / "results.csv", results.to_csv(index=False))
    claims = claim_rows(stories, backend)
    _replace(out / "claims.csv", pd.DataFrame(claims, columns=CLAIM_COLUMNS).to_csv(index=False))
    states = [json.loads(path.read_text()) for path in sorted((out / "state").glob("*.json"))]
    run = {"profile": profile, "backend": backend, "device": machine.device(backend), "engine": machine.engine_version(),
           "seconds": {state["name"]: round(state["seconds"]) for state in states}}  # fmt: skip
    _replace(out / "run.json", json.dumps(run, indent=1) + "\n")
    _replace(out / "report.html", render(out, stories, claims, len(results), profile, backend))


def claim_rows(stories: dict[str, dict], backend: str) -> list[dict]:
    """One row for every claim of the paper, in its order: with a verdict of ours, or "not run here" and why."""
    rows = []
    for claim in CLAIMS.values():
        base = {"claim": claim.id, "text": claim.text, "paper": claim.paper}
        found = [(study, entry) for study, story in stories.items() for entry in story["claims"] if entry["id"] == claim.id]
        for study, entry in found:
            ours = entry["ours"]
            rows.append({**base, "ours": round(ours["median"], 3), "low": round(ours["low"], 3), "high": round(ours["high"], 3),
                         "unit": entry["unit"], "backend": entry["backend"], "device": entry["device"],
                         "verdict": entry["verdict"], "reason": entry["reason"], "study": study})  # fmt: skip
        if not found:
            rows.append({**base, "backend": backend, "device": machine.device(backend), "verdict": "not run here",
                         "reason": _why_not_run(claim.id), "study": ""})  # fmt: skip
    return rows


def _why_not_run(claim_id: str) -> str:
    for name in notebook_names():
        if f'"{claim_id}"' in _code(name):
            return f"./run_all.sh --only {name.split('_')[0]}"
    return "no study of it in this version"


def _code(notebook: str) -> str:
    from feather.artifact.plan import NOTEBOOKS

    cells = json.loads((NOTEBOOKS / f"{notebook}.ipynb").read_text())["cells"]
    return "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")


def render(out: Path, stories: dict, claims: list[dict], rows: int, profile: str, backend: str) -> str:
    sections = []
    for path in sorted((out / "state").glob("*.json")):
        state = json.loads(path.read_text())
        story = stories.get(path.stem, {"figures": [], "engine": {}})
        figures = [
            {**figure, "data": base64.b64encode((out / "figures" / f"{figure['name']}.png").read_bytes()).decode()}
            for figure in story["figures"]
        ]
        sections.append({"name": path.stem, "seconds": state["seconds"], "error": state["error"], "figures": figures,
                         "engine": story["engine"]})  # fmt: skip
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=select_autoescape())
    return environment.get_template("report.html.j2").render(
        claims=claims, sections=sections, machine=machine.describe(), rows=rows, profile=profile, backend=backend,
        made=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
    )  # fmt: skip


def print_claims(out: Path) -> None:
    """The claims table on the terminal: what was run first, then the ids of what was not."""
    with (out / "claims.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    print(f"\n{'claim':<6}{'paper':<22}{'here':<26}{'backend':<9}verdict")
    for row in rows:
        if row["verdict"] != "not run here":
            ours = f"{float(row['ours']):.2f}{row['unit']} [{float(row['low']):.2f}, {float(row['high']):.2f}]"
            print(f"{row['claim']:<6}{row['paper']:<22}{ours:<26}{row['backend']:<9}{row['verdict']}")
    idle = [row["claim"] for row in rows if row["verdict"] == "not run here"]
    print(f"not run here: {', '.join(idle) or 'none'}")


def _replace(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text)
    os.replace(partial, path)
