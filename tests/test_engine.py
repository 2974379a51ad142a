"""The hook on the real engine, and the studies' own engine."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.engine


def generate(**arguments):
    program = [sys.executable, str(Path(__file__).with_name("generate.py")), json.dumps(arguments)]
    done = subprocess.run(program, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def stock():
    return generate()


THRESHOLD = {"policy": "lab.policies.Threshold", "min_batch": 2}
N_GRAMS = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 2, "prompt_lookup_min": 1}


@pytest.mark.parametrize(
    "options, drafts", [(THRESHOLD, N_GRAMS), ({"policy": "never_stop"}, None)], ids=["threshold, n-grams", "never_stop"]
)
def test_greedy_float32_tokens_equal_those_of_stock_vllm(stock, options, drafts):
    options = {**options, "chunk_size": 32}
    # vLLM's dummy weights repeat themselves, without which no draft made of n-grams is accepted.
    repeats = {"load_format": "dummy"} if drafts else {}
    stock = generate(**repeats) if drafts else stock
    speculation = {"speculative_config": drafts, **repeats} if drafts else {}
    found = generate(scheduler_cls="feather.vllm.FeatherScheduler", additional_config={"feather": options}, **speculation)
    assert (found["drafts"] > 0) is (drafts is not None) is (found["accepted"] > 0)
    assert found["rewarded tokens"] == sum(found["wanted"]), "the policy is told of every token, accepted drafts among them"
    assert (max(found["rewarded decode steps"]) > 6) is (drafts is not None), "six rows give more than six tokens where drafts are accepted"
    assert stock["scheduler"] == "Scheduler" and found["scheduler"] == "FeatherScheduler"
    assert [len(tokens) for tokens in found["tokens"]] == found["wanted"]
    assert found["tokens"] == stock["tokens"]
    assert found["left"] == 0


FEW_BLOCKS = 72
"""of 32 tokens, for 6 requests of up to 12 blocks each: prefixes are given up and computed again, and running requests preempted"""


@pytest.mark.parametrize("attention, rows", [("packed", "prefix"), ("cascade", "engine"), ("paged", "prefix")])
def test_shared_prefixes_computed_once_give_the_tokens_of_stock_vllm(stock, attention, rows):
    """Chunked prefill, mixed steps, evictions and preemption included; blocks that are used again hold other prefixes."""
    options = {"attention": attention, "rows": rows, "policy": "never_stop", "chunk_size": 32}
    found = generate(
        additional_config={"feather": options},
        num_gpu_blocks_override=FEW_BLOCKS,
        **({"scheduler_cls": "feather.vllm.FeatherScheduler"} if attention == "packed" else {}),
    )
    assert found["tokens"] == stock["tokens"]
    ran = found["attention"]
    assert ran["steps"] > 20 and ran["cascade" if attention == "packed" else "packed"] == 0
    if attention == "packed":
        assert ran["packed"] > ran["steps"] / 2 and ran["saved_tokens"] > 0
    if attention == "paged":
        assert ran["shared_rows"] == 0


def test_one_block_taken_for_another_would_change_the_tokens(stock):
    """So the tokens above tell that what was read was right: a stale block would be one such."""
    options = {"attention": "packed", "policy": "never_stop", "chunk_size": 32}
    found = generate(scheduler_cls="feather.vllm.FeatherScheduler", additional_config={"feather": options}, wrong_block=True)
    assert found["attention"]["packed"] > 0
    wrong = sum(mine != theirs for mine, theirs in zip(found["tokens"], stock["tokens"]))
    assert wrong > len(stock["tokens"]) / 4


def test_a_wrong_option_ends_the_start_up_and_is_named():
    arguments = dict(scheduler_cls="feather.vllm.FeatherScheduler", additional_config={"feather": {"polcy": "threshold"}})
    program = [sys.executable, str(Path(__file__).with_name("generate.py")), json.dumps(arguments)]
    done = subprocess.run(program, capture_output=True, text=True, timeout=300)
    assert done.returncode != 0
    assert "unknown option 'polcy': did you mean 'policy'?" in done.stderr


def test_the_studies_measure_what_ran(tmp_path):
    program = [sys.executable, str(Path(__file__).with_name("study.py")), str(tmp_path)]
    done = subprocess.run(program, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["tokens"] == 16 * 8 and found["decode tokens"] == 16 * 7, "the first token comes from the prefill"
    assert found["groups, FCFS"] > 2 and found["groups, oracle (stop)"] == 1 == found["groups, Feather (threshold)"]
    assert found["neighbours, Feather (never stop)"] > found["neighbours, FCFS"]
    assert found["warm hits"] > 0.9 and found["cold hits"] == 0
    assert found["columns"] == [
        "study", "policy", "parameters", "metric", "value", "unit", "repeat", "seed",
        "backend", "kernel", "rows", "device", "engine", "revision", "time",
    ]  # fmt: skip
    assert (tmp_path / "figures" / "figure.png").stat().st_size > 10_000 and (tmp_path / "figures" / "figure.pdf").exists()
    assert "not reproduced" in found["claim"]
    assert 20_000 - 32 < found["kv tokens"] <= 20_000
    assert found["refused"] == "kernel='flash' is not one of: paged, cascade, packed"
    # Steps in which a shared prefix was computed once: a batch on one prefix, and on two.
    assert found["paged"] == [0, 0] and found["cascade"][0] > 0.5 and found["cascade"][1] == 0 and min(found["packed"]) > 0.5
    assert found["told"] == [["cascade", "prefix"], ["paged", "prefix"]], "the kernel of each row, and the order of its rows"
    assert found["neighbours, sorted"] > found["neighbours, FCFS"]
