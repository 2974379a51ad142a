"""The OpenAI server under Feather and under vLLM's own scheduler: ``python -m benchmarks.serving [--minutes N] [--json]``.

Both servers are alive, one at a time is under load, in turns: in every round each is first *saturated* (all requests at
once: throughput, and what 100 % load is; below 256 of them they are a burst to Feather) and then sees *bursty* arrivals at
80 % of what FCFS was measured to serve (the tails). Requests share 8 prefixes of 8 000 tokens, which the prefix cache holds, and ask for mixed numbers of tokens. Some
clients give up, some send nonsense, some ask for more than the model's length.

The arrivals and the streaming client are those of vLLM's own serving benchmark (``vllm.benchmarks``), which takes prompts
as token ids. Written here is what it has not: its prefix-repetition data set makes text through a tokenizer, and none of
its clients leaves or misbehaves. guidellm 0.8.1 makes prompts through a tokenizer, too. Token ids outside the vocabulary are
not among the nonsense: without a tokenizer vLLM 0.31 does not check them, and its engine dies, whoever schedules.
"""

import asyncio
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import numpy as np
from tqdm import tqdm
from vllm.benchmarks.datasets import SampleRequest
from vllm.benchmarks.lib.endpoint_request_func import RequestFuncInput, async_request_openai_completions
from vllm.benchmarks.serve import get_request

from benchmarks.openai_server import Server
from benchmarks.timing import main
from lab import machine
from lab.llm import TINY_LLAMA
from lab.stats import Ratio, ratio
from lab.workloads import even_sizes, grouped, make_prefixes

GROUPS, PREFIX, DECODE = 8, 8_000, (8, 64)  # decode tokens: uniform, both included
LOAD = 0.8  # of FCFS's capacity
MIX = {"serve": 0.93, "leave": 0.05, "nonsense": 0.01, "too long": 0.01}
PATIENCE = 1.0  # mean seconds, exponential, until a client that leaves does
NONSENSE = (
    {"max_tokens": -4}, {"prompt": {"not": "a prompt"}}, {"temperature": -1}, {"n": 0}, {"stream": "perhaps"},
)  # fmt: skip
HUNG = 900.0  # seconds after which a request without an end counts as lost
ARMS = {"fcfs": (), "feather": ("--scheduler-cls", "feather.vllm.FeatherScheduler")}


@dataclass
class Phase:
    """What the clients of one phase saw."""

    seconds: float = 0.0
    fates: Counter = field(default_factory=Counter)
    """"served", "left", "refused" (as it should be) or "lost" → requests"""
    why_lost: list[str] = field(default_factory=list)
    """one line each"""
    tokens: int = 0
    """given to those who were served"""
    too_many: int = 0
    """requests with more tokens than asked for, and finishes that nobody asked for"""
    first_token: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    queue: list[float] = field(default_factory=list)
    """requests waiting, once a second"""


