"""A real vLLM engine as a replica of a Ray Serve deployment: random weights, FCFS or Feather inside, a KV cache of the size asked for.

A request names the *cell* of the study that it belongs to: what routes it, what schedules it, how large the KV cache is. Router and replicas
change over when the first request of another cell comes, so one deployment serves the whole grid, on the same engines. A replica must have
nothing else to do then.
"""

import asyncio
import contextlib
import fcntl
import os
import queue
import tempfile
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from feather.ray.prompts import prefix_path
from feather.ray.statistics import Outstanding
from lab.engines.arms import Arm

INSIDE = {
    "FCFS": Arm("FCFS", "fcfs"),
    # Clients in closed loop: no queue is a burst (docs/serving-vllm.md).
    "Feather": Arm("Feather", "feather", {"policy": "never_stop", "saturated_after": 0.0}),
}
CHUNK = 64  # tokens; as many characters as 256


@dataclass(frozen=True)
class Cell:
    """What a request is answered by."""

    number: int = 0
    router: str = "Feather's router"
    inside: str = "Feather"
    kv_tokens: int | None = None
    """None: all there is"""


@dataclass(frozen=True)
class Ask:
    """A request. ``prompt``: token ids as text, with blanks between them: Ray's prefix router reads text alone."""

    prompt: str
    decode_tokens: int
    group: int = 0
    cell: Cell = field(default_factory=Cell)
    cache_salt: str | None = None
    every_token: bool = False
    """stream each, not only the first and the end"""


def a_core_of_its_own() -> None:
    """Keep this process on one core that no other replica has, for as long as it lives; beyond the last core it may use all."""
    for core in sorted(os.sched_getaffinity(0)):
        lock = open(Path(tempfile.gettempdir()) / f"feather-replica-{os.getuid()}-{core}.lock", "w", encoding="utf-8")  # noqa: SIM115 (held to the end)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.close()
            continue
        a_core_of_its_own.lock = lock  # type: ignore[attr-defined]
        os.environ.update(VLLM_CPU_OMP_THREADS_BIND=str(core), OMP_NUM_THREADS="1")
        return


class Engine(threading.Thread):
    """vLLM in a thread of its own: it is made, fed and stepped there."""

    def __init__(self, rows: int, kv_gib: int, deliver):
        super().__init__(name="engine", daemon=True)
        self.ready: queue.Queue[Exception | None] = queue.Queue()
        self.orders: queue.Queue[tuple] = queue.Queue()
        self._rows, self._kv_gib, self._deliver = rows, kv_gib, deliver
        self._held: list = []
        self._cell: Cell | None = None

    def run(self) -> None:
        try:
            from lab.engines.real import RealEngine
            from lab.llm import small

            self.made = RealEngine("cpu", small().name, max_batch=self._rows, kv_gib=self._kv_gib)
        except Exception as error:
            self.ready.put(error)
            return
        self.ready.put(None)
        engine = self.made.llm.llm_engine
        while True:
            waits = not engine.has_unfinished_requests()
            with contextlib.suppress(queue.Empty):
                while True:
                    self._do(*self.orders.get(block=waits))
                    waits = False
            if engine.has_unfinished_requests():
                outputs = engine.step()
                groups = len(set(self.made.scheduler.steps[-1].groups.values())) if self.made.scheduler.steps else 0
                self._deliver(
                    [(out.request_id, out.outputs[0].token_ids, out.finished, out.num_cached_tokens or 0, groups) for out in outputs]
                )

    def _do(self, what: str, id_: str, ask: Ask | None = None) -> None:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        engine = self.made.llm.llm_engine
        if what == "abort":
            engine.abort_request([id_])
            return
        if ask.cell != self._cell:
            self._change(ask.cell)
        params = SamplingParams(
            temperature=0, max_tokens=ask.decode_tokens, ignore_eos=True, detokenize=False, output_kind=RequestOutputKind.DELTA,
            extra_args={"group": ask.group},
        )  # fmt: skip
        prompt = {"prompt_token_ids": [int(token) for token in ask.prompt.split()]}
        engine.add_request(id_, prompt | ({"cache_salt": ask.cache_salt} if ask.cache_salt else {}), params)

    def _change(self, cell: Cell) -> None:
        """Another cell: an empty prefix cache, the cell's scheduler, and as much KV as it says; the rest of the blocks is held back."""
        pool = self.made.scheduler.kv_cache_manager.block_pool
        pool.free_blocks(self._held)
        self._held = []
        if not self.made.llm.reset_prefix_cache():
            raise RuntimeError("a replica was sent requests of two cells at once")
        self.made.scheduler.use(INSIDE[cell.inside])
        if cell.kv_tokens is not None:
            self._held = pool.get_new_blocks(max(0, pool.get_num_free_blocks() - cell.kv_tokens // self.made.block_size))
        self._cell = cell


class Replica:
    """The deployment. Answers with the first token, then with all of them."""

    def __init__(self, rows: int = 16, kv_gib: int = 1, chunk_size: int = CHUNK):
        a_core_of_its_own()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._answers: dict[str, asyncio.Queue] = {}
        self._chunk_size = chunk_size
        self._outstanding = Outstanding()
        self._asked = 0
        self._engine = Engine(rows, kv_gib, lambda outputs: self._loop.call_soon_threadsafe(self._spread, outputs))
        self._engine.start()
        if error := self._engine.ready.get():
            raise error

    def _spread(self, outputs: list[tuple]) -> None:
        for id_, *output in outputs:
            if id_ in self._answers:
                self._answers[id_].put_nowait(output)

    async def __call__(self, ask: Ask) -> AsyncIterator[dict[str, Any]]:
        if not self._engine.is_alive():
            raise RuntimeError("the engine of this replica has ended")
        self._loop = asyncio.get_running_loop()
        self._asked += 1
        id_, answer = f"{os.getpid()}-{self._asked}", asyncio.Queue()
        self._answers[id_] = answer
        held = (ask.cell.kv_tokens or self._engine.made.kv_tokens) * len(ask.prompt) / (1 + ask.prompt.count(" "))  # characters
        self._outstanding.chunks = int(held / (4 * self._chunk_size))
        tokens: list[int] = []
        finished = False
        with self._outstanding.request(prefix_path([ask], self._chunk_size)) as number:
            self._engine.orders.put(("add", id_, ask))
            try:
                while not finished:
                    new, finished, cached, groups = await answer.get()
                    if not tokens:
                        self._outstanding.runs(number)
                    if ask.every_token or not tokens:
                        yield {"tokens": list(new)}
                    tokens += new
                yield {"all": tokens, "cached": cached, "groups": groups, "replica": os.getpid()}
            finally:
                del self._answers[id_]
                if not finished:
                    self._engine.orders.put(("abort", id_))

    async def record_routing_stats(self) -> dict[str, Any]:
        return self._outstanding.report()

    async def check_health(self) -> None:
        if not self._engine.is_alive():
            raise RuntimeError("the engine of this replica has ended")
