"""The learning policies on a toy engine, and their memory. What a step takes is made up; how much they gain on a
real engine is for the benchmarks."""

import math

import pytest
from toy import ToyEngine, all_or_nothing, by_rows, closed_loop

from feather.options import Options
from feather.policies import Planner, Step, trace
from feather.request import Request
from lab.policies import Bandit, BatchState, Decision, Stopping, StoppingFormer, Threshold


def throughput(options, step_seconds, **workload):
    chosen = Options.from_mapping(options)
    engine = closed_loop(lambda **facts: chosen.make_former(**facts), step_seconds, **workload)
    return engine.tokens / engine.now, engine


NEVER = {"policy": "never_stop"}
BANDIT = {"policy": "lab.policies.Bandit"}


@pytest.mark.parametrize("decode", [(16, 16), (4, 64)], ids=["equal lengths", "unequal lengths"])
def test_where_a_homogeneous_batch_is_much_faster_it_learns_to_stop(decode):
    workload = {"decode": decode, "seconds": 200.0}
    never, _ = throughput(NEVER, all_or_nothing, **workload)
    found, engine = throughput({}, all_or_nothing, **workload)
    assert found > 1.8 * never and not engine.former.policy.fills


@pytest.mark.parametrize("groups", [1, 2, 4, 8])
@pytest.mark.parametrize("decode", [(16, 16), (4, 64)], ids=["equal lengths", "unequal lengths"])
def test_where_it_is_not_its_experiments_cost_next_to_nothing(groups, decode):
    workload = {"groups": groups, "decode": decode, "seconds": 100.0}
    never, _ = throughput(NEVER, by_rows, **workload)
    found, engine = throughput({}, by_rows, **workload)
    assert found > 0.98 * never


def test_the_bandit_can_cost_a_third():
    never, _ = throughput(NEVER, by_rows, decode=(4, 64))
    alone, _ = throughput(BANDIT, by_rows, decode=(4, 64))
    assert alone < 0.7 * never


def test_it_follows_a_workload_that_changes():
    """The engine changes its nature in mid-run."""
    worlds = iter([all_or_nothing, by_rows])
    chosen = Options.from_mapping({})
    engine = closed_loop(lambda **facts: chosen.make_former(**facts), next(worlds), seconds=100.0)
    assert not engine.former.policy.fills
    engine.step_seconds = next(worlds)
    number = 0
    while engine.now < 400.0:
        while len(engine.waiting) + len(engine.running) < 64:
            engine.add(number % 4, 16)
            number += 1
        engine.step()
    assert engine.former.policy.fills
    late = [(rows, then) for then, rows, *_ in engine.history if then > 390.0]
    assert sum(rows for rows, _ in late) / 10 > 0.9 * 32 / by_rows([(0, 0)] * 32)


# -- the bandit ----------------------------------------------------------------------------------------------------------

MIXES = BatchState(batch_size=16, tip_loss=10, sharing=0, waiting=20)


def ran(*decisions, tokens=16, seconds=0.02, alone=True, **facts):
    """The arguments of ``judge``."""
    return Step(tokens, seconds, **facts), decisions, alone


def test_the_bandit_tries_stop_first_and_add_where_stop_disappoints():
    bandit = Bandit()
    smaller = MIXES._replace(batch_size=4)
    assert bandit.decide(MIXES._replace(tip_loss=0)) and not bandit.decide(MIXES)
    for _ in range(10):
        bandit.judge(*ran(Decision(MIXES, False), tokens=16))
        bandit.judge(*ran(Decision(smaller, False), tokens=4))
    assert not bandit.decide(MIXES), "nothing better is known"
    assert bandit.decide(smaller), "a quarter of what was seen elsewhere"
    for _ in range(10):
        bandit.judge(*ran(Decision(smaller, True), tokens=2))
    assert not bandit.decide(smaller), "adding was worse still"


@pytest.mark.parametrize("facts", [{"prefill_tokens": 20}, {"alone": False}], ids=["prefill", "stragglers"])
def test_steps_that_say_nothing_of_a_stop_do_not_teach(facts):
    bandit = Bandit()
    for _ in range(20):
        bandit.judge(*ran(Decision(MIXES, False), **facts))
    assert all(not outcome.steps for both in bandit.table.values() for outcome in both.values())


def test_evidence_fades():
    bandit = Bandit(horizon=10.0)
    for _ in range(10):
        bandit.judge(*ran(Decision(MIXES, True)))
    other = MIXES._replace(batch_size=300)
    for _ in range(1000):
        bandit.judge(*ran(Decision(other, False)))
    ((_, both),) = [item for item in bandit.table.items() if item[0][0] == 5]
    assert both[True].steps < 10 * math.exp(-1.9)


# -- which decisions formed which step -------------------------------------------------------------------------------------


class Diary(Stopping):
    """Stops at any loss, and keeps what it is told."""

    commits = True

    def __init__(self):
        self.steps = []

    def decide(self, state):
        return not state.tip_loss or state.batch_size < 2

    def judge(self, step, decisions, alone):
        self.steps.append((step, decisions))


def admit(former):
    former.new_step()
    while (id_ := former.next()) is not None:
        former.add_to_batch(id_)
    return former.formed()


