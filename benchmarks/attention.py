"""What row order and shared-prefix attention are worth on this CPU: ``python -m benchmarks.attention [--json] [--only layer,steady,...]``.

One layer by itself, then vLLM's real engine: in steady state (closed loop of 64 clients, decode 16 to 48 tokens, the transient cut), with a full
queue (128 requests at once), one stranger among 32 requests, from a cold prefix cache, with nothing shared, with short prefixes, and with the questions on L-Eval's documents asked together
(where ``FEATHER_DATA`` has them). 8 groups of 8 000 tokens, batch 32, prefixes in the cache. Arms and kernels are interleaved in each repeat; ratios are
medians over repeats, each with its 95 % bootstrap interval.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from itertools import count
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from benchmarks.timing import main
from lab import machine
from lab.engines import make_engine
from lab.engines.arms import ARMS
from lab.engines.run import Run
from lab.instrument import Rung
from lab.llm import TINY_LLAMA
from lab.stats import median_of, ratio
from lab.steady import steady
from lab.studies import datasets
from lab.studies.datasets import Reading
from lab.workloads import Workload, even_sizes, grouped, make_prefixes

GROUPS, PREFIX, BATCH, CLIENTS = 8, 8000, 32, 64
FIRST = "tokens in the first second after the last prompt"


@dataclass(frozen=True)
class Cell(Rung):
    """One thing to run: a workload under an arm, a kernel and an order of rows."""

    workload: str = "steady"

    @property
    def name(self) -> str:
        return f"{self.workload}, {self.rung}"


STOPPING = ("Feather", "Feather (strict stop)", "Feather (bandit alone)", "oracle (stop)")
CELLS = {
    "steady": [
        Cell("FCFS", "paged"),
        Cell("FCFS", "paged", sorted_rows=True),
        Cell("FCFS", "packed"),
        Cell("Feather", "packed"),
        Cell("Feather (never stop)", "packed"),
    ],
    "cascade": [
        Cell("FCFS", "cascade"),
        Cell("Feather (never stop)", "cascade"),
        *(Cell(arm, "cascade") for arm in STOPPING),
    ],
    "queue": [
        Cell("FCFS", "paged", workload="full queue"),
        Cell("FCFS", "packed", workload="full queue"),
        Cell("Feather (never stop)", "paged", workload="full queue"),
        Cell("Feather (never stop)", "packed", workload="full queue"),
    ],
    "stranger": [
        Cell("FCFS", kernel, workload=f"{strangers} strangers") for kernel in ("paged", "cascade", "packed") for strangers in (0, 1)
    ],
    "unshared": [
        Cell("FCFS", kernel, rows, workload=workload)
        for workload in ("unshared", "short prefixes")
        for kernel, rows in (("paged", False), ("paged", True), ("cascade", False), ("packed", False))
    ],
}

CELLS["cold"] = [Cell("FCFS", kernel, workload="from cold") for kernel in ("paged", "packed")]
CELLS["documents"] = [
    Cell(arm, kernel, workload="documents")
    for arm, kernel in (("FCFS", "paged"), ("FCFS", "packed"), ("Feather (never stop)", "paged"), ("Feather (never stop)", "packed"))
]

PARTS = ["layer", "equal", "noise", *CELLS]  # and "exact", which "noise" asks for

LEVAL = ("coursera", "financial_qa", "paper_assistant", "quality", "scientific_qa", "tpo")


@cache
def reading() -> Reading | None:
    """Two documents of each of L-Eval's files, cut to this machine as notebook 24 cuts them; None where they are not here."""
    data = datasets.load([f"leval/{name}.jsonl" for name in LEVAL], 2, "mooncake/conversation_trace.jsonl")
    return None if data.missing else Reading(data.documents, 8000, 128, (8, 32))


_SALTS = count()  # every run asks anew: a question must not find itself in the cache


