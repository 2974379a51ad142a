"""What vLLM 0.33 does otherwise than the versions before where it meets the waiting queue. The tests run under every version."""

import pytest
import vllm
from modelless import BLOCK, Driver, hash_function, make_request, make_scheduler
from vllm.lora.request import LoRARequest
from vllm.v1.request import Request, RequestStatus

from feather.vllm import FeatherScheduler
from feather.vllm.prefix import prefix_path

SINCE_033 = tuple(int(part) for part in vllm.__version__.split(".")[:2]) >= (0, 33)
THRESHOLD = {"policy": "lab.policies.Threshold", "chunk_size": 32, "min_batch": 2, "max_loss": 0, "max_loss_under_load": 0}
NEVER_STOP = {"policy": "never_stop", "chunk_size": 32}


def prompt(group, number, length=128):
    return [100 * group + 11] * length + [10_000 + number] * 5


def finished(driver, requests):
    scheduler = driver.scheduler
    assert sorted(driver.finished) == sorted(request.request_id for request in requests) and scheduler.fallback is None
    assert all(driver.tokens[request.request_id] == request.max_tokens for request in requests)
    scheduler.waiting.reconcile()
    assert not scheduler.waiting.former.running and not scheduler.waiting.former.tree._nodes


@pytest.mark.parametrize("options", [THRESHOLD, NEVER_STOP], ids=["threshold", "never_stop"])
@pytest.mark.parametrize("depth", [1, 2], ids=["sync", "two deep"])
def test_a_request_with_nothing_to_schedule_is_passed_over_and_comes_back(tmp_path, options, depth):
    scheduler = make_scheduler(FeatherScheduler, tmp_path, feather=options)
    if not hasattr(scheduler, "_reserve_prefill_lookahead"):
        pytest.skip(f"vLLM {vllm.__version__} has no such request")
    reserve, held = scheduler._reserve_prefill_lookahead, {"0.0"}
    scheduler._reserve_prefill_lookahead = lambda request, *rest: 0 if request.request_id in held else reserve(request, *rest)
    driver = Driver(scheduler, depth)
    requests = [make_request(scheduler, f"0.{number}", prompt(0, number), 20) for number in range(4)]
    driver.add(*requests)
    driver.step()
    if SINCE_033:  # before, it held up everybody
        assert driver.batches == [["0.1", "0.2", "0.3"]]
        scheduler.waiting.reconcile()
        assert scheduler.waiting.former.running == {"0.1", "0.2", "0.3"} and scheduler.waiting.admission.waiting == {"0.0"}
    else:
        assert not driver.batches and len(scheduler.waiting) == 4
    held.clear()
    driver.run()
    finished(driver, requests)


def test_a_stop_is_no_lack_of_capacity(tmp_path):
    """Where prefills are kept to every n-th step, vLLM gives that up while requests are left waiting for want of capacity."""
    scheduler = make_scheduler(FeatherScheduler, tmp_path, feather=THRESHOLD)
    if not hasattr(scheduler, "prefill_capacity_bound"):
        pytest.skip(f"vLLM {vllm.__version__} does not ask")
    driver = Driver(scheduler)
    requests = [make_request(scheduler, f"{group}.{number}", prompt(group, number), 20) for number in range(2) for group in range(2)]
    driver.add(*requests)
    driver.step()
    assert len(scheduler.waiting) == 2 and scheduler.waiting.stops == 1 and not scheduler.prefill_capacity_bound
    requests.append(make_request(scheduler, "0.late", prompt(0, 9), 20))
    driver.add(requests[-1])
    driver.step(throttle_prefills=True)
    assert "0.late" not in driver.batches[-1], "this step is for decoding"
    driver.step()
    assert "0.late" in driver.batches[-1]
    requests += [make_request(scheduler, f"0.{number}", prompt(0, number), 20) for number in range(10, 20)]
    driver.add(*requests[-10:])
    driver.step()
    assert len(scheduler.running) == 8 and scheduler.prefill_capacity_bound, "the batch is full"
    driver.run()
    finished(driver, requests)


@pytest.mark.parametrize("interval", [3, 8])
def test_prefills_on_every_nth_step_lose_nobody(tmp_path, interval):
    scheduler = make_scheduler(FeatherScheduler, tmp_path, feather=THRESHOLD, prefill_schedule_interval=interval)
    driver = Driver(scheduler)
    requests = [
        make_request(scheduler, f"{group}.{number}", prompt(group, number), 3 + number) for number in range(8) for group in range(3)
    ]
    for request in requests:
        driver.add(request)
        driver.step()
    driver.run()
    finished(driver, requests)


def test_block_hashes_that_look_ahead_are_still_a_prefix(tmp_path):
    """With EAGLE and MTP a block's hash also covers the tokens behind it that the drafter needs. Two prompts then part a block earlier."""
    hasher_of = pytest.importorskip("vllm.v1.core.kv_cache_utils").get_request_block_hasher
    try:
        hasher = hasher_of(BLOCK, hash_function(), num_hash_lookahead_tokens=1)
    except TypeError:
        if SINCE_033:
            raise
        pytest.skip(f"vLLM {vllm.__version__} looks no further")
    plain = make_request(make_scheduler(FeatherScheduler, tmp_path), "plain", range(64))

    def path(tokens):
        request = Request("r", list(tokens), plain.sampling_params, None, block_hasher=hasher)
        return list(prefix_path(request, 32, BLOCK))

    one, two = path([*range(64), 1, 1, 1]), path([*range(64), 2, 2, 2])
    assert one[0] == two[0] and one[1] != two[1], "the token behind the second chunk differs"
    assert path([*range(64), 1, 1, 1]) == one


def test_a_request_that_preempts_itself_leaves_the_others_running(tmp_path):
    scheduler = make_scheduler(FeatherScheduler, tmp_path, blocks=20, feather=NEVER_STOP, scheduling_policy="priority")
    driver = Driver(scheduler)
    low = make_request(scheduler, "low", prompt(0, 0), 60, priority=5)
    high = make_request(scheduler, "high", prompt(1, 1), 60, priority=0)
    driver.add(low)
    driver.step()
    driver.add(high)
    while low.status != RequestStatus.PREEMPTED:
        driver.step()
    assert ("high" in driver.batches[-1]) is True or not SINCE_033
    scheduler.waiting.reconcile()
    assert scheduler.waiting.former.running == {request.request_id for request in scheduler.running} == {"high"}
    assert scheduler.waiting.admission.waiting == {"low"}
    driver.run()
    finished(driver, [low, high])


@pytest.mark.parametrize("depth", [1, 2], ids=["sync", "two deep"])
def test_no_more_adapters_run_than_fit_also_while_one_of_them_pauses(tmp_path, depth):
    """A running request that is not in this step keeps its adapter in 0.33."""
    scheduler = make_scheduler(FeatherScheduler, tmp_path, feather=NEVER_STOP, enable_lora=True, max_loras=1, max_lora_rank=8)
    driver, requests = Driver(scheduler, depth), []
    for number in range(12):
        adapter = LoRARequest(f"adapter {number % 2}", number % 2 + 1, "/adapters")
        requests.append(make_request(scheduler, str(number), prompt(0, number), 2 + number % 5, lora_request=adapter))
    driver.add(*requests)
    for _ in range(300):
        driver.step()
        adapters = {request.lora_request.lora_int_id for request in scheduler.running if request.lora_request}
        assert len(adapters) <= 1 or not SINCE_033
        if not scheduler.has_unfinished_requests():
            break
    driver.run()
    finished(driver, requests)
