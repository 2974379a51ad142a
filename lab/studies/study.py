"""A study: conditions run interleaved on one engine, kept as tidy rows, with the claims and figures drawn from them."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from dataclasses import replace as replace_fields
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from lab import book, machine
from lab.claims import CLAIMS, verdict
from lab.engines import Engine, make_engine
from lab.engines.run import Run
from lab.figures.charts import HOW, headline, in_order, sign, style
from lab.files import OUT_MARKER, replace
from lab.stats import BETWEEN_RUNS, Ratio, ratio, widened
from lab.studies import words

COLUMNS = ["study", "policy", "parameters", "metric", "value", "unit", "repeat", "seed",
           "backend", "kernel", "rows", "device", "engine", "revision", "time"]  # fmt: skip

DPI = 150  # of the figures as PNG


@dataclass(frozen=True)
class Condition:
    """One thing to measure: a policy, the parameters that tell it from its neighbours, and how to run it once."""

    policy: str
    parameters: dict
    run: Callable[[int], Run]
    """seed → run; conditions given the same seed get the same requests"""
    engine: Engine | None = None
    """what it runs on, where a study has several engines"""
    kernel: str | None = None
    """the attention kernel that it runs under; None: as the engine is set"""


def under_kernels(
    conditions: Sequence[Condition], kernels: Sequence[str], beside: Callable[[Condition], bool] | None = None
) -> list[Condition]:
    """Every condition under the first attention kernel, and under the others those for which ``beside`` is true; None: all. Raises
    ValueError for no kernel, or one twice."""
    if not kernels or len(set(kernels)) < len(kernels):
        raise ValueError(f"kernels={list(kernels)} must name at least one attention kernel, and each once")
    return [
        replace_fields(condition, kernel=kernel)
        for kernel in kernels
        for condition in conditions
        if kernel == kernels[0] or beside is None or beside(condition)
    ]


class Study:
    """Rows of one notebook, under the name of the study. ``out`` is the folder that takes rows, claims and figures.
    Without an engine, what is measured is code on this machine's ``backend``; ``told`` (device, engine) is then said of the rows
    instead of the machine's own, where what runs is a model of something else.

    Raises OSError where ``out`` cannot be written, ValueError for ``told`` beside an engine, which tells for itself.
    """

    def __init__(self, name: str, engine: Engine | None, out: str | Path, backend: str = "cpu", told: dict[str, str] | None = None):
        if engine and told:
            raise ValueError(f"told={told}: the engine says where its numbers come from; leave one of the two out")
        self.name = name
        self.engine = engine
        self._backend = backend
        self._told = told or {}
        self.out = Path(out)
        for folder in ("results", "figures"):
            (self.out / folder).mkdir(parents=True, exist_ok=True)
        (self.out / OUT_MARKER).touch()
        self._rows: list[dict] = []
        self._measured: set[tuple[str, str]] = set()
        self._claims: list[dict] = []
        self._not_run: dict[str, str] = {}
        self._figures: list[dict] = []

    @property
    def provenance(self) -> dict[str, str]:
        """Where its numbers come from, with the engine as it is set now."""
        return _provenance(self.engine) if self.engine else machine.provenance(self._backend) | self._told

    def measure(
        self,
        conditions: Sequence[Condition],
        repeats: int,
        seed: int = 1,
        kernels: Sequence[str] | None = None,
        beside: Callable[[Condition], bool] | None = None,
    ) -> pd.DataFrame:
        """Run every condition once per repeat, in an order drawn anew for each (so that no condition always follows the
        same other), after one run that is thrown away. Returns the rows of this call. ``kernels``: under each of these attention kernels, in
        rows of its own, and the rows returned in their order; afterwards the engine is set to the first of them. ``beside``: which conditions run
        under the others, too (``under_kernels``). The rows of the batch are ordered as the engine is set to.

        Raises ValueError where two conditions could not be told apart in the rows, there is nothing to run, or the engine lacks a kernel."""
        if kernels is not None:
            for kernel in reversed(kernels):  # before anything runs, so that one that is not there costs no time
                self._use(kernel, self.engine)
            table = self.measure(under_kernels(conditions, kernels, beside), repeats, seed)
            self._use(kernels[0], self.engine)
            return table.sort_values("kernel", key=lambda names: names.map(list(kernels).index), kind="stable", ignore_index=True)
        check_repeats(repeats)
        if not conditions:
            raise ValueError("there is no condition to measure: a list of values is empty")
        for condition in conditions:
            engine = condition.engine or self.engine
            setting = (condition.kernel or engine.kernel, engine.sorted_rows) if engine else None
            name = (condition.policy, json.dumps(condition.parameters), setting)
            if name in self._measured:
                raise ValueError(f"{name[0]} with {name[1]} has been measured already: its parameters must tell it apart")
            self._measured.add(name)
        first = len(self._rows)
        order = np.random.default_rng(seed)
        if getattr(conditions[0].engine or self.engine, "warms_up", True):
            self._run(conditions[0], seed + repeats)  # requests of its own: no repeat may find them in the prefix cache
        with tqdm(total=repeats * len(conditions), desc=self.name, unit="run", mininterval=1) as bar:
            for repeat in range(repeats):
                for index in order.permutation(len(conditions)):
                    self._record(conditions[index], repeat, seed + repeat)
                    bar.update()
        return self.rows(first)

    def _record(self, condition: Condition, repeat: int, seed: int) -> None:
        for metric, (value, unit) in self._run(condition, seed).metrics().items():
            self.row(condition.policy, condition.parameters, metric, value, unit, repeat, seed, condition.engine)

    def _run(self, condition: Condition, seed: int) -> Run:
        if condition.kernel:
            self._use(condition.kernel, condition.engine or self.engine)
        return condition.run(seed)

    @staticmethod
    def _use(kernel: str, engine: Engine) -> None:
        if kernel != engine.kernel:
            engine.use_kernel(kernel, engine.sorted_rows)

    def row(self, policy: str, parameters: dict, metric: str, value: float, unit: str, repeat: int, seed: int = 0,
            engine: Engine | None = None) -> None:  # fmt: skip
        """Keep one measurement; for one that ``measure`` did not make."""
        provenance, engine = _provenance(engine) if engine else self.provenance, engine or self.engine
        if engine:
            parameters = {**parameters, "model": engine.model, "max batch": engine.max_batch}
        self._rows.append(
            {
                "study": self.name,
                "policy": policy,
                "parameters": json.dumps(parameters),
                "metric": metric,
                "value": value,
                "unit": unit,
                "repeat": repeat,
                "seed": seed,
                **provenance,
                "kernel": engine.kernel if engine else "",
                "rows": _rows(engine) if engine else "",
                "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            }  # fmt: skip
        )

    @property
    def kept(self) -> int:
        """Rows kept so far."""
        return len(self._rows)

    def rows(self, first: int = 0) -> pd.DataFrame:
        """The rows kept since there were ``first`` of them, parameters as columns; writes them to the file, too."""
        self._save()
        return frame(self._rows[first:])

    def claim(self, claim_id: str, ours: Ratio, reason: str, parts: dict[str, bool] | None = None, engine: Engine | None = None) -> str:
        """Hold a number against the paper's claim, keep it for the claims table and return one line that says it. ``parts`` as in
        ``claims.verdict``; a claim about a shape is told by how many of them hold, and its ratio goes into the reason. ``engine``: what
        it ran on, where that is not the study's. Raises ValueError for a claim that book.toml does not list for this notebook."""
        claim = self._listed(claim_id)
        provenance = _provenance(engine) if engine else self.provenance
        found = verdict(claim_id, ours, provenance["backend"], parts)
        if parts:
            reason += " " + "; ".join(f"{name}: {'yes' if holds else 'no'}" for name, holds in parts.items()) + "."
        here = str(ours).replace("×", f" {claim.unit}", 1)
        told = f"{sum(parts.values())} of {len(parts)}" if parts and claim.is_shape else ""
        if told:
            reason += f" The ratio: {here}."
            here = f"{told} parts"
        self._claims.append({"id": claim_id, "ours": ours._asdict(), "unit": claim.unit, "parts": told, "verdict": found, "reason": reason,
                             "backend": provenance["backend"], "device": provenance["device"]})  # fmt: skip
        self._save()
        return f"{claim_id}: paper {claim.paper}, here {here}: {found}. {reason}"

    def _listed(self, claim_id: str) -> book.Claim:
        entry = book.ENTRIES.get(self.name)
        if entry and claim_id not in entry.claims:
            raise ValueError(
                f"{self.name} answers {claim_id}, which is not among its claims in book.toml ({', '.join(entry.claims) or 'none'}): add it there"
            )
        return CLAIMS[claim_id]

    def not_run(self, claim_id: str, mend: str) -> str:
        """Keep that a claim could not be tested here, and what would make it: the claims table then says "not run here" with
        ``mend``. Returns one line that says it. Raises ValueError as ``claim`` does."""
        self._not_run[self._listed(claim_id).id] = mend
        self._save()
        return f"{claim_id}: not run here. {mend}"

    def figure(
        self,
        figure,
        name: str,
        finding: str,
        setting: str,
        caption: str,
        measured: bool = True,
        engine: Engine | None = None,
        rows: pd.DataFrame | None = None,
        kernel: bool = True,
    ) -> None:
        """Write a matplotlib figure as PNG and PDF under a headline: the ``finding`` in a sentence, and the ``setting``, to which backend and
        kernel are added. Where it shows measurements, it is signed with how and where they came to be: on the study's engine, on the one
        given, or on all that the given rows name; ``kernel``: whether an attention kernel had a part in it. ``caption`` says what is drawn, for
        who reads the figure beside its neighbours."""
        engine = engine or self.engine
        if measured:
            provenance = _provenance(engine) if engine else self.provenance
            kernels = engine.kernel if engine else ""
            if rows is not None:
                kernels = words.listed(rows["kernel"].unique())
                devices = [device.removesuffix(f", {of} attention") for device, of in zip(rows["device"], rows["kernel"])]
                provenance |= {"device": words.listed(dict.fromkeys(devices)), "engine": words.listed(rows["engine"].unique())}
            sign(figure, provenance)
            setting += f" · {HOW[provenance['backend']]}" + (f", {kernels} attention" if kernels and kernel else "")
            setting += ", rows sorted by prefix" if engine and engine.sorted_rows else ""
        headline(figure, finding, setting)
        for suffix in ("png", "pdf"):
            figure.savefig(self.out / "figures" / f"{name}.{suffix}", bbox_inches="tight", dpi=DPI)
        self._figures.append({"name": name, "caption": f"{finding} {caption}"})
        self._save()

    def _save(self) -> None:
        """Written after each part, so that a notebook that fails later on loses nothing of what it measured."""
        results = self.out / "results"
        story = {"claims": self._claims, "figures": self._figures, "not run": self._not_run, "engine": self._engine_settings()}
        replace(results / f"{self.name}.csv", pd.DataFrame(self._rows, columns=COLUMNS).to_csv(index=False))
        replace(results / f"{self.name}.json", json.dumps(story, indent=1))

    def _engine_settings(self) -> dict:
        if self.engine is None:
            return {}
        return {field.name: getattr(self.engine, field.name) for field in fields(self.engine) if field.init}