class Clients:
    """Everybody who talks to one server."""

    def __init__(self, server: Server, prefixes: list[list[int]], burstiness: float = 1.0):
        self.server = server
        self.prefixes = prefixes
        self.burstiness = burstiness

    def run(self, requests: int, seed: int, per_second: float = float("inf"), mix: dict[str, float] = MIX) -> Phase:
        """A phase to its end, the same for the same seed but for how long the server takes."""
        phase, before, start = Phase(), self.server.metrics(), time.perf_counter()
        asyncio.run(self._run(phase, requests, seed, per_second, mix))
        phase.seconds = time.perf_counter() - start
        self._wait_until_idle()
        after = self.server.metrics()
        finished = after["vllm:request_success_total{length}"] - before["vllm:request_success_total{length}"]
        # Who left may have been finished all the same; nobody else is finished unasked.
        phase.too_many += max(0, round(finished) - phase.fates["served"] - phase.fates["left"])
        return phase

    async def _run(self, phase: Phase, requests: int, seed: int, per_second: float, mix: dict[str, float]) -> None:
        prompts = grouped(self.prefixes, even_sizes(requests, len(self.prefixes)), seed, decode_tokens=DECODE).prompts
        rng = np.random.default_rng(seed)
        kinds = rng.choice(list(mix), len(prompts), p=list(mix.values()))
        patience = rng.exponential(PATIENCE, len(prompts))
        samples = [
            SampleRequest(one.tokens, len(one.tokens), one.decode_tokens, request_id=str(place)) for place, one in enumerate(prompts)
        ]
        np.random.seed(seed)  # what vLLM draws the arrivals from
        # Idle connections are dropped before the server would (after 5 s): a request sent while it does so is lost on the way.
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=2)
        async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(HUNG)) as session:
            watch = asyncio.create_task(self._watch_queue(session, phase))
            tasks = []
            async for sample, _ in get_request(samples, per_second, self.burstiness):
                place = int(sample.request_id)
                nonsense = NONSENSE[place % len(NONSENSE)]
                client = self._client(session, phase, sample, kinds[place], patience[place], nonsense)
                tasks.append(asyncio.create_task(client))
            await asyncio.gather(*tasks)
            watch.cancel()

    async def _client(self, session, phase: Phase, sample: SampleRequest, kind: str, patience: float, nonsense: dict):
        if kind in ("nonsense", "too long"):
            prompt = [10] * (TINY_LLAMA.max_tokens + 1) if kind == "too long" else sample.prompt
            body = {"model": self.server.model, "prompt": prompt, "max_tokens": 8, **(nonsense if kind == "nonsense" else {})}
            try:
                async with session.post(f"{self.server.url}/v1/completions", json=body) as reply:
                    answer = f"status {reply.status}"
                    refused = 400 <= reply.status < 500
            except (aiohttp.ClientError, TimeoutError) as error:
                answer, refused = repr(error), False
            phase.fates["refused" if refused else "lost"] += 1
            if not refused:
                phase.why_lost.append(f"{kind}: {answer}")
            return
        wanted = RequestFuncInput(
            prompt=sample.prompt, api_url=f"{self.server.url}/v1/completions", prompt_len=sample.prompt_len,
            output_len=sample.expected_output_len, model=self.server.model, ignore_eos=True,
        )  # fmt: skip
        try:
            async with asyncio.timeout(patience if kind == "leave" else None):
                found = await async_request_openai_completions(wanted, session)
        except TimeoutError:
            phase.fates["left"] += 1
            return
        if not found.success or found.output_tokens < wanted.output_len:
            phase.fates["lost"] += 1
            told = found.error.strip().splitlines()[-1] if found.error.strip() else "no error"
            phase.why_lost.append(f"{found.output_tokens} of {wanted.output_len} tokens: {told}")
            return
        phase.fates["served"] += 1
        phase.too_many += found.output_tokens > wanted.output_len
        phase.tokens += found.output_tokens
        phase.first_token.append(found.ttft)
        phase.gaps += found.itl

    async def _watch_queue(self, session, phase: Phase) -> None:
        while True:
            await asyncio.sleep(1)
            async with session.get(f"{self.server.url}/metrics") as reply:
                lines = (await reply.text()).splitlines()
            waiting = [float(line.split()[-1]) for line in lines if line.startswith("vllm:num_requests_waiting{")]
            phase.queue.append(sum(waiting))

    def _wait_until_idle(self, timeout: float = 30) -> None:
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            found = self.server.metrics()
            left = found["vllm:num_requests_running"] + found["vllm:num_requests_waiting"]
            if not left:
                return
            time.sleep(0.2)
        raise RuntimeError(f"{left:.0f} requests are still in the server {timeout:.0f} s after their clients have gone")

    def warm_up(self) -> None:
        """Fill the prefix cache with the prefixes, and let every path run once."""
        asyncio.run(self._serve(self.prefixes))
        self.run(64, seed=2)

    async def _serve(self, prompts: list[list[int]]) -> None:
        async with aiohttp.ClientSession() as session:
            for prompt in prompts:
                body = {"model": self.server.model, "prompt": prompt, "max_tokens": 1}
                async with session.post(f"{self.server.url}/v1/completions", json=body) as reply:
                    reply.raise_for_status()


def run(minutes: float, rounds: int, burstiness: float) -> dict:
    if minutes <= 0 or rounds < 1 or burstiness <= 0:
        raise SystemExit(f"--minutes {minutes:g} and --burstiness {burstiness:g} must be above 0 and --rounds {rounds} at least 1")
    prefixes = make_prefixes(GROUPS, PREFIX)
    per_phase = minutes * 60 / rounds / len(ARMS)
    with tempfile.TemporaryDirectory() as folder:
        clients: dict[str, Clients] = {}
        try:
            for arm, arguments in ARMS.items():
                clients[arm] = Clients(Server(Path(folder), arm, arguments=arguments), prefixes, burstiness)
                clients[arm].warm_up()
            capacity = 96 / clients["fcfs"].run(96, seed=3).seconds
            for one in clients.values():  # thrown away: as many requests at once as there will ever be
                one.run(max(64, round(1.2 * capacity * per_phase / 3)), seed=4)
            begun = {arm: one.server.resident_mb() for arm, one in clients.items()}
            saturated: dict[str, list[Phase]] = {arm: [] for arm in ARMS}
            bursty: dict[str, list[Phase]] = {arm: [] for arm in ARMS}
            for turn in tqdm(range(rounds), desc="serving", unit="round"):
                order = list(ARMS)[:: -1 if turn % 2 else 1]
                for arm in order:
                    saturated[arm].append(clients[arm].run(max(64, round(capacity * per_phase / 3)), 10 + turn))
                capacity = np.median([phase.fates.total() / phase.seconds for phase in saturated["fcfs"]])
                for arm in order:
                    rate = LOAD * capacity
                    bursty[arm].append(clients[arm].run(max(32, round(rate * per_phase * 2 / 3)), 1000 + turn, rate))
            ended = {arm: one.server.resident_mb() for arm, one in clients.items()}
            fell_back = clients["feather"].server.metrics().get("feather_fallbacks_total")  # none without the plug-in
        finally:
            for one in clients.values():
                one.server.stop()
    return {"burstiness": burstiness, **report(saturated, bursty, begun, ended, fell_back)}


