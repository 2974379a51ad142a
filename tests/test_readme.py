"""What README.md and the pages in docs/ say is short enough, leads somewhere, and is what the code does and what was recorded."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from feather.options import Options
from feather.policies.registry import policy_options
from lab import book
from lab.figures.idea import draw_idea

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SERVING = (ROOT / "docs" / "serving-vllm.md").read_text(encoding="utf-8")
PAGES = [
    ROOT / "README.md",
    ROOT / "artifact.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "data" / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
IDS = [str(page.relative_to(ROOT)) for page in PAGES]


def test_the_readme_is_at_most_900_words():
    assert len(README.split()) <= 900


def prose(page: Path) -> str:
    """A page without its code and without the tables that publish fills."""
    text = re.sub(r"<!-- ([\w-]+) -->.*?<!-- /\1 -->", "", page.read_text(encoding="utf-8"), flags=re.S)
    return re.sub(r"^```.*?^```", "", text, flags=re.S | re.M)


def anchors(page: Path) -> set[str]:
    heads = re.findall(r"^#+ (.*)$", prose(page), re.M)
    return {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_files_that_are_named_exist(page):
    named = re.findall(r"`((?:feather|lab|tests|requirements|data)/[\w./-]*\w\.(?:py|sh|txt|md|csv|json))`", prose(page))
    assert [path for path in named if not (ROOT / path).exists()] == []
    modules = {
        name.replace(".", "/") for name in re.findall(r"python -m ((?:feather|lab|benchmarks)(?:\.\w+)+)", page.read_text(encoding="utf-8"))
    }
    assert [path for path in modules if not ((ROOT / f"{path}.py").exists() or (ROOT / path / "__main__.py").exists())] == []


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_commands_name_claims_and_notebooks_that_there_are(page):
    known = {*book.CLAIMS, *book.ENTRIES, *(entry.number for entry in book.ENTRIES.values())}
    for wanted in re.findall(r"--only ([\w,]+)", page.read_text(encoding="utf-8")):
        assert set(wanted.split(",")) <= known, wanted


def test_the_table_of_options_names_each_once_with_its_default():
    table = SERVING.split("| option | default | meaning |")[1].split("\n\n")[0]
    told = []
    for row in table.strip().splitlines()[1:]:
        names, defaults, meaning = (cell.strip() for cell in row.strip("| ").split(" | ", 2))
        told += zip(re.findall(r"`(\w+)`", names), (ast.literal_eval(value.strip("` ")) for value in defaults.split(", ")), strict=True)
        assert meaning
    common = Options.known().keys() - policy_options().keys()  # the table of the policies has their own
    assert sorted(told) == sorted((name, declared.default) for name, declared in Options.known().items() if name in common)


def test_the_options_in_the_examples_are_accepted():
    examples = re.findall(r"""additional-config '(\{.*?\})'""", SERVING) + re.findall(r"additional_config=(\{.*?\}\})", SERVING)
    assert len(examples) >= 2
    for example in examples:
        Options.from_mapping(json.loads(example)["feather"])


def test_the_example_prints_what_it_says():
    code = re.search(r"<!-- example -->\s*```python\n(.*?)```\s*<!-- /example -->", README, re.S)[1]
    told = re.search(r"# (\[.*?\])", code)[1]
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert out.strip() == told


def test_the_picture_of_the_idea_can_be_drawn_and_is_legible():
    figure = draw_idea()
    texts = [text for axes in figure.axes for text in axes.texts]
    assert any("Δ = 0" in text.get_text() for text in texts) and any("Δ = 3" in text.get_text() for text in texts)
    pixels = 800 / figure.get_figwidth() / 72  # per point, where it is shown 800 pixels wide
    assert min(text.get_fontsize() for text in texts) * pixels >= 11


def recorded_ratios() -> set[str]:
    """The recorded claims' values, the ratios in their reasons and in what their notebooks found, and the recorded benchmarks' ratios, as prose
    rounds them."""
    found = set()
    for path in (ROOT / "data" / "recorded").glob("*/found*.md"):
        found |= set(re.findall(r"(\d+\.\d+)×", path.read_text(encoding="utf-8")))
    for path in (ROOT / "data" / "recorded").glob("*/claims*.csv"):
        claims = pd.read_csv(path, keep_default_na=False)
        found |= set(re.findall(r"\d+(?:\.\d+)?", " ".join(claims["reason"])))
        values = pd.to_numeric(pd.concat([claims["ours"], claims["low"], claims["high"]])).dropna()
        found |= {f"{value:.0f}" if value >= 10 else f"{value:.2f}" for value in values}
    for path in (ROOT / "data" / "recorded").glob("*/benchmarks/*.json"):
        ratios = re.findall(r'"(?:median|\w+_ratio|ratio_\w+)": (\d+\.\d+)', path.read_text(encoding="utf-8"))
        found |= {f"{float(value):.{digits}f}" for value in ratios for digits in (1, 2)}
        found |= {f"{float(value):.0f}" for value in ratios if float(value) >= 10}
    return found


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_ratios_in_prose_are_recorded_ones(page):
    quoted = set(re.findall(r"(\d+(?:\.\d+)?) ×(?! \d)", prose(page)))
    assert quoted - recorded_ratios() == set()


def test_what_is_said_of_serving_is_what_was_recorded():
    (path,) = (ROOT / "data" / "recorded").glob("*/benchmarks/serving.json")
    found = json.loads(path.read_text())
    of_ten = json.loads(path.with_name("serving-bursts-of-ten.json").read_text())
    told = [(found, name) for name in ("throughput_ratio", "p50_ttft_ratio", "p99_ttft_ratio", "p99_tbt_ratio")]
    for found, name in [(of_ten, "p99_ttft_ratio"), *told]:
        low, high = found["intervals"][name]
        assert f"| {found[name]:.2f} × [{low:.2f}, {high:.2f}] |" in SERVING, name
    assert f"Of {found['requests']} requests, {found['left']} of whose clients left, {found['lost']} were lost" in SERVING
