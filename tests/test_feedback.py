"""vLLM's real scheduler tells the policy what each step gave; what it learned outlives the scheduler."""

import itertools
import logging

import pytest
from modelless import Driver, abort, make_request, make_scheduler

from feather.policies import NeverStop
from feather.vllm import FeatherScheduler
from lab.policies import Stopping


def prompt(group, number, tokens=128):
    return [100 + group] * tokens + [1000 + number] * 7


class Diary(Stopping):
    commits = True

    def __init__(self):
        self.steps, self.decisions = [], []

    def decide(self, state):
        return not state.tip_loss

    def judge(self, step, decisions, alone):
        self.steps.append(step)
        self.decisions.append(decisions)


class Account(NeverStop):
    def __init__(self):
        self.steps = []

    def feedback(self, step):
        self.steps.append(step)


@pytest.mark.parametrize("depth", [1, 2], ids=["sync", "two schedules deep"])
def test_every_step_is_told_with_its_tokens_and_its_decisions(tmp_path, depth):
    scheduler = make_scheduler(FeatherScheduler, tmp_path, feather={"policy": "lab.policies.StrictStop", "chunk_size": 32, "max_wait": 1e9})
    diary = scheduler.waiting.former.policy = Diary()
    clock = itertools.count()
    scheduler.clock = lambda: float(next(clock))
    driver = Driver(scheduler, depth)
    driver.add(*(make_request(scheduler, f"{i % 2}.{i}", prompt(i % 2, i), 6) for i in range(8)))
    driver.run()
    assert len(driver.finished) == 8
    assert sum(step.tokens for step in diary.steps) == sum(driver.tokens.values()) == 48
    assert all(step.seconds > 0 for step in diary.steps)
    assert diary.steps[0].prefill_tokens > 4 * 32
    told = list(zip(diary.steps, diary.decisions))
    decode = [(step, decisions) for step, decisions in told if not step.prefill_tokens and step.contended]
    assert decode and all(not decisions[-1].add and step.tokens <= 4 for step, decisions in decode), "one group at a time"
    assert all(not decisions for step, decisions in told if not step.contended and step.tokens == 0)


def test_a_recompute_after_preemption_counts_as_prefill(tmp_path):
    scheduler = make_scheduler(FeatherScheduler, tmp_path, blocks=24, feather={"chunk_size": 32, "policy": "never_stop"})
    diary = scheduler.waiting.former.policy = Account()
    driver = Driver(scheduler)
    driver.add(*(make_request(scheduler, str(i), prompt(i, i, 80), 60) for i in range(4)))
    driver.run()
    prompts = 4 * 87
    assert sum(step.prefill_tokens for step in diary.steps) > prompts
    assert sum(step.tokens for step in diary.steps) == 240


def test_aborts_in_flight_do_not_upset_the_account(tmp_path):
    scheduler = make_scheduler(FeatherScheduler, tmp_path, feather={"chunk_size": 32})
    diary = scheduler.waiting.former.policy = Account()
    driver = Driver(scheduler, depth=2)
    driver.add(*(make_request(scheduler, f"{i % 2}.{i}", prompt(i % 2, i), 20) for i in range(8)))
    for _ in range(4):
        driver.step()
    abort(scheduler, "0.0", "1.1")
    driver.run()
    assert len(driver.finished) == 6 and scheduler.fallback is None
    assert sum(step.tokens for step in diary.steps) == sum(driver.tokens.values())


def test_what_was_learned_is_there_after_a_restart(tmp_path):
    path = tmp_path / "learned.json"
    options = {"policy": "lab.policies.Bandit", "chunk_size": 32, "checkpoint": str(path)}
    scheduler = make_scheduler(FeatherScheduler, tmp_path, feather=options)
    driver = Driver(scheduler)
    driver.add(*(make_request(scheduler, f"{i % 2}.{i}", prompt(i % 2, i), 20) for i in range(8)))
    driver.run()
    learned = scheduler.waiting.former.policy.table
    scheduler.shutdown()
    again = make_scheduler(FeatherScheduler, tmp_path, feather=options)
    assert learned and again.waiting.former.policy.table == learned


@pytest.mark.parametrize("content", ["", "{}", '{"kind": "feather planner", "version": 7}', "\x00\x01"])
def test_a_damaged_memory_is_a_warning_and_serving_goes_on(tmp_path, caplog, content):
    path = tmp_path / "learned.json"
    path.write_text(content)
    logging.getLogger("vllm").propagate = True
    with caplog.at_level("WARNING", logger="vllm"):
        scheduler = make_scheduler(FeatherScheduler, tmp_path, feather={"checkpoint": str(path)})
    assert any("Feather starts without experience" in record.message for record in caplog.records)
    driver = Driver(scheduler)
    driver.add(make_request(scheduler, "a", prompt(0, 0), 4))
    assert driver.run().finished == ["a"]


def test_a_memory_that_cannot_be_written_is_a_warning(tmp_path, caplog):
    scheduler = make_scheduler(FeatherScheduler, tmp_path, feather={"checkpoint": str(tmp_path / "missing" / "learned.json")})
    logging.getLogger("vllm").propagate = True
    with caplog.at_level("WARNING", logger="vllm"):
        scheduler.shutdown()
    assert any("could not keep what it has learned" in record.message for record in caplog.records)
