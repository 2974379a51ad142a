"""The paper's claims at a glance: the paper's factors, this run's ratios and those recorded on other devices in one picture."""

import io
import os
import textwrap
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FixedLocator, NullLocator

from lab import figures
from lab.artifact.recorded import engine, told
from lab.claims import CLAIMS
from lab.studies.study import DPI

NAME = "claims"
MARKERS = "os^vPXp*hd"  # the diamond is the paper's

_WIDTH = 4.3  # inches of the axes: narrow, so that a phone need not make the letters small
_NAMES = 2.45  # inches of the names to their left
_LETTER = 0.083  # inches, of the numbers beside the marks
_SLOT = 0.2  # inches a mark
_GAP = 0.6  # slots between two claims
_BREAK = 0.8  # decades without a number that the axis leaves out
_TICKS = ((1, 2, 5), (1, 3), (1,))  # in each decade, the more the better
_BANDS = ("0.955", "white")


@dataclass(frozen=True)
class Source:
    """A run: what the legend calls it, how its marks look, and its ratios."""

    label: str
    rows: pd.DataFrame
    colour: tuple
    marker: str
    modelled: bool


@dataclass(frozen=True)
class Slot:
    """A mark's place: how far from the top (in slots), of which claim, and what stands there (None: the paper's factor)."""

    y: float
    claim: str
    row: object = None
    source: Source | None = None
    note: str = ""


def compared() -> list[str]:
    """The claims that the picture shows, in the paper's order: those about a ratio with a factor to hold it against."""
    return [claim.id for claim in CLAIMS.values() if claim.unit == "×" and claim.factor is not None]


def ratios(claims: pd.DataFrame) -> pd.DataFrame:
    """The rows that the picture can show: of its claims, tested, with a ratio above 0."""
    shown = claims["claim"].isin(compared()) & (claims["verdict"] != "not run here")
    return claims[shown & (pd.to_numeric(claims["ours"], errors="coerce") > 0)]


def write_overview(out: Path, claims: pd.DataFrame, kept: pd.DataFrame, run: dict) -> dict | None:
    """Write ``figures/claims.png`` and ``.pdf`` of a run's claims and those recorded elsewhere; returns name, caption and
    alternative text. Where the run has no ratio there is no picture, and one from before is removed."""
    here = ratios(claims)
    paths = [out / "figures" / f"{NAME}.{suffix}" for suffix in ("png", "pdf")]
    if here.empty:
        for path in paths:
            path.unlink(missing_ok=True)
        return None
    all_sources = sources(here, ratios(kept), run)
    with plt.rc_context():
        figures.style()
        figure = draw(all_sources, run)
        paths[0].parent.mkdir(parents=True, exist_ok=True)
        for path in paths:
            _save(figure, path)
    caption = (
        "The paper's claims about ratios at a glance: the factor that each is held against (diamond), this run's ratio and those recorded "
        "elsewhere, with 95 % intervals, on a logarithmic axis; right of the line at 1 is in favour of the claim. Hollow marks are modelled, "
        "not measured. A claim with a diamond only has no ratio yet."
    )
    return {"name": NAME, "caption": caption, "alt": " ".join([caption, *_told(all_sources)])}


def _save(figure: Figure, path: Path) -> None:
    """There whole or as it was before, like all that a report is made of."""
    drawn = io.BytesIO()
    figure.savefig(drawn, format=path.suffix[1:], bbox_inches="tight", pad_inches=0.08, dpi=DPI)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(drawn.getvalue())
    os.replace(partial, path)


def _told(all_sources: list[Source]) -> list[str]:
    """A sentence a source, for those who do not see the picture."""
    numbers = [", ".join(f"{row.claim} {told(row.ours)}×" for row in source.rows.itertuples()) for source in all_sources]
    return [f"{source.label[0].upper()}{source.label[1:]}: {found}." for source, found in zip(all_sources, numbers)]


def sources(here: pd.DataFrame, kept: pd.DataFrame, run: dict) -> list[Source]:
    """This run, then the recorded ones, measured before modelled; measured and modelled rows of one run apart."""
    parts = [("this run", run["device"], rows, backend) for backend, rows in here.groupby("backend", sort=False)]
    of_kept = kept.groupby(["run", "run_device", "backend"], sort=False)
    for (_, device, backend), rows in sorted(of_kept, key=lambda part: part[0][2] == "sim"):
        parts.append(("recorded", device, rows, backend))
    colours = sns.color_palette("colorblind", 10)
    made = []
    for number, (which, device, rows, backend) in enumerate(parts):
        modelled = backend == "sim"
        name = "modelled GPU, not measured" if modelled else f"{device}, measured"
        rows = rows.astype(dict.fromkeys(("ours", "low", "high"), float))
        made.append(Source(f"{which}: {name}", rows, colours[number % 10], MARKERS[number % len(MARKERS)], modelled))
    return made


