"""The modelled device: the step model by hand, its rows against brute force, and runs of vLLM's real scheduler on it."""

import json
from dataclasses import replace

import numpy as np
import pytest

from lab.instrument import Effort
from lab.llm import LLAMA_3_8B, LONGCHAT_13B, MODELS, TINY_LLAMA
from lab.model.hardware import DEVICES, RTX_6000_ADA
from lab.model.rows import Rows, SharedBlocks
from lab.model.steptime import Batch, StepModel, still_cached

PREFIX, OWN = 10_000, 40
BYTES = LLAMA_3_8B.kv_bytes_per_token


def batch(sizes, prefix=PREFIX, own=OWN, shuffled=True):
    members = np.repeat(np.arange(len(sizes)), sizes)
    if shuffled:
        members = np.random.default_rng(0).permutation(members)
    return Batch(np.full(sum(sizes), prefix + own), members, [[(group, prefix)] for group in range(len(sizes))])


# -- the time of a step ------------------------------------------------------------------------------------------------


def test_a_decode_step_by_hand():
    one = StepModel(RTX_6000_ADA, LLAMA_3_8B, "paged").time(batch([1]))
    weights = 2 * (32 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14_336) + 128_256 * 4096)
    assert one.weight_bytes == weights
    assert one.linear_seconds == pytest.approx(weights / 960e9)
    assert one.kv_dram_bytes == one.kv_cache_bytes == (PREFIX + OWN) * 131_072
    assert one.attention_seconds == pytest.approx((PREFIX + OWN) * 131_072 / 960e9)
    assert one.seconds == pytest.approx(one.linear_seconds + one.attention_seconds)


def test_what_rows_share_comes_from_dram_once_but_is_read_by_each():
    shared, apart = (StepModel(RTX_6000_ADA, LLAMA_3_8B).time(batch(sizes)) for sizes in ([8], [1] * 8))
    assert shared.kv_dram_bytes == (PREFIX + 8 * OWN) * BYTES and apart.kv_dram_bytes == 8 * (PREFIX + OWN) * BYTES
    assert shared.kv_cache_bytes == apart.kv_cache_bytes == 8 * (PREFIX + OWN) * BYTES


