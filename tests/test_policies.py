"""The registry of policies: what is written there is all that the rest needs to know."""

from dataclasses import dataclass, replace

import pytest
from toy import by_rows, closed_loop

from feather.options import Options
from feather.policies import POLICIES, NeverStop, Policy
from feather.policies.planner import PlannerSettings
from feather.settings import setting
from lab.engines.arms import ARMS, SGLANG_ARMS, of_policy
from lab.engines.modelled import ModelledEngine
from lab.policies import POLICIES as STOPPING
from lab.policies import Stopping, Threshold, dotted
from lab.studies.evaluation import scaled
from lab.studies.learning import rules
from lab.workloads import even_sizes, grouped, make_prefixes


@dataclass(frozen=True)
class AtMostSettings:
    most: int = setting(3, "requests in a batch", low=1, high=100, unit="requests")


class AtMost(Policy):
    """Stops at so many requests. Everything that a policy needs stands here."""

    settings = AtMostSettings

    def __init__(self, most):
        self.most = most

    @classmethod
    def make(cls, settings, common):
        return cls(settings.most)

    def choose(self, tree, room, waited, late):
        return tree.oldest() if len(tree.active) < self.most else None


@pytest.fixture
def at_most(monkeypatch):
    monkeypatch.setitem(POLICIES, "at_most", AtMost)


def test_a_policy_that_is_registered_can_be_chosen_with_its_options(at_most):
    assert Options.from_mapping({"policy": "at_most"}).make_policy().most == 3
    chosen = Options.from_mapping({"policy": "at_most", "most": 5, "order": "tip"})
    assert chosen.make_policy().most == 5 and chosen.flat()["most"] == 5
    assert Options.from_mapping({"most": 5}).policy == "planner", "an option of a policy that is not chosen"
    assert replace(chosen, order="cost").make_policy().most == 5
    assert Options.from_mapping(chosen.flat()) == chosen
    for options, message in (
        ({"most": 0}, "option most=0 must be from 1 to 100"),
        ({"most": 2.5}, "option most=2.5 must be of type int"),
        ({"mots": 2}, "unknown option 'mots': did you mean 'most'"),
        ({"policy": "magic"}, f"must be one of: {', '.join(POLICIES)}; or name a class of your own"),
    ):
        with pytest.raises(ValueError, match=message):
            Options.from_mapping(options)


def test_it_forms_batches_on_the_toy_engine_and_on_the_modelled_one(at_most):
    engine = closed_loop(Options.from_mapping({"policy": "at_most", "most": 5}).make_former, by_rows, seconds=5.0)
    assert max(rows for _, rows, *_ in engine.history) == 5

    arm = of_policy("at_most")
    assert arm.name == "Feather (at most)"
    arm = replace(arm, options={**arm.options, "most": 4})
    workload = grouped(make_prefixes(2, 1000), even_sizes(24, 2), seed=1, decode_tokens=8)
    run = ModelledEngine(max_batch=16, scheduling="free").run(workload, arm)
    assert run.decode_rows.max() == 4 and run.output_tokens == 24 * 8

    assert rules(network=None)["Feather (at most)"]().most == 3


def test_arms_of_the_studies_have_valid_options_and_every_policy_one():
    for arm in {**ARMS, **SGLANG_ARMS}.values():
        if arm.kind == "feather":
            Options.from_mapping(arm.options)
    names = {arm.options.get("policy", Options.policy) for arm in ARMS.values() if arm.kind == "feather"}
    assert POLICIES.keys() <= names
    assert {dotted(policy) for policy in STOPPING} - names <= {"lab.policies.StrictStop"}, "its arm is the threshold's, at no loss"


def test_a_policy_of_ones_own_is_chosen_by_its_dotted_name():
    chosen = Options.from_mapping({"policy": "lab.policies.Threshold", "max_loss": 128})
    assert isinstance(chosen.make_policy(), Threshold) and isinstance(chosen.make_former().policy, Stopping)
    assert Options.from_mapping(chosen.flat()) == chosen and chosen.for_rank(1).policy == "lab.policies.Threshold"
    for name, said in (
        ("lab.policies.Threshhold", "has no attribute 'Threshhold'"), ("nowhere.to.Be", "No module named 'nowhere'"), (".", f"one of: {', '.join(POLICIES)}"),
        ("lab.policies.BatchState", "is no subclass of feather.policies.Policy"), ("os.path", "is no subclass"), ("lab.policies.", f"one of: {', '.join(POLICIES)}"),
    ):  # fmt: skip
        with pytest.raises(ValueError) as error:
            Options(policy=name)
        assert said in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(ValueError, match="unknown option 'max_loss'"):
        Options(max_loss=5)


def test_options_counted_in_tokens_follow_the_lengths_of_a_workload():
    threshold, first = scaled(["Feather (threshold)", "FCFS"], 0.5)
    assert threshold.options["max_loss"] == 125 and threshold.options["chunk_size"] == 32 and first == ARMS["FCFS"]


def test_names_of_options_are_not_given_twice(monkeypatch):
    class Again(AtMost):
        settings = PlannerSettings

    with monkeypatch.context() as patch:
        patch.setitem(POLICIES, "again", Again)
        with pytest.raises(ValueError, match="policies 'planner' and 'again' both have an option 'ttft_slo': rename one"):
            Options()

    @dataclass(frozen=True)
    class Common:
        order: str = setting("", "taken")

    class Ordered(AtMost):
        settings = Common

    monkeypatch.setitem(POLICIES, "ordered", Ordered)
    with pytest.raises(ValueError, match="policy 'ordered' has an option 'order', which is a common option: rename it"):
        Options()


def test_every_option_says_what_it_is_for_and_has_a_default_within_its_bounds():
    for name, declared in Options.known().items():
        assert declared.metadata["help"] and declared.default is not None, name
    assert Options.from_mapping({name: declared.default for name, declared in Options.known().items()}) == Options()


def test_the_options_of_policies_are_not_given_in_one_piece():
    with pytest.raises(ValueError, match="unknown option 'of_policies'"):
        Options.from_mapping({"of_policies": {"max_loss": 0}})


def test_a_policy_is_made_from_its_own_settings_and_the_common_options():
    made = Options.from_mapping({"policy": "lab.policies.Threshold", "chunk_size": 64, "max_loss": 128}).make_policy()
    assert isinstance(made, Threshold) and (made.chunk_size, made.max_loss, made.min_batch) == (64, 128, 4)
    assert isinstance(Options.from_mapping({"policy": "never_stop"}).make_policy(), NeverStop), "nothing to guard"


def test_a_network_is_named_or_a_file(tmp_path):
    shipped = Options.from_mapping({"policy": "lab.policies.Network", "network": "rtx-6000-ada-cascade"}).make_policy()
    shipped.save(tmp_path / "copy.json")
    copied = Options.from_mapping({"policy": "lab.policies.Network", "network": str(tmp_path / "copy.json")}).make_policy()
    assert copied.trained == shipped.trained
    with pytest.raises(ValueError, match="option network='h100' must name a file .*, or one of .*: rtx-6000-ada-cascade"):
        Options.from_mapping({"policy": "lab.policies.Network", "network": "h100"})
