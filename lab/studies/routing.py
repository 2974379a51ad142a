"""Several replicas: which router, before which scheduler, at which size of the KV cache. Real replicas on Ray Serve, and modelled ones."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import count
from math import inf
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from feather.ray.placement import Placement
from lab.figures.panels import lines_beside, ratio_bars_beside
from lab.routing import fleet
from lab.routing.load import Answered, Prefixes
from lab.routing.modelled import Fleet, Law
from lab.routing.rules import OURS, RAYS, RULES, Informed, Oracle
from lab.stats import Ratio
from lab.studies.comparing import P99
from lab.studies.study import Study, compare
from lab.studies.words import bullets, listed, times

BASE, ORACLE = "power of two", "oracle (knows groups)"
ROOMY, SMALL = "KV for all", "KV for a third"
SHAPES = ("uniform", "Zipf", "nothing shared")
DISCARD = 0.3  # of a run, until its throughput is steady
_ROUNDS = 10  # that a modelled run lasts at least


@dataclass(frozen=True)
class Setting:
    """Sizes of the study, of real and modelled replicas alike."""

    prefixes: int = 9
    """for two replicas; more replicas have more, in proportion"""
    tokens: int = 2000
    """of a prefix"""
    own_tokens: int = 600
    """of a prompt where nothing is shared"""
    decode_tokens: tuple[int, int] = (8, 24)
    rows: int = 8
    """that a replica runs at once"""
    clients: int = 16
    """for each replica"""
    seconds: float = 12.0
    zipf: float = 1.0
    law: Law = field(default_factory=Law)

    def asked(self, shape: str, replicas: int = 2) -> Prefixes:
        """The prompts of one of ``SHAPES``."""
        made = Prefixes(
            self.prefixes * replicas // 2, self.tokens, self.zipf if shape == "Zipf" else 0.0, decode_tokens=tuple(self.decode_tokens)
        )
        return replace(made, count=0, tokens=self.own_tokens) if shape == "nothing shared" else made

    def kv_tokens(self, kv: str, replicas: int = 2) -> int:
        """Of each replica, beside what the rows have of their own: all prefixes, or a third of those that two replicas have."""
        held = self.prefixes * replicas // 2 if kv == ROOMY else self.prefixes // 3
        return held * self.tokens + self.rows * (20 + self.decode_tokens[1] + 32)


@dataclass(frozen=True)
class Modelled:
    """Says where a modelled row comes from."""

    max_batch: int
    model: str = "step law"
    backend: str = "sim"
    kernel: str = "paged"
    sorted_rows: bool = False
    device_name: str = "modelled"
    engine_version: str = "lab.routing.modelled"


def cells(shapes: Sequence[str] = SHAPES, kvs: Sequence[str] = (ROOMY, SMALL)) -> list[tuple[str, str]]:
    """(shape, KV): where nothing is shared, the size of the KV cache does not matter."""
    return [(shape, kv) for shape in shapes for kv in kvs if shape != "nothing shared" or kv == kvs[0]]


# -- real replicas -------------------------------------------------------------------------------------------------------


@contextmanager
def replicas(setting: Setting, number: int = 2):
    """Real engines behind the router of the study; the handle that requests go to. They have answered some, which are thrown away: the first
    requests of an engine take seconds."""
    from lab.routing.real import Replica

    with fleet.cluster():
        handle = fleet.deploy(Replica, setting.rows, replicas=number, router="lab.routing.router.StudyRouter")
        run_real(handle, replace(setting, seconds=min(5.0, setting.seconds)), BASE, "FCFS", ROOMY, "uniform", seed=99, number=number)
        yield handle


_cells = count(1)  # no two runs of a process are of one cell, so that each begins on empty caches


def run_real(handle, setting: Setting, router: str, inside: str, kv: str, shape: str, seed: int, number: int = 2,
             clients: int | None = None) -> fleet.Outcome:  # fmt: skip
    """Clients in closed loop on real replicas for ``setting.seconds``."""
    from lab.routing.real import Ask, Cell

    cell = Cell(next(_cells), router, inside, None if kv == ROOMY else setting.kv_tokens(kv, number))
    asks = (Ask(prompt, decode, group, cell) for prompt, group, decode in fleet.texts(setting.asked(shape, number), seed))
    return fleet.wait_for(fleet.ask(handle, asks, clients or setting.clients * number, setting.seconds))


def measure(study: Study, handle, setting: Setting, repeats: int, chosen: Sequence[tuple[str, str]] | None = None,
            routers: Sequence[str] = tuple(RULES), insides: Sequence[str] = ("FCFS", "Feather"), before: pd.DataFrame | None = None,
            seconds: float = inf) -> pd.DataFrame:  # fmt: skip
    """Every router before every scheduler in every cell. What is compared runs side by side: the routers of one cell one after another, cells and
    routers in an order drawn anew for each repeat. ``before``: rows of earlier calls; what they hold
    is not run again. ``seconds``: no cell begins that would not end by then, going by the longest so far. Returns rows of both."""
    first, start, longest = study.kept, time.monotonic(), 0.0
    missing = list(blocks(repeats, chosen, insides, before))
    with tqdm(total=len(missing) * len(routers), desc=study.name, unit="run") as bar:
        for repeat, inside, shape, kv in missing:
            begin = time.monotonic()
            if begin + max(longest, len(routers) * setting.seconds) > start + seconds:
                break
            for router in np.random.default_rng([repeat, bar.n]).permutation(routers):
                _keep_run(study, handle, setting, str(router), inside, shape, kv, repeat)
                bar.update()
            longest = max(longest, time.monotonic() - begin)
    return pd.concat([before, _with_cells(study.rows(first))], ignore_index=True)


def blocks(repeats: int, chosen: Sequence[tuple[str, str]] | None = None, insides: Sequence[str] = ("FCFS", "Feather"),
           before: pd.DataFrame | None = None) -> Iterator[tuple[int, str, str, str]]:  # fmt: skip
    """(repeat, inside, shape, KV) that are still to be run, in the order in which they are."""
    had = set() if before is None else set(before[["repeat", "inside", "shape", "kv"]].itertuples(index=False, name=None))
    grid = [(inside, *cell) for cell in chosen or cells() for inside in insides]
    for repeat in range(repeats):
        for index in np.random.default_rng(1 + repeat).permutation(len(grid)):
            if (repeat, *grid[index]) not in had:
                yield (repeat, *grid[index])


def _keep_run(study: Study, handle, setting: Setting, router: str, inside: str, shape: str, kv: str, repeat: int) -> None:
    """Raises RuntimeError unless every request was answered once, and in full."""
    outcome = run_real(handle, setting, router, inside, kv, shape, seed=1 + repeat)
    if outcome.lost or outcome.doubled or outcome.wrong:
        raise RuntimeError(
            f"{router}, {inside}, {kv}, {shape}: {outcome.lost} requests lost, {outcome.doubled} doubled, {outcome.wrong} wrong"
        )
    busiest = max(map(len, outcome.by_replica.values())) / len(outcome.answers)
    metrics = outcome.answered.steady(DISCARD) | {"busiest replica": (busiest, "share of answers")}
    _rows(study, router, {"inside": inside, "kv": kv, "shape": shape, "replicas": 2}, metrics, repeat)


def fit(handle, setting: Setting) -> Law:
    """The step law of these replicas, from three short runs of their own: one row; all rows on one prefix; all rows on all prefixes; and a
    prefix that is computed."""
    short = replace(setting, seconds=max(4.0, setting.seconds / 4))

    def step(clients: int, prefixes: int) -> tuple[float, float]:
        """Seconds of a step and groups in it, from the rate after the first requests."""
        run = run_real(handle, replace(short, prefixes=prefixes), BASE, "FCFS", ROOMY, "uniform", seed=7, clients=clients)
        rows = min(clients / 2, setting.rows)
        return rows / (run.answered.steady(0.5, 2)["throughput"][0] / 2), run.answered.groups

    alone, _ = step(2, 1)
    one, _ = step(2 * setting.rows, 1)
    all_, groups = step(2 * setting.rows, setting.prefixes)
    lone = run_real(handle, replace(short, seconds=0.01), BASE, "FCFS", ROOMY, "uniform", seed=8, clients=1).answered
    cold = (lone.first[0] - lone.sent[0]) / setting.tokens
    per_group = max(0.0, (all_ - one) / max(1.0, groups - 1))
    per_row = max(0.0, (one - alone) / (setting.rows - 1))
    return Law(max(0.0, alone - per_row - per_group), per_row, per_group, cold)


# -- modelled replicas ---------------------------------------------------------------------------------------------------


def model(study: Study, setting: Setting, numbers: Sequence[int], repeats: int, seconds: float, chosen: Sequence[tuple[str, str]] | None = None,
          routers: Sequence[str] = (*RULES, ORACLE), insides: Sequence[str] = ("Feather",)) -> pd.DataFrame:  # fmt: skip
    """The same over modelled replicas with a virtual clock, so many of them, for ``seconds`` each or, where the step law is of a slow machine,
    until every row can have been served some times: a run without answers has no throughput."""
    first, engine = study.kept, Modelled(setting.rows)
    served = np.mean(setting.decode_tokens) * setting.law.seconds(setting.rows, 1, 0) + setting.law.per_token * setting.tokens
    seconds = max(seconds, _ROUNDS * float(served))
    grid = [(number, *cell, inside, router) for number in numbers for cell in chosen or cells() for inside in insides for router in routers]
    for repeat, (number, shape, kv, inside, router) in tqdm(
        [(repeat, one) for repeat in range(repeats) for one in grid], desc="modelled", unit="run"
    ):
        runs = [
            run_modelled(setting, rule, inside, kv, shape, 1 + repeat, number, seconds)
            for rule in rules(router, setting, shape, number, repeat)
        ]
        metrics = max((answered.steady(DISCARD) for answered in runs), key=lambda found: found["throughput"][0])
        _rows(study, router, {"inside": inside, "kv": kv, "shape": shape, "replicas": number}, metrics, repeat, engine)
    return _with_cells(study.rows(first))


def run_modelled(setting: Setting, rule: Any, inside: str, kv: str, shape: str, seed: int, number: int, seconds: float) -> Answered:
    """Clients in closed loop on modelled replicas for so many virtual seconds."""
    asked, feather = setting.asked(shape, number), inside == "Feather"
    replicas_ = Fleet(
        rule, asked, number, setting.rows, setting.kv_tokens(kv, number), setting.clients * number, feather, setting.law, seed=seed
    )
    if isinstance(rule, Informed):
        rule.look = replicas_.look
    return replicas_.run(seconds)


def rules(router: str, setting: Setting, shape: str, number: int, seed: int) -> list[Any]:
    """The rule of that name, Feather's being the very code that routes real requests. The oracle is the best of three, which differ in what they
    know: how often each group comes, or what every replica holds at this moment, with a prefix at its price or at three times that."""
    if router != ORACLE:
        return [RULES[router]() if router == OURS else RULES[router](seed)]
    asked, law = setting.asked(shape, number), setting.law
    service = np.mean(setting.decode_tokens) * law.seconds(setting.rows, 2, 0)
    shares = {(group, 0): weight for group, weight in enumerate(asked.weights)} if asked.count else {}
    return [Oracle(shares, seed), *(Informed(setting.rows, price * law.per_token * asked.tokens / service, seed) for price in (1, 3))]


# -- what they have in common --------------------------------------------------------------------------------------------


def _rows(study: Study, policy: str, parameters: dict, metrics: dict, repeat: int, engine=None) -> None:
    for metric, (value, unit) in metrics.items():
        study.row(policy, parameters, metric, value, unit, repeat, 1 + repeat, engine)


def _with_cells(table: pd.DataFrame) -> pd.DataFrame:
    table["cell"] = table["shape"] + ", " + table["kv"]
    return table


def over(table: pd.DataFrame, of: str, to: str, metric: str = "throughput", **where) -> Ratio:
    return compare(table, metric, {"policy": of, **where}, {"policy": to, **where})


def best_of_rays(table: pd.DataFrame, **where) -> str:
    """Ray's own router with the highest throughput there."""
    rows = table[(table["metric"] == "throughput") & table["policy"].isin(RAYS)]
    for column, value in where.items():
        rows = rows[rows[column] == value]
    return str(rows.groupby("policy")["value"].median().idxmax())


