"""FeatherScheduler inside vLLM's real admission loop, without a model."""

import logging
import random
import time
from types import SimpleNamespace

import pytest
from modelless import Driver, abort, make_request, make_scheduler
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.request_queue import FCFSRequestQueue

from feather.hashing import hash_tokens
from feather.vllm import FeatherScheduler
from feather.vllm.prefix import prefix_path
from lab.engines.arms import ARMS
from lab.engines.study_scheduler import StudyScheduler
from lab.policies import Stopping

CHUNK = 32
THRESHOLD = {"policy": "lab.policies.Threshold", "chunk_size": CHUNK, "min_batch": 2, "max_loss": 0, "max_loss_under_load": 0}
NEVER_STOP = {"policy": "never_stop", "chunk_size": CHUNK}


def prompt(group, number, length=128):
    rng = random.Random(group)
    return [rng.randrange(10, 9999) for _ in range(length)] + [10_000 + number] * 5


def requests(scheduler, groups=3, each=4, decode=lambda i: 4, **args):
    pairs = [(group, number) for number in range(each) for group in range(groups)]
    return [
        make_request(scheduler, f"{group}.{number}", prompt(group, number), decode(i), **args) for i, (group, number) in enumerate(pairs)
    ]


def groups_of(batch):
    return {id_.split(".")[0] for id_ in batch}


@pytest.mark.parametrize("depth", [1, 2], ids=["sync", "two schedules deep"])
@pytest.mark.parametrize("options", [THRESHOLD, NEVER_STOP], ids=["threshold", "never_stop"])
@pytest.mark.parametrize("blocks", [2000, 26], ids=["ample", "preempting"])
def test_every_request_finishes_once_with_its_tokens(tmp_path, options, depth, blocks):
    scheduler = make_scheduler(FeatherScheduler, tmp_path, blocks=blocks, feather=options)
    lengths = random.Random(0)
    all_requests = requests(scheduler, each=6, decode=lambda i: lengths.randint(1, 60))
    driver = Driver(scheduler, depth)
    driver.add(*all_requests)
    driver.run()
    assert sorted(driver.finished) == sorted(request.request_id for request in all_requests)
    assert driver.tokens == {request.request_id: request.max_tokens for request in all_requests}
    if blocks == 26:
        assert sum(request.num_preemptions for request in all_requests) > 0
    scheduler.waiting.reconcile()
    assert not scheduler.waiting.former.running and not scheduler.waiting.former.tree._nodes


def test_a_stopped_batch_is_homogeneous_and_never_stopping_sorts_by_prefix(tmp_path):
    for options, expected in ((THRESHOLD, {1}), (NEVER_STOP, {2})):
        scheduler = make_scheduler(FeatherScheduler, tmp_path, feather=options)
        driver = Driver(scheduler)
        driver.add(*requests(scheduler, groups=4, each=4))
        driver.run()
        assert {len(groups_of(batch)) for batch in driver.batches} == expected


def test_without_sharing_the_order_is_first_come_first_served(tmp_path):
    order = {}
    for cls, options in ((AsyncScheduler, None), (FeatherScheduler, NEVER_STOP), (FeatherScheduler, THRESHOLD)):
        scheduler = make_scheduler(cls, tmp_path, feather=options)
        driver = Driver(scheduler)
        driver.add(*(make_request(scheduler, str(i), prompt(i, 0), 3 + i % 5) for i in range(30)))
        driver.run()
        order[str(options)] = driver.batches
    assert len({str(batches) for batches in order.values()}) == 1


@pytest.mark.parametrize("share, waits", [(0.5, False), (0.0, True)])
def test_a_straggler_does_not_hold_the_queue(tmp_path, share, waits):
    options = {**THRESHOLD, "min_batch": 1, "straggler_share": share}
    scheduler = make_scheduler(FeatherScheduler, tmp_path, feather=options)
    driver = Driver(scheduler)
    driver.add(make_request(scheduler, "0.0", prompt(0, 0), 200))
    driver.add(*requests(scheduler, groups=2, each=8, decode=lambda i: 50)[1:])
    driver.run()
    together = any(groups_of(batch) == {"0", "1"} for batch in driver.batches)
    assert together is not waits and (len(driver.batches) > 220) is waits


