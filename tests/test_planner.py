"""The planner on the toy engine and on laws of step time: what it must find, and where it must do no harm."""

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pytest
from toy import all_or_nothing, by_rows, closed_loop

from feather.cht import ChunkedHashTree
from feather.cost import Load, StepCost
from feather.options import Options
from feather.plans import ARRIVAL, PLANS, patience
from feather.policies.base import Step
from feather.policies.experiment import OVER, Experiment
from feather.policies.planner import Planner, PlannerSettings
from feather.rehearsal import Rehearsal, Scene
from feather.request import Request
from feather.traffic import Traffic
from lab.model.disciplines import DISCIPLINES, LAWS, LOADS, Fixed, Play, run, with_rate


def throughput(policy, step_seconds):
    engine = closed_loop(Options(policy=policy).make_former, step_seconds, seconds=60.0)
    return engine.tokens / engine.now, engine.former.policy


def test_on_the_toy_engine_it_stops_where_that_pays_and_nowhere_else():
    never, _ = throughput("never_stop", all_or_nothing)
    found, policy = throughput("planner", all_or_nothing)
    assert found > 2 * never and policy.plan.prefixes == 1
    never, _ = throughput("never_stop", by_rows)
    found, policy = throughput("planner", by_rows)
    assert found > 0.98 * never and policy.plan == ARRIVAL


def test_under_cascade_it_is_at_the_best_within_thirty_seconds():
    law, load = LAWS["cascade"], LOADS["8 groups"]
    best = max(run(law, load, make, seconds=60).throughput for make in DISCIPLINES.values())
    assert run(law, load, Planner, seconds=60).throughput > 0.95 * best


def test_what_evictions_cost_is_foretold():
    """24 prefixes, and room for 16: order of arrival computes most of them again."""
    law, load = LAWS["GPU, paged"], LOADS["more than fit"]
    found, first = run(law, load, Planner, seconds=60), fcfs(law, load, seconds=60)
    best = run(law, load, DISCIPLINES["never stop"], seconds=60)
    assert found.throughput > 0.93 * best.throughput > 2 * first.throughput
    assert found.agent.rates[ARRIVAL.name] == pytest.approx(first.throughput, rel=0.25)


@pytest.mark.parametrize("load", ["nothing shared", "one group"])
def test_where_nothing_is_to_be_won_it_costs_next_to_nothing(load):
    first = fcfs(LAWS["GPU, paged"], LOADS[load], seconds=60)
    assert run(LAWS["GPU, paged"], LOADS[load], Planner, seconds=60).throughput > 0.98 * first.throughput


def fcfs(law, load, **more):
    return run(law, load, lambda: Fixed(False), order="arrival", saturated_after=0.0, **more)


def test_below_capacity_requests_go_in_order_of_arrival():
    load = with_rate(LOADS["8 groups"], 4.0)
    first, found = fcfs(LAWS["paged"], load, seconds=60), run(LAWS["paged"], load, Planner, seconds=60)
    assert found.throughput == pytest.approx(first.throughput, rel=0.01) and found.p99 <= 1.05 * first.p99


@pytest.mark.parametrize("law", ["paged", "packed", "GPU, cascade"])
def test_a_rehearsal_foretells_what_a_discipline_gives(law):
    prices = StepCost()
    one = LAWS[law]
    kv = [amount / 16 for amount in (one.chunk, one.distinct, one.reload, one.tip)]
    prices._prices = [1e-3 * price for price in (one.step, one.row, *kv, one.prefill, one.new / 20, 0.0, 0.0, 0.0)]
    scene = Scene(32, 64, (1 / 8,) * 8, (tuple(range(16, 49)),) * 8, tuple(range(16, 49)), 0, 16, 16, 20, float("inf"), float("inf"))
    names = {"arrival": None, "1 prefix, gated": "strict, gated"}
    for plan in PLANS:
        if plan.name in names:
            played = Rehearsal(plan, scene, prices)
            while not played.advance(100):
                pass
            made = DISCIPLINES.get(names[plan.name])
            found = run(one, LOADS["8 groups"], made) if made else fcfs(one, LOADS["8 groups"])
            assert played.throughput == pytest.approx(found.throughput, rel=0.06), plan.name
            assert played.fairness > 0.9 and played.longest_wait > 0


