"""``python -m feather.artifact.publish [OUT]``: keep a finished run as the reference for its device.

Figures go to ``figures/``, rows, claims and the machine to ``data/recorded/<device>/``. Refuses a run of another profile
than "default" or "full", with a failed notebook, or from a changed checkout: what is kept must be what anyone can rerun.
"""

import json
import re
import shutil
import sys
from pathlib import Path

import pandas as pd

from feather.artifact.plan import ROOT
from feather.studies import machine


def publish(out: Path) -> Path:
    states = [json.loads(path.read_text()) for path in sorted((out / "state").glob("*.json"))]
    failed = [state["name"] for state in states if state["error"]]
    results = pd.read_csv(out / "results.csv")
    run = json.loads((out / "run.json").read_text())
    changed = sorted(revision for revision in results["revision"].unique() if revision.endswith("+"))
    if run["profile"] == "smoke":
        raise ValueError(f"{out} is a smoke run: its sizes are for testing; run the default profile")
    if failed or changed:
        raise ValueError(f"{out}: failed notebooks {failed or 'none'}, revisions with local changes {changed or 'none'}")
    device = re.sub(r"[^a-z0-9]+", "-", run["device"].lower()).strip("-")
    target = ROOT / "data" / "recorded" / device
    target.mkdir(parents=True, exist_ok=True)
    for name in ("results.csv", "claims.csv", "run.json"):
        shutil.copy(out / name, target / name)
    (ROOT / "figures").mkdir(exist_ok=True)
    for figure in (out / "figures").glob("*.png"):
        shutil.copy(figure, ROOT / "figures" / figure.name)
    (target / "machine.json").write_text(json.dumps(machine.describe(), indent=1) + "\n")
    return target


if __name__ == "__main__":
    try:
        print(f"kept in {publish(Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / 'out'))} and figures/")
    except (OSError, ValueError) as error:
        sys.exit(f"publish: {error}")
