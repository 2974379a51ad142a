"""SGLang's real scheduler on the modelled device."""

import numpy as np
import pytest

from feather.sglang import missing

if missing():
    pytest.skip(missing(), allow_module_level=True)

from lab.engines.arms import ARMS as IN_VLLM
from lab.engines.arms import SGLANG_ARMS as ARMS
from lab.engines.modelled import ModelledEngine
from lab.llm import LLAMA_3_8B
from lab.studies import inside
from lab.workloads import even_sizes, grouped, make_prefixes

BYTES = LLAMA_3_8B.kv_bytes_per_token
PREFIXES = make_prefixes(3, 1024)
TRAINED = "Feather (SB3)"  # for a modelled GPU under vLLM


def sim(engine="sglang", **options):
    made = ModelledEngine(**{"max_batch": 8, "scheduling": "free", "engine": engine, **options})
    made.warm(PREFIXES)
    return made


def workload(requests=24, seed=1, **options):
    return grouped(PREFIXES, even_sizes(requests, 3), seed, **{"decode_tokens": (4, 20), **options})


def test_a_run_gives_every_token_and_the_same_again():
    runs = []
    for _ in range(2):
        engine = sim(scheduling="recorded")
        engine.run(workload(seed=5), ARMS["DFS-weight"])  # what ran before makes no difference
        runs.append({name: engine.run(workload(requests_per_s=200.0), arm) for name, arm in ARMS.items() if name != TRAINED})
    for name, run in runs[0].items():
        assert run.decode_rows.sum() == run.output_tokens - 24, name  # SGLang's prefill step gives the first token
        assert run.metrics()["prefix hits"][0] > 0.95
        assert np.array_equal(run.step_seconds, runs[1][name].step_seconds) and run.metrics() == runs[1][name].metrics(), name
    assert runs[0]["FCFS"].groups.max() == 3


@pytest.mark.parametrize("name", ["FCFS", "Feather (never stop)", "Feather (threshold)"])
@pytest.mark.parametrize("groups", [1, 3])
def test_both_engines_decode_the_same_batches_where_their_limits_agree(name, groups):
    """A queue that is a multiple of the batch, equal decode lengths: in each engine a batch ends in one step."""
    whole = grouped(PREFIXES[:groups], even_sizes(8 * groups * 2, groups), seed=1, decode_tokens=10)
    found = []
    for engine in ("vllm", "sglang"):
        made = sim(engine, kernel="paged")
        made.run(whole, IN_VLLM[name])
        ids = [
            frozenset(id_.split("-")[1] for id_ in step.groups)
            for step in made.scheduler.steps
            if step.decode_rows and not step.prefill_tokens
        ]
        found.append(ids)
    assert found[0] == found[1] and len(set(found[0])) == 2 * groups


def test_the_time_of_a_decode_step_is_that_of_the_same_batch_inside_vllm():
    times = []
    for engine in ("vllm", "sglang"):
        run = sim(engine, kernel="paged").run(workload(8, decode_tokens=10), IN_VLLM["FCFS"])
        times.append(run.step_seconds[run.prefill_tokens == 0])
    # vLLM shares whole blocks of 16 tokens; 1024 is a multiple of it
    assert times[0] == pytest.approx(times[1], rel=1e-6)


def test_prompts_run_apart_from_decoding_and_in_chunks():
    run = sim(max_batched_tokens=256).run(workload(), ARMS["FCFS"])
    assert run.prefill_tokens.max() <= 256
    assert ((run.prefill_tokens > 0) != (run.decode_rows > 0)).all()


def test_a_small_cache_retracts_and_evicts_and_loses_nothing():
    engine = sim(kv_gib=4200 * BYTES / 2**30, max_batched_tokens=256)
    run = engine.run(workload(decode_tokens=200), ARMS["FCFS"])
    assert run.preemptions > 0 and run.evictions > 0 and run.output_tokens == 24 * 200
    assert sim(max_batched_tokens=256).run(workload(decode_tokens=200), ARMS["FCFS"]).seconds < run.seconds