def test_stopping_is_void_while_nothing_runs(tmp_path):
    scheduler = make_scheduler(FeatherScheduler, tmp_path, feather=THRESHOLD)
    driver = Driver(scheduler)
    driver.add(*requests(scheduler, groups=3, each=2))
    driver.step()
    assert not scheduler.waiting and len(scheduler.waiting) > 0, "the batch should have been stopped"
    abort(scheduler, *[request.request_id for request in list(scheduler.running)])
    assert scheduler.waiting, "nothing runs: somebody must be admitted"
    assert driver.run().finished


def test_aborts_while_waiting_and_running(tmp_path):
    for options in (THRESHOLD, NEVER_STOP):
        scheduler = make_scheduler(FeatherScheduler, tmp_path, feather=options)
        driver = Driver(scheduler, depth=2)
        everyone = requests(scheduler, each=8, decode=lambda i: 10)
        driver.add(*everyone)
        aborted, rng = set(), random.Random(1)
        while scheduler.has_unfinished_requests():
            driver.step()
            if len(aborted) < 10:
                victim = rng.choice(list(scheduler.requests))
                aborted.add(victim)
                abort(scheduler, victim)
        while driver.in_flight:
            driver.deliver()
        survivors = {request.request_id for request in everyone} - aborted
        assert set(driver.finished) - aborted == survivors and len(driver.finished) == len(set(driver.finished))
        scheduler.waiting.reconcile()
        assert not scheduler.waiting.former.tree._nodes


def test_a_reset_of_the_prefix_cache_preempts_everyone_and_loses_nobody(tmp_path):
    scheduler = make_scheduler(FeatherScheduler, tmp_path, feather=NEVER_STOP)
    driver = Driver(scheduler)
    everyone = requests(scheduler, decode=lambda i: 8)
    driver.add(*everyone)
    for _ in range(4):
        driver.step()
    assert scheduler.reset_prefix_cache(reset_running_requests=True)
    assert len(scheduler.waiting) == len(everyone) and not scheduler.running
    driver.run()
    assert sorted(driver.finished) == sorted(request.request_id for request in everyone)


@pytest.mark.parametrize("chunk", [48, 1, 4096])
def test_chunks_that_are_no_multiple_of_the_block_come_from_tokens(tmp_path, chunk):
    scheduler = make_scheduler(FeatherScheduler, tmp_path, feather={"policy": "lab.policies.Threshold", "chunk_size": chunk})
    driver = Driver(scheduler)
    driver.add(*requests(scheduler))
    assert len(driver.run().finished) == 12


def test_without_prefix_caching_prefixes_come_from_tokens_salts_and_adapters(tmp_path):
    strict = {**THRESHOLD, "min_batch": 1, "straggler_share": 0.0}
    scheduler = make_scheduler(FeatherScheduler, tmp_path, enable_prefix_caching=False, feather=strict)
    driver = Driver(scheduler)
    driver.add(*(make_request(scheduler, f"{i % 2}.{i}", prompt(0, i), cache_salt=f"tenant {i % 2}") for i in range(8)))
    driver.run()
    assert {len(groups_of(batch)) for batch in driver.batches} == {1}


class Adapter:
    def __init__(self, name):
        self.lora_name, self.lora_path, self.lora_int_id = name, f"/adapters/{name}", 1


def image(name, at):
    return SimpleNamespace(identifier=name, mm_position=SimpleNamespace(offset=at, length=4))