def start(name: str, out: str | Path, backend: str = "auto", model: str = "tiny-llama", **options) -> tuple[Engine, Study]:
    """What a notebook begins with: the look of the figures, the engine that ``make_engine`` makes of ``options``, and a study on it."""
    style()
    engine = make_engine(backend, model, **options)
    return engine, Study(name, engine, out)


def overview(table: pd.DataFrame, metrics: Sequence[str], by: str | list[str], digits: int = 2) -> pd.DataFrame:
    """Medians over the repeats for a reader: a row for every value of ``by``, a column with its unit for each metric, in the order given."""
    chosen = table[table["metric"].isin(metrics)]
    units = chosen.drop_duplicates("metric").set_index("metric")["unit"]
    chosen = chosen.assign(policy=pd.Categorical(chosen["policy"], in_order(chosen["policy"])))
    wide = chosen.pivot_table(index=by, columns="metric", values="value", aggfunc="median", observed=True).rename_axis(columns=None)
    return wide[[metric for metric in metrics if metric in wide]].rename(columns=lambda metric: f"{metric}, {units[metric]}").round(digits)


def check_repeats(repeats: int) -> None:
    if not repeats >= 1:
        raise ValueError(f"repeats={repeats} must be at least 1")


def _rows(engine: Engine) -> str:
    """What decides the order of rows in the batch."""
    return "prefix" if engine.sorted_rows else "engine"


