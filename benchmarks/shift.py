"""A change in mid-run on vLLM's real engine on this CPU, and how soon the default is as good as the best: ``python -m benchmarks.shift [--json]``.

A closed loop of 64 clients on 32 rows, prefixes of 8 000 tokens in the cache. Other prefixes come, fewer of them, or other lengths, or the attention kernel is exchanged. What the default
is held against are fixed arms and the paper's bandit, each in steady state on what comes after the change; it has recovered from when the mean of all that follows is within 5 % of the best of them.
"""

from dataclasses import dataclass, replace

import numpy as np
from tqdm import tqdm

from benchmarks.timing import main
from lab.engines import make_engine
from lab.engines.arms import ARMS
from lab.engines.engine import Engine
from lab.instrument import Effort
from lab.steady import Watch, steady
from lab.workloads import Prompt, Workload, even_sizes, grouped, make_prefixes

BATCH, CLIENTS, PREFIX = 32, 64, 8000
ARM, OTHERS = "Feather", ("FCFS", "Feather (never stop)", "Feather (strict stop)", "Feather (bandit alone)")
BEFORE, AFTER, SETTLED = 25.0, 45.0, 20.0  # seconds: until the change, after it, and at the end of that, as which it ends up
GOOD = 0.95


@dataclass(frozen=True)
class Phase:
    """What comes, and the kernel that it meets."""

    groups: int = 8
    decode: tuple[int, int] = (16, 48)
    kernel: str = "cascade"
    prefixes_seed: int = 1

    def prefixes(self) -> list[list[int]]:
        return make_prefixes(self.groups, PREFIX, seed=self.prefixes_seed)

    def prompts(self, count: int, seed: int) -> list[Prompt]:
        return grouped(self.prefixes(), even_sizes(count, self.groups), seed, decode_tokens=self.decode).prompts


CHANGES = {
    "kernel, paged to cascade": (Phase(kernel="paged"), Phase()),
    "kernel, cascade to paged": (Phase(), Phase(kernel="paged")),
    "groups, 8 to 2": (Phase(), Phase(2, prefixes_seed=2)),
    "lengths, 16-48 to 64-192": (Phase(), Phase(decode=(64, 192), prefixes_seed=2)),
}


class Change:
    """Makes or notices the change, and ends the run some time after it."""

    def __init__(self, engine: Engine, before: Phase, after: Phase):
        self.at: float | None = None  # seconds into the run
        self._engine, self._before, self._after = engine, before, after

    def __call__(self, token_times: list[float]) -> bool:
        now = token_times[-1] if token_times else 0.0
        if self.at is None and self._is_due(now):
            self.at = now
            self._engine.use_kernel(self._after.kernel)
        return self.at is not None and now > self.at + AFTER

    def _is_due(self, now: float) -> bool:
        if self._before.prefixes_seed == self._after.prefixes_seed:
            return now > BEFORE
        return max(self._engine.scheduler.steps[-1].groups.values(), default=0) >= self._before.groups


def shifted(engine: Engine, before: Phase, after: Phase, seed: int) -> tuple[float, np.ndarray]:
    """When the change came in a run of ``ARM``, and the times of its tokens."""
    if before.prefixes_seed == after.prefixes_seed:
        prompts = before.prompts(5000, seed)
    else:
        later = [replace(prompt, group=prompt.group + before.groups) for prompt in after.prompts(5000, seed + 500)]
        prompts = before.prompts(int(BEFORE * 20), seed) + later
    engine.use_kernel(before.kernel)
    change = Change(engine, before, after)
    run = engine.run(Workload(prompts, clients=CLIENTS), ARMS[ARM], change)
    if change.at is None:
        raise RuntimeError(f"the requests were served before the change came, in {run.seconds:.0f} s: let more come")
    return change.at, run.token_times


def recovery(at: float, times: np.ndarray, best: float) -> tuple[float, float]:
    """Seconds after the change from which on throughput is ``GOOD`` of ``best`` in the mean of all that follows (``AFTER`` if it never is), and
    the last ``SETTLED`` seconds' over it."""
    end = at + AFTER

    def rate(begin: float) -> float:
        return ((times > begin) & (times <= end)).sum() / (end - begin)

    good = [start for start in np.arange(0.0, AFTER - SETTLED / 2, 0.5) if rate(at + start) >= GOOD * best]
    return float(good[0]) if good else AFTER, float(rate(end - SETTLED) / best)


def reference(engine: Engine, phase: Phase, limit: float) -> dict[str, float]:
    """Throughput of the other arms in steady state, tok/s."""
    engine.use_kernel(phase.kernel)
    found = {}
    for number, arm in enumerate(OTHERS):
        workload = Workload(phase.prompts(5000, 9000 + number), clients=CLIENTS)
        learned = Effort.learning if ARMS[arm].learns else 0.0
        watch = Watch(5 * BATCH * sum(phase.decode) // 2, 0.03, limit, learned=learned)
        found[arm] = steady(engine.run(workload, ARMS[arm], watch), learned).throughput
    return found


def run(changes: str, seeds: int, limit: float) -> dict:
    names = [name for name in changes.split(";") if name] or list(CHANGES)
    if unknown := [name for name in names if name not in CHANGES]:
        raise SystemExit(f"--changes {';'.join(unknown)}: choose from {'; '.join(CHANGES)}")
    engine = make_engine("cpu", max_batch=BATCH)
    found: dict = {"device": engine.device_name, "arm": ARM, "against": list(OTHERS), "changes": {}}
    with tqdm(total=len(names) * (1 + seeds), unit="part") as bar:
        for name in names:
            bar.set_description(name)
            before, after = CHANGES[name]
            engine.warm(before.prefixes() + (after.prefixes() if after.prefixes_seed != before.prefixes_seed else []), anew=True)
            for phase in (before, after):  # thrown away
                engine.use_kernel(phase.kernel)
                engine.run(Workload(phase.prompts(2 * BATCH, 1)), ARMS["FCFS"])
            others = reference(engine, after, limit)
            bar.update()
            best = max(others, key=lambda arm: others[arm])
            told = []
            for seed in range(seeds):
                told.append(recovery(*shifted(engine, before, after, 100 + seed), others[best]))
                bar.update()
            found["changes"][name] = {
                "best": best, "others_tok_s": others, "recovered_after_s": [seconds for seconds, _ in told],
                "median_s": float(np.median([seconds for seconds, _ in told])), "settled_over_best": [share for _, share in told],
            }  # fmt: skip
    return found


def show(found: dict) -> None:
    for name, told in found["changes"].items():
        seconds, shares = (
            ", ".join(f"{value:.{digits}f}" for value in told[key]) for key, digits in (("recovered_after_s", 1), ("settled_over_best", 2))
        )
        print(f"{name:28} back within 5 % of {told['best']} after {seconds} s; in the end {shares} × it")


if __name__ == "__main__":
    main("benchmarks.shift", __doc__.splitlines()[0], run, show,
         changes={"default": "", "help": "some of them, with ; between: " + "; ".join(CHANGES)},
         seeds={"type": int, "default": 3, "help": "runs of each change"},
         limit={"type": float, "default": 20.0, "help": "seconds of each other arm, at most"})  # fmt: skip
