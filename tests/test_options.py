"""Whatever shape a user's options have, they are taken or refused in one line that says what to write."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from modelless import make_scheduler

from feather.options import Options
from feather.vllm import FeatherScheduler

WRITE = """write {"feather": {"policy": "never_stop"}} for vLLM, FEATHER_OPTIONS='{"policy": "never_stop"}' for SGLang"""


@pytest.mark.parametrize("config, policy", [
    (None, "planner"), ({}, "planner"), ({"feather": {}}, "planner"), ({"feather": {"policy": "never_stop"}}, "never_stop"),
    ({"another_plugin": {"policy": "x"}}, "planner"), ({"another_plugin": 1, "feather": {"policy": "lab.policies.Threshold"}}, "lab.policies.Threshold"), (object(), "planner"),
])  # fmt: skip
def test_what_is_right_is_taken_and_what_is_anothers_is_left_alone(config, policy):
    assert Options.from_additional_config(config).policy == policy


@pytest.mark.parametrize("config, said", [
    ("never_stop", "--additional-config is 'never_stop'"), ('{"feather": {}}', "--additional-config is '{"), (["policy"], "--additional-config is ["),
    (7, "--additional-config is 7"), (True, "--additional-config is True"),
    ({"feather": None}, "Feather's options are None"), ({"feather": "never_stop"}, "Feather's options are 'never_stop'"),
    ({"feather": ["policy"]}, "Feather's options are ['policy']"), ({"feather": [["policy", "bandit"]]}, "Feather's options are [["),
    ({"feather": False}, "Feather's options are False"),
    ({"feather": {"feather": {"policy": "never_stop"}}}, '"feather" stands inside itself'),
    ({"policy": "never_stop"}, "'policy' stands where \"feather\" should"), ({"chunk_size": 64}, "'chunk_size' stands where"),
    ({"feather": {"chunk_size": 64}, "policy": "never_stop"}, "'policy' stands where"),
    ({"Feather": {"policy": "never_stop"}}, "'Feather' stands where"), ({"FEATHER": {}}, "'FEATHER' stands where"), ({"fether": {}}, "'fether' stands where"),
    ({"feathers": {}}, "'feathers' stands where"), ({" feather": {}}, "' feather' stands where"),
    ({"feather_options": {"policy": "never_stop"}}, "'feather_options' stands where"), ({"feather.policy": "bandit"}, "'feather.policy' stands where"),
    ({"additional_config": {"feather": {}}}, "'additional_config' stands where"), ({"vllm": {"feather": {}}}, "'vllm' stands where"),
])  # fmt: skip
def test_a_wrong_shape_is_refused_with_what_to_write(config, said):
    with pytest.raises(ValueError) as error:
        Options.from_additional_config(config)
    assert said in str(error.value) and str(error.value).endswith(WRITE) and "\n" not in str(error.value)


@pytest.mark.parametrize("options, said", [
    ({"polcy": "never_stop"}, "unknown option 'polcy': did you mean 'policy'?"), ({"policy": None}, "policy=None must be of type str"),
    ({"policy": ["bandit"]}, "policy=['bandit'] must be of type str"), ({"chunk_size": "64"}, "chunk_size='64' must be of type int"),
    ({"chunk_size": True}, "chunk_size=True must be of type int"), ({7: 1}, "unknown option '7'"), ({None: 1}, "unknown option 'None'"),
    ({"": 1}, "unknown option ''"), ({"max_wait": float("nan")}, "max_wait=nan must be at least -1"),
])  # fmt: skip
def test_a_wrong_option_inside_is_named(options, said):
    with pytest.raises(ValueError) as error:
        Options.from_additional_config({"feather": options})
    assert said in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("config", [
    "x" * 10**6, ["x"] * 10**6, {"feather": "x" * 10**6}, {"feather": {"x" * 10**6: 1}}, {"x" * 10**6: {"feather": {}}}, {"feather": {"policy": "x" * 10**6}},
    {"feather": {"chunk_size": 10**5000}}, {"feather": {"chunk_size": -(10**400)}}, {"feather": {"self": 1}}, {"feather": {"order": [[]] * 10**6}},
])  # fmt: skip
def test_what_is_absurdly_long_is_refused_in_a_short_line(config):
    with pytest.raises(ValueError) as error:
        Options.from_additional_config(config)
    assert len(str(error.value)) < 900 and "\n" not in str(error.value)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9) | st.sampled_from(["feather", "bandit"]),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.text(max_size=9) | st.sampled_from(["feather", "policy", "order"]), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(values)
def test_any_json_is_taken_or_refused_in_a_line(config):
    try:
        Options.from_additional_config(config)
    except ValueError as error:
        assert str(error)


def test_the_scheduler_takes_them_from_vllms_configuration(tmp_path):
    with pytest.raises(ValueError, match="Feather's options are 'never_stop'"):
        make_scheduler(FeatherScheduler, tmp_path, feather="never_stop")