def test_what_is_shared_is_what_lies_in_the_same_slots():
    """Against brute force over SGLang's own table of slots."""
    engine = sim(max_batched_tokens=700, max_batch=12)
    scheduling, seen = engine.scheduler, []
    plain = scheduling.batch

    def checked(free_prefill):
        batch = plain(free_prefill)
        requests = scheduling._running.reqs
        table = scheduling.real.req_to_token_pool.req_to_token
        slots = [table[request.req_pool_idx, :context].tolist() for request, context in zip(requests, batch.contexts)]
        holders = {}
        for row in slots:
            for slot in row:
                holders[slot] = holders.get(slot, 0) + 1
        assert batch.stretches.sum() == sum(count > 1 for count in holders.values())
        for row, own in enumerate(slots):
            assert batch.path_tokens[batch.members[row]] == sum(holders[slot] > 1 for slot in own)
        seen.append((len(requests), batch.stretches.sum()))
        return batch

    scheduling.batch = checked
    engine.run(workload(36), ARMS["FCFS"])
    assert max(rows for rows, _ in seen) == 12 and max(shared for _, shared in seen) >= 3 * 1024


def charged(arm, requests):
    """(kind that a step is charged by, requests waiting before it), the prompts that fill the cache left out."""
    engine, found = sim(), []
    plain = engine.scheduler.schedule

    def noted():
        waiting = engine.scheduler.waiting
        found.append((plain_result := plain(), waiting))
        return plain_result

    engine.scheduler.schedule = noted
    engine.run(workload(requests), arm)
    return {(scheduled.charged, waiting > 128) for scheduled, waiting in found[1:]}


def test_what_sglang_did_in_a_step_is_what_is_charged():
    assert charged(ARMS["LPM"], 200) == {("fcfs", True), ("not asked", True), ("lpm", False), ("not asked", False)}
    assert charged(ARMS["LPM, no cut-off"], 200) == {("lpm", True), ("not asked", True), ("lpm", False), ("not asked", False)}
    assert charged(ARMS["Feather (never stop)"], 200) == {("feather", True), ("feather", False)}


def test_feather_sees_the_virtual_clock():
    engine = sim()
    engine.scheduler.use(ARMS["Feather"])
    engine.now = 1234.5
    assert engine.scheduler.real.policy.former._clock() == 1234.5


@pytest.mark.parametrize("options, message", [
    ({"engine": "tgi"}, "engine='tgi' must be one of: vllm, sglang"),
    ({"prefix_caching": False}, "prefix_caching=False: not modelled for engine='sglang'"),
])  # fmt: skip
def test_what_cannot_work_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        sim(**options)


def test_an_arm_of_the_other_engine_is_refused():
    with pytest.raises(ValueError, match=r"'oracle \(stop\)' is not one of the arms inside SGLang 0.5.9: FCFS, "):
        sim().run(workload(), IN_VLLM["oracle (stop)"])
    with pytest.raises(ValueError, match="'LPM' is a policy of SGLang's: it needs engine='sglang'"):
        sim("vllm").run(workload(), ARMS["LPM"])


def test_the_kernel_is_the_engines_unless_another_is_asked_for():
    assert sim().kernel == "paged" and sim("vllm").kernel == "cascade" and sim(kernel="cascade").kernel == "cascade"
    assert sim().engine_version == "sglang 0.5.9"


def test_a_study_can_compare_both_engines_with_unequal_decode_lengths():
    conditions = inside.compared("E5", "decode_tokens", [(5, 15)], ["FCFS"], requests=6, batch=4)
    assert [one.parameters["inside"] for one in conditions] == ["vllm", "sglang"]
    assert all(one.parameters["decode_tokens"] == (5, 15) for one in conditions)
    with pytest.raises(ValueError, match=r"decode_tokens=\(15, 5\) must be at least 1"):
        inside.compared("E5", "decode_tokens", [(15, 5)], ["FCFS"])
