"""The report's ratios from the rows: ``python ratios.py FOLDER`` writes FOLDER/benchmarks/ratios.json."""

import json
import sys
from pathlib import Path

from lab.studies.study import compare, frame, read


def ratios(folder: Path) -> dict[str, dict]:
    """What is compared → median, low, high, repeats; an interval of one repeat is its value."""

    def rows(name):
        return frame(read(folder / f"{name}.csv.gz").to_dict("records"))

    found = {}
    strangers = rows("one_stranger")
    for kernel in ("paged", "cascade"):
        table = strangers[strangers["kernel"] == kernel]
        found[f"M1, {kernel}, decode throughput"] = compare(table, "decode throughput", of={"divergent": 0}, to={"divergent": 1})
    attention = rows("engine_attention-llama")
    attention = attention[attention["implementation"].str.startswith("FlashAttention") & (attention["curve"] == "groups")]
    for groups in (2, 5, 10, 20, 50, 100):
        of, to = ({"policy": "paged", "groups": groups, "order": order} for order in ("round-robin", "grouped"))
        found[f"FlashAttention 3, {groups} groups, round-robin over grouped, time"] = compare(attention, "attention time", of=of, to=to)
    for heads in ("llama", "longchat"):
        table = rows(f"decode_attention-{heads}")
        table = table[table["curve"] == "groups"]
        for groups in (1, 10):
            of, to = {"policy": "paged", "groups": groups, "order": "grouped"}, {"policy": "packed", "groups": groups}
            found[f"Triton, {heads}, {groups} groups, paged over packed, time"] = compare(table, "attention time", of=of, to=to)
    told = {name: ratio._asdict() for name, ratio in found.items()}

    def single(name, table, metric, of, to):
        values = table[table["metric"] == metric].set_index(next(iter(of)))["value"]
        one, other = (values.get(next(iter(key.values()))) for key in (of, to))
        if one is not None and other is not None:
            told[name] = {"median": float(one / other), "repeats": 1}

    order = rows("steady_order")
    for (start, groups, policy), table in order.groupby(["engine start", "groups", "policy"]):
        for metric in ("throughput", "decode step", "time to first token, p99"):
            single(f"{start} start, {groups} groups, {policy}, rows by prefix over engine's, {metric}", table, metric, {"rows": "prefix"}, {"rows": "engine"})
    for (start, groups, by), table in order.groupby(["engine start", "groups", "rows"]):
        single(f"{start} start, {groups} groups, rows by {by}, never stop over FCFS, p99", table, "time to first token, p99",
               {"policy": "Feather (never stop)"}, {"policy": "FCFS"})  # fmt: skip
    for (groups, kernel), table in rows("steady_arms").groupby(["groups", "kernel"]):
        single(f"{groups} groups, {kernel}, strict stop over FCFS, throughput", table, "throughput", {"policy": "Feather (strict stop)"}, {"policy": "FCFS"})
    return told


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    (folder / "benchmarks" / "ratios.json").write_text(json.dumps(ratios(folder), indent=1) + "\n", encoding="utf-8")