def test_adapters_salts_and_images_are_part_of_a_prefix_that_is_hashed_from_tokens(tmp_path):
    scheduler = make_scheduler(FeatherScheduler, tmp_path, enable_prefix_caching=False)

    def path(mm_features=(), **arguments):
        request = make_request(scheduler, "r", range(10, 138), **arguments)
        request.mm_features = list(mm_features)
        return prefix_path(request, 32, 16)

    plain = path()
    assert len(plain) == 4 and plain == path() == hash_tokens(range(10, 138), 32)
    for other in (path(cache_salt="one"), path(cache_salt="two"), path(lora_request=Adapter("one")), path(lora_request=Adapter("two"))):
        assert not set(other) & set(plain)
    with_image = path([image("cat", 40)])
    assert with_image[0] == plain[0] and not set(with_image[1:]) & set(plain[1:])
    assert path([image("dog", 40)])[1] != with_image[1]


def test_colliding_hashes_misjudge_batches_and_no_result(tmp_path):
    """Every hash is one of three: the tree sees relatives everywhere, nodes at several depths, nodes twice in a path."""
    for options in (THRESHOLD, NEVER_STOP, {**THRESHOLD, "order": "tip"}):
        scheduler = make_scheduler(FeatherScheduler, tmp_path, blocks=26, feather=options)
        path_of = scheduler.waiting._path_of
        scheduler.waiting._path_of = lambda request: [hash(hash_) % 3 for hash_ in path_of(request)]
        driver = Driver(scheduler, depth=2)
        driver.add(*requests(scheduler, each=8, decode=lambda i: 1 + i % 40))
        driver.run()
        assert len(driver.finished) == 24 and scheduler.fallback is None
        assert all(driver.tokens[f"{i % 3}.{i // 3}"] == 1 + i % 40 for i in range(24))


def test_an_id_that_comes_again_at_once_is_another_request(tmp_path):
    scheduler = make_scheduler(FeatherScheduler, tmp_path, feather=THRESHOLD)
    driver = Driver(scheduler)
    driver.add(make_request(scheduler, "same", prompt(0, 0), 1))
    driver.step()
    assert driver.finished == ["same"]
    driver.add(make_request(scheduler, "same", prompt(1, 0), 1), make_request(scheduler, "1.1", prompt(1, 1), 1))
    driver.step()
    assert driver.batches[-1] == ["same", "1.1"] and driver.run().finished == ["same", "same", "1.1"]


def test_pipeline_stages_without_async_scheduling_are_refused(tmp_path, monkeypatch):
    from vllm.config import VllmConfig

    monkeypatch.setattr(VllmConfig, "max_concurrent_batches", 2)
    with pytest.raises(ValueError, match="several batches in flight .* needs async scheduling"):
        make_scheduler(FeatherScheduler, tmp_path)


def test_wrong_options_are_refused_at_start_up(tmp_path):
    with pytest.raises(ValueError, match="unknown option 'chunksize': did you mean 'chunk_size'"):
        make_scheduler(FeatherScheduler, tmp_path, feather={"chunksize": 512})


@pytest.mark.parametrize("depth", [1, 2], ids=["sync", "two schedules deep"])
@pytest.mark.parametrize("options", [THRESHOLD, NEVER_STOP], ids=["threshold", "never_stop"])
def test_priority_comes_first_and_prefixes_within_it(tmp_path, options, depth):
    scheduler = make_scheduler(FeatherScheduler, tmp_path, max_num_seqs=4, feather=options, scheduling_policy="priority")
    driver = Driver(scheduler, depth)
    for number in range(8):
        for group in range(2):
            driver.add(make_request(scheduler, f"{group}.{number}", prompt(group, number), 6, priority=1))
    driver.step()
    urgent = [make_request(scheduler, f"2.{number}", prompt(2, number), 6, priority=0) for number in range(6)]
    driver.add(*urgent)
    driver.run()
    order = [id_ for batch in driver.batches for id_ in batch]
    started = sorted(driver.tokens, key=order.index)
    groups = [id_.split(".")[0] for id_ in started]
    assert groups[:10] == ["0"] * 4 + ["2"] * 6
    assert sum(one != other for one, other in zip(groups[10:], groups[11:])) <= 2, "within a priority, like comes with like"
    assert sorted(driver.finished) == sorted(driver.tokens) and set(driver.tokens.values()) == {6}


