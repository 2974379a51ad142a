"""A queue of requests under each policy, worked out in a moment on the modelled device, so that its sizes can be dragged."""

import time
from dataclasses import dataclass, replace
from functools import lru_cache
from io import BytesIO
from typing import NamedTuple

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from feather.options import Options
from lab import figures, machine
from lab.model.formation import PATIENT, Formation, Traffic
from lab.model.hardware import DEVICES
from lab.model.steptime import KERNELS
from lab.studies.study import Study
from lab.train.env import World, make_world

ROUNDS = 4  # full batches that a run is long
CLIENTS = 2  # in closed loop, for each row of the batch

POLICIES = {
    "FCFS": replace(PATIENT, order="arrival"),
    "Feather (never stop)": PATIENT,
    "Feather (strict stop)": replace(PATIENT, policy="lab.policies.StrictStop"),
    "Feather": replace(PATIENT, policy=Options.policy),
}
"""Name → options of the scheduler. No request goes first because it has waited long."""


@dataclass(frozen=True)
class Setting:
    """What can be dragged. Lengths in tokens. Raises ValueError for what makes no queue."""

    groups: int = 4
    prefix_tokens: int = 8000
    common: float = 0.0
    """share of the prefix, from its beginning, that all groups have in common"""
    batch: int = 128
    decode_tokens: tuple[int, int] = (64, 64)
    """drawn evenly between both, both included"""
    kernel: str = "cascade"
    device: str = "rtx-6000-ada"

    def __post_init__(self) -> None:
        low, high = self.decode_tokens
        for name, good, wanted in (
            ("groups", self.groups >= 1, "at least 1"),
            ("prefix_tokens", self.prefix_tokens >= PATIENT.chunk_size, f"at least a chunk of the tree, {PATIENT.chunk_size}"),
            ("common", 0 <= self.common < 1, "from 0 to below 1"),
            ("batch", self.batch >= 1, "at least 1"),
            ("decode_tokens", 1 <= low <= high, "at least 1, the lesser first"),
            ("kernel", self.kernel in KERNELS, f"one of: {', '.join(KERNELS)}"),
            ("device", self.device in DEVICES, f"one of: {', '.join(DEVICES)}"),
        ):
            if not good:
                raise ValueError(f"{name}={getattr(self, name)!r} must be {wanted}")

    @property
    def traffic(self) -> Traffic:
        return Traffic(self.groups, self.prefix_tokens, round(self.common * self.prefix_tokens), decode=self.decode_tokens,
                       max_batch=self.batch, requests=ROUNDS * self.batch, in_system=CLIENTS * self.batch)  # fmt: skip


class Course(NamedTuple):
    """A run under one policy, looked at whenever somebody may have come or left."""

    throughput: float
    """tok/s"""
    began: np.ndarray
    """seconds at which each look was taken, and the end"""
    running: np.ndarray
    """requests by look and group"""
    waiting: np.ndarray

    def at(self, second: float) -> int:
        """The look that holds at a second."""
        return int(np.clip(np.searchsorted(self.began, second, "right") - 1, 0, len(self.running) - 1))


_world = lru_cache(maxsize=None)(make_world)


def world_of(setting: Setting) -> World:
    return _world(setting.device, setting.kernel)


@lru_cache(maxsize=8)
def courses(setting: Setting, seed: int = 1) -> dict[str, Course]:
    """The same requests under every policy."""
    return {name: _course(world_of(setting), setting.traffic, options, seed) for name, options in POLICIES.items()}


def _course(world: World, traffic: Traffic, options: Options, seed: int) -> Course:
    run = Formation(world.steps, traffic, options.make_policy(), seed, world.kv_tokens, options)
    began, looks = [], []
    while not run.done:
        run.admit()
        began.append(run.now)
        looks.append(run.by_group())
        run.decode()
    running, waiting = np.array(looks).transpose(1, 0, 2)
    return Course(run.tokens / run.now, np.array([*began, run.now]), running, waiting)


def does_not_fit(setting: Setting) -> str:
    """Why the picture is too good: the KV cache would not hold it, and evictions are not worked out here. Empty where it would."""
    needed, there = setting.traffic.kv_tokens, world_of(setting).kv_tokens
    if needed <= there:
        return ""
    return (f"A full batch on all prefixes takes {needed:,} tokens of KV cache, and this device has {there:,}: a real engine would evict or "
            "run fewer requests, which is not worked out here.")  # fmt: skip


