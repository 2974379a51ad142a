"""book.toml and the notebooks say the same."""

import json
import re

import pytest

from lab import book, instrument, machine
from lab.artifact import outputs, recorded
from lab.artifact.publish import times_table
from lab.llm import TINY_LLAMA, small
from lab.stats import Ratio
from lab.studies.study import Study


def parameters(name):
    """The source of a notebook's parameters cell."""
    cells = json.loads(book.ENTRIES[name].source().read_text(encoding="utf-8"))["cells"]
    (cell,) = [cell for cell in cells if "parameters" in cell["metadata"].get("tags", [])]
    return "".join(cell["source"])


def test_every_notebook_has_an_entry_and_every_entry_a_notebook():
    assert sorted(path.stem for path in book.NOTEBOOKS.glob("*.ipynb")) == list(book.ENTRIES)


def test_every_claim_is_answered_by_some_notebook():
    assert [claim for claim in book.CLAIMS if not book.answered_by(claim)] == []


def test_the_book_is_short():
    assert len((book.ROOT / "book.toml").read_text(encoding="utf-8").splitlines()) <= 260


@pytest.mark.parametrize("profile", ["default", "full"])
def test_no_run_that_measures_is_taken_for_one_of_smoke(profile):
    """In which an arm that learns has no time to settle, and in an open loop no queue builds up."""
    timed = {}
    for entry in book.ENTRIES.values():
        if "cpu" in entry.minutes and "limit=seconds" in entry.source().read_text(encoding="utf-8"):
            timed[entry.name] = entry.parameters(profile, "cpu").get("seconds", entry.own("seconds"))
    assert len(timed) > 5 and min(timed.values()) > instrument.SHORT, timed


def test_every_entry_is_of_backends_and_profiles_that_there_are():
    layers = {"smoke", "full", *machine.BACKENDS, *(f"{backend}_{profile}" for backend in machine.BACKENDS for profile in book.PROFILES)}
    for entry in book.ENTRIES.values():
        assert entry.minutes and entry.minutes.keys() <= set(machine.BACKENDS), entry.name
        assert all(len(times) in (0, 3) for times in entry.minutes.values()), entry.name
        assert ("cpu" in entry.minutes) == ("gpu" in entry.minutes), f"{entry.name}: what is measured is measured on both"
        assert entry.changes.keys() <= layers, f"{entry.name}: {entry.changes.keys() - layers} is no profile or backend"


@pytest.mark.parametrize("name", book.ENTRIES)
def test_a_notebook_knows_every_parameter_that_the_book_sets(name, monkeypatch):
    for variable in ("FEATHER_PROFILE", "FEATHER_OUT"):
        monkeypatch.delenv(variable, raising=False)
    source = parameters(name)
    namespace = {}
    exec(source, namespace)
    assert {"backend", "out"} <= namespace.keys()
    assert f'book.from_environment("{name}")' in source, f"{name} cannot be run small by a test"
    assert book.ENTRIES[name].own("kv_gib") == namespace.get("kv_gib"), "what checks the memory reads it without running the cell"
    told = {parameter for layer in book.ENTRIES[name].changes.values() for parameter in layer}
    assert told <= namespace.keys(), f"book.toml sets {told - namespace.keys()} of {name}, which has no such parameters"


@pytest.mark.parametrize("name", book.ENTRIES)
def test_a_notebook_shows_no_outputs_of_other_code(name):
    assert outputs.complaint(name) == ""


def test_a_study_answers_only_the_claims_that_the_book_lists_for_it(tmp_path):
    study = Study("20_prefix_groups", None, tmp_path)
    assert study.claim("E3", Ratio(2.0, 1.9, 2.1, 5), "why").startswith("E3: paper up to 10×, here 2.00 ×")
    with pytest.raises(ValueError, match=r"^20_prefix_groups answers M1, .* in book.toml \(E3, E7, E10\): add it there$"):
        study.claim("M1", Ratio(2.0, 1.9, 2.1, 5), "why")
    with pytest.raises(ValueError, match="20_prefix_groups answers M1"):
        study.not_run("M1", "mend")
    Study("99_mine", None, tmp_path).claim("M1", Ratio(2.0, 1.9, 2.1, 5), "why")