def test_a_decision_is_credited_while_its_batch_runs_also_with_steps_in_flight():
    diary = Diary()
    former = StoppingFormer(diary)
    for id_, path in (("a", "abc"), ("b1", "xyz"), ("b2", "xyz"), ("c", "uvw")):
        former.insert(Request(id_, path))
    first = admit(former)  # a; then b1 at the cost of a's prefix; b2; not c
    second = admit(former)  # scheduled before the first one's result
    former.ran(first, 3, 0.1, 9)
    former.finish("a")
    third = admit(former)
    former.ran(second, 3, 0.02, 0)
    former.finish("b1"), former.finish("b2")
    fourth = admit(former)
    former.ran(third, 2, 0.02, 0)
    former.ran(fourth, 1, 0.02, 0)
    told = [[(decision.state.batch_size, decision.add) for decision in decisions] for _, decisions in diary.steps]
    assert told == [[(1, True), (2, False)], [(1, True), (2, False)], [(2, False)], []]
    assert [step.prefill_tokens for step, _ in diary.steps] == [9, 0, 0, 0]
    assert [step.contended for step, _ in diary.steps] == [True, True, True, False]


def test_a_full_batch_is_nobodys_decision():
    diary = Diary()
    former = StoppingFormer(diary, max_batch=2)
    for number in range(4):
        former.insert(Request(number, str(number)))
    former.add_to_batch(former.next()), former.add_to_batch(former.next())
    assert former.next() is not None and former.formed()[1][-1].add


# -- the planner -----------------------------------------------------------------------------------------------------------


def test_without_results_the_order_of_arrival_is_left():
    former = Options().make_former()
    for number in range(300):
        former.insert(Request(number, [f"{number % 3}.{depth}" for depth in range(5)]))
    started = []
    for _ in range(300):
        former.new_step()
        if (id_ := former.next()) is not None:
            former.add_to_batch(id_)
            started.append(id_)
    assert len(started) > 150 and started[-100:] == sorted(started[-100:])


def test_results_that_cannot_be_teach_nothing():
    policy = Planner()
    for value in (math.nan, math.inf, -1.0, 0.0):
        for _ in range(500):
            policy.feedback(Step(tokens=16, seconds=value))
    assert not policy.cost.steps and math.isfinite(policy.cost.noise)


def test_a_server_that_was_idle_before_is_driven_by_the_policy_once_the_queue_is_no_burst():
    chosen = Options.from_mapping({})
    engine = ToyEngine(chosen.make_former, 32, all_or_nothing)
    engine.add(0, 4)
    while engine.running or engine.waiting:
        engine.step()
    engine.former.formed()
    number, begun = 0, engine.now
    while engine.now < begun + 60.0:
        while len(engine.waiting) + len(engine.running) < 64:
            engine.add(number % 4, 16)
            number += 1
        engine.step()
    assert not engine.former.policy.fills
    mixed = [then for then, _, _, stopped in engine.history if not stopped]
    assert len(mixed) < len(engine.history) / 2


# -- memory ----------------------------------------------------------------------------------------------------------------


def test_what_was_learned_is_kept(tmp_path):
    _, engine = throughput({}, all_or_nothing)
    path = tmp_path / "learned.json"
    engine.former.policy.save(path)
    fresh = Planner()
    fresh.load(path)
    assert fresh.cost.prices == engine.former.policy.cost.prices and not fresh.experiments


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda text: text[: len(text) // 2], "is damaged"),
        (lambda text: "", "is damaged"),
        (lambda text: text.replace('"version": 1', '"version": 99'), "of version 99; this Feather reads"),
        (lambda text: text.replace("feather planner", "feather bandit"), "is a 'feather bandit'"),
        (lambda text: text.replace('"stage": 0', '"stage": 4'), "its checksum is another"),
    ],
)
def test_a_damaged_or_foreign_checkpoint_is_refused_and_changes_nothing(tmp_path, damage, message):
    path = tmp_path / "learned.json"
    Planner().save(path)
    path.write_text(damage(path.read_text()))
    policy = Planner()
    with pytest.raises(ValueError, match=message):
        policy.load(path)
    assert policy.learned() == Planner().learned()


def test_a_policy_that_learns_nothing_has_nothing_to_save(tmp_path):
    with pytest.raises(TypeError, match="Threshold learns nothing"):
        Threshold(chunk_size=512).save(tmp_path / "rule.json")


def test_the_toy_engine_serves_everyone_to_the_end():
    former = {}
    engine = ToyEngine(lambda **facts: former.setdefault("it", Options().make_former(**facts)), 4, by_rows)
    for number in range(20):
        engine.add(number % 3, 1 + number % 5)
    while engine.waiting or engine.running:
        engine.step()
    assert engine.tokens == sum(1 + number % 5 for number in range(20)) and not former["it"].running


# -- the trace -------------------------------------------------------------------------------------------------------------


def test_every_decision_and_step_is_traced_within_bounds(tmp_path):
    path = str(tmp_path / "trace.jsonl")
    _, engine = throughput({"trace": path, "trace_megabytes": 1}, all_or_nothing, seconds=300.0)
    steps = trace.read(path)
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) <= 1_000_000
    assert steps[-1]["tokens"] == engine.history[-1][1] and not steps[-1]["fills"]
    stops = [decision for step in steps for decision in step["decisions"] if not decision[-1]]
    assert sum(loss > 0 for _, loss, *_ in stops) > 0.9 * len(stops) > 0


def test_a_broken_line_is_named_but_a_last_one_that_was_cut_is_not_missed(tmp_path):
    path = tmp_path / "trace.jsonl"
    path.write_text('{"t": 1}\n{"t": 2}\n{"t"')
    assert trace.read(str(path)) == [{"t": 1}, {"t": 2}]
    path.write_text('{"t": 1}\n{"t"\n{"t": 3}\n')
    with pytest.raises(ValueError, match="trace.jsonl, line 2 is no JSON"):
        trace.read(str(path))
    with pytest.raises(FileNotFoundError):
        trace.read(str(tmp_path / "nothing.jsonl"))
