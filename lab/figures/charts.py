"""How every figure looks, and the line under it that says what its numbers are."""

import textwrap
from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns

from lab.stats import median_of, ratio

# Every policy keeps its colour, marker and dashes in all figures: colours that can be told apart without colour vision, and
# markers and dashes for who prints in grey. Relatives share a hue: order alone is green, stopping by a rule orange or red, oracles grey.
_BLUE, _ORANGE, _GREEN, _RED, _PURPLE, _BROWN, _PINK, _GREY, _YELLOW, _CYAN = sns.color_palette("colorblind")
_STYLES = {
    "FCFS": ("0.2", "o", ""),
    "Feather": (_BLUE, "D", ""),
    "Feather (never stop)": (_GREEN, "s", ""),
    "Feather (bandit alone)": (_CYAN, "d", (4, 1)),
    "Feather (bandit alone, patient)": (_CYAN, "d", (2, 1)),
    "Feather (threshold)": (_ORANGE, "^", ""),
    "Feather (threshold, patient)": (_RED, "v", (4, 1)),
    "Feather (threshold, patient, no floor)": (_RED, "<", (2, 1)),
    "Feather (strict stop)": (_PURPLE, "P", ""),
    "Feather (SB3)": (_BROWN, "p", (3, 1, 1, 1)),
    "arrival order, strict stop": (_PURPLE, "X", (2, 2)),
    "oracle (order)": ("0.55", "h", (4, 1)),
    "oracle (stop)": ("0.55", "*", (1, 1)),
    "LPM": (_PINK, ">", ""),
    "LPM, no cut-off": (_PINK, ">", (2, 1)),
    "DFS-weight": (_YELLOW, "8", (3, 1)),
    "block table": (_BROWN, "H", (1, 1)),
    # What a step of them costs alone, in SGLang's own code or in that of the tree.
    "SGLang LPM": (_PINK, ">", ""),
    "SGLang LPM, cut off": (_PINK, ">", (2, 1)),
    "SGLang DFS-weight": (_YELLOW, "8", (3, 1)),
    "Feather in SGLang": (_BLUE, "d", (1, 1)),
    "Feather, from tokens": (_BLUE, "D", (4, 1)),
    "Feather, from block hashes": (_BLUE, "D", ""),
}
POLICIES = tuple(_STYLES)

HOW = {"cpu": "measured on a CPU", "gpu": "measured on a GPU", "sim": "modelled, not measured"}

_SMALL = 8.5  # points
_HATCHES = ("", "//", "..", "\\\\", "xx", "--", "++", "oo", "||", "**", "////", "....", "\\\\\\\\", "xxxx", "----", "++++")


def style() -> None:
    """One look for all notebooks."""
    sns.set_theme(context="notebook", style="whitegrid", palette="colorblind")
    plt.rcParams.update({"figure.figsize": (7.2, 4.2), "axes.titlesize": "medium", "figure.dpi": 80})


def headline(figure, finding: str, setting: str) -> None:
    """What the figure shows in a sentence, in bold over everything, and under it in what setting: workload, backend, kernel, repeats."""
    left, right, top, _ = _drawn(figure)
    width = max(right - left, 4.0)  # inches
    finding, setting = textwrap.fill(finding, int(10 * width)), textwrap.fill(setting, int(14.5 * width))
    _write(figure, left, top + 0.14, setting, "bottom", fontsize=_SMALL, color="0.35")
    _write(figure, left, _drawn(figure)[2] + 0.08, finding, "bottom", fontsize=12, fontweight="bold")


def sign(figure, provenance: dict[str, str], y: float | None = None) -> None:
    """Write backend, device, engine and revision under the figure, or at ``y`` of its height."""
    text = f"{HOW[provenance['backend']]}: {provenance['device']} · {provenance['engine']} · Feather {provenance['revision']}"
    if y is None:
        _below(figure, text)
    else:
        figure.text(0.01, y, text, fontsize=_SMALL, color="0.35", ha="left", va="top")


def note(figure, text: str) -> None:
    """Write under all that is there what was cut or scaled to make the workload."""
    _below(figure, text)


def _below(figure, text: str) -> None:
    left, right, _, bottom = _drawn(figure)
    _write(figure, left, bottom - 0.08, textwrap.fill(text, int(14.5 * max(right - left, 4.0))), "top", fontsize=_SMALL, color="0.35")


def _drawn(figure) -> tuple[float, float, float, float]:
    """Left, right, top and bottom of what is drawn so far, legends and titles included, in inches from the figure's lower left corner."""
    figure.draw_without_rendering()
    box = figure.get_tightbbox()
    return box.x0, box.x1, box.y1, box.y0


