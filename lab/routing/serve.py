"""Real replicas, Feather inside and in front of them, and OpenAI's API, in one command:

    python -m lab.routing.serve [--replicas 2] [--rows 16] [--port 8000] [--router FeatherRouter]

The model is tiny and has random weights, and no tokenizer: a prompt is a list of token ids, or text that is taken for token ids with blanks
between them, or else byte by byte; a completion is token ids as text. It shows the parts at work; docs/serving-ray.md says how to serve a real
model. Ctrl-C or SIGTERM takes everything down.
"""

import argparse
import json
import signal
import time
from typing import Any

from lab.routing import fleet
from lab.routing.real import Ask, Cell, Replica
from lab.workloads.workload import FIRST_TOKEN

MODEL = "tiny-llama"


def token_text(prompt: Any) -> str:
    """A prompt of OpenAI's API as ``Ask`` wants it. Raises ValueError for an empty one."""
    if isinstance(prompt, list) and prompt and isinstance(prompt[0], (str, list)):
        prompt = prompt[0]
    if isinstance(prompt, str) and not all(word.isdecimal() for word in prompt.split()):
        prompt = [FIRST_TOKEN + byte for byte in prompt.encode()]
    text = prompt if isinstance(prompt, str) else " ".join(map(str, prompt or ()))
    if not text.strip():
        raise ValueError("prompt is empty: give token ids or text")
    return text


def front():
    """The OpenAI-compatible application, a deployment that asks the replicas."""
    from fastapi import FastAPI, HTTPException, Request
    from fastapi.responses import StreamingResponse
    from ray import serve

    app = FastAPI(title="Feather on Ray Serve")

    class Front:
        def __init__(self, replicas):
            self._replicas = replicas.options(stream=True)

        @app.get("/v1/models")
        async def models(self) -> dict:
            return {"object": "list", "data": [{"id": MODEL, "object": "model", "owned_by": "feather"}]}

        @app.post("/v1/completions")
        async def completions(self, request: Request):
            body = await request.json()
            try:
                prompt = token_text(body.get("prompt"))
                tokens = int(body.get("max_tokens") or 16)
                if tokens < 1:
                    raise ValueError(f"max_tokens={tokens} must be at least 1")
            except (TypeError, ValueError) as error:
                raise HTTPException(400, str(error)) from None
            stream = bool(body.get("stream"))
            parts = self._replicas.remote(Ask(prompt, tokens, 0, Cell(), body.get("cache_salt"), every_token=stream))
            made = {"id": f"cmpl-{time.time_ns()}", "object": "text_completion", "created": int(time.time()), "model": MODEL}

            def choice(ids: list[int], end: str | None) -> dict:
                text = "".join(f"{id_} " for id_ in ids)
                return made | {"choices": [{"index": 0, "text": text, "logprobs": None, "finish_reason": end}]}

            if stream:

                async def events():
                    async for part in parts:
                        yield f"data: {json.dumps(choice([], 'length') if 'all' in part else choice(part['tokens'], None))}\n\n"
                    yield "data: [DONE]\n\n"

                return StreamingResponse(events(), media_type="text/event-stream")
            last: dict = {}
            async for last in parts:  # noqa: B007
                pass
            asked = prompt.count(" ") + 1
            usage = {"prompt_tokens": asked, "completion_tokens": tokens, "total_tokens": asked + tokens}
            return choice(last["all"], "length") | {"usage": usage}

    return serve.deployment(name="front", max_ongoing_requests=1000, ray_actor_options={"num_cpus": 0})(serve.ingress(app)(Front))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m lab.routing.serve", description=__doc__.splitlines()[0])
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--rows", type=int, default=16, help="requests that a replica runs at once")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument(
        "--router", default="feather.ray.router.FeatherRouter", help="path of a request router's class; '' for Ray's default"
    )
    options = parser.parse_args()
    if lacks := fleet.missing():
        parser.exit(2, f"{parser.prog}: {lacks}\n")
    signal.signal(signal.SIGTERM, fleet.end)
    signal.signal(signal.SIGINT, fleet.end)
    with fleet.cluster(options.port):
        from ray import serve

        replicas = fleet.deployment(Replica, options.rows, replicas=options.replicas, router=options.router)
        serve.run(front().bind(replicas), name=fleet.APP, route_prefix="/")
        print(f"{options.replicas} replicas of {MODEL} at http://127.0.0.1:{options.port}/v1", flush=True)
        signal.pause()


if __name__ == "__main__":
    main()