def test_where_answers_are_equally_long_no_plan_counts_on_requests_that_began_together():
    """Begun all at once they would end at once, and the batch stay of one prefix whatever the plan."""
    best = max(run(LAWS["GPU, cascade"], LOADS["equal answers"], make).throughput for make in DISCIPLINES.values())
    for seed in (1, 3):
        assert run(LAWS["GPU, cascade"], LOADS["equal answers"], Planner, seed=seed).throughput > 0.93 * best


def test_patience():
    assert patience(3.0, 4.0, 2.0) == 0 and patience(5.0, 4.0, 2.0) == 0.5 and patience(7.0, 4.0, 2.0) == 1.5
    assert patience(5.0, 4.0, 0.0) == 1 and patience(4.0, 4.0, 0.0) == 0


def test_a_target_for_the_first_token_is_held_and_weights_buy_tails_with_throughput():
    law, load = LAWS["cascade"], LOADS["8 groups"]
    first = fcfs(law, load)
    free, held = (run(law, load, lambda: Planner(settings)) for settings in (PlannerSettings(), PlannerSettings(ttft_slo_over_fcfs=2.0)))
    assert free.throughput > 1.2 * first.throughput and free.p99 > 2 * first.p99
    assert held.p99 <= 2.2 * first.p99 and held.throughput > 0.98 * first.throughput
    shy = run(law, load, lambda: Planner(PlannerSettings(latency_weight=5.0)))
    assert shy.p99 <= 1.2 * first.p99 and shy.agent.plan == ARRIVAL


def test_where_a_full_batch_runs_for_longer_than_ten_seconds_so_long_may_a_request_wait_unless_somebody_says_how_long():
    """Under a limit that is too short every batch is mixed: who is late joins whatever runs, which makes everybody late."""
    law, load = LAWS["cascade"], LOADS["batch of 256"]
    own, given = (run(law, load, Planner, seconds=240.0, settle=80.0, max_wait=limit) for limit in (-1.0, 10.0))
    assert given.agent._limit == 20.0 < own.agent._limit and own.throughput > 1.2 * given.throughput
    assert run(LAWS["cascade"], LOADS["8 groups"], Planner).agent._limit == 20.0


def test_another_kernel_in_mid_run_is_noticed():
    play = Play([(0.0, LAWS["paged"]), (60.0, LAWS["cascade"])], LOADS["8 groups"], Planner).run(120.0)
    best = max(run(LAWS["cascade"], LOADS["8 groups"], make, seconds=60).throughput for make in DISCIPLINES.values())
    assert play.throughput(90.0, 120.0) > 0.93 * best


def test_after_a_surprise_what_the_plan_does_not_show_is_looked_at_soon():
    """In order of arrival no batch has one prefix, so nothing but an experiment shows that such a batch would be fast now."""
    play = Play([(0.0, LAWS["GPU, paged"]), (20.0, LAWS["GPU, cascade"])], LOADS["8 groups"], Planner).run(20.0)
    policy = play.former.policy
    assert policy.plan == ARRIVAL and not policy.experiments
    play.run(60.0)
    assert policy.cost.changes and 1 <= policy.experiments <= 2 and policy.plan.prefixes == 1