def _write(figure, x: float, y: float, text: str, side: str, **look) -> None:
    """Write at a place in inches from the figure's lower left corner, which may lie outside it: figures are saved with all that they hold."""
    width, height = figure.get_size_inches()
    figure.text(x / width, y / height, text, ha="left", va=side, **look)


def spread(repeats: int) -> str:
    """What the marks and bars of a figure over so many repeats are, for its setting."""
    return "one run each" if repeats == 1 else f"medians of {repeats} runs with 95 % intervals"


def _hatch(policy: str, number: int) -> str:
    """A policy's hatch, the same in every figure; ``number``: of a policy that has no look of its own."""
    return _HATCHES[(POLICIES.index(policy) - 1 if policy in POLICIES else number) % len(_HATCHES)]


def in_order(policies) -> list[str]:
    """The policies in the order of ``POLICIES``, others after them."""
    return sorted(set(policies), key=lambda policy: (POLICIES.index(policy) if policy in POLICIES else len(POLICIES), policy))


def colours() -> dict[str, tuple]:
    """Policy → colour, the same in every figure."""
    return {name: colour for name, (colour, _, _) in _STYLES.items()}


def looks(policies) -> dict:
    """``hue_order``, ``palette``, ``markers`` and ``dashes`` for seaborn's line plots, in which ``hue`` and ``style`` are the policy. Policies
    without a look of their own get what is left of the palette."""
    names = in_order(policies)
    spare = iter(zip(sns.color_palette("husl", 8), "oXdpH^v<", strict=True))
    styles = {}
    for name in names:
        if name not in _STYLES:
            colour, marker = next(spare)
            styles[name] = (colour, marker, (5, 2))
        else:
            styles[name] = _STYLES[name]
    return {
        "hue_order": names, "style_order": names, "palette": {name: look[0] for name, look in styles.items()},
        "markers": {name: look[1] for name, look in styles.items()}, "dashes": {name: look[2] for name, look in styles.items()},
    }  # fmt: skip


def widths_of(names: Sequence) -> dict:
    """Of lines drawn in this order, each narrower than the one before: of those that coincide all can be seen."""
    return dict(zip(names, np.linspace(min(1.5 + 0.8 * (len(names) - 1), 4), 1.2, len(names))))


def of_metric(table: pd.DataFrame, metric: str) -> pd.DataFrame:
    return table[table["metric"] == metric]


def lines(
    table: pd.DataFrame, metric: str, x: str, hue: str | None, xlabel: str, ylabel: str, order: Sequence | None = None, scale: str | None = None,
    axes=None,
):  # fmt: skip
    """Medians over the repeats with their 95 % bootstrap intervals, ``x`` to scale: ``scale`` is "linear" or "log", by default what shows the
    values best; values that are no numbers stand evenly spaced. Of policies that coincide all can be seen: the later one's line is the
    narrower. ``order``: the values of another ``hue``, where they are not to be sorted. ``axes``: a panel to draw in, instead of a figure of its own."""
    data = of_metric(table, metric)
    if hue is None:
        options = {"marker": "o"}
    elif hue == "policy":
        options = looks(data["policy"])
        names = options["hue_order"]
        widths = widths_of(names)
        options |= {"size": "policy", "size_order": names, "sizes": widths}
    else:
        names = [f"{hue}: {_tick(value)}" for value in order or sorted(data[hue].unique())]
        data = data.assign(**{hue: f"{hue}: " + data[hue].map(_tick)})
        options = {
            "hue_order": names,
            "style_order": names,
            "palette": sns.color_palette("colorblind", len(names)),
            "markers": True,
            "dashes": True,
        }
    figure, axes = plt.subplots() if axes is None else (axes.figure, axes)
    sns.lineplot(data, x=x, y="value", hue=hue, style=hue, estimator="median", errorbar=("ci", 95), err_style="bars", ax=axes, **options)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.set_ylim(0, axes.get_ylim()[1] + 0.05 * axes.dataLim.y1)
    to_scale(axes, data[x], scale)
    if hue:
        sns.move_legend(axes, "upper left", bbox_to_anchor=(1, 1), title=None, frameon=False)
    return figure