def test_a_stop_does_not_hold_back_a_better_priority(tmp_path):
    scheduler = make_scheduler(FeatherScheduler, tmp_path, feather=THRESHOLD, scheduling_policy="priority")
    driver = Driver(scheduler)
    driver.add(*(make_request(scheduler, f"0.{i}", prompt(0, i), 50, priority=5) for i in range(3)))
    driver.step()
    driver.add(make_request(scheduler, "1.0", prompt(1, 0), 4, priority=5))
    driver.step()
    assert "1.0" not in driver.batches[-1]
    driver.add(make_request(scheduler, "2.0", prompt(2, 0), 4, priority=4))
    driver.step()
    assert "2.0" in driver.batches[-1]


class Faulty(Stopping):
    """Behaves like a policy until its time has come."""

    straggler_share = 0.3

    def __init__(self, rng, fault):
        self.left, self.fault = rng.randrange(60), fault

    def decide(self, state):
        self.left -= 1
        if self.left < 0:
            if self.fault == "raises":
                raise ZeroDivisionError("no batch is worth it")
            time.sleep(0.02)
        return state.tip_loss == 0


@pytest.mark.parametrize("seed", range(100))
def test_a_policy_that_fails_loses_nothing(tmp_path_factory, seed):
    rng = random.Random(seed)
    fault = rng.choice(["raises", "raises", "takes too long"])
    options = {**THRESHOLD, "decision_budget": 0.01 if fault == "takes too long" else 1.0}
    scheduler = make_scheduler(FeatherScheduler, tmp_path_factory.getbasetemp(), blocks=rng.choice([26, 2000]), feather=options)
    scheduler.waiting.former.policy = Faulty(rng, fault)
    driver = Driver(scheduler, depth=rng.choice([1, 2]))
    everyone = requests(scheduler, each=5, decode=lambda i: rng.randint(1, 30))
    driver.add(*everyone[:8])
    for request in everyone[8:]:
        driver.step()
        driver.add(request)
    victim = rng.choice(list(scheduler.requests))
    abort(scheduler, victim)
    driver.run()
    assert set(driver.finished) | {victim} == {request.request_id for request in everyone}
    assert len(driver.finished) == len(set(driver.finished))
    assert all(driver.tokens[request.request_id] == request.max_tokens for request in everyone if request.request_id != victim)
    if scheduler.waiting.__class__.__name__ != "FeatherQueue":
        assert (
            "ZeroDivisionError: no batch" if fault == "raises" else "TimeoutError: 3 decisions in a row took too long"
        ) in scheduler.fallback


def test_a_failure_is_logged_and_vllms_own_queue_takes_over(tmp_path, caplog):
    scheduler = make_scheduler(FeatherScheduler, tmp_path, feather=THRESHOLD)
    scheduler.waiting.former.policy = Faulty(SimpleNamespace(randrange=lambda n: 2), "raises")
    driver = Driver(scheduler)
    driver.add(*requests(scheduler))
    logging.getLogger("vllm").propagate = True
    with caplog.at_level("ERROR"):
        driver.run()
    assert len(driver.finished) == 12 and isinstance(scheduler.waiting, FCFSRequestQueue)
    (message,) = {record.message for record in caplog.records if "Feather failed" in record.message}
    assert message.startswith("Feather failed (ZeroDivisionError: no batch is worth it): requests are served first come")


@pytest.mark.parametrize("arm", ARMS.values(), ids=lambda arm: arm.name)
def test_every_arm_of_the_studies_serves_everyone(tmp_path, arm):
    scheduler = make_scheduler(StudyScheduler, tmp_path)
    scheduler.use(arm)
    driver = Driver(scheduler)
    for group in range(3):
        driver.add(*(make_request(scheduler, f"{group}.{i}", prompt(group, i), 3 + i, extra={"group": group}) for i in range(5)))
    driver.run()
    assert len(driver.finished) == 15
    with pytest.raises(RuntimeError, match="while requests are unfinished"):
        driver.add(make_request(scheduler, "late", prompt(0, 9), extra={"group": 0}))
        scheduler.use(ARMS["FCFS"])
