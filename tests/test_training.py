"""Batch formation without an engine, the environment over it, and networks trained in it."""

import json
import logging
import warnings

import numpy as np
import pytest

from feather.options import Options
from feather.policies import NeverStop
from lab.model.formation import Formation, Traffic
from lab.policies import BatchState, Network, StrictStop
from lab.train.env import ADD, STOP, BatchFormation, draw_traffic, make_world

SMALL = Traffic(groups=3, prefix_tokens=2048, decode=(4, 40), max_batch=16, requests=90, in_system=48)


@pytest.fixture(scope="module")
def world():
    return make_world("rtx-6000-ada", "cascade")


# -- the simulation ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", [NeverStop(), StrictStop()])
def test_every_token_is_decoded_and_the_cache_is_accounted_for(world, policy):
    run = Formation(world.steps, SMALL, policy, seed=3, kv_tokens=100_000)
    rng = np.random.default_rng(3)
    rng.integers(0, SMALL.groups, SMALL.requests)
    wanted = rng.integers(4, 41, SMALL.requests).sum()
    while not run.done:
        running = run._running.values()
        used = len({group for group, _, _ in running}) * 2048 + sum(context - 2048 for _, _, context in running)
        assert run.kv_use == used / 100_000
        assert len(running) <= 16 and len(running) + len(run._waiting) <= 48
        run.advance()
    assert run.tokens == wanted == sum(rows * steps for _, rows, _, steps in run.log)
    assert run.now == pytest.approx(sum(seconds * steps for _, _, seconds, steps in run.log)) and run.kv_use == 0
    assert len(run.starts) == 90 and 0 <= run.passed_over <= run.waited


def test_strict_batches_hold_one_group_and_their_last_row_leaves_before_the_next_comes(world):
    run = Formation(world.steps, SMALL, StrictStop(), seed=3)
    sizes = []
    while not run.done:
        run.advance()
        assert len(run._rows_of) <= 1
        sizes.append(len(run._running))
    rows = [rows for _, rows, _, _ in run.log]
    assert min(rows) == 1 and max(rows) == 16


@pytest.mark.parametrize("arm, policy", [("Feather (never stop)", NeverStop()), ("oracle (stop)", StrictStop())])
def test_it_agrees_with_vllms_own_scheduler_on_the_same_requests_and_device(arm, policy):
    from lab.engines.arms import ARMS
    from lab.engines.modelled import ModelledEngine
    from lab.workloads import Prompt, Workload, make_prefixes

    engine, prefixes = ModelledEngine(max_batch=32, scheduling="free"), make_prefixes(4, 4096)
    engine.warm(prefixes)
    traffic = Traffic(groups=4, prefix_tokens=4096, decode=(64, 64), max_batch=32, requests=128, in_system=128)
    run = Formation(engine.steps, traffic, policy, seed=5)
    groups = [group for group, _, _ in run._waiting.values()]
    suffixes = make_prefixes(128, 20, seed=9)
    real = engine.run(Workload([Prompt(prefixes[group] + own, group, 64) for group, own in zip(groups, suffixes)]), ARMS[arm])
    assert run.run() == pytest.approx(real.metrics()["decode throughput"][0], rel=0.03)


# -- the environment ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wide", [False, True])
def test_gymnasium_accepts_the_environment(world, wide):
    from gymnasium.utils.env_checker import check_env

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of a bound that is infinite
        check_env(BatchFormation(world, wide))


def episode(environment, seed, policy):
    seen, rewards = [environment.reset(seed=seed)[0]], []
    while True:
        observation, reward, done, _, info = environment.step(policy(seen[-1]))
        rewards.append(reward)
        if done:
            return seen, rewards, info
        seen.append(observation)


def test_one_seed_is_one_episode(world):
    def alternate():
        actions = np.random.default_rng(5)
        return lambda _: int(actions.integers(2))

    runs = [episode(BatchFormation(world, True), seed, alternate()) for seed in (7, 7, 8)]
    assert np.array_equal(runs[0][0], runs[1][0]) and runs[0][1] == runs[1][1]
    assert runs[0][1] != runs[2][1]


def test_always_stopping_is_the_strict_rule_and_the_rewards_are_the_time_it_saves(world):
    environment = BatchFormation(world, traffic=SMALL)
    _, rewards, info = episode(environment, 1, lambda _: STOP)
    seed = int(np.random.default_rng(1).integers(2**31))
    strict = Formation(world.steps, SMALL, StrictStop(), seed, world.kv_tokens)
    strict.run()
    reference = strict.full_batch_throughput()
    saved = strict.tokens / reference - strict.now
    # what ran before the first question was nobody's doing
    first = environment._formation.log[0]
    assert [entry[:2] for entry in environment._formation.log] == [entry[:2] for entry in strict.log] and first[0] == 0
    assert sum(rewards) == pytest.approx(saved / (16 * 22 / reference))
    assert info["relative_throughput"] == pytest.approx(strict.tokens / strict.now / reference)