def to_scale(axes, values: pd.Series, scale: str | None = None) -> None:
    """Give the x axis the scale that shows the values best, or the one named, and label it where something was measured, as far as the labels
    do not collide."""
    if not pd.api.types.is_numeric_dtype(values):
        return
    ticks = np.sort(values.unique().astype(float))
    spread = ticks[-1] / ticks[ticks > 0].min() if (ticks > 0).any() else 1.0
    scale = scale or ("log" if spread >= 16 and ticks[0] > 0 else "symlog" if spread >= 16 else "linear")
    axes.set_xscale(scale, **({"linthresh": ticks[ticks > 0].min()} if scale == "symlog" else {}))
    axes.minorticks_off()
    scaled = axes.xaxis.get_transform()
    low, high = scaled.transform(ticks[[0, -1]])
    if low < high:  # the margins are those of the scale, not of the numbers
        axes.set_xlim(scaled.inverted().transform([low - 0.05 * (high - low), high + 0.05 * (high - low)]))
    place = axes.transData.transform
    apart = 0.4 * axes.figure.dpi
    labelled: list[float] = []
    for tick in [ticks[0], *ticks[:0:-1]]:  # the ends first, then from the right
        if all(abs(place((tick, 0))[0] - place((other, 0))[0]) > apart for other in labelled):
            labelled.append(tick)
    axes.set_xticks(sorted(labelled), [_tick(tick) for tick in sorted(labelled)])


def _tick(value) -> str:
    return value if isinstance(value, str) else f"{value:g}"


def log_lines(table: pd.DataFrame, facets: list[tuple], y: str, ylabel: str):
    """Medians of ``y`` per policy on logarithmic axes, one panel for each facet: (x, rows chosen, title, label of x)."""
    figure, places = plt.subplots(1, len(facets), figsize=(5.6 * len(facets), 4.2), sharey=True, gridspec_kw={"wspace": 0.08})
    for axes, (x, chosen, title, xlabel) in zip(places, facets):
        data = table[chosen]
        sns.lineplot(data, x=x, y=y, hue="policy", style="policy", estimator="median", errorbar=("pi", 50), ax=axes,
                     legend=axes is places[-1], **looks(table["policy"]))  # fmt: skip
        axes.set(title=title, xlabel=xlabel, ylabel=ylabel, yscale="log")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        to_scale(axes, data[x], "log")
    sns.move_legend(places[-1], "upper left", bbox_to_anchor=(1, 1), title=None, frameon=False)
    return figure


def bars(table: pd.DataFrame, metric: str, xlabel: str, scale: str = "log"):
    """A bar per policy (or "policy, what tells it apart"): the median of ``metric`` over the repeats with its number; ``scale``: "log" or "linear"."""
    medians = of_metric(table, metric).groupby("policy")["value"].median().sort_values(ascending=False)
    figure, axes = plt.subplots()
    drawn = axes.barh(
        medians.index, medians, color=[colours().get(policy, colours().get(policy.rsplit(", ", 1)[0], "0.6")) for policy in medians.index]
    )
    axes.bar_label(drawn, [f"{float(f'{value:.3g}'):g}" for value in medians], padding=3)
    axes.set(xlabel=xlabel, xscale=scale, xlim=(medians.min() / 2, medians.max() * 4) if scale == "log" else (0, medians.max() * 1.2))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.minorticks_off()
    axes.grid(axis="y", visible=False)
    return figure


def ratio_bars(ratios: pd.DataFrame, x: str, ylabel: str, axes=None):
    """``policy_bars`` of ``ratio_table``, with a line at 1."""
    figure = policy_bars(ratios, x, ylabel, axes)
    (axes or figure.axes[0]).axhline(1, color="0.2", lw=1)
    return figure


def policy_bars(table: pd.DataFrame, x: str, ylabel: str, axes=None):
    """Bars of ``median`` with ``low``–``high`` intervals from ``ratio_table`` or ``median_table``, one colour a policy, a group for each value of ``x``.
    ``axes``: a panel to draw in, instead of a figure of its own."""
    figure, axes = plt.subplots(figsize=(8.4, 4.2)) if axes is None else (axes.figure, axes)
    policies, places = in_order(table["policy"]), list(table[x].unique())
    width = 0.8 / len(policies)
    there = [in_order(table[table[x] == place]["policy"]) for place in places]  # bars stand in the middle of their place, however many
    for number, policy in enumerate(policies):
        data = table[table["policy"] == policy].set_index(x).reindex(place for place, names in zip(places, there) if policy in names)
        at = [place + (names.index(policy) - (len(names) - 1) / 2) * width for place, names in enumerate(there) if policy in names]
        spread = [data["median"] - data["low"], data["high"] - data["median"]]
        axes.bar(at, data["median"], width, yerr=spread, label=policy, color=colours().get(policy), hatch=_hatch(policy, number),
                 edgecolor="white", linewidth=0, error_kw={"lw": 1})  # fmt: skip
    axes.set_xticks(range(len(places)), _wrapped(places, axes))
    axes.set(ylabel=ylabel)
    axes.grid(axis="x", visible=False)
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    return figure