def report(saturated: dict, bursty: dict, begun: dict, ended: dict, fell_back: float | None) -> dict:
    tails = {
        "p50_ttft_s": lambda phase: np.percentile(phase.first_token, 50),
        "p99_ttft_s": lambda phase: np.percentile(phase.first_token, 99),
        "p99_tbt_s": lambda phase: np.percentile(phase.gaps, 99),
    }
    everything = [phase for phases in (saturated, bursty) for arm in ARMS for phase in phases[arm]]
    fates = sum((phase.fates for phase in everything), Counter())
    found = {
        "requests": sum(fates.values()), "lost": fates["lost"], "duplicated": sum(phase.too_many for phase in everything),
        "left": fates["left"], "refused": fates["refused"],
    }  # fmt: skip

    def over_fcfs(phases: dict, value: Callable[[Phase], float]) -> Ratio:
        return ratio(*([value(phase) for phase in phases[arm]] for arm in ("feather", "fcfs")))

    compared = {"throughput_ratio": over_fcfs(saturated, lambda phase: phase.tokens / phase.seconds)}
    compared |= {name.replace("_s", "_ratio"): over_fcfs(bursty, value) for name, value in tails.items()}
    found |= {name: round(one.median, 3) for name, one in compared.items()}
    growth = {arm: {process: round(ended[arm][process] - begun[arm][process], 1) for process in ended[arm]} for arm in ARMS}
    queues = {arm: float(np.mean([waiting for phase in bursty[arm] for waiting in phase.queue] or [0])) for arm in ARMS}
    return {
        **found,
        "max_wait_s": round(max(max(phase.first_token) for phase in bursty["feather"]), 3),
        "rss_growth_mb": growth["feather"]["engine"],
        "mean_queue": round(queues["fcfs"], 2),
        "fell_back": None if fell_back is None else bool(fell_back),
        "device": machine.device("cpu"),
        "engine": machine.engine_version(machine.cpu_dtype()),
        "intervals": {name: [round(one.low, 3), round(one.high, 3)] for name, one in compared.items()},
        "arms": {
            arm: {
                "requests": sum(phase.fates.total() for phases in (saturated, bursty) for phase in phases[arm]),
                "throughput_tok_s": [round(phase.tokens / phase.seconds, 1) for phase in saturated[arm]],
                "lost": [why for phases in (saturated, bursty) for phase in phases[arm] for why in phase.why_lost],
                "offered_per_s": [round(phase.fates.total() / phase.seconds, 2) for phase in bursty[arm]],
                **{name: [round(float(value(phase)), 4) for phase in bursty[arm]] for name, value in tails.items()},
                "longest_ttft_s": round(max(max(phase.first_token) for phase in bursty[arm]), 3),
                "mean_queue": round(queues[arm], 2), "rss_growth_mb": growth[arm],
            }
            for arm in ARMS
        },
    }  # fmt: skip


def show(found: dict) -> None:
    print(f"{found['device']}, vLLM {found['engine']}: {found['requests']} requests, {found['lost']} lost, "
          f"{found['duplicated']} duplicated, {found['left']} left by their clients, {found['refused']} refused")  # fmt: skip
    for name, (low, high) in found["intervals"].items():
        print(f"{name:<20}{found[name]:.2f} [{low:.2f}, {high:.2f}]   Feather / FCFS")
    for name in ("max_wait_s", "mean_queue", "rss_growth_mb"):
        print(f"{name:<20}{found[name]:.2f}")


if __name__ == "__main__":
    main(
        "benchmarks.serving", __doc__.splitlines()[0].split(":")[0], run, show,
        minutes={"type": float, "default": 10, "help": "how long the load lasts, both servers together (default 10)"},
        rounds={"type": int, "default": 5, "help": "turns that the two servers take (default 5)"},
        burstiness={"type": float, "default": 0.01, "help": "shape of the gamma-distributed gaps between arrivals: about the inverse of "
                    "a burst's requests, 1 for a Poisson process (default 0.01)"},
    )  # fmt: skip
