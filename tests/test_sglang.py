"""Feather inside SGLang's real scheduler, without a model."""

import argparse
import logging
import random
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from prometheus_client import REGISTRY

import feather.sglang

if feather.sglang.missing():
    pytest.skip(feather.sglang.missing(), allow_module_level=True)

import sglang_modelless  # first: it puts in place what SGLang needs without a GPU

# isort: split
import modelless
from sglang.srt.managers.io_struct import AbortReq
from sglang.srt.managers.schedule_policy import SchedulePolicy
from sglang.srt.server_args import ServerArgs
from sglang_modelless import TODAY, Driver, make_request, make_scheduler, retract, retractions, set_clock

from feather.hashing import hash_tokens
from feather.options import Options
from feather.policies import NeverStop
from feather.sglang import install
from feather.sglang.schedule_policy import FeatherSchedulePolicy, prompt_path
from feather.vllm import FeatherScheduler

CHUNK = 32
THRESHOLD = {"policy": "lab.policies.Threshold", "chunk_size": CHUNK, "min_batch": 2, "max_loss": 0, "max_loss_under_load": 0}
NEVER_STOP = {"policy": "never_stop", "chunk_size": CHUNK}
MODES = {
    "plain": {}, "chunked": {"chunked_prefill_size": 100}, "mixed": {"enable_mixed_chunk": True},
    "overlap": {"disable_overlap_schedule": False}, "retracting": {"slots": 400, "schedule_conservativeness": 0.1},
}  # fmt: skip


def prompt(group, number, length=128):
    rng = random.Random(group)
    return [rng.randrange(10, 9999) for _ in range(length)] + [10_000 + number] * 5


def pairs(groups, each):
    return [(group, number) for number in range(each) for group in range(groups)]


def requests(groups=3, each=4, decode=lambda i: 4, **arguments):
    return [
        make_request(f"{group}.{number}", prompt(group, number), decode(i), **arguments)
        for i, (group, number) in enumerate(pairs(groups, each))
    ]


def scheduler_with(options, **settings):
    return make_scheduler(options, **settings)


in_059 = pytest.mark.skipif(TODAY, reason="of SGLang 0.5.9's classes")
in_0523 = pytest.mark.skipif(not TODAY, reason="of SGLang 0.5.23's plug-ins")


def groups_of(ids):
    return {id_.split(".")[0] for id_ in ids}


def is_empty(scheduler):
    scheduler.policy.formed(scheduler.waiting_queue)
    former = scheduler.policy.former
    return not former.running and not former.tree.nodes() and not scheduler.policy.admission.aside


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("options", [THRESHOLD, NEVER_STOP], ids=["threshold", "never_stop"])
def test_every_request_finishes_once_with_its_tokens(options, mode):
    scheduler = scheduler_with(options, **MODES[mode])
    lengths = random.Random(0)
    everyone = requests(each=6, decode=lambda i: lengths.randint(1, 60))
    driver = Driver(scheduler)
    driver.add(*everyone)
    driver.run()
    assert all(request.finished() and len(request.output_ids) == request.sampling_params.max_new_tokens for request in everyone)
    assert scheduler.fallback is None and is_empty(scheduler)
    assert (sum(retractions(request) for request in everyone) > 0) is (mode == "retracting")


def test_a_stopped_batch_is_homogeneous_and_never_stopping_sorts_by_prefix():
    for options, expected in ((THRESHOLD, {1}), (NEVER_STOP, {2})):
        driver = Driver(scheduler_with(options, chunked_prefill_size=4096))
        driver.add(*requests(groups=4, each=4))
        driver.run()
        assert {len(groups_of(batch)) for batch in driver.batches} == expected


def test_without_sharing_the_order_is_first_come_first_served():
    starts = []
    for options, policy in ((NEVER_STOP, "fcfs"), (NEVER_STOP, "feather"), (THRESHOLD, "feather")):
        driver = Driver(scheduler_with(options, schedule_policy=policy))
        driver.add(*(make_request(str(i), prompt(i, 0), 3 + i % 5) for i in range(30)))
        driver.run()
        starts.append(driver.starts)
    assert starts[0] == starts[1] == starts[2]


