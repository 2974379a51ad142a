"""A real engine in a process of its own: a process has room for one, and some studies need several."""

import multiprocessing
import traceback
from typing import Any

from lab.engines.arms import Arm
from lab.engines.engine import Engine, make_engine
from lab.engines.run import Enough, Run
from lab.workloads import Workload


class EngineApart:
    """What ``make_engine`` makes, elsewhere; ``options`` as there. It ends with this process, or when it is closed.

    Raises what the engine raises, and RuntimeError where its process has ended."""

    _TOLD = ("backend", "model", "max_batch", "kernel", "sorted_rows", "warms_up", "kv_tokens", "device_name", "engine_version")

    backend: str
    model: Any
    max_batch: int
    kernel: str
    sorted_rows: bool
    warms_up: bool
    kv_tokens: int
    device_name: str
    engine_version: str

    def __init__(self, backend: str = "auto", model: str = "tiny-llama", **options):
        context = multiprocessing.get_context("spawn")  # a fork would share this process's threads and the engine it may hold
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, backend, model, options), daemon=True)
        self._process.start()
        theirs.close()
        self._answer()

    def use_batch(self, rows: int) -> None:
        self._ask("use_batch", rows)

    def use_kernel(self, kernel: str, sorted_rows: bool = False) -> None:
        self._ask("use_kernel", kernel, sorted_rows)

    def warm(self, prefixes: list[list[int]], anew: bool = False) -> None:
        self._ask("warm", prefixes, anew)

    def forget(self) -> None:
        self._ask("forget")

    def run(self, workload: Workload, arm: Arm, enough: Enough | None = None) -> Run:
        """As elsewhere, but ``enough`` must be something that can be pickled: what it keeps of a run stays in the other process."""
        return self._ask("run", workload, arm, enough)

    def close(self) -> None:
        self._pipe.close()
        self._process.join()

    def _ask(self, name: str, *arguments: Any) -> Any:
        self._pipe.send((name, arguments))
        return self._answer()

    def _answer(self) -> Any:
        try:
            told, answer, failure = self._pipe.recv()
        except (EOFError, OSError) as error:
            raise RuntimeError("the process of an engine has ended; what it printed says why") from error
        if failure is not None:
            raise failure
        for name in self._TOLD:
            setattr(self, name, told[name])
        return answer


def _serve(pipe: Any, backend: str, model: str, options: dict[str, Any]) -> None:
    engine: Engine | None = None
    request: tuple[str, tuple] | None = None
    while True:
        answer = failure = None
        try:
            if engine is None:
                engine = make_engine(backend, model, **options)
            elif request is not None:
                answer = getattr(engine, request[0])(*request[1])
        except Exception as error:
            if not isinstance(error, (ValueError, MemoryError)):
                traceback.print_exc()  # a failure is sent without where it came from
            failure = error
        pipe.send(({name: getattr(engine, name) for name in EngineApart._TOLD} if engine else {}, answer, failure))
        if engine is None:
            return
        try:
            request = pipe.recv()
        except EOFError:  # closed, or the process that asked is gone
            return
