"""The same with Ray Serve LLM: its own server and OpenAI API, Feather as router and as scheduler: ``python -m lab.routing.llm [--port 8000]``.

``Server`` is all that Ray Serve LLM lacks for Feather's router: replicas that report what they hold. The model is tiny, with random weights and
without a tokenizer, so prompts are token ids.
"""

import argparse
import signal
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from ray.serve.llm import LLMConfig, build_openai_app
from ray.serve.llm.deployment import LLMServer

from feather.ray.prompts import prefix_path
from feather.ray.statistics import Outstanding
from lab import machine
from lab.llm import TINY_LLAMA
from lab.routing import fleet


class Server(LLMServer):
    """Ray Serve LLM's server, which reports."""

    async def __init__(self, *arguments: Any, **named: Any):
        await super().__init__(*arguments, **named)
        self._here = Outstanding()

    async def _run_request(self, request: Any, **named: Any) -> AsyncIterator[Any]:
        return self._watched(request, await super()._run_request(request, **named))

    async def _watched(self, request: Any, parts: AsyncIterator[Any]) -> AsyncIterator[Any]:
        with self._here.request(prefix_path([request])) as number:
            async for part in parts:
                self._here.runs(number)
                yield part

    async def record_routing_stats(self) -> dict[str, Any]:
        return await super().record_routing_stats() | self._here.report()


def application(folder: Path, replicas: int = 2, rows: int = 16):
    """The Ray Serve LLM application."""
    config = LLMConfig(
        model_loading_config={"model_id": TINY_LLAMA.name, "model_source": str(TINY_LLAMA.write(folder))},
        server_cls=Server,
        accelerator_config={"kind": "cpu"},
        placement_group_config={"bundles": [{"CPU": 1}]},
        deployment_config={
            "num_replicas": replicas,
            "max_ongoing_requests": 1000,
            "request_router_config": {"request_router_class": "feather.ray.router.FeatherRouter", "request_routing_stats_period_s": 0.5},
        },
        engine_kwargs={
            "load_format": "dummy", "skip_tokenizer_init": True, "dtype": machine.cpu_dtype(), "enforce_eager": True, "max_num_seqs": rows, "block_size": 32,
            "max_model_len": TINY_LLAMA.max_tokens, "enable_prefix_caching": True, "scheduler_cls": "feather.vllm.FeatherScheduler",
            "distributed_executor_backend": "uni", "additional_config": {"feather": {"policy": "never_stop"}},
        },
        runtime_env={"env_vars": {"VLLM_CPU_KVCACHE_SPACE": str(int(machine.gib(1))), "HF_HUB_OFFLINE": "1"}},
        log_engine_metrics=False,
    )  # fmt: skip
    return build_openai_app({"llm_configs": [config]})


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m lab.routing.llm", description=__doc__.splitlines()[0])
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--port", type=int, default=8000)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, fleet.end)
    signal.signal(signal.SIGINT, fleet.end)
    with fleet.cluster(options.port), tempfile.TemporaryDirectory() as folder:
        from ray import serve

        serve.run(application(Path(folder), options.replicas), name=fleet.APP, route_prefix="/")
        print(f"{options.replicas} replicas of {TINY_LLAMA.name} at http://127.0.0.1:{options.port}/v1", flush=True)
        signal.pause()


if __name__ == "__main__":
    main()