def test_weights_on_waiting_and_on_being_passed_over_cost_reward(world):
    plain, latency, unfair = (
        sum(episode(BatchFormation(world, True, *weights, traffic=SMALL), 1, lambda _: STOP)[1]) for weights in ((), (1.0, 0.0), (0.0, 1.0))
    )
    assert latency < unfair < plain


def test_a_drawn_workload_fits_the_cache(world):
    rng = np.random.default_rng(0)
    drawn = [draw_traffic(rng, world) for _ in range(200)]
    assert max(traffic.kv_tokens for traffic in drawn) <= world.kv_tokens < 250_000
    assert {traffic.max_batch for traffic in drawn} == set(world.batches)


@pytest.mark.parametrize("make, message", [
    (lambda: make_world("tpu"), "device='tpu' must be one of: cpu, rtx-6000-ada"),
    (lambda: make_world("h100", "flash"), "attention kernel 'flash' is not one of"),
    (lambda: make_world("cpu", "cascade"), "kernel='cascade': the CPU's attention kernel is 'paged'"),
    (lambda: BatchFormation(None, latency_weight=-1.0), "latency_weight=-1.0 must be a finite number of at least 0"),
    (lambda: BatchFormation(None, unfairness_weight=float("nan")), "unfairness_weight=nan must be"),
])  # fmt: skip
def test_what_cannot_be_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# -- networks ----------------------------------------------------------------------------------------------------------


def a_network(wide=False, bias=0.0):
    inputs = len(BatchState._fields) if wide else 3
    return Network([(np.eye(inputs), np.zeros(inputs)), (-np.ones((1, inputs)), np.array([bias]))], wide, {"on": "nothing"})


def test_a_network_by_hand():
    policy = a_network(bias=1.0)  # ADD while log2(1 + b) + log2(1 + Δ) + log2(1 + w) <= 10
    assert policy.decide(BatchState(7, 7, 15, 99)) and not policy.decide(BatchState(7, 7, 16, 99))
    assert policy.decide(BatchState(500, 0, 500, 999)), "what costs no shared prefix joins"


def test_a_wide_network_sees_all_of_the_state():
    policy = a_network(wide=True, bias=1.0)
    state = BatchState(1, 1, 1, 1)
    assert policy.wide and policy.decide(state)
    assert not policy.decide(state._replace(kv_use=1.0)) and not policy.decide(state._replace(oldest_wait=60.0))


def test_training_twice_gives_the_same_policy_and_the_file_keeps_it(world, tmp_path):
    from lab.train.training import Training, train

    one, two = (train(Training(seed=3, steps=128), world, tried_on=1, progress=False) for _ in range(2))
    other = train(Training(seed=4, steps=128), world, tried_on=1, progress=False)
    assert one.trained == two.trained and one.trained["throughput over never stop"]["never stop"] == 1
    for (first, _), (second, _), (third, _) in zip(one.layers, two.layers, other.layers):
        assert np.array_equal(first, second) and not np.array_equal(first, third)

    one.save(tmp_path / "policy.json")
    again = Network.read(tmp_path / "policy.json")
    assert again.trained == one.trained and not again.wide


def test_an_exported_network_decides_as_the_librarys_own_does(world):
    import torch
    from stable_baselines3 import DQN

    from lab.policies.network import features
    from lab.train.training import export

    model = DQN("MlpPolicy", BatchFormation(world, wide=True), buffer_size=10, seed=1, device="cpu")
    rng = np.random.default_rng(0)
    states = [BatchState(*(int(x) for x in rng.integers(1, 500, 7)), float(rng.random() * 60), float(rng.random())) for _ in range(200)]
    seen = np.array([features(state, True) for state in states], np.float32)
    with torch.no_grad():  # an untrained one says the same of all
        values = model.q_net(torch.as_tensor(seen))
        model.q_net.q_net[-1].bias[ADD] -= (values[:, ADD] - values[:, STOP]).median()
    network = export(model, wide=True)
    answers = [network.decide(state) for state in states]
    theirs = [bool(action == ADD) for action in model.predict(seen, deterministic=True)[0]]
    assert sum(one == other for one, other in zip(answers, theirs)) >= 199  # one state is the median itself
    assert 50 < sum(answers) < 150