def test_stopping_is_void_while_nothing_runs():
    scheduler = scheduler_with(THRESHOLD)
    driver = Driver(scheduler)
    driver.add(*requests(groups=3, each=2, decode=lambda i: 50))
    for _ in range(5):
        driver.step()
    assert groups_of(driver.batches[-1]) == {"0"} and len(scheduler.waiting_queue) == 4 and scheduler.policy.admission.stops > 0
    scheduler.abort_request(AbortReq(rid="0."))
    driver.run()
    assert [groups_of(start) for start in driver.starts] == [{"0"}, {"1"}, {"2"}]


def test_a_newcomer_that_fits_joins_a_stopped_batch():
    driver = Driver(scheduler_with(THRESHOLD))
    driver.add(*requests(groups=2, each=2, decode=lambda i: 50))
    for _ in range(5):
        driver.step()
    driver.add(make_request("0.new", prompt(0, 9)))
    for _ in range(3):
        driver.step()
    assert set(driver.batches[-1]) == {"0.0", "0.1", "0.new"}


@pytest.mark.parametrize("options", [THRESHOLD, NEVER_STOP], ids=["threshold", "never_stop"])
def test_aborts_while_waiting_and_running(options):
    scheduler = scheduler_with(options)
    driver, everyone, rng = Driver(scheduler), requests(each=8, decode=lambda i: 10), random.Random(1)
    driver.add(*everyone)
    aborted = set()
    while driver.step() or scheduler.waiting_queue:
        if len(aborted) < 10:
            victim = rng.choice([request for request in everyone if not request.finished()])
            aborted.add(victim)
            scheduler.abort_request(AbortReq(rid=victim.rid))
    assert all(len(request.output_ids) == 10 for request in everyone if request not in aborted)
    assert scheduler.fallback is None and is_empty(scheduler)


def test_the_working_set_is_what_runs():
    scheduler = scheduler_with(NEVER_STOP, **MODES["retracting"])
    driver, rng = Driver(scheduler), random.Random(2)
    everyone = requests(each=6, decode=lambda i: rng.randint(1, 60))
    driver.add(*everyone)
    while (batch := driver.step()) or scheduler.waiting_queue:
        scheduler.policy.admission.guarded(scheduler.policy._reconcile, scheduler.waiting_queue)
        running = {*scheduler.running_batch.reqs, *(batch.reqs if batch else ()), *filter(None, [scheduler.chunked_req])}
        assert scheduler.policy.former.running == {request for request in running if not request.finished()} - set(scheduler.waiting_queue)
        assert scheduler.policy.former.tree.waiting == set(scheduler.waiting_queue)
    assert sum(retractions(request) for request in everyone) > 0


def test_a_retracted_request_goes_first():
    scheduler = scheduler_with(NEVER_STOP)
    driver = Driver(scheduler)
    driver.add(*requests(groups=2, each=6, decode=lambda i: 30))
    for _ in range(5):
        driver.step()
    victim = retract(scheduler)
    assert scheduler.waiting_queue[-1] is victim
    batch = driver.step()
    assert batch.reqs == [victim]


@pytest.mark.parametrize("key", ["extra_key", "lora_id"])
def test_an_extra_key_is_part_of_the_prefix(key):
    tokens = prompt(0, 0)
    mine, same, other, none = (
        make_request(str(i), tokens, **({key: value} if value else {})) for i, value in enumerate(["a", "a", "b", None])
    )
    paths = [list(prompt_path(request, CHUNK)) for request in (mine, same, other, none)]
    assert (
        paths[0] == paths[1]
        and not set(paths[0]) & set(paths[2])
        and paths[3] == hash_tokens(tokens, CHUNK)
        and not set(paths[0]) & set(paths[3])
    )
    driver = Driver(scheduler_with(THRESHOLD, chunked_prefill_size=4096))
    driver.add(*(make_request(f"{'ab'[i % 2]}.{i}", tokens, **{key: "ab"[i % 2]}) for i in range(8)))
    driver.run()
    assert [groups_of(start) for start in driver.starts] == [{"a"}, {"b"}]


