"""Run as a program: greedy tokens of one real engine, as JSON on the last line. Arguments: JSON of LLM() arguments, and ``wrong_block``: Feather's kernel takes the first
block of every request for its second."""

import json
import os
import random
import sys
import tempfile
from pathlib import Path

os.environ.update(VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_CPU_KVCACHE_SPACE="1", HF_HUB_OFFLINE="1", VLLM_LOGGING_LEVEL="ERROR")


def main(arguments: dict) -> None:
    from vllm import LLM, SamplingParams

    from feather.vllm.attention import register
    from feather.vllm.attention.counters import NAMES
    from lab.llm import TINY_LLAMA

    register()  # as vLLM's loader of plug-ins does where Feather is installed
    speculative = "speculative_config" in arguments
    wrong_block = arguments.pop("wrong_block", False)
    with tempfile.TemporaryDirectory() as folder:
        llm = LLM(
            model=str(TINY_LLAMA.write(Path(folder), weights_seed=None if arguments.get("load_format") == "dummy" else 0)), skip_tokenizer_init=True, enforce_eager=True,
            dtype="float32", max_num_seqs=6, max_model_len=2048, max_num_batched_tokens=512, block_size=32,
            disable_log_stats=not speculative, **arguments,
        )  # fmt: skip
    rng = random.Random(0)
    prefixes = [[rng.randrange(10, 32_000) for _ in range(length)] for length in (300, 300, 40, 0)]
    prompts, params = [], []
    for number in range(24):
        prompts.append({"prompt_token_ids": prefixes[number % 4] + [rng.randrange(10, 32_000) for _ in range(8)]})
        params.append(SamplingParams(temperature=0, max_tokens=rng.randrange(1, 24), ignore_eos=True, detokenize=False))
    from feather.vllm.attention import backend  # not before the engine is made: vLLM stumbles over what numba loads

    backend.LEAST_READ = 0  # share in short steps, too
    if wrong_block:
        right = backend.make_plan

        def wrong(table, *more):
            table = table.copy()
            table[:, 1] = table[:, 0]
            return right(table, *more)

        backend.make_plan = wrong
    core = llm.llm_engine.engine_core.engine_core
    scheduler, told = core.scheduler, []
    if hasattr(scheduler, "_is_feather"):
        ran = scheduler.waiting.former.ran
        scheduler.waiting.former.ran = lambda formed, *step: (told.append(step), ran(formed, *step))
    outputs = llm.generate(prompts, params, use_tqdm=False)
    builders = [
        builder
        for groups in core.model_executor.driver_worker.worker.model_runner.attn_groups
        for group in groups
        for builder in group.metadata_builders
    ]
    counts = {metric.name: metric.value for metric in llm.get_metrics() if hasattr(metric, "value")} if speculative else {}
    found = {
        "scheduler": type(scheduler).__name__,
        "left": scheduler.get_num_unfinished_requests(),
        "tokens": [list(output.outputs[0].token_ids) for output in outputs],
        "wanted": [one.max_tokens for one in params],
        "attention": {name: sum(builder.counters[name] for builder in builders) for name in NAMES},
        "drafts": counts.get("vllm:spec_decode_num_draft_tokens", 0),
        "accepted": counts.get("vllm:spec_decode_num_accepted_tokens", 0),
        "rewarded tokens": sum(tokens for tokens, _, _ in told),
        "rewarded decode steps": [tokens for tokens, _, prefill in told if not prefill],
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