@pytest.mark.parametrize("layers, message", [
    ([(np.ones((1, 4)), np.zeros(1))], r"weights of shape \(1, 4\) and biases of \(1,\) cannot take 3 inputs"),
    ([(np.ones((2, 3)), np.zeros(2))], "its last layer must have one output, not 2"),
    ([(np.full((1, 3), np.nan), np.zeros(1))], "must be finite"),
])  # fmt: skip
def test_layers_that_do_not_fit_are_refused(layers, message):
    with pytest.raises(ValueError, match=message):
        Network(layers, wide=False)


def damage(path, how):
    found = json.loads(path.read_text())
    if how == "version":
        found["version"] = 99
    elif how == "digit":
        found["learned"]["layers"][0][0][0][0] += 1
    else:
        path.write_text(path.read_text()[:100])
        return
    path.write_text(json.dumps(found))


@pytest.mark.parametrize("how, message", [("version", "reads 'feather network' of version 1"), ("digit", "damaged"), ("cut", "damaged")])
def test_a_file_that_cannot_be_used_is_told_and_serving_goes_on(tmp_path, caplog, how, message):
    path = tmp_path / "policy.json"
    a_network().save(path)
    options = Options(policy="lab.policies.Network", network=str(path))
    assert isinstance(options.make_policy(), Network)
    damage(path, how)
    with caplog.at_level(logging.WARNING, "feather"):
        policy = options.make_policy()
    assert isinstance(policy, NeverStop) and message in caplog.text and "never stops a batch" in caplog.text


def test_a_missing_file_ends_the_start_up_with_its_name():
    for name in ("", "/nowhere/policy.json"):
        with pytest.raises(ValueError, match=f"option network='{name}' must name a file"):
            Options.from_mapping({"policy": "lab.policies.Network", "network": name})


def test_the_shipped_network_can_be_used():
    from lab.engines.arms import ARMS

    policy = Options.from_mapping(ARMS["Feather (SB3)"].options).make_policy()
    trained = policy.trained
    assert trained["device"] == "rtx-6000-ada" and trained["kernel"] == "cascade"
    assert policy.decide(BatchState(8, 16, 0, 900)) and not policy.decide(BatchState(400, 16, 0, 900))
    assert trained["throughput over never stop"]["after"] > 1.05 > trained["throughput over never stop"]["before"]


@pytest.mark.parametrize("options, message", [
    (["--device", "tpu"], "device='tpu' must be one of"),
    (["--steps", "0"], "steps=0 must be at least 1"),
    (["--latency-weight", "-1"], "latency_weight=-1.0 must be"),
])  # fmt: skip
def test_the_command_line_refuses_with_one_line(tmp_path, options, message):
    from lab.train.training import main

    with pytest.raises(SystemExit, match=f"lab.train: {message}"):
        main([*options, "--out", str(tmp_path / "policy.json")])
    with pytest.raises(SystemExit, match="there is no folder"):
        main(["--out", str(tmp_path / "no" / "policy.json")])
    assert not list(tmp_path.iterdir())


# -- the study ---------------------------------------------------------------------------------------------------------


def test_converged_is_when_it_stays_and_reached_when_it_first_gets_there():
    import pandas as pd

    from lab.studies.learning import converged, reached

    def curve(*throughput):
        return pd.DataFrame({"second": np.arange(10, 10 * len(throughput) + 1, 10.0), "throughput": throughput})

    assert converged(curve(*[100.0] * 12)) == reached(curve(*[100.0] * 12)) == 0
    climbs = curve(*[10.0] * 4, *[100.0] * 8)
    assert converged(climbs) == reached(climbs) == 50  # the mean of three windows is there one window later
    drops = curve(*[10.0] * 2, *[100.0] * 3, *[10.0] * 2, *[100.0] * 8)
    assert reached(drops) == 30 and converged(drops) == 80
    jumps = curve(*[10.0] * 10, *[300.0] * 2)
    assert reached(jumps) == converged(jumps) == 120, "nowhere near the mean of its last third"


def test_a_curve_counts_every_token_in_its_own_window(world):
    from lab.studies.learning import over_time

    traffic = Traffic(groups=2, prefix_tokens=2048, max_batch=16, requests=3000, in_system=48)
    curve, _ = over_time(world, traffic, NeverStop, seed=1, seconds=60.0)
    run = Formation(world.steps, traffic, NeverStop(), 1, world.kv_tokens)
    while run.now < 60:
        run.advance()
    assert len(curve) == 6 and curve["throughput"].sum() * 10 == pytest.approx(run.tokens * 60 / run.now, rel=0.01)
    with pytest.raises(ValueError, match="3000 requests are done after .* give the traffic more"):
        over_time(world, traffic, NeverStop, seed=1, seconds=1000.0)