@dataclass(frozen=True)
class Figures:
    """What the issue of several machines is judged by, out of rows."""

    small_kv_over_best_ray: dict[str, Ratio]
    """cell → throughput over that of the best of Ray's own routers, Feather inside, KV for a third"""
    over_power_of_two: dict[str, Ratio]
    """scheduler and cell → throughput over power of two's"""
    hot_p99: dict[str, Ratio]
    """cell of the Zipf shape → p99 time to first token over power of two's, Feather inside"""

    @property
    def worst(self) -> Ratio:
        return min(self.over_power_of_two.values(), key=lambda ratio: ratio.median)


def figures(table: pd.DataFrame) -> Figures:
    def each(**where):
        rows = table
        for column, value in where.items():
            rows = rows[rows[column] == value]
        return [
            dict(zip(("inside", "shape", "kv"), key)) for key in rows[["inside", "shape", "kv"]].drop_duplicates().itertuples(index=False)
        ]

    inside = {"inside": "Feather"}
    return Figures(
        {one["shape"]: over(table, OURS, best_of_rays(table, **one), **one) for one in each(kv=SMALL, **inside)},
        {f"{one['inside']}, {one['shape']}, {one['kv']}": over(table, OURS, BASE, **one) for one in each()},
        {one["kv"]: over(table, OURS, BASE, P99, **one) for one in each(shape="Zipf", **inside)},
    )