def slots(all_sources: list[Source]) -> list[Slot]:
    """One under the other: each claim's factor of the paper, then the ratios of every source."""
    placed, y = [], 0.0
    for claim in compared():
        placed.append(Slot(y, claim))
        y += 1
        for source in all_sources:
            rows = source.rows[source.rows["claim"] == claim]
            several = rows["device"].nunique() > 1
            for row in rows.itertuples():
                placed.append(Slot(y, claim, row, source, f" {row.device.partition(',')[0]}" if several else ""))
                y += 1
        y += _GAP
    return placed


def spans(values) -> list[tuple[float, float]]:
    """What the axis shows of the positive ``values``: from the least to the greatest, in two parts where numbers beyond 20 stand
    apart from the others by a gap."""
    values = np.unique(np.asarray(values, float))
    gaps = np.diff(np.log10(values))
    parts = [values]
    if len(gaps) and gaps.max() > _BREAK and values[gaps.argmax()] >= 10:
        parts = np.split(values, [gaps.argmax() + 1])
    return [(part[0] / 1.35, part[-1] * 1.35) for part in parts]


def draw(all_sources: list[Source], run: dict) -> Figure:
    placed = slots(all_sources)
    factors = [CLAIMS[claim].factor for claim in compared()]
    numbers = pd.concat([source.rows[["ours", "low", "high"]] for source in all_sources]).to_numpy().ravel()
    parts = spans([1.0, *factors, *numbers[numbers > 0]])
    decades = [max(np.log10(high / low), 0.5) for low, high in parts]
    height = placed[-1].y + 1 + _GAP
    figure = Figure(figsize=(_WIDTH, height * _SLOT))
    places = figure.subplots(1, len(parts), sharey=True, squeeze=False, width_ratios=decades, gridspec_kw={"wspace": 0.08})[0]
    figure.subplots_adjust(left=0, right=1, bottom=0, top=1)
    for axes, (low, high) in zip(places, parts):
        _axis(axes, low, high, height)
        _bands(axes, placed)
        for slot in placed:
            _mark(axes, slot, low, high)
    places[0].axvline(1, color="0.2", lw=1, zorder=1)
    _names(places[0], placed)
    _broken(places)
    inch, left = 1 / figure.get_figheight(), -_NAMES / _WIDTH
    figure.text(left, 1 + 0.12 * inch, "The paper's claims at a glance", fontweight="bold", fontsize=12, va="bottom")
    figure.text(0.5, -0.36 * inch, "ratio in favour of the claim, logarithmic", fontsize=9.5, ha="center", va="top")
    lines = _legend(figure, all_sources, left, -0.62 * inch)
    figures.sign(figure, _provenance(all_sources, run), y=-(0.75 + 0.19 * lines) * inch)
    signature = figure.texts[-1]
    signature.set_x(left)
    signature.set_text(textwrap.fill(signature.get_text().replace("Feather ", "Feather\u00a0"), 116))
    if "smoke" in run["profiles"]:
        signature.set_text("Smoke sizes: the numbers of this run mean nothing.\n" + signature.get_text())
    return figure


def _axis(axes: Axes, low: float, high: float, height: float) -> None:
    axes.set(xscale="log", xlim=(low, high), ylim=(height - _GAP, -_GAP))
    ticks = _ticks(axes, low, high)
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(ticks, [f"{tick:g}×" for tick in ticks], fontsize=9.5)
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", color="0.9")
    axes.tick_params(axis="y", left=False, labelleft=False)


def _ticks(axes: Axes, low: float, high: float) -> list[float]:
    """As many as have room for their labels."""
    decade = axes.get_position().width * _WIDTH / np.log10(high / low)
    for factors in _TICKS:
        ticks = [factor * 10.0**power for power in range(-3, 7) for factor in factors]
        ticks = [tick for tick in ticks if 1.15 * low <= tick <= high / 1.15]  # a label at the end would run into the next part's
        least = min(np.diff([*np.log10(factors), 1.0])) * decade
        if ticks and least > max(len(f"{tick:g}×") for tick in ticks) * _LETTER + 0.12:
            break
    return ticks or [low]