def _wrapped(places: Sequence, axes) -> list[str]:
    """Labels of places side by side, broken at commas and wherever they would run into their neighbours."""
    inches = axes.get_position().width * axes.figure.get_figwidth() / len(places)
    letters = max(6, int(inches / 0.1))
    return ["\n".join(textwrap.fill(part, letters) for part in str(place).replace(", ", ",\n").split("\n")) for place in places]


def ratio_table(table: pd.DataFrame, metric: str, base: str, by: str) -> pd.DataFrame:
    """Ratio of each policy to the policy ``base`` under every value of ``by``: median, low, high, repeats."""
    data = of_metric(table, metric)
    rows = []
    for place in data[by].unique():
        here = data[data[by] == place].pivot(index="repeat", columns="policy", values="value")
        for policy in data["policy"].unique():
            if policy != base and policy in here and here[policy].notna().any():
                rows.append({by: place, "policy": policy, **ratio(here[policy], here[base])._asdict()})
    return pd.DataFrame(rows)


def median_table(table: pd.DataFrame, metric: str, by: str) -> pd.DataFrame:
    """The metric itself of each policy under every value of ``by``: median, low, high, repeats."""
    values = of_metric(table, metric).groupby([by, "policy"], sort=False)["value"]
    return pd.DataFrame([{by: place, "policy": policy, **median_of(found)._asdict()} for (place, policy), found in values])


def agreement(table: pd.DataFrame, x: str, y: str, hue: str, xlabel: str, ylabel: str):
    """Points of ``y`` against ``x`` on logarithmic axes, and the line on which they are equal with 15 % to either side."""
    figure, axes = plt.subplots(figsize=(5.4, 5))
    sns.scatterplot(table, x=x, y=y, hue=hue, style=hue, ax=axes)
    ends = np.array([table[[x, y]].min().min() * 0.8, table[[x, y]].max().max() * 1.25])
    axes.plot(ends, ends, color="0.4", lw=1)
    axes.fill_between(ends, ends * 0.85, ends * 1.15, color="0.4", alpha=0.15, lw=0)
    axes.set(xlabel=xlabel, ylabel=ylabel, xscale="log", yscale="log", xlim=ends, ylim=ends)
    axes.legend(title=None, frameon=False)
    return figure


def worlds(ratios: pd.DataFrame, marks: dict, ylabel: str):
    """Bars of the ratio ``median`` with its interval for every ``world``, a group of bars for every ``claim``, and what was
    published (``marks``: claim → ratio) as a line over the group; logarithmic."""
    figure, axes = plt.subplots(figsize=(9.6, 4.6))
    claims, names = list(ratios["claim"].unique()), list(ratios["world"].unique())
    width = 0.84 / len(names)
    colours = sns.color_palette("cividis", len(names))  # not those of the policies
    for number, name in enumerate(names):
        data = ratios[ratios["world"] == name].set_index("claim").reindex(claims)
        at = [place + (number - (len(names) - 1) / 2) * width for place in range(len(claims))]
        spread = [data["median"] - data["low"], data["high"] - data["median"]]
        axes.bar(at, data["median"] - 1, width, bottom=1, yerr=spread, label=name, color=colours[number], error_kw={"lw": 1},
                 hatch=_HATCHES[number % len(_HATCHES)], edgecolor="white", linewidth=0)  # fmt: skip
    for place, claim in enumerate(claims):
        axes.hlines(marks[claim], place - 0.45, place + 0.45, color="0.2", lw=1.5, ls="--", label="published" if place == 0 else None)
    axes.axhline(1, color="0.2", lw=1)
    lowest, highest = 0.9 * min(1.0, ratios["low"].min()), 1.3 * max(ratios["high"].max(), *marks.values())
    ticks = [tick for tick in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50) if lowest <= tick <= highest]
    axes.set_yscale("log")
    axes.set_ylim(lowest, highest)
    axes.set_yticks(ticks, [f"{tick:g}×" for tick in ticks])
    axes.minorticks_off()
    axes.set_xticks(range(len(claims)), claims)
    axes.set(ylabel=ylabel)
    axes.grid(axis="x", visible=False)
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    return figure