def _provenance(engine: Engine) -> dict[str, str]:
    return machine.provenance(engine.backend, engine.device_name, engine.engine_version)


def read(path: str | Path) -> pd.DataFrame:
    """Tidy rows as they were written. A revision stays text, also one that has no letter in it."""
    return pd.read_csv(path, dtype={"revision": str})


def frame(rows: list[dict]) -> pd.DataFrame:
    """Rows as a table whose parameters are columns of their own. A parameter that has the name of one of ``COLUMNS`` stands in that column where the
    row says nothing there itself, as rows do that were kept before there was such a column."""
    table = pd.DataFrame(rows, columns=COLUMNS)
    parameters = pd.DataFrame([json.loads(text) for text in table["parameters"]], index=table.index)
    for name in parameters.columns.intersection(table.columns):
        table[name] = table[name].where(table[name].notna() & (table[name] != ""), parameters.pop(name))
    return pd.concat([table, parameters], axis=1)


def between_runs(table: pd.DataFrame) -> float:
    """See ``stats.BETWEEN_RUNS``; 0 where the clock is virtual."""
    return 0.0 if set(table.get("backend", ())) == {"sim"} else BETWEEN_RUNS


def compare(table: pd.DataFrame, metric: str, of: dict, to: dict) -> Ratio:
    """The ratio of a metric between two conditions, each given as column → value, paired by repeat. Where runs tell how sure they are of it ("…, half
    width", as in steady state), the interval is not narrower than that."""

    def values(where: dict, metric: str = metric) -> np.ndarray:
        chosen = table[table["metric"] == metric]
        for column, value in where.items():
            chosen = chosen[chosen[column] == value]
        if chosen["repeat"].duplicated().any() or chosen.empty:
            raise ValueError(f"{where} names {len(chosen)} rows of {metric!r}, not one a repeat")
        return chosen.sort_values("repeat")["value"].to_numpy()

    found, spread = ratio(values(of), values(to)), f"{metric}, half width"
    if (table["metric"] == spread).any():
        found = widened(found, values(of, spread) / values(of), values(to, spread) / values(to), between_runs(table))
    return found