def _bands(axes: Axes, placed: list[Slot]) -> None:
    """Every other claim on grey, and through each a faint line at the paper's factor."""
    for number, claim in enumerate(compared()):
        of_claim = [slot.y for slot in placed if slot.claim == claim]
        top, bottom = of_claim[0] - 0.5 - _GAP / 2, of_claim[-1] + 0.5 + _GAP / 2
        axes.axhspan(top, bottom, color=_BANDS[number % 2], lw=0, zorder=0)
        axes.vlines(CLAIMS[claim].factor, of_claim[0], bottom, color="0.45", lw=1, ls=(0, (2, 2)), zorder=1)


def _mark(axes: Axes, slot: Slot, low: float, high: float) -> None:
    claim = CLAIMS[slot.claim]
    if slot.row is None:
        value = left = right = claim.factor
        text, look = claim.paper, {"marker": "D", "ms": 6, "color": "0.25"}
    else:
        value, colour = slot.row.ours, slot.source.colour
        left, right = max(slot.row.low, low), slot.row.high
        if left < high and right > low:
            axes.plot([left, right], [slot.y, slot.y], color=colour, lw=1.6, solid_capstyle="butt", zorder=2)
        face = "white" if slot.source.modelled else colour
        text, look = f"{told(value)}×{slot.note}", {"marker": slot.source.marker, "ms": 6.5, "mec": colour, "mfc": face, "mew": 1.5}
    if not low <= value <= high:  # it is in the other part of a broken axis
        return
    axes.plot(value, slot.y, zorder=3, **look)
    inches = axes.get_position().width * _WIDTH / np.log(high / low)
    after, before = np.log(high / right) * inches, np.log(left / low) * inches
    side = "left" if after > len(text) * _LETTER + 0.1 or after > before and axes is axes.figure.axes[0] else "right"
    behind = withStroke(linewidth=3, foreground=_BANDS[compared().index(slot.claim) % 2])  # else lines strike the letters through
    axes.annotate(text, (right if side == "left" else left, slot.y), xytext=(7 if side == "left" else -7, 0), textcoords="offset points",
                  fontsize=9, ha=side, va="center_baseline", color="0.25", annotation_clip=False, path_effects=[behind], zorder=2.5)  # fmt: skip


def _names(axes: Axes, placed: list[Slot]) -> None:
    for claim in compared():
        y = next(slot.y for slot in placed if slot.claim == claim)
        at = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "va": "center_baseline", "annotation_clip": False}
        axes.annotate(claim, (0, y), xytext=(-72 * _NAMES, 0), fontsize=10, fontweight="bold", **at)
        axes.annotate(CLAIMS[claim].short, (0, y), xytext=(-72 * _NAMES + 32, 0), fontsize=10, **at)


def _broken(places) -> None:
    """Two strokes where the axis leaves out a part."""
    slant = {"marker": [(-1, -1.6), (1, 1.6)], "ms": 7, "ls": "none", "color": "0.4", "mew": 1.2, "clip_on": False}
    for left, right in zip(places, places[1:]):
        left.spines["right"].set_visible(False)
        right.spines["left"].set_visible(False)
        for end in (0, 1):
            left.plot(1, end, transform=left.transAxes, **slant)
            right.plot(0, end, transform=right.transAxes, **slant)


def _legend(figure: Figure, all_sources: list[Source], x: float, y: float) -> int:
    """The legend with its upper left corner there; returns how many lines it has."""
    marks = [Line2D([], [], ls="none", marker="D", ms=6, color="0.25")]
    for source in all_sources:
        face = "white" if source.modelled else source.colour
        marks.append(Line2D([], [], color=source.colour, lw=1.6, marker=source.marker, ms=6.5, mfc=face, mec=source.colour, mew=1.5))
    labels = ["the paper", *(textwrap.fill(source.label, 76) for source in all_sources)]
    figure.legend(marks, labels, loc="upper left", bbox_to_anchor=(x, y), frameon=False, fontsize=9.5, borderpad=0, borderaxespad=0,
                  labelspacing=0.35)  # fmt: skip
    return sum(label.count("\n") + 1 for label in labels)


def _provenance(all_sources: list[Source], run: dict) -> dict[str, str]:
    """Of this run; of a modelled one the devices that it modelled."""
    here = [source for source in all_sources if source.label.startswith("this run")]
    modelled = sorted({device for source in here for device in source.rows["device"]})
    return {
        "backend": run["backend"],
        "device": " and ".join(modelled) if run["backend"] == "sim" else run["device"],
        "engine": engine(run),
        "revision": " and ".join(run["revisions"]),
    }