def against_vllm(setting: Setting, seed: int = 1) -> pd.DataFrame:
    """The same setting under vLLM's own scheduler and KV cache on the modelled device: tok/s of both, and each over its FCFS."""
    from lab.engines.arms import ARMS, Arm
    from lab.engines.modelled import ModelledEngine
    from lab.workloads import even_sizes, grouped, make_prefix_tree, make_prefixes

    shared = setting.traffic.root_tokens
    own = setting.prefix_tokens - shared
    prefixes = make_prefix_tree([1, setting.groups], [shared, own]) if shared else make_prefixes(setting.groups, own)
    workload = grouped(prefixes, even_sizes(setting.traffic.requests, setting.groups), seed, decode_tokens=setting.decode_tokens)
    engine = ModelledEngine(max_batch=setting.batch, device=setting.device, kernel=setting.kernel)
    arms = ARMS
    engine.warm(prefixes)
    found = {}
    for name, course in courses(setting, seed).items():
        patient = {} if name == "FCFS" else {"max_wait": PATIENT.max_wait}
        arm = Arm(name, arms[name].kind, {**arms[name].options, **patient})
        run = engine.run(replace(workload, clients=CLIENTS * setting.batch), arm)
        found[name] = {"here, tok/s": course.throughput, "with vLLM, tok/s": run.metrics()["throughput"][0]}
    table = pd.DataFrame(found).T
    return table.assign(**{f"{column.split(',')[0]}, over FCFS": table[column] / table.loc["FCFS", column] for column in table.columns})


# -- pictures ----------------------------------------------------------------------------------------------------------


def provenance(setting: Setting) -> dict[str, str]:
    device = f"{DEVICES[setting.device].name}, {setting.kernel} attention"
    return {**machine.provenance("sim", device), "engine": "Feather's tree and former alone, no vLLM"}


