"""Run as a program: a very small study on the real engine, its findings as JSON on the last line."""

import csv
import json
import sys
from pathlib import Path


def main(out: Path) -> None:
    from feather.options import KERNELS
    from lab import figures
    from lab.engines import make_engine
    from lab.engines.arms import ARMS
    from lab.stats import Ratio
    from lab.studies.evaluation import over_groups
    from lab.studies.study import Study
    from lab.workloads import even_sizes, grouped, make_prefixes, unshared

    engine = make_engine("cpu", max_batch=8, kv_gib=1, kv_tokens=20_000)
    from feather.vllm.attention import backend  # not before the engine is made: vLLM stumbles over what numba loads

    backend.LEAST_READ = 0  # share in short steps, too
    prefixes = make_prefixes(4, 1024)
    engine.warm(prefixes)
    found = {}
    for arm in ARMS.values():
        run = engine.run(grouped(prefixes, even_sizes(16, 4), seed=1, decode_tokens=8), arm)
        metrics = run.metrics()
        found[f"groups, {arm.name}"] = metrics["groups per batch"][0]
        found[f"neighbours, {arm.name}"] = metrics["like neighbours"][0]
    found["tokens"], found["decode tokens"] = run.output_tokens, int(run.decode_rows.sum())
    found["warm hits"] = metrics["prefix hits"][0]
    found["cold hits"] = engine.run(unshared(4, 200, seed=1), ARMS["FCFS"]).metrics()["prefix hits"][0]
    engine.warm(prefixes)
    found["kv tokens"] = engine.kv_tokens
    try:
        engine.use_kernel("flash")
    except ValueError as error:
        found["refused"] = str(error)
    for kernel in KERNELS:
        engine.use_kernel(kernel)
        runs = [engine.run(grouped(prefixes[: len(sizes)], sizes, seed=1, decode_tokens=4), ARMS["FCFS"]) for sizes in ([4], [2, 2])]
        found[kernel] = [run.metrics()["cascade steps"][0] for run in runs]
    engine.use_kernel("paged", sorted_rows=True)
    run = engine.run(grouped(prefixes, even_sizes(16, 4), seed=1, decode_tokens=8), ARMS["FCFS"])
    found["neighbours, sorted"] = run.metrics()["like neighbours"][0]
    study = Study("00_test", engine, out)
    conditions = over_groups(engine, prefixes, [1, 2], 8, 4, arms=["FCFS", "Feather (threshold)"])
    table = study.measure(conditions, repeats=2, kernels=["cascade", "paged"])
    found["told"] = table[["kernel", "rows"]].drop_duplicates().to_numpy().tolist()
    table = table[table["kernel"] == "cascade"]
    figure = figures.lines(table, "throughput", x="groups", hue="policy", xlabel="x", ylabel="y")
    study.figure(figure, "figure", "a finding", "a setting", "a caption")
    found["claim"] = study.claim("M1", Ratio(1.0, 0.9, 1.1, 2), "a reason")
    with (out / "results" / "00_test.csv").open(encoding="utf-8") as file:
        found["columns"] = next(csv.reader(file))
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