def of_oracle(table: pd.DataFrame) -> dict[tuple[int, str], Ratio]:
    """(replicas, cell) → our throughput over that of the oracle."""
    places = table[["replicas", "cell"]].drop_duplicates().itertuples(index=False)
    return {(int(number), cell): over(table, OURS, ORACLE, replicas=number, cell=cell) for number, cell in places}


# -- figures and words ---------------------------------------------------------------------------------------------------


def draw(study: Study, table: pd.DataFrame, setting: Setting, repeats: int) -> None:
    """Throughput and p99 time to first token over power of two's, for each scheduler inside."""
    for inside in table["inside"].unique():
        rows = table[table["inside"] == inside]
        found = figures(table)
        ratios = {name: ratio for name, ratio in found.over_power_of_two.items() if name.startswith(inside)}
        spread = sorted({f"{ratio.median:.2f}" for ratio in ratios.values()})
        study.figure(
            ratio_bars_beside(rows, {"throughput": "throughput, ratio to power of two", P99: "p99 time to first token, ratio to power of two"},
                              BASE, "cell", 7.0),
            f"routers_{inside.lower()}",
            f"With {inside} inside, Feather's router gives {' to '.join(spread[:1] + spread[1:][-1:])} times the throughput of power of two",
            f"2 replicas of {setting.rows} rows, {setting.prefixes} prefixes of {setting.tokens} tokens, {2 * setting.clients} clients in closed loop · "
            f"steady state · {'one run each' if repeats == 1 else f'medians of {repeats} runs'}",
            "Throughput and p99 time to first token of every router over power of two's.",
            kernel=False,
        )  # fmt: skip