def draw(setting: Setting, moment: float = 0.5) -> Figure:
    """Throughput of every policy; its batch over time, by group; and the tree at one moment, ``moment`` of the fastest run."""
    found = courses(setting)
    ends = [course.began[-1] for course in found.values()]
    second = moment * min(ends)
    looks = {name: course.at(second) for name, course in found.items()}
    most = max(max(course.running[looks[name]].max(), course.waiting[looks[name]].max()) for name, course in found.items())
    figure = Figure(figsize=(15, 6.4))
    grid = figure.add_gridspec(2, len(found) + 1, left=0.1, right=0.99, top=0.86, bottom=0.06, wspace=0.12, hspace=0.32,
                               width_ratios=[1.2, *[1.0] * len(found)])  # fmt: skip
    palette = sns.color_palette("viridis", setting.groups)
    _throughputs(figure.add_subplot(grid[:, 0]), {name: course.throughput for name, course in found.items()})
    for column, (name, course) in enumerate(found.items(), 1):
        axes = figure.add_subplot(grid[0, column])
        _composition(axes, course, palette)
        axes.axvline(second, color="0.2", lw=1, ls="--")
        axes.set(title=name, xlim=(0, max(ends)), ylim=(0, setting.batch), xlabel="modelled seconds")
        axes.set_yticks([0, setting.batch // 2, setting.batch], ["0", "", f"{setting.batch}"] if column == 1 else [""] * 3)
        tree = figure.add_subplot(grid[1, column])
        _tree(tree, course.running[looks[name]], course.waiting[looks[name]], palette, setting.common > 0, most)
    return figure


def headline(setting: Setting, moment: float = 0.5) -> tuple[str, str]:
    """What the drawing shows in a sentence, and in which setting."""
    rates = {name: course.throughput for name, course in courses(setting).items()}
    best = max(rates, key=rates.get)
    over = rates[best] / rates["FCFS"]
    low, high = setting.decode_tokens
    second = moment * min(course.began[-1] for course in courses(setting).values())
    return (
        f"{best} decodes the most, {over:.2f}× FCFS" if over > 1.005 else "No policy decodes more than FCFS",
        f"{setting.groups} prefixes of {setting.prefix_tokens} tokens" + (f", {setting.common:.0%} of it common" if setting.common else "")
        + f", batch {setting.batch}, {low if low == high else f'{low} to {high}'} decode tokens, closed loop, {ROUNDS} full batches, one run "
        f"each, {setting.kernel} attention · above: requests in the batch by prefix group · below: the tree at {second:.1f} s",
    )  # fmt: skip


def _throughputs(axes, throughputs: dict[str, float]) -> None:
    names = list(throughputs)
    colours = figures.colours()
    bars = axes.barh(range(len(names)), throughputs.values(), 0.6, color=[colours.get(name, "0.5") for name in names])
    labels = [f"{rate:.0f}   {rate / throughputs['FCFS']:.2f}×" for rate in throughputs.values()]
    for bar, label in zip(bars, labels):
        axes.text(0, bar.get_y() - 0.04, f" {label}", fontsize=10, va="bottom")
    axes.set_yticks(range(len(names)), [name.replace(" (", "\n(") for name in names], fontsize=10)
    axes.set(ylim=(len(names) - 0.5, -0.7), xlim=(0, 1.05 * max(throughputs.values())), xticks=[])
    axes.set_title("decode throughput, tok/s", fontsize=11)
    axes.grid(visible=False)
    axes.spines[["top", "right", "bottom"]].set_visible(False)


def _composition(axes, course: Course, palette) -> None:
    edges = np.repeat(course.began, 2)[1:-1]
    axes.stackplot(edges, np.repeat(course.running, 2, axis=0).T, colors=palette, linewidth=0)
    axes.grid(False)


def _tree(axes, running: np.ndarray, waiting: np.ndarray, palette, common: bool, most: float) -> None:
    """Root, what all groups have in common, groups: filled and thick where a request runs, ringed the deepest node that all which run
    pass through. Beside each group, its requests that run, and grey those that wait."""
    groups = len(running)
    rows, runs = np.arange(groups), running > 0
    middle, joint = (groups - 1) / 2, 1.0 if common else 0.0
    ring = (2.0, float(rows[runs][0])) if runs.sum() == 1 else (joint, middle)
    edges = [[(joint, middle), (2.0, row)] for row in rows]
    axes.add_collection(
        LineCollection(edges, colors=["0.35" if run else "0.8" for run in runs], linewidths=np.where(runs, 2.5, 1.0), zorder=0)
    )
    axes.plot([0, joint], [middle, middle], "o-", color="0.35", lw=2.5, ms=8)
    axes.scatter(
        np.full(groups, 2.0), rows, 60, [colour if run else "white" for colour, run in zip(palette, runs)], edgecolors=palette, zorder=2
    )
    if runs.any():
        axes.plot(*ring, "o", ms=15, mfc="none", mec="C1", mew=2.5)
    height, scale = 0.36, 2.7 / max(most, 1)
    axes.barh(rows - height / 2, running * scale, height, left=2.4, color=palette, linewidth=0)
    axes.barh(rows + height / 2, waiting * scale, height, left=2.4, color="0.7", linewidth=0)
    for row, run, wait in zip(rows, running, waiting):
        axes.text(2.5 + max(run, wait) * scale, row, f"{run} + {wait}", va="center", fontsize=8, color="0.3")
    axes.set(xlim=(-0.4, 6.2), ylim=(groups - 0.2, -0.8))
    axes.set_title("running + waiting", fontsize=9, weight="normal", color="0.3")
    axes.axis("off")


def picture(setting: Setting, moment: float = 0.5) -> bytes:
    """The drawing as a PNG, signed."""
    figure = draw(setting, moment)
    finding, told = headline(setting, moment)
    figure.text(0.01, 0.955, finding, fontsize=12, weight="bold")
    figure.text(0.01, 0.92, f"{told} · {figures.HOW['sim']}", fontsize=8.5, color="0.35")
    figures.sign(figure, provenance(setting), y=0.03)
    figure.set_dpi(80)
    found = BytesIO()
    FigureCanvasAgg(figure).print_png(found)  # savefig would draw everything twice
    return found.getvalue()


# -- as the notebook opens ---------------------------------------------------------------------------------------------


def study(name: str, start: Setting, out: str) -> Study:
    """The study of the notebook; no engine runs."""
    told = provenance(start)
    return Study(name, None, out, "sim", told={key: told[key] for key in ("device", "engine")})


def keep(study: Study, start: Setting) -> None:
    """Rows of the policies where the sliders start, and the drawing as a figure. Raises AssertionError for a batch that is larger than it may
    be, or that stops strictly and holds two prefixes."""
    found = courses(start)
    told = {"groups": start.groups, "prefix tokens": start.prefix_tokens, "common": start.common, "max batch": start.batch,
            "decode tokens": list(start.decode_tokens)}  # fmt: skip
    for name, course in found.items():
        assert (course.running.sum(axis=1) <= start.batch).all(), f"{name}: a batch is larger than {start.batch}"
        study.row(name, told, "decode throughput", course.throughput, "tok/s", 0, seed=1)
    strict = found["Feather (strict stop)"].running
    assert ((strict > 0).sum(axis=1) <= 1).all() or start.common, "a batch that stops strictly holds two prefixes"
    study.rows()
    study.figure(draw(start), "explore", *headline(start),
                 "How the page of sliders opens: decode throughput under four policies; above, requests in the batch by prefix group over time; below, "
                 "the tree at the dashed moment, with running requests in colour, waiting ones in grey, and a ring around what all that run share.")  # fmt: skip


def found_in_words(start: Setting, beside: pd.DataFrame) -> str:
    """The opening picture in Markdown, and how far it is from vLLM's own scheduler (``beside``, from ``against_vllm``)."""
    here, there = (beside[f"{name}, over FCFS"].drop("FCFS") for name in ("here", "with vLLM"))
    rows = "\n".join(f"* {name}: {here[name]:.2f}× FCFS here, {there[name]:.2f}× with vLLM's scheduler." for name in here.index)
    fits = does_not_fit(start) or "The KV cache holds all prefixes and a full batch."
    return f"""{headline(start)[0]}, where the sliders start. With vLLM's own scheduler the ratios to FCFS differ from these by at most {(here / there - 1).abs().max():.0%}.

{rows}

{fits}"""


# -- to be dragged -----------------------------------------------------------------------------------------------------


def panel(start: Setting):
    """Sliders over the picture, at ``start`` at first: an ipywidgets box. Dragging redraws."""
    import ipywidgets as widgets

    wide = {"style": {"description_width": "11em"}, "layout": widgets.Layout(width="26em")}
    low, high = start.decode_tokens
    controls = {
        "groups": widgets.IntSlider(value=start.groups, min=1, max=max(16, start.groups), description="prefix groups", **wide),
        "prefix_tokens": widgets.IntSlider(
            value=start.prefix_tokens, min=1000, max=max(16_000, start.prefix_tokens), step=500, description="prefix, tokens", **wide
        ),
        "common": widgets.FloatSlider(
            value=start.common, min=0, max=0.9, step=0.1, description="of it common to all", readout_format=".0%", **wide
        ),
        "batch": widgets.IntSlider(value=start.batch, min=8, max=max(256, start.batch), step=8, description="batch, requests", **wide),
        "decode_tokens": widgets.IntRangeSlider(value=(low, high), min=1, max=max(256, high), description="decode, tokens", **wide),
        "kernel": widgets.Dropdown(options=KERNELS, value=start.kernel, description="attention kernel", **wide),
        "device": widgets.Dropdown(options=list(DEVICES), value=start.device, description="modelled device", **wide),
    }
    moment = widgets.FloatSlider(value=0.5, min=0, max=1, step=0.01, description="tree at", readout_format=".0%", **wide)
    shown = widgets.Image(format="png", layout=widgets.Layout(max_width="100%"))
    note = widgets.HTML()

    def redraw(_=None) -> None:
        began = time.perf_counter()
        setting = Setting(**{name: control.value for name, control in controls.items()})
        shown.value = picture(setting, moment.value)
        note.value = f"{does_not_fit(setting)} <small>Worked out and drawn in {time.perf_counter() - began:.2f} s.</small>"

    for control in (*controls.values(), moment):
        control.observe(redraw, "value")
    redraw()
    box = widgets.Layout(flex_flow="row wrap")
    return widgets.VBox([widgets.HBox([*controls.values(), moment], layout=box), note, shown])