def test_what_the_engine_passes_over_waits_for_another_step():
    """With room for one adapter, SGLang passes over requests of another one; they and the others all get their turn."""
    scheduler = scheduler_with(NEVER_STOP, loras=1, enable_lora=True)
    driver = Driver(scheduler)
    everyone = [make_request(f"{'ab'[i // 2 % 2]}.{i}", prompt(0, i), 3 + i, lora_id="ab"[i // 2 % 2]) for i in range(12)]
    driver.add(*everyone)
    driver.run()
    assert all(request.finished() for request in everyone) and scheduler.fallback is None and is_empty(scheduler)
    assert {len(groups_of(batch)) for batch in driver.batches} == {1}


@pytest.mark.parametrize("low_first", [False, True])
def test_priority_comes_before_prefix(low_first):
    settings = {"enable_priority_scheduling": True, "schedule_low_priority_values_first": low_first, "chunked_prefill_size": 4096}
    driver = Driver(scheduler_with(NEVER_STOP, **settings))
    urgent = -1 if low_first else 1
    driver.add(*(make_request(f"{group}.{i}", prompt(group, i), 4, priority=urgent * (i % 3)) for i, (group, _) in enumerate(pairs(2, 12))))
    driver.run()
    assert [[int(id_.split(".")[1]) % 3 for id_ in start] for start in driver.starts] == [[2] * 8, [1] * 8, [0] * 8]
    assert all(len(groups_of(start[:4])) == 1 for start in driver.starts), "within a priority, relatives come together"


def test_a_stop_holds_back_no_better_priority():
    scheduler = scheduler_with(THRESHOLD, enable_priority_scheduling=True)
    driver = Driver(scheduler)
    driver.add(*requests(groups=1, each=3, decode=lambda i: 40, priority=0))
    for _ in range(3):
        driver.step()
    driver.add(make_request("1.same", prompt(1, 0), 40, priority=0))
    driver.step()
    assert [r.rid for r in scheduler.waiting_queue] == ["1.same"]
    driver.add(make_request("2.better", prompt(2, 0), 40, priority=1))
    driver.step()
    assert driver.starts[-1][0] == "2.better"


class Failing(NeverStop):
    def __init__(self, after):
        self.left = after

    def choose(self, *situation):
        self.left -= 1
        if self.left < 0:
            raise RuntimeError("out of ideas")
        return super().choose(*situation)


class Slow(NeverStop):
    def choose(self, *situation):
        time.sleep(0.002)
        return super().choose(*situation)


@pytest.mark.parametrize("policy", [Failing(0), Failing(7), Slow()], ids=["at once", "later", "too slow"])
def test_sglang_goes_on_by_itself_when_feather_fails(policy, monkeypatch, caplog):
    monkeypatch.setattr("feather.options.Options.make_policy", lambda self: policy)
    scheduler = scheduler_with({**NEVER_STOP, "decision_budget": 0.001})
    driver, everyone = Driver(scheduler), requests(each=8)
    driver.add(*everyone)
    with caplog.at_level(logging.ERROR):
        driver.run()
    assert all(len(request.output_ids) == 4 for request in everyone)
    assert isinstance(scheduler.policy, SchedulePolicy) and scheduler.fallback
    assert [record for record in caplog.records if "Feather failed" in record.message] == caplog.records[:1]


class Told(NeverStop):
    def __init__(self):
        self.steps = []

    def feedback(self, step):
        self.steps.append(step)


@pytest.mark.parametrize("mode", ["plain", "chunked", "mixed", "overlap"])
def test_the_policy_is_told_what_each_step_gave(mode, monkeypatch):
    policy, now, durations = Told(), [0.0], []
    monkeypatch.setattr("feather.options.Options.make_policy", lambda self: policy)
    scheduler = scheduler_with(NEVER_STOP, **MODES[mode])
    set_clock(scheduler, lambda: now[0])
    driver, everyone = Driver(scheduler), requests(each=6)
    driver.add(*everyone)
    run = driver._run

    def run_for_a_while(batch):
        durations.append(0.01 * (len(durations) + 1))
        now[0] += durations[-1]
        return run(batch)

    driver._run = run_for_a_while
    driver.run()
    assert len(policy.steps) == len(durations)
    if mode != "overlap":  # there a request that has finished is in one more step, and gives nothing
        assert [step.tokens for step in policy.steps if not step.prefill_tokens] == [len(batch) for batch in driver.decodes]
    assert sum(step.tokens for step in policy.steps) == sum(len(request.output_ids) for request in everyone)
    computed = sum(len(request.origin_input_ids) - request.cached_tokens for request in everyone)
    assert sum(step.prefill_tokens for step in policy.steps) == computed > 0
    assert sum(step.seconds for step in policy.steps) == pytest.approx(sum(durations))


@pytest.mark.parametrize("options", [NEVER_STOP, {**THRESHOLD, "straggler_share": 0.0}], ids=["never_stop", "threshold"])
@pytest.mark.parametrize("groups, each", [(3, 4), (5, 3), (2, 16), (1, 20), (20, 1)])
def test_both_engines_start_the_same_batches(tmp_path, options, groups, each):
    """All requests come at once and decode equally long, so that a batch ends in one step: SGLang gives the place of a
    request that has finished away one step later than vLLM does, which is theirs and not Feather's."""
    options = {**options, "max_wait": 1000.0}
    order = random.Random(groups).sample(pairs(groups, each), groups * each)
    peer = Driver(scheduler_with(options, chunked_prefill_size=16_384))
    peer.add(*(make_request(f"{group}.{number}", prompt(group, number)) for group, number in order))
    peer.run()
    scheduler = modelless.make_scheduler(FeatherScheduler, tmp_path, feather=options, max_tokens=16_384)
    driver, starts = modelless.Driver(scheduler), []
    driver.add(*(modelless.make_request(scheduler, f"{group}.{number}", prompt(group, number)) for group, number in order))
    while scheduler.has_unfinished_requests():
        if new := [request.req_id for request in driver.step().scheduled_new_reqs]:
            starts.append(new)
    assert peer.starts == starts and len(starts) > (groups * each > 8)


# -- what makes a prefix -----------------------------------------------------------------------------------------------


@in_0523
def test_a_cache_salt_is_part_of_the_prefix():
    tokens = prompt(0, 0)
    mine, same, other, none = (make_request(str(i), tokens, cache_salt=salt) for i, salt in enumerate(["a", "a", "b", None]))
    paths = [list(prompt_path(request, CHUNK)) for request in (mine, same, other, none)]
    assert paths[0] == paths[1] and paths[3] == hash_tokens(tokens, CHUNK)
    assert not set(paths[0]) & set(paths[2]) and not set(paths[0]) & set(paths[3])
    driver = Driver(scheduler_with(THRESHOLD, chunked_prefill_size=4096))
    driver.add(*(make_request(f"{'ab'[i % 2]}.{i}", tokens, cache_salt="ab"[i % 2]) for i in range(8)))
    driver.run()
    assert [groups_of(start) for start in driver.starts] == [{"a"}, {"b"}]


def test_a_prompt_of_embeddings_shares_nothing():
    assert prompt_path(SimpleNamespace(input_embeds=[[0.0]], origin_input_ids=[1] * 64, extra_key=None), CHUNK) == ()
    assert FeatherSchedulePolicy.calc_priority.__name__ == SchedulePolicy.calc_priority.__name__  # the name that SGLang calls


# -- metrics -----------------------------------------------------------------------------------------------------------


def test_its_metrics_have_sglangs_prefix_and_labels():
    labels = {"model_name": "tiny", "engine_type": "unified", "tp_rank": 0}

    def value(name):
        return REGISTRY.get_sample_value(f"sglang:feather_{name}", {name: str(value) for name, value in labels.items()})

    scheduler = scheduler_with(THRESHOLD)
    scheduler.metrics_collector = SimpleNamespace(labels=labels)
    driver = Driver(scheduler)
    driver.add(*requests(groups=2, each=2, decode=lambda i: 6))
    driver.step()
    assert value("tip_tokens") == 128 and abs(value("batch_homogeneity") - 1 / 2) < 1e-6 and value("stops_total") == 1
    assert 0 < value("oldest_wait_seconds") < 60 and value("decision_seconds_count") == 1
    driver.run()
    assert value("decisions_total") == scheduler.policy.former.decisions and value("fallbacks_total") == 0
    scheduler.policy.former.policy = None
    driver.add(*requests(groups=2, each=2))
    driver.run()
    scheduler.metrics_collector = None
    assert value("fallbacks_total") == 1 and scheduler.fallback


# -- installing --------------------------------------------------------------------------------------------------------


def parse(*arguments):
    parser = argparse.ArgumentParser(exit_on_error=False)
    ServerArgs.add_cli_args(parser)
    return parser.parse_args(["--model-path", "none", *arguments])


def test_the_policy_is_one_of_sglangs_choices():
    install()
    install()
    assert parse("--schedule-policy", "feather").schedule_policy == "feather"
    assert parse("--schedule-policy", "lpm").schedule_policy == "lpm" and parse().schedule_policy == "fcfs"
    with pytest.raises(argparse.ArgumentError, match=r"invalid choice: 'feathr' \(choose from.*'?feather'?\)"):
        parse("--schedule-policy", "feathr")


def test_sglangs_other_policies_stay_as_they_are():
    for policy in ("fcfs", "lpm"):
        scheduler = scheduler_with(NEVER_STOP, schedule_policy=policy)
        assert type(scheduler.policy) is SchedulePolicy and scheduler.policy.policy.value == policy
        driver = Driver(scheduler)
        driver.add(*requests())
        assert all(request.finished() for request in driver.run().requests)


def test_a_wrong_option_is_refused_by_name():
    with pytest.raises(ValueError, match="chunk_sizes.*did you mean 'chunk_size'"):
        install({"chunk_sizes": 3})


@pytest.mark.parametrize("found", ["0.5.10", None])
def test_another_sglang_is_refused(found, monkeypatch):
    def version(name):
        if found is None:
            raise feather.sglang.supported.PackageNotFoundError(name)
        return found

    monkeypatch.setattr("feather.sglang.supported.version", version)
    told = r"needs SGLang 0\.5\.9 or 0\.5\.23 and " + (r"this is SGLang 0\.5\.10: " if found else "none is installed: ")
    with pytest.raises(ImportError, match=told):
        install()


UNSUPPORTED = [("tp_size", 2), ("pp_size", 2), ("disaggregation_mode", "prefill"), ("enable_pdmux", True)]


@in_059
@pytest.mark.parametrize("name, value", UNSUPPORTED)
def test_what_is_not_supported_is_refused_before_the_model_loads(name, value):
    from sglang_modelless import server_arguments

    install()
    with pytest.raises(ValueError, match=f"does not support {name}={value!r}"):
        server_arguments(**{name: value}).check_server_args()


@in_059
def test_priorities_pass_sglangs_own_check():
    from sglang_modelless import server_arguments

    install()
    arguments = server_arguments(enable_priority_scheduling=True, schedule_policy="feather")
    arguments.check_server_args()
    assert arguments.schedule_policy == "feather"
    with pytest.raises(AssertionError, match="'lpm' is not supported"):
        server_arguments(enable_priority_scheduling=True, schedule_policy="lpm").check_server_args()


@in_0523
@pytest.mark.parametrize("name, value", UNSUPPORTED)
def test_what_is_not_supported_is_refused_when_the_arguments_are_resolved(tmp_path, name, value):
    chosen = sglang_modelless.sglang_today.arguments(tmp_path, **{name: value})
    with pytest.raises(ValueError, match=f"does not support {name}={value!r}"):
        chosen.resolve_once()


@in_0523
def test_the_arguments_stay_as_the_user_wrote_them_and_sglang_reckons_with_its_own_default(tmp_path):
    from sglang.srt.arg_groups.overrides import resolving_view

    chosen = sglang_modelless.sglang_today.arguments(tmp_path, enable_priority_scheduling=True)
    chosen.resolve_once()
    chosen.check_server_args()
    assert chosen.schedule_policy == "feather" and resolving_view(chosen).schedule_policy == "fcfs"
    with pytest.raises(AttributeError, match="read-only"):
        chosen.schedule_policy = "fcfs"
    other = sglang_modelless.sglang_today.arguments(tmp_path, enable_priority_scheduling=True, schedule_policy="lpm")
    other.resolve_once()
    with pytest.raises(AssertionError, match="'lpm' is not supported"):
        other.check_server_args()


@in_0523
def test_a_wrong_option_in_the_environment_ends_the_start_up(tmp_path, monkeypatch):
    monkeypatch.setenv("FEATHER_OPTIONS", '{"polcy": 1}')
    with pytest.raises(ValueError, match="unknown option 'polcy': did you mean 'policy'"):
        sglang_modelless.sglang_today.arguments(tmp_path).resolve_once()


@in_0523
def test_it_is_a_plug_in_that_sglang_finds_and_that_leaves_its_classes_alone():
    from importlib.metadata import entry_points

    from sglang.srt.managers.schedule_policy import PrefillAdder
    from sglang.srt.managers.scheduler import Scheduler

    assert [point.value for point in entry_points(group="sglang.srt.plugins", name="feather")] == ["feather.sglang.plugin:register"]
    assert Scheduler.__module__ == "sglang.srt.managers.scheduler" and PrefillAdder.__module__ == "sglang.srt.managers.schedule_policy"
    assert scheduler_with(NEVER_STOP).get_prefill_adder_class().__name__ == "FeatherAdder"
    assert scheduler_with(NEVER_STOP, schedule_policy="lpm").get_prefill_adder_class() is PrefillAdder


@in_059
def test_the_schedulers_own_process_has_it_too(tmp_path):
    """As SGLang starts its scheduler: spawned, from a launching script that installs at its top level."""
    script = tmp_path / "serve.py"
    script.write_text(
        "from lab.engines.sglang_stubs import stub\nstub()\nimport feather.sglang.serve\n"
        "def child(pipe):\n"
        "    from sglang.srt.managers import scheduler\n"
        "    from feather.options import Options\n"
        "    pipe.send((scheduler.PrefillAdder.__name__, Options.from_environment().policy))\n"
        "if __name__ == '__main__':\n"
        "    import multiprocessing\n"
        "    context = multiprocessing.get_context('spawn')\n"
        "    mine, theirs = context.Pipe()\n"
        "    process = context.Process(target=child, args=(theirs,))\n"
        "    process.start()\n"
        "    print(*mine.recv())\n"
        "    process.join()\n"
    )
    root = str(Path(__file__).parents[1])
    environment = {"PYTHONPATH": root, "FEATHER_OPTIONS": '{"policy": "lab.policies.Threshold"}', "PATH": "/usr/bin:/bin"}
    found = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, check=True)
    assert found.stdout.split()[-2:] == ["FeatherAdder", "lab.policies.Threshold"]


@pytest.mark.parametrize("text, message", [("{", "is no JSON"), ("[1]", "must be a JSON object")])
def test_options_that_are_no_json_object_are_refused(text, message, monkeypatch):
    monkeypatch.setenv("FEATHER_OPTIONS", text)
    with pytest.raises(ValueError, match=message):
        Options.from_environment()
