"""A study: conditions run interleaved on one engine, kept as tidy rows, with the claims and figures drawn from them."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from feather.studies import OUT_MARKER
from feather.studies.claims import CLAIMS, verdict
from feather.studies.engine import Engine, Run
from feather.studies.stats import Ratio, ratio

COLUMNS = ["study", "policy", "parameters", "metric", "value", "unit", "repeat", "seed",
           "backend", "device", "engine", "revision", "time"]  # fmt: skip


@dataclass(frozen=True)
class Condition:
    """One thing to measure: a policy, the parameters that tell it from its neighbours, and how to run it once."""

    policy: str
    parameters: dict
    run: Callable[[int], Run]
    """seed → run; conditions given the same seed get the same requests"""


class Study:
    """Rows of one notebook, under the name of the study. ``out`` is the folder that takes rows, claims and figures.

    Raises OSError where ``out`` cannot be written.
    """

    def __init__(self, name: str, engine: Engine, out: str | Path):
        self.name = name
        self.engine = engine
        self.out = Path(out)
        for folder in ("results", "figures"):
            (self.out / folder).mkdir(parents=True, exist_ok=True)
        (self.out / OUT_MARKER).touch()
        self._rows: list[dict] = []
        self._claims: list[dict] = []
        self._figures: list[dict] = []

    def measure(self, conditions: Sequence[Condition], repeats: int, seed: int = 1) -> pd.DataFrame:
        """Run every condition once per repeat, in an order drawn anew for each (so that no condition always follows the
        same other), after one run that is thrown away. Returns the rows of this call."""
        first = len(self._rows)
        order = np.random.default_rng(seed)
        conditions[0].run(seed)
        with tqdm(total=repeats * len(conditions), desc=self.name, unit="run", mininterval=1) as bar:
            for repeat in range(repeats):
                for index in order.permutation(len(conditions)):
                    self._record(conditions[index], repeat, seed + repeat)
                    bar.update()
        self._save()
        return frame(self._rows[first:])

    def _record(self, condition: Condition, repeat: int, seed: int) -> None:
        run = condition.run(seed)
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        for metric, (value, unit) in run.metrics().items():
            self._rows.append(
                {"study": self.name, "policy": condition.policy, "parameters": json.dumps(condition.parameters),
                 "metric": metric, "value": value, "unit": unit, "repeat": repeat, "seed": seed,
                 **self.engine.provenance, "time": now}  # fmt: skip
            )

    def claim(self, claim_id: str, ours: Ratio, reason: str) -> str:
        """Hold a ratio against the paper's claim, keep it for the claims table and return one line that says it."""
        claim = CLAIMS[claim_id]
        found = verdict(claim_id, ours, self.engine.backend)
        self._claims.append({"id": claim_id, "ours": ours._asdict(), "unit": "×", "verdict": found, "reason": reason,
                             "backend": self.engine.backend, "device": self.engine.provenance["device"]})  # fmt: skip
        self._save()
        return f"{claim_id}: paper {claim.paper}, here {ours}: {found}. {reason}"

    def figure(self, figure, name: str, caption: str) -> None:
        """Write a matplotlib figure as PNG and PDF, signed with how and where its numbers came to be."""
        from feather.studies.figures import sign

        sign(figure, self.engine.provenance)
        for suffix in ("png", "pdf"):
            figure.savefig(self.out / "figures" / f"{name}.{suffix}", bbox_inches="tight", dpi=150)
        self._figures.append({"name": name, "caption": caption})
        self._save()

    def _save(self) -> None:
        """Written after each part, so that a notebook that fails later on loses nothing of what it measured."""
        results = self.out / "results"
        pd.DataFrame(self._rows, columns=COLUMNS).to_csv(results / f"{self.name}.csv", index=False)
        story = {"claims": self._claims, "figures": self._figures, "engine": self._engine_settings()}
        (results / f"{self.name}.json").write_text(json.dumps(story, indent=1))

    def _engine_settings(self) -> dict:
        return {name: value for name, value in asdict(self.engine).items() if not name.startswith("_")}


def frame(rows: list[dict]) -> pd.DataFrame:
    """Rows as a table whose parameters are columns of their own."""
    table = pd.DataFrame(rows, columns=COLUMNS)
    parameters = pd.DataFrame([json.loads(text) for text in table["parameters"]], index=table.index)
    return pd.concat([table, parameters], axis=1)


def compare(table: pd.DataFrame, metric: str, of: dict, to: dict) -> Ratio:
    """The ratio of a metric between two conditions, each given as column → value, paired by repeat."""

    def values(where: dict) -> np.ndarray:
        chosen = table[table["metric"] == metric]
        for column, value in where.items():
            chosen = chosen[chosen[column] == value]
        if chosen["repeat"].duplicated().any() or chosen.empty:
            raise ValueError(f"{where} names {len(chosen)} rows of {metric!r}, not one a repeat")
        return chosen.sort_values("repeat")["value"].to_numpy()

    return ratio(values(of), values(to))
