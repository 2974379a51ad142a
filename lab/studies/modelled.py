"""The model held against what has been published, each number with the vLLM version that it was measured on, and so with
cascade attention on or off; and its structure against measured steps of a CPU."""

from dataclasses import dataclass, replace

import pandas as pd

from lab import figures
from lab.engines.arms import ARMS, Arm
from lab.engines.modelled import ModelledEngine
from lab.llm import MODELS
from lab.model import calibration
from lab.model.hardware import DEVICES
from lab.studies.scale import Setting
from lab.studies.study import Study

_PATIENT = ARMS["Feather (threshold, patient)"]
_PAPER = "arXiv 2605.06046, vLLM 0.14.0"
_REPLICATION = "independent replication on the same card"


@dataclass(frozen=True)
class Published:
    what: str
    value: float
    unit: str
    source: str
    of: tuple[Setting, Arm]
    """the setting and the arm it was measured with"""
    to: tuple[Setting, Arm] | None = None
    """what the ratio is to; None: the number is a throughput"""
    metric: str = "throughput"


def published(requests: int = 1000) -> list[Published]:
    """Every published number we know of that is about time on the RTX 6000 Ada. Where a source does not say how many requests
    or decode tokens, ``requests`` and the setting's own numbers are an assumption. All requests are there at the start, also where
    the paper sweeps their rate."""
    one = Setting(groups=1, prefix_tokens=10_000, requests=requests)
    two = Setting(groups=2, prefix_tokens=10_000, requests=requests)
    e1 = Setting(requests=requests, decode_tokens=200)
    return [
        Published("one shared 10K prefix, 500 at a time", 2668, "tok/s", f"{_REPLICATION}, vLLM 0.14.0 (cascade)", (one, ARMS["FCFS"])),
        Published("one shared 10K prefix, 500 at a time", 567, "tok/s", f"{_REPLICATION}, vLLM 0.22.1 (no cascade)", (_paged(one), ARMS["FCFS"])),
        Published("one prefix over two (M1)", 2, "×", f"{_PAPER} (cascade)", (one, ARMS["FCFS"]), (two, ARMS["FCFS"]), "decode throughput"),
        Published("one prefix over two (M1)", 1.06, "×", f"{_REPLICATION}, vLLM 0.22.1 (no cascade)", (_paged(one), ARMS["FCFS"]),
                  (_paged(two), ARMS["FCFS"]), "decode throughput"),
        Published("Feather over FCFS, 5 groups of 5K (E1)", 4, "×", f"{_PAPER} (cascade)", (e1, _PATIENT), (e1, ARMS["FCFS"])),
        Published("Feather, 5 groups of 5K (E4)", 3800, "tok/s", f"{_PAPER} (cascade)", (e1, _PATIENT)),
        Published("Feather over FCFS, LongChat-13B (E6)", 22, "×", f"{_PAPER} (cascade)", (_longchat(requests), _PATIENT),
                  (_longchat(requests), ARMS["FCFS"])),
    ]  # fmt: skip


def residuals(numbers: list[Published], seed: int = 1) -> pd.DataFrame:
    """The published numbers beside the model's, and the model's over them."""
    known: dict = {}

    def modelled(setting: Setting, arm: Arm, metric: str) -> float:
        if (key := (setting, arm.name)) not in known:
            engine = ModelledEngine(setting.model, setting.batch, device=setting.device, kernel=setting.kernel)
            prefixes = setting.prefixes()
            engine.warm(prefixes)
            known[key] = engine.run(setting.workload(prefixes, seed), arm).metrics()
        return known[key][metric][0]

    rows = []
    for number in numbers:
        value = modelled(*number.of, number.metric)
        if number.to:
            value /= modelled(*number.to, number.metric)
        rows.append({"what": number.what, "policy": number.of[1].name, "source": number.source, "published": number.value, "modelled": value, "unit": number.unit,
                     "modelled / published": value / number.value})  # fmt: skip
    return pd.DataFrame(rows)


def keep(study: Study, numbers: pd.DataFrame) -> None:
    """Keep what ``residuals`` returned as rows of the study."""
    for row in numbers.itertuples():
        told = {"what": row.what, "source": row.source}
        study.row(row.policy, told, "modelled over published", row.modelled / row.published, "×", 0, seed=1)
    study.rows()


def constants() -> pd.DataFrame:
    """What the model is given of every device, with the source of each number; bytes, seconds and FLOP."""
    return pd.DataFrame([
        {"device": device.name, "constant": name, "value": f"{getattr(device, name):g}", "source": source}
        for device in DEVICES.values() for name, source in device.sources.items()
    ])  # fmt: skip