def test_profiles_and_backends_add_to_the_notebooks_own_parameters(monkeypatch):
    monkeypatch.setattr(machine, "lacks_avx512", lambda: False)
    changes = {"smoke": {"a": 1}, "cpu": {"a": 2, "b": 2}, "full": {"b": 3}, "cpu_full": {"c": 4}, "sim_smoke": {"a": 5}}
    entry = book.Entry("10_x", {"cpu": [1, 2, 3], "sim": []}, changes=changes)
    assert entry.parameters("smoke", "cpu") == {"backend": "cpu", "a": 1}
    assert entry.parameters("smoke", "sim") == {"backend": "sim", "a": 5}
    assert entry.parameters("default", "cpu") == {"backend": "cpu", "a": 2, "b": 2}
    assert entry.parameters("full", "cpu") == {"backend": "cpu", "a": 2, "b": 3, "c": 4}
    assert entry.seconds("default", "cpu") == 120 and entry.seconds("default", "sim") is None
    with pytest.raises(ValueError, match="10_x is not for backend 'gpu': it runs on cpu, sim"):
        entry.parameters("smoke", "gpu")


def test_a_slow_cpu_gets_a_quarter_of_the_model_where_a_notebook_has_one_and_the_profile_gives_none(monkeypatch):
    def model(name, profile, backend="cpu"):
        return book.ENTRIES[name].parameters(profile, backend).get("model")

    monkeypatch.setattr(machine, "lacks_avx512", lambda: True)
    assert model("10_one_stranger", "default") == model("10_one_stranger", "full") == "tiny-llama-quarter" == small().name
    assert model("50_several_machines", "default") is None and model("10_one_stranger", "default", "sim") == "llama-3-8b"
    assert book.ENTRIES["23_models"].parameters("default", "cpu")["models"][-1] == "tiny-llama-quarter"
    assert book.ENTRIES["23_models"].parameters("smoke", "cpu")["models"] == book.ENTRIES["23_models"].changes["smoke"]["models"]
    monkeypatch.setattr(machine, "lacks_avx512", lambda: False)
    assert model("10_one_stranger", "default") is None and small() is TINY_LLAMA


def test_a_question_is_the_heading_without_number_and_claims(monkeypatch):
    for heading in ("10 · Why? (M1, E3)", "10 · Why? (X1 at scale)", "10 · Why?"):
        monkeypatch.setattr(book.Entry, "title", heading)
        assert book.ENTRIES["10_one_stranger"].question == "Why?"


def test_a_kept_run_tells_its_notebooks_by_todays_names():
    assert recorded.today("18_sweeps", "M5") == recorded.today("09_paper_scale", "M5") == "13_batch_size"
    assert recorded.today("09_paper_scale", "E8") == "32_memory_traffic" and recorded.today("16_inside_sglang", "E9") == "25_inside_sglang"
    assert recorded.today("20_prefix_groups", "E3") == "20_prefix_groups"
    assert recorded.names_today("18_sweeps") == ["12_what_is_shared", "13_batch_size", "21_request_rate", "22_lengths"]
    assert recorded.names_today("99_mine") == ["99_mine"]
    assert times_table({"18_sweeps": 61, "06_ablations": 60, "13_order_and_stopping": 5, "01_the_tree": 1}).splitlines()[2:] == [
        "| `01_the_tree` | 0:01 |",
        "| 12, 13, 21 and 22 together | 1:01 |",
        "| `30_order_and_stopping` | 1:05 |",
        "| all | 2:07 |",
    ]


def test_old_names_of_notebooks_lead_to_new_ones():
    """data/README.md says which notebook now answers what a kept run names by an old one."""
    table = (book.ROOT / "data" / "README.md").read_text(encoding="utf-8").split("| then | now |")[1]
    old, new = (re.findall(r"`(\w+)`", " ".join(row.split("|")[column] for row in table.strip().splitlines()[1:])) for column in (1, 2))
    assert set(new) <= set(book.ENTRIES)
    kept = {
        study
        for path in (book.ROOT / "data" / "recorded").glob("*/run.json")
        for study in json.loads(path.read_text(encoding="utf-8"))["seconds"]
    }
    assert kept - set(old) - set(book.ENTRIES) == set()