@pytest.mark.parametrize("law", ["H100, paged", "H100, cascade"])
def test_steps_that_are_slower_with_prompts_in_them_are_foretold(law):
    """By what their rows read: for a quarter of the rows a quarter of it, and under cascade next to nothing where all share."""
    load = replace(LOADS["4 groups"], batch=128, clients=256, decode=(64, 192))
    found = run(LAWS[law], load, Planner, seconds=60)
    cost = found.agent.cost
    assert not cost.changes and found.throughput > 1.15 * fcfs(LAWS[law], load, seconds=60).throughput

    def more(rows):
        mixed = Load(rows, 16 * rows, 64, 16 * 4 * (rows // 4) ** 2)
        return cost.seconds(mixed, 20) - cost.seconds(mixed) - 20 * cost.prices["prompt_token"]

    assert more(128) > 2.5 * more(32) > 0


def test_until_a_second_experiment_begins_the_plan_goes_on():
    """A step in order of arrival would fill the batch with strangers, who then have to leave it first."""
    play = Play(LAWS["GPU, cascade"], LOADS["batch of 128"], Planner).run(20.0)
    policy = play.former.policy
    assert policy.plan.prefixes == 1 and not policy.experiments
    policy.plan, policy._since = next(plan for plan in PLANS if plan.name == "2 prefixes, gated"), 200.0  # it is due
    while not policy.experiments and play.now < 25.0:
        play.run(play.now + 1e-9)
    assert policy.experiments and play.log[-1][3] <= 2


def test_experiments_are_rarer_where_a_full_batch_runs_long():
    """One mixes batches that then take several times their own length to go in order again."""
    play = Play(LAWS["cascade"], LOADS["batch of 256"], Planner).run(40.0)
    policy = play.former.policy
    assert policy._turn > 12 and not policy.experiments
    policy.plan = next(plan for plan in PLANS if plan.name == "2 prefixes, gated")
    policy.cost.changes = policy._changes
    for since, begun in ((9.9 * policy._turn, 0), (10.1 * policy._turn, 1)):
        policy._since = since
        policy.begin_step(play.former.tree, play.batch, 10.0, True)
        assert policy.experiments == begun


def test_a_plan_of_one_prefix_looks_at_mixed_steps_without_an_experiment():
    play = Play(LAWS["cascade"], LOADS["8 groups"], Planner).run(75.0)
    late = [groups for then, _, _, groups in play.log if then > 30.0]
    assert not play.former.policy.experiments and 3 <= sum(groups > 1 for groups in late) < len(late) / 10


@pytest.mark.parametrize("law", ["GPU, packed", "cascade"])
def test_requests_that_come_more_slowly_than_arrival_serves_them_are_not_overtaken(law):
    base = fcfs(LAWS[law], LOADS["8 groups"], seconds=60).throughput / 32
    load = with_rate(LOADS["8 groups"], 0.9 * base)
    first, found = fcfs(LAWS[law], load, seconds=120), run(LAWS[law], load, Planner, seconds=120)
    assert found.p99 <= 1.05 * first.p99 and found.throughput >= 0.99 * first.throughput


def test_what_is_offered_is_counted_in_tokens_a_second():
    tree, traffic = ChunkedHashTree(), Traffic(16)
    assert traffic.offered == 0
    for number in range(20):
        tree.insert(Request(number, "ab"))
        traffic.arrived(tree, number)
        traffic.passed(0.5)
        traffic.finished(number, 10)
    assert traffic.offered == pytest.approx(20, rel=0.05) and not traffic.varied
    for number in range(20, 30):
        tree.insert(Request(number, "xy"))
        traffic.arrived(tree, number)
    assert traffic.varied


def test_a_restored_planner_needs_no_experiment():
    law, load = LAWS["cascade"], LOADS["8 groups"]
    learned = run(law, load, Planner, seconds=60).agent.learned()

    def warm():
        policy = Planner()
        policy.restore(learned)
        return policy

    cold, again = (Play(law, load, make).run(12.0) for make in (Planner, warm))
    assert again.throughput(0.0, 10.0) > 0.95 * cold.throughput(0.0, 10.0) and not again.former.policy.experiments


def test_what_it_learned_is_kept(tmp_path):
    _, policy = throughput("planner", all_or_nothing)
    policy.save(tmp_path / "learned.json")
    again = Planner()
    again.load(tmp_path / "learned.json")
    assert again.cost.prices == policy.cost.prices


@pytest.mark.parametrize("damage", [{"stage": 9}, {"stage": "x"}, {"cost": {}}, {"lifetimes": [0]}, {"prompt_tokens": -1}])
def test_what_it_never_learned_is_refused(damage):
    with pytest.raises((ValueError, KeyError, TypeError)):
        Planner().restore({**Planner().learned(), **damage})


def test_loads_and_branches_of_a_tree():
    tree = ChunkedHashTree()
    for number, path in enumerate(("abx", "aby", "cdz", "cdw", "cdv", "e")):
        tree.insert(Request(number, [path[: depth + 1] for depth in range(len(path))]))
    largest = tree.largest_branch()
    assert (largest.request_id, largest.depth, largest.waiting) == (2, 2, 3)
    assert tree.branch_of(0).waiting == 2 and tree.branch_of(5).waiting == 1
    alone, joined = tree.load_alone(largest, 3), tree.load_with(tree.branch_of(0), 2)
    assert alone == Load(3, 9, 5, 2 * 9 + 3, 2)
    for number in (2, 3, 4):
        tree.add_to_batch(number)
    assert tree.load() == alone
    joined = tree.load_with(tree.branch_of(0), 2)
    tree.add_to_batch(0), tree.add_to_batch(1)
    assert tree.load() == joined
    for number in range(5):
        tree.finish(number)
    assert tree.load() == Load(0, 0, 0, 0, 0) and tree.largest_branch() is None


def test_requests_of_a_single_token_do_not_hold_it_in_an_experiment():
    """None of their steps is without a prompt."""
    law, load = LAWS["cascade"], replace(LOADS["8 groups"], decode=(1, 1))
    play = Play(law, load, Planner).run(30.0)
    assert play.former.policy.experiment.over and play.former.policy.rates
    first = Play(law, load, lambda: Fixed(False), order="arrival", saturated_after=0.0).run(30.0)
    assert play.throughput(15.0, 30.0) > 0.95 * first.throughput(15.0, 30.0)


def test_while_it_experiments_the_longest_wait_holds():
    planner, tree = Planner(), ChunkedHashTree()
    for number in range(8):
        tree.insert(Request(number, [number % 2, number], arrival=number))
        planner.arrived(tree, number)
    planner.experiment.begun = True
    planner.begin_step(tree, 4, 10.0, True)
    assert planner.choose(tree, 4, 11.0, late=True) == 0
    tree.add_to_batch(0)
    assert planner.choose(tree, 3, 0.0, late=False) is None and planner.choose(tree, 3, 11.0, late=True) == 1


def test_requests_that_share_nothing_run_together_under_a_plan_of_one_prefix():
    for plan in PLANS:
        planner, tree = Planner(), ChunkedHashTree()
        planner.plan, planner.experiment.stage = plan, OVER
        for number in range(40):
            tree.insert(Request(number, [number, -number - 1], arrival=number))
        planner.begin_step(tree, 32, 10.0, True)
        while len(tree.active) < 32 and (chosen := planner.choose(tree, 32 - len(tree.active), 0.0, False)) is not None:
            tree.add_to_batch(chosen)
        assert len(tree.active) == 32, plan.name
    scene = Scene(32, 64, (), (), (20,), 0, 0, 16, 20, float("inf"), float("inf"))
    played = Rehearsal(next(plan for plan in PLANS if plan.prefixes == 1), scene, StepCost())
    assert played._form() == 32


def test_what_goes_is_not_refilled_beside_what_came_after_it():
    plan = next(plan for plan in PLANS if plan.prefixes == 1 and plan.refilled)
    planner, tree = Planner(), ChunkedHashTree()
    planner.plan, planner.experiment.stage = plan, OVER
    planner._choose_plan = lambda: None  # it keeps to this one
    for number in range(12):
        tree.insert(Request(number, [number % 2, number], arrival=number))
    planner.begin_step(tree, 32, 10.0, True)
    for number in (0, 1):
        planner._forming.asked(tree, 32, False)
        planner._forming.admitted(number)
        tree.add_to_batch(number)
    planner.begin_step(tree, 32, 10.0, True)
    assert planner.choose(tree, 30, 0.0, False) is None, "two prefixes run, and either would be refilled for ever"
    tree.finish(0)
    planner.begin_step(tree, 32, 10.0, True)
    assert planner.choose(tree, 30, 0.0, False) in (3, 5, 7, 9, 11)


def test_a_promise_that_is_not_kept_has_what_comes_counted_anew():
    load = LOADS["8 groups"]
    play = Play(LAWS["cascade"], [(0.0, load), (30.0, replace(load, groups=0))], Planner).run(60.0)
    first = fcfs(LAWS["cascade"], replace(load, groups=0), seconds=60)
    assert play.throughput(45.0, 60.0) > 0.95 * first.throughput


def test_no_step_plays_through_all_that_a_long_queue_would_do():
    planner, tree = Planner(), ChunkedHashTree()
    for number in range(5000):
        tree.insert(Request(number, [number % 8, number], arrival=number))
        planner.arrived(tree, number)
    planner.restore(Planner().learned() | {"stage": OVER})
    steps, most, done = 0, 0.0, 0.0
    while not planner.rates:
        planner.begin_step(tree, 64, 10.0, True)
        steps, most, done = steps + 1, max(most, -planner._owed - done), -planner._owed
    assert steps >= 8 and most <= 3000 + 64 + 5000 / 3 + 1


def test_nobody_joins_between_an_experiment_and_the_plan_that_it_leads_to():
    """The plan of before it would fill the batch with whoever came first."""
    planner, tree = Planner(), ChunkedHashTree()
    for number in range(64):
        tree.insert(Request(number, [number % 8, number], arrival=number))
        planner.arrived(tree, number)
    tree.add_to_batch(0)
    planner.experiment.begun, planner.experiment.stage, planner.experiment.lost = True, 3, 11.0
    planner.begin_step(tree, 32, 10.0, True)
    assert planner.experiment.over and not planner.rates and not planner.fills
    assert planner.choose(tree, 31, 0.0, False) is None and planner.choose(tree, 31, 11.0, late=True) == 1
    while not planner.rates:
        planner.begin_step(tree, 32, 10.0, True)
    assert planner.plan == ARRIVAL and planner.choose(tree, 31, 0.0, False) == 1


def test_a_lull_costs_an_experiment_nothing():
    planner = Planner()
    planner.experiment.begun, planner._usual = True, 1000.0
    quiet = Step(tokens=1, seconds=0.05, prefill_tokens=0, contended=False, load=Load(1, 1, 1, 1, 1), admitted=0, burst=False)
    for _ in range(1000):
        planner.feedback(quiet)
    assert planner.experiment.lost == 0 and planner._usual == 1000.0
    planner.feedback(quiet._replace(contended=True))
    assert planner.experiment.lost == pytest.approx(0.049)


def test_idle_steps_are_no_steps_without_a_result():
    planner, tree = Planner(), ChunkedHashTree()
    for _ in range(500):
        planner.begin_step(tree, 32, 10.0, False)
    assert planner._unheard == 0


def test_prompts_that_are_computed_in_parts_count_whole():
    traffic = Traffic(16)
    for _ in range(300):
        traffic.admitted(1, 2048)
        for _ in range(3):
            traffic.admitted(0, 2048)
    assert traffic.learned()["prompt_tokens"] == pytest.approx(8192, rel=0.01)
    other = Traffic(16)
    other.restore({"lifetimes": [], "prompt_tokens": 8192})
    assert other.learned()["prompt_tokens"] == 8192


def test_a_stranger_does_not_join_a_batch_of_one_prefix_for_want_of_others():
    for plan in (plan for plan in PLANS if plan.prefixes):
        planner, tree = Planner(), ChunkedHashTree()
        planner.plan, planner.experiment.stage = plan, OVER
        planner._choose_plan = lambda: None  # it keeps to this one
        for number in range(20):
            tree.insert(Request(number, ["A", "a", number], arrival=number))
        planner.begin_step(tree, 32, 10.0, True)
        while tree.waiting:
            chosen = planner.choose(tree, 32 - len(tree.active), 0.0, False)
            tree.add_to_batch(chosen)
        for number in range(20, 23):
            tree.insert(Request(number, [number, -number], arrival=number))
        planner.begin_step(tree, 32, 10.0, True)
        assert planner.choose(tree, 12, 0.0, False) is None, plan.name


def test_prefixes_that_are_computed_again_are_no_request_s_own():
    tree, traffic = ChunkedHashTree(), Traffic(16)
    for number in range(10):
        tree.insert(Request(number, list(range(40))))
        traffic.arrived(tree, number)
    traffic.holds(Load(1, 40, 40, 40, 40), 0.1)
    for tokens in (12, 652, 12, 332, 12):
        traffic.admitted(1, tokens)
    assert traffic.learned()["prompt_tokens"] == 12


def test_a_promise_is_held_against_the_plan_only_once_that_has_been_followed():
    planner, tree = Planner(), ChunkedHashTree()
    planner.plan = next(plan for plan in PLANS if plan.prefixes == 1)
    planner.rates, planner._usual = {planner.plan.name: 1000.0}, 100.0
    counted = []
    planner.traffic.recount = lambda tree: counted.append(planner._followed)
    slow = Step(tokens=10, seconds=0.1, load=Load(1, 1, 1, 1, 1))
    for _ in range(200):
        planner._begin_round(tree, 32, 10.0)
        planner.feedback(slow)
    assert len(counted) == 99 and counted[0] == 101
    planner.feedback(slow._replace(contended=False))
    planner._begin_round(tree, 32, 10.0)
    assert len(counted) == 99, "of another rush"


def test_a_recount_knows_prefixes_by_their_second_request():
    traffic, tree = Traffic(16), ChunkedHashTree()
    for number in range(128):
        tree.insert(Request(number, [number % 40, number]))
        traffic.arrived(tree, number)
    for number in range(128):
        tree.remove(number)
    traffic.recount(tree)
    assert len(traffic.scene(tree, 32, 10.0).shares) == 40


def shares_after(traffic: Traffic, tree: ChunkedHashTree, prefixes: Iterable[int], waits: int) -> tuple[float, ...]:
    """The largest first. ``waits``: requests that wait at once at most; the oldest goes first."""
    for prefix in prefixes:
        number = traffic._seen
        tree.insert(Request(number, [prefix, (prefix, number)]))
        traffic.arrived(tree, number)
        if len(tree.waiting) > waits:
            tree.remove(tree.oldest())
    return traffic.scene(tree, 32, 10.0).shares


def test_prefixes_that_no_longer_come_are_forgotten_within_two_looks():
    rng = np.random.default_rng(1)
    traffic, tree = Traffic(16), ChunkedHashTree()
    assert len(shares_after(traffic, tree, rng.integers(0, 32, 2000).tolist(), waits=30)) > 30
    shares = shares_after(traffic, tree, rng.integers(100, 102, 128).tolist(), waits=30)
    assert min(shares[:2]) > 0.4 and traffic.recounts >= 1


def test_what_is_merely_rare_is_not_forgotten():
    rng = np.random.default_rng(2)
    for shares in (np.full(64, 1 / 64), np.arange(1, 21.0) ** -1.2):
        traffic, tree = Traffic(16), ChunkedHashTree()
        shares_after(traffic, tree, rng.choice(len(shares), 10_000, p=shares / shares.sum()).tolist(), waits=60)
        assert traffic.recounts == 0


def test_many_of_one_prefix_in_a_row_do_not_hide_those_that_wait():
    """Clients that keep to their prefix: once a batch of it has been served, all of them ask again."""
    traffic, tree = Traffic(16), ChunkedHashTree()
    for number in range(800):
        tree.insert(Request(number, [number % 8, number]))
        traffic.arrived(tree, number)
    for batch in range(16):
        for request_id in [each for each in tree.waiting if tree.mark_of(each) == batch % 8]:
            tree.remove(request_id)
        for number in range(800 + 100 * batch, 900 + 100 * batch):
            tree.insert(Request(number, [batch % 8, number]))
            traffic.arrived(tree, number)
        shares = traffic.scene(tree, 32, 10.0).shares
        assert len(shares) == 8 and max(shares) < 0.3


def test_prompts_in_many_parts_do_not_end_an_experiment():
    experiment = Experiment()
    experiment.begun, experiment.stage = True, 1
    tree = ChunkedHashTree()
    tree.insert(Request(0, [0]))
    for _ in range(3):
        experiment.ran(Step(tokens=1, seconds=0.1), 0.0)
    for _ in range(500):
        experiment.ran(Step(tokens=1, seconds=0.1, prefill_tokens=512), 0.0)
    assert not experiment.begin_step(tree, 32, True) and not experiment.over


def test_while_an_experiment_waits_for_a_queue_that_lasts_rounds_go_on():
    planner, tree = Planner(), ChunkedHashTree()
    planner.restore(Planner().learned() | {"stage": OVER})
    planner.experiment.restart()
    planner.rates = {ARRIVAL.name: 10.0}
    for number in range(40):
        tree.insert(Request(number, [number % 2, number], arrival=number))
        planner.arrived(tree, number)
    for number in range(32):
        tree.add_to_batch(number)
    planner._rested = 6.0
    planner.begin_step(tree, 32, 10.0, True)
    assert not planner.experiment.runs and planner._rehearsal is not None and planner.experiments == 0