def test_prefixes_that_outgrow_the_cache_are_fetched_again_by_later_waves_and_side_by_side_they_are_not():
    model = StepModel(RTX_6000_ADA, LLAMA_3_8B)
    swept = {groups: model.time(batch([600 // groups] * groups)).kv_dram_bytes / BYTES - 600 * OWN for groups in (2, 100)}
    assert swept[2] == pytest.approx(2 * PREFIX, rel=0.15) and swept[100] > 200 * PREFIX
    ordered = model.time(batch([6] * 100, shuffled=False)).kv_dram_bytes / BYTES - 600 * OWN
    assert ordered < 110 * PREFIX


def test_cascade_runs_for_all_rows_or_for_none_and_packing_for_each_group():
    def attention(kernel, sizes):
        return StepModel(RTX_6000_ADA, LLAMA_3_8B, kernel).time(batch(sizes))

    assert attention("cascade", [500]).cascade and not attention("cascade", [499, 1]).cascade
    assert attention("cascade", [499, 1]).seconds == attention("paged", [499, 1]).seconds
    assert attention("cascade", [500]).seconds < attention("paged", [500]).seconds / 2
    assert attention("packed", [499, 1]).seconds < attention("cascade", [499, 1]).seconds / 2
    # passes over the prefix: 500 rows × 4 query heads to a KV head in tiles of 64, against one a row
    assert attention("packed", [500]).kv_cache_bytes == (32 * PREFIX + 500 * OWN) * BYTES


@pytest.mark.parametrize("rows, common, runs", [(8, 10_000, True), (7, 10_000, False), (8, 255, False), (8, 256, True)])
def test_cascade_needs_eight_rows_and_256_common_tokens(rows, common, runs):
    found = StepModel(RTX_6000_ADA, LONGCHAT_13B, "cascade").time(batch([rows], prefix=common))
    assert found.cascade == runs


def test_a_prefix_tree_is_common_as_far_as_its_root():
    paths = [[("root", 5000), (leaf, 5000)] for leaf in "ab"]
    tree = Batch(np.full(20, 10_040), [0, 1] * 10, paths)
    assert tree.common_tokens == 5000
    assert StepModel(RTX_6000_ADA, LLAMA_3_8B).time(tree).kv_dram_bytes == (15_000 + 20 * 40) * BYTES


def test_prefill_is_bound_by_compute():
    prompt = Batch([8000], None, [()], new=[8000])
    found = StepModel(RTX_6000_ADA, LLAMA_3_8B).time(prompt)
    assert found.linear_seconds == pytest.approx((8000 * LLAMA_3_8B.body_bytes + LLAMA_3_8B.head_bytes) / (364.25e12 * 0.85))
    causal = 4 * 32 * 32 * 128 * 8000 * 8000 / 2
    assert found.attention_flop == pytest.approx(causal)


def test_decoding_on_is_as_good_as_a_new_batch():
    model, grown = StepModel(RTX_6000_ADA, LLAMA_3_8B), batch([20, 20])
    model.time(grown)
    grown.private_tokens += 40 * 7
    assert model.time(grown).seconds == pytest.approx(model.time(batch([20, 20], own=OWN + 7)).seconds, rel=1e-3)


def test_scheduling_hides_behind_a_gpu_and_adds_up_on_a_cpu():
    cpu = replace(RTX_6000_ADA, overlaps=False)
    for device, more in ((RTX_6000_ADA, 0), (cpu, 0.01)):
        model = StepModel(device, LLAMA_3_8B)
        assert model.time(batch([100]), host_seconds=0.01).seconds == pytest.approx(model.time(batch([100])).seconds + more)
    assert StepModel(RTX_6000_ADA, LLAMA_3_8B).time(batch([1]), host_seconds=1.0).seconds == 1.0


def test_random_replacement_keeps_all_that_fits_and_less_and_less_of_more():
    assert still_cached(1000, 0, 1000) == 1 and still_cached(1, 0, 0) == 0
    share = [still_cached(shared, 0, 1000) for shared in (1500, 2000, 4000)]
    assert share == pytest.approx([0.417, 0.203, 0.020], abs=0.005)  # −W(−r exp(−r))/r at r = 1.5, 2, 4
    assert still_cached(500, 1000, 1000) < still_cached(500, 0, 1000)


def test_every_constant_has_a_source():
    for device in DEVICES.values():
        assert set(device.__dataclass_fields__) - {"name", "sources"} == set(device.sources)


@pytest.mark.parametrize("device, multiprocessors, flop_per_clock, hertz, bus_bits, bits_per_s", [
    ("rtx-6000-ada", 142, 1024, 2.505e9, 384, 20e9), ("a100", 108, 2048, 1.41e9, 5120, 3.186e9),
    ("h100", 132, 4096, 1.83e9, 5120, 5.234e9), ("h200", 132, 4096, 1.83e9, 6144, 6.25e9),
])  # fmt: skip
def test_rates_are_what_units_and_clocks_multiply_to(device, multiprocessors, flop_per_clock, hertz, bus_bits, bits_per_s):
    found = DEVICES[device]
    assert found.concurrent_rows == multiprocessors
    assert found.flop_rate == pytest.approx(multiprocessors * flop_per_clock * hertz, rel=1e-3)
    assert found.memory_rate == pytest.approx(bus_bits / 8 * bits_per_s, rel=1e-3)
    assert found.cache_rate / hertz == pytest.approx(round(found.cache_rate / hertz), abs=1e-6)  # bytes per clock, at that clock


@pytest.mark.parametrize("arguments, message", [
    (([10, 10], [0], [()]), "2 contexts, 1 members, 2 new"),
    (([10], [0], [[("a", 11)]]), "row 0 has a context of 10 tokens on a path of 11"),
])  # fmt: skip
def test_a_batch_that_contradicts_itself_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Batch(*arguments)


def test_an_unknown_kernel_is_refused():
    with pytest.raises(ValueError, match="attention kernel 'flash' is not one of: paged, cascade, packed"):
        StepModel(RTX_6000_ADA, LLAMA_3_8B, "flash")


# -- rows --------------------------------------------------------------------------------------------------------------


def test_a_newcomer_takes_the_lowest_free_row_and_the_rest_is_filled_from_the_end():
    rows = Rows()
    rows.update(list("abcdef"))
    assert rows.update(list("acef") + ["x"]) == (["x"], ["b", "d"])
    assert rows.ids == ["a", "x", "c", "f", "e"]
    rows.update(["e"])
    assert rows.ids == ["e"]


def test_rows_are_those_of_vllms_model_runner():
    import torch
    from vllm.sampling_params import SamplingParams
    from vllm.v1.worker.gpu_input_batch import CachedRequestState, InputBatch

    real = InputBatch(max_num_reqs=40, max_model_len=64, max_num_batched_tokens=64, device=torch.device("cpu"), vocab_size=100,
                      block_sizes=[16], kernel_block_sizes=[16], max_num_blocks_per_req=[4])  # fmt: skip
    rows, rng, running = Rows(), np.random.default_rng(1), []
    for step in range(60):
        running = [id_ for id_ in running if rng.random() < 0.8]
        running += [f"{step}-{number}" for number in range(rng.integers(0, 40 - len(running) + 1) // 3)]
        came, left = rows.update(running)
        for id_ in left:
            real.remove_request(id_)
        for id_ in came:
            real.add_request(CachedRequestState(id_, [1], [], SamplingParams(), None, ([0],), 0, []))
        real.condense()
        real.refresh_metadata()
        assert rows.ids == real.req_ids


def test_shared_blocks_equal_what_comparing_all_tables_finds():
    rng, shared, tables = np.random.default_rng(2), SharedBlocks(16), {}
    for step in range(300):
        if tables and rng.random() < 0.4:
            id_ = list(tables)[rng.integers(len(tables))]
            shared.remove(id_)
            del tables[id_]
        else:  # a cumulative path: a block is only ever behind the same blocks
            path, blocks = "", []
            for _ in range(rng.integers(0, 6)):
                path += "ab"[rng.integers(2)]
                blocks.append(path)
            shared.put(str(step), blocks)
            tables[str(step)] = blocks
        ids = list(tables)
        found = shared.batch(ids, [16 * len(tables[id_]) + 1 for id_ in ids], None)
        holders = {block: sum(block in table for table in tables.values()) for table in tables.values() for block in table}
        assert found.stretches.sum() == 16 * sum(count > 1 for count in holders.values())
        for row, id_ in enumerate(ids):
            assert found.path_tokens[found.members[row]] == 16 * sum(holders[block] > 1 for block in tables[id_])


def test_a_cost_table_without_the_engine_says_how_to_make_it(tmp_path):
    from lab.model.costs import TABLE, SchedulingCosts

    table = tmp_path / "costs.csv"
    table.write_text("".join(line for line in TABLE.read_text().splitlines(True) if "sglang" not in line))
    work = 500, 200, 3, 3, 3, 5000
    assert SchedulingCosts("vllm", table).seconds("feather", *work) == SchedulingCosts("vllm").seconds("feather", *work)
    with pytest.raises(FileNotFoundError, match="no scheduling costs of sglang in .* --engine sglang --write, or use scheduling='free'"):
        SchedulingCosts("sglang", table)
    with pytest.raises(FileNotFoundError, match="no scheduling costs of vllm"):
        SchedulingCosts("vllm", tmp_path / "none.csv")


def test_the_recorded_costs_tell_dear_queues_from_cheap_ones():
    from lab.model.costs import SchedulingCosts

    queue = {
        kind: SchedulingCosts("sglang").seconds(kind, 500, 500, 5, 5, 5, 10_000)[0]
        for kind in ("fcfs", "not asked", "feather", "lpm", "dfs-weight")
    }
    assert queue["not asked"] <= queue["fcfs"] < queue["feather"] < 0.02 * min(queue["lpm"], queue["dfs-weight"])


# -- runs --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def workloads():
    from lab.workloads import even_sizes, grouped, make_prefixes

    prefixes = make_prefixes(3, 1024)
    return prefixes, lambda seed=1, **options: grouped(prefixes, even_sizes(24, 3), seed, **{"decode_tokens": (4, 20), **options})


def sim(**options):
    from lab.engines.modelled import ModelledEngine

    return ModelledEngine(**{"max_batch": 8, "scheduling": "free", **options})


def test_a_run_gives_every_token_and_the_same_again(workloads):
    from lab.engines.arms import ARMS

    prefixes, workload = workloads
    runs = []
    for _ in range(2):
        engine = sim(scheduling="recorded")
        engine.warm(prefixes)
        engine.run(workload(seed=5), ARMS["oracle (order)"])  # what ran before makes no difference
        runs.append({name: engine.run(workload(requests_per_s=200.0), arm) for name, arm in ARMS.items()})
    for name, run in runs[0].items():
        assert run.decode_rows.sum() == run.output_tokens - 24, name
        assert run.metrics()["prefix hits"][0] > 0.95
        again = runs[1][name]
        assert np.array_equal(run.step_seconds, again.step_seconds) and run.metrics() == again.metrics(), name
    assert runs[0]["oracle (stop)"].groups.max() == 1 and runs[0]["FCFS"].groups.max() == 3


def test_arrivals_are_waited_for_on_the_virtual_clock(workloads):
    from lab.engines.arms import ARMS

    prefixes, workload = workloads
    run = sim().run(workload(requests_per_s=2.0), ARMS["FCFS"])
    assert run.seconds > 6 and run.step_seconds.sum() < run.seconds / 2 and run.first_token.max() < 0.5


def test_feather_sees_the_virtual_clock():
    from feather.options import Options

    engine = sim()
    queue = engine.scheduler.real.make_feather_queue(Options())
    engine.now = 1234.5
    assert queue.former._clock() == 1234.5


def test_chunked_prefill_and_a_small_cache_preempt_and_evict_and_lose_nothing(workloads):
    from lab.engines.arms import ARMS

    prefixes, workload = workloads
    engine = sim(kv_gib=4200 * BYTES / 2**30, max_batched_tokens=256)
    engine.warm(prefixes)
    run = engine.run(workload(decode_tokens=200), ARMS["FCFS"])
    assert run.preemptions > 0 and run.evictions > 0 and run.output_tokens == 24 * 200
    assert run.prefill_tokens.max() <= 256
    roomy = sim(max_batched_tokens=256)
    roomy.warm(prefixes)
    assert roomy.run(workload(decode_tokens=200), ARMS["FCFS"]).seconds < run.seconds


def test_a_divergent_request_ends_cascade():
    from lab.engines.arms import ARMS
    from lab.workloads import grouped, make_prefixes

    prefixes, engine = make_prefixes(2, 4000), sim(max_batch=100)
    engine.warm(prefixes)
    one, two = (engine.run(grouped(prefixes, sizes, 1, decode_tokens=16), ARMS["FCFS"]) for sizes in ([100, 0], [99, 1]))
    assert one.cascade.all() and not two.cascade.any()
    assert one.metrics()["decode throughput"][0] > 1.5 * two.metrics()["decode throughput"][0]


def test_block_hashes_are_vllms_own(workloads):
    from vllm.utils.hashing import get_hash_fn_by_name
    from vllm.v1.core.kv_cache_utils import get_request_block_hasher

    engine = sim()
    plain = get_request_block_hasher(16, get_hash_fn_by_name("sha256"))
    for number, prompt in enumerate(workloads[1]().prompts):
        request = engine.scheduler.request(str(number), prompt, 0.0)
        hashes, request.block_hashes = list(request.block_hashes), []
        assert hashes == plain(request)


@pytest.mark.parametrize("options, message", [
    ({"model": "longchat-13b", "device": replace(RTX_6000_ADA, memory_bytes=24e9)},
     "longchat-13b does not fit RTX 6000 Ada: 24.2 GiB of weights and .* GiB of activations, 20.6 of 22.4 GiB to use"),
    ({"model": "gpt-5"}, "model 'gpt-5' is not one of: tiny-llama, .*llama-3-8b"),
    ({"device": "tpu"}, "device 'tpu' is not one of: rtx-6000-ada, a100, h100, h200"),
    ({"kv_gib": 100}, "kv_gib=100 does not fit: llama-3-8b leaves .* GiB of RTX 6000 Ada for KV"),
    ({"scheduling": "fast"}, "scheduling='fast' must be one of: recorded, measured, free"),
    ({"kernel": "flash"}, "attention kernel 'flash' is not one of: paged, cascade, packed"),
    ({"device": None}, "device None is not one of"),
    ({"max_batch": 0}, "max_batch=0 must be a whole number, at least 1"),
    ({"max_batched_tokens": 2.5}, "max_batched_tokens=2.5 must be a whole number"),
    ({"block_size": 0}, "block_size=0 must be a whole number"),
    ({"kv_gib": 0}, "kv_gib=0 must be above 0, or None"),
    ({"kv_gib": float("nan")}, "kv_gib=nan must be above 0"),
    ({"memory_share": 1.5}, "memory_share=1.5 must be above 0 and at most 1"),
])  # fmt: skip
def test_what_cannot_work_is_refused_with_the_numbers(options, message):
    with pytest.raises(ValueError, match=message):
        sim(**options)


def test_a_prompt_longer_than_the_cache_is_refused_with_the_numbers():
    from lab.engines.arms import ARMS
    from lab.workloads import unshared

    with pytest.raises(
        ValueError, match="3000 prompt and 32 decode tokens cannot run: the KV cache that llama-3-8b leaves .* holds 2000 tokens"
    ):
        sim(kv_gib=2000 * BYTES / 2**30).run(unshared(1, 3000, seed=1), ARMS["FCFS"])


@pytest.mark.parametrize("constants, message", [
    ({"memory_rate": 0}, "memory_rate=0 must be above 0"), ({"cache_bytes": -1}, "cache_bytes=-1 must be 0 or above 0"),
    ({"flop_rate": float("nan")}, "flop_rate=nan must be above 0"),
])  # fmt: skip
def test_a_device_that_cannot_be_is_refused(constants, message):
    with pytest.raises(ValueError, match=f"RTX 6000 Ada: {message}"):
        replace(RTX_6000_ADA, **constants)


@pytest.mark.parametrize("options, message", [
    ({"batch": 0}, "batch=0 must be at least 1"), ({"requests_per_s": -1.0}, "requests_per_s=-1.0 must be at least 0"),
    ({"requests_per_s": float("nan")}, "requests_per_s=nan"), ({"shared": 1.5}, "shared=1.5 must be from 0 to 1"),
    ({"requests": 10, "backlog": 11}, "backlog=11 must be from 0 to 10"), ({"levels": 2}, "groups=5 with levels=2"),
])  # fmt: skip
def test_a_setting_that_cannot_be_is_refused(options, message):
    from lab.studies.scale import Setting

    with pytest.raises(ValueError, match=message):
        Setting(**options)


def test_parameters_of_the_notebooks_are_refused_by_name():
    from lab.studies import gains, scale

    scale.check_axes(2, groups=[1, 2])
    for groups in ([1], [2, 1], []):
        with pytest.raises(ValueError, match="groups=.* must be two values or more in ascending order"):
            scale.check_axes(2, groups=groups)
    assert [one.claim for one in gains.comparisons(claims=["E6", "M1"])] == ["M1", "E6"]
    for claims in ([], ["E2"]):
        with pytest.raises(ValueError, match="must be some of: M1, E1, E3, E6"):
            gains.comparisons(claims=claims)
    with pytest.raises(ValueError, match="repeats=0 must be at least 1"):
        gains.explain(gains.comparisons(), 0, None)


def test_a_queue_without_recorded_costs_is_refused():
    from lab.model.costs import SchedulingCosts

    with pytest.raises(ValueError, match="no scheduling costs of a queue of kind 'lottery', only of: .*fcfs.*scheduling_costs"):
        SchedulingCosts().seconds("lottery", 1, 1, 1, 1, 1, 100)


# -- the settings of the paper's figures -------------------------------------------------------------------------------


def test_the_patient_rule_is_the_threshold_but_for_its_patience():
    from lab.engines.arms import ARMS

    threshold = ARMS["Feather (threshold)"].options
    assert ARMS["Feather (threshold, patient)"].options == {**threshold, "max_wait": float("inf")}
    assert ARMS["Feather (threshold, patient, no floor)"].options == {**ARMS["Feather (threshold, patient)"].options, "min_batch": 1}


def test_a_backlog_is_there_at_the_start_and_the_rest_comes_at_the_rate():
    from lab.studies.scale import Setting

    setting = Setting(groups=2, prefix_tokens=16, requests=40, requests_per_s=10.0)
    times = [
        [prompt.arrival for prompt in replace(setting, backlog=there).workload(setting.prefixes(), 1).prompts] for there in (0, 15, 40)
    ]
    assert times[0][0] > 0 and times[2] == [0.0] * 40
    assert times[1][:15] == [0.0] * 15 and times[1][15:] == pytest.approx([time - times[0][14] for time in times[0][15:]])


def test_the_threshold_rule_keeps_a_batch_homogeneous_and_cannot_make_one():
    """From an empty engine it is first come, first served; from a queue it stops. Without its floor it stops in both cases."""
    from lab.engines.arms import ARMS
    from lab.studies.scale import Setting

    engine = sim(max_batch=40)
    setting = Setting(groups=4, prefix_tokens=1024, requests=160, decode_tokens=40, requests_per_s=100.0)
    prefixes = setting.prefixes()
    engine.warm(prefixes)
    groups = {}
    for there in (0, 160):
        workload = replace(setting, backlog=there).workload(prefixes, 1)
        groups[there] = {
            arm.name: engine.run(workload, arm).groups.mean()
            for arm in (ARMS["FCFS"], ARMS["Feather (threshold, patient)"], ARMS["Feather (threshold, patient, no floor)"])
        }
    assert (
        groups[0][ARMS["Feather (threshold, patient)"].name] == groups[0]["FCFS"] > 3
        and groups[160][ARMS["Feather (threshold, patient)"].name] < 2
    )
    assert max(groups[there][ARMS["Feather (threshold, patient, no floor)"].name] for there in groups) < 2.5


def test_the_engine_of_the_studies_can_be_the_modelled_one():
    from lab.engines import make_engine
    from lab.engines.modelled import ModelledEngine

    engine = make_engine("sim", "llama-3-8b", max_batch=4, kv_gib=4)
    assert isinstance(engine, ModelledEngine) and engine.backend == "sim" and engine.kv_tokens > 100_000


def test_the_published_shapes_have_the_published_sizes():
    # parameters in billions, from the model cards; KV in KiB per token by hand
    for name, billions, kib in (("llama-3-8b", 8.03, 128), ("qwen-0.5b", 0.494, 12), ("qwen-1.5b", 1.54, 28),
                                ("qwen-8b", 8.19, 144), ("longchat-13b", 13.0, 800)):  # fmt: skip
        assert MODELS[name].weight_bytes / 2e9 == pytest.approx(billions, rel=0.01), name
        assert MODELS[name].kv_bytes_per_token == kib * 1024
    assert TINY_LLAMA.kv_bytes_per_token == 8192


# -- kernel and row order ----------------------------------------------------------------------------------------------


def test_conditions_are_run_with_the_kernel_that_their_rows_name(tmp_path):
    from lab.engines import make_engine
    from lab.studies.strangers import divergence
    from lab.studies.study import COLUMNS, Study
    from lab.workloads import make_prefixes

    assert make_engine("sim", kernel="paged", kv_gib=1, kv_tokens=20_000).kernel == "paged" and make_engine("sim").kernel == "cascade"
    engine = sim(max_batch=40)
    prefixes = make_prefixes(2, 1024)
    engine.warm(prefixes)
    study = Study("00_test", engine, tmp_path)
    table = study.measure(divergence(engine, prefixes, 40, [0, 1], 10), repeats=1, kernels=["cascade", "paged", "packed"])
    assert list(table["kernel"].unique()) == ["cascade", "paged", "packed"] and engine.kernel == "cascade", "in the order asked for"
    steps = table[table["metric"] == "cascade steps"].set_index(["kernel", "divergent", "arranged"])["value"]
    assert len(steps) == 9 and steps["cascade"].drop((0, "shuffled")).eq(0).all() and steps["paged"].eq(0).all()
    assert steps["cascade", 0, "shuffled"] > 0.5 and steps["packed"].gt(0.5).all(), "in how many a shared prefix was computed once"
    for kernel in ("cascade", "paged", "packed"):
        assert {device.split(", ")[-1] for device in table[table["kernel"] == kernel]["device"]} == {f"{kernel} attention"}
    assert (table["rows"] == "engine").all() and COLUMNS[8:11] == ["backend", "kernel", "rows"]
    only = study.measure(
        divergence(engine, prefixes, 40, [0, 1], 12),
        repeats=1,
        kernels=["paged", "packed"],
        beside=lambda one: one.parameters["divergent"] == 0,
    )
    assert {(kernel, count) for kernel, count in zip(only["kernel"], only["divergent"])} == {("paged", 0), ("paged", 1), ("packed", 0)}
    with pytest.raises(ValueError, match="'flash' is not one of"):
        study.measure(divergence(engine, prefixes, 40, [0, 1], 14), repeats=1, kernels=["paged", "flash"])
    with pytest.raises(ValueError, match=r"kernels=\['paged', 'paged'\] must name at least one attention kernel, and each once"):
        study.measure(divergence(engine, prefixes, 40, [0, 1], 14), repeats=1, kernels=["paged", "paged"])


def test_sorted_rows_stand_side_by_side_and_are_told_in_the_rows(tmp_path, workloads):
    from lab.studies.evaluation import over_groups
    from lab.studies.study import Study
    from lab.workloads import make_prefixes

    engine = sim(max_batch=8, kernel="paged")
    prefixes = make_prefixes(4, 1024)
    engine.warm(prefixes)
    study = Study("00_test", engine, tmp_path)
    conditions = over_groups(engine, prefixes, [4], 24, (4, 12), arms=["FCFS"])
    tables = [study.measure(conditions, repeats=1)]
    engine.use_kernel("paged", sorted_rows=True)
    engine.use_batch(8)  # makes the scheduler anew, which must not forget it
    tables.append(study.measure(conditions, repeats=1))
    engine_order, by_prefix = (table.set_index("metric") for table in tables)
    assert set(engine_order["rows"]) == {"engine"} and set(by_prefix["rows"]) == {"prefix"}
    assert by_prefix.loc["like neighbours", "value"] > 1.5 * engine_order.loc["like neighbours", "value"]
    assert by_prefix.loc["groups per batch", "value"] == engine_order.loc["groups per batch", "value"], "the same requests run"


def test_rows_by_prefix_keep_deeper_levels_together_too():
    shared = SharedBlocks(16)
    for id_, blocks in {"a": [1, 2, 3], "b": [9, 5], "c": [1, 2, 4], "d": [9, 5, 7], "e": [1, 8], "f": [1, 2, 3, 6]}.items():
        shared.put(id_, blocks)
    order = shared.by_prefix("abcdef")
    places = {id_: place for place, id_ in enumerate(order)}
    for together in ("bd", "af", "acf", "acef"):
        spots = sorted(places[id_] for id_ in together)
        assert spots == list(range(spots[0], spots[0] + len(spots))), (together, order)


def test_a_sweep_runs_on_the_engine_that_it_is_given(tmp_path):
    from lab.studies.scale import sweep

    engine = sim(max_batch=8)
    small = {"groups": 2, "prefix_tokens": 512, "requests": 16, "decode_tokens": 4}
    (bound, full) = sweep("M5", "batch", [4, 8], engine=engine, **small)
    assert bound.run(1).decode_rows.max() == 4 and full.run(1).decode_rows.max() == 8
    assert bound.engine is engine and "device" not in bound.parameters and bound.parameters["batch"] == 4
    with pytest.raises(ValueError, match="batch=9 must be at most the engine's 8"):
        sweep("M5", "batch", [9], engine=engine, **small)


# -- what the notebooks say of their tables ----------------------------------------------------------------------------


KERNELS = ["cascade", "paged", "packed"]
BRIEF = Effort(limit=1e6, turnovers=1, target=0.2)


def studied(name, tmp_path, **options):
    from lab.studies.study import Study

    return Study(name, sim(**options), tmp_path)


def told_of(study) -> dict:
    """What the study keeps: claim → reason, figure → caption."""
    story = json.loads((study.out / "results" / f"{study.name}.json").read_text(encoding="utf-8"))
    return {entry["id"]: entry["reason"] for entry in story["claims"]} | {one["name"]: one["caption"] for one in story["figures"]}


def test_a_stranger_is_studied_under_every_kernel(tmp_path):
    from lab.studies import strangers

    study = studied("10_one_stranger", tmp_path, max_batch=32)
    runs = strangers.measure(study, 2048, 32, [0, 1, 4], 8, KERNELS, 1)
    strangers.draw(study, runs)
    strangers.claim(study, runs)
    told = told_of(study)
    assert (
        "This is under the cascade kernel; under the paged kernel it is" in told["M1"]
        and "(under the cascade kernel)" in told["m1_prefix_homogeneity"]
    )
    assert (
        "The cascade kernel computed a shared prefix once in 100 % of the homogeneous batch's steps, and in 0 % with one stranger."
        in told["M1"]
    )
    found = strangers.found(runs)
    assert [f"**Under the {kernel} kernel**" in found for kernel in KERNELS] == [True] * 3


def test_cuts_curves_and_batch_sizes_are_studied_under_every_kernel(tmp_path):
    from lab.studies import saturation, sharing
    from lab.studies.partitions import Cuts
    from lab.workloads import Loop

    study = studied("11_small_batches", tmp_path)
    cuts = Cuts(study, 1024, 2, 8, [1, 2, 4], [4, 8], KERNELS, 1)
    cuts.draw()
    cuts.claim()
    assert cuts.ratios().shape == (6, 2) and cuts.found().count("homogeneous batches are") == 3
    assert "under the packed kernel it is" in told_of(study)["M2"]
    study = studied("13_batch_size", tmp_path)
    arms = ["FCFS", "Feather (never stop)"]
    runs = saturation.steady(study, [4, 8], 2, Loop(2, 512, 16, mean_decode=8), arms, KERNELS, BRIEF)
    drained = saturation.drain(study, [4, 8], 2, 512, 16, 4, KERNELS[0], 1)
    saturation.draw(study, runs, shape := saturation.over_batches(runs, 2), 2)
    saturation.draw_drained(study, drained, 2)
    told = saturation.found(shape, runs, drained, 2)
    assert told.count("**A decode step**") == 3 and "under the packed kernel" in shape.kernels and "This is a transient." in told
    assert "**Policies**, over FCFS on 2 prefixes: Feather (never stop)" in told and "**Waiting.**" in told
    assert {(kernel, count) for kernel, count in zip(runs["kernel"], runs["groups"])} == {
        (kernel, count) for kernel in KERNELS for count in (1, 2)
    }
    assert set(runs[runs["policy"] == arms[1]]["kernel"]) == {"cascade"} and set(runs["batch"]) == {4, 8} and study.engine.max_batch == 8
    assert {"m5_batch_size", "m5_policies", "m5_drained"} <= told_of(study).keys()
    study = studied("12_what_is_shared", tmp_path)
    curves = sharing.Curves(study, 8, 4, KERNELS)
    m3, groups = curves.over_groups([1, 2, 4], 512, 16, 1)
    m4, shared = curves.over_shared([0.0, 1.0], 512, 8, 1)
    m6, levels = curves.over_levels([1, 2], 512, 16, 1)
    assert [set(table["kernel"]) for table in (m3, m4, m6)] == [set(KERNELS), {"cascade"}, set(KERNELS)]
    sharing.draw(m3, "throughput", "groups", "groups")
    assert shared.kernels == "This is under the cascade kernel." and "Groups (M3)" in sharing.found(groups, shared, levels, m3)
    assert "covers only what all requests share" in levels.told


def test_policies_meet_every_kernel_where_claims_are_judged(tmp_path):
    from lab.studies import groups, lengths, rates, sustained
    from lab.workloads import Loop, make_prefixes

    arms = ["FCFS", "Feather", "Feather (never stop)", "oracle (stop)", "oracle (order)"]
    study, prefixes = studied("20_prefix_groups", tmp_path), make_prefixes(4, 1024)
    runs = groups.full_queue(study, prefixes, [1, 4], 16, 4, arms, KERNELS, 1)
    mixed = groups.full_queue(study, prefixes, [4], 16, [2, 6], arms, KERNELS[:1], 1)
    assert {(kernel, count) for kernel, count in zip(runs["kernel"], runs["groups"])} == {
        ("cascade", 1),
        *((kernel, 4) for kernel in KERNELS),
    }
    groups.draw_groups(study, runs)
    groups.draw_kernels(study, runs, "Feather")
    groups.draw_cases(study, cases := groups.by_length(runs, mixed))
    alone = groups.unshared(study, 8, 100, 4, 1)
    groups.verdicts(study, runs, alone, "Feather (never stop)")  # so few tokens are served before the planner has learned anything
    assert "under the packed kernel it is" in told_of(study)["E3"] and "(E3, E7)" in told_of(study)["e3_kernels"]
    assert "**Kernels**, at 4 groups" in groups.found(runs, cases, alone)
    setting = {"groups": 3, "requests": 16, "batch": 8}
    study = studied("21_request_rate", tmp_path)
    rows = rates.arriving(study, [5.0, 500.0], arms[:3], KERNELS, 1, prefix_tokens=512, decode_tokens=4, **setting)
    rates.draw(study, rows, 50.0)
    assert "**Kernels**, at 10.0 times the capacity" in rates.found(rows, 50.0, "Feather")
    _, curve = sustained.under_load(study, Loop(3, 512, 16, mean_decode=8), [0.5, 1.5], arms[:3], KERNELS, BRIEF)
    rates.verdict(study, curve, "Feather")
    assert "under the paged kernel it is" in told_of(study)["E1"] and "at 0.5 times" in told_of(study)["E1"]
    study = studied("22_lengths", tmp_path)
    loop = Loop(3, 512, 16, mean_decode=8)
    e2 = lengths.steady_prefixes(study, [256, 512], loop, arms[:3], KERNELS, BRIEF)
    e4 = lengths.steady_answers(study, [4, 8], loop, arms[:3], KERNELS, BRIEF)
    answers = lengths.steady_shapes(study, ["uniform", "heavy"], loop, arms[:3], KERNELS[0], BRIEF)
    lengths.draw_steady(study, e2, e4, answers, "Feather")
    lengths.verdicts(study, e2, e4, "Feather")
    drained = (
        lengths.over_prefixes(study, [256, 512], arms[:3], KERNELS[:1], 1, decode_tokens=4, **setting),
        lengths.over_answers(study, [1, 4], arms[:3], KERNELS[:1], 1, prefix_tokens=512, **setting),
    )
    lengths.draw_prefixes(study, drained[0], "Feather")
    lengths.draw_answers(study, drained[1], "Feather")
    assert {"E2", "E4", "e2_steady", "e4_steady", "e4_shapes", "e2_kernels", "e4_kernels", "e2_prefix_length"} <= told_of(study).keys()
    assert "p99 time to first token over the second best's" in told_of(study)["E4"]
    told = lengths.found(e2, e4, answers, drained, "Feather")
    assert told.count("**Kernels**") == 2 and "uniform, the most over FCFS is" in told and "**A full queue that drains**" in told
    lengths_of = {shape: set(table["decode tokens"]) for shape, table in answers.groupby("answers")}
    assert lengths_of == {"uniform": {"4–12"}, "heavy": {"heavy, mean 8"}}


def test_order_and_stopping_are_told_apart_on_batches_of_two_sizes(tmp_path):
    from lab.studies import stopping
    from lab.studies.study import Study

    engine = sim(max_batch=8)
    study = Study("30_test", engine, tmp_path)
    sizes = stopping.Sizes(4, 1024, queue_requests=16, queue_batch=8, queue_decode=8, loop_batch=4, mean_decode=8)
    with pytest.raises(ValueError, match="chunk_sizes=\\[64\\] must contain 512"):
        stopping.drain(study, sizes, [64], "cascade", repeats=1)
    with pytest.raises(ValueError, match="cases: 'long lengths' must be one of: uniform lengths"):
        stopping.steady(study, sizes, ["long lengths"], ["cascade"], BRIEF)
    with pytest.raises(ValueError, match="the list of cases is empty"):
        stopping.steady(study, sizes, [], ["cascade"], BRIEF)
    cases = ["uniform lengths", "Zipf groups", "8 clients a row"]
    runs = stopping.steady(study, sizes, cases, ["cascade", "paged"], BRIEF)
    drained = stopping.drain(study, sizes, [64, 512], "cascade", 1)
    ran = {(kernel, case): set(table["policy"]) for (kernel, case), table in runs.groupby(["kernel", "case"])}
    assert ran == {
        ("cascade", "uniform lengths"): {*stopping.APART, *stopping.DECIDERS}, ("paged", "uniform lengths"): {*stopping.APART, stopping.RULE},
        ("cascade", "Zipf groups"): set(stopping.APART), ("cascade", "8 clients a row"): set(stopping.APART),
    }  # fmt: skip
    assert {case: (table["clients"].iloc[0], table["zipf"].iloc[0]) for case, table in runs.groupby("case")} == {
        "uniform lengths": (8, 0.0), "Zipf groups": (8, 1.0), "8 clients a row": (32, 0.0),
    }  # fmt: skip
    assert set(drained["max batch"]) == {8} and set(runs["max batch"]) == {4}
    stopping.chunk_figures(study, drained, sizes)
    stopping.apart_figures(study, runs, sizes)
    stopping.deciders_figure(study, runs, sizes)
    assert (
        "1.00 × [1.00, 1.00], n = 1" in (said := stopping.claim(study, drained, runs)) and "in steady state under the paged kernel" in said
    )
    told = stopping.found_in_words(drained, runs)
    assert [line.split("**")[1] for line in told.splitlines() if line.startswith("*")] == [
        *(f"Order and stopping, {case}." for case in cases), "Under the paged kernel", "Who decides.", "Tree.", "Chunk size", "A full queue that drains",
    ]  # fmt: skip
    assert (tmp_path / "figures" / "e9_kernels.png").exists()
    with pytest.raises(ValueError, match="rows=0 must be at least 1"):
        engine.use_batch(0)


def test_a_minute_of_serving_lasts_as_long_as_it_says(tmp_path):
    from lab.engines.arms import ARMS
    from lab.studies import tracing
    from lab.studies.study import Study
    from lab.workloads import grouped, make_prefixes

    engine = sim(max_batch=8)
    study = Study("90_test", engine, tmp_path)
    prefixes = make_prefixes(2, 1024)
    engine.warm(prefixes)
    workload = replace(grouped(prefixes, [2000, 2000], 1, decode_tokens=(4, 12)), clients=16)
    run = engine.run(replace(workload, seconds=5.0), ARMS["FCFS"])
    assert 5 < run.seconds < 6 and 100 < len(run.first_token) < 4000, "what was sent is answered, the rest is not sent"
    serving = tracing.serve(study, 2, 1024, (4, 12), requests=200, seconds=5.0)
    assert "200 requests from 16 clients" in serving.setting
    tracing.timeline(serving)
    assert "drawn" in tracing.decided(serving) or "nothing to decide" in tracing.decided(serving)
    assert tracing.found(serving).startswith("* The trace shows") and len(tracing.in_words(serving)) == 9
    prices = tracing.prices(serving)
    assert (
        prices.table["share"].sum() == pytest.approx(1) and prices.errors["error"].abs().median() < 0.2 and "was predicted" in str(prices)
    )
    with pytest.raises(ValueError, match="seconds=0 must be above 0"):
        replace(workload, seconds=0)


@pytest.mark.parametrize("kernels", [["cascade", "packed"], ["cascade", "paged", "packed"], ["cascade"]])
def test_several_models_are_drawn_under_any_kernels(tmp_path, kernels):
    from lab.studies import models

    study = models.begin("sim", tmp_path)
    sizes = {"requests": 16, "groups": 2, "prefix_tokens": 1000, "decode_tokens": 8}
    served, runs = models.over_models(study, ["qwen-0.5b", "llama-3-8b"], ["FCFS", "Feather (never stop)"], kernels, 1, 8, 1, **sizes)
    assert list(runs["kernel"].unique()) == kernels, "verdicts are the first one's"
    models.draw(study, runs, "Feather (never stop)")
    assert ("Kernels" in models.found(runs, "Feather (never stop)")) is ("packed" in kernels)