def draw_modelled(study: Study, table: pd.DataFrame, setting: Setting) -> None:
    """Throughput over the oracle's against the number of replicas, one figure for each cell of small KV."""
    parts = []
    for (cell, number, repeat), rows in table[table["metric"] == "throughput"].groupby(["cell", "replicas", "repeat"]):
        best = rows[rows["policy"] == ORACLE]["value"].iloc[0]
        parts += [{"policy": row.policy, "replicas": number, "repeat": repeat, "metric": cell, "value": row.value / best} for row in rows.itertuples()
                  if row.policy != ORACLE]  # fmt: skip
    shares = pd.DataFrame(parts)
    ours = of_oracle(table)
    most = max(number for number, _ in ours)
    lowest = min((ratio.median for (number, _), ratio in ours.items() if number == most))
    drawn = [cell for cell in shares["metric"].unique() if not cell.startswith("nothing")]
    study.figure(
        lines_beside(shares, {cell: f"throughput over the oracle's: {cell}" for cell in drawn}, "replicas", "policy", "replicas (modelled)"),
        "routers_modelled",
        f"At {most} modelled replicas Feather's router gives at least {lowest:.2f} of what an oracle does that knows the groups",
        f"{setting.prefixes} prefixes of {setting.tokens} tokens for every two replicas, {setting.clients} clients and {setting.rows} rows a replica · "
        "steady state",
        "Throughput of every router over that of an oracle that is told the groups and their frequencies.",
        engine=Modelled(setting.rows), kernel=False,
    )  # fmt: skip


