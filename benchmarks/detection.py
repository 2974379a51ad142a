"""What finding shared prefixes costs per engine step: ``python -m benchmarks.detection [--json]``.

The step and its arms are those of ``lab.studies.detection``; SGLang's code is in requirements/peers.txt. "Feather in SGLang" is all that Feather
does in a step behind SGLang's seam: reconcile with its queue, hash who came, choose, and choose again behind who was admitted. SGLang 0.5.23
(``requirements/other_sglang.sh 0.5.23 -m benchmarks.detection``) has two policies more, and its FCFS matches prefixes too.
"""

import pandas as pd

from benchmarks.timing import main, spread
from feather.sglang import check_version
from lab.studies.detection import measure

LENGTHS, WAITING, STEPS = (5_000, 10_000, 20_000), 500, 20
DECODE_MS = 20.0
"""a decode step of a large model on a GPU, assumed: what the shares of a step (M7) are told against"""
KEYS = {
    "SGLang LPM": "sglang_lpm_ms",
    "SGLang LPM, cut off": "sglang_lpm_cut_off_ms",
    "SGLang DFS-weight": "sglang_dfs_weight_ms",
    "SGLang HRRN": "sglang_hrrn_ms",
    "SGLang HRRN, cut off": "sglang_hrrn_cut_off_ms",
    "SGLang shortest prefill first": "sglang_shortest_prefill_first_ms",
    "SGLang FCFS": "sglang_fcfs_ms",
    "Feather in SGLang": "feather_in_sglang_ms",
    "Feather, from tokens": "feather_tokens_ms",
    "Feather, from block hashes": "feather_hashes_ms",
}


def figures(table: pd.DataFrame) -> dict:
    there = {policy: key for policy, key in KEYS.items() if policy in set(table["policy"])}
    spreads = {key: spread(table[table["policy"] == policy]["ms"], digits=6) for policy, key in there.items()}
    medians = {key: value["median"] for key, value in spreads.items()}
    ratios = {f"ratio_{name}": round(medians[f"sglang_{name}_ms"] / medians["feather_hashes_ms"], 1) for name in ("lpm", "dfs_weight")}
    ratios["ratio_lpm_in_sglang"] = round(medians["sglang_lpm_ms"] / medians["feather_in_sglang_ms"], 1)
    shares = {key.replace("_ms", "_share"): round(ms / (ms + DECODE_MS), 4) for key, ms in medians.items()}
    return {**medians, **ratios, **shares, "spread": spreads}


def run() -> dict:
    version = check_version()
    lengths = {length: figures(measure(length, WAITING, STEPS, cut_off=True, adapter=True)) for length in LENGTHS}
    return {
        **{key: value for key, value in lengths[10_000].items() if key != "spread"},
        "sglang_version": version, "waiting": WAITING, "decode_ms_assumed": DECODE_MS, "lengths": [{"prompt_tokens": n, **row} for n, row in lengths.items()],
    }  # fmt: skip


def show(found: dict) -> None:
    columns = [key for key in KEYS.values() if key in found]
    print(f"one steady-state step, {found['waiting']} waiting, SGLang {found['sglang_version']}; medians, ms")
    print(
        f"{'prompt':>8}"
        + "".join(f"{key.removesuffix('_ms'):>27}" for key in columns)
        + f"{'LPM ratio':>12}{'DFS ratio':>12}{'in SGLang':>12}"
    )
    for row in found["lengths"]:
        values = "".join(f"{row[key]:>27.4f}" for key in columns)
        print(
            f"{row['prompt_tokens']:>8}{values}{row['ratio_lpm']:>12.0f}{row['ratio_dfs_weight']:>12.0f}{row['ratio_lpm_in_sglang']:>12.0f}"
        )
    print(f"share of a scheduling call in itself and a decode step of {found['decode_ms_assumed']:.0f} ms (assumed)")
    for row in found["lengths"]:
        print(f"{row['prompt_tokens']:>8}" + "".join(f"{row[key.replace('_ms', '_share')]:>27.4f}" for key in columns))


if __name__ == "__main__":
    main("benchmarks.detection", __doc__.splitlines()[0], run, show)
