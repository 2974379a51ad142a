"""SGLang 0.5.23 as a user starts it, on a CPU: its engine in processes of its own, Feather found as a plug-in, a model that computes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from feather.sglang import VERSIONS, check_version, missing

if missing() or check_version() != VERSIONS[-1]:
    pytest.skip(f"needs SGLang {VERSIONS[-1]}: requirements/other_sglang.sh {VERSIONS[-1]}", allow_module_level=True)

pytestmark = pytest.mark.engine

PROGRAM = """
import json, os, random, sys, tempfile
from pathlib import Path

def main(policy):
    import sglang
    from lab.engines.sglang_today import NANO

    rng = random.Random(0)
    prefixes = [[rng.randrange(10, 32_000) for _ in range(300)] for _ in range(4)]
    prompts = [prefixes[n % 4] + [rng.randrange(10, 32_000) for _ in range(8)] for n in range(24)]
    wanted = [rng.randrange(1, 24) for _ in prompts]
    engine = sglang.Engine(
        model_path=str(NANO.write(Path(tempfile.mkdtemp()))), load_format="dummy", skip_tokenizer_init=True, dtype="float32", device="cpu",
        attention_backend="torch_native", max_running_requests=6, max_total_tokens=20_000, chunked_prefill_size=512,
        disable_cuda_graph=True, schedule_policy=policy, log_level="error", random_seed=1,
    )
    params = [dict(temperature=0, max_new_tokens=count, ignore_eos=True) for count in wanted]
    outputs = engine.generate(input_ids=prompts, sampling_params=params)
    print(json.dumps({"tokens": [one["output_ids"] for one in outputs], "wanted": wanted}), flush=True)
    engine.shutdown()

if __name__ == "__main__":
    main(sys.argv[1])
"""


def generate(folder, policy, options):
    program = folder / "engine.py"
    program.write_text(PROGRAM)
    environment = {
        **os.environ,
        "SGLANG_USE_CPU_ENGINE": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(__file__).parents[1]),
        "FEATHER_OPTIONS": json.dumps(options),
    }
    done = subprocess.run([sys.executable, program, policy], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(next(line for line in done.stdout.splitlines()[::-1] if line.startswith("{")))


def test_greedy_tokens_equal_those_of_fcfs_and_nothing_is_lost(tmp_path):
    trace = tmp_path / "trace.jsonl"
    options = {"policy": "lab.policies.Threshold", "chunk_size": 32, "min_batch": 2, "max_loss": 0, "max_loss_under_load": 0}
    options["trace"] = str(trace)
    stock, found = generate(tmp_path, "fcfs", {}), generate(tmp_path, "feather", options)
    assert [len(tokens) for tokens in found["tokens"]] == found["wanted"]
    assert found["tokens"] == stock["tokens"]
    steps = [json.loads(line) for line in trace.read_text().splitlines()]
    stops = [decision for step in steps for decision in step["decisions"] if not decision[-1]]
    assert stops, "it decided in the scheduler's own process"
    assert sum(step["tokens"] for step in steps) == sum(found["wanted"])
