"""The model held against what has been published, each number with the vLLM version that it was measured on, and so with
cascade attention on or off."""

from dataclasses import dataclass, replace

import pandas as pd

from lab.engines.arms import ARMS, Arm
from lab.engines.modelled import ModelledEngine
from lab.studies.scale import Setting

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


def _paged(setting: Setting) -> Setting:
    return replace(setting, kernel="paged")


def _longchat(requests: int) -> Setting:
    return Setting(model="longchat-13b", requests=requests)
