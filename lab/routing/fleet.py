"""Replicas on Ray Serve in this machine: started, asked, killed, and taken down again."""

import asyncio
import itertools
import logging
import os
import shlex
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

import numpy as np

from lab.book import ROOT
from lab.routing.load import Answered, Prefixes
from lab.workloads.workload import FIRST_TOKEN, VOCABULARY

APP, NAME = "feather", "replicas"
STATS_EVERY = 0.5  # seconds between the replicas' reports


def missing() -> str:
    """Why replicas cannot run here; empty where they can."""
    lacks = [name for name in ("ray.serve", "vllm") if not _found(name)]
    return f"no replicas here: {', '.join(lacks)} cannot be imported; ./run_tests.sh makes an environment that has it" if lacks else ""


def _found(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:
        return False


_STARTS = 3


@contextmanager
def cluster(port: int | None = None) -> Iterator[None]:
    """Ray Serve in this machine, for as long as this is open, with a proxy at ``port`` or none; workers import what this checkout holds."""
    import ray
    from ray import serve

    os.environ["RAY_SERVE_LOG_TO_STDERR"] = "0"
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    for left in reversed(range(_STARTS)):
        try:
            ray.init(
                address="local",
                num_cpus=max(8, os.cpu_count() or 1),
                include_dashboard=False,
                logging_level=logging.ERROR,
                log_to_driver=False,
                object_store_memory=200 * 2**20,
                # Ray hands the command of a worker to a shell, as it is: a folder with a blank in its name would end there.
                runtime_env={
                    "env_vars": {"PYTHONPATH": path, "VLLM_LOGGING_LEVEL": "ERROR"},
                    "py_executable": shlex.quote(sys.executable),
                },
            )
            break
        except (
            Exception
        ):  # Ray raises just that where its processes take more than the seconds it gives them, as on a machine with much else to do
            ray.shutdown()
            if not left:
                raise
    try:
        if port is None:
            serve.start(proxy_location="Disabled")
        else:
            serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
        yield
    finally:
        serve.shutdown()
        ray.shutdown()


def end(number: int, frame: Any) -> None:
    """A handler of signals: ``cluster`` takes everything down, and a second signal does not keep it from that. Raises SystemExit."""
    for other in (signal.SIGINT, signal.SIGTERM):
        signal.signal(other, signal.SIG_IGN)
    sys.exit(128 + number)


def deployment(
    replica: Callable, *arguments: Any, replicas: int = 2, most: int | None = None, router: str | None = None,
    router_options: dict | None = None, report_every: float = STATS_EVERY, **named: Any,
):  # fmt: skip
    """A deployment of ``replica`` objects behind a router, by the path of its class; Ray's own by default. ``most``: Ray adds replicas up to so
    many while each has more than eight requests. Bound, not yet running."""
    from ray import serve
    from ray.serve.config import RequestRouterConfig

    number: dict[str, Any] = {"num_replicas": replicas}
    if most is not None:
        number = {"autoscaling_config": {
            "min_replicas": replicas, "initial_replicas": replicas, "max_replicas": most, "target_ongoing_requests": 8, "upscale_delay_s": 3.0,
            "metrics_interval_s": 0.5, "look_back_period_s": 2.0,
        }}  # fmt: skip
    chosen = {"request_router_class": router, "request_router_kwargs": router_options or {}} if router else {}
    made = serve.deployment(
        replica, name=NAME, max_ongoing_requests=1000, health_check_period_s=2.0, graceful_shutdown_timeout_s=2.0,
        ray_actor_options={"num_cpus": 0}, request_router_config=RequestRouterConfig(request_routing_stats_period_s=report_every, **chosen),
        **number,
    )  # fmt: skip
    return made.bind(*arguments, **named)


def deploy(replica: Callable, *arguments: Any, **named: Any):
    """Run a ``deployment``. Returns its handle."""
    from ray import serve

    return serve.run(deployment(replica, *arguments, **named), name=APP, route_prefix=None)


def running() -> list[Any]:
    """The actors of the replicas, those that are starting included."""
    import ray

    named = [actor for actor in ray.util.list_named_actors(all_namespaces=True) if f"{APP}#{NAME}#" in actor["name"]]
    return [ray.get_actor(**actor) for actor in sorted(named, key=lambda actor: actor["name"])]


def ready() -> int:
    """How many replicas take requests."""
    from ray import serve

    found = serve.status().applications[APP].deployments[NAME].replica_states
    return next((number for state, number in found.items() if getattr(state, "value", state) == "RUNNING"), 0)


def texts(prefixes: Prefixes, seed: int = 0) -> Iterator[tuple[str, int, int]]:
    """(prompt, group, decode tokens) for ever: token ids as text."""
    shared = np.random.default_rng(seed).integers(FIRST_TOKEN, VOCABULARY, (max(1, prefixes.count), prefixes.tokens))
    heads = [" ".join(map(str, tokens)) for tokens in shared]
    rng = np.random.default_rng([seed, 1])
    for group, decode_tokens in prefixes.draw(seed):
        own = rng.integers(FIRST_TOKEN, VOCABULARY, prefixes.suffix_tokens if prefixes.count else prefixes.tokens + prefixes.suffix_tokens)
        tail = " ".join(map(str, own))
        yield (f"{heads[group]} {tail}" if prefixes.count else tail), group, decode_tokens


def wait_for(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Its result; in a thread, since a notebook's own thread has an event loop that runs."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, coroutine).result()


@dataclass
class Outcome:
    """What clients in closed loop got."""

    answered: Answered = field(default_factory=Answered)
    asked: int = 0
    retried: int = 0
    answers: dict[int, int] = field(default_factory=dict)
    """of each request: how often it was answered in full"""
    by_replica: dict[Any, list[float]] = field(default_factory=dict)
    """when each replica answered, seconds since the start"""
    wrong: int = 0
    """answers that did not hold as many tokens as were asked for"""

    @property
    def lost(self) -> int:
        return self.asked - len(self.answers)

    @property
    def doubled(self) -> int:
        return sum(count > 1 for count in self.answers.values())


async def ask(
    handle, requests: Iterator[Any], clients: int, seconds: float | None = None, most: int | None = None, stop: asyncio.Event | None = None,
    patience: float = 120.0, outcome: Outcome | None = None,
) -> Outcome:  # fmt: skip
    """``clients`` in closed loop, for so many ``seconds``, until ``most`` requests were sent, or until ``stop`` is set; what was sent is waited for.
    A client that loses its replica sends the request again. ``outcome``: filled in as answers come, for who wants to look on."""
    outcome, start, numbers = outcome or Outcome(), time.perf_counter(), itertools.count()
    now = lambda: time.perf_counter() - start  # noqa: E731
    hits: list[bool] = []
    groups: list[int] = []
    streamed = handle.options(stream=True)

    async def client() -> None:
        while (seconds is None or now() < seconds) and (most is None or outcome.asked < most) and not (stop and stop.is_set()):
            request, number, sent = next(requests), next(numbers), now()
            outcome.asked += 1
            while now() - sent < patience:
                try:
                    first, answer = await _answer(streamed.remote(request), now)
                except Exception as error:  # of whatever kind a dying replica gives
                    logging.getLogger("lab.routing").info("request %d is sent again: %s", number, type(error).__name__)
                    outcome.retried += 1
                    await asyncio.sleep(0.05)
                    continue
                outcome.answers[number] = outcome.answers.get(number, 0) + 1
                outcome.wrong += len(answer["all"]) != request.decode_tokens
                outcome.by_replica.setdefault(answer["replica"], []).append(now())
                outcome.answered.add(sent, first, now(), len(answer["all"]))
                hits.append(answer["cached"] > len(request.prompt) / 12)
                groups.append(answer["groups"])
                break

    await asyncio.gather(*(client() for _ in range(clients)))
    outcome.answered.seconds = seconds or now()
    if hits:
        outcome.answered.hits, outcome.answered.groups = float(np.mean(hits)), float(np.mean(groups))
    return outcome


async def _answer(stream: AsyncIterator[dict], now: Callable[[], float]) -> tuple[float, dict]:
    first, last = None, {}
    async for part in stream:
        first, last = now() if first is None else first, part
    if "all" not in last:
        raise RuntimeError("the answer broke off")
    return first or now(), last