def found_in_words(table: pd.DataFrame | None, modelled: pd.DataFrame) -> str:
    """What the study has found, in Markdown."""
    lines = []
    if table is not None:
        told = figures(table)
        for shape, ratio in told.small_kv_over_best_ray.items():
            best = best_of_rays(table, inside="Feather", shape=shape, kv=SMALL)
            lines.append(
                f"**KV for a third, {shape} prefixes, Feather inside** (measured): {times(ratio)} the throughput of the best of Ray's routers ({best})."
            )
        worst = min(told.over_power_of_two, key=lambda name: told.over_power_of_two[name].median)
        lines.append(f"**Against power of two** (measured): in the worst cell ({worst}) {times(told.worst)} its throughput.")
        tails = listed(f"{times(ratio)} ({kv})" for kv, ratio in told.hot_p99.items())
        lines.append(f"**Hot prefix** (measured): p99 time to first token under Zipf's law, over power of two's: {tails}.")
    for number in sorted(modelled["replicas"].unique()):
        ours = {cell: ratio for (replicas_, cell), ratio in of_oracle(modelled).items() if replicas_ == number}
        lowest = min(ours, key=lambda cell: ours[cell].median)
        lines.append(f"**{number} replicas** (modelled): at least {times(ours[lowest])} of what the oracle gives ({lowest}).")
    return bullets(lines)


# -- decisions and faults ------------------------------------------------------------------------------------------------


def decision_us(replicas_: int = 64, prefixes: int = 300, requests: int = 4000) -> float:
    """Median microseconds of one decision with prefixes of 20 chunks and 32 requests outstanding on each replica."""
    placement, everyone = Placement(), range(replicas_)
    placement.update(everyone)
    for id_ in everyone:
        placement.report(id_, {"report": 0, "running": 0, "waiting": 0, "prefixes": [], "chunks": None})
    groups = np.random.default_rng(0).choice(prefixes, requests, p=Prefixes(prefixes, 1, 1.0).weights)
    taken = []
    for number, group in enumerate(groups):
        path = [hash((group, chunk)) for chunk in range(20)]
        start = time.perf_counter_ns()
        chosen = placement.choose(path, everyone)
        taken.append(time.perf_counter_ns() - start)
        placement.place(number, path, chosen)
        placement.done(number - 32 * replicas_)
    return float(np.median(taken[len(taken) // 2 :])) / 1e3
