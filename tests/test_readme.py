"""What README.md says of the options is what they are, and of serving what was recorded."""

import ast
import json
import re
from pathlib import Path

from feather.options import Options

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_the_table_of_options_names_each_once_with_its_default():
    table = README.split("| option | default | meaning |")[1].split("\n\n")[0]
    told = []
    for row in table.strip().splitlines()[1:]:
        names, defaults, meaning = (cell.strip() for cell in row.strip("| ").split(" | ", 2))
        told += zip(re.findall(r"`(\w+)`", names), (ast.literal_eval(value.strip("` ")) for value in defaults.split(", ")), strict=True)
        assert meaning
    assert sorted(told) == sorted((name, declared.default) for name, declared in Options.known().items())


def test_the_options_in_the_examples_are_accepted():
    examples = re.findall(r"""additional-config '(\{.*?\})'""", README) + re.findall(r"additional_config=(\{.*?\}\})", README)
    assert len(examples) >= 2
    for example in examples:
        Options.from_mapping(json.loads(example)["feather"])


def test_what_is_said_of_serving_is_what_was_recorded():
    (path,) = (ROOT / "data" / "recorded").glob("*/benchmarks/serving.json")
    found = json.loads(path.read_text())
    of_ten = json.loads(path.with_name("serving-bursts-of-ten.json").read_text())
    told = [(found, name) for name in ("throughput_ratio", "p50_ttft_ratio", "p99_ttft_ratio", "p99_tbt_ratio")]
    for found, name in [(of_ten, "p99_ttft_ratio"), *told]:
        low, high = found["intervals"][name]
        assert f"| {found[name]:.2f} × [{low:.2f}, {high:.2f}] |" in README, name
    assert f"Of {found['requests']} requests, {found['left']} of whose clients left, {found['lost']} were lost" in README