def workloads(requests: int, rng_seed: int) -> dict[str, Callable[[], Workload]]:
    prefixes, single, short = make_prefixes(GROUPS, PREFIX), make_prefixes(BATCH, PREFIX // 2, seed=7), make_prefixes(GROUPS, 256, seed=8)
    return {
        "steady": lambda: replace(grouped(prefixes, even_sizes(requests, GROUPS), rng_seed, decode_tokens=(16, 48)), clients=CLIENTS),
        "full queue": lambda: grouped(prefixes, even_sizes(128, GROUPS), rng_seed, decode_tokens=32),
        "0 strangers": lambda: grouped(prefixes[:1], [BATCH], rng_seed, decode_tokens=64),
        "1 strangers": lambda: grouped(prefixes[:2], [BATCH - 1, 1], rng_seed, decode_tokens=64),
        "unshared": lambda: grouped(single, [1] * BATCH, rng_seed, decode_tokens=96),
        "short prefixes": lambda: grouped(short, even_sizes(128, GROUPS), rng_seed, decode_tokens=96),
        "from cold": lambda: replace(grouped(prefixes[:1], [BATCH], rng_seed, decode_tokens=64), warm=False),
        "documents": lambda: reading().workload(rng_seed, next(_SALTS)),
    }


def layer(repeats: int) -> dict:
    """One layer's attention of 32 rows on one prefix, in ms, beside what bounds it: one read of the prefix, and the multiplications."""
    from feather.vllm.attention.plan import make_plan
    from lab.kernels.batch import HEADS, even
    from lab.kernels.cpu_attention import CpuAttention
    from lab.kernels.pool import Pool

    heads = HEADS["tiny-llama"]
    groups = (1, GROUPS)
    batches = {count: even(BATCH, count, "grouped", PREFIX, 32) for count in groups}
    pool = Pool(heads, getattr(torch, machine.cpu_dtype()), "cpu", 32, GROUPS, PREFIX, BATCH, 32)
    attention = CpuAttention(pool)
    taken: dict[str, list[float]] = {}
    calls = {}
    for number, batch in batches.items():
        for kernel in ("paged", "packed"):
            table = pool.table(batch, 0)
            attend = attention.prepare(kernel, batch, table)
            queries = pool.queries(BATCH, 0)
            calls[f"{kernel}, {number} groups"] = lambda attend=attend, queries=queries: attend(queries)
    shuffled = even(BATCH, GROUPS, "shuffled", PREFIX, 32)
    attend, queries = attention.prepare("paged", shuffled, pool.table(shuffled, 0)), pool.queries(BATCH, 0)
    calls["paged, 8 groups, shuffled rows"] = lambda: attend(queries)
    lengths, one_each = np.array(batches[GROUPS].lengths), np.ones(BATCH, dtype=np.int64)
    tables = pool.table(shuffled, 0).numpy()
    calls["plan of a step, 8 groups, shuffled rows"] = lambda: make_plan(tables, lengths, one_each, 32, 1, False, 1, 1)
    flush = torch.empty(64 * 2**20, dtype=torch.uint8)
    prefix = PREFIX * pool.token_bytes
    source = torch.empty(prefix // 4)
    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    calls["read"] = lambda: source.sum()
    formats = dict.fromkeys(("float32", machine.cpu_dtype()))  # without AVX-512 there is no fast product in bfloat16
    for dtype in (getattr(torch, name) for name in formats):
        x, y = a.to(dtype), b.to(dtype)
        calls[f"product, {dtype}".replace("torch.", "")] = lambda x=x, y=y: torch.matmul(x, y)
    for repeat in range(-2, repeats):
        for name, call in calls.items():
            flush.fill_(repeat & 1)  # what a layer reads is not in the cache from the one before
            start = time.perf_counter()
            call()
            if repeat >= 0:
                taken.setdefault(name, []).append((time.perf_counter() - start) * 1e3)
    flop = 2 * 2 * BATCH * heads.query * heads.size * PREFIX
    for dtype in formats:
        rate = 2 * 2048**3 / np.median(taken[f"product, {dtype}"])
        taken[f"limit: multiplications in {dtype}"] = [flop / rate]
    found = {name: median_of(times)._asdict() for name, times in taken.items()}
    return {"layer_ms": found, "layer_ms_stock": found["paged, 1 groups"], "layer_ms_packed": found["packed, 1 groups"],
            "limit_ms": max(found["read"]["median"], found["limit: multiplications in float32"]["median"])}  # fmt: skip


def equality(rounds: int = 3, requests: int = 120) -> dict:
    """Greedy float32 tokens of stock vLLM against those under cascade, packed and sorted rows, on a workload that forces chunked prefill, mixed
    steps, evictions and preemption: nested prefixes, own parts from none to long, salts, two LoRA adapters, a cache reset between rounds. In the second round
    what runs at once outgrows the KV cache while it is decoded."""
    with tempfile.TemporaryDirectory() as folder:
        return _equality(Path(folder), rounds, requests)


def _equality(folder: Path, rounds: int, requests: int) -> dict:
    from vllm import SamplingParams
    from vllm.lora.request import LoRARequest

    weights = str(TINY_LLAMA.write(folder, weights_seed=0))  # with which tokens depend on attention
    adapters = [LoRARequest(f"adapter {number}", number, str(TINY_LLAMA.write_adapter(folder / str(number), number))) for number in (1, 2)]
    few = TINY_LLAMA.max_tokens + 64
    engine = make_engine(
        "cpu", max_batch=16, max_batched_tokens=512, dtype="float32", kv_tokens=few, weights=weights, adapters=len(adapters)
    )
    from feather.vllm.attention import backend  # not before the engine is made: vLLM stumbles over what numba loads

    backend.LEAST_READ = 0  # share in short steps, too
    # While an adapter is being loaded vLLM's tokens are not those of later runs, under any kernel: so all are there before tokens are compared.
    once = SamplingParams(max_tokens=1, detokenize=False, extra_args={"group": 0})
    engine.llm.generate([{"prompt_token_ids": [1]}] * 2, once, use_tqdm=False, lora_request=adapters)
    ways = {"paged": ("paged", False), "cascade": ("cascade", False), "packed": ("packed", False), "packed, rows sorted": ("packed", True),
            "rows sorted": ("paged", True), "paged, again": ("paged", False)}  # fmt: skip
    found: dict = {
        "tokens": 0,
        "tokens under adapters": 0,
        "preemptions": 0,
        "evictions": 0,
        "equal": dict.fromkeys(ways, 0),
        "requests equal": dict.fromkeys(ways, 0),
    }
    for number in range(rounds):
        rng = np.random.default_rng(number)
        system = rng.integers(10, 32_000, 512).tolist()
        documents = [rng.integers(10, 32_000, 64 * int(rng.integers(2, 20))).tolist() for _ in range(5)]
        prompts, params, loras = [], [], []
        crowded = number == 1
        for index in range(requests // 3 if crowded else requests):
            length = 900 if crowded else int(rng.choice([0, 3, 20, 32, 300, 1500], p=[0.1, 0.2, 0.3, 0.1, 0.15, 0.15]))
            own = rng.integers(10, 32_000, length).tolist()
            whole = system + documents[int(rng.integers(5))] if number or index % 4 else [1]
            alike = number == 2 and index < 40  # a stretch in which all share something
            one_of_all = system if alike else whole
            loras.append(None if alike else (None, None, *adapters)[index % 4])
            prompts.append({"prompt_token_ids": one_of_all + own, **({"cache_salt": "other"} if index % 7 == 0 and not alike else {})})
            params.append(
                SamplingParams(
                    temperature=0,
                    max_tokens=int(rng.integers(100, 200) if crowded else rng.integers(2, 60)),
                    ignore_eos=True,
                    detokenize=False,
                    extra_args={"group": 0},
                )
            )
        told: dict[str, list] = {}
        for name, (kernel, rows) in ways.items():
            engine.llm.reset_prefix_cache()
            engine.use_kernel(kernel, rows)
            engine.scheduler.use(ARMS["FCFS"])
            outputs = engine.llm.generate(prompts, params, use_tqdm=False, lora_request=loras)
            told[name] = [tuple(output.outputs[0].token_ids) for output in outputs]
            found["preemptions"] += sum(step.preempted for step in engine.scheduler.steps)
            found["evictions"] += sum(step.evicted for step in engine.scheduler.steps)
            found["equal"][name] += sum(a == b for one, other in zip(told["paged"], told[name]) for a, b in zip(one, other))
            found["requests equal"][name] += sum(one == other for one, other in zip(told["paged"], told[name]))
        found["tokens"] += sum(map(len, told["paged"]))
        found["tokens under adapters"] += sum(len(tokens) for tokens, adapter in zip(told["paged"], loras) if adapter)
    steps = {name: sum(builder.counters[name] for builder in engine._builders) for name in ("steps", "cascade", "packed", "shared_rows")}
    return {"equality": found | steps, "equal_tokens": min(found["equal"].values())}


def log_probabilities(dtype: str, kernels: tuple[str, ...], requests: int = 64, tokens: int = 16) -> dict[str, list]:
    """Kernel → for each request its greedy tokens and their log-probabilities, of one model with random weights in ``dtype``."""
    from vllm import SamplingParams

    with tempfile.TemporaryDirectory() as folder:
        engine = make_engine("cpu", max_batch=BATCH, dtype=dtype, weights=str(TINY_LLAMA.write(Path(folder), weights_seed=0)))
    prefixes = make_prefixes(4, 4000)
    engine.warm(prefixes)
    prompts = [{"prompt_token_ids": one.tokens} for one in grouped(prefixes, even_sizes(requests, 4), 3).prompts]
    params = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False, logprobs=0, extra_args={"group": 0})
    found = {}
    for kernel in kernels:
        engine.use_kernel(kernel)
        engine.scheduler.use(ARMS["FCFS"])
        outputs = engine.llm.generate(prompts, params, use_tqdm=False)
        found[kernel] = [
            [(token, at[token].logprob) for token, at in zip(one.outputs[0].token_ids, one.outputs[0].logprobs)] for one in outputs
        ]
    return found


def noise() -> dict:
    """How far bfloat16 log-probabilities of the chosen tokens are from those of the same weights in float32, under vLLM's kernel and under packed
    attention. Of each request as many tokens as were chosen alike, and the first that was not."""
    exact = _apart("exact")["paged"]
    found = {}
    for kernel, told in log_probabilities("bfloat16", ("paged", "packed")).items():
        apart, alike = [], 0
        for mine, wanted in zip(told, exact):
            for (token, log), (right, value) in zip(mine, wanted):
                apart.append(abs(log - value))
                if token != right:
                    break
                alike += 1
        found[kernel] = {
            "mean": float(np.mean(apart)), "p99": float(np.percentile(apart, 99)), "tokens alike": alike, "of": sum(map(len, exact))
        }  # fmt: skip
    return {"bfloat16_log_probabilities_from_float32": found}


def measure(engine, cells: list[Cell], requests: int, repeats: int) -> dict[Cell, list[dict[str, float]]]:
    found: dict[Cell, list[dict[str, float]]] = {cell: [] for cell in cells}
    order = np.random.default_rng(0)
    with tqdm(total=len(cells) * repeats, desc="attention", unit="run") as bar:
        for repeat in range(repeats):
            made = workloads(requests, 100 + repeat)
            for index in order.permutation(len(cells)):
                cell = cells[index]
                engine.use_kernel(cell.kernel, cell.sorted_rows)
                run = engine.run(made[cell.workload](), ARMS[cell.arm])
                found[cell].append(_told(cell, run))
                bar.set_postfix_str(f"{cell.name}: {found[cell][-1]['throughput']:.0f} tok/s")
                bar.update()
    return found


def _told(cell: Cell, run: Run) -> dict[str, float]:
    whole = {name: value for name, (value, _) in run.metrics().items()}
    if cell.workload == "from cold":
        begin = run.step_times[run.prefill_tokens > 0].max()
        whole[FIRST] = float(((run.token_times > begin) & (run.token_times <= begin + 1)).sum())
    if cell.workload != "steady":
        return whole
    return {name: value for name, (value, _) in steady(run).metrics().items()}


def run(only: str, requests: int, repeats: int) -> dict:
    chosen = only.split(",") if only else PARTS
    for name in chosen:
        if name not in (*PARTS, "exact"):
            raise SystemExit(f"--only {name}: not one of {', '.join(PARTS)}")
    result: dict = {}
    for part, measured in (
        ("layer", lambda: layer(20)),
        ("equal", equality),
        ("noise", noise),
        ("exact", lambda: log_probabilities("float32", ("paged",))),
    ):
        if part in chosen:
            result |= measured() if len(chosen) == 1 else _apart(part)
    if "documents" in chosen and reading() is None:
        print("attention: documents left out: L-Eval is not here; FEATHER_DATA names the folder that has it", file=sys.stderr)
        chosen = [name for name in chosen if name != "documents"]
    cells = [cell for name in chosen for cell in CELLS.get(name, ())]
    if not cells:
        return result
    engine = make_engine("cpu", max_batch=BATCH)
    made = workloads(requests, 0)
    prefixes = make_prefixes(GROUPS, PREFIX) + make_prefixes(BATCH, PREFIX // 2, seed=7) + make_prefixes(GROUPS, 256, seed=8)
    engine.warm(prefixes + (reading().prefixes if "documents" in chosen else []))
    for kernel in ("paged", "packed"):  # thrown away
        engine.use_kernel(kernel)
        engine.run(made["full queue"](), ARMS["FCFS"])
    result |= {"device": engine.device_name, "engine": engine.engine_version, "requests": requests}
    found = measure(engine, cells, requests, repeats)
    kept = ("throughput", "decode throughput", "decode step", "mean batch", "groups per batch", "like neighbours", "stopped",
            "cascade steps", FIRST, "time to first token, p99", "time to first token, median", "throughput, half width", "begin")  # fmt: skip
    result["cells"] = {
        cell.name: {metric: median_of([run[metric] for run in runs])._asdict() for metric in kept if metric in runs[0]}
        for cell, runs in found.items()
    }
    return result | _ratios(found)


def _apart(part: str) -> dict:
    """One part in a process of its own: a process has room for one engine, and for none once another part has loaded Triton."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.attention", "--json", "--only", part], stdout=subprocess.PIPE, encoding="utf-8", check=True
    )
    return {name: value for name, value in json.loads(done.stdout[done.stdout.index("{") :]).items() if name != "revision"}


def _ratios(found: dict[Cell, list[dict[str, float]]]) -> dict:
    """The ratios that were asked for, as far as their cells were run."""

    def over(one: Cell, other: Cell, metric: str = "throughput"):
        if one in found and other in found:
            return ratio([run[metric] for run in found[one]], [run[metric] for run in found[other]])._asdict()
        return None

    stock = Cell("FCFS", "paged")
    never = Cell("Feather (never stop)", "cascade")
    told = {
        "rows_sorted_over_stock_fcfs": over(replace(stock, sorted_rows=True), stock),
        "rows_sorted_ttft_p99": over(replace(stock, sorted_rows=True), stock, "time to first token, p99"),
        "steady_packed_over_stock_fcfs": over(replace(stock, kernel="packed"), stock),
        "steady_packed_ttft_p99": over(replace(stock, kernel="packed"), stock, "time to first token, p99"),
        "steady_feather_packed_over_stock_fcfs": over(Cell("Feather", "packed"), stock),
        "steady_feather_packed_ttft_p99": over(Cell("Feather", "packed"), stock, "time to first token, p99"),
        "steady_never_stop_packed_over_stock_fcfs": over(Cell("Feather (never stop)", "packed"), stock),
        "full_queue_packed_over_stock_fcfs": over(
            Cell("Feather (never stop)", "packed", workload="full queue"), Cell("FCFS", "paged", workload="full queue")
        ),
        "full_queue_fcfs_packed_over_stock_fcfs": over(
            Cell("FCFS", "packed", workload="full queue"), Cell("FCFS", "paged", workload="full queue")
        ),
    }
    for kernel in ("paged", "cascade", "packed"):
        told[f"m1_cliff_{kernel}"] = over(
            Cell("FCFS", kernel, workload="0 strangers"), Cell("FCFS", kernel, workload="1 strangers"), "decode throughput"
        )
    for workload in ("unshared", "short prefixes"):
        plain = Cell("FCFS", "paged", workload=workload)
        key = workload.replace(" ", "_")
        told[f"{key}_rows_sorted"] = over(replace(plain, sorted_rows=True), plain, "decode throughput")
        for kernel in ("cascade", "packed"):
            told[f"{key}_{kernel}"] = over(replace(plain, kernel=kernel), plain, "decode throughput")
    cold = Cell("FCFS", "paged", workload="from cold")
    told["from_cold_first_second_packed"] = over(replace(cold, kernel="packed"), cold, FIRST)
    asked = Cell("FCFS", "paged", workload="documents")
    for name, one in (
        ("fcfs", replace(asked, kernel="packed")),
        ("never_stop", Cell("Feather (never stop)", "packed", workload="documents")),
    ):
        told[f"documents_{name}_packed_over_stock_fcfs"] = over(one, asked)
        told[f"documents_{name}_packed_ttft_p99"] = over(one, asked, "time to first token, p99")
        told[f"documents_{name}_packed_decode_steps"] = over(one, asked, "decode throughput")
    stopping = [Cell(arm, "cascade") for arm in STOPPING if Cell(arm, "cascade") in found]
    if stopping and never in found:
        best = max(stopping, key=lambda cell: np.median([run["throughput"] for run in found[cell]]))
        told["steady_cascade_best_stopping"] = best.arm
        told["steady_cascade_stopping_over_never_stop"] = over(best, never)
        told["steady_cascade_stopping_over_fcfs"] = over(best, Cell("FCFS", "cascade"))
    return {name: value for name, value in told.items() if value is not None}


def show(found: dict) -> None:
    for name, times in found.get("layer_ms", {}).items():
        print(f"{name:<44}{times['median']:8.2f} ms [{times['low']:.2f}, {times['high']:.2f}]")
    for name, metrics in found.get("cells", {}).items():
        print(
            f"{name:<56}{metrics['throughput']['median']:7.0f} tok/s, p99 time to first token {metrics['time to first token, p99']['median']:.1f} s"
        )
    for name, value in found.items():
        if isinstance(value, dict) and "median" in value and not name.startswith("layer"):
            print(f"{name:<52}{value['median']:.2f} [{value['low']:.2f}, {value['high']:.2f}]")


if __name__ == "__main__":
    main(
        "benchmarks.attention",
        __doc__.splitlines()[0],
        run,
        show,
        only={"default": "", "help": "parts: " + ", ".join(PARTS)},
        requests={"type": int, "default": 256, "help": "of a steady run"},
        repeats={"type": int, "default": 5, "help": "of each cell"},
    )