# -- a CPU's steps -----------------------------------------------------------------------------------------------------


def cpu_steps() -> pd.DataFrame:
    """Measured and modelled time (ms) of the CPU's steps, and whether a step was "fitted" or "held out" (column points)."""
    rows = pd.read_csv(calibration.STEPS)
    table = calibration.predicted(calibration.this_cpu(rows), rows)
    return table.assign(points=table["held_out"].map({False: "fitted", True: "held out"}), on=rows["device"].iloc[0])


def cpu_figure(study: Study, table: pd.DataFrame) -> None:
    """Modelled against measured time of every step."""
    error = table["error"].abs().groupby(table["points"]).mean()
    study.figure(
        figures.agreement(table, "step_ms", "model_ms", hue="points", xlabel="measured, ms", ylabel="modelled, ms"),
        "sim_cpu_steps",
        f"The step model is off by {error['held out']:.0%} on steps it was not fitted to",
        f"Engine steps measured on {table['on'].iloc[0]}, paged attention, against the model fitted to "
        f"{(table['points'] == 'fitted').sum()} of them (mean error {error['fitted']:.0%}) · band: 15 % to either side",
        "The held-out points have group counts, prefix lengths and batch sizes that were not fitted.",
        measured=False,  # not on the study's device: the setting says on which
    )


def cpu_errors(table: pd.DataFrame) -> pd.DataFrame:
    """Relative errors of the fitted and the held-out steps, in percent."""
    return table.groupby("points")["error"].agg(
        **{"mean of |error|, %": lambda error: 100 * error.abs().mean(), "mean error, %": lambda error: 100 * error.mean(),
           "worst, %": lambda error: 100 * error.abs().max(), "steps": "count"}
    )  # fmt: skip


def worst_steps(table: pd.DataFrame, count: int = 8) -> pd.DataFrame:
    """The steps that the model gets most wrong."""
    return (
        table.reindex(table["error"].abs().sort_values(ascending=False).index)
        .head(count)
        .drop(columns=["held_out", "on"])
        .set_index("points")
    )


# -- in words ----------------------------------------------------------------------------------------------------------


def found_in_words(numbers: pd.DataFrame, steps: pd.DataFrame) -> str:
    """Where the model is right and where it is wrong, in Markdown, every number of it computed."""
    off = numbers["modelled / published"]
    worst = numbers.loc[off.apply(lambda ratio: max(ratio, 1 / ratio)).idxmax()]
    without = numbers[numbers["source"].str.contains("no cascade")]
    cliff, absolute = (without[without["unit"] == unit].iloc[0] for unit in ("×", "tok/s"))
    bound = _unshared_bound()
    held_out = steps[steps["points"] == "held out"]["error"].abs()
    return f"""* **On a CPU**, fitted, the model predicts steps that it has not seen with a mean error of {held_out.mean():.0%} (worst: {held_out.max():.0%}).
* **On the GPU**, unfitted, it gives from {off.min():.2f} to {off.max():.2f} times what was published. The largest disagreement is
  “{worst["what"]}” ({worst["source"]}): {worst["modelled"]:.4g} where {worst["published"]:g} {worst["unit"]} were published.
* **Without cascade attention** it says {absolute["modelled"]:.0f} tok/s for one shared prefix where {absolute["published"]:.0f} were measured,
  {absolute["modelled / published"]:.2f} times that, and puts the cliff from one prefix to two at {cliff["modelled"]:.2f}× ({cliff["published"]:g}× was measured). If
  every row fetched its whole context from DRAM, the data sheet's rate would allow {bound:.0f} tok/s for 500 requests on 10K tokens; the measured
  number is {absolute["published"] / bound:.0%} of that. The model lets the rows of a wave share what they read through the L2 cache; the real kernel on this
  card seems to get little of that, if both measure the same thing."""


def _unshared_bound(batch: int = 500, prefix_tokens: int = 10_000) -> float:
    """tok/s that the RTX 6000 Ada's memory rate allows Llama-3-8B if a step reads the weights once and every row's whole context."""
    card, llama = DEVICES["rtx-6000-ada"], MODELS["llama-3-8b"]
    context = prefix_tokens + 20 + 100 / 2  # prefix, suffix, the middle of the decoding
    return batch * card.memory_rate / (batch * context * llama.kv_bytes_per_token + llama.body_bytes + llama.head_bytes)


def _paged(setting: Setting) -> Setting:
    return replace(setting, kernel="paged")


def _longchat(requests: int) -> Setting:
    return Setting(model="longchat-13b", requests=requests)
